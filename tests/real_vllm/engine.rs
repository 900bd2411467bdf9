//! The engine dies at work: all calls fail at once, the server ends, and nobody listens until it is started again.

use tokio::time::Instant;

use crate::harness::{Job, SOON, TOLD_WITHIN, Turn, counted, texts};

const DOCUMENTS: usize = 300;
/// Results before the kill.
const BEFORE: usize = 60;

/// With two attempts, so that a failure which counted where it must not would show as a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_costs_no_document() {
    let Some(mut turn) = Turn::take_own().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.set("llm.attempts", "2");
    job.write(texts(DOCUMENTS));
    let mut processor = job.start();
    job.outcomes(BEFORE).await;
    turn.running(1).await;
    turn.server().kill_engine();
    let killed = Instant::now();
    let told = processor.line(&["the work is held"], TOLD_WITHIN).await;
    eprintln!("held {:.1?} after the kill: {told}", killed.elapsed());
    let answered = job.results().len();
    assert!(answered < DOCUMENTS, "it was killed at work");
    turn.server().ended().await;
    turn.server().restart().await;
    let back = Instant::now();
    processor.line(&["the work goes on"], SOON).await;
    eprintln!("goes on {:.1?} after the server is ready", back.elapsed());
    assert!(processor.is_running(), "it has survived");
    let failed = counted(&processor, r#"klp_llm_calls_total{outcome="transient"}"#).await;
    eprintln!("{answered} results before, {failed} calls failed with the engine");
    assert!(failed > 0, "calls were in flight");
    job.assert_all_answered(&turn, processor).await;
}
