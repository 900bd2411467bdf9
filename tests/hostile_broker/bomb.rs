//! A batch that is small in the log and vast when it is inflated, as any producer may write one.

use std::io::{self, Read as _, Write as _};

use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;

/// A batch of one record whose value is so many zeros.
pub(crate) fn gzip(zeros: u64) -> Bytes {
    let mut fields = vec![0, 0, 0, 1];
    fields.extend(varint(zeros));
    let length = fields.len() as u64 + zeros + 1;
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&varint(length)).unwrap();
    packed.write_all(&fields).unwrap();
    io::copy(&mut io::repeat(0).take(zeros), &mut packed).unwrap();
    // No headers.
    packed.write_all(&[0]).unwrap();
    let packed = packed.finish().unwrap();

    let mut checked = BytesMut::new();
    checked.put_i16(1);
    checked.put_i32(0);
    checked.put_i64(1_700_000_000_000);
    checked.put_i64(1_700_000_000_000);
    checked.put_i64(-1);
    checked.put_i16(-1);
    checked.put_i32(-1);
    checked.put_i32(1);
    checked.put_slice(&packed);
    let mut batch = BytesMut::new();
    batch.put_i64(0);
    batch.put_i32(checked.len() as i32 + 9);
    batch.put_i32(0);
    batch.put_i8(2);
    batch.put_u32(crc32c::crc32c(&checked));
    batch.put(checked);
    batch.freeze()
}

/// As Kafka writes a length: zigzag, seven bits a byte.
fn varint(length: u64) -> Vec<u8> {
    let mut rest = length << 1;
    let mut bytes = Vec::new();
    while rest > 0x7f {
        bytes.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}
