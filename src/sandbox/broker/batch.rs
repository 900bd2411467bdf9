//! Record batches of magic 2 as bytes: header, records, and the few fields that a broker rewrites.
//!
//! Written apart from the codec crate's own batch code, which merges header names that occur twice and splits a batch where its
//! offsets have gaps.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::{Header, Offset, Record};

mod codecs;

/// Bytes before the records: base offset 8, length 4, leader epoch 4, magic 1, CRC 4, attributes 2, last offset delta 4, two
/// timestamps of 8, producer id 8, producer epoch 2, base sequence 4, record count 4.
pub(super) const HEADER_BYTES: usize = 61;
/// Base offset and length, which the length does not count.
const LENGTH_OVERHEAD: usize = 12;

const COMPRESSION_MASK: i16 = 0b111;
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// Why bytes are not a batch, or not one that can be read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BatchError {
    #[error("the batch ends before its length says")]
    Truncated,
    #[error("the batch has magic {0}; only magic 2 is accepted")]
    Magic(i8),
    #[error("the batch's checksum is {stored:#x} and its bytes have {computed:#x}")]
    Checksum { stored: u32, computed: u32 },
    #[error("the batch is compressed with {0}, which the sandbox cannot read")]
    Codec(&'static str),
    #[error("the records of the batch are malformed")]
    Records,
}

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
    Unknown,
}

/// The header of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub base_offset: i64,
    pub leader_epoch: i32,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp: i64,
    pub max_timestamp: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub count: i32,
}

impl BatchHeader {
    /// A header as a producer without id writes it.
    fn plain() -> Self {
        Self {
            base_offset: 0,
            leader_epoch: -1,
            crc: 0,
            attributes: 0,
            last_offset_delta: 0,
            base_timestamp: -1,
            max_timestamp: -1,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            count: 0,
        }
    }

    pub(super) fn codec(&self) -> Codec {
        match self.attributes & COMPRESSION_MASK {
            0 => Codec::None,
            1 => Codec::Gzip,
            2 => Codec::Snappy,
            3 => Codec::Lz4,
            4 => Codec::Zstd,
            _ => Codec::Unknown,
        }
    }

    pub(super) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    pub(super) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    pub(super) fn has_log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// Stamps every record with the time of the append, as `message.timestamp.type=LogAppendTime` does.
    pub(super) fn set_log_append_time(&mut self, now_ms: i64) {
        self.attributes |= LOG_APPEND_TIME;
        self.max_timestamp = now_ms;
    }

    /// Takes the records' own times, and says which is the largest.
    pub(super) fn set_create_time(&mut self, max_timestamp: i64) {
        self.attributes &= !LOG_APPEND_TIME;
        self.max_timestamp = max_timestamp;
    }

    /// Offset of the last record, or of where it was before compaction.
    pub(super) fn last_offset(&self) -> i64 {
        self.base_offset
            .saturating_add(i64::from(self.last_offset_delta))
    }
}

/// A batch as it lies in the log: parsed header beside the bytes of its records.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub header: BatchHeader,
    /// The records, compressed or not.
    pub payload: Bytes,
    /// Whether the checksum was right when it was parsed.
    checksum: Result<(), BatchError>,
}

impl Batch {
    /// Takes one batch off the front of `bytes`.
    pub(super) fn split_from(bytes: &mut Bytes) -> Result<Self, BatchError> {
        let mut head = bytes.clone();
        let short = |_: bytes::TryGetError| BatchError::Truncated;
        let base_offset = head.try_get_i64().map_err(short)?;
        let length = head.try_get_i32().map_err(short)?;
        let leader_epoch = head.try_get_i32().map_err(short)?;
        let magic = head.try_get_i8().map_err(short)?;
        if magic != 2 {
            return Err(BatchError::Magic(magic));
        }
        let total = usize::try_from(length).ok().ok_or(BatchError::Truncated)? + LENGTH_OVERHEAD;
        if total < HEADER_BYTES || bytes.len() < total {
            return Err(BatchError::Truncated);
        }
        let mut head = bytes.split_to(total);
        // Up to the checksum: base offset, length, leader epoch, magic.
        head.advance(17);
        let crc = head.get_u32();
        let computed = crc32c::crc32c(&head);
        let header = BatchHeader {
            base_offset,
            leader_epoch,
            crc,
            attributes: head.get_i16(),
            last_offset_delta: head.get_i32(),
            base_timestamp: head.get_i64(),
            max_timestamp: head.get_i64(),
            producer_id: head.get_i64(),
            producer_epoch: head.get_i16(),
            base_sequence: head.get_i32(),
            count: head.get_i32(),
        };
        let checksum = if crc == computed {
            Ok(())
        } else {
            Err(BatchError::Checksum {
                stored: crc,
                computed,
            })
        };
        Ok(Self {
            header,
            payload: head,
            checksum,
        })
    }

