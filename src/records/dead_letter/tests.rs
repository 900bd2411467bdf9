use bytes::Bytes;

use super::*;
use crate::types::{Offset, TopicPartition};

fn dead_letter() -> DeadLetter {
    DeadLetter {
        reason: DeadLetterReason::InvalidJson,
        detail: "EOF while parsing at line 1 column 9".to_owned(),
        http_status: Some(400),
        attempts: 2,
        request_id: Some("docs-0-5-2".to_owned()),
        answer: None,
        at: Timestamp::from_second(1_700_000_000).unwrap(),
        source: SourcePosition {
            topic_partition: TopicPartition::new("docs", 0),
            offset: Offset::new(5),
        },
    }
}

fn original() -> Record {
    Record {
        key: Some(Bytes::from_static(b"k\xff")),
        value: Some(Bytes::from_static(b"{broken\x00")),
        headers: vec![
            Header::new("own", "1"),
            Header {
                name: "null".to_owned(),
                value: None,
            },
            Header::new("own", "2"),
        ],
        timestamp_ms: 77,
    }
}

#[test]
fn the_original_is_kept_whole() {
    let record = dead_letter().record(&original(), "group", HeaderStyle::Connect);
    assert_eq!(record.key, original().key);
    assert_eq!(record.value, original().value);
    assert_eq!(record.timestamp_ms, 77);
    assert_eq!(record.headers[..3], original().headers[..]);
}

#[test]
fn the_reason_is_read_as_it_was_written() {
    let written = dead_letter();
    assert_eq!(
        DeadLetter::read(&written.record(&original(), "group", HeaderStyle::Connect)),
        Some(written.clone())
    );
    assert_eq!(
        DeadLetter::read(&written.pointer(&original(), "group", HeaderStyle::Connect)),
        Some(written)
    );
    let never_sent = DeadLetter {
        http_status: None,
        request_id: None,
        attempts: 0,
        ..dead_letter()
    };
    assert_eq!(
        DeadLetter::read(&never_sent.record(&original(), "group", HeaderStyle::Connect)),
        Some(never_sent)
    );
    assert_eq!(DeadLetter::read(&original()), None);
}

/// Its headers of one style, without the prefix.
fn styled(style: HeaderStyle) -> Vec<(String, Vec<u8>)> {
    let record = dead_letter().record(&original(), "group", style);
    let headers = record.headers.into_iter();
    let named = headers.filter_map(|header| {
        let name = header.name.strip_prefix(style.prefix())?.to_owned();
        Some((name, header.value.unwrap().to_vec()))
    });
    named.collect()
}

fn expected<const N: usize>(headers: [(&str, &[u8]); N]) -> Vec<(String, Vec<u8>)> {
    let headers = headers.into_iter();
    headers
        .map(|(name, value)| (name.to_owned(), value.to_vec()))
        .collect()
}

#[test]
fn kafka_connects_headers_are_text() {
    assert_eq!(HeaderStyle::Connect.prefix(), "__connect.errors.");
    let headers = expected([
        ("topic", b"docs"),
        ("partition", b"0"),
        ("offset", b"5"),
        ("connector.name", b"group"),
        ("task.id", b"0"),
        ("stage", b"VALUE_CONVERTER"),
        ("class.name", b"kafka_llm_processor::pipeline"),
        ("exception.class.name", b"kafka_llm_processor::InvalidJson"),
        ("exception.message", b"EOF while parsing at line 1 column 9"),
        (
            "exception.stacktrace",
            b"kafka_llm_processor::InvalidJson: EOF while parsing at line 1 column 9",
        ),
    ]);
    assert_eq!(styled(HeaderStyle::Connect), headers);
}

