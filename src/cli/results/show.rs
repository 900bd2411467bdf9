//! One record as text. Everything that came from outside passes [`harmless`] on its way to a terminal.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::cli::output::{Terminal, Tone, harmless};
use crate::records::dead_letter::{DeadLetter, POINTER, replay_count};
use crate::records::document::document_id;
use crate::records::headers;
use crate::records::result::{ResultOutput, ResultRecord, ResultStatus};
use crate::types::{Offset, Record, TopicPartition};

/// Label and text, aligned.
fn line(terminal: &Terminal, text: &mut String, label: &str, value: &str) {
    toned_line(terminal, text, label, &harmless(value));
}

/// Label and text that is already harmless and coloured.
fn toned_line(terminal: &Terminal, text: &mut String, label: &str, value: &str) {
    let label = if value.is_empty() {
        label.to_owned()
    } else {
        format!("{label:<16}")
    };
    for part in ["  ", &terminal.paint(Tone::Faint, label), value, "\n"] {
        text.push_str(part);
    }
}

pub(super) fn result(
    terminal: &Terminal,
    partition: &TopicPartition,
    offset: Offset,
    record: &Record,
) -> String {
    match parse(record) {
        Ok(result) => result_text(terminal, &result),
        Err(problem) => not_ours(terminal, partition, offset, &problem),
    }
}

fn parse(record: &Record) -> Result<ResultRecord, String> {
    let value = record.value.as_ref().ok_or("the value is null")?;
    ResultRecord::parse(value).map_err(|error| error.to_string())
}

fn result_text(terminal: &Terminal, result: &ResultRecord) -> String {
    let tone = match result.status {
        ResultStatus::Ok => Tone::Good,
        ResultStatus::Truncated => Tone::Caution,
    };
    let id = harmless(&result.document_id);
    let mut text = format!("{}\n", terminal.paint(Tone::Strong, id));
    let status = terminal.paint(tone, result.status.as_str());
    let finish_reason = harmless(&result.finish_reason);
    let status = format!("{status} (finish reason {finish_reason})");
    toned_line(terminal, &mut text, "status", &status);
    line(terminal, &mut text, "model", &result.model);
    let timing = result.timing;
    let time = format!(
        "{} (model {}, queued {})",
        milliseconds(timing.total_ms),
        milliseconds(timing.llm_ms),
        milliseconds(timing.queued_ms),
    );
    line(terminal, &mut text, "processing time", &time);
    let usage = result.usage;
    let mut tokens = format!(
        "{} ({} prompt, {} completion)",
        usage.total_tokens, usage.prompt_tokens, usage.completion_tokens
    );
    if usage.calls > 1 {
        tokens.push_str(&format!(" in {} calls", usage.calls));
    }
    line(terminal, &mut text, "tokens used", &tokens);
    if let Some(long) = result.long_document.as_ref().and_then(long_document) {
        line(terminal, &mut text, "long document", &long);
    }
    if result.cached {
        let cached = "the answer to an identical document, without a call";
        line(terminal, &mut text, "cached", cached);
    }
    line(
        terminal,
        &mut text,
        "attempts",
        &result.attempts.to_string(),
    );
    line(
        terminal,
        &mut text,
        "source",
        &result.source.position().to_string(),
    );
    if !result.request_id.is_empty() {
        line(terminal, &mut text, "request id", &result.request_id);
    }
    let answer: Cow<'_, str> = match &result.output {
        ResultOutput::Text(answer) => Cow::Borrowed(answer),
        ResultOutput::Data(data) => Cow::Owned(format!("{data:#}")),
    };
    line(terminal, &mut text, "answer", "");
    text.push_str(&terminal.wrapped(&answer, "    "));
    text.push('\n');
    text
}

/// What was done with a document beyond the context; `None` for what a later version may do.
fn long_document(done: &Value) -> Option<String> {
    match done.get("policy")?.as_str()? {
        "map_reduce" => Some(format!("read in {} parts", done.get("parts")?)),
        "truncate" => Some(format!(
            "{} characters left out, kept: {}",
            done.get("left_out_characters")?,
            done.get("keep")?.as_str()?
        )),
        _ => None,
    }
}

