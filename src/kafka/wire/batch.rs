//! Record batches (format v2, magic 2, KIP-98): walking over them and reading their records. Pure, and it never trusts a length.
//!
//! `kafka-protocol` has a decoder of its own; this one exists because that one hides the last offset of a batch, keeps one header of
//! each name, inflates without bound, and allocates what a count says before it has seen the bytes.

use bytes::{Buf, Bytes};

use super::codec::{INFLATED_BYTES_MAX, inflate};
use crate::types::{Header, Offset, Record};

/// Base offset and length: what stands before the counted part of a batch.
const PREFIX_BYTES: usize = 12;
/// From the leader epoch to the record count, counted.
const HEADER_BYTES: usize = 49;
/// Where the magic byte stands, in every format.
const MAGIC_AT: usize = 16;
/// Where the part begins that the checksum covers.
const CHECKED_AT: usize = 21;
/// The smallest record: seven varints and bytes of one byte each.
const RECORD_BYTES_MIN: usize = 7;

/// Why a batch cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum BatchError {
    #[error("the batch is malformed: {0}")]
    Malformed(&'static str),
    #[error("the batch's checksum is {found:#010x}, {expected:#010x} is written in it")]
    Checksum { expected: u32, found: u32 },
    #[error("the batch is compressed with {0}")]
    Codec(&'static str),
    #[error("the batch is in the old message format {0}")]
    Format(i8),
    #[error("the batch inflates to more than {INFLATED_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the batch's {0} cannot be inflated: {1}")]
    Inflate(&'static str, String),
    #[error(
        "transactions that are still open, the oldest since offset {0}, hold back more than {1} bytes before it; `kafka-transactions.sh` finds and ends those that hang"
    )]
    Withheld(i64, usize),
}

/// A whole batch, its records not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    /// Offset of the first record that was written; compaction may have removed it.
    pub(super) base_offset: i64,
    /// Offset of the last record that was written; compaction keeps it.
    pub(super) last_offset: i64,
    /// Who wrote it; −1 without idempotence.
    pub(super) producer_id: i64,
    attributes: i16,
    base_timestamp: i64,
    max_timestamp: i64,
    record_count: i32,
    body: Bytes,
}

/// What ends a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    Abort,
    Commit,
    /// A control record that ends no transaction, or one that compaction has emptied.
    Other,
}

/// Takes the next whole batch off the front. `Ok(None)` at the end and where the rest is a cut-off batch, which brokers send to
/// fill `max_bytes`. An error carries the offset that the batch claims to begin at.
pub(super) fn take_batch(bytes: &mut Bytes) -> Result<Option<Batch>, (i64, BatchError)> {
    let mut prefix = bytes.clone();
    if prefix.remaining() < PREFIX_BYTES {
        return Ok(None);
    }
    let base_offset = prefix.get_i64();
    let announced = prefix.get_i32();
    let fail = |error| (base_offset, error);
    let length = usize::try_from(announced)
        .map_err(|_negative| fail(BatchError::Malformed("its length is negative")))?;
    if prefix.remaining() < length {
        return Ok(None);
    }
    match bytes.get(MAGIC_AT).map(|byte| byte.cast_signed()) {
        Some(2) if length >= HEADER_BYTES => {}
        Some(2) | None => return Err(fail(BatchError::Malformed("it is shorter than its header"))),
        Some(magic) => return Err(fail(BatchError::Format(magic))),
    }
    let whole = bytes.split_to(PREFIX_BYTES + length);
    parse(base_offset, whole).map(Some).map_err(fail)
}

fn parse(base_offset: i64, mut whole: Bytes) -> Result<Batch, BatchError> {
    whole.advance(CHECKED_AT - 4);
    let expected = whole.get_u32();
    let found = crc32c::crc32c(&whole);
    if expected != found {
        return Err(BatchError::Checksum { expected, found });
    }
    let attributes = whole.get_i16();
    let last_offset_delta = whole.get_i32();
    let base_timestamp = whole.get_i64();
    let max_timestamp = whole.get_i64();
    let producer_id = whole.get_i64();
    let _producer_epoch = whole.get_i16();
    let _base_sequence = whole.get_i32();
    let record_count = whole.get_i32();
    if base_offset < 0 || last_offset_delta < 0 || record_count < 0 {
        return Err(BatchError::Malformed("an offset or count is negative"));
    }
    let last_offset = base_offset
        .checked_add(i64::from(last_offset_delta))
        .filter(|last| *last < i64::MAX)
        .ok_or(BatchError::Malformed("its last offset is too large"))?;
    Ok(Batch {
        base_offset,
        last_offset,
        producer_id,
        attributes,
        base_timestamp,
        max_timestamp,
        record_count,
        body: whole,
    })
}

