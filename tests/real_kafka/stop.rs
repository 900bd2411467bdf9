//! SIGTERM: what is in flight is finished, the rest is left for the next run.

use crate::harness::{DOCUMENTS, Job, Kafka, SOON};
use crate::topic_log::{Results, assert_commits_claim, assert_commits_never_fall, commits};

/// After the drain each call that was made has its one result and is committed; the next run does the rest, and nothing twice.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_the_next_run_repeats_nothing() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let job = Job::with_documents(&kafka, "drained").await;
    let mut processor = job.start();
    job.calls(500).await;
    processor.signal("-TERM");
    assert_eq!(processor.exit_code(SOON).await, Some(0), "drained");
    assert!(processor.lines().find(&["drained"]).is_some(), "it says so");

    let mut results = Results::new(&kafka, &job);
    results.gather().await;
    let answered = results.answered.len();
    eprintln!("{answered} documents have a result after the drain");
    let calls = usize::try_from(job.vllm.calls()).expect("a count");
    assert_eq!(answered, calls, "every call was used");
    assert!(answered < DOCUMENTS, "it was stopped at work");
    assert_commits_claim(&commits(&kafka, &job).await, &results, 500);

    let processor = job.start();
    results.wait_for(DOCUMENTS).await;
    processor.drain(SOON).await;
    results.gather().await;
    results.assert_complete(DOCUMENTS / 4);
    assert_eq!(results.repeats(), 0, "a drain costs no repeats");
    let commits = commits(&kafka, &job).await;
    assert_commits_never_fall(&commits);
    assert_commits_claim(&commits, &results, 500);
}
