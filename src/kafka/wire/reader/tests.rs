//! Answers are put together from batches of the `kafka-protocol` encoder; offsets of a transaction's marker count like records.

use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::{ProducerId, TopicName};
use kafka_protocol::records::Compression;

use super::super::batch::tests::{consecutive, encode};
use super::*;

const PLAIN: i64 = -1;

/// Reads an answer at an isolation level.
fn read(from: i64, isolation: Isolation, data: PartitionData) -> Result<Fetched, KafkaError> {
    let mut aborted = Aborted::new(isolation, &data);
    read_data(&partition(), Offset::new(from), data, &mut aborted)
}

fn partition() -> TopicPartition {
    TopicPartition::new("orders", 0)
}

/// A batch of `count` records from `base` on.
pub(in crate::kafka::wire) fn batch(base: i64, count: i64, producer_id: i64) -> Vec<u8> {
    let records: Vec<_> = (base..)
        .zip(consecutive(count))
        .map(|(offset, (_, record))| (offset, record))
        .collect();
    encode(&records, Compression::None, producer_id, false).to_vec()
}

pub(in crate::kafka::wire) fn marker(offset: i64, producer_id: i64, is_commit: bool) -> Vec<u8> {
    let record = Record {
        key: Some(vec![0, 0, 0, u8::from(is_commit)].into()),
        value: Some(Bytes::from_static(&[0; 6])),
        ..Record::default()
    };
    encode(&[(offset, record)], Compression::None, producer_id, true).to_vec()
}

pub(in crate::kafka::wire) fn data(batches: &[Vec<u8>], aborted: &[(i64, i64)]) -> PartitionData {
    let aborted = aborted
        .iter()
        .map(|(producer_id, first_offset)| {
            AbortedTransaction::default()
                .with_producer_id(ProducerId(*producer_id))
                .with_first_offset(*first_offset)
        })
        .collect();
    PartitionData::default()
        .with_high_watermark(1000)
        .with_aborted_transactions(Some(aborted))
        .with_records(Some(batches.concat().into()))
}

/// The offsets that a reader sees, and where the next fetch begins.
fn seen(from: i64, data: PartitionData) -> (Vec<i64>, i64) {
    let fetched = read(from, Isolation::ReadCommitted, data).unwrap();
    let offsets = fetched.records.iter();
    (
        offsets.map(|(offset, _)| offset.value()).collect(),
        fetched.next_offset.value(),
    )
}

#[test]
fn records_below_the_asked_offset_are_left_out() {
    let answer = data(&[batch(0, 10, PLAIN)], &[]);
    assert_eq!(seen(7, answer), (vec![7, 8, 9], 10));
}

#[test]
fn batches_that_inflate_beyond_the_bound_are_left_for_the_next_fetch() {
    let batches: Vec<_> = (0..3)
        .map(|offset| {
            let zeros = Record {
                value: Some(vec![0; INFLATED_BYTES_MAX * 2 / 3].into()),
                ..Record::default()
            };
            encode(&[(offset, zeros)], Compression::Gzip, PLAIN, false).to_vec()
        })
        .collect();
    assert_eq!(seen(0, data(&batches, &[])), (vec![0, 1], 2));
    assert_eq!(seen(2, data(&batches, &[])), (vec![2], 3));
}

#[test]
fn a_batch_beyond_the_log_moves_nothing() {
    let far = || data(&[batch(0, 3, PLAIN), batch(998, 3, PLAIN)], &[]);
    assert_eq!(seen(0, far()), (vec![0, 1, 2], 3));
    assert_eq!(seen(998, far()), (vec![], 998), "the log may have grown");
}

#[test]
fn an_empty_answer_stays_where_it_was() {
    assert_eq!(seen(7, data(&[], &[])), (vec![], 7));
    assert_eq!(seen(7, data(&[], &[]).with_records(None)), (vec![], 7));
}

#[test]
fn markers_and_aborted_records_are_stepped_over() {
    // Producers 1 and 2 interleave; 1 aborts, 2 commits, then 1 commits another transaction.
    let batches = [
        batch(0, 2, 1),
        batch(2, 1, 2),
        batch(3, 1, 1),
        batch(4, 1, PLAIN),
        marker(5, 1, false),
        batch(6, 1, 1),
        marker(7, 2, true),
        marker(8, 1, true),
    ];
    assert_eq!(seen(0, data(&batches, &[(1, 0)])), (vec![2, 4, 6], 9));
    let answer = data(&batches, &[(1, 0)]);
    let fetched = read(0, Isolation::ReadUncommitted, answer);
    assert_eq!(fetched.unwrap().records.len(), 6, "uncommitted sees all");
}

