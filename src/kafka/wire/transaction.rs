//! Producer ids and transactions: `InitProducerId`, `AddPartitionsToTxn`, `EndTxn`, in the classic protocol (before KIP-890's part two),
//! which brokers of all versions speak. Pure request builders and response checkers around one exchange each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, EndTxnRequest, EndTxnResponse,
    InitProducerIdRequest, InitProducerIdResponse, ProducerId, TransactionalId,
};
use kafka_protocol::protocol::StrBytes;

use super::api::{CONCURRENT_TRANSACTIONS, check_code};
use super::cluster::{Cluster, Target, topic_name};
use super::connection::Deadline;
use super::produce::Doubt;
use crate::kafka::{End, KafkaError, StepError};
use crate::types::TopicPartition;

/// `transaction.timeout.ms`: how long the records of an owner that died hold back readers of what is committed, unless a successor ends its
/// transaction before.
const TRANSACTION_TIMEOUT_MS: i32 = 10_000;

/// InvalidTransactionTimeout.
const INVALID_TRANSACTION_TIMEOUT: i16 = 50;
/// UnknownTopicOrPartition.
const UNKNOWN_TOPIC: i16 = 3;
/// OperationNotAttempted: another partition of the same request was refused.
const NOT_ATTEMPTED: i16 = 55;
/// InvalidTxnState.
pub(super) const NO_TRANSACTION: i16 = 48;

/// A producer as brokers know it. A higher epoch of the same id fences the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Producer {
    pub(super) id: i64,
    pub(super) epoch: i16,
}

/// Stands for "a new one" in requests.
const NO_PRODUCER: Producer = Producer { id: -1, epoch: -1 };

/// A transactional id with the producer that holds it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writer<'a> {
    pub(super) transactional_id: &'a str,
    pub(super) producer: Producer,
}

impl Cluster {
    /// A producer id that nobody had before. A lost answer costs an id, of which there are enough.
    pub(super) async fn new_producer(&self, deadline: Deadline) -> Result<Producer, KafkaError> {
        self.ask_until(
            deadline,
            Target::Any,
            Duration::ZERO,
            |_| init_request(None, NO_PRODUCER),
            |response| check_init(&response),
        )
        .await
    }

    /// Becomes the producer of a transactional id: fences whoever was, and waits until the coordinator has aborted what they left open.
    pub(super) async fn take_transactional_id(
        &self,
        transactional_id: &str,
        deadline: Deadline,
    ) -> Result<Producer, StepError> {
        self.init(transactional_id, NO_PRODUCER, deadline).await
    }

    /// Raises our own epoch (KIP-360); who has lost the id meanwhile is told so. A lost answer may be asked for again: the coordinator
    /// remembers the epoch before.
    pub(super) async fn raise_epoch(
        &self,
        writer: Writer<'_>,
        deadline: Deadline,
    ) -> Result<Producer, StepError> {
        self.init(writer.transactional_id, writer.producer, deadline)
            .await
    }

    async fn init(
        &self,
        transactional_id: &str,
        producer: Producer,
        deadline: Deadline,
    ) -> Result<Producer, StepError> {
        self.ask_until(
            deadline,
            Target::TransactionCoordinator(transactional_id),
            Duration::ZERO,
            |_| init_request(Some(transactional_id), producer),
            |response| check_init(&response),
        )
        .await
        .map_err(step_error)
    }

    /// Adds partitions to the transaction, which opens it. `doubt` tells afterwards whether a request may still be on its way.
    pub(super) async fn add_to_transaction(
        &self,
        writer: Writer<'_>,
        partitions: &BTreeSet<&TopicPartition>,
        deadline: Deadline,
        doubt: &Doubt,
    ) -> Result<(), StepError> {
        self.ask_until(
            deadline,
            Target::TransactionCoordinator(writer.transactional_id),
            Duration::ZERO,
            |_| {
                doubt.sent();
                add_request(writer, partitions)
            },
            |response| {
                doubt.settled();
                check_add(partitions, &response)
            },
        )
        .await
        .map_err(step_error)
    }

    /// Ends the transaction. The coordinator takes the same end twice for done; `doubt` tells afterwards whether a request may still be on
    /// its way.
    pub(super) async fn end_transaction(
        &self,
        writer: Writer<'_>,
        end: End,
        deadline: Deadline,
        doubt: &Doubt,
    ) -> Result<(), StepError> {
        self.ask_until(
            deadline,
            Target::TransactionCoordinator(writer.transactional_id),
            Duration::ZERO,
            |_| {
                doubt.sent();
                end_request(writer, end)
            },
            |response| {
                doubt.settled();
                check_end(&response)
            },
        )
        .await
        .map_err(step_error)
    }
}

