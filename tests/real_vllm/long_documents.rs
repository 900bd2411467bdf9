//! What becomes of documents that do not fit the context, by `long_documents.policy`. Skipped until the processor knows that setting.

use std::ops::Range;

use kafka_llm_processor::types::DeadLetterReason;

use crate::harness::{Job, SOON, Turn, knows, texts};

/// Documents that fit, before the long ones and behind them.
const SHORT: usize = 5;

/// A job with documents that are twice and five times as long as the context; gives back their numbers. `None` while there is no such
/// setting.
async fn job(turn: &Turn, policy: &str) -> Option<(Job, Range<usize>)> {
    let setting = format!("long_documents.policy={policy}");
    if !knows(&[&setting]) {
        return None;
    }
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
    Some((job, SHORT..SHORT + 2))
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
    let Some((job, long)) = job(&turn, "map_reduce").await else {
        return;
    };
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
        eprintln!("document {number}: {:?}", result.usage);
        assert!(result.usage.calls >= 3, "two pieces, and one: {result:?}");
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
    let Some((job, long)) = job(&turn, "truncate").await else {
        return;
    };
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
        let cut = result.truncated.as_deref().unwrap_or_default();
        assert!(cut.contains("input"), "it says what was cut: {result:?}");
        let (prompt, context) = (result.usage.prompt_tokens, turn.context);
        assert!(prompt < context, "it fits: {result:?}");
        assert!(prompt > context / 2, "and not much is wasted: {result:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_gives_a_long_document_up() {
    let Some(turn) = Turn::take().await else {
        return;
    };
    let Some((job, long)) = job(&turn, "dead_letter").await else {
        return;
    };
    let processor = job.start();
    job.outcomes(long.end + SHORT).await;
    processor.drain(SOON).await;
    job.assert_given_up(long.clone(), DeadLetterReason::ContextLengthExceeded);
    assert_eq!(job.dead_letters().len(), long.len());
    job.assert_answered(&turn, short(&long)).await;
}
