//! Topics and documents.

use bytes::Bytes;
use kafka_llm_processor::clock;
use kafka_llm_processor::kafka::wire::{Cluster, NewTopic, WireSink};
use kafka_llm_processor::kafka::{Batch, Sink as _};
use kafka_llm_processor::types::{Record, TopicPartition};

/// Keys among the documents.
const KEYS: usize = 100;
/// Bytes of a batch that is written.
const BATCH_BYTES: usize = 512 * 1024;

pub(crate) async fn create(cluster: &Cluster, name: &str, partitions: i32) {
    let topic = NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor: -1,
        configs: [("retention.ms".to_owned(), "-1".to_owned())].into(),
    };
    cluster.create_topic(&topic).await.expect("created");
}

/// Writes documents of so many bytes to the partitions in turn, one batch after the other.
pub(crate) async fn write(
    cluster: &Cluster,
    topic: &str,
    partitions: i32,
    count: usize,
    bytes: usize,
) {
    let sink = WireSink::idempotent(cluster.clone());
    let input = TopicPartition::new("documents", 0);
    let mut writer = sink.take_over(&input).await.expect("a writer");
    let numbers: Vec<_> = (0..count).collect();
    let width = usize::try_from(partitions).expect("a count");
    let of_batch = (BATCH_BYTES / bytes).max(1) * width;
    for numbers in numbers.chunks(of_batch) {
        let batches: Vec<_> = (0..width)
            .map(|index| {
                let of_it = numbers.iter().skip(index).step_by(width);
                let records: Vec<_> = of_it.map(|number| document(*number, bytes)).collect();
                let partition = i32::try_from(index).expect("a partition");
                Batch {
                    to: TopicPartition::new(topic, partition),
                    records,
                }
            })
            .filter(|batch| !batch.records.is_empty())
            .collect();
        let outcomes = writer.append(&batches).await;
        outcomes
            .into_iter()
            .for_each(|outcome| outcome.expect("written"));
    }
}

/// A document of exactly so many bytes, at least 200.
pub(crate) fn document(number: usize, bytes: usize) -> Record {
    let head = format!(r#"{{"id":"document-{number}","content":"Report {number}. "#);
    let tail = r#""}"#;
    let sentence = "Revenue rose 12 % to 4.3 billion in the third quarter, and margins held. ";
    let left = bytes - head.len() - tail.len();
    let content: String = sentence.chars().cycle().take(left).collect();
    Record {
        key: Some(Bytes::from(format!("customer-{}", number % KEYS))),
        value: Some(Bytes::from(format!("{head}{content}{tail}"))),
        headers: Vec::new(),
        timestamp_ms: clock::now().as_millisecond(),
    }
}
