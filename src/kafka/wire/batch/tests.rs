//! Batches come from the encoder of `kafka-protocol`, so that a misreading of ours does not cancel out.

use bytes::BytesMut;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, Record as WireRecord, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::super::codec::tests::compressed;
use super::*;

const BASE: i64 = 1000;

/// A batch whose records lie at `BASE` plus each delta.
pub(in crate::kafka::wire) fn encode(
    records: &[(i64, Record)],
    compression: Compression,
    producer_id: i64,
    is_control: bool,
) -> Bytes {
    let records: Vec<_> = records
        .iter()
        .enumerate()
        .map(|(index, (offset, record))| {
            let headers: IndexMap<_, _> = record
                .headers
                .iter()
                .map(|header| {
                    let name = StrBytes::from_string(header.name.clone());
                    (name, header.value.clone())
                })
                .collect();
            WireRecord {
                transactional: producer_id >= 0,
                control: is_control,
                delete_horizon: false,
                partition_leader_epoch: 0,
                producer_id,
                producer_epoch: 0,
                timestamp_type: TimestampType::Creation,
                offset: *offset,
                sequence: i32::try_from(index).unwrap(),
                timestamp: record.timestamp_ms,
                key: record.key.clone(),
                value: record.value.clone(),
                headers,
            }
        })
        .collect();
    let options = RecordEncodeOptions {
        version: 2,
        compression,
    };
    let mut bytes = BytesMut::new();
    RecordBatchEncoder::encode(&mut bytes, &records, &options).unwrap();
    bytes.freeze()
}

/// Records that follow each other from `BASE` on.
pub(in crate::kafka::wire) fn consecutive(count: i64) -> Vec<(i64, Record)> {
    (0..count)
        .map(|index| {
            let record = Record {
                key: Some(format!("key-{index}").into()),
                value: Some(format!("value-{index}").into()),
                headers: vec![Header::new("name", "text")],
                timestamp_ms: 1_700_000_000_000 + index,
            };
            (BASE + index, record)
        })
        .collect()
}

/// Writes the checksum anew after a test has changed what it covers.
fn seal(bytes: &mut [u8]) {
    let checksum = crc32c::crc32c(&bytes[CHECKED_AT..]);
    bytes[CHECKED_AT - 4..CHECKED_AT].copy_from_slice(&checksum.to_be_bytes());
}

fn only(mut bytes: Bytes) -> Batch {
    let batch = take_batch(&mut bytes).unwrap().unwrap();
    assert!(bytes.is_empty(), "there is one batch");
    batch
}

#[test]
fn records_come_back_as_they_were_written() {
    for compression in [Compression::None, Compression::Gzip] {
        let batch = only(encode(&consecutive(20), compression, -1, false));
        assert_eq!((batch.base_offset, batch.last_offset), (BASE, BASE + 19));
        assert!(!batch.is_transactional() && !batch.is_control());
        let records: Vec<_> = batch
            .records()
            .unwrap()
            .into_iter()
            .map(|(offset, record)| (offset.value(), record))
            .collect();
        assert_eq!(records, consecutive(20));
    }
}

#[test]
fn a_cut_off_batch_ends_the_walk_and_is_left_alone() {
    let first = encode(&consecutive(3), Compression::None, -1, false);
    let second = encode(&consecutive(5), Compression::Gzip, -1, false);
    for cut in 0..second.len() {
        let mut bytes = BytesMut::from(&first[..]);
        bytes.extend_from_slice(&second[..cut]);
        let mut bytes = bytes.freeze();
        assert!(take_batch(&mut bytes).unwrap().is_some());
        assert_eq!(take_batch(&mut bytes), Ok(None), "cut at {cut}");
    }
}

#[test]
fn the_last_offset_survives_compaction() {
    let mut bytes = encode(&consecutive(1), Compression::None, -1, false).to_vec();
    bytes[23..27].copy_from_slice(&41_i32.to_be_bytes());
    seal(&mut bytes);
    let batch = only(bytes.into());
    assert_eq!(batch.last_offset, BASE + 41);
    assert_eq!(batch.records().unwrap().len(), 1);
}

