//! A partition with transaction markers, which rskafka cannot read: the wire reader goes on there, and nothing is skipped.

use std::path::Path;

use crate::harness::{Job, Kafka, PARTITIONS, SOON};
use crate::support::eventually;
use crate::topic_log::{Results, commits};

/// Plain documents, in the partitions without markers.
const DOCUMENTS: usize = 300;
/// Records of the transactions.
const TRANSACTIONAL: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_with_markers_is_read_on_and_nothing_is_skipped() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let mut job = Job::new(&kafka, "markers").await;
    job.set("pipeline.drain_timeout", "20s");
    // The Java producer chooses partitions itself: it writes while there is one, the others come after.
    kafka.create_topic(&job.name, 1).await;
    write_transactions(&kafka, &job.name).await;
    let (server, count) = (kafka.address(), PARTITIONS.to_string());
    #[rustfmt::skip]
    let arguments = [
        "kafka-topics", "--bootstrap-server", &server, "--alter", "--topic", &job.name, "--partitions", &count,
    ];
    kafka.tool(&arguments).await;
    let others: Vec<_> = (1..PARTITIONS).collect();
    kafka
        .write_documents(&job.name, &others, 0, DOCUMENTS)
        .await;

    let processor = job.start();
    processor
        .line(
            &["WARN", "rskafka cannot read what lies here", "markers/0"],
            SOON,
        )
        .await;
    let mut results = Results::new(&kafka, &job);
    let all = DOCUMENTS + TRANSACTIONAL;
    eventually("every record has a result", SOON, async || {
        results.gather().await;
        (results.answered.len() == all).then_some(())
    })
    .await;
    processor.drain(SOON).await;
    results.gather().await;
    assert_eq!((results.answered.len(), results.repeats()), (all, 0));

    // Markers take offsets too, and the commit steps over the last of them: lag tools show 0.
    let commits = commits(&kafka, &job).await;
    let newest = commits
        .get(&0)
        .and_then(|commits| commits.last())
        .expect("a claim");
    let end = kafka.end_of(&job.name, 0).await;
    assert!(end > TRANSACTIONAL, "{end} offsets: records and markers");
    assert_eq!(usize::try_from(newest.next_offset.value()).ok(), Some(end));
}

/// A Java producer commits, aborts, commits, and dies inside a transaction; then comes a plain document. Exactly once, and at
/// `read_committed`, only what was committed is answered; at `read_uncommitted` everything is. Nobody gets stuck at a marker.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_aborted_is_answered_only_at_read_uncommitted() {
    const EACH: usize = 20;
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let name = "transactions";
    kafka.create_topic(name, PARTITIONS).await;
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/real_kafka/Transactions.java"
    );
    let (address, each) = (kafka.address(), EACH.to_string());
    kafka
        .java(Path::new(source), &[&address, name, &each])
        .await;
    kafka.write_documents(name, &[0], 0, 1).await;

    let committed = 2 * EACH + 1;
    for (flavour, set, expected) in [
        ("eos", ("processing.guarantee", "exactly_once"), committed),
        (
            "committed",
            ("input.isolation_level", "read_committed"),
            committed,
        ),
        ("uncommitted", ("kafka.driver", "wire"), 4 * EACH + 1),
    ] {
        let mut job = Job::new(&kafka, name).await;
        job.rename_output(flavour);
        job.set(set.0, set.1);
        let processor = job.start();
        let mut results = Results::new(&kafka, &job);
        results.wait_for(expected).await;
        // The commit steps over what is not for us, to the end of the log.
        let end = kafka.end_of(name, 0).await;
        eventually("the commit reaches the end", SOON, async || {
            let commits = commits(&kafka, &job).await;
            let newest = commits.get(&0).and_then(|commits| commits.last())?;
            (usize::try_from(newest.next_offset.value()).ok() == Some(end)).then_some(())
        })
        .await;
        processor.drain(SOON).await;
        results.gather().await;
        assert_eq!(
            (results.answered.len(), results.repeats()),
            (expected, 0),
            "{flavour}"
        );
    }
}

/// Records in several transactions, each ended by a marker.
async fn write_transactions(kafka: &Kafka, topic: &str) {
    let bootstrap = format!("bootstrap.servers={}", kafka.address());
    let records = TRANSACTIONAL.to_string();
    #[rustfmt::skip]
    let arguments = [
        "kafka-producer-perf-test", "--topic", topic, "--num-records", &records, "--record-size", "100",
        "--throughput", "400", "--transactional-id", "markers-writer", "--transaction-duration-ms", "50",
        "--producer-props", &bootstrap, "acks=all",
    ];
    kafka.tool(&arguments).await;
}
