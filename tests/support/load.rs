//! Documents for the suites on the real Kafka, written by a client that is not the product's own.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_llm_processor::clock;
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, UnknownTopicHandling};
use rskafka::record::Record;
use tokio::time::timeout;

/// The longest that anything which takes seconds may take: a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// Keys among the documents.
const KEYS: usize = 97;
/// Bytes of each document.
pub(crate) const DOCUMENT_BYTES: usize = 1_024;

/// Writes documents number `first..first + count` to the partitions in turn, as batches of so many documents.
pub(crate) async fn write_documents(
    address: String,
    topic: &str,
    partitions: &[i32],
    first: usize,
    count: usize,
    batch_documents: usize,
) {
    let client = ClientBuilder::new(vec![address]).build();
    let client = timeout(SOON, client)
        .await
        .expect("in time")
        .expect("connected");
    for (index, partition) in partitions.iter().enumerate() {
        let writer = client.partition_client(topic, *partition, UnknownTopicHandling::Error);
        let writer = timeout(SOON, writer)
            .await
            .expect("in time")
            .expect("a writer");
        let numbers: Vec<_> = (first..first + count)
            .skip(index)
            .step_by(partitions.len())
            .collect();
        for batch in numbers.chunks(batch_documents) {
            let records = batch.iter().map(|number| document(*number)).collect();
            let written = writer.produce(records, Compression::NoCompression);
            timeout(SOON, written)
                .await
                .expect("in time")
                .expect("written");
        }
    }
}

/// A document of exactly [`DOCUMENT_BYTES`]. It is of today: the broker's retention deletes what is older than a week, also in a test.
fn document(number: usize) -> Record {
    let head = format!(r#"{{"id":"document-{number}","content":"Report {number}. "#);
    let sentence = "Revenue rose 12 % to 4.3 billion in the third quarter, and margins held. ";
    let tail = r#""}"#;
    let text = DOCUMENT_BYTES - head.len() - tail.len();
    let content: String = sentence.chars().cycle().take(text).collect();
    let value = format!("{head}{content}{tail}").into_bytes();
    assert_eq!(value.len(), DOCUMENT_BYTES);
    Record {
        key: Some(format!("customer-{}", number % KEYS).into_bytes()),
        value: Some(value),
        headers: BTreeMap::new(),
        timestamp: DateTime::<Utc>::from_timestamp_millis(clock::now().as_millisecond())
            .expect("a time"),
    }
}
