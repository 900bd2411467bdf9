use std::future::Future;

use futures::future::join_all;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    ApiVersionsRequest, BrokerId, ListOffsetsRequest, ListOffsetsResponse, OffsetCommitRequest,
    OffsetCommitResponse, ProduceRequest,
};
use kafka_protocol::protocol::Request;
use tokio::net::TcpListener;

use super::super::fake::{Asked, FakeBroker, Reply};
use super::super::{Isolation, OffsetAt};
use super::*;
use crate::kafka::{LogReader as _, LogScanner as _};
use crate::types::Offset;

const NOT_LEADER: i16 = 6;

fn partition() -> TopicPartition {
    TopicPartition::new("orders", 0)
}

fn metadata(port: u16, topic_code: i16, leader: i32) -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(1))
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(i32::from(port));
    let partition = MetadataResponsePartition::default().with_leader_id(BrokerId(leader));
    let topic = MetadataResponseTopic::default()
        .with_name(Some(topic_name("orders")))
        .with_error_code(topic_code)
        .with_partitions(vec![partition]);
    MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_controller_id(BrokerId(1))
        .with_topics(vec![topic])
}

fn offsets(asked: Asked, code: i16, offset: i64) -> Reply {
    let found = ListOffsetsPartitionResponse::default()
        .with_error_code(code)
        .with_offset(offset);
    let topic = ListOffsetsTopicResponse::default()
        .with_name(topic_name("orders"))
        .with_partitions(vec![found]);
    let response = ListOffsetsResponse::default().with_topics(vec![topic]);
    Reply::to::<ListOffsetsRequest>(asked.version, &response)
}

/// Starts a broker that leads the partition and leaves all but metadata to the script.
async fn leader(mut script: impl FnMut(Asked) -> Reply + Send + 'static) -> FakeBroker {
    let port = Arc::new(Mutex::new(0));
    let told = Arc::clone(&port);
    let broker = FakeBroker::start(move |asked| {
        if asked.key == MetadataRequest::KEY {
            let response = metadata(*lock(&told), 0, 1);
            Reply::to::<MetadataRequest>(asked.version, &response)
        } else {
            script(asked)
        }
    })
    .await;
    *lock(&port) = broker.address.port();
    broker
}

fn latest(cluster: &Cluster) -> impl Future<Output = Result<Option<Offset>, KafkaError>> {
    let cluster = cluster.clone();
    async move {
        let isolation = Isolation::ReadUncommitted;
        cluster
            .list_offset(&partition(), OffsetAt::Latest, isolation)
            .await
    }
}

#[tokio::test]
async fn a_leader_that_moved_is_looked_up_again() {
    let broker = leader(|asked| match asked.turn {
        0 => offsets(asked, NOT_LEADER, -1),
        _ => offsets(asked, 0, 7),
    })
    .await;
    let cluster = Cluster::new(&broker.config());
    assert_eq!(latest(&cluster).await.unwrap(), Some(Offset::new(7)));
    assert_eq!(broker.asked::<MetadataRequest>().len(), 2);
    latest(&cluster).await.unwrap();
    let lookups = broker.asked::<MetadataRequest>().len();
    assert_eq!(lookups, 2, "what is known is not asked again");
    let connections = broker.asked::<ApiVersionsRequest>().len();
    assert_eq!(connections, 1, "one connection serves them all");
}

