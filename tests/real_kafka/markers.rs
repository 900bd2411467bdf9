//! A partition with transaction markers, which rskafka cannot read: held with the reason, while the others go on.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::harness::{Job, Kafka, PARTITIONS, SOON};
use crate::support::eventually;
use crate::topic_log::{Results, commits};

/// Plain documents, in the partitions without markers.
const DOCUMENTS: usize = 300;
/// Records of the transactions.
const TRANSACTIONAL: &str = "100";
/// How often the status page is looked at.
const LOOK: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_with_markers_is_held_and_nothing_is_skipped() {
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

    let mut processor = job.start();
    let listens = processor
        .line(&["admin server listens", "address="], SOON)
        .await;
    let address = listens
        .split_once("address=")
        .expect("an address")
        .1
        .trim()
        .to_owned();
    let hold = eventually("partition 0 is held", SOON, async || {
        sleep(LOOK).await;
        let status = status(&address).await;
        let holds = status["holds"].as_array().expect("holds").clone();
        holds
            .into_iter()
            .find(|hold| hold["what"] == "partition markers/0")
    })
    .await;
    let reason = hold["reason"].as_str().expect("a reason");
    eprintln!("held: {reason}");
    assert!(
        reason.contains("markers/0 cannot be read at offset"),
        "{reason}"
    );
    let told = processor
        .lines()
        .find(&["WARN", "waiting: ", "markers/0 cannot be read"]);
    assert!(told.is_some(), "the log tells it too");

    let mut results = Results::new(&kafka, &job);
    let elsewhere =
        |results: &Results| results.answered.iter().filter(|place| place.0 != 0).count();
    eventually("the other partitions go on", SOON, async || {
        results.gather().await;
        (elsewhere(&results) == DOCUMENTS).then_some(())
    })
    .await;
    assert!(processor.is_running(), "it goes on waiting");
    let held = status(&address).await["state"].clone();
    assert_eq!(held, "holding");
    processor.drain(SOON).await;

    // What was read before the first marker may have a result; the commit never passes what has none.
    results.gather().await;
    assert_eq!((elsewhere(&results), results.repeats()), (DOCUMENTS, 0));
    let commits = commits(&kafka, &job).await;
    let newest = commits
        .get(&0)
        .and_then(|commits| commits.last())
        .expect("a claim");
    assert!(newest.done.is_empty(), "{newest:?}");
    for offset in 0..newest.next_offset.value() {
        assert!(
            results.answered.contains(&(0, offset)),
            "{offset} was skipped"
        );
    }
}

/// Records in several transactions, each ended by a marker.
async fn write_transactions(kafka: &Kafka, topic: &str) {
    let bootstrap = format!("bootstrap.servers={}", kafka.address());
    #[rustfmt::skip]
    let arguments = [
        "kafka-producer-perf-test", "--topic", topic, "--num-records", TRANSACTIONAL, "--record-size", "100",
        "--throughput", "400", "--transactional-id", "markers-writer", "--transaction-duration-ms", "50",
        "--producer-props", &bootstrap, "acks=all",
    ];
    kafka.tool(&arguments).await;
}

async fn status(address: &str) -> Value {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET /status HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(SOON, ask)
        .await
        .expect("in time")
        .expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    serde_json::from_str(body).expect("JSON")
}
