//! The documents: appended at an even pace while the storm lasts, by a client that is not the product's own.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_llm_processor::clock;
use rskafka::BackoffConfig;
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use rskafka::record::Record;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::scenario::{PARTITIONS, Scenario};

/// Keys among the documents, each on every partition.
const KEYS: usize = 97;
/// Every so many documents have no key: their results stay on the number of their partition.
const KEYLESS: usize = 11;
/// Every so many documents have no content, and become dead letters without a call.
const BAD: usize = 101;
/// The keys of those.
pub(crate) const BAD_KEY: &str = "bad";
/// How often a partition is appended to.
const PACE: Duration = Duration::from_millis(250);
/// The longest that an append may take beyond the storm: an outage, and the client's own pauses.
const APPEND_WITHIN: Duration = Duration::from_secs(90);

fn document(number: usize) -> Record {
    let (key, value) = if number % BAD == BAD - 1 {
        let value = format!(r#"{{"id":"document-{number}"}}"#);
        (Some(BAD_KEY.to_owned()), value)
    } else {
        let value = format!(
            r#"{{"id":"document-{number}","content":"Report {number}. Revenue rose 12 % in the third quarter, and margins held."}}"#
        );
        let key = (!number.is_multiple_of(KEYLESS)).then(|| format!("customer-{}", number % KEYS));
        (key, value)
    };
    Record {
        key: key.map(String::into_bytes),
        value: Some(value.into_bytes()),
        headers: BTreeMap::new(),
        timestamp: DateTime::<Utc>::from_timestamp_millis(clock::now().as_millisecond())
            .expect("a time"),
    }
}

/// Appends all documents of the storm, the last of them when it ends. A leader that dies may make the client append a batch twice: both
/// are documents, as the log is the truth about what was asked for.
pub(crate) async fn append(brokers: &str, scenario: &Scenario, began: Instant) {
    let client = client(brokers).await;
    let partitions = usize::try_from(PARTITIONS).expect("a count");
    let mut tasks = JoinSet::new();
    for partition in 0..PARTITIONS {
        let first = usize::try_from(partition).expect("a number");
        let numbers: Vec<_> = (first..scenario.documents).step_by(partitions).collect();
        let writer =
            client.partition_client(scenario.input(), partition, UnknownTopicHandling::Retry);
        let writer = timeout(APPEND_WITHIN, writer).await.expect("in time");
        let writer = writer.expect("a writer");
        tasks.spawn(append_to(writer, numbers, began, scenario.lasts));
    }
    for done in tasks.join_all().await {
        done.expect("appended");
    }
}

async fn client(brokers: &str) -> Client {
    let brokers = brokers.split(',').map(str::to_owned).collect();
    let client = ClientBuilder::new(brokers).backoff_config(BackoffConfig {
        init_backoff: Duration::from_millis(50),
        max_backoff: Duration::from_secs(1),
        base: 2.0,
        deadline: None,
    });
    let client = timeout(APPEND_WITHIN, client.build()).await;
    client.expect("in time").expect("connected")
}

async fn append_to(
    writer: PartitionClient,
    numbers: Vec<usize>,
    began: Instant,
    lasts: Duration,
) -> Result<(), rskafka::client::error::Error> {
    let mut written = 0;
    let mut turn = 0;
    while written < numbers.len() {
        turn += 1;
        sleep_until(began + PACE * turn).await;
        let share = (PACE * turn).as_secs_f64() / lasts.as_secs_f64();
        let due = numbers.len().min(share_of(numbers.len(), share));
        let records: Vec<_> = numbers[written..due.max(written)]
            .iter()
            .map(|number| document(*number))
            .collect();
        if records.is_empty() {
            continue;
        }
        append_batch(&writer, records).await?;
        written = due;
    }
    Ok(())
}

/// Refusals that the client does not repeat by itself, such as too few in-sync replicas, are repeated here.
async fn append_batch(
    writer: &PartitionClient,
    records: Vec<Record>,
) -> Result<(), rskafka::client::error::Error> {
    let deadline = Instant::now() + APPEND_WITHIN;
    loop {
        let appended = writer.produce(records.clone(), Compression::NoCompression);
        let appended = timeout(APPEND_WITHIN, appended).await;
        match appended.expect("in time") {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => sleep_until(Instant::now() + PACE).await,
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a share of some thousand documents"
)]
fn share_of(count: usize, share: f64) -> usize {
    (count as f64 * share) as usize
}

/// A document that nobody works on: the instances have ended.
pub(crate) async fn append_one_more(brokers: &str, scenario: &Scenario) {
    append_record(brokers, &scenario.input(), document(1)).await;
}

/// A second result of the first document.
pub(crate) async fn append_result_again(brokers: &str, scenario: &Scenario) {
    let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    let record = Record {
        headers: BTreeMap::from([
            header("klp.source.topic", &scenario.input()),
            header("klp.source.partition", "0"),
            header("klp.source.offset", "0"),
        ]),
        ..document(0)
    };
    append_record(brokers, &scenario.results(), record).await;
}

/// Appends a record to partition 0.
async fn append_record(brokers: &str, topic: &str, record: Record) {
    let client = client(brokers).await;
    let writer = client.partition_client(topic, 0, UnknownTopicHandling::Error);
    let writer = timeout(APPEND_WITHIN, writer).await.expect("in time");
    append_batch(&writer.expect("a writer"), vec![record])
        .await
        .expect("appended");
}
