//! An ordinary run, and documents that do not fit.

use kafka_llm_processor::types::DeadLetterReason;

use crate::harness::{ANSWER_TOKENS, Job, SOON, Turn, texts};
use crate::support::vllm::skipped;

const DOCUMENTS: usize = 50;
/// Tokens of the context that the longest of the prompts that fit leaves.
const ROOM: u64 = 5;
const _: () = assert!(ROOM < ANSWER_TOKENS);

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

/// The four ways in which vLLM says that a prompt is too long, each once, among documents that fit: one dead letter each, and one call.
#[tokio::test(flavor = "multi_thread")]
async fn documents_that_do_not_fit_are_dead_letters() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.write(texts(10));
    let exact = turn.text_of(turn.context).await;
    let one_more = turn.text_of(turn.context + 1).await;
    // More characters than so many tokens can ever have: refused before they are counted.
    let characters = usize::try_from(turn.context).expect("a length") * 64;
    let far_too_long = "figures and words "
        .chars()
        .cycle()
        .take(characters)
        .collect();
    let too_long: Vec<String> = exact
        .into_iter()
        .chain(one_more)
        .chain([far_too_long])
        .collect();
    let given_up = 10..10 + too_long.len();
    eprintln!("{} documents do not fit", too_long.len());
    job.write(too_long);
    job.write(texts(10));
    let documents = given_up.end + 10;
    let processor = job.start();
    job.outcomes(documents).await;
    processor.drain(SOON).await;
    job.assert_given_up(given_up.clone(), DeadLetterReason::ContextLengthExceeded);
    for letter in job.dead_letters().values().flatten() {
        assert_eq!(
            (letter.attempts, letter.http_status),
            (1, Some(400)),
            "{letter:?}"
        );
    }
    job.assert_answered(
        &turn,
        (0..documents).filter(|number| !given_up.contains(number)),
    )
    .await;
    assert_eq!(job.dead_letters().len(), given_up.len());
}

/// A prompt that leaves less than `llm.max_tokens` is answered with what is left, and the result says that it was cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_leaves_little_room_has_a_shorter_answer() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let Some(text) = turn.text_of(turn.context - ROOM).await else {
        skipped("the tokenizer steps over the length that is needed");
        return;
    };
    let mut job = Job::new(&turn).await;
    job.write([text]);
    let processor = job.start();
    job.outcomes(1).await;
    processor.drain(SOON).await;
    let results = job.results();
    let result = &results[&0][0];
    assert_eq!(result.usage.prompt_tokens, turn.context - ROOM);
    assert_eq!(result.usage.completion_tokens, ROOM, "{result:?}");
    assert_eq!(result.finish_reason, "length");
    assert_eq!(result.truncated.as_deref(), Some("output"));
    assert!(job.dead_letters().is_empty());
}
