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

/// A codec that cannot be opened is taken as it is, but not where its records would have to be looked at.
#[test]
fn a_closed_codec_is_refused_on_a_compacted_topic_only() {
    let mut batch = Batch::of_records(&[record(Some("k"), NOW)]);
    batch.header.attributes |= 3;
    let compact = [("cleanup.policy", "compact")];
    assert_eq!(code(check(batch.to_bytes(), 9, &config(&[]), NOW)), 0);
    assert_eq!(code(check(batch.to_bytes(), 9, &config(&compact), NOW)), 76);
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
fn producer_ids_and_transactions_are_refused_until_they_are_served() {
    let mut batch = Batch::of_records(&[record(None, NOW)]);
    batch.header.producer_id = 1;
    assert_eq!(code(check(batch.to_bytes(), 9, &config(&[]), NOW)), 59);
    let marker = Batch::marker(true, 1, NOW);
    assert_eq!(code(check(marker.to_bytes(), 9, &config(&[]), NOW)), 87);
}
