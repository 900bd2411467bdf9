//! Against a broker that says what a test tells it to. What a real one makes of it: `tests/wire_sink_real_kafka.rs`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, EndTxnRequest, EndTxnResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, InitProducerIdRequest, InitProducerIdResponse,
    MetadataRequest, ProduceRequest, ProduceResponse, ProducerId,
};
use kafka_protocol::protocol::{Request, StrBytes};

use super::super::cluster::topic_name;
use super::super::fake::{Asked, FakeBroker, Reply, orders};
use super::super::pool::lock;
use super::*;
use crate::kafka::KafkaConfig;
use crate::types::Record;

const TRANSACTIONAL_ID: &str = "group/input/3";
/// Short, where a test waits for its end.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(5);

fn to() -> TopicPartition {
    TopicPartition::new("orders", 0)
}

fn batch(values: &[&str]) -> Batch {
    let records = values.iter().map(|value| Record {
        value: Some((*value).to_owned().into()),
        ..Record::default()
    });
    Batch {
        to: to(),
        records: records.collect(),
    }
}

fn host() -> StrBytes {
    StrBytes::from_static_str("127.0.0.1")
}

/// An answer that says the same about each of these partitions.
fn produced_to(version: i16, code: i16, indexes: &[i32]) -> Reply {
    let entries: Vec<_> = indexes.iter().map(|index| (*index, code)).collect();
    produced(version, &entries)
}

/// An answer with these partitions and their codes.
fn produced(version: i16, entries: &[(i32, i16)]) -> Reply {
    let partitions = entries.iter().map(|(index, code)| {
        PartitionProduceResponse::default()
            .with_index(*index)
            .with_error_code(*code)
    });
    let topic = TopicProduceResponse::default()
        .with_name(topic_name("orders"))
        .with_partition_responses(partitions.collect());
    let response = ProduceResponse::default().with_responses(vec![topic]);
    Reply::to::<ProduceRequest>(version, &response)
}

/// The answer with that code to any request of a writer. Producer ids are counted from 100, epochs from 0.
fn answer(asked: Asked, code: i16) -> Reply {
    let version = asked.version;
    match asked.key {
        InitProducerIdRequest::KEY => {
            let turn = i16::try_from(asked.turn).unwrap();
            let response = InitProducerIdResponse::default()
                .with_error_code(code)
                .with_producer_id(ProducerId(100 + i64::from(turn)))
                .with_producer_epoch(turn);
            Reply::to::<InitProducerIdRequest>(version, &response)
        }
        AddPartitionsToTxnRequest::KEY => {
            let found =
                AddPartitionsToTxnPartitionResult::default().with_partition_error_code(code);
            let topic = AddPartitionsToTxnTopicResult::default()
                .with_name(topic_name("orders"))
                .with_results_by_partition(vec![found]);
            let response = AddPartitionsToTxnResponse::default()
                .with_results_by_topic_v3_and_below(vec![topic]);
            Reply::to::<AddPartitionsToTxnRequest>(version, &response)
        }
        EndTxnRequest::KEY => {
            let response = EndTxnResponse::default().with_error_code(code);
            Reply::to::<EndTxnRequest>(version, &response)
        }
        ProduceRequest::KEY => produced_to(version, code, &[0]),
        other => panic!("nobody asks for {other}"),
    }
}

/// A broker that leads and coordinates everything; what the script leaves to it goes well.
async fn broker(mut script: impl FnMut(Asked) -> Option<Reply> + Send + 'static) -> FakeBroker {
    let port = Arc::new(Mutex::new(0));
    let told = Arc::clone(&port);
    let broker = FakeBroker::start(move |asked| match asked.key {
        MetadataRequest::KEY => {
            Reply::to::<MetadataRequest>(asked.version, &orders(*lock(&told), 3))
        }
        FindCoordinatorRequest::KEY => {
            let found = Coordinator::default()
                .with_key(StrBytes::from_static_str(TRANSACTIONAL_ID))
                .with_host(host())
                .with_port(i32::from(*lock(&told)));
            let response = FindCoordinatorResponse::default().with_coordinators(vec![found]);
            Reply::to::<FindCoordinatorRequest>(asked.version, &response)
        }
        _ => script(asked).unwrap_or_else(|| answer(asked, 0)),
    })
    .await;
    *lock(&port) = broker.address.port();
    broker
}

