//! The streams of the wire driver against the sandbox.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_llm_processor::kafka::wire::{Cluster, Isolation, WireSource};
use kafka_llm_processor::kafka::{KafkaConfig, KafkaError, RecordStream, Source};
use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, BrokerConfig};
use kafka_llm_processor::types::{Offset, Record, TopicPartition};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::wire::DEADLINE;

const BYTES: usize = 64 * 1024;
const WAIT: Duration = Duration::from_millis(500);
/// Far longer than any test: a stream that waits for it waits for ever.
const LONG: Duration = Duration::from_secs(60);

fn cluster(broker: &Broker) -> Cluster {
    Cluster::new(&KafkaConfig {
        brokers: broker.bootstrap(),
        ..KafkaConfig::default()
    })
}

fn source(broker: &Broker) -> WireSource {
    WireSource::new(cluster(broker), Isolation::ReadUncommitted)
}

async fn open(source: &WireSource, partition: i32) -> Box<dyn RecordStream> {
    let partition = TopicPartition::new("orders", partition);
    let open = source.open(&partition, Offset::ZERO);
    timeout(DEADLINE, open).await.unwrap().unwrap()
}

fn append(broker: &Broker, partition: i32, number: usize, bytes: usize) {
    let value = format!("{partition}-{number:0bytes$}");
    let record = Record {
        value: Some(Bytes::from(value)),
        ..Record::default()
    };
    broker.append("orders", partition, vec![record]).unwrap();
}

async fn values(stream: &mut Box<dyn RecordStream>, wait: Duration) -> Vec<String> {
    let fetched = timeout(DEADLINE, stream.next(BYTES, wait))
        .await
        .unwrap()
        .unwrap();
    let values = fetched
        .records
        .into_iter()
        .filter_map(|(_, record)| record.value);
    values
        .map(|value| String::from_utf8(value.to_vec()).unwrap())
        .collect()
}

