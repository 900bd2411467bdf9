//! What the crate's `fuzzing` hands to fuzzers.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_response::{AbortedTransaction, PartitionData};
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, ApiVersionsRequest, CreateTopicsRequest, DescribeConfigsRequest,
    DescribeGroupsRequest, EndTxnRequest, FetchRequest, FindCoordinatorRequest, HeartbeatRequest,
    InitProducerIdRequest, JoinGroupRequest, LeaveGroupRequest, ListOffsetsRequest,
    MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, ProduceRequest, ProducerId,
    SaslAuthenticateRequest, SaslHandshakeRequest, SyncGroupRequest,
};

use super::api::Call;
use super::batch::take_batch;
use super::connection;
use super::known::Known;
use super::membership::fuzzing as membership;
use super::reader::{Aborted, Isolation, Sieve, read_data};
use super::scan::Undecided;
use super::{guard, sasl, token};
use crate::kafka::{KafkaConfig, SaslMechanism};
use crate::types::{Offset, Secret, TopicPartition};

/// The batches of a fetch, one behind the other.
pub(crate) fn batches(bytes: &[u8]) {
    let mut bytes = Bytes::copy_from_slice(bytes);
    while let Ok(Some(batch)) = take_batch(&mut bytes) {
        drop(batch.records());
        drop(batch.marker());
    }
}

/// One batch from its attributes on: what stands before them is put right, so that the checksum keeps nothing away from what lies behind it.
pub(crate) fn batch_bodies(bytes: &[u8]) {
    batches(&batch(0, bytes));
}

fn batch(base_offset: i64, bytes: &[u8]) -> BytesMut {
    let mut batch = BytesMut::new();
    batch.put_i64(base_offset);
    // The leader epoch, the magic byte and the checksum.
    batch.put_i32(
        i32::try_from(bytes.len())
            .unwrap_or(i32::MAX)
            .saturating_add(9),
    );
    batch.put_i32(0);
    batch.put_i8(2);
    batch.put_u32(crc32c::crc32c(bytes));
    batch.put_slice(bytes);
    batch
}

/// A fetch as readers see it, with and without what is committed alone, and as the scan of the commit topic does. In front a byte each for
/// where it begins, the high watermark and how many transactions were aborted; then those, offset and producer in a byte each; then the
/// batches as [`batch_bodies`] has them, behind their distance from the one before in a byte and their length in two.
pub(crate) fn fetches(bytes: &[u8]) {
    let [from, high_watermark, aborted, rest @ ..] = bytes else {
        return;
    };
    let (aborted, mut rest) = rest
        .split_at_checked(usize::from(*aborted) * 2)
        .unwrap_or((&[], rest));
    let aborted = aborted.chunks_exact(2).map(|pair| match pair {
        [offset, producer] => AbortedTransaction::default()
            .with_first_offset(i64::from(*offset))
            .with_producer_id(ProducerId(i64::from(*producer))),
        _ => AbortedTransaction::default(),
    });
    let mut records = BytesMut::new();
    let mut base_offset = 0;
    while let [distance, high, low, behind @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let (body, behind) = behind.split_at_checked(length).unwrap_or((behind, &[]));
        base_offset += i64::from(distance.cast_signed());
        records.put(batch(base_offset, body));
        rest = behind;
    }
    let data = PartitionData::default()
        .with_high_watermark(i64::from(*high_watermark))
        .with_aborted_transactions(Some(aborted.collect()))
        .with_records(Some(records.freeze()));
    let from = Offset::new(i64::from(*from));
    for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
        fetched(from, &data, &mut Aborted::new(isolation, &data), from);
    }
    let mut undecided = Undecided::new(64 * 1024);
    fetched(from, &data, &mut undecided, from);
    // What was withheld may come with the next.
    fetched(from.next(), &data, &mut undecided, from);
}

fn fetched(from: Offset, data: &PartitionData, sieve: &mut impl Sieve, withheld_from: Offset) {
    let partition = TopicPartition::new("t", 0);
    let Ok(fetched) = read_data(&partition, from, data.clone(), sieve) else {
        return;
    };
    assert!(fetched.next_offset >= from, "it goes back");
    let end = Offset::new(data.high_watermark).max(from);
    assert!(fetched.next_offset <= end, "it goes beyond the end");
    for (offset, _) in &fetched.records {
        assert!((withheld_from..end).contains(offset), "{offset} is outside");
    }
}