    /// Writes records as one uncompressed batch with base offset 0.
    pub(super) fn of_records(records: &[Record]) -> Self {
        let base_timestamp = records.first().map_or(-1, |record| record.timestamp_ms);
        let placed = records.iter().zip(0_i64..);
        let payload = encode_records(
            placed.map(|(record, delta)| (delta, record)),
            base_timestamp,
        );
        let count = i32::try_from(records.len()).unwrap_or(i32::MAX);
        let max_timestamp = records.iter().map(|record| record.timestamp_ms).max();
        Self {
            header: BatchHeader {
                last_offset_delta: count.saturating_sub(1),
                base_timestamp,
                max_timestamp: max_timestamp.unwrap_or(-1),
                count,
                ..BatchHeader::plain()
            },
            payload,
            checksum: Ok(()),
        }
    }

    /// A transaction marker, as a coordinator writes it: one control record, version 0 and type 0 (abort) or 1 (commit).
    pub(super) fn marker(commit: bool, producer_id: i64, producer_epoch: i16, now_ms: i64) -> Self {
        let mut key = BytesMut::new();
        key.put_i16(0);
        key.put_i16(i16::from(commit));
        let mut value = BytesMut::new();
        value.put_i16(0);
        value.put_i32(0);
        let mut batch = Self::of_records(&[Record {
            key: Some(key.freeze()),
            value: Some(value.freeze()),
            headers: Vec::new(),
            timestamp_ms: now_ms,
        }]);
        batch.header.attributes |= TRANSACTIONAL | CONTROL;
        batch.header.producer_id = producer_id;
        batch.header.producer_epoch = producer_epoch;
        batch
    }

    /// What a transaction marker says: commit or abort. `None` for everything that is not one.
    pub(super) fn marker_commits(&self) -> Option<bool> {
        if !self.header.is_control() {
            return None;
        }
        let records = self.records().ok()?;
        let (_, marker) = records.first()?;
        let mut key = marker.key.clone()?;
        let _version = key.try_get_i16().ok()?;
        match key.try_get_i16().ok()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub(super) fn verify_checksum(&self) -> Result<(), BatchError> {
        self.checksum.clone()
    }

    /// Bytes that the batch takes in the log.
    pub(super) fn size(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// Appends the bytes of the batch, with a fresh checksum.
    pub(super) fn write_to(&self, out: &mut BytesMut) {
        let mut covered = BytesMut::with_capacity(self.size());
        covered.put_i16(self.header.attributes);
        covered.put_i32(self.header.last_offset_delta);
        covered.put_i64(self.header.base_timestamp);
        covered.put_i64(self.header.max_timestamp);
        covered.put_i64(self.header.producer_id);
        covered.put_i16(self.header.producer_epoch);
        covered.put_i32(self.header.base_sequence);
        covered.put_i32(self.header.count);
        covered.put_slice(&self.payload);
        out.put_i64(self.header.base_offset);
        let length = self.size() - LENGTH_OVERHEAD;
        out.put_i32(i32::try_from(length).unwrap_or(i32::MAX));
        out.put_i32(self.header.leader_epoch);
        out.put_i8(2);
        out.put_u32(crc32c::crc32c(&covered));
        out.put_slice(&covered);
    }

    /// The batch as bytes.
    pub(super) fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.size());
        self.write_to(&mut out);
        out.freeze()
    }

    /// The records with their offsets. A control batch has one, the marker.
    pub(super) fn records(&self) -> Result<Vec<(Offset, Record)>, BatchError> {
        let payload = codecs::inflate(self.header.codec(), &self.payload)?;
        decode_records(&self.header, payload)
    }

