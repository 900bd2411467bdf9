use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::types::{Header, Offset, TopicPartition};

fn position() -> SourcePosition {
    SourcePosition {
        topic_partition: TopicPartition::new("docs", 3),
        offset: Offset::new(42),
    }
}

fn record(value: impl Into<Bytes>) -> Record {
    Record {
        value: Some(value.into()),
        timestamp_ms: -1,
        ..Record::default()
    }
}

fn parse_as(value: impl Into<Bytes>, format: InputFormat) -> Parsed {
    Document::parse(&record(value), &position(), format, "content")
}

fn parse(value: impl Into<Bytes>) -> Parsed {
    parse_as(value, InputFormat::Auto)
}

#[track_caller]
fn document(parsed: Parsed) -> Document {
    match parsed {
        Parsed::Document(document) => *document,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn reason(parsed: Parsed) -> DeadLetterReason {
    match parsed {
        Parsed::Bad(reason, _) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn json_gives_text_id_and_fields() {
    let document = document(parse(
        r#"{"id":"r-1","content":"Revenue rose.","type":"earnings"}"#,
    ));
    assert_eq!(document.id, "r-1");
    assert_eq!(document.text, "Revenue rose.");
    assert_eq!(document.fields["type"], json!("earnings"));
    assert_eq!(document.fields["content"], json!("Revenue rose."));
}

#[test]
fn plain_text_is_kept_as_it_is() {
    let document = document(parse("  Revenue rose.\n"));
    assert_eq!(document.text, "  Revenue rose.\n");
    assert!(document.fields.is_empty());
    assert_eq!(document.id, "docs/3@42");
}

#[test]
fn a_tombstone_is_skipped() {
    let tombstone = Record::default();
    assert_eq!(
        Document::parse(&tombstone, &position(), InputFormat::Auto, "content"),
        Parsed::Skip(SkipReason::Tombstone)
    );
}

#[test]
fn what_has_no_text_is_empty() {
    for value in [
        "",
        " \n\t ",
        "\u{feff}",
        "\u{a0}",
        r#"{"content":""}"#,
        r#"{"content":" "}"#,
    ] {
        assert_eq!(
            reason(parse(value)),
            DeadLetterReason::EmptyDocument,
            "{value:?}"
        );
    }
}

#[test]
fn what_begins_as_an_object_must_be_one() {
    for value in ["{", "{}}", r#" {"content":"#, r#"{"content":"a"} b"#] {
        assert_eq!(
            reason(parse(value)),
            DeadLetterReason::InvalidJson,
            "{value:?}"
        );
    }
}

#[test]
fn an_array_is_text_unless_json_is_asked_for() {
    assert_eq!(document(parse("[1]")).text, "[1]");
    assert_eq!(
        reason(parse_as("[1]", InputFormat::Json)),
        DeadLetterReason::InvalidJson
    );
    assert_eq!(
        reason(parse_as("text", InputFormat::Json)),
        DeadLetterReason::InvalidJson
    );
}

#[test]
fn text_format_takes_json_as_text() {
    let value = r#"{"content":"a"}"#;
    assert_eq!(document(parse_as(value, InputFormat::Text)).text, value);
}

#[test]
fn content_must_be_there_and_be_text() {
    for value in [
        "{}",
        r#"{"text":"a"}"#,
        r#"{"content":1}"#,
        r#"{"content":null}"#,
    ] {
        assert_eq!(
            reason(parse(value)),
            DeadLetterReason::MissingContent,
            "{value}"
        );
    }
}

#[test]
fn another_content_field_can_be_named() {
    let parsed = Document::parse(
        &record(r#"{"body":"a","content":"b"}"#),
        &position(),
        InputFormat::Auto,
        "body",
    );
    assert_eq!(document(parsed).text, "a");
}

#[test]
fn bytes_that_are_not_utf8_are_told_by_their_place() {
    assert_eq!(
        parse(Bytes::from_static(b"ab\xff")),
        Parsed::Bad(
            DeadLetterReason::InvalidUtf8,
            "the first invalid byte is at 2".to_owned()
        )
    );
}

#[test]
fn a_byte_order_mark_is_dropped() {
    assert_eq!(document(parse("\u{feff}a")).text, "a");
    assert_eq!(document(parse("\u{feff}{\"content\":\"a\"}")).text, "a");
}

#[test]
fn the_name_is_the_id_else_the_key_else_the_position() {
    let name = |value: &str, key: Option<&'static [u8]>| {
        let record = Record {
            key: key.map(Bytes::from_static),
            ..record(value.to_owned())
        };
        document(Document::parse(
            &record,
            &position(),
            InputFormat::Auto,
            "content",
        ))
        .id
    };
    assert_eq!(name(r#"{"id":"a","content":"x"}"#, Some(b"k")), "a");
    assert_eq!(name(r#"{"id":7,"content":"x"}"#, Some(b"k")), "7");
    assert_eq!(name(r#"{"id":-7,"content":"x"}"#, Some(b"k")), "-7");
    assert_eq!(name(r#"{"id":"","content":"x"}"#, Some(b"k")), "k");
    assert_eq!(name(r#"{"id":[1],"content":"x"}"#, Some(b"k")), "k");
    assert_eq!(name("text", Some(b"k")), "k");
    assert_eq!(name("text", Some(b"\xff")), "docs/3@42");
    assert_eq!(name("text", Some(b"")), "docs/3@42");
    assert_eq!(name("text", None), "docs/3@42");
    let long = format!(r#"{{"id":"{}","content":"x"}}"#, "i".repeat(600));
    assert_eq!(name(&long, Some(b"k")), "k");
}

#[test]
fn a_number_beyond_64_bits_keeps_its_digits_as_a_name() {
    let value = r#"{"id":123456789012345678901234567890,"content":"x"}"#;
    assert_eq!(document(parse(value)).id, "123456789012345678901234567890");
}

#[test]
fn deep_nesting_is_refused_and_does_not_exhaust_the_stack() {
    let depth = 200_000;
    let value = format!(
        r#"{{"content":"x","deep":{}{}}}"#,
        "[".repeat(depth),
        "]".repeat(depth)
    );
    assert_eq!(reason(parse(value)), DeadLetterReason::InvalidJson);
}

#[test]
fn key_headers_and_time_stamp_are_there_for_the_prompt() {
    let record = Record {
        key: Some(Bytes::from_static(b"k\xff")),
        headers: vec![
            Header::new("lang", "de"),
            Header::new("lang", "en"),
            Header::new("binary", Bytes::from_static(b"\xff")),
            Header {
                name: "null".to_owned(),
                value: None,
            },
        ],
        timestamp_ms: 1_700_000_000_000,
        ..record("text")
    };
    let document = document(Document::parse(
        &record,
        &position(),
        InputFormat::Auto,
        "content",
    ));
    assert_eq!(document.key.as_deref(), Some("k\u{fffd}"));
    assert_eq!(
        document.headers,
        BTreeMap::from([("lang".to_owned(), "en".to_owned())])
    );
    assert_eq!(
        document.timestamp.map(|at| at.to_string()).as_deref(),
        Some("2023-11-14T22:13:20Z")
    );
}

/// A key that the JSON library gives a meaning of its own must not bring the value into the message.
#[test]
fn no_detail_quotes_the_document() {
    for value in [
        r#"{"content":"secret"} secret"#,
        r#"{"content":secret}"#,
        r#"{"content":["secret"]}"#,
        r#"{"a":{"$serde_json::private::RawValue":"secret"}}"#,
        r#"{"a":{"$serde_json::private::RawValue":["secret"]}}"#,
        r#"{"secret":"#,
    ] {
        match parse(value) {
            Parsed::Bad(_, detail) => assert!(!detail.contains("secret"), "{value}: {detail}"),
            other => panic!("{value}: {other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_bring_the_reader_down(value: Vec<u8>, key: Option<Vec<u8>>) {
        for format in [InputFormat::Auto, InputFormat::Json, InputFormat::Text] {
            let record = Record { key: key.clone().map(Bytes::from), ..record(value.clone()) };
            if let Parsed::Document(document) = Document::parse(&record, &position(), format, "content") {
                prop_assert!(!document.text.trim().is_empty());
                prop_assert!(!document.id.is_empty());
            }
        }
    }
}

#[test]
fn a_document_has_a_name_also_when_it_cannot_be_read_as_one() {
    let name = |key: Option<&'static str>, value: &'static str| {
        let record = Record {
            key: key.map(|key| Bytes::from_static(key.as_bytes())),
            ..record(value)
        };
        document_id(&record, &position())
    };
    assert_eq!(name(Some("k"), r#"{"id":"r-1","content":"text"}"#), "r-1");
    assert_eq!(name(Some("k"), r#"{"id":7}"#), "7");
    assert_eq!(name(Some("k"), "{broken"), "k");
    assert_eq!(name(None, "plain"), "docs/3@42");
    assert_eq!(document_id(&Record::default(), &position()), "docs/3@42");
}