/// A broker that does one thing otherwise: the answer to one API at one turn.
async fn but(key: i16, turn: usize, reply: fn(Asked) -> Reply) -> FakeBroker {
    broker(move |asked| (asked.key == key && asked.turn == turn).then(|| reply(asked))).await
}

/// A broker that answers one API with a code, always.
async fn refusing(key: i16, code: i16) -> FakeBroker {
    broker(move |asked| (asked.key == key).then(|| answer(asked, code))).await
}

fn cluster(broker: &FakeBroker, request_timeout: Duration) -> Cluster {
    Cluster::new(&KafkaConfig {
        request_timeout,
        ..broker.config()
    })
}

async fn idempotent(broker: &FakeBroker, timeout: Duration) -> Box<dyn PartitionSink> {
    let sink = WireSink::idempotent(cluster(broker, timeout));
    sink.take_over(&TopicPartition::new("input", 3))
        .await
        .unwrap()
}

async fn transactional(
    broker: &FakeBroker,
    timeout: Duration,
) -> Result<Box<dyn PartitionSink>, StepError> {
    let sink = WireSink::transactional(cluster(broker, timeout), "group");
    sink.take_over(&TopicPartition::new("input", 3)).await
}

async fn append(sink: &mut Box<dyn PartitionSink>, values: &[&str]) -> Result<(), StepError> {
    let mut outcomes = sink.append(&[batch(values)]).await;
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

/// What the leader knows a batch by: producer id, epoch and first sequence number.
fn stamps(broker: &FakeBroker) -> Vec<(i64, i16, i32)> {
    let stamp = |records: bytes::Bytes| {
        (
            i64::from_be_bytes(records[43..51].try_into().unwrap()),
            i16::from_be_bytes(records[51..53].try_into().unwrap()),
            i32::from_be_bytes(records[53..57].try_into().unwrap()),
        )
    };
    sent(broker).into_iter().map(stamp).collect()
}

fn sent(broker: &FakeBroker) -> Vec<bytes::Bytes> {
    let requests = broker.requests::<ProduceRequest>();
    requests
        .iter()
        .map(|request| {
            assert_eq!(request.acks, -1, "all in-sync replicas");
            let data = &request.topic_data[0].partition_data[0];
            data.records.clone().unwrap()
        })
        .collect()
}

fn is_unknown(outcome: &Result<(), StepError>) -> bool {
    matches!(outcome, Err(StepError::OutcomeUnknown(_)))
}

fn is_refused(outcome: &Result<(), StepError>) -> bool {
    matches!(outcome, Err(StepError::Refused(_)))
}

#[tokio::test]
async fn sequence_numbers_follow_each_other() {
    let broker = broker(|_| None).await;
    let mut sink = idempotent(&broker, LONG).await;
    assert!(!sink.is_transactional());
    assert!(
        broker.requests::<InitProducerIdRequest>().is_empty(),
        "asked for late"
    );
    for values in [&["one", "two"][..], &["three"], &["four"]] {
        append(&mut sink, values).await.unwrap();
    }
    assert_eq!(stamps(&broker), [(100, 0, 0), (100, 0, 2), (100, 0, 3)]);
    assert_eq!(broker.requests::<InitProducerIdRequest>().len(), 1, "once");
}

/// The connection ends behind the request: nobody knows whether it was acted on.
#[tokio::test]
async fn a_lost_answer_is_followed_by_the_same_bytes() {
    let broker = but(ProduceRequest::KEY, 0, |_| Reply::HangUp).await;
    let mut sink = idempotent(&broker, LONG).await;
    append(&mut sink, &["one", "two"]).await.unwrap();
    append(&mut sink, &["three"]).await.unwrap();
    let sent = sent(&broker);
    assert_eq!(sent[0], sent[1]);
    assert_eq!(stamps(&broker)[2], (100, 0, 2), "it counts once");
}

#[tokio::test]
async fn a_repeat_by_the_caller_is_the_same_bytes_and_a_duplicate_a_success() {
    let broker = broker(|asked| match (asked.key, asked.turn) {
        (ProduceRequest::KEY, 0) => Some(Reply::Silence),
        (ProduceRequest::KEY, 1) => Some(answer(asked, 46)),
        _ => None,
    })
    .await;
    let mut sink = idempotent(&broker, SHORT).await;
    let outcome = append(&mut sink, &["one"]).await;
    assert!(is_unknown(&outcome), "{outcome:?}");
    append(&mut sink, &["one"]).await.unwrap();
    append(&mut sink, &["two"]).await.unwrap();
    assert_eq!(stamps(&broker), [(100, 0, 0), (100, 0, 0), (100, 0, 1)]);
    let sent = sent(&broker);
    assert_eq!(sent[0], sent[1]);
}

/// The leader may have written the first try before the rights were taken away.
#[tokio::test]
async fn a_refusal_after_a_lost_answer_leaves_the_outcome_unknown() {
    let broker = broker(|asked| match (asked.key, asked.turn) {
        (ProduceRequest::KEY, 0) => Some(Reply::HangUp),
        (ProduceRequest::KEY, 1) => Some(answer(asked, 29)),
        _ => None,
    })
    .await;
    let mut sink = idempotent(&broker, LONG).await;
    let outcome = append(&mut sink, &["one"]).await;
    assert!(is_unknown(&outcome), "{outcome:?}");
    append(&mut sink, &["one"]).await.unwrap();
    assert_eq!(stamps(&broker), [(100, 0, 0); 3]);
}

#[tokio::test]
async fn another_batch_never_takes_the_numbers_of_one_without_an_answer() {
    let broker = but(ProduceRequest::KEY, 0, |_| Reply::Silence).await;
    let mut sink = idempotent(&broker, SHORT).await;
    assert!(is_unknown(&append(&mut sink, &["one"]).await));
    append(&mut sink, &["another"]).await.unwrap();
    assert_eq!(stamps(&broker), [(100, 0, 0), (101, 1, 0)]);
}

/// 45 and 59, and 46 of a batch that was sent once: the leader confuses it with another, and would drop it.
#[tokio::test]
async fn a_forgotten_producer_goes_on_under_a_new_id() {
    for reply in [
        |asked| answer(asked, 45),
        |asked| answer(asked, 46),
        |asked| answer(asked, 59),
    ] {
        let broker = but(ProduceRequest::KEY, 1, reply).await;
        let mut sink = idempotent(&broker, LONG).await;
        for value in ["one", "two", "three"] {
            append(&mut sink, &[value]).await.unwrap();
        }
        let expected = [(100, 0, 0), (100, 0, 1), (101, 1, 0), (101, 1, 1)];
        assert_eq!(stamps(&broker), expected);
    }
}

/// Codes that the leader answers with before it writes are refusals; the others leave it open. Those that pass are asked again until the
/// deadline.
#[tokio::test]
async fn only_a_clear_no_is_a_refusal() {
    for code in [2, 17, 19, 29, 31, 32, 42, 48, 53, 87] {
        let broker = refusing(ProduceRequest::KEY, code).await;
        let outcome = append(&mut idempotent(&broker, SHORT).await, &["one"]).await;
        assert!(is_refused(&outcome), "{code}: {outcome:?}");
    }
    for code in [-1, 6, 7, 13, 20, 56, 999] {
        let broker = refusing(ProduceRequest::KEY, code).await;
        let outcome = append(&mut idempotent(&broker, SHORT).await, &["one"]).await;
        assert!(is_unknown(&outcome), "{code}: {outcome:?}");
    }
    for code in [10, 18] {
        let broker = refusing(ProduceRequest::KEY, code).await;
        let outcome = append(&mut idempotent(&broker, SHORT).await, &["one"]).await;
        assert!(
            matches!(&outcome, Err(StepError::Refused(KafkaError::TooLarge { partition })) if *partition == to()),
            "{code}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_about_something_else_is_none() {
    for indexes in [&[][..], &[1], &[0, 0]] {
        let broker = broker(move |asked| {
            let is_produce = asked.key == ProduceRequest::KEY;
            is_produce.then(|| produced_to(asked.version, 0, indexes))
        })
        .await;
        let outcome = append(&mut idempotent(&broker, LONG).await, &["one"]).await;
        assert!(
            matches!(
                &outcome,
                Err(StepError::OutcomeUnknown(KafkaError::Protocol { .. }))
            ),
            "{indexes:?}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn no_answer_is_waited_for_longer_than_the_request_timeout() {
    let broker = broker(|asked| (asked.key == ProduceRequest::KEY).then_some(Reply::Silence)).await;
    let mut sink = idempotent(&broker, SHORT).await;
    let started = tokio::time::Instant::now();
    let outcome = append(&mut sink, &["one"]).await;
    assert!(
        matches!(
            &outcome,
            Err(StepError::OutcomeUnknown(KafkaError::Timeout { .. }))
        ),
        "{outcome:?}"
    );
    assert!(started.elapsed() < 4 * SHORT);
    append(&mut sink, &["one"]).await.unwrap_err();
    let connections: Vec<_> = broker.asked::<ProduceRequest>();
    assert_ne!(
        connections[0].connection, connections[1].connection,
        "dialled anew"
    );
}

#[tokio::test]
async fn nothing_sent_is_a_refusal() {
    let broker = refusing(InitProducerIdRequest::KEY, 31).await;
    let outcome = append(&mut idempotent(&broker, LONG).await, &["one"]).await;
    assert!(is_refused(&outcome), "{outcome:?}");
    let address = broker.config();
    drop(broker);
    let sink = WireSink::idempotent(Cluster::new(&address));
    let mut sink = sink.take_over(&to()).await.unwrap();
    let outcome = append(&mut sink, &["one"]).await;
    assert!(is_refused(&outcome), "{outcome:?}");
}

fn three_batches() -> [Batch; 3] {
    [0, 1, 2].map(|partition| Batch {
        to: TopicPartition::new("orders", partition),
        ..batch(&["one"])
    })
}

/// The partitions of each append, in the order of the appends.
fn appended_to(broker: &FakeBroker) -> Vec<Vec<i32>> {
    let partitions = |request: &ProduceRequest| {
        let data = request.topic_data.iter().flat_map(|t| &t.partition_data);
        data.map(|data| data.index).collect()
    };
    let requests = broker.requests::<ProduceRequest>();
    requests.iter().map(partitions).collect()
}

/// A sink that knows the leaders of all three partitions.
async fn acquainted(broker: &FakeBroker, timeout: Duration) -> Box<dyn PartitionSink> {
    let cluster = cluster(broker, timeout);
    let deadline = cluster.deadline();
    let known = cluster.metadata(Some(&["orders"]), deadline).await;
    known.unwrap();
    let sink = WireSink::idempotent(cluster);
    sink.take_over(&TopicPartition::new("input", 3))
        .await
        .unwrap()
}

#[tokio::test]
async fn batches_for_one_leader_share_a_request_and_are_judged_one_by_one() {
    let broker = broker(|asked| {
        let is_first = asked.key == ProduceRequest::KEY && asked.turn == 0;
        // In another order than asked, too large the one in the middle.
        is_first.then(|| produced(asked.version, &[(2, 0), (1, 10), (0, 0)]))
    })
    .await;
    let mut sink = acquainted(&broker, LONG).await;
    let outcomes = sink.append(&three_batches()).await;
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
    assert!(
        matches!(&outcomes[1], Err(StepError::Refused(KafkaError::TooLarge { partition })) if partition.partition == 1),
        "{outcomes:?}"
    );
    assert_eq!(appended_to(&broker), [[0, 1, 2]]);
}

#[tokio::test]
async fn a_partition_that_fails_is_appended_again_alone() {
    let broker = broker(|asked| {
        if asked.key != ProduceRequest::KEY {
            return None;
        }
        Some(match asked.turn {
            0 => produced(asked.version, &[(0, 0), (1, 6), (2, 0)]),
            _ => produced(asked.version, &[(1, 46)]),
        })
    })
    .await;
    let outcomes = acquainted(&broker, LONG)
        .await
        .append(&three_batches())
        .await;
    // 46 after 6, which does not tell whether the batch was written: it was.
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(appended_to(&broker), [vec![0, 1, 2], vec![1]]);
}

/// Without the one answer none of the batches has a clear outcome, and each is sent again under the numbers that it had.
#[tokio::test]
async fn a_lost_answer_leaves_every_batch_of_the_request_in_doubt() {
    let broker = broker(|asked| {
        if asked.key != ProduceRequest::KEY {
            return None;
        }
        let request: ProduceRequest = asked.request();
        let index = request.topic_data[0].partition_data[0].index;
        Some(match asked.turn {
            // The second time on a new connection: the first may have been about one that lay idle.
            0 | 1 => Reply::HangUp,
            // 29 alone is a clear no; after the lost answer it is none.
            _ => produced(asked.version, &[(index, if index == 2 { 29 } else { 46 })]),
        })
    })
    .await;
    let outcomes = acquainted(&broker, LONG)
        .await
        .append(&three_batches())
        .await;
    assert!(outcomes[0].is_ok() && outcomes[1].is_ok(), "{outcomes:?}");
    assert!(is_unknown(&outcomes[2]), "{outcomes:?}");
    let mut appends = appended_to(&broker);
    let mut alone = appends.split_off(2);
    alone.sort();
    assert_eq!(appends, [[0, 1, 2], [0, 1, 2]]);
    assert_eq!(alone, [[0], [1], [2]]);
}

#[tokio::test]
async fn a_leader_that_hangs_is_looked_up_again_by_the_next_append() {
    let broker = but(ProduceRequest::KEY, 0, |_| Reply::Silence).await;
    let mut sink = acquainted(&broker, SHORT).await;
    let outcome = append(&mut sink, &["one"]).await;
    assert!(is_unknown(&outcome), "{outcome:?}");
    let before = broker.asked::<MetadataRequest>().len();
    append(&mut sink, &["one"]).await.unwrap();
    assert_eq!(broker.asked::<MetadataRequest>().len(), before + 1);
}

#[tokio::test]
async fn a_request_has_an_end() {
    let broker = broker(|asked| {
        if asked.key != ProduceRequest::KEY {
            return None;
        }
        let request: ProduceRequest = asked.request();
        let data = request.topic_data.iter().flat_map(|t| &t.partition_data);
        let entries: Vec<_> = data.map(|data| (data.index, 0)).collect();
        Some(produced(asked.version, &entries))
    })
    .await;
    let mut sink = acquainted(&broker, LONG).await;
    // What gzip cannot make smaller: two of these batches are more than a request takes.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take(600_000)
    .collect();
    let mut batches = three_batches();
    for batch in &mut batches[..2] {
        batch.records[0].value = Some(noise.clone().into());
    }
    let outcomes = sink.append(&batches).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let mut appends = appended_to(&broker);
    appends.sort();
    assert_eq!(appends, [vec![0, 2], vec![1]]);
}

#[tokio::test]
async fn two_batches_of_one_call_never_share_a_lane() {
    let broker = broker(|_| None).await;
    let mut sink = idempotent(&broker, LONG).await;
    let outcomes = sink.append(&[batch(&["one"]), batch(&["two"])]).await;
    assert!(
        outcomes[0].is_ok() && is_refused(&outcomes[1]),
        "{outcomes:?}"
    );
    assert!(is_refused(&append(&mut sink, &[]).await), "an empty batch");
    assert_eq!(stamps(&broker).len(), 1);
}

#[tokio::test]
async fn a_transaction_takes_its_steps_in_order_and_an_empty_one_none() {
    let broker = broker(|_| None).await;
    let mut sink = transactional(&broker, LONG).await.unwrap();
    assert!(
        is_refused(&append(&mut sink, &["early"]).await),
        "not begun"
    );
    for end in [End::Commit, End::Abort] {
        sink.begin().await.unwrap();
        assert!(is_refused(&sink.begin().await), "begun already");
        append(&mut sink, &["one", "two"]).await.unwrap();
        append(&mut sink, &["three"]).await.unwrap();
        sink.end(end).await.unwrap();
    }
    sink.begin().await.unwrap();
    sink.end(End::Commit).await.unwrap();
    sink.end(End::Abort).await.unwrap();

    let begun = &broker.requests::<InitProducerIdRequest>()[0];
    assert_eq!(
        begun.transactional_id.as_ref().unwrap().0.as_str(),
        TRANSACTIONAL_ID
    );
    assert_eq!(
        (begun.transaction_timeout_ms, begun.producer_id.0),
        (10_000, -1)
    );
    assert_eq!(broker.requests::<FindCoordinatorRequest>()[0].key_type, 1);
    assert_eq!(
        broker.requests::<AddPartitionsToTxnRequest>().len(),
        2,
        "once each"
    );
    let ends: Vec<_> = broker.requests::<EndTxnRequest>();
    let ends: Vec<_> = ends.iter().map(|request| request.committed).collect();
    assert_eq!(ends, [true, false]);
    let sequences: Vec<_> = stamps(&broker).iter().map(|stamp| stamp.2).collect();
    assert_eq!(
        sequences,
        [0, 2, 3, 5],
        "they go on from one transaction to the next"
    );
    for records in sent(&broker) {
        assert_eq!(records[21..23], 16_i16.to_be_bytes(), "transactional");
    }
    let produced = &broker.requests::<ProduceRequest>()[0];
    assert_eq!(
        produced.transactional_id.as_ref().unwrap().0.as_str(),
        TRANSACTIONAL_ID
    );
}

/// The coordinator writes the markers of the transaction before: it is the right one, and soon ready.
#[tokio::test]
async fn a_busy_coordinator_is_waited_for_and_not_looked_up_again() {
    let broker = broker(|asked| {
        let is_busy = asked.key != ProduceRequest::KEY && asked.turn < 3;
        is_busy.then(|| answer(asked, 51))
    })
    .await;
    let mut sink = transactional(&broker, LONG).await.unwrap();
    sink.begin().await.unwrap();
    append(&mut sink, &["one"]).await.unwrap();
    sink.end(End::Commit).await.unwrap();
    assert_eq!(broker.requests::<EndTxnRequest>().len(), 4);
    assert_eq!(broker.requests::<FindCoordinatorRequest>().len(), 1);
}

#[tokio::test]
async fn a_coordinator_that_moved_is_looked_up_again() {
    let broker = but(EndTxnRequest::KEY, 0, |asked| answer(asked, 16)).await;
    let mut sink = transactional(&broker, LONG).await.unwrap();
    sink.begin().await.unwrap();
    append(&mut sink, &["one"]).await.unwrap();
    sink.end(End::Commit).await.unwrap();
    assert_eq!(broker.requests::<FindCoordinatorRequest>().len(), 2);
}

#[tokio::test]
async fn codes_of_a_taken_partition_are_told_apart() {
    for key in [
        InitProducerIdRequest::KEY,
        AddPartitionsToTxnRequest::KEY,
        ProduceRequest::KEY,
        EndTxnRequest::KEY,
    ] {
        for (code, expected) in [
            (47, "Fenced"),
            (90, "Fenced"),
            (49, "Expired"),
            (45, "Expired"),
            (59, "Expired"),
            (53, "Refused"),
        ] {
            let broker = broker(move |asked| match (asked.key, asked.turn) {
                (asked_key, _) if asked_key == key => Some(answer(asked, code)),
                // Somebody else has the transactional id: the next epoch is not for us.
                (InitProducerIdRequest::KEY, 1..) => Some(answer(asked, 90)),
                _ => None,
            })
            .await;
            let outcome = async {
                let mut sink = transactional(&broker, LONG).await?;
                sink.begin().await?;
                append(&mut sink, &["one"]).await?;
                sink.end(End::Commit).await
            };
            let outcome = format!("{:?}", outcome.await.unwrap_err());
            assert!(outcome.starts_with(expected), "{key}, {code}: {outcome}");
        }
    }
}

/// The coordinator has ended the transaction and fenced its writer; it grants the next epoch, as nobody else has it.
#[tokio::test]
async fn a_writer_whose_transaction_timed_out_is_still_the_owner() {
    for (key, code) in [
        (AddPartitionsToTxnRequest::KEY, 90),
        (ProduceRequest::KEY, 47),
        (EndTxnRequest::KEY, 90),
    ] {
        let broker =
            broker(move |asked| ((asked.key, asked.turn) == (key, 0)).then(|| answer(asked, code)))
                .await;
        let mut sink = transactional(&broker, LONG).await.unwrap();
        sink.begin().await.unwrap();
        let ended = async {
            append(&mut sink, &["one"]).await?;
            sink.end(End::Commit).await
        };
        let outcome = ended.await;
        assert!(
            matches!(
                outcome,
                Err(StepError::Refused(KafkaError::TransactionTimedOut { .. }))
            ),
            "{key}: {outcome:?}"
        );
        sink.end(End::Abort).await.unwrap();
        sink.begin().await.unwrap();
        append(&mut sink, &["one"]).await.unwrap();
        sink.end(End::Commit).await.unwrap();
        let last = stamps(&broker).pop();
        assert_eq!(
            last,
            Some((101, 1, 0)),
            "{key}: the next epoch, from the first number"
        );
    }
}

#[tokio::test]
async fn a_producer_without_an_id_is_no_answer() {
    let broker = broker(|asked| {
        let response = InitProducerIdResponse::default().with_producer_id(ProducerId(-1));
        Some(Reply::to::<InitProducerIdRequest>(asked.version, &response))
    })
    .await;
    let error = transactional(&broker, LONG).await.err().unwrap();
    assert!(
        matches!(
            error,
            StepError::OutcomeUnknown(KafkaError::Protocol { .. })
        ),
        "{error:?}"
    );
}

/// 48: the coordinator has no such transaction. A commit of it did not happen now; an abort has nothing left to do.
#[tokio::test]
async fn a_transaction_that_is_gone_cannot_be_committed_and_is_aborted() {
    let broker = refusing(EndTxnRequest::KEY, 48).await;
    let mut sink = transactional(&broker, LONG).await.unwrap();
    sink.begin().await.unwrap();
    append(&mut sink, &["one"]).await.unwrap();
    let outcome = sink.end(End::Commit).await;
    assert!(is_refused(&outcome), "{outcome:?}");
    sink.end(End::Abort).await.unwrap();
    sink.begin().await.unwrap();
}

/// The lost append may still arrive: it must not count for the next transaction.
#[tokio::test]
async fn an_append_without_an_answer_costs_the_epoch() {
    let broker = but(ProduceRequest::KEY, 1, |_| Reply::Silence).await;
    let mut sink = transactional(&broker, SHORT).await.unwrap();
    sink.begin().await.unwrap();
    append(&mut sink, &["one"]).await.unwrap();
    assert!(is_unknown(&append(&mut sink, &["two"]).await));
    sink.end(End::Abort).await.unwrap();
    sink.begin().await.unwrap();
    append(&mut sink, &["three"]).await.unwrap();
    sink.end(End::Commit).await.unwrap();
    sink.begin().await.unwrap();
    assert_eq!(stamps(&broker), [(100, 0, 0), (100, 0, 1), (101, 1, 0)]);
    let ends = broker.requests::<EndTxnRequest>();
    let ends: Vec<_> = ends.iter().map(|request| request.committed).collect();
    assert_eq!(
        ends,
        [false, false, true],
        "nothing is open when it is raised"
    );
    let raised = broker.requests::<InitProducerIdRequest>();
    assert_eq!(raised.len(), 2, "once is enough");
    assert_eq!(
        (raised[1].producer_id.0, raised[1].producer_epoch),
        (100, 0),
        "it is ours"
    );
}

#[tokio::test]
async fn an_end_without_an_answer_costs_the_epoch_too() {
    for key in [EndTxnRequest::KEY, AddPartitionsToTxnRequest::KEY] {
        let broker = but(key, 0, |_| Reply::HangUp).await;
        let mut sink = transactional(&broker, LONG).await.unwrap();
        for _ in 0..2 {
            sink.begin().await.unwrap();
            append(&mut sink, &["one"]).await.unwrap();
            sink.end(End::Commit).await.unwrap();
        }
        assert_eq!(stamps(&broker), [(100, 0, 0), (101, 1, 0)], "{key}");
    }
}

#[tokio::test]
async fn who_lost_the_partition_meanwhile_learns_it_when_the_epoch_is_raised() {
    let broker = broker(|asked| match (asked.key, asked.turn) {
        (ProduceRequest::KEY, 0) => Some(Reply::Silence),
        (InitProducerIdRequest::KEY, 1..) => Some(answer(asked, 90)),
        _ => None,
    })
    .await;
    let mut sink = transactional(&broker, SHORT).await.unwrap();
    sink.begin().await.unwrap();
    assert!(is_unknown(&append(&mut sink, &["one"]).await));
    sink.end(End::Abort).await.unwrap();
    let outcome = sink.begin().await;
    assert!(matches!(outcome, Err(StepError::Fenced)), "{outcome:?}");
}

#[tokio::test]
async fn a_refused_append_costs_neither_epoch_nor_numbers() {
    let broker = but(ProduceRequest::KEY, 0, |asked| answer(asked, 87)).await;
    let mut sink = transactional(&broker, LONG).await.unwrap();
    sink.begin().await.unwrap();
    assert!(is_refused(&append(&mut sink, &["one"]).await));
    sink.end(End::Abort).await.unwrap();
    sink.begin().await.unwrap();
    append(&mut sink, &["two"]).await.unwrap();
    assert_eq!(stamps(&broker), [(100, 0, 0), (100, 0, 0)]);
}

#[tokio::test]
async fn an_end_without_an_answer_may_be_repeated() {
    let broker = but(EndTxnRequest::KEY, 0, |_| Reply::Silence).await;
    let mut sink = transactional(&broker, SHORT).await.unwrap();
    sink.begin().await.unwrap();
    append(&mut sink, &["one"]).await.unwrap();
    let outcome = sink.end(End::Commit).await;
    assert!(is_unknown(&outcome), "{outcome:?}");
    sink.end(End::Commit).await.unwrap();
    let ends = broker.requests::<EndTxnRequest>();
    assert_eq!(ends[0], ends[1], "the same epoch");
}