    /// The same batch with only the records that `keep` wants: offsets stay, base offset and last offset stay, as compaction leaves
    /// them. `None` when no record is left.
    pub(super) fn retain(
        &self,
        mut keep: impl FnMut(Offset, &Record) -> bool,
    ) -> Result<Option<Self>, BatchError> {
        let mut records = self.records()?;
        let before = records.len();
        records.retain(|(offset, record)| keep(*offset, record));
        if records.len() == before {
            return Ok(Some(self.clone()));
        }
        if records.is_empty() {
            return Ok(None);
        }
        let base = self.header.base_offset;
        let placed = records
            .iter()
            .map(|(offset, record)| (offset.value().saturating_sub(base), record));
        let mut header = self.header.clone();
        header.attributes &= !COMPRESSION_MASK;
        header.count = i32::try_from(records.len()).unwrap_or(i32::MAX);
        let payload = encode_records(placed, header.base_timestamp);
        Ok(Some(Self {
            header,
            payload,
            checksum: Ok(()),
        }))
    }
}

fn decode_records(
    header: &BatchHeader,
    mut payload: Bytes,
) -> Result<Vec<(Offset, Record)>, BatchError> {
    let count = usize::try_from(header.count)
        .ok()
        .ok_or(BatchError::Records)?;
    // A record has at least seven bytes, so the count cannot make the list larger than the payload.
    let mut records = Vec::with_capacity(count.min(payload.len() / 7 + 1));
    for _ in 0..count {
        records.push(decode_record(header, &mut payload).ok_or(BatchError::Records)?);
    }
    if payload.is_empty() {
        Ok(records)
    } else {
        Err(BatchError::Records)
    }
}

fn decode_record(header: &BatchHeader, payload: &mut Bytes) -> Option<(Offset, Record)> {
    let length = usize::try_from(get_varint(payload)?).ok()?;
    if payload.len() < length {
        return None;
    }
    let mut body = payload.split_to(length);
    let _attributes = body.try_get_i8().ok()?;
    let timestamp_delta = get_varint(&mut body)?;
    let offset_delta = i32::try_from(get_varint(&mut body)?).ok()?;
    let key = get_bytes(&mut body)?;
    let value = get_bytes(&mut body)?;
    let header_count = usize::try_from(get_varint(&mut body)?).ok()?;
    let mut headers = Vec::with_capacity(header_count.min(body.len() / 2 + 1));
    for _ in 0..header_count {
        let name = get_bytes(&mut body)??;
        let name = String::from_utf8(name.to_vec()).ok()?;
        let value = get_bytes(&mut body)?;
        headers.push(Header { name, value });
    }
    if !body.is_empty() {
        return None;
    }
    let timestamp_ms = if header.has_log_append_time() {
        header.max_timestamp
    } else {
        header.base_timestamp.checked_add(timestamp_delta)?
    };
    let offset = header.base_offset.checked_add(i64::from(offset_delta))?;
    let record = Record {
        key,
        value,
        headers,
        timestamp_ms,
    };
    Some((Offset::new(offset), record))
}

fn encode_records<'a>(
    records: impl Iterator<Item = (i64, &'a Record)>,
    base_timestamp: i64,
) -> Bytes {
    let mut out = BytesMut::new();
    for (offset_delta, record) in records {
        let mut body = BytesMut::with_capacity(record.size() + 32);
        body.put_i8(0);
        put_varint(
            &mut body,
            record.timestamp_ms.saturating_sub(base_timestamp),
        );
        put_varint(&mut body, offset_delta);
        put_bytes(&mut body, record.key.as_deref());
        put_bytes(&mut body, record.value.as_deref());
        put_length(&mut body, record.headers.len());
        for header in &record.headers {
            put_bytes(&mut body, Some(header.name.as_bytes()));
            put_bytes(&mut body, header.value.as_deref());
        }
        put_length(&mut out, body.len());
        out.put_slice(&body);
    }
    out.freeze()
}

fn put_length(out: &mut BytesMut, length: usize) {
    put_varint(out, i64::try_from(length).unwrap_or(i64::MAX));
}

fn put_bytes(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            put_length(out, bytes.len());
            out.put_slice(bytes);
        }
        None => put_varint(out, -1),
    }
}

/// A zig-zag variable-length number; 32-bit and 64-bit ones have the same bytes.
fn put_varint(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    loop {
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            out.put_u8(low & 0x7f);
            return;
        }
        out.put_u8(low | 0x80);
    }
}

fn get_varint(from: &mut Bytes) -> Option<i64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = from.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    None
}

/// Bytes after their length; the inner `None` is Kafka's null.
fn get_bytes(from: &mut Bytes) -> Option<Option<Bytes>> {
    match get_varint(from)? {
        -1 => Some(None),
        length => {
            let length = usize::try_from(length).ok()?;
            (from.len() >= length).then(|| Some(from.split_to(length)))
        }
    }
}

#[cfg(test)]
mod tests;
