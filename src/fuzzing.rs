//! Entry points for fuzzers: each takes bytes as a broker, a model server or a producer may send them, and reads them as the program does.
//!
//! Not part of the interface. `tests/fuzz_corpus.rs` runs all of them for a bounded time on stable, `tests/fuzz` with `cargo fuzz`.

use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};

use crate::cli::dead_letters::fuzzing_marks;
use crate::config::Settings;
use crate::kafka::wire::fuzzing;
use crate::llm::{Target as Asked, classify_reply, fuzzing as llm};
use crate::offsets::{CommitRecord, seen};
use crate::records::audit::{AuditRecord, chain};
use crate::records::dead_letter::DeadLetter;
use crate::records::document::{Document, InputFormat};
use crate::records::headers;
use crate::records::result::ResultRecord;
use crate::telemetry::server::fuzzing as admin;
use crate::types::{Header, Offset, Record, SourcePosition, TopicPartition};

/// Something that reads bytes from outside.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of it, and of the folder of its corpus.
    pub name: &'static str,
    /// Reads; must neither panic nor allocate much more than what the bytes come to.
    pub read: fn(&[u8]),
}

/// Everything that reads bytes from outside.
pub const TARGETS: [Target; 18] = [
    target("kafka_batches", fuzzing::batches),
    target("kafka_batch_bodies", fuzzing::batch_bodies),
    target("kafka_fetches", fuzzing::fetches),
    target("kafka_answers", fuzzing::answers),
    target("kafka_frames", fuzzing::frames),
    target("kafka_members", fuzzing::members),
    target("sasl_messages", fuzzing::sasl_messages),
    target("oauth_tokens", fuzzing::tokens),
    target("llm_replies", llm_replies),
    target("llm_lists", llm::lists),
    target("structured_answers", llm::structured_answers),
    target("schemas", llm::schemas),
    target("templates", llm::templates),
    target("documents", documents),
    target("long_documents", llm::long_documents),
    target("own_records", own_records),
    target("configuration", configuration),
    target("admin_requests", admin::requests),
];

const fn target(name: &'static str, read: fn(&[u8])) -> Target {
    Target { name, read }
}

/// Bytes off the front, as far as there are so many.
fn split(bytes: &[u8], at: usize) -> (&[u8], &[u8]) {
    bytes.split_at_checked(at).unwrap_or((bytes, &[]))
}

/// A status in two bytes, a `Retry-After` behind its length in one, and the body.
fn llm_replies(bytes: &[u8]) {
    let (status, rest) = split(bytes, 2);
    let status = status
        .iter()
        .fold(0, |status, byte| status << 8 | u16::from(*byte));
    let (length, rest) = split(rest, 1);
    let (value, body) = split(rest, length.first().copied().unwrap_or(0).into());
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.insert(RETRY_AFTER, value);
    }
    let asked = Asked {
        url: "http://localhost:8000",
        model: "m",
    };
    drop(classify_reply(
        asked,
        status,
        &headers,
        body,
        Timestamp::UNIX_EPOCH,
        |said| said,
    ));
    drop(classify_reply(
        asked,
        200,
        &headers,
        body,
        Timestamp::UNIX_EPOCH,
        |said| said,
    ));
}

/// The value of an input record.
fn documents(bytes: &[u8]) {
    let record = Record {
        key: Some(Bytes::copy_from_slice(split(bytes, 8).0)),
        value: Some(Bytes::copy_from_slice(bytes)),
        ..Record::default()
    };
    let position = SourcePosition {
        topic_partition: TopicPartition::new("t", 0),
        offset: Offset::ZERO,
    };
    for format in [InputFormat::Auto, InputFormat::Json, InputFormat::Text] {
        drop(Document::parse(&record, &position, format, "content"));
    }
}

/// What lies in our own topics, where others can write too: commits, results, dead letters and their headers.
fn own_records(bytes: &[u8]) {
    drop(CommitRecord::from_value(bytes));
    drop(ResultRecord::parse(bytes));
    drop(AuditRecord::parse(bytes));
    drop(chain::Seen::parse(bytes));
    fuzzing_marks(Some(Bytes::copy_from_slice(bytes)));
    let values = bytes.split(|byte| *byte == 0);
    let values: Vec<_> = values.map(Bytes::copy_from_slice).collect();
    seen::fuzzing(&values);
    // Names and values, a zero byte behind each.
    let mut parts = bytes.split(|byte| *byte == 0);
    let mut record = Record::default();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        let name = String::from_utf8_lossy(name);
        record
            .headers
            .push(Header::new(name, Bytes::copy_from_slice(value)));
    }
    drop(DeadLetter::read(&record));
    drop(headers::source(&record));
    drop(headers::trace(&record));
}

/// A file of settings, a zero byte, and variables with `=`, each with a zero byte behind it.
fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let variables = parts.filter_map(|part| part.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let path = Path::new("klp.toml");
    drop(Settings::layered(Some((path, file)), variables, &[]));
}

/// Hands the bytes to the target of this name.
///
/// # Panics
/// When there is none.
#[allow(clippy::panic, reason = "a fuzzer without a target has to end")]
pub fn read(name: &str, bytes: &[u8]) {
    match TARGETS.iter().find(|target| target.name == name) {
        Some(target) => (target.read)(bytes),
        None => panic!("no target is named {name}"),
    }
}