impl Batch {
    pub(super) const fn is_transactional(&self) -> bool {
        self.attributes & 16 != 0
    }

    pub(super) const fn is_control(&self) -> bool {
        self.attributes & 32 != 0
    }

    const fn has_log_append_time(&self) -> bool {
        self.attributes & 8 != 0
    }

    /// What the first control record says; only meaningful for control batches.
    pub(super) fn marker(&self) -> Result<Marker, BatchError> {
        let Some((_, record)) = self.records()?.into_iter().next() else {
            return Ok(Marker::Other);
        };
        let mut key = record
            .key
            .ok_or(BatchError::Malformed("a control record has no key"))?;
        let _version = key
            .try_get_i16()
            .map_err(|_short| BatchError::Malformed(CUT))?;
        Ok(
            match key
                .try_get_i16()
                .map_err(|_short| BatchError::Malformed(CUT))?
            {
                0 => Marker::Abort,
                1 => Marker::Commit,
                _ => Marker::Other,
            },
        )
    }

    /// Its records in their order. Keys and values are slices of the batch, inflated where it was compressed.
    pub(super) fn records(&self) -> Result<Vec<(Offset, Record)>, BatchError> {
        if self.record_count == 0 {
            return Ok(Vec::new());
        }
        let mut body = inflate(self.attributes, &self.body)?;
        let count = usize::try_from(self.record_count)
            .ok()
            .filter(|count| *count <= body.remaining() / RECORD_BYTES_MIN)
            .ok_or(BatchError::Malformed(
                "it is too short for its record count",
            ))?;
        let mut records = Vec::with_capacity(count);
        for _ in 0..count {
            records.push(self.record(&mut body)?);
        }
        if body.has_remaining() {
            return Err(BatchError::Malformed(
                "bytes are left over behind its records",
            ));
        }
        Ok(records)
    }

    fn record(&self, body: &mut Bytes) -> Result<(Offset, Record), BatchError> {
        let length = usize::try_from(varint(body)?)
            .map_err(|_negative| BatchError::Malformed("a record's length is negative"))?;
        let mut bytes = take(body, length)?;
        let _attributes = bytes
            .try_get_i8()
            .map_err(|_short| BatchError::Malformed(CUT))?;
        let timestamp_delta = varlong(&mut bytes)?;
        let offset = self
            .base_offset
            .checked_add(i64::from(varint(&mut bytes)?))
            .filter(|offset| (self.base_offset..=self.last_offset).contains(offset))
            .ok_or(BatchError::Malformed(
                "a record's offset is outside its batch",
            ))?;
        let timestamp_ms = if self.has_log_append_time() {
            self.max_timestamp
        } else {
            self.base_timestamp.saturating_add(timestamp_delta)
        };
        let key = nullable(&mut bytes)?;
        let value = nullable(&mut bytes)?;
        let header_count = varint(&mut bytes)?;
        let mut headers = Vec::new();
        for _ in 0..header_count {
            let name =
                nullable(&mut bytes)?.ok_or(BatchError::Malformed("a header has no name"))?;
            headers.push(Header {
                // Kafka's clients write UTF-8; a foreign byte in a name is no reason to lose the record.
                name: String::from_utf8_lossy(&name).into_owned(),
                value: nullable(&mut bytes)?,
            });
        }
        if header_count < 0 || bytes.has_remaining() {
            return Err(BatchError::Malformed(
                "a record's length does not fit its fields",
            ));
        }
        let record = Record {
            key,
            value,
            headers,
            timestamp_ms,
        };
        Ok((Offset::new(offset), record))
    }
}

const CUT: &str = "it ends in the middle of a record";

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, BatchError> {
    if bytes.remaining() < length {
        return Err(BatchError::Malformed(CUT));
    }
    Ok(bytes.split_to(length))
}

/// Bytes with their length in front; −1 is null.
fn nullable(bytes: &mut Bytes) -> Result<Option<Bytes>, BatchError> {
    match varint(bytes)? {
        -1 => Ok(None),
        length => usize::try_from(length)
            .map_err(|_negative| BatchError::Malformed("a field's length is negative"))
            .and_then(|length| take(bytes, length))
            .map(Some),
    }
}

fn varint(bytes: &mut Bytes) -> Result<i32, BatchError> {
    i32::try_from(varlong(bytes)?)
        .map_err(|_large| BatchError::Malformed("a 32-bit number has more bits"))
}

/// A zigzag number, seven bits a byte, lowest first.
fn varlong(bytes: &mut Bytes) -> Result<i64, BatchError> {
    let mut raw = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = bytes
            .try_get_u8()
            .map_err(|_short| BatchError::Malformed(CUT))?;
        raw |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed());
        }
    }
    Err(BatchError::Malformed("a number does not end"))
}

#[cfg(test)]
pub(super) mod tests;
