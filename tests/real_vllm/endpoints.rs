//! Two servers, one of which dies at work: the other does the work of both until it is back.

use tokio::time::Instant;

use crate::harness::{Job, SOON, TOLD_WITHIN, Turn, counted, texts};
use crate::support::eventually;
use crate::support::vllm::Api;

const DOCUMENTS: usize = 300;
/// Results before the kill.
const BEFORE: usize = 60;
/// Documents that come when both are there again.
const AFTER: usize = 100;

/// With two attempts, so that a failure which counted where it must not would show as a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_servers_dies_and_comes_back() {
    let Some(turn) = Turn::take_own().await else {
        return;
    };
    let mut second = turn.second().await;
    let urls = format!("{},{}", turn.api.url(), second.api().url());
    let mut job = Job::new(&turn).await;
    job.set("llm.url", &urls);
    job.set("llm.attempts", "2");
    job.write(texts(DOCUMENTS));
    let processor = job.start();
    job.outcomes(BEFORE).await;
    eventually("the second server works", SOON, async || {
        (second.api().metric("vllm:num_requests_running").await >= 1.0).then_some(())
    })
    .await;
    second.kill_engine();
    let killed = Instant::now();
    let gone = ["a model server cannot be used", second.api().url()];
    processor.line(&gone, TOLD_WITHIN).await;
    eprintln!("told {:.1?} after the kill", killed.elapsed());
    let answered = job.results().len();
    assert!(answered < DOCUMENTS, "it was killed at work");
    job.outcomes(DOCUMENTS).await;
    let failed = counted(&processor, r#"klp_llm_calls_total{outcome="transient"}"#).await;
    eprintln!(
        "{answered} results when it was told, {failed} calls failed, all is done at the other"
    );
    let held = processor.lines().find(&["the work is held"]);
    assert_eq!(held, None, "the other was there");

    second.ended().await;
    second.restart().await;
    let back = Instant::now();
    let again = ["the work goes on", second.api().url()];
    processor.line(&again, SOON).await;
    eprintln!("goes on {:.1?} after the server is ready", back.elapsed());
    let before = done(second.api()).await;
    job.write(texts(AFTER));
    job.assert_all_answered(&turn, processor).await;
    let shares = (done(second.api()).await - before, AFTER);
    eprintln!(
        "of the last {}, the second server answered {}",
        shares.1, shares.0
    );
    assert!(shares.0 > 0.0, "it has its part of the work");
}

/// Requests that a server has answered.
async fn done(api: &Api) -> f64 {
    api.metric("vllm:request_success_total").await
}
