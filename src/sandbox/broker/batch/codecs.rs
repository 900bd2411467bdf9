//! The codecs that records may be compressed with, as they are read: all of them without C.

use std::io::Read;

use bytes::{Buf, Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use lz4_flex::frame::FrameDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::{BatchError, Codec};

/// Most bytes that one compressed batch may inflate to: the largest frame, a few times over.
const INFLATED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How xerial's snappy stream begins, which Java clients write: magic, and behind it two version numbers of four bytes.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;

/// The records as they were before they were compressed.
pub(super) fn inflate(codec: Codec, payload: &Bytes) -> Result<Bytes, BatchError> {
    match codec {
        Codec::None => Ok(payload.clone()),
        Codec::Gzip => read_all(MultiGzDecoder::new(payload.as_ref())),
        Codec::Lz4 => read_all(FrameDecoder::new(payload.as_ref())),
        Codec::Zstd => {
            let decoder = StreamingDecoder::new(payload.as_ref());
            read_all(decoder.map_err(|_| BatchError::Records)?)
        }
        Codec::Snappy => unsnap(payload.clone()),
        Codec::Unknown => Err(BatchError::Codec("an unknown codec")),
    }
}

fn read_all(reader: impl Read) -> Result<Bytes, BatchError> {
    let mut out = Vec::new();
    match reader.take(INFLATED_BYTES_MAX + 1).read_to_end(&mut out) {
        Ok(read) if u64::try_from(read).is_ok_and(|read| read <= INFLATED_BYTES_MAX) => {
            Ok(Bytes::from(out))
        }
        Ok(_) | Err(_) => Err(BatchError::Records),
    }
}

/// One block, or blocks behind their lengths in xerial's stream.
fn unsnap(mut payload: Bytes) -> Result<Bytes, BatchError> {
    let mut out = BytesMut::new();
    if !payload.starts_with(XERIAL_MAGIC) {
        unsnap_block(&payload, &mut out)?;
        return Ok(out.freeze());
    }
    if payload.len() < XERIAL_HEADER_BYTES {
        return Err(BatchError::Records);
    }
    payload.advance(XERIAL_HEADER_BYTES);
    while payload.has_remaining() {
        let length = payload.try_get_i32().map_err(|_| BatchError::Records)?;
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= payload.len())
            .ok_or(BatchError::Records)?;
        unsnap_block(&payload.split_to(length), &mut out)?;
    }
    Ok(out.freeze())
}

fn unsnap_block(block: &[u8], out: &mut BytesMut) -> Result<(), BatchError> {
    let length = snap::raw::decompress_len(block).map_err(|_| BatchError::Records)?;
    let total = u64::try_from(out.len().saturating_add(length)).unwrap_or(u64::MAX);
    if total > INFLATED_BYTES_MAX {
        return Err(BatchError::Records);
    }
    let inflated = snap::raw::Decoder::new().decompress_vec(block);
    out.extend_from_slice(&inflated.map_err(|_| BatchError::Records)?);
    Ok(())
}
