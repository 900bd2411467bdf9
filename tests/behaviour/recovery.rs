//! After a crash at any moment a restart finishes every document; what the outside took away is told, never skipped in silence.

use std::time::Duration;

use bytes::Bytes;
use kafka_llm_processor::kafka::wire::{Cluster, WireSink};
use kafka_llm_processor::kafka::{Batch, KafkaConfig, Sink as _};
use kafka_llm_processor::sandbox::vllm::{Latency, VllmConfig};
use kafka_llm_processor::types::{Header, Record, TopicPartition};
use kafka_protocol::messages::ApiKey;
use tokio::time::sleep;

use crate::harness::{INPUT, OUTPUT, World, eventually, json, plain};

/// Crashes at twelve moments spread over the run, each after one more commit or half-way into an append.
#[tokio::test]
async fn a_restart_from_any_commit_loses_nothing() {
    for order in ["input", "key", "completion"] {
        let latency = Latency::fixed(Duration::from_millis(2));
        let world = World::with_vllm(
            2,
            VllmConfig {
                latency,
                ..VllmConfig::default()
            },
        )
        .await;
        world.produce(0..240, plain);
        let order = format!("pipeline.order={order}");
        // As many commits as there can be, whatever is promised.
        let set = [
            order.as_str(),
            "llm.concurrency=6",
            "processing.commit_interval_ms=0",
        ];
        for crash in 0..6 {
            let committed = world.commits(0).len() + world.commits(1).len();
            let running = world.start(&set);
            eventually("some commits", || {
                world.commits(0).len() + world.commits(1).len() >= committed + 2 + crash
            })
            .await;
            running.kill().await;

            let running = world.start(&set);
            let appended = world
                .broker
                .faults()
                .on(ApiKey::Produce)
                .topic(OUTPUT)
                .after(2)
                .hang_up_after();
            if !world.is_all_committed() {
                eventually("an append is cut", || {
                    appended.hits() > 0 || world.is_all_committed()
                })
                .await;
            }
            running.kill().await;
            appended.remove();
        }
        let running = world.start(&set);
        eventually("everything is committed", || world.is_all_committed()).await;
        running.drain().await;
        assert_eq!(
            world.results().len(),
            240,
            "{order}: every document has a result"
        );
        for partition in 0..2 {
            let offsets: Vec<_> = world
                .commits(partition)
                .iter()
                .map(|commit| commit["next_offset"].as_i64())
                .collect();
            assert!(
                offsets.is_sorted(),
                "the commit offset never falls: {offsets:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_restart_after_everything_is_done_asks_nothing() {
    let world = World::new(2).await;
    world.produce(0..20, plain);
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    let calls = world.vllm.calls();
    let running = world.start(&[]);
    eventually("partitions are taken over", || {
        world.commits(0).last().unwrap()["owner_epoch"] == 2
            && world.commits(1).last().unwrap()["owner_epoch"] == 2
    })
    .await;
    running.drain().await;
    assert_eq!(world.vllm.calls(), calls);
    assert!(world.is_all_committed());
}

#[tokio::test]
async fn input_that_was_deleted_unread_holds_the_partition_and_names_both_offsets() {
    let world = World::new(1).await;
    world.produce(0..10, plain);
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    world.produce(10..30, plain);
    world
        .broker
        .delete_records(INPUT, 0, kafka_llm_processor::types::Offset::new(15))
        .unwrap();

    let running = world.start(&[]);
    eventually("the loss is told", || {
        running.hold("partition docs/0").is_some()
    })
    .await;
    let reason = running.hold("partition docs/0").unwrap();
    assert!(
        reason.contains("offset 10")
            && reason.contains("begins at 15")
            && reason.contains("input.on_data_loss"),
        "{reason}"
    );
    assert_eq!(world.results().len(), 10, "nothing is read");
    running.drain().await;

    let running = world.start(&["input.on_data_loss=resume"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 25);
}

#[tokio::test]
async fn a_topic_that_was_created_anew_holds_the_partition() {
    let world = World::new(1).await;
    world.produce(0..4, plain);
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    world.broker.delete_topic(INPUT).unwrap();
    world.broker.create_topic(INPUT, 1, &[]).unwrap();
    world.produce(0..9, plain);
    let running = world.start(&[]);
    eventually("the loss is told", || {
        running
            .hold("partition docs/0")
            .is_some_and(|reason| reason.contains("created again"))
    })
    .await;
    running.drain().await;
    assert_eq!(world.commit_offset(0), Some(4));
}

/// The new log reaches beyond where the old one was read to before anybody looks: fetches go on there without an error. The first
/// records of the new topic must not be passed over in silence, and are read once the operator has decided.
#[tokio::test]
async fn a_topic_that_is_created_anew_while_it_is_read_is_told_and_loses_nothing() {
    let world = World::new(1).await;
    world.produce(0..4, plain);
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    world.broker.delete_topic(INPUT).unwrap();
    world.broker.create_topic(INPUT, 1, &[]).unwrap();
    world.produce(0..9, plain);
    eventually("the loss is told", || {
        running
            .hold("partition docs/0")
            .is_some_and(|reason| reason.contains("created again"))
    })
    .await;
    running.drain().await;

    let running = world.start(&["input.on_data_loss=resume"]);
    eventually("the new topic is read from its beginning", || {
        let results = world.results();
        (0..4).all(|offset| {
            results
                .get(&(0, offset))
                .is_some_and(|seen| seen.len() == 2)
        }) && (4..9).all(|offset| results.contains_key(&(0, offset)))
    })
    .await;
    running.drain().await;
}

/// rskafka cannot read a transaction marker, nor a header without a value: the wire reader takes the partition over at that offset.
#[tokio::test]
async fn what_rskafka_cannot_read_the_wire_reader_reads() {
    let world = World::new(2).await;
    world.produce(0..6, plain);
    world.broker.append_marker(INPUT, 0, true).unwrap();
    let null_header = Header {
        name: "h".to_owned(),
        value: None,
    };
    let record = Record {
        value: Some(plain(1).into()),
        headers: vec![null_header],
        timestamp_ms: 1_700_000_000_000,
        ..Record::default()
    };
    world.broker.append(INPUT, 1, vec![record]).unwrap();
    world.produce(6..12, plain);
    world.broker.append_marker(INPUT, 0, false).unwrap();
    let running = world.start(&[]);
    eventually("everything is committed, the last marker too", || {
        world.is_all_committed()
    })
    .await;
    running.drain().await;
    assert_eq!(world.results().len(), 13);
    assert!(world.results().values().all(|results| results.len() == 1));
    assert_eq!(world.commit_offset(0), Some(8));
}

/// What rskafka leaves to the own reader is asked for together: a poll for each partition would have more of them wait than there are connections.
#[tokio::test]
async fn many_packed_partitions_share_their_polls() {
    const PARTITIONS: i32 = 40;
    let world = World::new(PARTITIONS).await;
    let config = KafkaConfig {
        brokers: world.broker.bootstrap(),
        ..KafkaConfig::default()
    };
    let sink = WireSink::idempotent(Cluster::new(&config));
    let of = |partition| TopicPartition::new(INPUT, partition);
    let mut writer = sink.take_over(&of(0)).await.unwrap();
    let batches = (0..PARTITIONS).map(|partition| Batch {
        to: of(partition),
        records: vec![Record {
            value: Some(json(0, &"many words ".repeat(100)).into()),
            timestamp_ms: 1_700_000_000_000,
            ..Record::default()
        }],
    });
    for outcome in writer.append(&batches.collect::<Vec<_>>()).await {
        outcome.unwrap();
    }
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    let fetches = || {
        world
            .broker
            .traffic()
            .of(kafka_llm_processor::sandbox::broker::ApiKey::Fetch)
            .requests
    };
    let before = fetches();
    sleep(Duration::from_secs(3)).await;
    let idle = fetches() - before;
    running.drain().await;
    assert!(idle < 50, "{idle} fetches in 3 s");
}

/// A codec that Kafka does not have yet: neither skipped nor stuck without a word.
#[tokio::test]
async fn what_nobody_can_read_is_held_with_the_reason() {
    let world = World::new(2).await;
    world.produce(0..6, plain);
    world
        .broker
        .append_raw(INPUT, 0, batch_of_an_unknown_codec())
        .unwrap();
    world.produce(6..12, plain);
    let running = world.start(&[]);
    eventually("the codec is told", || {
        running.hold("partition docs/0").is_some()
    })
    .await;
    let reason = running.hold("partition docs/0").unwrap();
    assert!(
        reason.contains("docs/0 cannot be read at offset 3") && reason.contains("codec"),
        "{reason}"
    );
    eventually("the other partition goes on", || {
        world.commit_offset(1) == Some(6)
    })
    .await;
    eventually("what lies before is done", || {
        world.commit_offset(0) == Some(3)
    })
    .await;
    assert!(running.hold("partition docs/0").is_some());
    running.drain().await;
    assert_eq!(
        world.commit_offset(0),
        Some(3),
        "nothing behind it is skipped"
    );
}

/// A batch that says it is compressed with codec 5: magic 2, its attributes set, its checksum right.
fn batch_of_an_unknown_codec() -> Bytes {
    const ATTRIBUTES: usize = 22;
    const CHECKSUM: std::ops::Range<usize> = 17..21;
    let record = kafka_protocol::records::Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: kafka_protocol::records::TimestampType::Creation,
        offset: 0,
        sequence: -1,
        timestamp: 1_700_000_000_000,
        key: None,
        value: Some(Bytes::from_static(b"text")),
        headers: kafka_protocol::indexmap::IndexMap::new(),
    };
    let mut batch = bytes::BytesMut::new();
    let options = kafka_protocol::records::RecordEncodeOptions {
        version: 2,
        compression: kafka_protocol::records::Compression::None,
    };
    kafka_protocol::records::RecordBatchEncoder::encode(&mut batch, [&record], &options).unwrap();
    batch[ATTRIBUTES] |= 5;
    let checksum = crc32c::crc32c(&batch[CHECKSUM.end..]);
    batch[CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    batch.freeze()
}
