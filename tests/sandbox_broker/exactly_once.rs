//! What a test can do to producers and their transactions through the handle and the fault hooks.

use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, BrokerConfig, ErrorCode};
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, MetadataRequest, ProducerId, TransactionalId,
};
use kafka_protocol::protocol::StrBytes;

use crate::transactions::{World, in_transaction, plain};
use crate::wire::{DEADLINE, Wire, batch, broker, fetch, name, produce};

/// The client does not know whether its transaction was committed, asks again on a new connection, and it was, once.
#[tokio::test]
async fn a_lost_answer_to_the_end_of_a_transaction_is_asked_for_again() {
    let broker = broker().await;
    let mut world = World::new(&broker.bootstrap()).await;
    let producer = world.init().await;
    assert_eq!(world.add(producer, 0).await, 0);
    assert_eq!(world.send(0, in_transaction(producer, 0)).await.0, 0);
    let open = broker.open_transactions();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].transactional_id, world.id);
    assert_eq!(open[0].producer_id, producer.id);
    assert_eq!(open[0].producer_epoch, producer.epoch);
    assert_eq!(open[0].partitions[0].topic.as_ref(), world.topic);
    assert!(broker.records_committed(&world.topic).is_empty());
    let stable = broker.last_stable_offset(&world.topic, 0).unwrap();
    assert_eq!(stable.value(), 0);
    let faults = broker.faults();
    let other = faults.on(ApiKey::EndTxn).transactional_id("another");
    let other = other.hang_up_before();
    let lost = faults.on(ApiKey::EndTxn).transactional_id(&world.id);
    let lost = lost.hang_up_after();
    let id = world.id.clone();
    let ended = tokio::spawn(async move {
        let code = world.end_at(3, &id, producer, true).await;
        (code, world)
    });
    assert!(
        ended.await.is_err(),
        "the connection ends without an answer"
    );
    assert_eq!((lost.hits(), other.hits()), (1, 0));
    let topic = broker.topics().into_iter().find(|topic| topic != "t");
    let topic = topic.unwrap();
    assert_eq!(broker.records_committed(&topic).len(), 1);
    assert_eq!(broker.high_watermark(&topic, 0).unwrap().value(), 2);
    let mut again = World::resume(&broker.bootstrap(), &topic, &open[0].transactional_id).await;
    assert_eq!(again.end(producer, true).await, 0);
    assert_eq!(again.end(producer, false).await, 48);
    assert_eq!(broker.high_watermark(&topic, 0).unwrap().value(), 2);
    broker.shutdown().await;
}

#[tokio::test]
async fn an_expired_transactional_id_is_unknown_and_its_transaction_aborted() {
    let broker = broker().await;
    let mut world = World::new(&broker.bootstrap()).await;
    let producer = world.init().await;
    world.add(producer, 0).await;
    world.send(0, in_transaction(producer, 0)).await;
    assert!(broker.expire_transactional_id(&world.id));
    assert!(broker.open_transactions().is_empty());
    assert_eq!(world.end(producer, true).await, 49);
    assert_eq!(world.add(producer, 0).await, 49);
    assert_eq!(world.send(1, in_transaction(producer, 0)).await.0, 49);
    assert!(broker.records_committed(&world.topic).is_empty());
    assert_eq!(broker.records(&world.topic).len(), 1);
    let next = world.init().await;
    assert_ne!(next.id, producer.id);
    broker.shutdown().await;
}

/// A repeat is recognised whatever lies between: another connection, a stop of the listener, a new leader epoch, deleted records.
#[tokio::test]
async fn a_repeated_batch_is_appended_once() {
    let broker = broker().await;
    let mut world = World::new(&broker.bootstrap()).await;
    let (_, producer) = world.fresh().await;
    assert_eq!(world.send(0, plain(producer, 0)).await, (0, 0));
    broker.stop_listener().await;
    broker.start_listener().await.unwrap();
    let topic = world.topic.clone();
    broker.bump_leader_epoch(&topic, 0).unwrap();
    broker
        .delete_records(&topic, 0, broker.high_watermark(&topic, 0).unwrap())
        .unwrap();
    let mut world = World::resume(&broker.bootstrap(), &topic, "").await;
    assert_eq!(world.send(0, plain(producer, 0)).await, (0, 0));
    assert_eq!(broker.high_watermark(&topic, 0).unwrap().value(), 1);
    assert_eq!(world.send(0, plain(producer, 1)).await, (0, 1));
    broker.shutdown().await;
}

