//! `Produce`: one batch to the leader of one partition, and how surely it was or was not written.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TransactionalId};
use kafka_protocol::protocol::StrBytes;

use super::api::{check_code, only};
use super::cluster::{Cluster, Target, topic_name};
use super::connection::Deadline;
use crate::kafka::KafkaError;
use crate::types::TopicPartition;

/// All in-sync replicas.
const ACKS_ALL: i16 = -1;

/// How an append ended that was not acknowledged.
#[derive(Debug, Clone)]
pub(super) enum AppendError {
    /// Nothing was written, by this try or one before it.
    Refused(KafkaError),
    /// It may have been written.
    Unknown(KafkaError),
    /// The leader has forgotten the producer, or what it had written last, so it cannot know a batch again.
    Forgotten {
        /// What it said.
        error: KafkaError,
        /// Whether the batch may have been written by a try before.
        in_doubt: bool,
    },
    /// There is a newer epoch of the producer.
    Fenced,
}

/// Requests that were sent and not answered with a clear no: each may have been acted on, or may be yet.
#[derive(Debug, Default)]
pub(super) struct Doubt(AtomicU32);

impl Doubt {
    /// A request is on its way.
    pub(super) fn sent(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The last one was answered, so that nothing of it is on its way any more.
    pub(super) fn settled(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether there is any.
    pub(super) fn is_left(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Cluster {
    /// Appends an encoded batch. Sent again, by the one retry loop or by the caller, it is known again by its sequence numbers;
    /// `was_sent` tells that a call before ended without a clear answer.
    pub(super) async fn produce(
        &self,
        transactional_id: Option<&str>,
        to: &TopicPartition,
        batch: &Bytes,
        was_sent: bool,
        deadline: Deadline,
    ) -> Result<(), AppendError> {
        let doubt = Doubt::default();
        let timeout = self.config().request_timeout;
        let asked = self.ask_until(
            deadline,
            Target::Leader(to),
            Duration::ZERO,
            |_| {
                doubt.sent();
                request(transactional_id, to, batch, timeout)
            },
            |response| check(to, response, &doubt),
        );
        let answer = asked.await;
        answer.or_else(|error| judge(to, error, was_sent || doubt.is_left()))
    }
}

fn request(
    transactional_id: Option<&str>,
    to: &TopicPartition,
    batch: &Bytes,
    timeout: Duration,
) -> ProduceRequest {
    let data = PartitionProduceData::default()
        .with_index(to.partition)
        .with_records(Some(batch.clone()));
    let topic = TopicProduceData::default()
        .with_name(topic_name(&to.topic))
        .with_partition_data(vec![data]);
    let transactional_id =
        transactional_id.map(|id| TransactionalId(StrBytes::from_string(id.to_owned())));
    ProduceRequest::default()
        .with_transactional_id(transactional_id)
        .with_acks(ACKS_ALL)
        .with_timeout_ms(i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX))
        .with_topic_data(vec![topic])
}

fn check(to: &TopicPartition, response: ProduceResponse, doubt: &Doubt) -> Result<(), KafkaError> {
    let topic = only("Produce", &to.topic, response.responses, |topic| {
        topic.name.as_str() == &*to.topic
    })?;
    let found = only(
        "Produce",
        &to.to_string(),
        topic.partition_responses,
        |found| found.index == to.partition,
    )?;
    if is_unwritten(found.error_code) {
        doubt.settled();
    }
    check_code(
        format!("Produce to {to}"),
        found.error_code,
        found.error_message.as_ref(),
    )
}

/// The codes that a leader answers with before it writes. NotLeaderOrFollower (6) and KafkaStorageError (56) are not among them: a leader
/// that loses its office while it waits for the replicas says so of what it has written.
const fn is_unwritten(code: i16) -> bool {
    matches!(
        code,
        // CorruptMessage, UnknownTopicOrPartition, MessageTooLarge, InvalidTopic, RecordListTooLarge, NotEnoughReplicas
        2 | 3 | 10 | 17 | 18 | 19
        // TopicAuthorizationFailed, ClusterAuthorizationFailed, InvalidTimestamp, UnsupportedVersion, InvalidRequest, PolicyViolation
        | 29 | 31 | 32 | 35 | 42 | 44
        // OutOfOrderSequenceNumber, DuplicateSequenceNumber, InvalidProducerEpoch, InvalidTxnState, InvalidProducerIdMapping
        | 45
            ..=49
        // ConcurrentTransactions, TransactionalIdAuthorizationFailed, UnknownProducerId, UnsupportedCompressionType, InvalidRecord,
        // ProducerFenced
        | 51 | 53 | 59 | 76 | 87 | 90
    )
}

/// What an error means for the batch; `in_doubt` tells whether an earlier try may have written it.
fn judge(to: &TopicPartition, error: KafkaError, in_doubt: bool) -> Result<(), AppendError> {
    match error.server_code() {
        // The leader has it already. Of a batch that was sent once, that is the word of a leader that confuses it with another.
        Some(46) if in_doubt => Ok(()),
        Some(45 | 46 | 49 | 59) => Err(AppendError::Forgotten { error, in_doubt }),
        Some(47 | 90) => Err(AppendError::Fenced),
        _ if in_doubt => Err(AppendError::Unknown(error)),
        Some(10 | 18) => Err(AppendError::Refused(KafkaError::TooLarge {
            partition: to.clone(),
        })),
        _ => Err(AppendError::Refused(error)),
    }
}
