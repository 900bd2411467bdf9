//! What can go wrong with Kafka.

use std::time::Duration;

use crate::types::{Offset, TopicPartition};

/// What Kafka, or the way to it, said. Messages name what the operator can look at; none repeats its source.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum KafkaError {
    /// No broker could be dialled.
    #[error("no broker answers at {brokers} (kafka.brokers): {detail}")]
    Unreachable {
        /// The addresses that were tried.
        brokers: String,
        /// What the last of them said.
        detail: String,
    },
    /// The broker does not accept who we are.
    #[error("the broker refuses SASL {mechanism} for {who}: {detail}")]
    Authentication {
        /// Kafka's name of the mechanism.
        mechanism: &'static str,
        /// Who we said we are, with the settings that say it.
        who: String,
        /// What the broker said.
        detail: String,
    },
    /// What proves who we are, or whom to trust, cannot be had: a file, a token, or what the processor lacks.
    #[error("{detail}")]
    Credentials {
        /// Which setting leads to it, and what is wrong.
        detail: String,
    },
    /// The broker was reached, and there is no TLS with it.
    #[error("TLS with {broker} fails: {detail}")]
    Tls {
        /// Its address.
        broker: String,
        /// Why, and the setting to look at.
        detail: String,
    },
    /// No answer in time.
    #[error("{operation}: no answer within {after:?} (kafka.request_timeout)")]
    Timeout {
        /// What was asked.
        operation: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// The connection ended before the answer came.
    #[error("{operation}: the connection to the broker was lost: {detail}")]
    Disconnected {
        /// What was asked.
        operation: &'static str,
        /// What the socket said.
        detail: String,
    },
    /// The broker answered with an error code.
    #[error(
        "{operation}: the broker answered {name} ({code}){}",
        detail_suffix(detail)
    )]
    Server {
        /// What was asked, with its topic.
        operation: String,
        /// Kafka's error code.
        code: i16,
        /// Kafka's name of it.
        name: String,
        /// The broker's own message, when it sent one.
        detail: Option<String>,
    },
    /// The answer cannot be read, or is not an answer to what was asked.
    #[error("{operation}: the broker's answer cannot be read: {detail}")]
    Protocol {
        /// What was asked.
        operation: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The topic does not exist.
    #[error("topic `{topic}` does not exist")]
    UnknownTopic {
        /// Its name.
        topic: String,
    },
    /// The topic exists, that partition of it does not.
    #[error("partition {partition} does not exist")]
    UnknownPartition {
        /// The partition.
        partition: TopicPartition,
    },
    /// The position is outside the log.
    #[error(
        "offset {offset} of {partition} is outside the log, which holds {log_start} (inclusive) to {high_watermark} (exclusive)"
    )]
    OffsetOutOfRange {
        /// The partition.
        partition: TopicPartition,
        /// What was asked for.
        offset: Offset,
        /// First offset that exists.
        log_start: Offset,
        /// End of the log, exclusive.
        high_watermark: Offset,
    },
    /// Reading does not get to where the log ended: it was cut meanwhile, or its leader withholds what it has told of.
    #[error(
        "reading of {partition} stays at offset {position}, although the log ended at {end} (exclusive); it ends at {high_watermark} now"
    )]
    Stalled {
        /// The partition.
        partition: TopicPartition,
        /// How far reading came.
        position: Offset,
        /// Where the log ended when reading began, exclusive.
        end: Offset,
        /// Where it ends now, exclusive.
        high_watermark: Offset,
    },
    /// The driver cannot read what lies at that offset.
    #[error("{partition} cannot be read at offset {offset} by this driver: {detail}")]
    Unreadable {
        /// The partition.
        partition: TopicPartition,
        /// Where the unreadable batch lies, or earlier.
        offset: Offset,
        /// What the driver said.
        detail: String,
    },
    /// The transaction's coordinator has aborted it, and nobody else has taken its id.
    #[error(
        "the broker has ended transaction `{transactional_id}`, as it was open for longer than its timeout; it is begun again"
    )]
    TransactionTimedOut {
        /// Names the writer.
        transactional_id: String,
    },
    /// The batch, or the one record in it, is larger than the topic accepts.
    #[error("a batch for {partition} is larger than the topic's max.message.bytes")]
    TooLarge {
        /// The partition.
        partition: TopicPartition,
    },
}

fn detail_suffix(detail: &Option<String>) -> String {
    detail
        .as_ref()
        .map(|text| format!(": {text}"))
        .unwrap_or_default()
}

impl KafkaError {
    /// Kafka's error code, when a broker answered with one.
    #[must_use]
    pub const fn server_code(&self) -> Option<i16> {
        match self {
            Self::Server { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether asking the same again may succeed although nobody changes a setting: the way to Kafka is disturbed, a leader or
    /// coordinator is moving, or the broker itself calls its state passing.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Disconnected { .. }
            | Self::Stalled { .. }
            // Certificates and tokens are renewed by others, without a setting.
            | Self::Credentials { .. }
            | Self::Tls { .. } => true,
            Self::Server { code, .. } => is_transient_code(*code),
            Self::Authentication { .. }
            | Self::Protocol { .. }
            | Self::UnknownTopic { .. }
            | Self::UnknownPartition { .. }
            | Self::OffsetOutOfRange { .. }
            | Self::Unreadable { .. }
            | Self::TransactionTimedOut { .. }
            | Self::TooLarge { .. } => false,
        }
    }
}

/// Kafka's codes that pass by themselves, most of them after looking up again who leads or coordinates.
const fn is_transient_code(code: i16) -> bool {
    matches!(
        code,
        // UnknownTopicOrPartition: a broker that has not heard of a new topic yet says this too.
        3
        // LeaderNotAvailable, NotLeaderOrFollower, RequestTimedOut, ReplicaNotAvailable, NetworkException
        | 5 | 6 | 7 | 9 | 13
        // CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator: also while the internal topic is being made.
        | 14 | 15 | 16
        // NotEnoughReplicas, NotEnoughReplicasAfterAppend, NotController, KafkaStorageError
        | 19 | 20 | 41 | 56
        // FencedLeaderEpoch, UnknownLeaderEpoch, OffsetNotAvailable, UnstableOffsetCommit
        | 74 | 75 | 78 | 88
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::ResponseError;

    #[test]
    fn transient_codes_are_those_that_kafka_calls_retriable() {
        for code in -1..=130 {
            if is_transient_code(code) {
                let error = ResponseError::try_from_code(code).expect("a known code");
                assert!(error.is_retriable(), "{error:?} ({code}) is retriable");
            }
        }
    }
}