/// A client that has not asked for metadata since the leader changed is sent away, and let in once it has.
#[tokio::test]
async fn a_new_leader_is_found_by_asking_for_metadata() {
    let broker = broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let one = || produce("t", 0, batch(&[(None, "v")], -1));
    let produced = wire.call(9, &one()).await;
    assert_eq!(produced.responses[0].partition_responses[0].error_code, 0);
    assert_eq!(broker.move_leader("t", 0).unwrap(), 1);
    for _ in 0..2 {
        let produced = wire.call(9, &one()).await;
        assert_eq!(produced.responses[0].partition_responses[0].error_code, 6);
        let fetched = wire.call(12, &fetch("t", 0, 0)).await;
        assert_eq!(fetched.responses[0].partitions[0].error_code, 6);
    }
    let other = wire.call(12, &fetch("t", 1, 0)).await;
    assert_eq!(other.responses[0].partitions[0].error_code, 0);
    let asked = MetadataRequestTopic::default().with_name(Some(name("t")));
    let asked = MetadataRequest::default().with_topics(Some(vec![asked]));
    let metadata = wire.call(12, &asked).await;
    assert_eq!(metadata.topics[0].partitions[0].leader_epoch, 1);
    let produced = wire.call(9, &one()).await;
    assert_eq!(produced.responses[0].partition_responses[0].error_code, 0);
    broker.shutdown().await;
}

/// A reader that waits for committed records is woken by the marker and not by the records.
#[tokio::test]
async fn a_committed_long_poll_ends_with_the_commit() {
    let broker = broker().await;
    let mut world = World::new(&broker.bootstrap()).await;
    let producer = world.init().await;
    world.add(producer, 0).await;
    let watch = broker.faults().on(ApiKey::Fetch).watch();
    let request = fetch(&world.topic, 0, 0)
        .with_isolation_level(1)
        .with_max_wait_ms(i32::try_from(DEADLINE.as_millis()).unwrap());
    let mut reader = Wire::connect(&broker.bootstrap()).await;
    let reads = tokio::spawn(async move { reader.call(12, &request).await });
    watch.wait_for_hits(1).await;
    world.send(0, in_transaction(producer, 0)).await;
    world.send(0, in_transaction(producer, 1)).await;
    assert!(!reads.is_finished());
    assert_eq!(world.end(producer, true).await, 0);
    let read = reads.await.unwrap();
    let partition = &read.responses[0].partitions[0];
    assert_eq!(partition.last_stable_offset, 3);
    assert!(!partition.records.as_ref().unwrap().is_empty());
    broker.shutdown().await;
}

/// Markers are written even when the logs are full, so no transaction begins then.
#[tokio::test]
async fn no_transaction_begins_when_the_logs_are_full() {
    let config = BrokerConfig {
        log_bytes_max: 1,
        ..BrokerConfig::default()
    };
    let broker = Broker::start(config).await.unwrap();
    let mut world = World::new(&broker.bootstrap()).await;
    let producer = world.init().await;
    world.add(producer, 0).await;
    assert_eq!(world.end(producer, true).await, 0);
    assert_eq!(broker.high_watermark(&world.topic, 0).unwrap().value(), 1);
    let topic = AddPartitionsToTxnTopic::default()
        .with_name(name(&world.topic))
        .with_partitions(vec![0]);
    let request = AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(TransactionalId(StrBytes::from_string(
            world.id.clone(),
        )))
        .with_v3_and_below_producer_id(ProducerId(producer.id))
        .with_v3_and_below_producer_epoch(producer.epoch)
        .with_v3_and_below_topics(vec![topic]);
    let answer = world.wire.call(3, &request).await;
    let results = &answer.results_by_topic_v3_and_below[0].results_by_partition;
    assert_eq!(results[0].partition_error_code, 15);
    assert!(broker.open_transactions().is_empty());
    broker.shutdown().await;
}

/// The code that a busy coordinator answers reaches every place of the response.
#[tokio::test]
async fn a_busy_coordinator_is_a_fault_away() {
    let broker = broker().await;
    let mut world = World::new(&broker.bootstrap()).await;
    let producer = world.init().await;
    let busy = broker.faults().on(ApiKey::AddPartitionsToTxn).times(3);
    let busy = busy.answer(ErrorCode::ConcurrentTransactions);
    assert_eq!(world.add(producer, 0).await, 0);
    assert_eq!(busy.hits(), 3);
    let topic = world.topic.clone();
    let fault = broker.faults().on(ApiKey::AddPartitionsToTxn);
    let fault = fault.topic("t").answer(ErrorCode::UnknownServerError);
    let codes = world.add_at(3, producer, &topic, &[0, 1]).await;
    assert_eq!((codes, fault.hits()), (vec![0, 0], 0));
    broker.shutdown().await;
}
