//! Brokers that do what no real one does on demand. Real and simulated brokers are read in `tests/`.

use std::collections::HashSet;

use kafka_protocol::messages::fetch_response::FetchableTopicResponse;
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse, MetadataRequest};
use kafka_protocol::protocol::Request;

use super::super::cluster::topic_name;
use super::super::fake::{Asked, FakeBroker, Reply, orders};
use super::super::reader::tests::batch;
use super::*;

const NOT_LEADER: i16 = 6;
const OFFSET_OUT_OF_RANGE: i16 = 1;
const BYTES: usize = 1 << 20;

fn partition(index: i32) -> TopicPartition {
    TopicPartition::new("orders", index)
}

/// What a fetch asked for: partition and offset.
fn wanted(asked: Asked) -> Vec<(i32, i64)> {
    let request: FetchRequest = asked.request();
    let topics = request.topics.iter();
    topics
        .flat_map(|topic| &topic.partitions)
        .map(|partition| (partition.partition, partition.fetch_offset))
        .collect()
}

fn found(index: i32, records: Vec<u8>) -> PartitionData {
    PartitionData::default()
        .with_partition_index(index)
        .with_high_watermark(1_000)
        .with_records(Some(records.into()))
}

fn failed(index: i32, code: i16) -> PartitionData {
    PartitionData::default()
        .with_partition_index(index)
        .with_error_code(code)
}

fn answer(asked: Asked, partitions: Vec<PartitionData>) -> Reply {
    let topic = FetchableTopicResponse::default()
        .with_topic(topic_name("orders"))
        .with_partitions(partitions);
    let response = FetchResponse::default().with_responses(vec![topic]);
    Reply::to::<FetchRequest>(asked.version, &response)
}

/// One record for each partition that was asked for, at the offset that was asked for.
fn one_each(asked: Asked) -> Reply {
    let partitions = wanted(asked).into_iter();
    let found = partitions.map(|(index, from)| found(index, batch(from, 1, -1)));
    answer(asked, found.collect())
}

/// A broker that leads all partitions, or says that the one at `leader` does; fetches are left to the script.
async fn broker(
    leader: Arc<Mutex<u16>>,
    mut fetch: impl FnMut(Asked) -> Reply + Send + 'static,
) -> FakeBroker {
    FakeBroker::start(move |asked| match asked.key {
        MetadataRequest::KEY => {
            Reply::to::<MetadataRequest>(asked.version, &orders(*lock(&leader), 200))
        }
        FetchRequest::KEY => fetch(asked),
        _ => Reply::Silence,
    })
    .await
}

async fn leading(fetch: impl FnMut(Asked) -> Reply + Send + 'static) -> FakeBroker {
    let leader = Arc::new(Mutex::new(0));
    let broker = broker(Arc::clone(&leader), fetch).await;
    *lock(&leader) = broker.address.port();
    broker
}

fn source(broker: &FakeBroker) -> WireSource {
    WireSource::new(Cluster::new(&broker.config()), Isolation::ReadCommitted)
}

async fn open(source: &WireSource, index: i32) -> Box<dyn RecordStream> {
    source.open(&partition(index), Offset::ZERO).await.unwrap()
}

async fn next(stream: &mut Box<dyn RecordStream>) -> Result<Vec<i64>, KafkaError> {
    let fetched = stream.next(BYTES, Duration::from_millis(300)).await?;
    let offsets = fetched.records.iter();
    Ok(offsets.map(|(offset, _)| offset.value()).collect())
}

#[tokio::test]
async fn a_hundred_streams_share_a_connection_and_a_request() {
    let broker = leading(one_each).await;
    let source = source(&broker);
    let mut streams = Vec::new();
    for index in 0..100 {
        streams.push(open(&source, index).await);
    }
    for round in 0..5 {
        let all = futures::future::join_all(streams.iter_mut().map(next)).await;
        for offsets in all {
            assert_eq!(offsets.unwrap(), [round]);
        }
    }
    let fetches = broker.asked::<FetchRequest>();
    assert!(
        fetches.len() < 20,
        "{} requests for 500 answers",
        fetches.len()
    );
    let connections: HashSet<_> = fetches.iter().map(|asked| asked.connection).collect();
    assert!(connections.len() <= 2, "{connections:?}");
    assert_eq!(
        broker.asked::<MetadataRequest>().len(),
        1,
        "one look for all"
    );
}