/// What an error of the coordinator means for the step. What the loop has repeated in vain, or what is no answer, has no certain outcome.
fn step_error(error: KafkaError) -> StepError {
    match error.server_code() {
        // InvalidProducerEpoch, ProducerFenced
        Some(47 | 90) => StepError::Fenced,
        // InvalidProducerIdMapping, and what a coordinator says that lost its log: OutOfOrderSequenceNumber, UnknownProducerId
        Some(45 | 49 | 59) => StepError::Expired(error),
        Some(CONCURRENT_TRANSACTIONS) | None => StepError::OutcomeUnknown(error),
        // UnknownServerError is −1.
        Some(code) if code < 0 || error.is_transient() => StepError::OutcomeUnknown(error),
        Some(_) => StepError::Refused(error),
    }
}

fn id(transactional_id: &str) -> TransactionalId {
    TransactionalId(StrBytes::from_string(transactional_id.to_owned()))
}

fn init_request(transactional_id: Option<&str>, producer: Producer) -> InitProducerIdRequest {
    InitProducerIdRequest::default()
        .with_transactional_id(transactional_id.map(id))
        .with_transaction_timeout_ms(TRANSACTION_TIMEOUT_MS)
        .with_producer_id(ProducerId(producer.id))
        .with_producer_epoch(producer.epoch)
}

fn check_init(response: &InitProducerIdResponse) -> Result<Producer, KafkaError> {
    let operation = if response.error_code == INVALID_TRANSACTION_TIMEOUT {
        format!(
            "InitProducerId with a transaction timeout of {TRANSACTION_TIMEOUT_MS} ms (raise the brokers' transaction.max.timeout.ms to at least that)"
        )
    } else {
        "InitProducerId".to_owned()
    };
    check_code(operation, response.error_code, None)?;
    let producer = Producer {
        id: response.producer_id.0,
        epoch: response.producer_epoch,
    };
    if producer.id < 0 || producer.epoch < 0 {
        return Err(KafkaError::Protocol {
            operation: "InitProducerId",
            detail: format!("it gives the producer {producer:?}"),
        });
    }
    Ok(producer)
}

fn add_request(
    writer: Writer<'_>,
    partitions: &BTreeSet<&TopicPartition>,
) -> AddPartitionsToTxnRequest {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        let indexes = topics.entry(&partition.topic).or_default();
        indexes.push(partition.partition);
    }
    let topics = topics
        .into_iter()
        .map(|(name, partitions)| {
            AddPartitionsToTxnTopic::default()
                .with_name(topic_name(name))
                .with_partitions(partitions)
        })
        .collect();
    AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(id(writer.transactional_id))
        .with_v3_and_below_producer_id(ProducerId(writer.producer.id))
        .with_v3_and_below_producer_epoch(writer.producer.epoch)
        .with_v3_and_below_topics(topics)
}

fn check_add(
    partitions: &BTreeSet<&TopicPartition>,
    response: &AddPartitionsToTxnResponse,
) -> Result<(), KafkaError> {
    let mut codes = BTreeMap::new();
    for topic in &response.results_by_topic_v3_and_below {
        for found in &topic.results_by_partition {
            let key = TopicPartition::new(topic.name.as_str(), found.partition_index);
            codes.insert(key, found.partition_error_code);
        }
    }
    let mut not_attempted = Ok(());
    for partition in partitions {
        let code = codes.get(*partition).ok_or_else(|| KafkaError::Protocol {
            operation: "AddPartitionsToTxn",
            detail: format!("it says nothing about {partition}"),
        })?;
        let result = check_code(format!("AddPartitionsToTxn of {partition}"), *code, None);
        match *code {
            NOT_ATTEMPTED => not_attempted = result,
            UNKNOWN_TOPIC => {
                return Err(KafkaError::UnknownTopic {
                    topic: partition.topic.to_string(),
                });
            }
            _ => result?,
        }
    }
    not_attempted
}

fn end_request(writer: Writer<'_>, end: End) -> EndTxnRequest {
    EndTxnRequest::default()
        .with_transactional_id(id(writer.transactional_id))
        .with_producer_id(ProducerId(writer.producer.id))
        .with_producer_epoch(writer.producer.epoch)
        .with_committed(end == End::Commit)
}

fn check_end(response: &EndTxnResponse) -> Result<(), KafkaError> {
    check_code("EndTxn", response.error_code, None)
}