#[test]
fn one_producer_may_abort_twice_in_one_answer() {
    let batches = [
        batch(0, 1, 1),
        marker(1, 1, false),
        batch(2, 1, 1),
        marker(3, 1, true),
        batch(4, 1, 1),
        marker(5, 1, false),
    ];
    let answer = data(&batches, &[(1, 4), (1, 0)]);
    assert_eq!(seen(0, answer), (vec![2], 6), "in any order of the list");
}

#[test]
fn a_transaction_that_began_before_the_answer_is_still_aborted() {
    let batches = [batch(10, 3, 1), marker(13, 1, false)];
    assert_eq!(seen(10, data(&batches, &[(1, 4)])), (vec![], 14));
}

#[test]
fn a_cut_off_last_batch_is_left_for_the_next_fetch() {
    let mut second = batch(5, 5, PLAIN);
    second.truncate(80);
    let answer = data(&[batch(0, 5, PLAIN), second], &[]);
    assert_eq!(seen(0, answer), (vec![0, 1, 2, 3, 4], 5));
}

#[test]
fn a_bad_batch_is_reported_at_its_offset_after_what_lies_before_it() {
    let mut bad = batch(5, 5, PLAIN);
    bad[70] ^= 1;
    let batches = [batch(0, 5, PLAIN), bad, batch(10, 5, PLAIN)];
    assert_eq!(seen(0, data(&batches, &[])), (vec![0, 1, 2, 3, 4], 5));
    let error = read(5, Isolation::ReadCommitted, data(&batches[1..], &[])).unwrap_err();
    assert!(
        matches!(&error, KafkaError::Unreadable { offset, detail, .. }
            if offset.value() == 5 && detail.contains("checksum")),
        "{error:?}"
    );
    assert_eq!(seen(10, data(&batches[2..], &[])).1, 15, "the rest is read");
}

#[test]
fn an_answer_that_leads_nowhere_is_an_error() {
    let mut cut = batch(0, 5, PLAIN);
    cut.truncate(80);
    for batches in [[cut], [batch(0, 5, PLAIN)]] {
        let result = read(5, Isolation::ReadCommitted, data(&batches, &[]));
        assert!(
            matches!(result, Err(KafkaError::Protocol { .. })),
            "{result:?}"
        );
    }
}

#[test]
fn an_answer_about_another_partition_is_refused() {
    let answer = |name: &'static str, partition| {
        let data = PartitionData::default().with_partition_index(partition);
        let topic = FetchableTopicResponse::default()
            .with_topic(topic_name(name))
            .with_partitions(vec![data]);
        FetchResponse::default().with_responses(vec![topic])
    };
    assert!(check_fetch(&partition(), answer("orders", 0)).is_ok());
    for wrong in [
        answer("orders", 1),
        answer("others", 0),
        FetchResponse::default(),
    ] {
        let result = check_fetch(&partition(), wrong);
        assert!(
            matches!(result, Err(KafkaError::Protocol { .. })),
            "{result:?}"
        );
    }
}

#[test]
fn a_timestamp_beyond_the_log_has_no_offset() {
    let answer = |code, offset| {
        let found = ListOffsetsPartitionResponse::default()
            .with_error_code(code)
            .with_offset(offset);
        let topic = ListOffsetsTopicResponse::default()
            .with_name(TopicName("orders".to_owned().into()))
            .with_partitions(vec![found]);
        ListOffsetsResponse::default().with_topics(vec![topic])
    };
    let offset = check_list(&partition(), answer(0, 3)).unwrap();
    assert_eq!(offset, Some(Offset::new(3)));
    assert_eq!(check_list(&partition(), answer(0, -1)).unwrap(), None);
    let error = check_list(&partition(), answer(6, -1)).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(error.to_string().contains("orders/0"), "{error}");
}

#[test]
fn negative_timestamps_are_not_taken_for_the_ends_of_the_log() {
    assert_eq!(OffsetAt::Timestamp(-2).timestamp(), 0);
    assert_eq!(OffsetAt::Earliest.timestamp(), -2);
    assert_eq!(OffsetAt::Latest.timestamp(), -1);
}
