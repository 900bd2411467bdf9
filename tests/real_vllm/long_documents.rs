//! What becomes of documents that do not fit the context, by `long_documents.policy`.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use kafka_llm_processor::records::result::ResultStatus;
use kafka_llm_processor::types::DeadLetterReason;
use serde_json::json;
use tokio::time::Instant;

use crate::harness::{ANSWER_TOKENS, Job, SOON, Turn, described, texts};
use crate::support::eventually;

/// Documents that fit, before the long ones and behind them.
const SHORT: usize = 5;
/// Characters of the filing: some 300 pages.
const FILING: usize = 1_500_000;
/// Of each note and of the answer, so that a thousand calls take a minute and not hours.
const NOTE_TOKENS: u64 = 32;
const FILING_WITHIN: Duration = Duration::from_secs(900);

/// A job with documents that are twice and five times as long as the context; gives back their numbers.
async fn job(turn: &Turn, policy: &str) -> (Job, Range<usize>) {
    let mut job = Job::new(turn).await;
    job.set("long_documents.policy", policy);
    job.write(texts(SHORT));
    let sentence = "Revenue rose 12 % to 4.3 billion in the third quarter, and margins held. ";
    let each = turn.api.tokens(&turn.model, &sentence.repeat(10)).await / 10;
    let long = [2, 5].map(|times| {
        let count = times * turn.context / each;
        sentence.repeat(usize::try_from(count).expect("a count"))
    });
    job.write(long);
    job.write(texts(SHORT));
    (job, SHORT..SHORT + 2)
}

/// The numbers of the documents that fit.
fn short(long: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
    (0..long.start).chain(long.end..long.end + SHORT)
}

/// The document is asked about in pieces, and the answers are put together: several calls, one result.
#[tokio::test(flavor = "multi_thread")]
async fn map_reduce_answers_a_long_document() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let (job, long) = job(&turn, "map_reduce").await;
    let processor = job.start();
    job.outcomes(long.end + SHORT).await;
    processor.drain(SOON).await;
    assert_eq!(job.dead_letters().len(), 0);
    job.assert_answered(&turn, short(&long)).await;
    let results = job.results();
    for number in long {
        let [result] = &results[&number][..] else {
            panic!("{:?}", results[&number]);
        };
        let summary = result.long_document.as_ref().expect("it was long");
        eprintln!("document {number}: {:?} {summary}", result.usage);
        assert!(result.usage.calls >= 3, "two pieces, and one: {result:?}");
        assert_eq!(summary["policy"], "map_reduce");
        assert_eq!(summary["calls"], result.usage.calls);
        assert_eq!(summary["notes_cut"], 0);
        assert_eq!(result.attempts, result.usage.calls, "none was refused");
        // The whole document was read: what was left out would be missing here.
        let context = turn.context;
        assert!(result.usage.prompt_tokens > 3 * context / 2, "{result:?}");
    }
}

