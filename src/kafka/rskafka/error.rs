//! rskafka's errors in our words.

use rskafka::client::error::{Error, ProtocolError, RequestError};

use super::super::KafkaError;
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

/// An answer to a fetch that rskafka cannot read: a packed batch, a transaction marker, a header without a value, a time stamp beyond its
/// calendar, or rubbish. The connection is fine.
pub(super) fn is_unreadable(error: &Error) -> bool {
    matches!(
        error,
        Error::Request(RequestError::ReadVersionedError(_) | RequestError::ReadError(_))
            | Error::InvalidResponse(_)
    )
}

/// The answer is unreadable because a batch is packed: rskafka is built without codecs. It tells so in words alone.
pub(super) fn is_packed(error: &Error) -> bool {
    error.to_string().contains("Unimplemented compression")
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
        ProtocolError::TopicAuthorizationFailed => 29,
        ProtocolError::KafkaStorageError => 56,
        _ => -1,
    }
}
