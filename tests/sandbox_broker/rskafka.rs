//! rskafka against the sandbox.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder};
use rskafka::record::Record;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

async fn client(broker: &Broker) -> Client {
    let build = ClientBuilder::new(vec![broker.bootstrap()]).build();
    timeout(DEADLINE, build).await.unwrap().unwrap()
}

async fn partition(client: &Client, topic: &str, partition: i32) -> Arc<PartitionClient> {
    let open = client.partition_client(topic, partition, UnknownTopicHandling::Error);
    Arc::new(timeout(DEADLINE, open).await.unwrap().unwrap())
}

fn record(key: &str, value: &str) -> Record {
    Record {
        key: Some(key.into()),
        value: Some(value.into()),
        headers: BTreeMap::from([("name".to_owned(), b"value".to_vec())]),
        timestamp: DateTime::<Utc>::from_timestamp_millis(1_700_000_000_000).unwrap(),
    }
}

/// What rskafka writes, plain and gzip, comes back as it was, in order, with its offsets.
#[tokio::test(flavor = "multi_thread")]
async fn rskafka_reads_what_it_wrote() {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    let client = client(&broker).await;
    let controller = client.controller_client().unwrap();
    controller
        .create_topic("orders", 2, 1, 5_000)
        .await
        .unwrap();
    let partition = partition(&client, "orders", 1).await;
    let plain = vec![record("a", "1"), record("b", "2")];
    let zipped = vec![record("c", "3"), record("d", "4")];
    let offsets = partition
        .produce(plain.clone(), Compression::NoCompression)
        .await
        .unwrap();
    assert_eq!(offsets, [0, 1]);
    let offsets = partition
        .produce(zipped.clone(), Compression::Gzip)
        .await
        .unwrap();
    assert_eq!(offsets, [2, 3]);
    let (records, high_watermark) = partition
        .fetch_records(0, 1..1_000_000, 1_000)
        .await
        .unwrap();
    assert_eq!(high_watermark, 4);
    let offsets: Vec<_> = records.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3]);
    let records: Vec<_> = records.into_iter().map(|record| record.record).collect();
    assert_eq!(records, [plain, zipped].concat());
    assert_eq!(partition.get_offset(OffsetAt::Earliest).await.unwrap(), 0);
    assert_eq!(partition.get_offset(OffsetAt::Latest).await.unwrap(), 4);
    assert_eq!(broker.records("orders").len(), 4);
    broker.shutdown().await;
}