#[test]
fn springs_numbers_are_big_endian() {
    assert_eq!(HeaderStyle::Spring.prefix(), "kafka_dlt-");
    let headers = expected([
        ("original-topic", b"docs"),
        ("original-partition", &[0, 0, 0, 0]),
        ("original-offset", &[0, 0, 0, 0, 0, 0, 0, 5]),
        ("original-timestamp", &[0, 0, 0, 0, 0, 0, 0, 77]),
        ("original-timestamp-type", b"CreateTime"),
        ("original-consumer-group", b"group"),
        ("exception-fqcn", b"kafka_llm_processor::InvalidJson"),
        ("exception-message", b"EOF while parsing at line 1 column 9"),
        (
            "exception-stacktrace",
            b"kafka_llm_processor::InvalidJson: EOF while parsing at line 1 column 9",
        ),
    ]);
    assert_eq!(styled(HeaderStyle::Spring), headers);
}

#[test]
fn the_share_groups_headers_are_text() {
    assert_eq!(HeaderStyle::Share.prefix(), "__dlq.errors.");
    let headers = expected([
        ("topic", b"docs"),
        ("partition", b"0"),
        ("offset", b"5"),
        ("group", b"group"),
        ("delivery.count", b"2"),
        ("message", b"EOF while parsing at line 1 column 9"),
    ]);
    assert_eq!(styled(HeaderStyle::Share), headers);
}

#[test]
fn in_every_style_the_reason_is_read_and_a_replay_is_the_original_again() {
    for style in HeaderStyle::ALL {
        let record = dead_letter().record(&original(), "group", style);
        assert_eq!(DeadLetter::read(&record), Some(dead_letter()), "{style:?}");
        assert_eq!(HeaderStyle::named(style.as_str()), Some(style));
        let again = replayed(&record, 1, 1_000);
        assert_eq!(
            (&again.key, &again.value),
            (&original().key, &original().value)
        );
        assert_eq!(again.headers[..3], original().headers[..], "{style:?}");
        let added: Vec<_> = again.headers[3..]
            .iter()
            .map(|header| (header.name.as_str(), header.value.clone().unwrap()))
            .collect();
        assert_eq!(
            added,
            [
                (REPLAY_COUNT, Bytes::from_static(b"1")),
                (ORIGINAL_TIMESTAMP, Bytes::from_static(b"77")),
            ]
        );
        assert_eq!(again.timestamp_ms, 1_000);
    }
}

#[test]
fn another_replay_counts_on_and_keeps_the_first_time_stamp() {
    let first = replayed(
        &dead_letter().record(&original(), "group", HeaderStyle::Share),
        1,
        1_000,
    );
    for style in HeaderStyle::ALL {
        let letter = dead_letter().record(&first, "group", style);
        assert_eq!(replay_count(&letter), 1);
        let pointer = dead_letter().pointer(&first, "group", style);
        assert_eq!(replay_count(&pointer), 1);
        let second = replayed(&letter, 2, 2_000);
        assert_eq!(replay_count(&second), 2);
        assert_eq!(headers::text(&second, ORIGINAL_TIMESTAMP), Some("77"));
        assert_eq!(second.headers.len(), first.headers.len());
    }
    assert_eq!(replay_count(&original()), 0);
}

/// What another system has left in a document is the document's, unless we are about to write headers of the same names.
#[test]
fn headers_of_others_are_kept() {
    let mut document = original();
    let other = Header::new("kafka_dlt-original-topic", "theirs");
    document.headers = vec![other.clone(), Header::new("klp.document.id", "theirs")];
    let record = dead_letter().record(&document, "group", HeaderStyle::Connect);
    assert_eq!(record.headers[..2], document.headers[..]);
    assert_eq!(replayed(&record, 1, 5).headers[..2], document.headers[..]);
    let record = dead_letter().record(&document, "group", HeaderStyle::Spring);
    let of_spring = record
        .headers
        .iter()
        .filter(|header| header.name == other.name);
    let values: Vec<_> = of_spring
        .map(|header| header.value.clone().unwrap())
        .collect();
    assert_eq!(values, ["docs"]);
}