#[tokio::test]
async fn a_leader_that_never_settles_ends_with_its_error_at_the_deadline() {
    let broker = leader(|asked| offsets(asked, NOT_LEADER, -1)).await;
    let config = KafkaConfig {
        request_timeout: Duration::from_millis(300),
        ..broker.config()
    };
    let started = Instant::now();
    let error = latest(&Cluster::new(&config)).await.unwrap_err();
    assert!(
        matches!(&error, KafkaError::Server { code: NOT_LEADER, name, .. } if name == "NotLeaderOrFollower"),
        "{error:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(broker.asked::<ListOffsetsRequest>().len() > 1);
}

#[tokio::test]
async fn an_idle_connection_that_closes_under_a_request_is_replaced() {
    let broker = leader(|asked| match asked.turn {
        1 => Reply::HangUp,
        _ => offsets(asked, 0, 7),
    })
    .await;
    let cluster = Cluster::new(&broker.config());
    latest(&cluster).await.unwrap();
    assert_eq!(latest(&cluster).await.unwrap(), Some(Offset::new(7)));
    let connections: Vec<_> = broker.asked::<ListOffsetsRequest>();
    let connections: Vec<_> = connections.iter().map(|asked| asked.connection).collect();
    assert_eq!(connections, [0, 0, 1]);
}

#[tokio::test]
async fn a_dropped_request_takes_its_connection_with_it() {
    let broker = leader(|asked| match asked.turn {
        0 => Reply::Silence,
        _ => offsets(asked, 0, 7),
    })
    .await;
    let cluster = Cluster::new(&broker.config());
    let mut dropped = Box::pin(latest(&cluster));
    while broker.asked::<ListOffsetsRequest>().is_empty() {
        tokio::select! {
            biased;
            answer = &mut dropped => panic!("nobody answered: {answer:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    drop(dropped);
    assert_eq!(latest(&cluster).await.unwrap(), Some(Offset::new(7)));
    let asked = broker.asked::<ListOffsetsRequest>();
    assert_ne!(asked[0].connection, asked[1].connection);
}

#[tokio::test]
async fn a_missing_topic_is_no_outage() {
    let broker = FakeBroker::start(|asked| {
        let response = metadata(1, 3, -1);
        Reply::to::<MetadataRequest>(asked.version, &response)
    })
    .await;
    let error = latest(&Cluster::new(&broker.config())).await.unwrap_err();
    assert!(
        matches!(&error, KafkaError::UnknownTopic { topic } if topic == "orders"),
        "{error:?}"
    );
    assert_eq!(broker.asked::<MetadataRequest>().len(), 1, "asked once");
}

#[tokio::test]
async fn the_next_broker_is_asked_when_one_hangs_or_hangs_up() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let silent = listener.local_addr().unwrap();
    let closing = FakeBroker::start(|_| Reply::HangUp).await;
    let broker = leader(|asked| offsets(asked, 0, 7)).await;
    let config = KafkaConfig {
        brokers: format!("{silent}, {}, {}", closing.address, broker.address),
        connect_timeout: Duration::from_millis(200),
        ..broker.config()
    };
    let cluster = Cluster::new(&config);
    assert_eq!(latest(&cluster).await.unwrap(), Some(Offset::new(7)));
}

const UNAUTHORIZED: i16 = 29;

/// Tells of each topic that it is asked for, whose name is its number; that number 7 may not be described.
async fn broker_with_topics() -> FakeBroker {
    FakeBroker::start(|asked| {
        let request = asked.request::<MetadataRequest>();
        let told = request.topics.into_iter().flatten().map(|topic| {
            let number: u128 = topic.name.as_ref().unwrap().parse().unwrap();
            let partition = MetadataResponsePartition::default().with_leader_id(BrokerId(1));
            MetadataResponseTopic::default()
                .with_name(topic.name)
                .with_topic_id(Uuid::from_u128(number))
                .with_error_code(if number == 7 { UNAUTHORIZED } else { 0 })
                .with_partitions(vec![partition])
        });
        let response = metadata(1, 0, 1).with_topics(told.collect());
        Reply::to::<MetadataRequest>(asked.version, &response)
    })
    .await
}

#[tokio::test]
async fn topics_that_are_asked_for_together_share_a_request() {
    const TOPICS: u128 = 60;
    let broker = broker_with_topics().await;
    let cluster = Cluster::new(&broker.config());
    let names: Vec<_> = (0..TOPICS).map(|number| number.to_string()).collect();
    let ids = join_all(names.iter().map(|name| cluster.topic_id(name))).await;
    for (number, id) in (0..).zip(ids) {
        if number == 7 {
            assert_eq!(id.unwrap_err().server_code(), Some(UNAUTHORIZED));
        } else {
            assert_eq!(id.unwrap(), Some(Uuid::from_u128(number)));
        }
    }
    let asked = broker.asked::<MetadataRequest>().len();
    assert!((1..=6).contains(&asked), "for ids: {asked}");

    let places: Vec<_> = names
        .iter()
        .map(|name| TopicPartition::new(name.as_str(), 0))
        .collect();
    let deadline = cluster.deadline();
    let routes = places
        .iter()
        .map(|place| cluster.route(Target::Leader(place), deadline));
    for (number, route) in (0..).zip(join_all(routes).await) {
        assert_eq!(route.is_ok(), number != 7, "{number}: {route:?}");
    }
    let asked = broker.asked::<MetadataRequest>().len() - asked;
    assert!((1..=6).contains(&asked), "for leaders: {asked}");
}

#[tokio::test]
async fn one_with_little_time_left_takes_none_from_the_others() {
    let broker = FakeBroker::start(|asked| match asked.turn {
        0 => Reply::Silence,
        _ => Reply::to::<MetadataRequest>(asked.version, &metadata(1, 0, 1)),
    })
    .await;
    let cluster = Cluster::new(&broker.config());
    let partition = partition();
    let target = Target::Leader(&partition);
    let (hasty, patient) = futures::join!(
        cluster.route(target, Deadline::within(Duration::from_millis(200))),
        cluster.route(target, cluster.deadline()),
    );
    assert!(
        matches!(hasty, Err(KafkaError::Timeout { .. })),
        "{hasty:?}"
    );
    assert!(patient.unwrap().is_some());
}

#[test]
fn the_epoch_of_a_leader_is_known_once_it_was_told() {
    let cluster = Cluster::new(&KafkaConfig::default());
    assert_eq!(cluster.leader_epoch(&partition()), None);
    let mut told = metadata(1, 0, 1);
    cluster.known().learn(&told);
    assert_eq!(cluster.leader_epoch(&partition()), None, "an old broker");
    told.topics[0].partitions[0].leader_epoch = 5;
    cluster.known().learn(&told);
    assert_eq!(cluster.leader_epoch(&partition()), Some(5));
}

#[tokio::test]
async fn a_coordinator_that_moved_is_found_again() {
    let port = Arc::new(Mutex::new(0));
    let told = Arc::clone(&port);
    let broker = FakeBroker::start(move |asked| {
        if asked.key == FindCoordinatorRequest::KEY {
            let found = kafka_protocol::messages::find_coordinator_response::Coordinator::default()
                .with_key(StrBytes::from_static_str("mirror"))
                .with_host(StrBytes::from_static_str("127.0.0.1"))
                .with_port(i32::from(*lock(&told)))
                // The internal topic is being made.
                .with_error_code(if asked.turn == 0 { 15 } else { 0 });
            let response = FindCoordinatorResponse::default().with_coordinators(vec![found]);
            return Reply::to::<FindCoordinatorRequest>(asked.version, &response);
        }
        let partition = OffsetCommitResponsePartition::default()
            .with_error_code(if asked.turn == 0 { 16 } else { 0 });
        let topic = OffsetCommitResponseTopic::default()
            .with_name(topic_name("orders"))
            .with_partitions(vec![partition]);
        let response = OffsetCommitResponse::default().with_topics(vec![topic]);
        Reply::to::<OffsetCommitRequest>(asked.version, &response)
    })
    .await;
    *lock(&port) = broker.address.port();
    let cluster = Cluster::new(&broker.config());
    let offsets = [(partition(), Offset::new(3))];
    let refused = cluster.commit_group_offsets("mirror", None, &offsets).await;
    assert!(refused.unwrap().is_empty());
    assert_eq!(broker.asked::<FindCoordinatorRequest>().len(), 3);
    assert_eq!(broker.asked::<OffsetCommitRequest>().len(), 2);
}

#[test]
fn a_partition_without_leader_is_told_from_one_that_does_not_exist() {
    let answer = metadata(1, 0, -1);
    check_partition(&answer, &partition()).unwrap();
    let absent = TopicPartition::new("orders", 1);
    let error = check_partition(&answer, &absent).unwrap_err();
    assert!(matches!(error, KafkaError::UnknownPartition { .. }));
    let other = TopicPartition::new("others", 0);
    let error = check_partition(&answer, &other).unwrap_err();
    assert!(matches!(error, KafkaError::Protocol { .. }), "{error:?}");

    let mut known = Known::default();
    known.learn(&metadata(1, 0, 1));
    assert!(known.route(Target::Leader(&partition())).is_some());
    known.learn(&answer);
    let route = known.route(Target::Leader(&partition()));
    assert!(route.is_none(), "a leader that is gone is forgotten");
}

#[tokio::test]
async fn every_broker_that_cannot_be_reached_is_named_with_its_reason() {
    let closing = FakeBroker::start(|_| Reply::HangUp).await;
    let config = KafkaConfig {
        brokers: format!("no-port, {}", closing.address),
        ..closing.config()
    };
    let error = latest(&Cluster::new(&config)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, KafkaError::Unreachable { .. }), "{text}");
    assert!(text.contains("the port is missing"), "{text}");
    assert!(text.contains("kafka.security_protocol"), "{text}");

    let nobody = KafkaConfig {
        brokers: " , ".to_owned(),
        ..closing.config()
    };
    let error = latest(&Cluster::new(&nobody)).await.unwrap_err();
    assert!(error.to_string().contains("the list is empty"), "{error}");
}

/// More appends than a broker gets at a time, while one of its followers hangs.
#[tokio::test]
async fn appends_that_wait_for_a_follower_hold_nothing_else_up() {
    let broker = leader(|asked| match asked.key {
        ProduceRequest::KEY => Reply::Silence,
        _ => offsets(asked, 0, 7),
    })
    .await;
    let cluster = Cluster::new(&broker.config());
    let mut appends = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let cluster = cluster.clone();
        appends.spawn(async move {
            let to = partition();
            let build = |_| ProduceRequest::default();
            let target = Target::Leader(&to);
            let asked = cluster.ask(target, Duration::ZERO, build, |_answer| Ok(()));
            asked.await
        });
    }
    while broker.asked::<ProduceRequest>().len() < 32 {
        tokio::task::yield_now().await;
    }
    let answer = latest(&cluster).await;
    assert_eq!(answer.unwrap(), Some(Offset::new(7)));
    assert!(appends.try_join_next().is_none(), "they still wait");
}