#[test]
fn an_emptied_batch_has_a_last_offset_and_no_records() {
    let mut bytes = encode(&consecutive(1), Compression::None, 7, true)[..61].to_vec();
    bytes[8..12].copy_from_slice(&49_i32.to_be_bytes());
    bytes[23..27].copy_from_slice(&9_i32.to_be_bytes());
    bytes[57..61].copy_from_slice(&0_i32.to_be_bytes());
    seal(&mut bytes);
    let batch = only(bytes.into());
    assert_eq!(batch.last_offset, BASE + 9);
    assert_eq!(batch.records(), Ok(Vec::new()));
    assert_eq!(batch.marker(), Ok(Marker::Other));
}

#[test]
fn markers_are_told_apart() {
    for (kind, expected) in [
        (0_u8, Marker::Abort),
        (1, Marker::Commit),
        (2, Marker::Other),
    ] {
        let marker = Record {
            key: Some(vec![0, 0, 0, kind].into()),
            value: Some(Bytes::from_static(&[0; 6])),
            ..Record::default()
        };
        let batch = only(encode(&[(BASE, marker)], Compression::None, 7, true));
        assert!(batch.is_control());
        assert_eq!(batch.marker(), Ok(expected));
    }
}

#[test]
fn log_append_time_is_that_of_the_batch() {
    let mut bytes = encode(&consecutive(2), Compression::None, -1, false).to_vec();
    bytes[22] |= 8;
    bytes[35..43].copy_from_slice(&5_i64.to_be_bytes());
    seal(&mut bytes);
    let records = only(bytes.into()).records().unwrap();
    assert!(records.iter().all(|(_, record)| record.timestamp_ms == 5));
}

#[test]
fn one_header_may_come_twice() {
    // One record at delta 0: null key, value "v", two headers "h" with "1" and null.
    let record = [24, 0, 0, 0, 1, 2, b'v', 4, 2, b'h', 2, b'1', 2, b'h', 1_u8];
    let mut bytes = encode(&consecutive(1), Compression::None, -1, false)[..61].to_vec();
    let mut record = record.to_vec();
    record[0] = u8::try_from((record.len() - 1) * 2).unwrap();
    bytes.extend_from_slice(&record);
    let length = i32::try_from(bytes.len() - PREFIX_BYTES).unwrap();
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    seal(&mut bytes);
    let records = only(bytes.into()).records().unwrap();
    let headers = &records[0].1.headers;
    assert_eq!(headers[0], Header::new("h", "1"));
    assert_eq!((headers[1].name.as_str(), &headers[1].value), ("h", &None));
    assert_eq!(records[0].1.key, None);
}

#[test]
fn batches_of_every_codec_are_read() {
    let plain = encode(&consecutive(9), Compression::None, -1, false);
    let expected = only(plain.clone()).records().unwrap();
    for (bits, body) in compressed(&plain[61..]) {
        let mut bytes = [&plain[..61], &body].concat();
        bytes[22] |= u8::try_from(bits).unwrap();
        let length = i32::try_from(bytes.len() - PREFIX_BYTES).unwrap();
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        seal(&mut bytes);
        assert_eq!(
            only(bytes.into()).records().unwrap(),
            expected,
            "codec {bits}"
        );
    }
}

#[test]
fn a_codec_that_nobody_knows_is_named() {
    let mut bytes = encode(&consecutive(1), Compression::None, -1, false).to_vec();
    bytes[22] |= 5;
    seal(&mut bytes);
    let result = only(bytes.into()).records();
    assert!(matches!(result, Err(BatchError::Codec(_))), "{result:?}");
}

#[test]
fn a_changed_byte_fails_the_checksum_and_names_the_offset() {
    let mut bytes = encode(&consecutive(3), Compression::None, -1, false).to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let result = take_batch(&mut bytes.into());
    assert!(
        matches!(result, Err((BASE, BatchError::Checksum { .. }))),
        "{result:?}"
    );
}

