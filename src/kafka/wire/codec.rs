//! The codecs of record batches, all in pure Rust: what others compressed is read, whatever they chose.
//!
//! Nothing is trusted: what a batch inflates to is bounded while it is inflated, never after.

use std::io::Read;

use bytes::{Buf, Bytes};
use flate2::read::MultiGzDecoder;
use lz4_flex::frame::FrameDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::batch::BatchError;

/// The most that one batch may inflate to. Gzip packs at most about 1000 to 1, so a batch of `max.message.bytes` 1 MiB could ask for
/// 1 GiB; real text packs 10 to 1.
pub(super) const INFLATED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What snappy-java writes in front of its blocks, and Kafka's Java client with it; librdkafka writes one bare block.
const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
/// Version and the oldest version that reads it, after the magic.
const XERIAL_VERSIONS_BYTES: usize = 8;

/// Inflates the records of a batch by the codec in its attributes.
pub(super) fn inflate(attributes: i16, body: &Bytes) -> Result<Bytes, BatchError> {
    match attributes & 7 {
        0 => Ok(body.clone()),
        1 => bounded("gzip", MultiGzDecoder::new(body.as_ref())),
        2 => snappy(body),
        3 => bounded("lz4", FrameDecoder::new(body.as_ref())),
        4 => zstd(body),
        _ => Err(BatchError::Codec("a codec unknown to Kafka 4")),
    }
}

/// Reads to the end, or to the bound.
fn bounded(codec: &'static str, reader: impl Read) -> Result<Bytes, BatchError> {
    let mut inflated = Vec::new();
    reader
        .take(INFLATED_BYTES_MAX as u64 + 1)
        .read_to_end(&mut inflated)
        .map_err(|error| BatchError::Inflate(codec, error.to_string()))?;
    if inflated.len() > INFLATED_BYTES_MAX {
        return Err(BatchError::TooLarge);
    }
    Ok(inflated.into())
}

/// One frame after the other, as the format allows.
fn zstd(body: &Bytes) -> Result<Bytes, BatchError> {
    let mut rest = body.as_ref();
    let mut inflated = Vec::new();
    while rest.has_remaining() {
        let frame = StreamingDecoder::new(&mut rest)
            .map_err(|error| BatchError::Inflate("zstd", error.to_string()))?;
        inflated.extend_from_slice(&bounded("zstd", frame)?);
        if inflated.len() > INFLATED_BYTES_MAX {
            return Err(BatchError::TooLarge);
        }
    }
    Ok(inflated.into())
}

fn snappy(body: &Bytes) -> Result<Bytes, BatchError> {
    let mut inflated = Vec::new();
    let Some(blocks) = body.strip_prefix(&XERIAL_MAGIC) else {
        snappy_block(body, &mut inflated)?;
        return Ok(inflated.into());
    };
    let cut = || BatchError::Inflate("snappy", "it ends in the middle of a block".to_owned());
    let mut blocks = blocks.get(XERIAL_VERSIONS_BYTES..).ok_or_else(cut)?;
    while blocks.has_remaining() {
        let length = blocks.try_get_u32().map_err(|_short| cut())?;
        let length = usize::try_from(length).map_err(|_large| cut())?;
        let (block, rest) = blocks.split_at_checked(length).ok_or_else(cut)?;
        snappy_block(block, &mut inflated)?;
        blocks = rest;
    }
    Ok(inflated.into())
}

/// A block says how long it is inflated: that is compared with the bound before anything is allocated.
fn snappy_block(block: &[u8], inflated: &mut Vec<u8>) -> Result<(), BatchError> {
    let broken = |error: snap::Error| BatchError::Inflate("snappy", error.to_string());
    let length = snap::raw::decompress_len(block).map_err(broken)?;
    if inflated.len().saturating_add(length) > INFLATED_BYTES_MAX {
        return Err(BatchError::TooLarge);
    }
    let block = snap::raw::Decoder::new()
        .decompress_vec(block)
        .map_err(broken)?;
    inflated.extend_from_slice(&block);
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// Compresses as others do; the attributes' bits of the codec, and the bytes.
    pub(in crate::kafka::wire) fn compressed(bytes: &[u8]) -> Vec<(i16, Bytes)> {
        let block = || snap::raw::Encoder::new().compress_vec(bytes).unwrap();
        let mut xerial = [&XERIAL_MAGIC[..], &[0, 0, 0, 1, 0, 0, 0, 1]].concat();
        xerial.extend_from_slice(&u32::try_from(block().len()).unwrap().to_be_bytes());
        xerial.extend_from_slice(&block());
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(bytes).unwrap();
        let zstd =
            ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
        vec![
            (2, block().into()),
            (2, xerial.into()),
            (3, lz4.finish().unwrap().into()),
            (4, zstd.into()),
        ]
    }

    #[test]
    fn every_codec_inflates_to_what_was_compressed() {
        let text = "the revenue of the quarter rose while costs fell; ".repeat(2_000);
        for (attributes, body) in compressed(text.as_bytes()) {
            assert!(body.len() < text.len() / 4);
            assert_eq!(
                inflate(attributes, &body).unwrap(),
                text.as_bytes(),
                "codec {attributes}"
            );
        }
    }

    #[test]
    fn several_frames_and_blocks_follow_each_other() {
        for (attributes, body) in compressed(b"one and the same") {
            let twice = match body.strip_prefix(&XERIAL_MAGIC) {
                Some(blocks) => [&body[..], &blocks[XERIAL_VERSIONS_BYTES..]].concat(),
                None if attributes == 4 => body.repeat(2),
                None => continue,
            };
            let inflated = inflate(attributes, &twice.into()).unwrap();
            assert_eq!(inflated, "one and the same".repeat(2), "codec {attributes}");
        }
    }

    #[test]
    fn bombs_are_refused_in_every_codec() {
        for (attributes, body) in compressed(&vec![0; INFLATED_BYTES_MAX + 1]) {
            assert_eq!(
                inflate(attributes, &body),
                Err(BatchError::TooLarge),
                "codec {attributes}"
            );
        }
    }

    #[test]
    fn a_block_that_promises_more_than_the_bound_allocates_nothing() {
        // A varint of 4 GiB, and no data.
        let body = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0]);
        assert_eq!(inflate(2, &body), Err(BatchError::TooLarge));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn cut_and_changed_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 1..400),
            at in any::<prop::sample::Index>(),
            to in any::<u8>(),
        ) {
            for (attributes, body) in compressed(&bytes) {
                let mut changed = body.to_vec();
                let index = at.index(changed.len());
                changed[index] = to;
                drop(inflate(attributes, &changed.into()));
                drop(inflate(attributes, &body.slice(..index)));
            }
        }

        #[test]
        fn rubbish_never_panics(attributes in 0i16..8, body in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(inflate(attributes, &body.into()));
        }
    }
}
