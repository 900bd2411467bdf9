//! The reason headers that other systems' tools read. Our own stand beside them in every style.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{DeadLetter, HEADER_VALUE_BYTES_MAX, capped};
use crate::types::{DeadLetterReason, Header};

const CONNECT_PREFIX: &str = "__connect.errors.";
const SPRING_PREFIX: &str = "kafka_dlt-";
const SHARE_PREFIX: &str = "__dlq.errors.";

/// Whose reason headers a dead letter has beside our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderStyle {
    /// Kafka Connect's `DeadLetterQueueReporter`: `__connect.errors.…`, all of it text.
    #[default]
    Connect,
    /// Spring Kafka's `DeadLetterPublishingRecoverer`: `kafka_dlt-…`, with the partition as an int of 4 bytes, offset and time stamp as longs
    /// of 8, big-endian.
    Spring,
    /// The dead-letter queue of Kafka's share groups (KIP-1191): `__dlq.errors.…`, all of it text.
    Share,
}

impl HeaderStyle {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Spring, Self::Share];

    /// The setting's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Spring => "spring",
            Self::Share => "share",
        }
    }

    /// The style of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|style| style.as_str() == name)
    }

    /// What the names of its headers begin with.
    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::Connect => CONNECT_PREFIX,
            Self::Spring => SPRING_PREFIX,
            Self::Share => SHARE_PREFIX,
        }
    }

    /// Its headers for a dead letter; `timestamp_ms` is that of the original.
    pub(super) fn headers(
        self,
        letter: &DeadLetter,
        timestamp_ms: i64,
        group_id: &str,
    ) -> Vec<Header> {
        let headers = match self {
            Self::Connect => connect(letter, group_id),
            Self::Spring => spring(letter, timestamp_ms, group_id),
            Self::Share => share(letter, group_id),
        };
        let prefix = self.prefix();
        let headers = headers.into_iter();
        headers
            .map(|(name, value)| Header::new(format!("{prefix}{name}"), value))
            .collect()
    }
}

type Named = (&'static str, Bytes);

fn connect(letter: &DeadLetter, group_id: &str) -> Vec<Named> {
    let source = &letter.source.topic_partition;
    let partition = source.partition.to_string();
    vec![
        ("topic", text(&source.topic)),
        ("partition", text(&partition)),
        ("offset", text(&letter.source.offset.to_string())),
        ("connector.name", text(group_id)),
        ("task.id", text(&partition)),
        ("stage", text(stage(letter.reason))),
        ("class.name", text("kafka_llm_processor::pipeline")),
        ("exception.class.name", text(&class(letter.reason))),
        ("exception.message", text(&letter.detail)),
        ("exception.stacktrace", text(&trace(letter))),
    ]
}

fn spring(letter: &DeadLetter, timestamp_ms: i64, group_id: &str) -> Vec<Named> {
    let source = &letter.source.topic_partition;
    // A driver does not tell whether the broker has set the time; topics where it has are the exception.
    let timestamp_type = if timestamp_ms < 0 {
        "NoTimestampType"
    } else {
        "CreateTime"
    };
    let binary = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
    vec![
        ("original-topic", text(&source.topic)),
        (
            "original-partition",
            binary(&source.partition.to_be_bytes()),
        ),
        (
            "original-offset",
            binary(&letter.source.offset.value().to_be_bytes()),
        ),
        ("original-timestamp", binary(&timestamp_ms.to_be_bytes())),
        ("original-timestamp-type", text(timestamp_type)),
        ("original-consumer-group", text(group_id)),
        ("exception-fqcn", text(&class(letter.reason))),
        ("exception-message", text(&letter.detail)),
        ("exception-stacktrace", text(&trace(letter))),
    ]
}

fn share(letter: &DeadLetter, group_id: &str) -> Vec<Named> {
    let source = &letter.source.topic_partition;
    // What was never sent to the model was delivered to us all the same.
    let deliveries = letter.attempts.max(1);
    vec![
        ("topic", text(&source.topic)),
        ("partition", text(&source.partition.to_string())),
        ("offset", text(&letter.source.offset.to_string())),
        ("group", text(group_id)),
        ("delivery.count", text(&deliveries.to_string())),
        ("message", text(&letter.detail)),
    ]
}

fn text(value: &str) -> Bytes {
    Bytes::copy_from_slice(capped(value, HEADER_VALUE_BYTES_MAX).as_bytes())
}

/// The place of an exception's class.
fn class(reason: DeadLetterReason) -> String {
    format!("kafka_llm_processor::{reason:?}")
}

/// How the names of those headers end that only repeat others.
pub(super) const STACKTRACE: &str = "stacktrace";

/// The first line of a Java stack trace, which is all that there is of one.
fn trace(letter: &DeadLetter) -> String {
    format!("{}: {}", class(letter.reason), letter.detail)
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
