//! The fault hooks, and what outlives a stop of the listener.

use std::time::Duration;

use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, BrokerConfig, ErrorCode};
use kafka_llm_processor::types::{Offset, Record};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{FetchRequest, MetadataRequest, ProduceRequest, TopicName};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::wire::{DEADLINE, Wire, batch, broker, fetch, produce};

fn one() -> ProduceRequest {
    produce("t", 0, batch(&[(Some("k"), "v")], -1))
}

fn end(broker: &Broker) -> i64 {
    broker.high_watermark("t", 0).unwrap().value()
}

#[tokio::test]
async fn an_answer_refuses_once_and_only_the_named_topic() {
    let broker = broker().await;
    broker.create_topic("other", 1, &[]).unwrap();
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let fault = broker
        .faults()
        .on(ApiKey::Produce)
        .topic("t")
        .answer(ErrorCode::NotEnoughReplicas);
    let other = produce("other", 0, batch(&[(None, "v")], -1));
    assert_eq!(
        wire.call(9, &other).await.responses[0].partition_responses[0].error_code,
        0
    );
    assert_eq!(
        wire.call(9, &one()).await.responses[0].partition_responses[0].error_code,
        19
    );
    assert_eq!(end(&broker), 0, "a refused append leaves nothing");
    assert_eq!(
        wire.call(9, &one()).await.responses[0].partition_responses[0].error_code,
        0
    );
    assert_eq!(fault.hits(), 1);
    assert_eq!(fault.seen()[0].topics, ["t"]);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_hang_up_before_leaves_nothing_and_one_after_leaves_the_record() {
    let broker = broker().await;
    let faults = broker.faults();
    faults.on(ApiKey::Produce).hang_up_before();
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    assert!(wire.try_call(9, &one()).await.is_none());
    assert_eq!(end(&broker), 0);
    faults.on(ApiKey::Produce).hang_up_after();
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    assert!(wire.try_call(9, &one()).await.is_none());
    assert_eq!(end(&broker), 1);
    faults.on(ApiKey::Produce).cut_mid_frame();
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    assert!(wire.try_call(9, &one()).await.is_none());
    assert_eq!(end(&broker), 2);
    broker.shutdown().await;
}

/// A client without acknowledgements gets no answer, also none of a fault: the connection ends instead, as after a refusal.
#[tokio::test]
async fn without_acknowledgements_nothing_is_answered() {
    let broker = broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.send(9, &one().with_acks(0)).await;
    let answer = wire.call(9, &one()).await;
    let partition = &answer.responses[0].partition_responses[0];
    assert_eq!((partition.error_code, partition.base_offset), (0, 1));
    let lost = produce("none", 0, batch(&[(None, "v")], -1)).with_acks(0);
    assert!(wire.try_call(9, &lost).await.is_none(), "a refusal closes");
    broker
        .faults()
        .on(ApiKey::Produce)
        .answer(ErrorCode::NotEnoughReplicas);
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    assert!(wire.try_call(9, &one().with_acks(0)).await.is_none());
    assert_eq!(end(&broker), 2);
    broker.shutdown().await;
}

/// Who asks first learns that there is no such topic; who asks again finds it.
#[tokio::test]
async fn topics_are_created_by_asking_only_when_configured() {
    for auto_create_topics in [false, true] {
        let config = BrokerConfig {
            auto_create_topics,
            ..BrokerConfig::default()
        };
        let broker = Broker::start(config).await.unwrap();
        let mut wire = Wire::connect(&broker.bootstrap()).await;
        let asked = MetadataRequestTopic::default().with_name(Some(TopicName("new".into())));
        let ask = MetadataRequest::default().with_topics(Some(vec![asked]));
        let forbidden = ask.clone().with_allow_auto_topic_creation(false);
        wire.call(12, &forbidden).await;
        assert_eq!(wire.call(12, &ask).await.topics[0].error_code, 3);
        let expected = if auto_create_topics { 0 } else { 3 };
        assert_eq!(wire.call(12, &ask).await.topics[0].error_code, expected);
        broker.shutdown().await;
    }
}

#[tokio::test]
async fn a_held_request_goes_on_when_it_is_released() {
    let broker = broker().await;
    let fault = broker.faults().on(ApiKey::Produce).hold();
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.send(9, &one()).await;
    timeout(DEADLINE, fault.wait_for_hits(1)).await.unwrap();
    assert_eq!(end(&broker), 0);
    fault.release();
    assert!(wire.receive_frame().await.is_some());
    assert_eq!(end(&broker), 1);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_silent_broker_answers_nothing_and_keeps_the_connection() {
    let broker = broker().await;
    let fault = broker.faults().on(ApiKey::Metadata).silent();
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let ask = MetadataRequest::default().with_topics(None);
    wire.send(12, &ask).await;
    timeout(DEADLINE, fault.wait_for_hits(1)).await.unwrap();
    wire.send(12, &ask).await;
    let mut byte = [0];
    let peek = timeout(Duration::from_millis(100), wire.stream.peek(&mut byte)).await;
    assert!(peek.is_err(), "neither an answer nor an end");
    assert_eq!(fault.hits(), 1);
    let mut other = Wire::connect(&broker.bootstrap()).await;
    other.call(12, &ask).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn a_delay_only_delays_and_a_watch_only_watches() {
    let broker = broker().await;
    let watch = broker.faults().on(ApiKey::Produce).watch();
    let wait = Duration::from_millis(80);
    broker
        .faults()
        .on(ApiKey::Produce)
        .after(1)
        .times(2)
        .delay(wait);
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.call(9, &one()).await;
    let begun = Instant::now();
    wire.call(9, &one()).await;
    wire.call(9, &one()).await;
    assert!(begun.elapsed() >= 2 * wait);
    wire.call(9, &one()).await;
    assert_eq!(watch.hits(), 4);
    assert_eq!(end(&broker), 4);
    broker.shutdown().await;
}

/// Topics, records and commits outlive the listener; connections do not.
#[tokio::test]
async fn records_survive_a_stop_and_a_start_of_the_listener() {
    let broker = broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.call(9, &one()).await;
    broker.stop_listener().await;
    assert!(
        wire.receive_frame().await.is_none(),
        "the connection is cut"
    );
    assert!(
        TcpStream::connect(broker.address()).await.is_err(),
        "the port is closed"
    );
    broker.start_listener().await.unwrap();
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let answer = wire.call(12, &fetch("t", 0, 0)).await;
    assert_eq!(answer.responses[0].partitions[0].high_watermark, 1);
    broker.shutdown().await;
}

/// The last handle takes the listener and its connections with it, also those that wait.
#[tokio::test]
async fn dropping_the_last_handle_ends_everything() {
    let broker = broker().await;
    let address = broker.address();
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.send(12, &fetch("t", 0, 0).with_max_wait_ms(60_000))
        .await;
    drop(broker);
    assert!(wire.receive_frame().await.is_none());
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, closed).await.unwrap();
}

#[tokio::test]
async fn a_long_poll_ends_with_the_record_and_not_with_its_deadline() {
    let broker = broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let begun = Instant::now();
    wire.send(12, &fetch("t", 0, 0).with_max_wait_ms(60_000))
        .await;
    broker.append("t", 0, vec![Record::default()]).unwrap();
    assert!(wire.receive_frame().await.is_some());
    assert!(begun.elapsed() < DEADLINE);
    let begun = Instant::now();
    wire.call(12, &fetch("t", 1, 0).with_max_wait_ms(50)).await;
    assert!(begun.elapsed() >= Duration::from_millis(50));
    broker.shutdown().await;
}

/// The first batch comes whole whatever the limits, the last is cut at them, and a partition that finds no room brings nothing.
#[tokio::test]
async fn byte_limits_are_kept_as_kafka_keeps_them() {
    let broker = broker().await;
    let record = || Record {
        value: Some(vec![b'x'; 1_000].into()),
        ..Record::default()
    };
    for partition in [0, 1] {
        for _ in 0..3 {
            broker.append("t", partition, vec![record()]).unwrap();
        }
    }
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let mut request = fetch("t", 0, 1);
    let mut second = request.topics[0].partitions[0].clone();
    second.partition = 1;
    request.topics[0].partitions.push(second);
    let mut sizes = async |request: FetchRequest| {
        let answer = wire.call(12, &request).await;
        let partitions = answer.responses[0].partitions.iter();
        let sizes: Vec<_> = partitions
            .map(|one| one.records.as_ref().unwrap().len())
            .collect();
        sizes
    };
    let whole = sizes(request.clone()).await;
    let one = whole[0] / 2;
    assert_eq!(whole, [2 * one, 2 * one]);
    assert_eq!(sizes(request.clone().with_max_bytes(10)).await, [one, 0]);
    let cut = i32::try_from(one + 100).unwrap();
    assert_eq!(
        sizes(request.clone().with_max_bytes(cut)).await,
        [one + 100, 0]
    );
    request.topics[0].partitions[0].partition_max_bytes = 10;
    assert_eq!(sizes(request).await, [one, 2 * one]);
    broker.shutdown().await;
}

/// A newer leader epoch fences the clients that believe in the old one.
#[tokio::test]
async fn an_old_leader_epoch_is_fenced() {
    let broker = broker().await;
    broker.append("t", 0, vec![Record::default()]).unwrap();
    assert_eq!(broker.bump_leader_epoch("t", 0).unwrap(), 1);
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let mut request = fetch("t", 0, 0);
    for (epoch, code) in [(0, 74), (1, 0), (2, 75)] {
        request.topics[0].partitions[0].current_leader_epoch = epoch;
        let answer = wire.call(12, &request).await;
        assert_eq!(answer.responses[0].partitions[0].error_code, code);
    }
    let topics = MetadataRequest::default().with_topics(None);
    let answer = wire.call(12, &topics).await;
    let topic = &answer.topics[0];
    assert_eq!(topic.name, Some(TopicName("t".into())));
    assert_eq!(topic.partitions[0].leader_epoch, 1);
    broker.shutdown().await;
}

#[tokio::test]
async fn the_connections_are_bounded() {
    let config = BrokerConfig {
        connections_max: 1,
        ..BrokerConfig::default()
    };
    let broker = Broker::start(config).await.unwrap();
    let ask = MetadataRequest::default().with_topics(None);
    let mut first = Wire::connect(&broker.bootstrap()).await;
    first.call(12, &ask).await;
    let mut second = Wire::connect(&broker.bootstrap()).await;
    assert!(second.receive_frame().await.is_none());
    first.call(12, &ask).await;
    assert_eq!(broker.high_watermark("none", 0), None::<Offset>);
    broker.shutdown().await;
}
