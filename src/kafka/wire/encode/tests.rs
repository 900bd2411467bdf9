use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use super::super::batch::take_batch;
use super::*;

const STAMP: Stamp = Stamp {
    producer_id: 4_711,
    producer_epoch: 3,
    base_sequence: 42,
    is_transactional: false,
};

fn read_back(mut bytes: Bytes) -> Vec<Record> {
    let batch = take_batch(&mut bytes).unwrap().unwrap();
    assert!(bytes.is_empty(), "one batch and nothing else");
    let records = batch.records().unwrap();
    let last = i64::try_from(records.len()).unwrap() - 1;
    assert_eq!((batch.base_offset, batch.last_offset), (0, last));
    for (index, (offset, _)) in (0_i64..).zip(&records) {
        assert_eq!(offset.value(), index);
    }
    records.into_iter().map(|(_, record)| record).collect()
}

fn record(headers: Vec<Header>) -> Record {
    Record {
        key: Some("key".into()),
        value: None,
        headers,
        timestamp_ms: 1_767_323_045_000,
    }
}

#[test]
fn headers_repeat_names_and_hold_nulls() {
    let null = Header {
        name: "name".to_owned(),
        value: None,
    };
    let records = [record(vec![
        Header::new("name", "one"),
        null,
        Header::new("name", "two"),
    ])];
    assert_eq!(read_back(packed(&records, STAMP)), records);
}

/// The offsets are those of KIP-98; `kafka-protocol` reads the same fields.
#[test]
fn a_batch_bears_its_stamp() {
    let stamp = Stamp {
        is_transactional: true,
        ..STAMP
    };
    let small = packed(&[record(Vec::new()), record(Vec::new())], stamp);
    assert_eq!(small[21..23], 16_i16.to_be_bytes(), "transactional");
    let mut large = record(Vec::new());
    large.value = Some(vec![7; PACKED_FROM_BYTES].into());
    let bytes = packed(&[large, record(Vec::new())], stamp);
    assert_eq!(bytes[21..23], 17_i16.to_be_bytes(), "gzip, transactional");
    assert_eq!(bytes[43..51], 4_711_i64.to_be_bytes());
    assert_eq!(bytes[51..53], 3_i16.to_be_bytes());
    assert_eq!(bytes[53..57], 42_i32.to_be_bytes());
    let plain = packed(&[record(Vec::new())], STAMP);
    assert_eq!(plain[21..23], 0_i16.to_be_bytes(), "neither");
    let foreign = kafka_protocol::records::RecordBatchDecoder::decode(&mut bytes.clone()).unwrap();
    let sequences: Vec<_> = foreign
        .records
        .iter()
        .map(|record| record.sequence)
        .collect();
    assert_eq!(sequences, [42, 43]);
    assert!(foreign.records.iter().all(|record| {
        record.transactional && record.producer_id == 4_711 && record.producer_epoch == 3
    }));
}

#[test]
fn sequences_begin_anew_after_the_largest() {
    assert_eq!(sequence_after(0, 3), 3);
    assert_eq!(sequence_after(i32::MAX - 1, 1), i32::MAX);
    assert_eq!(sequence_after(i32::MAX, 1), 0);
    assert_eq!(sequence_after(i32::MAX - 1, 5), 3);
}

#[test]
fn repetitive_text_is_packed() {
    let text = "the revenue of the quarter rose while costs fell; ".repeat(100);
    let record = Record {
        value: Some(text.clone().into()),
        ..Record::default()
    };
    let records = vec![record; 10];
    assert!(packed(&records, STAMP).len() < text.len());
    let plain = encode_batch(&records, STAMP, Compression::None).unwrap();
    assert!(plain.len() > 10 * text.len());
    assert_eq!(plain[21..23], 0_i16.to_be_bytes(), "no codec");
    assert_eq!(read_back(plain), records);
}

fn packed(records: &[Record], stamp: Stamp) -> Bytes {
    encode_batch(records, stamp, Compression::Gzip).unwrap()
}

fn field() -> impl Strategy<Value = Option<Bytes>> {
    prop::option::of(prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from))
}

prop_compose! {
    fn any_record()(
        key in field(),
        value in field(),
        names in prop::collection::vec(("[a-c]{0,2}", field()), 0..4),
        timestamp_ms in -1_i64..4_000_000_000_000,
    ) -> Record {
        let headers = names
            .into_iter()
            .map(|(name, value)| Header { name, value })
            .collect();
        Record { key, value, headers, timestamp_ms }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn records_come_back_as_they_were_written(records in prop::collection::vec(any_record(), 1..20)) {
        let bytes = packed(&records, STAMP);
        prop_assert_eq!(packed(&records, STAMP), bytes.clone());
        prop_assert_eq!(read_back(bytes), records);
    }

    #[test]
    fn numbers_of_any_size_come_back(number in any::<i64>()) {
        let mut bytes = Vec::new();
        put_varlong(&mut bytes, number);
        let mut bytes = Bytes::from(bytes);
        prop_assert_eq!(super::super::batch::varlong(&mut bytes).unwrap(), number);
        prop_assert!(bytes.is_empty());
    }
}
