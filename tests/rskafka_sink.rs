//! The writers of the rskafka driver: what comes while an append is on its way goes out together.

#![cfg(feature = "sandbox")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "these are tests; clippy knows only functions marked as tests"
)]

use futures::FutureExt as _;
use futures::future::join_all;
use kafka_llm_processor::kafka::rskafka::RskafkaSink;
use kafka_llm_processor::kafka::{
    Batch, KafkaConfig, KafkaError, PartitionSink, Sink as _, StepError,
};
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::types::{Record, TopicPartition};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::ApiKey;

async fn sandbox(configs: &[(&str, &str)]) -> (Broker, RskafkaSink) {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("output", 1, configs).unwrap();
    let sink = RskafkaSink::new(KafkaConfig {
        brokers: broker.bootstrap(),
        ..KafkaConfig::default()
    });
    (broker, sink)
}

async fn sender(sink: &RskafkaSink, number: i32) -> Box<dyn PartitionSink> {
    let input = TopicPartition::new("input", number);
    sink.take_over(&input).await.unwrap()
}

fn batch(value: impl Into<String>) -> Batch {
    let record = Record {
        key: None,
        value: Some(value.into().into()),
        headers: Vec::new(),
        timestamp_ms: 1,
    };
    Batch {
        to: TopicPartition::new("output", 0),
        records: vec![record],
    }
}

async fn append(sender: &mut dyn PartitionSink, value: impl Into<String>) -> Result<(), StepError> {
    let outcomes = sender.append(&[batch(value)]).await;
    outcomes.into_iter().next().unwrap()
}

fn values(broker: &Broker) -> Vec<String> {
    let records = broker.records("output").into_iter();
    records
        .map(|(_, _, record)| String::from_utf8(record.value.unwrap().to_vec()).unwrap())
        .collect()
}

/// Numbers that gzip packs to half, at best.
fn noise(numbers: std::ops::Range<u32>) -> String {
    numbers
        .map(|number| format!("{:x}", number.wrapping_mul(2_654_435_761)))
        .collect()
}

#[tokio::test]
async fn what_many_send_at_once_goes_out_in_few_batches_and_each_in_its_order() {
    const SENDERS: i32 = 32;
    const EACH: usize = 5;
    let (broker, sink) = sandbox(&[]).await;
    let appends = broker.faults().on(ApiKey::Produce).keep().watch();
    join_all((0..SENDERS).map(|number| {
        let sink = &sink;
        async move {
            let mut sender = sender(sink, number).await;
            for count in 0..EACH {
                append(&mut *sender, format!("{number}-{count}"))
                    .await
                    .unwrap();
            }
        }
    }))
    .await;
    let values = values(&broker);
    for number in 0..SENDERS {
        let of_it = format!("{number}-");
        let of_it: Vec<_> = values
            .iter()
            .filter(|value| value.starts_with(&of_it))
            .collect();
        let expected: Vec<_> = (0..EACH).map(|count| format!("{number}-{count}")).collect();
        assert_eq!(of_it, expected.iter().collect::<Vec<_>>());
    }
    // Nobody is behind by more than a batch, whichever of two comes first.
    let most = u64::try_from(2 * EACH).unwrap();
    assert!(appends.hits() <= most, "{} appends", appends.hits());
}

/// Three records that fit each alone, and not together.
#[tokio::test]
async fn who_fits_alone_is_written_though_all_together_are_too_large() {
    let (broker, sink) = sandbox(&[("max.message.bytes", "1500")]).await;
    let mut senders = Vec::new();
    for number in 0..4 {
        senders.push(sender(&sink, number).await);
    }
    append(&mut *senders[0], "first").await.unwrap();
    let outcomes = join_all(senders.iter_mut().zip(0..).map(|(sender, seed)| {
        let numbers = if seed == 3 {
            3_000..5_000
        } else {
            seed * 1_000..seed * 1_000 + 100
        };
        let value = noise(numbers);
        async move { append(&mut **sender, value).await }
    }))
    .await;
    assert!(outcomes[..3].iter().all(Result::is_ok), "{outcomes:?}");
    let refused = outcomes[3].as_ref().unwrap_err();
    assert!(
        matches!(refused, StepError::Refused(KafkaError::TooLarge { .. })),
        "{refused:?}"
    );
    assert_eq!(values(&broker).len(), 4);
}