#[tokio::test]
async fn streams_that_lose_their_leader_find_the_new_one_with_one_look() {
    let leader = Arc::new(Mutex::new(0));
    let new = broker(Arc::clone(&leader), one_each).await;
    let new_port = new.address.port();
    let told = Arc::clone(&leader);
    let old = broker(Arc::clone(&leader), move |asked| {
        if asked.turn < 2 {
            return one_each(asked);
        }
        *lock(&told) = new_port;
        let gone = wanted(asked).into_iter();
        answer(
            asked,
            gone.map(|(index, _)| failed(index, NOT_LEADER)).collect(),
        )
    })
    .await;
    *lock(&leader) = old.address.port();
    let source = source(&old);
    let mut streams = Vec::new();
    for index in 0..20 {
        streams.push(open(&source, index).await);
    }
    let began = Instant::now();
    for round in 0..6 {
        let all = futures::future::join_all(streams.iter_mut().map(next)).await;
        for offsets in all {
            assert_eq!(offsets.unwrap(), [round]);
        }
    }
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(!new.asked::<FetchRequest>().is_empty());
    let looks = old.asked::<MetadataRequest>().len() + new.asked::<MetadataRequest>().len();
    assert!(looks <= 4, "{looks} looks for 20 streams");
}

#[tokio::test]
async fn a_lost_connection_costs_a_stream_nothing_but_time() {
    let broker = leading(|asked| match asked.turn {
        1 | 2 => Reply::HangUp,
        4 => Reply::Cut(vec![0, 0, 1, 0, 1]),
        _ => one_each(asked),
    })
    .await;
    let source = source(&broker);
    let mut stream = open(&source, 0).await;
    for round in 0..4 {
        assert_eq!(next(&mut stream).await.unwrap(), [round]);
    }
}

#[tokio::test]
async fn a_silent_broker_is_noticed_and_dialled_again() {
    let broker = leading(|asked| match asked.turn {
        0 => Reply::Silence,
        _ => one_each(asked),
    })
    .await;
    let source = source(&broker);
    let mut stream = open(&source, 0).await;
    let began = Instant::now();
    let error = next(&mut stream).await.unwrap_err();
    assert!(matches!(error, KafkaError::Timeout { .. }), "{error:?}");
    let limit = broker.config().request_timeout + Duration::from_millis(300);
    assert!(began.elapsed() < limit + Duration::from_millis(500));
    assert_eq!(next(&mut stream).await.unwrap(), [0]);
    let fetches = broker.asked::<FetchRequest>();
    assert_ne!(fetches[0].connection, fetches[1].connection);
}

#[tokio::test]
async fn what_is_wrong_with_a_partition_is_told_to_its_stream_alone() {
    let broker = leading(|asked| {
        let parts = wanted(asked).into_iter().map(|(index, from)| {
            let mut bad = batch(from, 1, -1);
            bad[70] ^= 1;
            match index {
                1 => found(1, bad),
                // Left out, and another one in its place.
                2 => found(7, batch(from, 1, -1)),
                3 => failed(3, OFFSET_OUT_OF_RANGE),
                _ => found(index, batch(from, 1, -1)),
            }
        });
        answer(asked, parts.collect())
    })
    .await;
    let source = source(&broker);
    let mut streams = Vec::new();
    for index in 0..5 {
        streams.push(open(&source, index).await);
    }
    for round in 0..3 {
        let mut all = futures::future::join_all(streams.iter_mut().map(next)).await;
        assert_eq!(all.pop().unwrap().unwrap(), [round]);
        // The bounds are asked for, and this broker does not tell them.
        let error = all.pop().unwrap().unwrap_err();
        assert!(matches!(error, KafkaError::Timeout { .. }), "{error:?}");
        let error = all.pop().unwrap().unwrap_err();
        assert!(matches!(error, KafkaError::Protocol { .. }), "{error:?}");
        let error = all.pop().unwrap().unwrap_err();
        assert!(
            matches!(&error, KafkaError::Unreadable { offset, .. } if *offset == Offset::ZERO),
            "{error:?}"
        );
        assert_eq!(all.pop().unwrap().unwrap(), [round]);
    }
}

/// The broker's answers hold one partition each, the first that was asked for: as when one fills the whole answer.
#[tokio::test]
async fn a_busy_partition_does_not_starve_another() {
    let broker = leading(|asked| {
        let parts = wanted(asked).into_iter().enumerate();
        let parts = parts.map(|(place, (index, from))| {
            let records = if place == 0 {
                batch(from, 1, -1)
            } else {
                Vec::new()
            };
            found(index, records).with_last_stable_offset(1_000)
        });
        answer(asked, parts.collect())
    })
    .await;
    let source = source(&broker);
    let mut readers = Vec::new();
    for index in 0..4 {
        let mut stream = open(&source, index).await;
        readers.push(async move {
            for round in 0..20 {
                assert_eq!(next(&mut stream).await.unwrap(), [round]);
            }
        });
    }
    futures::future::join_all(readers).await;
    let fetches = broker.asked::<FetchRequest>();
    let first: Vec<_> = fetches
        .iter()
        .take(40)
        .map(|asked| wanted(*asked)[0].0)
        .collect();
    let turns = |index| first.iter().filter(|found| **found == index).count();
    assert!((0..4).all(|index| turns(index) >= 5), "{first:?}");
}

