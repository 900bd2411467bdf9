//! What the crate's `fuzzing` hands to fuzzers.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, ApiVersionsRequest, CreateTopicsRequest, DescribeConfigsRequest,
    EndTxnRequest, FetchRequest, FindCoordinatorRequest, HeartbeatRequest, InitProducerIdRequest,
    JoinGroupRequest, LeaveGroupRequest, ListOffsetsRequest, MetadataRequest, OffsetCommitRequest,
    OffsetFetchRequest, ProduceRequest, SaslAuthenticateRequest, SaslHandshakeRequest,
    SyncGroupRequest,
};

use super::api::Call;
use super::batch::take_batch;
use super::guard;
use super::membership::fuzzing as membership;

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
    let mut batch = BytesMut::new();
    batch.put_i64(0);
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
    batches(&batch);
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

/// What members of a group tell each other through the coordinator.
pub(crate) fn members(bytes: &[u8]) {
    membership(bytes);
}

type ReadAnswer = fn(i16, &[u8]);

const ANSWERS: [ReadAnswer; 19] = [
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
];

fn answer<R: Call>(version: i16, body: &[u8]) {
    let versions = R::OURS.max - R::OURS.min + 1;
    let version = R::OURS.min + version % versions;
    drop(guard::decode::<R>(
        &mut Bytes::copy_from_slice(body),
        version,
    ));
}
