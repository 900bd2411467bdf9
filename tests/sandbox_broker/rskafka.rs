//! rskafka against the sandbox.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, BrokerConfig};
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::error::ProtocolError;
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder, Credentials, SaslConfig};
use rskafka::record::Record;
use tokio::time::timeout;

use crate::wire::{DEADLINE, secure_broker};

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

/// What rskafka writes comes back as it was, in order, with its offsets.
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
    let more = vec![record("c", "3"), record("d", "4")];
    let offsets = partition
        .produce(plain.clone(), Compression::NoCompression)
        .await
        .unwrap();
    assert_eq!(offsets, [0, 1]);
    let offsets = partition
        .produce(more.clone(), Compression::NoCompression)
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
    assert_eq!(records, [plain, more].concat());
    assert_eq!(partition.get_offset(OffsetAt::Earliest).await.unwrap(), 0);
    assert_eq!(partition.get_offset(OffsetAt::Latest).await.unwrap(), 4);
    assert_eq!(broker.records("orders").len(), 4);
    broker.shutdown().await;
}

fn server_error(error: rskafka::client::error::Error) -> ProtocolError {
    match error {
        rskafka::client::error::Error::ServerError { protocol_error, .. } => protocol_error,
        other => panic!("not an answer of the broker: {other}"),
    }
}

/// The errors of a real broker, as rskafka reports them.
#[tokio::test(flavor = "multi_thread")]
async fn rskafka_sees_the_errors_of_a_real_broker() {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    let limit = [("max.message.bytes", "1000")];
    broker.create_topic("small", 1, &limit).unwrap();
    let client = client(&broker).await;
    let partition = partition(&client, "small", 0).await;
    let large = record("k", &"x".repeat(2_000));
    let refused = partition.produce(vec![large], Compression::NoCompression);
    let refused = timeout(DEADLINE, refused).await.unwrap().unwrap_err();
    assert_eq!(server_error(refused), ProtocolError::MessageTooLarge);
    let beyond = partition.fetch_records(9, 1..1_000, 100);
    let beyond = timeout(DEADLINE, beyond).await.unwrap().unwrap_err();
    assert_eq!(server_error(beyond), ProtocolError::OffsetOutOfRange);
    let again = client.controller_client().unwrap();
    let again = again.create_topic("small", 1, 1, 5_000);
    let again = timeout(DEADLINE, again).await.unwrap().unwrap_err();
    assert_eq!(server_error(again), ProtocolError::TopicAlreadyExists);
    let unknown = client.partition_client("none", 0, UnknownTopicHandling::Error);
    assert!(timeout(DEADLINE, unknown).await.unwrap().is_err());
    broker.shutdown().await;
}

/// Gaps are skipped, deleted records are out of range, a marker makes the whole answer unreadable: as on a real broker.
#[tokio::test(flavor = "multi_thread")]
async fn rskafka_meets_gaps_deletion_and_markers() {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("t", 1, &[]).unwrap();
    let client = client(&broker).await;
    let partition = partition(&client, "t", 0).await;
    for value in ["0", "1", "2", "3"] {
        let records = vec![record("k", value)];
        let produce = partition.produce(records, Compression::NoCompression);
        timeout(DEADLINE, produce).await.unwrap().unwrap();
    }
    broker.punch_gap("t", 0, 1..3).unwrap();
    let fetch = async |offset| {
        let fetch = partition.fetch_records(offset, 1..1_000_000, 100);
        timeout(DEADLINE, fetch).await.unwrap()
    };
    let (records, _) = fetch(0).await.unwrap();
    let offsets: Vec<_> = records.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [0, 3]);
    let delete = partition.delete_records(3, 5_000);
    timeout(DEADLINE, delete).await.unwrap().unwrap();
    assert_eq!(broker.log_start("t", 0).unwrap().value(), 3);
    let below = fetch(0).await.unwrap_err();
    assert_eq!(server_error(below), ProtocolError::OffsetOutOfRange);
    assert_eq!(broker.append_marker("t", 0, true).unwrap().value(), 4);
    let unreadable = fetch(3).await.unwrap_err().to_string();
    assert!(unreadable.contains("control batch"), "{unreadable}");
    broker.shutdown().await;
}

/// rskafka finds the broker again after the listener was away.
#[tokio::test(flavor = "multi_thread")]
async fn rskafka_recovers_after_a_stop_of_the_listener() {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("t", 1, &[]).unwrap();
    let client = client(&broker).await;
    let partition = partition(&client, "t", 0).await;
    let produce = |value| {
        let partition = Arc::clone(&partition);
        let records = vec![record("k", value)];
        async move { partition.produce(records, Compression::NoCompression).await }
    };
    timeout(DEADLINE, produce("0")).await.unwrap().unwrap();
    broker.stop_listener().await;
    let waiting = tokio::spawn(produce("1"));
    broker.start_listener().await.unwrap();
    let offsets = timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(offsets, [1]);
    broker.shutdown().await;
}

/// SCRAM and PLAIN with rskafka's own SASL, and a wrong password that gets nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn rskafka_authenticates() {
    let broker = secure_broker().await;
    broker.create_topic("t", 1, &[]).unwrap();
    let right = || Credentials::new("alice".to_owned(), "secret".to_owned());
    for sasl in [
        SaslConfig::Plain(right()),
        SaslConfig::ScramSha256(right()),
        SaslConfig::ScramSha512(right()),
    ] {
        let builder = ClientBuilder::new(vec![broker.bootstrap()]).sasl_config(sasl);
        let client = timeout(DEADLINE, builder.build()).await.unwrap().unwrap();
        let topics = timeout(DEADLINE, client.list_topics())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(topics.len(), 1);
    }
    let seen = broker.faults().on(ApiKey::SaslAuthenticate).watch();
    let wrong = Credentials::new("alice".to_owned(), "wrong".to_owned());
    let builder = ClientBuilder::new(vec![broker.bootstrap()]);
    let build = builder.sasl_config(SaslConfig::Plain(wrong)).build();
    tokio::select! {
        built = build => assert!(built.is_err(), "a wrong password opens nothing"),
        () = seen.wait_for_hits(2) => {}
    }
    broker.shutdown().await;
}
