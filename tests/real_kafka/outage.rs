//! Outages of the broker: survived, told, and nothing is lost.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::harness::{DOCUMENTS, Job, Kafka, SOON};
use crate::topic_log::{Results, assert_commits_claim, assert_commits_never_fall, commits};

/// Longer than `kafka.request_timeout`, so that every request which was on its way runs into it.
const STOPPED_FOR: Duration = Duration::from_secs(15);
/// The promise to operators.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// `kill -9` in the middle, and a restart on the same data.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_is_waited_for() {
    let Some(mut kafka) = Kafka::turn().await else {
        return;
    };
    let job = Job::with_documents(&kafka, "broker-killed").await;
    let mut processor = job.start();
    job.calls(700).await;
    let began = Instant::now();
    kafka.broker_mut().kill().await;
    let told = processor.line(&["WARN", "waiting: "], TOLD_WITHIN).await;
    eprintln!("after {:.1?}: {told}", began.elapsed());
    kafka.broker_mut().restart().await;
    let back = Instant::now();
    processor.line(&["INFO", "goes on"], SOON).await;
    eprintln!("goes on {:.1?} after the broker", back.elapsed());

    let mut results = Results::new(&kafka, &job);
    results.wait_for(DOCUMENTS).await;
    assert!(processor.is_running(), "it has survived");
    processor.drain(SOON).await;
    check(&kafka, &job, results).await;
}

/// A broker that is there and does not answer: nothing ends by itself, so only our own deadlines help.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_is_survived() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let job = Job::with_documents(&kafka, "broker-hangs").await;
    let mut processor = job.start();
    job.calls(700).await;
    let began = Instant::now();
    let paused = kafka.pause().await;
    let told = processor.line(&["WARN", "waiting: "], TOLD_WITHIN).await;
    eprintln!("after {:.1?}: {told}", began.elapsed());
    // The fault itself lasts, whatever was told.
    sleep_until(began + STOPPED_FOR).await;
    drop(paused);

    let mut results = Results::new(&kafka, &job);
    results.wait_for(DOCUMENTS).await;
    assert!(processor.is_running(), "it has survived");
    processor.drain(SOON).await;
    check(&kafka, &job, results).await;
}

async fn check(kafka: &Kafka, job: &Job, mut results: Results) {
    results.gather().await;
    results.assert_complete(DOCUMENTS / 4);
    let commits = commits(kafka, job).await;
    assert_commits_never_fall(&commits);
    assert_commits_claim(&commits, &results, 500);
    eprintln!("{} results repeated", results.repeats());
}
