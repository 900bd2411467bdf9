//! Reads answers with `kafka-protocol`'s decoders, which allocate what a count announces before they have seen one entry: four bytes that
//! announce 2³¹ topics ask for hundreds of gigabytes, and an allocation that fails ends the process.
//!
//! # Invariants
//! 1. No array is allocated for more entries than bytes have arrived behind its count: an entry takes a byte at least.
//! 2. What an honest broker sends is read as if this file were not there.
//!
//! In the flexible versions (KIP-482) every count and length is a varint, and nothing else that is ever large is: one look at it is
//! enough. In the older ones a count looks like any other number of 32 bits. There the answer is read twice: first with every number that
//! exceeds the bytes behind it cut down to just above them, which no array survives and no other field minds, and then as it is.

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::Decodable;
use kafka_protocol::protocol::buf::ByteBuf;

use super::api::Call;

/// What is wrong with an answer, in the words of the decoder.
pub(super) type Malformed = Box<dyn std::error::Error + Send + Sync>;

/// Reads an answer's body; what is behind it stays in `body`.
pub(super) fn decode<R: Call>(body: &mut Bytes, version: i16) -> Result<R::Response, Malformed> {
    // Since KIP-482 a flexible request has the second version of the header.
    if R::header_version(version) >= 2 {
        return read(body, version, Numbers::Varints).0;
    }
    let mut rehearsal = body.clone();
    match read(&mut rehearsal, version, Numbers::CutDown) {
        (Ok(_), true) => read(body, version, Numbers::AsTheyAre).0,
        (answer, _) => {
            *body = rehearsal;
            answer
        }
    }
}

/// The answer, and whether a number was cut down.
fn read<T: Decodable>(
    body: &mut Bytes,
    version: i16,
    numbers: Numbers,
) -> (Result<T, Malformed>, bool) {
    let mut guarded = Guarded {
        bytes: std::mem::take(body),
        numbers,
        has_cut: false,
    };
    let answer = T::decode(&mut guarded, version).map_err(Into::into);
    *body = guarded.bytes;
    (answer, guarded.has_cut)
}

/// What is done about numbers that may be counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    /// Varints that exceed what is behind them are errors.
    Varints,
    /// Numbers of 32 bits that exceed what is behind them are cut down.
    CutDown,
    AsTheyAre,
}

#[derive(Debug)]
struct Guarded {
    bytes: Bytes,
    numbers: Numbers,
    has_cut: bool,
}

impl Buf for Guarded {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    /// The decoders read varints byte by byte with this, and booleans. What is left of a varint after its first byte is smaller than the
    /// whole, so that it passes where the whole did.
    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        if self.numbers == Numbers::Varints {
            let (announced, length) = varint(&self.bytes);
            let available = self.bytes.len().saturating_sub(length);
            // Compact counts are one more than what they count.
            if announced.saturating_sub(1) > available {
                return Err(TryGetError {
                    requested: announced,
                    available,
                });
            }
        }
        self.bytes.try_get_u8()
    }

    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        let number = self.bytes.try_get_i32()?;
        let above = i32::try_from(self.bytes.len() + 1).unwrap_or(i32::MAX);
        if self.numbers == Numbers::CutDown && number > above {
            self.has_cut = true;
            return Ok(above);
        }
        Ok(number)
    }
}

impl ByteBuf for Guarded {
    fn peek_bytes(&mut self, range: std::ops::Range<usize>) -> Bytes {
        self.bytes.peek_bytes(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.bytes.get_bytes(size)
    }
}

/// The unsigned varint at the front, as far as it is there, and how many bytes it takes.
fn varint(bytes: &[u8]) -> (usize, usize) {
    let mut number = 0_usize;
    let mut length = 0;
    for (byte, shift) in bytes.iter().zip((0..35).step_by(7)) {
        number |= usize::from(byte & 0x7f) << shift;
        length += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (number, length)
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};
    use kafka_protocol::messages::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };
    use kafka_protocol::messages::{
        ApiVersionsRequest, BrokerId, CreateTopicsRequest, DescribeConfigsRequest, FetchRequest,
        FindCoordinatorRequest, ListOffsetsRequest, MetadataRequest, MetadataResponse,
        OffsetCommitRequest, OffsetFetchRequest,
    };
    use kafka_protocol::protocol::{Encodable, StrBytes};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_count_beyond_the_bytes_allocates_nothing() {
        // Without the guard either asks for some 300 GB, which ends the process.
        let mut old = BytesMut::new();
        old.put_i32(0);
        old.put_i32(i32::MAX);
        let error = decode::<MetadataRequest>(&mut old.freeze(), 4).unwrap_err();
        assert!(error.to_string().contains("bytes"), "{error}");
        let mut flexible = BytesMut::new();
        flexible.put_i32(0);
        flexible.put_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
        let error = decode::<MetadataRequest>(&mut flexible.freeze(), 12).unwrap_err();
        assert!(error.to_string().contains("4294967295"), "{error}");
    }

    /// Numbers that look like giant counts, close to the end, in every version that we speak.
    #[test]
    fn large_numbers_that_count_nothing_are_left_alone() {
        let broker = MetadataResponseBroker::default()
            .with_node_id(BrokerId(i32::MAX))
            .with_host(StrBytes::from_static_str("h"))
            .with_port(65_535);
        let partition = MetadataResponsePartition::default()
            .with_partition_index(i32::MAX - 1)
            .with_leader_id(BrokerId(i32::MAX))
            .with_replica_nodes(vec![BrokerId(i32::MAX), BrokerId(7)]);
        let topic = MetadataResponseTopic::default()
            .with_name(Some(super::super::cluster::topic_name("t")))
            .with_partitions(vec![partition]);
        let sent = MetadataResponse::default()
            .with_throttle_time_ms(i32::MAX)
            .with_brokers(vec![broker])
            .with_topics(vec![topic])
            .with_controller_id(BrokerId(i32::MAX));
        for version in MetadataRequest::OURS.min..=MetadataRequest::OURS.max {
            let mut body = BytesMut::new();
            sent.encode(&mut body, version).unwrap();
            body.put_slice(b"rest");
            let mut body = body.freeze();
            let read = decode::<MetadataRequest>(&mut body, version).unwrap();
            assert_eq!(read, sent, "version {version}");
            assert_eq!(&body[..], b"rest", "version {version}");
        }
    }

    fn try_all<R: Call>(bytes: &[u8]) {
        for version in R::OURS.min..=R::OURS.max {
            drop(decode::<R>(&mut Bytes::copy_from_slice(bytes), version));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Bytes as a foreign server may send them, large numbers among them.
        #[test]
        fn rubbish_neither_panics_nor_allocates(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 1..6),
                    Just(vec![0, 0, 0, 1]),
                    Just(vec![0, 0]),
                    Just(vec![0x7f, 0xff, 0xff, 0xff]),
                    Just(vec![0xff, 0xff, 0xff, 0xff, 0x0f]),
                ],
                0..40,
            ),
        ) {
            let bytes = parts.concat();
            try_all::<ApiVersionsRequest>(&bytes);
            try_all::<MetadataRequest>(&bytes);
            try_all::<CreateTopicsRequest>(&bytes);
            try_all::<DescribeConfigsRequest>(&bytes);
            try_all::<FetchRequest>(&bytes);
            try_all::<ListOffsetsRequest>(&bytes);
            try_all::<FindCoordinatorRequest>(&bytes);
            try_all::<OffsetCommitRequest>(&bytes);
            try_all::<OffsetFetchRequest>(&bytes);
        }
    }
}
