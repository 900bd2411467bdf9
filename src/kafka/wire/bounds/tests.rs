use std::sync::Mutex;

use futures::future::join_all;
use kafka_protocol::messages::MetadataRequest;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::protocol::Request as _;

use super::super::fake::{Asked, FakeBroker, Reply, orders};
use super::super::pool::lock;
use super::*;
use crate::kafka::{KafkaConfig, LogReader as _};

const PARTITIONS: i32 = 1_000;
const NOT_LEADER: i16 = 6;
const EARLIEST: i64 = -2;

/// Partition n begins at n and ends at n + 10. `code` is what it says of a partition, by the number of the request.
async fn broker(code: impl Fn(usize, i32) -> i16 + Send + 'static) -> FakeBroker {
    let port = Arc::new(Mutex::new(0));
    let told = Arc::clone(&port);
    let broker = FakeBroker::start(move |asked: Asked| {
        if asked.key == MetadataRequest::KEY {
            return Reply::to::<MetadataRequest>(asked.version, &orders(*lock(&told), PARTITIONS));
        }
        let request = asked.request::<ListOffsetsRequest>();
        let topics = request.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| {
                let index = partition.partition_index;
                let end = if partition.timestamp == EARLIEST {
                    0
                } else {
                    10
                };
                ListOffsetsPartitionResponse::default()
                    .with_partition_index(index)
                    .with_error_code(code(asked.turn, index))
                    .with_offset(i64::from(index) + end)
            });
            ListOffsetsTopicResponse::default()
                .with_name(topic.name.clone())
                .with_partitions(partitions.collect())
        });
        let response = ListOffsetsResponse::default().with_topics(topics.collect());
        Reply::to::<ListOffsetsRequest>(asked.version, &response)
    })
    .await;
    *lock(&port) = broker.address.port();
    broker
}

async fn all_bounds(cluster: &Cluster) -> Vec<Result<(Offset, Offset), KafkaError>> {
    let partitions: Vec<_> = (0..PARTITIONS)
        .map(|index| TopicPartition::new("orders", index))
        .collect();
    join_all(
        partitions
            .iter()
            .map(|partition| cluster.log_bounds(partition)),
    )
    .await
}

#[tokio::test]
async fn a_thousand_partitions_take_a_few_requests() {
    let broker = broker(|_, _| 0).await;
    let cluster = Cluster::new(&broker.config());
    for (index, bounds) in (0..).zip(all_bounds(&cluster).await) {
        assert_eq!(
            bounds.unwrap(),
            (Offset::new(index), Offset::new(index + 10))
        );
    }
    assert_eq!(broker.asked::<MetadataRequest>().len(), 1);
    let asked = broker.asked::<ListOffsetsRequest>().len();
    // Two each time: whoever has just learned who leads is not there yet when the first ask.
    assert!((2..=10).contains(&asked), "{asked}");
}

#[tokio::test]
async fn one_that_is_refused_is_asked_for_again_by_itself() {
    let broker = broker(|turn, index| {
        if index == 3 && turn < 3 {
            NOT_LEADER
        } else {
            0
        }
    })
    .await;
    let cluster = Cluster::new(&broker.config());
    for (index, bounds) in (0..).zip(all_bounds(&cluster).await) {
        assert_eq!(
            bounds.unwrap(),
            (Offset::new(index), Offset::new(index + 10))
        );
    }
    let requests = broker.requests::<ListOffsetsRequest>();
    let alone = requests.iter().filter(|request| {
        let partitions = request.topics.iter().flat_map(|topic| &topic.partitions);
        partitions
            .map(|partition| partition.partition_index)
            .eq([3])
    });
    assert!(alone.count() >= 2);
}

/// Tells that the port leads, and hangs when it is asked for offsets, of which `asked` hears.
async fn hanging(leader: &Arc<Mutex<u16>>, asked_for: impl Fn() + Send + 'static) -> FakeBroker {
    let told = Arc::clone(leader);
    let broker = FakeBroker::start(move |asked: Asked| {
        if asked.key == MetadataRequest::KEY {
            return Reply::to::<MetadataRequest>(asked.version, &orders(*lock(&told), PARTITIONS));
        }
        asked_for();
        Reply::Silence
    })
    .await;
    *lock(leader) = broker.address.port();
    broker
}

fn hasty(broker: &FakeBroker) -> Cluster {
    Cluster::new(&KafkaConfig {
        request_timeout: Duration::from_millis(900),
        ..broker.config()
    })
}

#[tokio::test]
async fn a_leader_that_hangs_is_asked_no_more_once_another_leads() {
    let leader = Arc::default();
    let old = hanging(&leader, || {}).await;
    let new = broker(|_, _| 0).await;
    let cluster = hasty(&old);
    let partition = TopicPartition::new("orders", 3);
    let hung = cluster.log_bounds(&partition).await;
    assert!(matches!(hung, Err(KafkaError::Timeout { .. })), "{hung:?}");
    let requests = old.requests::<ListOffsetsRequest>();
    let of_starts = |request: &ListOffsetsRequest| {
        let partitions = request.topics.iter().flat_map(|topic| &topic.partitions);
        partitions
            .into_iter()
            .all(|asked| asked.timestamp == EARLIEST)
    };
    assert!(
        requests.iter().all(of_starts),
        "the end is not asked for when the start is not told"
    );
    *lock(&leader) = new.address.port();
    let bounds = cluster.log_bounds(&partition).await.unwrap();
    assert_eq!(bounds, (Offset::new(3), Offset::new(13)));
}

#[tokio::test]
async fn a_leader_that_hangs_leaves_time_to_find_the_next_one() {
    let leader: Arc<Mutex<u16>> = Arc::default();
    let new = broker(|_, _| 0).await;
    let (port, moving) = (new.address.port(), Arc::clone(&leader));
    let old = hanging(&leader, move || *lock(&moving) = port).await;
    let partition = TopicPartition::new("orders", 3);
    let bounds = hasty(&old).log_bounds(&partition).await.unwrap();
    assert_eq!(bounds, (Offset::new(3), Offset::new(13)));
}

#[test]
fn what_was_not_asked_for_or_is_told_twice_is_not_taken() {
    let route = Route {
        address: "a:1".into(),
        leader_epoch: -1,
    };
    let asked = [
        (TopicPartition::new("orders", 0), route.clone()),
        (TopicPartition::new("orders", 1), route),
    ];
    let told = |index, offset| {
        ListOffsetsPartitionResponse::default()
            .with_partition_index(index)
            .with_offset(offset)
    };
    let topic = ListOffsetsTopicResponse::default()
        .with_name(topic_name("orders"))
        .with_partitions(vec![told(0, 5), told(1, 6), told(1, 7), told(2, 8)]);
    let answer = ListOffsetsResponse::default().with_topics(vec![topic]);
    let expected = HashMap::from([(TopicPartition::new("orders", 0), Offset::new(5))]);
    assert_eq!(found(&asked, answer), expected);
}
