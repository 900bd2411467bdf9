use kafka_protocol::records::RecordBatchDecoder;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

fn record(key: Option<&'static str>, value: &'static str) -> Record {
    Record {
        key: key.map(Bytes::from),
        value: Some(Bytes::from(value)),
        headers: Vec::new(),
        timestamp_ms: 5,
    }
}

fn any_record() -> impl Strategy<Value = Record> {
    let bytes = || option::of(vec(any::<u8>(), 0..200).prop_map(Bytes::from));
    let header = ("[a-z]{0,4}", bytes()).prop_map(|(name, value)| Header { name, value });
    (bytes(), bytes(), vec(header, 0..4), 0..i64::MAX / 4).prop_map(
        |(key, value, headers, timestamp_ms)| Record {
            key,
            value,
            headers,
            timestamp_ms,
        },
    )
}

proptest! {
    /// Any records come back from their bytes, headers that share a name and nulls included.
    #[test]
    fn records_come_back_from_their_bytes(records in vec(any_record(), 1..20)) {
        let batch = Batch::of_records(&records);
        let mut bytes = batch.to_bytes();
        let read = Batch::split_from(&mut bytes).unwrap();
        prop_assert!(bytes.is_empty());
        prop_assert_eq!(read.verify_checksum(), Ok(()));
        let (offsets, read): (Vec<_>, Vec<_>) = read.records().unwrap().into_iter().unzip();
        let expected: Vec<_> = (0_i64..).take(records.len()).map(Offset::new).collect();
        prop_assert_eq!(offsets, expected);
        prop_assert_eq!(read, records);
    }

    /// Bytes of any kind are refused or read, and never end the process.
    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..200)) {
        let mut bytes = Bytes::from(bytes);
        if let Ok(batch) = Batch::split_from(&mut bytes) {
            prop_assert!(batch.records().is_err() || batch.header.count >= 0);
        }
    }

    /// One wrong byte behind the checksum is noticed.
    #[test]
    fn a_wrong_byte_is_noticed(at in 21_usize..70, flip in 1_u8..) {
        let mut bytes = BytesMut::from(&Batch::of_records(&[record(Some("k"), "v")]).to_bytes()[..]);
        prop_assume!(at < bytes.len());
        bytes[at] ^= flip;
        let batch = Batch::split_from(&mut bytes.freeze()).unwrap();
        let is_noticed = matches!(batch.verify_checksum(), Err(BatchError::Checksum { .. }));
        prop_assert!(is_noticed);
    }
}

/// The codec crate, which shares no code with ours, reads what we write.
#[test]
fn the_codec_crate_reads_our_batches() {
    let mut bytes = Batch::of_records(&[record(Some("a"), "1"), record(None, "2")]).to_bytes();
    let read = RecordBatchDecoder::decode(&mut bytes).unwrap().records;
    let values: Vec<_> = read.iter().map(|one| one.value.clone().unwrap()).collect();
    assert_eq!(values, ["1", "2"]);
    assert_eq!(read[1].offset, 1);
    assert_eq!(read[1].key, None);
}

#[test]
fn retained_records_keep_their_offsets_and_the_batch_its_range() {
    let records = [record(None, "0"), record(None, "1"), record(None, "2")];
    let mut batch = Batch::of_records(&records);
    batch.header.base_offset = 10;
    let rest = batch
        .retain(|offset, _| offset.value() == 11)
        .unwrap()
        .unwrap();
    assert_eq!(
        rest.records().unwrap(),
        [(Offset::new(11), records[1].clone())]
    );
    assert_eq!(
        (rest.header.base_offset, rest.header.last_offset()),
        (10, 12)
    );
    assert!(batch.retain(|_, _| false).unwrap().is_none());
}

#[test]
fn a_marker_is_a_transactional_control_batch_of_one_record() {
    let marker = Batch::marker(true, 7, 3, 5);
    assert!(marker.header.is_control() && marker.header.is_transactional());
    let records = marker.records().unwrap();
    assert_eq!(records[0].1.key.as_deref(), Some(&[0, 0, 0, 1][..]));
}

#[test]
fn shorter_lengths_and_other_formats_are_refused() {
    let bytes = Batch::of_records(&[record(None, "1")]).to_bytes();
    for cut in 0..bytes.len() {
        let refused = Batch::split_from(&mut bytes.slice(..cut));
        assert_eq!(refused.unwrap_err(), BatchError::Truncated, "cut at {cut}");
    }
    let mut old = BytesMut::from(&bytes[..]);
    old[16] = 1;
    assert_eq!(
        Batch::split_from(&mut old.freeze()).unwrap_err(),
        BatchError::Magic(1)
    );
}
