//! The record of a result: the answer, and all that is needed to trace, count and repeat it.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::records::headers;
use crate::spans::TraceHeaders;
use crate::types::{Offset, Record, SourcePosition, TopicPartition};

/// Version of the value's schema. It rises when a field changes its meaning; new fields leave it.
pub const SCHEMA_VERSION: u32 = 1;

/// How usable the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResultStatus {
    /// The model finished its answer.
    Ok,
    /// The answer ended at the token limit (`finish_reason` is `length`), or a part of the document was left out.
    Truncated,
}

impl ResultStatus {
    /// The header value and metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Truncated => "truncated",
        }
    }
}

/// What the model answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "OutputFields")]
pub enum ResultOutput {
    /// Free text.
    Text(String),
    /// JSON that was asked for by a schema.
    Data(Value),
}

/// The fields as they are read: a writer of a later version may have added others.
#[derive(Deserialize)]
struct OutputFields {
    text: Option<String>,
    data: Option<Value>,
}

impl TryFrom<OutputFields> for ResultOutput {
    type Error = &'static str;

    fn try_from(fields: OutputFields) -> Result<Self, Self::Error> {
        match fields {
            OutputFields {
                data: Some(data), ..
            } => Ok(Self::Data(data)),
            OutputFields {
                text: Some(text), ..
            } => Ok(Self::Text(text)),
            OutputFields {
                text: None,
                data: None,
            } => Err("`output` has neither `text` nor `data`"),
        }
    }
}

/// Tokens of one document, over all its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResultUsage {
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// Calls that were answered with a result.
    pub calls: u32,
}

/// Where the time went, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResultTiming {
    /// From fetched to first sent.
    pub queued_ms: u64,
    /// The call that succeeded.
    pub llm_ms: u64,
    /// From fetched to answered, retries and holds included.
    pub total_ms: u64,
}

/// Where the document came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultSource {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: Offset,
    /// Time stamp of the input record, when it has one.
    pub timestamp: Option<Timestamp>,
}

impl ResultSource {
    /// Names the source of a record; `timestamp_ms` is Kafka's, −1 when there is none.
    #[must_use]
    pub fn new(position: &SourcePosition, timestamp_ms: i64) -> Self {
        Self {
            topic: position.topic_partition.topic.to_string(),
            partition: position.topic_partition.partition,
            offset: position.offset,
            timestamp: timestamp(timestamp_ms),
        }
    }

    /// The position as the other parts have it.
    #[must_use]
    pub fn position(&self) -> SourcePosition {
        SourcePosition {
            topic_partition: TopicPartition::new(self.topic.as_str(), self.partition),
            offset: self.offset,
        }
    }
}

/// A time stamp as Kafka has it; `None` for −1 and for what no calendar holds.
pub(super) fn timestamp(timestamp_ms: i64) -> Option<Timestamp> {
    if timestamp_ms < 0 {
        return None;
    }
    Timestamp::from_millisecond(timestamp_ms).ok()
}

/// The value of a result record. Readers tolerate fields that they do not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultRecord {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema: u32,
    /// The document's name.
    pub document_id: String,
    /// How usable the answer is.
    pub status: ResultStatus,
    /// The answer.
    pub output: ResultOutput,
    /// As vLLM names it: `stop`, `length`, …
    pub finish_reason: String,
    /// The model that the server says answered.
    pub model: String,
    /// The server's build, when told.
    #[serde(default)]
    pub system_fingerprint: Option<String>,
    /// Hash of the configuration that was in force.
    #[serde(default)]
    pub generation: String,
    /// Hash of the prompt template.
    #[serde(default)]
    pub prompt_hash: String,
    /// Hash of the JSON Schema that the answer keeps to; null without one.
    #[serde(default)]
    pub schema_hash: Option<String>,
    /// Tokens.
    pub usage: ResultUsage,
    /// Durations.
    pub timing: ResultTiming,
    /// Attempts that were made, the one that succeeded included.
    pub attempts: u32,
    /// What was cut: `output` when the answer ended at the token limit, `document` when a part of the document was left out,
    /// `document, output` when both.
    #[serde(default)]
    pub truncated: Option<String>,
    /// What was done with a document that is longer than the model's context: `policy` is `map_reduce`, with `parts`, `levels`, `calls` and
    /// `notes_cut`, or `truncate`, with `keep` and `left_out_characters`. Null when it was read whole in one call.
    #[serde(default)]
    pub long_document: Option<Value>,
    /// Whether this is the answer that an identical document got, without a call of its own.
    #[serde(default)]
    pub cached: bool,
    /// Where the document came from.
    pub source: ResultSource,
    /// `X-Request-Id` of the attempt that succeeded: finds the call in the server's log.
    #[serde(default)]
    pub request_id: String,
    /// When the answer was complete.
    pub completed_at: Timestamp,
}