/// One bad part fails itself, and not those that had gathered with it.
#[tokio::test]
async fn what_is_refused_together_for_what_is_in_it_is_tried_alone() {
    for code in [
        ResponseError::InvalidRecord,
        ResponseError::InvalidTimestamp,
        ResponseError::CorruptMessage,
    ] {
        let (broker, sink) = sandbox(&[]).await;
        let mut senders = Vec::new();
        for number in 0..4 {
            senders.push(sender(&sink, number).await);
        }
        append(&mut *senders[3], "first").await.unwrap();
        // All together, then the first of them.
        broker.faults().on(ApiKey::Produce).times(2).answer(code);
        let outcomes = join_all(senders.iter_mut().take(3).zip(0..).map(|(sender, number)| {
            let value = number.to_string();
            async move { append(&mut **sender, value).await }
        }))
        .await;
        let refused = outcomes.iter().filter(|outcome| outcome.is_err());
        assert_eq!(refused.count(), 1, "{outcomes:?}");
        assert!(
            matches!(&outcomes[0], Err(StepError::Refused(error)) if error.server_code() == Some(code.code())),
            "{outcomes:?}"
        );
        assert_eq!(values(&broker), ["first", "1", "2"]);
    }
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_tried_alone() {
    let (broker, sink) = sandbox(&[("max.message.bytes", "1500")]).await;
    append(&mut *sender(&sink, 3).await, "first").await.unwrap();
    let held = broker.faults().on(ApiKey::Produce).hold();
    let mut appends = Vec::new();
    for number in 0..3 {
        let mut sender = sender(&sink, number).await;
        let from = number.unsigned_abs() * 1_000;
        let value = noise(from..from + 200);
        appends.push(tokio::spawn(
            async move { append(&mut *sender, value).await },
        ));
    }
    held.wait_for_hits(1).await;
    let given_up = appends.remove(1);
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    let watched = broker.faults().on(ApiKey::Produce).keep().watch();
    held.release();
    for append in appends {
        append.await.unwrap().unwrap();
    }
    assert_eq!(values(&broker).len(), 3);
    assert_eq!(watched.hits(), 2, "two were tried alone");
}

#[tokio::test]
async fn when_much_waits_batches_are_large() {
    const SENDERS: i32 = 32;
    let (broker, sink) = sandbox(&[]).await;
    append(&mut *sender(&sink, SENDERS).await, "first")
        .await
        .unwrap();
    let appends = broker.faults().on(ApiKey::Produce).keep().watch();
    let outcomes = join_all((0..SENDERS).map(|number| {
        let sink = &sink;
        async move {
            let mut sender = sender(sink, number).await;
            append(&mut *sender, "x".repeat(16 * 1024)).await
        }
    }))
    .await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert!(appends.hits() <= 3, "{} appends", appends.hits());
}

/// As when the group has given the partition to somebody else: its new owner must not find it written later.
#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_begun() {
    let (broker, sink) = sandbox(&[]).await;
    let mut first = sender(&sink, 0).await;
    let mut second = sender(&sink, 1).await;
    let mut on_its_way = Box::pin(append(&mut *first, "first"));
    assert!(on_its_way.as_mut().now_or_never().is_none());
    let mut waiting = Box::pin(append(&mut *second, "second"));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(waiting);
    on_its_way.await.unwrap();
    append(&mut *first, "third").await.unwrap();
    assert_eq!(values(&broker), ["first", "third"]);
}
