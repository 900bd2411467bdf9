//! The main job: every document has one result, at the speed of the model, in bounded memory.

use std::time::Duration;

use kafka_llm_processor::kafka::wire::{Isolation, OffsetAt};
use kafka_llm_processor::types::TopicPartition;
use tokio::time::Instant;

use crate::harness::{CONCURRENCY, DOCUMENTS, Job, Kafka, LATENCY, PARTITIONS, SOON};
use crate::support::eventually;
use crate::topic_log::{Results, assert_commits_claim, assert_commits_never_fall, commits};

/// The bars of `docs/performance.md`.
const BOUND_FACTOR_MAX: f64 = 1.3;
const RESIDENT_KIB_MAX: u64 = 64 * 1024;

/// No calls can end sooner: full concurrency from the first call to the last, and nothing else takes time.
fn bound() -> Duration {
    let calls = f64::from(u32::try_from(DOCUMENTS).expect("a count"));
    let at_once = f64::from(u32::try_from(CONCURRENCY).expect("a count"));
    LATENCY.mul_f64(calls / at_once)
}

#[tokio::test(flavor = "multi_thread")]
async fn main_job_in_input_order() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let results = main_job(&kafka, "input").await;
    results.assert_ordered(|seen| seen.source.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn main_job_in_key_order() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let results = main_job(&kafka, "key").await;
    results.assert_ordered(|seen| (seen.source.0, seen.key.clone()));
}

#[tokio::test(flavor = "multi_thread")]
async fn main_job_in_completion_order() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    main_job(&kafka, "completion").await;
}

/// Runs the job, measures from the first call to the last visible result, and checks what holds in every order.
async fn main_job(kafka: &Kafka, order: &str) -> Results {
    let mut job = Job::with_documents(kafka, &format!("main-job-{order}")).await;
    job.argument(format!("--order={order}"));
    let processor = job.start();
    job.calls(1).await;
    let began = Instant::now();
    // Nobody looks at the results before they can be there: looking takes the processor's time.
    job.calls(u64::try_from(DOCUMENTS).expect("a count")).await;
    eventually("every result is visible", SOON, async || {
        (visible(kafka, &job).await >= DOCUMENTS).then_some(())
    })
    .await;
    let wall = began.elapsed();
    let resident_kib = processor.peak_resident_kib();
    let factor = wall.as_secs_f64() / bound().as_secs_f64();
    eprintln!(
        "order {order}: {wall:.2?}, {factor:.2} x the bound {:.2?}; at most {} calls at once; peak resident {:.1} MiB",
        bound(),
        job.vllm.peak_running(),
        f64::from(u32::try_from(resident_kib).expect("a size")) / 1024.0,
    );
    processor.drain(SOON).await;

    let mut results = Results::new(kafka, &job);
    results.gather().await;
    results.assert_complete(DOCUMENTS / 4);
    assert_eq!(
        results.repeats(),
        0,
        "nothing failed, so nothing is repeated"
    );
    let calls = usize::try_from(job.vllm.calls()).expect("a count");
    assert_eq!(calls, DOCUMENTS, "one call for each document");
    let commits = commits(kafka, &job).await;
    assert_commits_never_fall(&commits);
    assert_commits_claim(&commits, &results, 500);
    if std::env::var_os("REAL_KAFKA_BARS").is_some_and(|value| value == "1") {
        assert!(factor <= BOUND_FACTOR_MAX, "{factor:.2} x the bound");
        assert!(resident_kib <= RESIDENT_KIB_MAX, "{resident_kib} KiB");
    }
    results
}

/// Records in the topic of the results.
async fn visible(kafka: &Kafka, job: &Job) -> usize {
    let mut visible = 0;
    for partition in 0..PARTITIONS {
        let partition = TopicPartition::new(job.results(), partition);
        let end =
            kafka
                .cluster
                .list_offset(&partition, OffsetAt::Latest, Isolation::ReadUncommitted);
        let end = end.await.expect("asked").expect("there is always an end");
        visible += usize::try_from(end.value()).expect("an offset");
    }
    visible
}
