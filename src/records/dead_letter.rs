//! The record of a document that was given up: as it came, and why.
//!
//! Key, value, headers and time stamp are those of the original, so that it can be sent again. The reason is told twice: in the
//! headers of a [`HeaderStyle`] that existing tools show, by default those of Kafka Connect's dead-letter queue, and in our own. A document
//! that is given up again after a replay has its reason headers replaced: they never grow.

mod replay;
mod style;

use jiff::Timestamp;

use crate::records::headers;
use crate::types::{DeadLetterReason, Header, Record, SourcePosition};

pub use replay::{ORIGINAL_TIMESTAMP, REPLAY_COUNT, replay_count, replayed};
pub use style::HeaderStyle;

/// [`DeadLetterReason::as_str`].
pub const REASON: &str = "klp.error.reason";
/// One sentence for the operator.
pub const DETAIL: &str = "klp.error.detail";
/// Status of the last answer, when there was one.
pub const HTTP_STATUS: &str = "klp.error.http_status";
/// Attempts that were made, decimal.
pub const ATTEMPTS: &str = "klp.error.attempts";
/// `X-Request-Id` of the last attempt, when one was made.
pub const REQUEST_ID: &str = "klp.error.request_id";
/// The model's last answer as it came, where the answers are what was wrong.
pub const ANSWER: &str = "klp.error.answer";
/// `true` where that answer was longer than [`ANSWER_BYTES_MAX`] and is cut.
pub const ANSWER_TRUNCATED: &str = "klp.error.answer_truncated";
/// When it was given up, RFC 3339.
pub const AT: &str = "klp.error.at";
/// `true` where the payload was left out because the topic does not take a record of that size.
pub const POINTER: &str = "klp.error.pointer";
/// Whose headers stand beside ours: [`HeaderStyle::as_str`].
pub const STYLE: &str = "klp.error.header_style";

const OWN_PREFIX: &str = "klp.error.";

/// Bound on each value that is added but the answer, in bytes: with some twenty of them, and the answer, a dead letter is at most 56 KiB
/// larger than its original.
pub const HEADER_VALUE_BYTES_MAX: usize = 2048;

/// Bound on the answer that is kept, in bytes: four times what the default of `llm.max_tokens` makes in English.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// The longest key that a pointer keeps: what made the record too large may be its key.
pub const POINTER_KEY_BYTES_MAX: usize = 8 * 1024;

/// Why and where a document was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The closed reason.
    pub reason: DeadLetterReason,
    /// One sentence for the operator; holds none of the document's text.
    pub detail: String,
    /// Status of the last answer, when there was one.
    pub http_status: Option<u16>,
    /// Attempts that were made; 0 when the record was never sent.
    pub attempts: u32,
    /// `X-Request-Id` of the last attempt, when one was made.
    pub request_id: Option<String>,
    /// The model's last answer as it came, where the answers are what was wrong; cut when it was read back and had been longer than
    /// [`ANSWER_BYTES_MAX`].
    pub answer: Option<String>,
    /// When it was given up.
    pub at: Timestamp,
    /// Where the record was read.
    pub source: SourcePosition,
}

impl DeadLetter {
    /// The record for the dead-letter topic: the original with the reason in its headers. `group_id` names us in those of `style`.
    #[must_use]
    pub fn record(&self, original: &Record, group_id: &str, style: HeaderStyle) -> Record {
        let mut headers = replay::original_headers(original, Some(style));
        self.add_headers(&mut headers, original.timestamp_ms, group_id, style);
        if let Some(answer) = &self.answer {
            let kept = capped(answer, ANSWER_BYTES_MAX);
            headers::set(&mut headers, ANSWER, kept);
            if kept.len() < answer.len() {
                headers::set(&mut headers, ANSWER_TRUNCATED, "true");
            }
        }
        Record {
            key: original.key.clone(),
            value: original.value.clone(),
            headers,
            timestamp_ms: original.timestamp_ms,
        }
    }

    /// The record for an original that the dead-letter topic does not take: reason and position, without the answer and without value
    /// and headers of the original; the trace context, a short key and what a replay has to know stay.
    #[must_use]
    pub fn pointer(&self, original: &Record, group_id: &str, style: HeaderStyle) -> Record {
        let mut headers = Vec::new();
        if let Some(trace) = headers::trace(original) {
            headers::set_trace(&mut headers, &trace);
        }
        for name in [REPLAY_COUNT, ORIGINAL_TIMESTAMP] {
            if let Some(value) = headers::text(original, name) {
                headers::set(&mut headers, name, capped(value, HEADER_VALUE_BYTES_MAX));
            }
        }
        self.add_headers(&mut headers, original.timestamp_ms, group_id, style);
        // It repeats class and message.
        headers.retain(|header| !header.name.ends_with(style::STACKTRACE));
        headers::set(&mut headers, POINTER, "true");
        Record {
            key: original
                .key
                .clone()
                .filter(|key| key.len() <= POINTER_KEY_BYTES_MAX),
            value: None,
            headers,
            timestamp_ms: original.timestamp_ms,
        }
    }

    /// Reads what [`record`](Self::record) and [`pointer`](Self::pointer) wrote; `None` when the record is not one of ours.
    #[must_use]
    pub fn read(record: &Record) -> Option<Self> {
        let name = headers::text(record, REASON)?;
        let reason = DeadLetterReason::ALL
            .into_iter()
            .find(|reason| reason.as_str() == name)?;
        Some(Self {
            reason,
            detail: headers::text(record, DETAIL)?.to_owned(),
            http_status: headers::text(record, HTTP_STATUS).and_then(|text| text.parse().ok()),
            attempts: headers::text(record, ATTEMPTS)?.parse().ok()?,
            request_id: headers::text(record, REQUEST_ID).map(str::to_owned),
            answer: headers::text(record, ANSWER).map(str::to_owned),
            at: headers::text(record, AT)?.parse().ok()?,
            source: headers::source(record)?,
        })
    }

    fn add_headers(
        &self,
        headers: &mut Vec<Header>,
        timestamp_ms: i64,
        group_id: &str,
        style: HeaderStyle,
    ) {
        headers.extend(style.headers(self, timestamp_ms, group_id));
        let (at, attempts) = (self.at.to_string(), self.attempts.to_string());
        for (name, value) in [
            (STYLE, style.as_str()),
            (REASON, self.reason.as_str()),
            (DETAIL, &self.detail),
            (ATTEMPTS, &attempts),
            (AT, &at),
        ] {
            headers::set(headers, name, capped(value, HEADER_VALUE_BYTES_MAX));
        }
        headers::set_source(headers, &self.source);
        if let Some(status) = self.http_status {
            headers::set(headers, HTTP_STATUS, status.to_string());
        }
        if let Some(request_id) = &self.request_id {
            headers::set(
                headers,
                REQUEST_ID,
                capped(request_id, HEADER_VALUE_BYTES_MAX),
            );
        }
    }
}

/// The text, cut at a character when it is longer than so many bytes.
fn capped(text: &str, bytes_max: usize) -> &str {
    let end = text.floor_char_boundary(bytes_max);
    text.get(..end).unwrap_or(text)
}

#[cfg(test)]
mod tests;
