use std::io::Write;

use super::*;

const NOW: i64 = 1_700_000_000_000;

fn config(set: &[(&str, &str)]) -> TopicConfig {
    let mut config = TopicConfig::new(1_048_588);
    for (name, value) in set {
        config.set(name, Some(value)).unwrap();
    }
    config
}

fn record(key: Option<&'static str>, timestamp_ms: i64) -> Record {
    Record {
        key: key.map(Bytes::from),
        value: Some(Bytes::from("v")),
        headers: Vec::new(),
        timestamp_ms,
    }
}

fn checked(records: &[Record], set: &[(&str, &str)]) -> Result<Batch, BatchRefusal> {
    check(Batch::of_records(records).to_bytes(), 9, &config(set), NOW)
}

fn code(refused: Result<Batch, BatchRefusal>) -> i16 {
    refused.map_or_else(|refused| refused.refusal.code.code(), |_| 0)
}

#[test]
fn create_time_stays_and_append_time_replaces_it() {
    let records = [record(None, NOW - 7), record(None, NOW - 9)];
    let kept = checked(&records, &[]).unwrap();
    assert_eq!(kept.header.max_timestamp, NOW - 7);
    let stamped = checked(&records, &[("message.timestamp.type", "LogAppendTime")]).unwrap();
    let times: Vec<_> = stamped
        .records()
        .unwrap()
        .iter()
        .map(|(_, record)| record.timestamp_ms)
        .collect();
    assert_eq!(times, [NOW, NOW]);
    let bytes = stamped.to_bytes();
    let read = Batch::split_from(&mut bytes.clone()).unwrap();
    assert_eq!(
        read.verify_checksum(),
        Ok(()),
        "the checksum follows the change"
    );
}

#[test]
fn time_stamps_out_of_the_limits_are_refused_by_record() {
    let hour = 3_600_000;
    assert_eq!(code(checked(&[record(None, NOW + hour)], &[])), 0);
    let late = checked(&[record(None, NOW), record(None, NOW + hour + 1)], &[]);
    let refused = late.unwrap_err();
    assert_eq!(refused.refusal.code, ResponseError::InvalidTimestamp);
    assert_eq!(refused.records.len(), 1);
    assert_eq!(refused.records[0].0, 1);
    let strict = [("message.timestamp.before.max.ms", "1000")];
    assert_eq!(code(checked(&[record(None, NOW - 1001)], &strict)), 32);
    assert_eq!(
        code(checked(&[record(None, -1)], &strict)),
        0,
        "no time stamp is none to check"
    );
}

#[test]
fn a_compacted_topic_names_each_record_without_key() {
    let compact = [("cleanup.policy", "compact,delete")];
    let records = [record(Some("k"), NOW), record(None, NOW), record(None, NOW)];
    let refused = checked(&records, &compact).unwrap_err();
    assert_eq!(refused.refusal.code, ResponseError::InvalidRecord);
    let at: Vec<_> = refused.records.iter().map(|(index, _)| *index).collect();
    assert_eq!(at, [1, 2]);
}

/// The records in each codec, as producers write it; Java's snappy stands in xerial's stream.
fn compressed(payload: &[u8]) -> [(i16, Vec<u8>); 5] {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(payload).unwrap();
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(payload).unwrap();
    let snappy = snap::raw::Encoder::new().compress_vec(payload).unwrap();
    let mut xerial = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    xerial.extend(u32::try_from(snappy.len()).unwrap().to_be_bytes());
    xerial.extend(&snappy);
    let fastest = ruzstd::encoding::CompressionLevel::Fastest;
    let zstd = ruzstd::encoding::compress_to_vec(payload, fastest);
    [
        (1, gzip.finish().unwrap()),
        (2, snappy),
        (2, xerial),
        (3, lz4.finish().unwrap()),
        (4, zstd),
    ]
}

#[test]
fn every_codec_is_opened_and_stored_as_it_came() {
    let compact = config(&[("cleanup.policy", "compact")]);
    let plain = Batch::of_records(&[record(Some("k"), NOW)]);
    let keyless = Batch::of_records(&[record(None, NOW)]);
    for (codec, payload) in compressed(&plain.payload) {
        let mut batch = plain.clone();
        batch.header.attributes |= codec;
        batch.payload = payload.into();
        let stored = check(batch.to_bytes(), 9, &compact, NOW).unwrap();
        assert_eq!(stored.to_bytes(), batch.to_bytes(), "codec {codec}");
        assert_eq!(stored.records(), plain.records());
        batch.payload = batch.payload.slice(..batch.payload.len() / 2);
        assert_eq!(code(check(batch.to_bytes(), 9, &compact, NOW)), 87);
    }
    for (codec, payload) in compressed(&keyless.payload) {
        let mut batch = keyless.clone();
        batch.header.attributes |= codec;
        batch.payload = payload.into();
        let refused = code(check(batch.to_bytes(), 9, &compact, NOW));
        assert_eq!(refused, 87, "codec {codec}: its records are looked at");
    }
}

#[test]
fn a_codec_that_the_version_does_not_have_is_refused() {
    let mut batch = Batch::of_records(&[record(Some("k"), NOW)]);
    batch.header.attributes = 4;
    assert_eq!(
        code(check(batch.to_bytes(), 6, &config(&[]), NOW)),
        76,
        "zstd before version 7"
    );
    batch.header.attributes = 5;
    assert_eq!(
        code(check(batch.to_bytes(), 9, &config(&[]), NOW)),
        76,
        "no such codec"
    );
}

#[test]
fn a_producer_with_an_id_has_sequences_and_no_client_writes_markers() {
    let mut batch = Batch::of_records(&[record(None, NOW)]);
    batch.header.producer_id = 1;
    assert_eq!(code(check(batch.to_bytes(), 9, &config(&[]), NOW)), 87);
    batch.header.base_sequence = 0;
    assert_eq!(code(check(batch.to_bytes(), 9, &config(&[]), NOW)), 0);
    let marker = Batch::marker(true, 1, 0, NOW);
    assert_eq!(code(check(marker.to_bytes(), 9, &config(&[]), NOW)), 87);
}
