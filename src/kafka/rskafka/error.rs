//! rskafka's errors in our words.

use rskafka::client::error::{Error, ProtocolError, RequestError};

use super::super::{KafkaError, StepError};
use crate::types::{Offset, TopicPartition};

/// Translates an error. What only the caller knows (the log's bounds, the fetch offset) is left to it.
pub(super) fn translate(
    operation: &'static str,
    partition: Option<&TopicPartition>,
    error: &Error,
) -> KafkaError {
    let of = |partition: Option<&TopicPartition>| {
        partition.map_or_else(
            || operation.to_owned(),
            |partition| format!("{operation} {partition}"),
        )
    };
    match error {
        Error::ServerError {
            protocol_error: ProtocolError::UnknownTopicOrPartition,
            ..
        } => KafkaError::UnknownTopic {
            topic: partition.map_or_else(String::new, |partition| partition.topic.to_string()),
        },
        Error::ServerError {
            protocol_error: ProtocolError::MessageTooLarge | ProtocolError::RecordListTooLarge,
            ..
        } => KafkaError::TooLarge {
            partition: partition
                .cloned()
                .unwrap_or_else(|| TopicPartition::new("", -1)),
        },
        Error::ServerError {
            protocol_error,
            error_message,
            ..
        } => KafkaError::Server {
            operation: of(partition),
            code: code(*protocol_error),
            name: format!("{protocol_error:?}"),
            detail: error_message.clone(),
        },
        Error::Connection(_) | Error::RetryFailed(_) | Error::Timeout => KafkaError::Disconnected {
            operation,
            detail: error.to_string(),
        },
        Error::Request(RequestError::IO(_) | RequestError::Poisoned(_)) => {
            KafkaError::Disconnected {
                operation,
                detail: error.to_string(),
            }
        }
        // The enum may grow; whatever else there is, it is an answer that could not be used.
        _ => KafkaError::Protocol {
            operation,
            detail: error.to_string(),
        },
    }
}

/// An answer to a fetch that rskafka cannot read: a transaction marker, a header without a value, a time stamp beyond its calendar, a codec it
/// was built without, or rubbish. The connection is fine.
pub(super) fn is_unreadable(error: &Error) -> bool {
    matches!(
        error,
        Error::Request(RequestError::ReadVersionedError(_) | RequestError::ReadError(_))
            | Error::InvalidResponse(_)
    )
}

/// The position lies outside the log.
pub(super) fn is_out_of_range(error: &Error) -> bool {
    matches!(
        error,
        Error::ServerError {
            protocol_error: ProtocolError::OffsetOutOfRange,
            ..
        }
    )
}

/// How an append ended that rskafka gave up: only a refusal before anything was written is certain.
pub(super) fn append_outcome(partition: &TopicPartition, error: &Error) -> StepError {
    let kafka = translate("append to", Some(partition), error);
    let refused = matches!(
        error,
        Error::ServerError {
            protocol_error: ProtocolError::MessageTooLarge
                | ProtocolError::RecordListTooLarge
                | ProtocolError::UnknownTopicOrPartition
                | ProtocolError::TopicAuthorizationFailed
                | ProtocolError::InvalidRecord
                | ProtocolError::InvalidTimestamp
                | ProtocolError::CorruptMessage
                | ProtocolError::NotEnoughReplicas,
            ..
        }
    );
    if refused {
        StepError::Refused(kafka)
    } else {
        StepError::OutcomeUnknown(kafka)
    }
}

/// Whether the broker did not like what is in a batch: of several parts that went out together each may be fine without the others.
pub(super) fn is_about_content(error: &StepError) -> bool {
    let StepError::Refused(error) = error else {
        return false;
    };
    // CorruptMessage, InvalidTimestamp, InvalidRecord
    matches!(error, KafkaError::TooLarge { .. }) || matches!(error.server_code(), Some(2 | 32 | 87))
}

/// The error for a position outside the log, once the bounds are known.
pub(super) fn out_of_range(
    partition: &TopicPartition,
    offset: Offset,
    (log_start, high_watermark): (Offset, Offset),
) -> KafkaError {
    KafkaError::OffsetOutOfRange {
        partition: partition.clone(),
        offset,
        log_start,
        high_watermark,
    }
}

/// Kafka's number for the errors an operator is likely to look up; −1 for the rest, whose name is shown.
fn code(error: ProtocolError) -> i16 {
    match error {
        ProtocolError::OffsetOutOfRange => 1,
        ProtocolError::CorruptMessage => 2,
        ProtocolError::LeaderNotAvailable => 5,
        ProtocolError::NotLeaderOrFollower => 6,
        ProtocolError::RequestTimedOut => 7,
        ProtocolError::NotEnoughReplicas => 19,
        ProtocolError::NotEnoughReplicasAfterAppend => 20,
        ProtocolError::TopicAuthorizationFailed => 29,
        ProtocolError::InvalidTimestamp => 32,
        ProtocolError::KafkaStorageError => 56,
        ProtocolError::InvalidRecord => 87,
        _ => -1,
    }
}
