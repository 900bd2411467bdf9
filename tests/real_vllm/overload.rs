//! `--max-num-queued-reqs`: the server refuses with 503 what it cannot queue. That is a wait, not a failure.

use crate::harness::{Job, QUEUED_MAX, Turn, counted, texts};

const DOCUMENTS: usize = 200;
/// More calls at once than the server queues.
const CONCURRENCY: usize = 64;
const _: () = assert!(CONCURRENCY > QUEUED_MAX);
const REFUSED: &str = "vllm:admission_rejections_total";

/// With one attempt: a refusal that spent any would be a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_spend_no_attempt() {
    overloaded(&CONCURRENCY.to_string()).await;
}

/// The default, which begins above what the server takes and finds out.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_adaptive_concurrency_spend_no_attempt() {
    overloaded("adaptive").await;
}

async fn overloaded(concurrency: &str) {
    let Some(turn) = Turn::take_own().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.set("llm.concurrency", concurrency);
    job.set("llm.attempts", "1");
    job.write(texts(DOCUMENTS));
    let before = turn.api.metric(REFUSED).await;
    let processor = job.start();
    job.outcomes(DOCUMENTS).await;
    let refused = turn.api.metric(REFUSED).await - before;
    let seen = counted(&processor, r#"klp_llm_calls_total{outcome="capacity"}"#).await;
    let held = processor.lines().find(&["the work is held"]);
    eprintln!(
        "{DOCUMENTS} documents, the server refused {refused} calls, the processor saw {seen}"
    );
    assert!(seen > 0, "the server was too busy");
    assert_eq!(held, None, "a busy server holds nothing");
    job.assert_all_answered(&turn, processor).await;
}