#[test]
fn the_old_format_and_impossible_lengths_are_refused() {
    let whole = encode(&consecutive(3), Compression::None, -1, false);
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = whole.to_vec();
        bytes[at..at + to.len()].copy_from_slice(to);
        take_batch(&mut bytes.into())
    };
    assert_eq!(changed(16, &[1]), Err((BASE, BatchError::Format(1))));
    for length in [-1_i32, i32::MIN, 0, 48] {
        let result = changed(8, &length.to_be_bytes());
        assert!(
            matches!(result, Err((BASE, BatchError::Malformed(_)))),
            "{length}: {result:?}"
        );
    }
    assert_eq!(changed(8, &i32::MAX.to_be_bytes()), Ok(None), "cut off");
}

#[test]
fn a_record_count_beyond_the_bytes_allocates_nothing() {
    let mut bytes = encode(&consecutive(3), Compression::None, -1, false).to_vec();
    bytes[57..61].copy_from_slice(&i32::MAX.to_be_bytes());
    seal(&mut bytes);
    let result = only(bytes.into()).records();
    assert!(matches!(result, Err(BatchError::Malformed(_))));
}

#[test]
fn a_gzip_bomb_is_refused() {
    let zeros = Record {
        value: Some(vec![0; INFLATED_BYTES_MAX].into()),
        ..Record::default()
    };
    let bytes = encode(&[(BASE, zeros)], Compression::Gzip, -1, false);
    assert!(bytes.len() < INFLATED_BYTES_MAX / 500, "it packs well");
    assert_eq!(only(bytes).records(), Err(BatchError::TooLarge));
}

fn any_record() -> impl Strategy<Value = Record> {
    let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
    (bytes(), bytes(), bytes(), 0..i64::from(u32::MAX)).prop_map(
        |(key, value, header, timestamp_ms)| Record {
            key: key.map(Bytes::from),
            value: value.map(Bytes::from),
            headers: header
                .map(|value| Header::new("name", value))
                .into_iter()
                .collect(),
            timestamp_ms,
        },
    )
}

/// Failures are kept beside this file.
fn beside() -> ProptestConfig {
    let persistence = FileFailurePersistence::WithSource("regressions");
    ProptestConfig {
        failure_persistence: Some(Box::new(persistence)),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(beside())]

    #[test]
    fn any_records_round_trip(
        records in proptest::collection::vec(any_record(), 1..20),
        is_gzip in any::<bool>(),
    ) {
        let compression = if is_gzip { Compression::Gzip } else { Compression::None };
        let records: Vec<_> = (BASE..).zip(records).collect();
        let read = only(encode(&records, compression, -1, false)).records().unwrap();
        let read: Vec<_> = read.into_iter().map(|(offset, record)| (offset.value(), record)).collect();
        prop_assert_eq!(read, records);
    }

    /// Bytes that the checksum vouches for although they are wrong: nothing panics, and no record lies outside its batch.
    #[test]
    fn corrupted_and_cut_batches_never_panic(
        count in 1_i64..10,
        is_gzip in any::<bool>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        is_sealed in any::<bool>(),
    ) {
        let compression = if is_gzip { Compression::Gzip } else { Compression::None };
        let mut bytes = encode(&consecutive(count), compression, -1, false).to_vec();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        if is_sealed && bytes.len() > CHECKED_AT {
            let length = i32::try_from(bytes.len() - PREFIX_BYTES).unwrap();
            bytes[8..12].copy_from_slice(&length.to_be_bytes());
            seal(&mut bytes);
        }
        let mut bytes = Bytes::from(bytes);
        while let Ok(Some(batch)) = take_batch(&mut bytes) {
            prop_assert!(batch.base_offset >= 0 && batch.last_offset >= batch.base_offset);
            for (offset, _) in batch.records().unwrap_or_default() {
                prop_assert!((batch.base_offset..=batch.last_offset).contains(&offset.value()));
            }
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = Bytes::from(bytes);
        while let Ok(Some(batch)) = take_batch(&mut bytes) {
            let _marker_or_error = batch.marker();
        }
    }
}
