//! Answers that the server breaks off: 200, `finish_reason` `abort`, and a part of a text. They are no results.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::harness::{Job, SOON, Turn, counted, texts};
use crate::support::eventually;

const DOCUMENTS: usize = 200;
/// Results before the server is told.
const BEFORE: usize = 40;
const ABORTED: &str = r#"klp_llm_calls_total{outcome="aborted"}"#;
/// How long the server is paused.
const PAUSED_FOR: Duration = Duration::from_secs(5);

/// All calls in flight are broken off, and new ones hang until the server goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_is_waited_for() {
    let Some(turn) = Turn::take_own().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.write(texts(DOCUMENTS));
    let processor = job.start();
    job.outcomes(BEFORE).await;
    turn.running(1).await;
    turn.told("/pause", &json!({})).await;
    // The fault itself lasts.
    sleep(PAUSED_FOR).await;
    let answered = job.results().len();
    turn.told("/resume", &json!({})).await;
    assert!(answered < DOCUMENTS, "it was paused at work");
    let aborted = counted(&processor, ABORTED).await;
    eprintln!("{answered} results before the pause, {aborted} calls broken off");
    assert!(aborted > 0, "calls were in flight");
    job.assert_all_answered(&turn, processor).await;
}

/// `keep`: the server stands still with its calls and goes on with them. Nothing fails, nothing is repeated.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_goes_on_where_it_was() {
    let Some(turn) = Turn::take_own().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.write(texts(DOCUMENTS));
    let processor = job.start();
    job.outcomes(BEFORE).await;
    turn.told("/pause?mode=keep", &json!({})).await;
    sleep(PAUSED_FOR).await;
    turn.told("/resume", &json!({})).await;
    job.outcomes(DOCUMENTS).await;
    assert_eq!(counted(&processor, ABORTED).await, 0);
    job.assert_all_answered(&turn, processor).await;
    let results = job.results();
    assert!(
        results
            .values()
            .flatten()
            .all(|result| result.attempts == 1)
    );
}

/// Every call in flight is broken off, several times, while the server goes on with others.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_broken_off_are_made_again() {
    let Some(turn) = Turn::take_own().await else {
        return;
    };
    let mut job = Job::new(&turn).await;
    job.write(texts(DOCUMENTS));
    let processor = job.start();
    for round in 1..=3 {
        job.outcomes(round * BEFORE).await;
        turn.running(1).await;
        let before = counted(&processor, ABORTED).await;
        eventually("calls are broken off", SOON, async || {
            turn.told("/abort_requests", &json!({})).await;
            (counted(&processor, ABORTED).await > before).then_some(())
        })
        .await;
    }
    let aborted = counted(&processor, ABORTED).await;
    eprintln!("{aborted} calls broken off in three rounds");
    job.assert_all_answered(&turn, processor).await;
}