impl ResultRecord {
    /// The record for the output topic: the document's own key, the value as JSON, and the headers of [`headers`].
    ///
    /// # Panics
    /// Never: text, numbers and JSON values can always be written to memory.
    #[must_use]
    pub fn into_record(self, key: Option<Bytes>, trace: Option<&TraceHeaders>) -> Record {
        #[allow(
            clippy::expect_used,
            reason = "text, numbers and JSON values can always be written to memory"
        )]
        let value = serde_json::to_vec(&self).expect("a result is plain data");
        let mut headers = Vec::with_capacity(8);
        headers::set_source(&mut headers, &self.source.position());
        headers::set(&mut headers, headers::DOCUMENT_ID, self.document_id);
        headers::set(&mut headers, headers::SCHEMA, self.schema.to_string());
        headers::set(&mut headers, headers::STATUS, self.status.as_str());
        if let Some(trace) = trace {
            headers::set_trace(&mut headers, trace);
        }
        Record {
            key,
            value: Some(Bytes::from(value)),
            headers,
            timestamp_ms: self.completed_at.as_millisecond(),
        }
    }

    /// Reads the value of a record of the output topic.
    ///
    /// # Errors
    /// When it is not a result: no JSON, or a field is missing or of another type.
    pub fn parse(value: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result() -> ResultRecord {
        ResultRecord {
            schema: SCHEMA_VERSION,
            document_id: "report-1".to_owned(),
            status: ResultStatus::Ok,
            output: ResultOutput::Text("Revenue rose.".to_owned()),
            finish_reason: "stop".to_owned(),
            model: "mistral".to_owned(),
            system_fingerprint: None,
            generation: "g1".to_owned(),
            prompt_hash: "p1".to_owned(),
            schema_hash: None,
            usage: ResultUsage {
                prompt_tokens: 10,
                completion_tokens: 5,
                total_tokens: 15,
                calls: 1,
            },
            timing: ResultTiming {
                queued_ms: 1,
                llm_ms: 50,
                total_ms: 52,
            },
            attempts: 1,
            truncated: None,
            long_document: None,
            cached: false,
            source: ResultSource::new(
                &SourcePosition {
                    topic_partition: TopicPartition::new("docs", 2),
                    offset: Offset::new(41),
                },
                1_700_000_000_000,
            ),
            request_id: "docs-2-41-1".to_owned(),
            completed_at: Timestamp::from_second(1_700_000_001).unwrap(),
        }
    }

    #[test]
    fn the_value_has_the_promised_fields() {
        let record = result().into_record(None, None);
        let value: Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        assert_eq!(
            value,
            json!({
                "schema": 1, "document_id": "report-1", "status": "ok",
                "output": {"text": "Revenue rose."}, "finish_reason": "stop",
                "model": "mistral", "system_fingerprint": null, "generation": "g1", "prompt_hash": "p1", "schema_hash": null,
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "calls": 1},
                "timing": {"queued_ms": 1, "llm_ms": 50, "total_ms": 52},
                "attempts": 1, "truncated": null, "long_document": null, "cached": false,
                "source": {"topic": "docs", "partition": 2, "offset": 41, "timestamp": "2023-11-14T22:13:20Z"},
                "request_id": "docs-2-41-1", "completed_at": "2023-11-14T22:13:21Z"
            })
        );
    }

    #[test]
    fn a_result_is_read_as_it_was_written() {
        let written = ResultRecord {
            status: ResultStatus::Truncated,
            output: ResultOutput::Data(json!({"label": "earnings"})),
            truncated: Some("output".to_owned()),
            ..result()
        };
        let record = written.clone().into_record(None, None);
        assert_eq!(
            ResultRecord::parse(record.value.as_ref().unwrap()).unwrap(),
            written
        );
    }

    #[test]
    fn key_headers_and_trace_context_are_set() {
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = TraceHeaders::parse(traceparent, Some("a=1")).unwrap();
        let record = result().into_record(Some(Bytes::from_static(b"k")), Some(&trace));
        assert_eq!(record.key.as_deref(), Some(b"k".as_slice()));
        assert_eq!(headers::source(&record), Some(result().source.position()));
        assert_eq!(
            headers::text(&record, headers::DOCUMENT_ID),
            Some("report-1")
        );
        assert_eq!(headers::text(&record, headers::SCHEMA), Some("1"));
        assert_eq!(headers::text(&record, headers::STATUS), Some("ok"));
        assert_eq!(headers::trace(&record), Some(trace));
        assert_eq!(record.timestamp_ms, 1_700_000_001_000);
    }

    #[test]
    fn fields_of_a_later_version_are_tolerated() {
        let mut value = serde_json::to_value(result()).unwrap();
        value["later"] = json!(true);
        value["output"]["later"] = json!(true);
        value["usage"]["later"] = json!(true);
        let read = ResultRecord::parse(value.to_string().as_bytes()).unwrap();
        assert_eq!(read, result());
    }

    #[test]
    fn a_missing_source_time_stamp_is_null() {
        let position = result().source.position();
        assert_eq!(ResultSource::new(&position, -1).timestamp, None);
        assert_eq!(ResultSource::new(&position, i64::MAX).timestamp, None);
    }

    #[test]
    fn what_is_no_result_is_an_error() {
        assert!(ResultRecord::parse(b"plain text").is_err());
        assert!(ResultRecord::parse(b"{}").is_err());
    }
}
