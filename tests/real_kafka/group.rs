//! Several processes, exactly once: as members of a group, and two that are each set to do all of it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{BATCH_DOCUMENTS, Job, Kafka, PARTITIONS, SOON};
use crate::support::eventually;

const DOCUMENTS: usize = 1_600;
/// They are written in two parts.
const HALF: usize = DOCUMENTS / 2;
/// Each process then does at most eighty documents in a second.
const CALLS_AT_ONCE: &str = "4";

async fn job(kafka: &Kafka, name: &str) -> Job {
    let mut job = Job::new(kafka, name).await;
    job.set("processing.guarantee", "exactly_once");
    job.set("llm.concurrency", CALLS_AT_ONCE);
    kafka.create_topic(name, PARTITIONS).await;
    job
}

async fn write_half(kafka: &Kafka, job: &Job, first: usize) {
    const { assert!(HALF.is_multiple_of(4 * BATCH_DOCUMENTS)) };
    let partitions: Vec<_> = (0..PARTITIONS).collect();
    kafka
        .write_documents(&job.name, &partitions, first, HALF)
        .await;
}

/// One of three is killed, one is stopped for longer than its session, one is drained; the one that was stopped comes back and does the
/// rest with a fourth.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_processes_does_every_document_once() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let mut job = job(&kafka, "shared").await;
    job.set("input.assignment", "group");
    // The shortest that a broker takes unless told otherwise.
    job.set("kafka.session_timeout", "6s");
    job.set("kafka.heartbeat_interval", "1s");
    let (killed, mut stopped, mut drained) = (job.start(), job.start(), job.start());
    for process in [&killed, &stopped, &drained] {
        process.line(&["assigned by the group"], SOON).await;
        process.line(&["documents flow"], SOON).await;
    }
    let members = describe(&kafka, &job, &["--members"]).await;
    assert_eq!(members.matches("shared").count(), 3, "{members}");

    write_half(&kafka, &job, 0).await;
    job.calls(200).await;
    killed.kill();
    job.calls(300).await;
    stopped.signal("-STOP");
    // Both are counted out: all four partitions are the third's.
    let alone = eventually("the third has it all", SOON, async || {
        let lines = drained.lines().all();
        let assigned = lines.into_iter().rev();
        assigned
            .filter(|line| line.contains("assigned by the group"))
            .find(|line| (0..PARTITIONS).all(|index| line.contains(&format!("shared/{index}"))))
    });
    alone.await;
    write_half(&kafka, &job, HALF).await;
    stopped.signal("-CONT");
    stopped
        .line(&["membership in the group has ended"], SOON)
        .await;
    let fourth = job.start();
    fourth.line(&["assigned by the group"], SOON).await;
    assert!(job.vllm.calls() < u64::try_from(DOCUMENTS).expect("a count"));
    drained.signal("-TERM");
    assert_eq!(drained.exit_code(SOON).await, Some(0), "drained");

    wait_until_no_lag(&kafka, &job).await;
    assert!(stopped.is_running(), "it has come back");
    stopped.drain(SOON).await;
    fourth.drain(SOON).await;
    assert_each_once(&kafka, &job).await;
}

/// Two processes that are each set to do everything: the newer has it, the older ends and says why.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_set_to_do_everything_the_older_ends() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let job = job(&kafka, "twice").await;
    write_half(&kafka, &job, 0).await;
    write_half(&kafka, &job, HALF).await;
    let mut older = job.start();
    job.calls(200).await;
    let newer = job.start_with(&["--set=llm.concurrency=64"], &[]);
    assert_eq!(older.exit_code(SOON).await, Some(3));
    let words = ["this instance stops", "has taken over", "input.assignment"];
    older.line(&words, Duration::ZERO).await;
    wait_until_no_lag(&kafka, &job).await;
    newer.drain(SOON).await;
    assert_each_once(&kafka, &job).await;
}

async fn describe(kafka: &Kafka, job: &Job, more: &[&str]) -> String {
    let server = kafka.address();
    #[rustfmt::skip]
    let arguments = ["kafka-consumer-groups", "--bootstrap-server", &server, "--describe", "--group", &job.name];
    kafka.tool(&[&arguments, more].concat()).await
}

/// As an operator sees it: the columns are group, topic, partition, offset, end, lag.
async fn wait_until_no_lag(kafka: &Kafka, job: &Job) {
    let end = (DOCUMENTS / 4).to_string();
    eventually("no lag", 2 * SOON, async || {
        let table = describe(kafka, job, &[]).await;
        let done = table.lines().filter(|line| {
            let columns: Vec<_> = line.split_whitespace().collect();
            columns.get(3..6) == Some(&[end.as_str(), end.as_str(), "0"])
        });
        (done.count() == 4).then_some(())
    })
    .await;
}

/// A consumer of Kafka's own, which reads what is committed, sees one result of each document.
async fn assert_each_once(kafka: &Kafka, job: &Job) {
    let (server, topic) = (kafka.address(), job.results());
    #[rustfmt::skip]
    let arguments = [
        "kafka-console-consumer", "--bootstrap-server", &server, "--topic", &topic, "--from-beginning",
        "--isolation-level", "read_committed", "--timeout-ms", "5000",
    ];
    let text = kafka.tool(&arguments).await;
    let mut answered = BTreeSet::new();
    for line in text.lines() {
        let result: Value = serde_json::from_str(line).expect("a line is JSON");
        let name = result["document_id"].as_str().expect("a name").to_owned();
        assert!(answered.insert(name), "twice: {line}");
    }
    let expected = (0..DOCUMENTS).map(|number| format!("document-{number}"));
    assert_eq!(answered, expected.collect());
}