#[test]
fn a_second_dead_letter_replaces_the_first() {
    let first = dead_letter().record(&original(), "group", HeaderStyle::Connect);
    let again = DeadLetter {
        reason: DeadLetterReason::AttemptsExhausted,
        http_status: None,
        request_id: None,
        source: SourcePosition {
            topic_partition: TopicPartition::new("docs", 0),
            offset: Offset::new(99),
        },
        ..dead_letter()
    };
    let second = again.record(&first, "group", HeaderStyle::Connect);
    assert_eq!(DeadLetter::read(&second), Some(again));
    assert!(
        second.headers.len() < first.headers.len(),
        "what no longer holds is gone"
    );
    assert_eq!(second.headers[..3], original().headers[..]);
}

#[test]
fn values_are_cut_at_a_character() {
    let long = DeadLetter {
        detail: "ä".repeat(HEADER_VALUE_BYTES_MAX),
        request_id: Some("r".repeat(HEADER_VALUE_BYTES_MAX * 2)),
        ..dead_letter()
    };
    let record = long.record(
        &original(),
        &"g".repeat(HEADER_VALUE_BYTES_MAX + 1),
        HeaderStyle::Connect,
    );
    for header in &record.headers {
        assert!(header.value.as_ref().map_or(0, Bytes::len) <= HEADER_VALUE_BYTES_MAX);
    }
    assert!(headers::text(&record, DETAIL).is_some_and(|text| text.ends_with('ä')));
}

#[test]
fn the_answer_is_kept_up_to_its_bound_and_not_in_a_pointer() {
    let with = |answer: String| DeadLetter {
        reason: DeadLetterReason::SchemaViolation,
        answer: Some(answer),
        ..dead_letter()
    };
    let whole = with("{\"a\":\n1".to_owned());
    let record = whole.record(&original(), "group", HeaderStyle::Connect);
    assert_eq!(DeadLetter::read(&record).as_ref(), Some(&whole));
    assert_eq!(headers::text(&record, ANSWER_TRUNCATED), None);
    let fits =
        with("a".repeat(ANSWER_BYTES_MAX)).record(&original(), "group", HeaderStyle::Connect);
    assert_eq!(headers::text(&fits, ANSWER_TRUNCATED), None);

    let long = with(format!("a{}", "ä".repeat(ANSWER_BYTES_MAX / 2)));
    let record = long.record(&original(), "group", HeaderStyle::Connect);
    let kept = headers::text(&record, ANSWER).unwrap();
    assert_eq!(kept.len(), ANSWER_BYTES_MAX - 1, "cut at a character");
    assert_eq!(headers::text(&record, ANSWER_TRUNCATED), Some("true"));
    let pointer = long.pointer(&original(), "group", HeaderStyle::Connect);
    assert_eq!(headers::text(&pointer, ANSWER), None);
    assert_eq!(headers::text(&pointer, ANSWER_TRUNCATED), None);

    let again = with("short".to_owned()).record(&record, "group", HeaderStyle::Connect);
    assert_eq!(headers::text(&again, ANSWER), Some("short"));
    assert_eq!(headers::text(&again, ANSWER_TRUNCATED), None);
}

#[test]
fn a_pointer_is_small_whatever_the_original() {
    let large = Record {
        key: Some(Bytes::from(vec![b'k'; 1 << 20])),
        value: Some(Bytes::from(vec![b'v'; 1 << 20])),
        headers: vec![Header::new("h", vec![b'h'; 1 << 20])],
        timestamp_ms: 1,
    };
    let pointer = dead_letter().pointer(&large, "group", HeaderStyle::Connect);
    assert!(pointer.size() < 4096, "{}", pointer.size());
    assert_eq!(headers::text(&pointer, POINTER), Some("true"));
    assert_eq!(
        dead_letter()
            .pointer(&original(), "g", HeaderStyle::Connect)
            .key,
        original().key
    );
}
