//! The record of a document that was given up: as it came, and why.
//!
//! Key, value, headers and time stamp are those of the original, so that it can be sent again. The reason is told twice: in the
//! headers of Kafka Connect's dead-letter queue, which existing tools show, and in our own. A document that is given up again
//! after a replay has its reason headers replaced: they never grow.

use jiff::Timestamp;

use crate::records::headers;
use crate::types::{DeadLetterReason, Header, Record, SourcePosition};

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

const CONNECT_TOPIC: &str = "__connect.errors.topic";
const CONNECT_PARTITION: &str = "__connect.errors.partition";
const CONNECT_OFFSET: &str = "__connect.errors.offset";
const CONNECT_CONNECTOR_NAME: &str = "__connect.errors.connector.name";
const CONNECT_TASK_ID: &str = "__connect.errors.task.id";
const CONNECT_STAGE: &str = "__connect.errors.stage";
const CONNECT_CLASS_NAME: &str = "__connect.errors.class.name";
const CONNECT_EXCEPTION_CLASS_NAME: &str = "__connect.errors.exception.class.name";
const CONNECT_EXCEPTION_MESSAGE: &str = "__connect.errors.exception.message";
const CONNECT_PREFIX: &str = "__connect.errors.";
const OWN_PREFIX: &str = "klp.";

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
    /// The record for the dead-letter topic: the original with the reason in its headers. `group_id` names us in the headers of
    /// Kafka Connect.
    #[must_use]
    pub fn record(&self, original: &Record, group_id: &str) -> Record {
        let mut headers: Vec<Header> = original
            .headers
            .iter()
            .filter(|header| !is_reason_header(&header.name))
            .cloned()
            .collect();
        self.add_headers(&mut headers, group_id);
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
    /// and headers of the original; the trace context and a short key stay.
    #[must_use]
    pub fn pointer(&self, original: &Record, group_id: &str) -> Record {
        let mut headers = Vec::new();
        if let Some(traceparent) = headers::traceparent(original) {
            headers::set(&mut headers, headers::TRACEPARENT, traceparent);
        }
        self.add_headers(&mut headers, group_id);
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

    fn add_headers(&self, headers: &mut Vec<Header>, group_id: &str) {
        let source = &self.source.topic_partition;
        let partition = source.partition.to_string();
        let offset = self.source.offset.to_string();
        let at = self.at.to_string();
        let attempts = self.attempts.to_string();
        let class = format!("kafka_llm_processor::{:?}", self.reason);
        for (name, value) in [
            (CONNECT_TOPIC, source.topic.as_ref()),
            (CONNECT_PARTITION, &partition),
            (CONNECT_OFFSET, &offset),
            (CONNECT_CONNECTOR_NAME, group_id),
            (CONNECT_TASK_ID, &partition),
            (CONNECT_STAGE, stage(self.reason)),
            (CONNECT_CLASS_NAME, "kafka_llm_processor::pipeline"),
            (CONNECT_EXCEPTION_CLASS_NAME, &class),
            (CONNECT_EXCEPTION_MESSAGE, &self.detail),
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

/// Headers that a former giving-up has left, ours or another connector's: of both only the newest says why the record is here.
fn is_reason_header(name: &str) -> bool {
    name.starts_with(CONNECT_PREFIX) || name.starts_with(OWN_PREFIX)
}

/// The nearest of Kafka Connect's own stages, as its `Stage` enum spells them.
const fn stage(reason: DeadLetterReason) -> &'static str {
    match reason {
        DeadLetterReason::EmptyDocument
        | DeadLetterReason::InvalidJson
        | DeadLetterReason::InvalidUtf8
        | DeadLetterReason::MissingContent => "VALUE_CONVERTER",
        DeadLetterReason::PromptFailed => "TRANSFORMATION",
        DeadLetterReason::ContextLengthExceeded
        | DeadLetterReason::RequestRejected
        | DeadLetterReason::AttemptsExhausted
        | DeadLetterReason::DeadlineExceeded
        | DeadLetterReason::InvalidResponse
        | DeadLetterReason::SchemaViolation
        | DeadLetterReason::EngineKilled => "TASK_PUT",
        DeadLetterReason::ResultTooLarge => "KAFKA_PRODUCE",
    }
}

/// The text, cut at a character when it is longer than so many bytes.
fn capped(text: &str, bytes_max: usize) -> &str {
    let end = text.floor_char_boundary(bytes_max);
    text.get(..end).unwrap_or(text)
}

#[cfg(test)]
mod tests {
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
        let record = dead_letter().record(&original(), "group");
        assert_eq!(record.key, original().key);
        assert_eq!(record.value, original().value);
        assert_eq!(record.timestamp_ms, 77);
        assert_eq!(record.headers[..3], original().headers[..]);
    }

    #[test]
    fn the_reason_is_read_as_it_was_written() {
        let written = dead_letter();
        assert_eq!(
            DeadLetter::read(&written.record(&original(), "group")),
            Some(written.clone())
        );
        assert_eq!(
            DeadLetter::read(&written.pointer(&original(), "group")),
            Some(written)
        );
        let never_sent = DeadLetter {
            http_status: None,
            request_id: None,
            attempts: 0,
            ..dead_letter()
        };
        assert_eq!(
            DeadLetter::read(&never_sent.record(&original(), "group")),
            Some(never_sent)
        );
        assert_eq!(DeadLetter::read(&original()), None);
    }

    #[test]
    fn kafka_connects_headers_are_text() {
        let record = dead_letter().record(&original(), "group");
        for (name, value) in [
            (CONNECT_TOPIC, "docs"),
            (CONNECT_PARTITION, "0"),
            (CONNECT_OFFSET, "5"),
            (CONNECT_CONNECTOR_NAME, "group"),
            (CONNECT_TASK_ID, "0"),
            (CONNECT_STAGE, "VALUE_CONVERTER"),
            (CONNECT_CLASS_NAME, "kafka_llm_processor::pipeline"),
            (
                CONNECT_EXCEPTION_CLASS_NAME,
                "kafka_llm_processor::InvalidJson",
            ),
            (
                CONNECT_EXCEPTION_MESSAGE,
                "EOF while parsing at line 1 column 9",
            ),
        ] {
            assert_eq!(headers::text(&record, name), Some(value), "{name}");
        }
    }

    #[test]
    fn a_second_dead_letter_replaces_the_first() {
        let first = dead_letter().record(&original(), "group");
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
        let second = again.record(&first, "group");
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
        let record = long.record(&original(), &"g".repeat(HEADER_VALUE_BYTES_MAX + 1));
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
        let record = whole.record(&original(), "group");
        assert_eq!(DeadLetter::read(&record).as_ref(), Some(&whole));
        assert_eq!(headers::text(&record, ANSWER_TRUNCATED), None);
        let fits = with("a".repeat(ANSWER_BYTES_MAX)).record(&original(), "group");
        assert_eq!(headers::text(&fits, ANSWER_TRUNCATED), None);

        let long = with(format!("a{}", "ä".repeat(ANSWER_BYTES_MAX / 2)));
        let record = long.record(&original(), "group");
        let kept = headers::text(&record, ANSWER).unwrap();
        assert_eq!(kept.len(), ANSWER_BYTES_MAX - 1, "cut at a character");
        assert_eq!(headers::text(&record, ANSWER_TRUNCATED), Some("true"));
        let pointer = long.pointer(&original(), "group");
        assert_eq!(headers::text(&pointer, ANSWER), None);
        assert_eq!(headers::text(&pointer, ANSWER_TRUNCATED), None);

        let again = with("short".to_owned()).record(&record, "group");
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
        let pointer = dead_letter().pointer(&large, "group");
        assert!(pointer.size() < 4096, "{}", pointer.size());
        assert_eq!(headers::text(&pointer, POINTER), Some("true"));
        assert_eq!(dead_letter().pointer(&original(), "g").key, original().key);
    }
}