#[tokio::test]
async fn a_dropped_stream_is_not_asked_for_again() {
    // Only partition 1 ever brings something; the others' answers are held until their waits are over.
    let broker = leading(|asked| {
        let parts = wanted(asked).into_iter().map(|(index, from)| {
            let records = if index == 1 {
                batch(from, 1, -1)
            } else {
                Vec::new()
            };
            found(index, records)
        });
        answer(asked, parts.collect())
    })
    .await;
    let source = source(&broker);
    let mut dropped = open(&source, 0).await;
    let mut stays = open(&source, 1).await;
    {
        let wait = Duration::from_secs(60);
        let waiting = dropped.next(BYTES, wait);
        tokio::select! {
            _ = waiting => panic!("it never brings anything"),
            offsets = next(&mut stays) => assert_eq!(offsets.unwrap(), [0]),
        }
    }
    drop(dropped);
    // Requests that were on their way when it was dropped name it; two may be.
    for round in 1..8 {
        assert_eq!(next(&mut stays).await.unwrap(), [round]);
    }
    let before = broker.asked::<FetchRequest>().len();
    for round in 8..12 {
        assert_eq!(next(&mut stays).await.unwrap(), [round]);
    }
    let fetches = broker.asked::<FetchRequest>();
    for asked in &fetches[before..] {
        assert_eq!(wanted(*asked).len(), 1, "{:?}", wanted(*asked));
    }
}

#[tokio::test]
async fn the_tasks_end_with_the_source_and_its_streams() {
    let broker = leading(one_each).await;
    let source = source(&broker);
    let mut stream = open(&source, 0).await;
    assert_eq!(next(&mut stream).await.unwrap(), [0]);
    let shared = Arc::downgrade(&source.shared);
    let orders = source.shared.orders(&broker.address.to_string().into());
    drop(source);
    assert_eq!(next(&mut stream).await.unwrap(), [1], "the stream goes on");
    drop(stream);
    assert!(shared.upgrade().is_none(), "no task holds on to it");
    tokio::time::timeout(Duration::from_secs(5), orders.closed())
        .await
        .expect("the task ends");
}

#[tokio::test]
async fn partitions_without_a_leader_share_their_looks_for_one() {
    let port = Arc::new(Mutex::new(0));
    let told = Arc::clone(&port);
    let broker = FakeBroker::start(move |asked| {
        if asked.key == FetchRequest::KEY {
            let partitions = wanted(asked).into_iter();
            let failed = partitions.map(|(index, _)| failed(index, NOT_LEADER));
            return answer(asked, failed.collect());
        }
        let mut response = orders(*lock(&told), 200);
        // After the first look the one broker that had them is gone.
        if asked.turn > 0 {
            for partition in &mut response.topics[0].partitions {
                partition.leader_id = BrokerId(-1);
            }
        }
        Reply::to::<MetadataRequest>(asked.version, &response)
    })
    .await;
    *lock(&port) = broker.address.port();
    let config = crate::kafka::KafkaConfig {
        request_timeout: Duration::from_millis(500),
        ..broker.config()
    };
    let source = WireSource::new(Cluster::new(&config), Isolation::ReadCommitted);
    let mut streams = Vec::new();
    for index in 0..100 {
        let stream = source.open(&partition(index), Offset::new(0)).await;
        streams.push(stream.unwrap());
    }
    let started = Instant::now();
    let reads = streams
        .iter_mut()
        .map(|stream| stream.next(BYTES, Duration::ZERO));
    for outcome in futures::future::join_all(reads).await {
        let error = outcome.unwrap_err();
        // A look that is on its way when the time is up has no answer.
        let is_late = matches!(error, KafkaError::Timeout { .. });
        assert!(is_late || error.server_code() == Some(5), "{error}");
    }
    let rounds = started.elapsed().as_millis() / BACKOFF.0.as_millis() + 2;
    let looks = u128::try_from(broker.asked::<MetadataRequest>().len()).unwrap();
    assert!(looks <= rounds, "{looks} looks in {rounds} rounds");
}