/// Each stream reads its partition whole and in order, and all of them finish although the answers are smaller than what lies there.
#[tokio::test(flavor = "multi_thread")]
async fn many_deep_partitions_are_read_side_by_side() {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("orders", 100, &[]).unwrap();
    for partition in 0..100 {
        for number in 0..20 {
            append(&broker, partition, number, 10_000);
        }
    }
    let fetches = broker.faults().on(ApiKey::Fetch).keep().watch();
    let source = source(&broker);
    let mut readers = JoinSet::new();
    for partition in 0..100 {
        let mut stream = open(&source, partition).await;
        readers.spawn(async move {
            let mut found = Vec::new();
            while found.len() < 20 {
                found.extend(values(&mut stream, WAIT).await);
            }
            let expected = (0..20).map(|number| format!("{partition}-{number:010000}"));
            assert!(expected.eq(found), "partition {partition}");
        });
    }
    while let Some(ended) = readers.join_next().await {
        ended.unwrap();
    }
    let count = fetches.hits();
    assert!(
        count < 100 * 4 / 2,
        "{count} requests for what 400 single ones would bring"
    );
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_holds_up_neither_newcomers_nor_news() {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("orders", 50, &[]).unwrap();
    append(&broker, 49, 0, 1);
    let source = Arc::new(source(&broker));
    let mut idle = JoinSet::new();
    for partition in 0..48 {
        let mut stream = open(&source, partition).await;
        idle.spawn(async move { values(&mut stream, LONG).await });
    }
    let mut late = open(&source, 49).await;
    let mut news = open(&source, 48).await;
    for number in 0..20 {
        let began = Instant::now();
        assert_eq!(values(&mut late, LONG).await, [format!("49-{number}")]);
        append(&broker, 49, number + 1, 1);
        let (found, ()) = tokio::join!(values(&mut news, LONG), async {
            append(&broker, 48, number, 1);
        });
        assert_eq!(found, [format!("48-{number}")]);
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }
    append(&broker, 7, 0, 1);
    assert_eq!(
        idle.join_next().await.unwrap().unwrap(),
        ["7-0"],
        "it was not forgotten"
    );
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_waits_as_long_as_it_was_told_but_for_half_a_poll() {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("orders", 1, &[]).unwrap();
    let source = source(&broker);
    let mut stream = open(&source, 0).await;
    for wait in [0, 200, 1_200].map(Duration::from_millis) {
        let began = Instant::now();
        let fetched = stream.next(BYTES, wait).await.unwrap();
        let took = began.elapsed();
        assert!(fetched.records.is_empty());
        assert_eq!(fetched.next_offset, Offset::ZERO);
        // A long poll has 500 ms.
        let slack = Duration::from_millis(250);
        assert!(
            took + slack >= wait && took < wait + Duration::from_secs(1),
            "{took:?} for {wait:?}"
        );
    }
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_survive_a_broker_that_goes_and_comes_back() {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("orders", 2, &[]).unwrap();
    let source = source(&broker);
    let mut stream = open(&source, 0).await;
    append(&broker, 0, 0, 1);
    assert_eq!(values(&mut stream, WAIT).await, ["0-0"]);
    let gone = tokio::join!(stream.next(BYTES, LONG), broker.stop_listener()).0;
    let error = gone.expect_err("nobody answers");
    assert!(error.is_transient(), "{error:?}");
    append(&broker, 0, 1, 1);
    broker.start_listener().await.unwrap();
    assert_eq!(values(&mut stream, WAIT).await, ["0-1"]);
    // An election: what is known about the leader is out of date, and the stream finds out by itself.
    broker.bump_leader_epoch("orders", 0).unwrap();
    append(&broker, 0, 2, 1);
    assert_eq!(values(&mut stream, WAIT).await, ["0-2"]);
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_cannot_read_is_named_and_others_go_on() {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("orders", 2, &[]).unwrap();
    broker.create_topic("others", 1, &[]).unwrap();
    let source = source(&broker);
    let mut good = open(&source, 0).await;
    append(&broker, 1, 0, 1);
    let beyond = TopicPartition::new("orders", 1);
    let mut beyond = source.open(&beyond, Offset::new(5)).await.unwrap();
    let error = beyond.next(BYTES, WAIT).await.unwrap_err();
    assert!(
        matches!(&error, KafkaError::OffsetOutOfRange { offset, high_watermark, .. }
            if offset.value() == 5 && high_watermark.value() == 1),
        "{error:?}"
    );
    let others = TopicPartition::new("others", 0);
    let mut deleted = source.open(&others, Offset::ZERO).await.unwrap();
    assert!(
        deleted
            .next(BYTES, Duration::ZERO)
            .await
            .unwrap()
            .records
            .is_empty()
    );
    broker.delete_topic("others").unwrap();
    let error = deleted.next(BYTES, WAIT).await.unwrap_err();
    assert!(
        matches!(error, KafkaError::UnknownTopic { .. }),
        "{error:?}"
    );
    let absent = TopicPartition::new("orders", 2);
    let error = source.open(&absent, Offset::ZERO).await.err().unwrap();
    assert!(
        matches!(error, KafkaError::UnknownPartition { .. }),
        "{error:?}"
    );
    append(&broker, 0, 0, 1);
    assert_eq!(values(&mut good, WAIT).await, ["0-0"]);
    broker.shutdown().await;
}

/// Streams whose waits end at all times, and documents for one of them after the other: no short poll ends as the wait of one is over.
#[tokio::test(flavor = "multi_thread")]
async fn waits_that_end_at_all_times_cut_no_short_poll_shorter() {
    const STREAMS: i32 = 300;
    const DOCUMENTS: i32 = 300;
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("orders", STREAMS, &[]).unwrap();
    let source = source(&broker);
    let mut reading = JoinSet::new();
    for partition in 0..STREAMS {
        let mut stream = open(&source, partition).await;
        let first = Duration::from_millis(u64::try_from(partition).unwrap() * 5);
        reading.spawn(async move {
            let mut wait = first;
            loop {
                let found = values(&mut stream, wait).await;
                wait = Duration::from_millis(if found.is_empty() { 1_500 } else { 500 });
            }
        });
    }
    let fetches = broker.faults().on(ApiKey::Fetch).keep().watch();
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    for number in 0..DOCUMENTS {
        ticks.tick().await;
        append(&broker, number * 7 % STREAMS, 0, 1);
    }
    let tenths = u64::try_from(began.elapsed().as_millis() / 100).unwrap();
    reading.shutdown().await;
    let count = fetches.hits();
    // Each document ends one poll; beside it a short poll each 100 ms, and as many again where both begin at once.
    let most = u64::from(DOCUMENTS.unsigned_abs()) + 2 * tenths + 20;
    println!("{count} polls, {most} at most");
    assert!(count <= most, "{count} polls, {most} at most");
    broker.shutdown().await;
}