/// An answer: the first byte says to which request, the second in which version.
pub(crate) fn answers(bytes: &[u8]) {
    let [api, version, body @ ..] = bytes else {
        return;
    };
    let read = ANSWERS.get(usize::from(*api) % ANSWERS.len());
    if let Some(read) = read {
        read(i16::from(*version), body);
    }
}

/// The same with its header, the correlation id 0 among it.
pub(crate) fn frames(bytes: &[u8]) {
    let [api, version, frame @ ..] = bytes else {
        return;
    };
    let read = FRAMES.get(usize::from(*api) % FRAMES.len());
    if let Some(read) = read {
        read(i16::from(*version), frame);
    }
}

/// What a broker says while a password is proved: the first byte is the mechanism, messages end with a zero byte, and `*` in one stands for
/// our nonce.
pub(crate) fn sasl_messages(bytes: &[u8]) {
    let [mechanism, said @ ..] = bytes else {
        return;
    };
    let config = KafkaConfig {
        sasl_mechanism: match mechanism % 3 {
            0 => SaslMechanism::ScramSha256,
            1 => SaslMechanism::ScramSha512,
            _ => SaslMechanism::Plain,
        },
        sasl_username: "u".to_owned(),
        ..KafkaConfig::default()
    };
    let Ok(mut session) = sasl::start(&config, &Secret::new("p")) else {
        return;
    };
    let Ok((first, _)) = sasl::say(&mut session, None) else {
        return;
    };
    let first = first.unwrap_or_default();
    let nonce = first.rsplit(|byte| *byte == b'=').next().unwrap_or(&[]);
    for said in said.split(|byte| *byte == 0) {
        let parts: Vec<_> = said.split(|byte| *byte == b'*').collect();
        let goes_on = sasl::say(&mut session, Some(&parts.join(nonce)));
        if !matches!(goes_on, Ok((_, false))) {
            return;
        }
    }
}

/// The answer of a server that gives tokens, and a token.
pub(crate) fn tokens(bytes: &[u8]) {
    token::fuzzing(bytes);
}

/// What members of a group tell each other through the coordinator.
pub(crate) fn members(bytes: &[u8]) {
    membership(bytes);
}

type ReadAnswer = fn(i16, &[u8]);

const ANSWERS: [ReadAnswer; 20] = [
    answer::<ApiVersionsRequest>,
    answer::<SaslHandshakeRequest>,
    answer::<SaslAuthenticateRequest>,
    answer::<MetadataRequest>,
    answer::<CreateTopicsRequest>,
    answer::<DescribeConfigsRequest>,
    answer::<FetchRequest>,
    answer::<ListOffsetsRequest>,
    answer::<FindCoordinatorRequest>,
    answer::<OffsetCommitRequest>,
    answer::<OffsetFetchRequest>,
    answer::<ProduceRequest>,
    answer::<InitProducerIdRequest>,
    answer::<AddPartitionsToTxnRequest>,
    answer::<EndTxnRequest>,
    answer::<JoinGroupRequest>,
    answer::<SyncGroupRequest>,
    answer::<HeartbeatRequest>,
    answer::<LeaveGroupRequest>,
    answer::<DescribeGroupsRequest>,
];

const FRAMES: [ReadAnswer; 5] = [
    frame::<ApiVersionsRequest>,
    frame::<FetchRequest>,
    frame::<ProduceRequest>,
    frame::<ListOffsetsRequest>,
    metadata,
];

/// One of ours.
fn version<R: Call>(version: i16) -> i16 {
    R::OURS.min + version % (R::OURS.max - R::OURS.min + 1)
}

fn answer<R: Call>(number: i16, body: &[u8]) {
    drop(guard::decode::<R>(
        &mut Bytes::copy_from_slice(body),
        version::<R>(number),
    ));
}

fn frame<R: Call>(number: i16, frame: &[u8]) {
    let frame = Bytes::copy_from_slice(frame);
    drop(connection::decode::<R>(frame, version::<R>(number), 0));
}

/// With what is learnt from it.
fn metadata(number: i16, frame: &[u8]) {
    let frame = Bytes::copy_from_slice(frame);
    let version = version::<MetadataRequest>(number);
    if let Ok(answer) = connection::decode::<MetadataRequest>(frame, version, 0) {
        let mut known = Known::default();
        known.learn(&answer);
        known.learn(&answer);
    }
}
