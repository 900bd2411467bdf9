//! An ordinary run, identical documents, and documents that do not fit.

use kafka_llm_processor::types::DeadLetterReason;

use crate::harness::{ANSWER_TOKENS, Job, SOON, Turn, described, texts};
use crate::support::vllm::skipped;

const DOCUMENTS: usize = 50;
/// Tokens of the context that the longest of the prompts that fit leaves.
const ROOM: u64 = 5;
const _: () = assert!(ROOM < ANSWER_TOKENS);
/// A context far larger than the server's: no prompt is thought to be near its end.
const WRONG_CONTEXT: u64 = 1_000_000;
/// Documents that fit, before those that do not and behind them.
const SHORT: usize = 10;
/// Words with about as many tokens as they are thought to have, and with twice as many.
const PROSE: &str = "Revenue rose 12 % to 4.3 billion in the third quarter, and margins held. ";
const ODD: &str = "profit ";
/// Texts, and documents with each of them.
const DISTINCT: usize = 5;
const TIMES: usize = 12;

/// Documents of several lengths, one call and one result each, with the prompt as the server counts it.
#[tokio::test(flavor = "multi_thread")]
async fn every_document_has_one_result() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.write(texts(DOCUMENTS));
    let processor = job.start();
    job.assert_all_answered(&turn, processor).await;
    let results = job.results();
    let calls: u32 = results.values().flatten().map(|r| r.usage.calls).sum();
    let tokens = results.values().flatten().map(|r| r.usage.prompt_tokens);
    let (least, most) = (tokens.clone().min(), tokens.max());
    assert_eq!(usize::try_from(calls), Ok(DOCUMENTS), "one call each");
    eprintln!("{DOCUMENTS} documents of {least:?} to {most:?} tokens: one result each");
    for result in results.values().flatten() {
        assert_eq!(result.attempts, 1, "{result:?}");
        assert_eq!(result.model, turn.model);
    }
}

/// Prompts that vLLM refuses, each in its own words: as long as the context, longer, and of more characters than its tokens can have.
async fn too_long(turn: &Turn) -> Vec<String> {
    let exact = turn.text_of(PROSE, turn.context).await;
    let one_more = turn.text_of(PROSE, turn.context + 1).await;
    let characters = usize::try_from(turn.context).expect("a length") * 64;
    let far_too_long = "figures and words "
        .chars()
        .cycle()
        .take(characters)
        .collect();
    exact
        .into_iter()
        .chain(one_more)
        .chain([far_too_long])
        .collect()
}

/// One dead letter each for documents that do not fit, among others that do. Gives back their letters, as attempts and status.
async fn given_up(turn: &Turn, settings: &[(&str, &str)]) -> Vec<(u32, Option<u16>)> {
    let mut job = Job::new(turn).await;
    job.set("long_documents.policy", "dead_letter");
    for (key, value) in settings {
        job.set(key, value);
    }
    job.write(texts(SHORT));
    let too_long = too_long(turn).await;
    let given_up = SHORT..SHORT + too_long.len();
    job.write(too_long);
    job.write(texts(SHORT));
    let documents = given_up.end + SHORT;
    let processor = job.start();
    job.outcomes(documents).await;
    processor.drain(SOON).await;
    job.assert_given_up(given_up.clone(), DeadLetterReason::ContextLengthExceeded);
    let answered = (0..documents).filter(|number| !given_up.contains(number));
    job.assert_answered(turn, answered).await;
    let letters = job.dead_letters();
    eprint!("{}", described(&letters));
    assert_eq!(letters.len(), given_up.len());
    let letters = letters.values().flatten();
    letters
        .map(|letter| (letter.attempts, letter.http_status))
        .collect()
}

/// What the server has counted as too long is given up without a call.
#[tokio::test(flavor = "multi_thread")]
async fn documents_that_count_too_long_are_dead_letters() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    for letter in given_up(&turn, &[]).await {
        assert_eq!(letter, (0, None));
    }
}

/// With the context set wrongly they are asked about: the ways in which vLLM says that a prompt is too long, one call each.
#[tokio::test(flavor = "multi_thread")]
async fn documents_that_the_server_refuses_as_too_long_are_dead_letters() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let context = WRONG_CONTEXT.to_string();
    for letter in given_up(&turn, &[("long_documents.context_tokens", &context)]).await {
        assert_eq!(letter, (1, Some(400)));
    }
}

/// A prompt that leaves less than `llm.max_tokens`, and is thought to leave much more: vLLM cuts the answer to what is left, and the document
/// is read in parts. Where the context is set wrongly the cut answer is the result, which says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_leaves_little_room_has_a_whole_answer_or_one_that_says_it_is_cut() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let Some(text) = turn.text_of(ODD, turn.context - ROOM).await else {
        skipped("the tokenizer steps over the length that is needed");
        return;
    };
    for wrong in [false, true] {
        let mut job = Job::new(&turn).await;
        if wrong {
            job.set("long_documents.context_tokens", &WRONG_CONTEXT.to_string());
        }
        job.write([text.clone()]);
        let processor = job.start();
        job.outcomes(1).await;
        processor.drain(SOON).await;
        assert!(job.dead_letters().is_empty());
        let results = job.results();
        let result = &results[&0][0];
        let answer_tokens = result.usage.completion_tokens;
        if wrong {
            assert_eq!(result.usage.prompt_tokens, turn.context - ROOM);
            assert_eq!(answer_tokens, ROOM, "{result:?}");
            assert_eq!(result.finish_reason, "length");
            assert_eq!(result.truncated.as_deref(), Some("output"));
            assert_eq!(result.long_document, None);
        } else {
            let long = result.long_document.as_ref().expect("read in parts");
            assert_eq!(long["policy"], "map_reduce");
            assert!(answer_tokens >= 3 * ANSWER_TOKENS, "{result:?}");
        }
    }
}

/// Documents with the same text are asked about once, also when they come at once, and each has its own result.
#[tokio::test(flavor = "multi_thread")]
async fn identical_documents_are_asked_about_once() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let distinct: Vec<_> = texts(DISTINCT).collect();
    let mut job = Job::new(&turn).await;
    job.set("llm.cache_bytes_max", "1000000");
    let answered = || turn.api.metric("vllm:request_success_total");
    let before = answered().await;
    job.write(distinct.iter().cycle().take(DISTINCT * TIMES).cloned());
    let processor = job.start();
    job.assert_all_answered(&turn, processor).await;
    let asked = answered().await - before;
    eprintln!("{} documents, {asked} calls", DISTINCT * TIMES);
    let results = job.results();
    let fresh = results.values().flatten().filter(|result| !result.cached);
    assert_eq!(fresh.count(), DISTINCT);
    assert_eq!(Ok(asked), u32::try_from(DISTINCT).map(f64::from));
    for (number, result) in &results {
        let first = &results[&(number % DISTINCT)][0];
        assert_eq!(result[0].output, first.output, "{number}");
    }
}