pub(super) fn result_json(partition: &TopicPartition, offset: Offset, record: &Record) -> String {
    let value = record
        .value
        .as_ref()
        .and_then(|value| serde_json::from_slice::<Value>(value).ok());
    let shown = match value {
        Some(value @ Value::Object(_)) => value,
        _ => json!({
            "error": "not a result",
            "position": position(partition, offset),
        }),
    };
    format!("{shown}\n")
}

pub(in crate::cli) fn dead_letter(
    terminal: &Terminal,
    partition: &TopicPartition,
    offset: Offset,
    record: &Record,
) -> String {
    let Some(letter) = DeadLetter::read(record) else {
        return not_ours(
            terminal,
            partition,
            offset,
            "the reason headers are missing",
        );
    };
    let name = key_text(record).unwrap_or_else(|| letter.source.to_string());
    let mut text = format!("{}\n", terminal.paint(Tone::Strong, harmless(&name)));
    let reason = terminal.paint(Tone::Bad, letter.reason.as_str());
    toned_line(terminal, &mut text, "reason", &reason);
    line(terminal, &mut text, "detail", &letter.detail);
    if let Some(status) = letter.http_status {
        line(terminal, &mut text, "http status", &status.to_string());
    }
    line(
        terminal,
        &mut text,
        "attempts",
        &letter.attempts.to_string(),
    );
    line(terminal, &mut text, "source", &letter.source.to_string());
    line(terminal, &mut text, "given up at", &letter.at.to_string());
    if let Some(request_id) = &letter.request_id {
        line(terminal, &mut text, "request id", request_id);
    }
    if let Some(answer) = &letter.answer {
        line(terminal, &mut text, "the model's answer", "");
        text.push_str(&terminal.wrapped(answer, "    "));
    }
    if headers::text(record, POINTER).is_some() {
        line(
            terminal,
            &mut text,
            "document",
            "left out, as it is too large: read it at its source",
        );
    }
    text.push('\n');
    text
}

pub(super) fn dead_letter_json(
    partition: &TopicPartition,
    offset: Offset,
    record: &Record,
) -> String {
    format!("{}\n", dead_letter_value(partition, offset, record))
}

pub(in crate::cli) fn dead_letter_value(
    partition: &TopicPartition,
    offset: Offset,
    record: &Record,
) -> Value {
    match DeadLetter::read(record) {
        Some(letter) => json!({
            "reason": letter.reason.as_str(),
            "detail": letter.detail,
            "http_status": letter.http_status,
            "attempts": letter.attempts,
            "request_id": letter.request_id,
            "answer": letter.answer,
            "at": letter.at,
            "document_id": document_id(record, &letter.source),
            "key": key_text(record),
            "replay_count": replay_count(record),
            "pointer": headers::text(record, POINTER).is_some(),
            "source": position(&letter.source.topic_partition, letter.source.offset),
            "position": position(partition, offset),
        }),
        None => json!({
            "error": "not a dead letter of this program",
            "position": position(partition, offset),
        }),
    }
}

fn not_ours(
    terminal: &Terminal,
    partition: &TopicPartition,
    offset: Offset,
    problem: &str,
) -> String {
    let mark = terminal.mark(false);
    let problem = harmless(problem);
    format!("{mark} {partition}@{offset} is not a record of this program: {problem}\n\n")
}

fn position(partition: &TopicPartition, offset: Offset) -> Value {
    json!({"topic": *partition.topic, "partition": partition.partition, "offset": offset})
}

fn key_text(record: &Record) -> Option<String> {
    record
        .key
        .as_ref()
        .map(|key| String::from_utf8_lossy(key).into_owned())
}

/// `850 ms`, `12.3 s`.
fn milliseconds(ms: u64) -> String {
    if ms < 1000 {
        format!("{ms} ms")
    } else {
        format!("{}.{} s", ms / 1000, ms % 1000 / 100)
    }
}
