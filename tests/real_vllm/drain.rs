//! SIGTERM with `--shutdown-timeout`: calls in flight are finished, new ones are refused with 500 while the server still says it is well.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::harness::{Job, QUEUED_MAX, SOON, TOLD_WITHIN, Turn, counted, texts};
use crate::support::eventually;

const DOCUMENTS: usize = 300;
/// Results before the signal.
const BEFORE: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drains_costs_no_document() {
    let Some(mut turn) = Turn::take_own().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.answer_tokens(400);
    job.set("llm.attempts", "2");
    job.write(texts(DOCUMENTS));
    let processor = job.start();
    job.outcomes(BEFORE).await;
    turn.running(2).await;
    turn.server().terminate();
    let stopped = Instant::now();
    let told = processor.line(&["the work is held"], TOLD_WITHIN).await;
    eprintln!("held {:.1?} after SIGTERM: {told}", stopped.elapsed());
    turn.server().ended().await;
    eprintln!("the server ended {:.1?} after SIGTERM", stopped.elapsed());
    assert!(job.results().len() < DOCUMENTS, "it was stopped at work");
    turn.server().restart().await;
    processor.line(&["the work goes on"], SOON).await;
    let failed = counted(&processor, r#"klp_llm_calls_total{outcome="transient"}"#).await;
    eprintln!("{failed} calls were refused by the draining server");
    job.assert_all_answered(&turn, processor).await;
}

/// Little traffic: long answers end one by one on the draining server, while the few documents that came later are refused. That the long
/// ones succeed says nothing about the server as it is now, so none of the others may be given up for it.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_a_draining_server_finishes_speak_for_no_other_document() {
    let Some(mut turn) = Turn::take_own().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.answer_tokens(1_800);
    job.set("llm.attempts", "2");
    job.set("llm.timeout", "60s");
    // One more every now and then: the answers end at different times.
    let early = 6;
    assert!(early < QUEUED_MAX);
    let processor = job.start();
    for (number, text) in texts(early).enumerate() {
        job.write([text]);
        turn.running(number + 1).await;
        sleep(Duration::from_millis(300)).await;
    }
    turn.server().terminate();
    job.write(texts(2));
    turn.server().ended().await;
    let (answered, letters) = (job.results().len(), crate::harness::described(&job.dead_letters()));
    eprintln!("{answered} of {early} early answers were finished; dead letters: {letters:?}");
    turn.server().restart().await;
    eventually("the late documents are through", SOON, async || {
        (job.results().len() + job.dead_letters().len() == early + 2).then_some(())
    })
    .await;
    job.assert_all_answered(&turn, processor).await;
}