/// The document is cut to what fits, and the result says so.
#[tokio::test(flavor = "multi_thread")]
async fn truncate_answers_what_fits_and_says_so() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let (job, long) = job(&turn, "truncate").await;
    let processor = job.start();
    job.outcomes(long.end + SHORT).await;
    processor.drain(SOON).await;
    assert_eq!(job.dead_letters().len(), 0);
    job.assert_answered(&turn, short(&long)).await;
    let results = job.results();
    for number in long {
        let [result] = &results[&number][..] else {
            panic!("{:?}", results[&number]);
        };
        assert_eq!(result.status, ResultStatus::Truncated);
        // The model never ends by itself, so that the answer is cut too.
        assert_eq!(result.truncated.as_deref(), Some("document, output"));
        let summary = result.long_document.as_ref().expect("it was long");
        assert_eq!(
            (&summary["policy"], &summary["keep"]),
            (&json!("truncate"), &json!("head"))
        );
        assert!(
            summary["left_out_characters"].as_u64() > Some(1_000),
            "{summary}"
        );
        let (prompt, context) = (result.usage.prompt_tokens, turn.context);
        let room = context - ANSWER_TOKENS;
        assert!(prompt <= room, "it fits: {result:?}");
        assert!(prompt > room * 9 / 10, "and not much is wasted: {result:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_gives_a_long_document_up() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let (job, long) = job(&turn, "dead_letter").await;
    let processor = job.start();
    job.outcomes(long.end + SHORT).await;
    processor.drain(SOON).await;
    job.assert_given_up(long.clone(), DeadLetterReason::ContextLengthExceeded);
    assert_eq!(job.dead_letters().len(), long.len());
    job.assert_answered(&turn, short(&long)).await;
}

/// A filing of about so many characters: items with headings, paragraphs and tables, each with figures of its own.
fn filing(characters: usize) -> Vec<String> {
    let mut items = Vec::new();
    let mut length = 0;
    while length < characters {
        let item = items.len() + 1;
        let mut text = format!("ITEM {item}. RESULTS OF SEGMENT {item}\n\n");
        for year in 2016..2026 {
            let figure = (item * 7_919 + year * 104_729) % 9_000 + 1_000;
            writeln!(
                text,
                "Net sales of the segment were ${figure} million in fiscal {year}. The change was due to volume and pricing, and to the \
                 acquisition of a supplier; freight and energy cost less than in the year before. Management expects the margin to hold.\n"
            )
            .expect("text");
            for region in ["Americas", "Europe", "Asia"] {
                writeln!(
                    text,
                    "| {region} | {} | {}.{} % |",
                    figure / 3,
                    figure % 17,
                    figure % 10
                )
                .expect("text");
            }
            text.push('\n');
        }
        length += text.len();
        items.push(text);
    }
    items
}

/// A whole filing through a context of some pages: every token of it was read, the server has counted what the result tells, and there is
/// one answer. Documents behind it have theirs.
#[tokio::test(flavor = "multi_thread")]
async fn a_filing_goes_through_a_small_context() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let items = filing(FILING);
    let mut tokens = 0;
    for item in &items {
        tokens += turn.api.tokens(&turn.model, item).await;
    }
    // The chat template was counted with each item.
    tokens -= turn.api.tokens(&turn.model, "").await * u64::try_from(items.len()).expect("a count");
    let text = items.concat();
    let characters = text.chars().count();
    let mut job = Job::new(&turn).await;
    job.answer_tokens(NOTE_TOKENS);
    job.set("long_documents.map_tokens", &NOTE_TOKENS.to_string());
    job.write([text]);
    job.write(texts(SHORT));
    let counted = || turn.api.metric("vllm:prompt_tokens_total");
    let before = counted().await;
    let processor = job.start();
    let began = Instant::now();
    job.outcomes_within(1 + SHORT, FILING_WITHIN).await;
    let took = began.elapsed();
    processor.drain(SOON).await;
    assert_eq!(described(&job.dead_letters()), "");
    job.assert_answered(&turn, 1..=SHORT).await;
    let results = job.results();
    let [result] = &results[&0][..] else {
        panic!("{:?}", results[&0]);
    };
    let summary = result.long_document.as_ref().expect("it was long");
    eprintln!(
        "{characters} characters, {tokens} tokens: {took:.1?}, {:?}, {summary}",
        result.usage
    );
    assert_eq!(summary["policy"], "map_reduce");
    assert_eq!(summary["calls"], result.usage.calls);
    assert_eq!(summary["notes_cut"], 0);
    assert!(result.usage.prompt_tokens >= tokens, "all of it was read");
    assert!(
        result.usage.completion_tokens <= NOTE_TOKENS * u64::from(result.usage.calls),
        "{result:?}"
    );
    let told: u64 = results
        .values()
        .flatten()
        .map(|result| result.usage.prompt_tokens)
        .sum();
    let told = f64::from(u32::try_from(told).expect("a count"));
    // The server counts at the end of a step, which may be after the answer.
    eventually("the server has counted as much", SOON, async || {
        let seen = counted().await - before;
        assert!(seen <= told, "{seen} and {told}");
        (seen >= told).then_some(())
    })
    .await;
}
