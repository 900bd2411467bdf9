//! SIGTERM with `--shutdown-timeout`: calls in flight are finished, new ones are refused with 500 while the server still says it is well.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::harness::{Job, SOON, TOLD_WITHIN, Turn, counted, described, texts};

const DOCUMENTS: usize = 300;
/// Results before the signal.
const BEFORE: usize = 60;
/// Documents with long answers, one after the other.
const EARLY: usize = 12;
const APART: Duration = Duration::from_millis(300);
/// Documents that come when the server drains.
const LATE: usize = 2;
const REFUSED: &str = r#"klp_llm_calls_total{outcome="transient"}"#;

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
    let failed = counted(&processor, REFUSED).await;
    let cut = counted(&processor, r#"klp_llm_calls_total{outcome="disconnected"}"#).await;
    eprintln!(
        "{failed} calls were refused by the draining server, {cut} connections ended without an answer"
    );
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
    job.answer_tokens(1_500);
    let processor = job.start();
    // So that the answers end one after the other, as they began.
    for text in texts(EARLY) {
        job.write([text]);
        sleep(APART).await;
    }
    job.outcomes(1).await;
    turn.server().terminate();
    job.write(texts(LATE));
    turn.server().ended().await;
    let refused = counted(&processor, REFUSED).await;
    let letters = described(&job.dead_letters());
    eprintln!("{refused} calls were refused by the draining server; dead letters: {letters:?}");
    assert!(refused > 0, "the late documents were refused");
    turn.server().restart().await;
    job.assert_all_answered(&turn, processor).await;
}
