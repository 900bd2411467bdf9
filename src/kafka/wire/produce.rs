//! `Produce`: one batch to each of several partitions, and how surely each was or was not written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TransactionalId};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

use super::api::check_code;
use super::cluster::{Cluster, Failure, Target, topic_name};
use super::connection::Deadline;
use super::pool::Lane;
use crate::kafka::KafkaError;
use crate::types::TopicPartition;

/// All in-sync replicas.
const ACKS_ALL: i16 = -1;

/// Compressed bytes of one request that carries several batches: Java producers' `max.request.size`, a hundredth of what brokers accept.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

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

/// An encoded batch on its way to one partition. Sent again, by the retry loop or by the caller, its leader knows it by its sequence numbers.
#[derive(Debug)]
pub(super) struct Parcel<'a> {
    to: &'a TopicPartition,
    batch: Bytes,
    /// Whether a call before ended without a clear answer.
    was_sent: bool,
    doubt: Doubt,
}

impl<'a> Parcel<'a> {
    pub(super) fn new(to: &'a TopicPartition, batch: Bytes, was_sent: bool) -> Self {
        Self {
            to,
            batch,
            was_sent,
            doubt: Doubt::default(),
        }
    }

    fn is_in_doubt(&self) -> bool {
        self.was_sent || self.doubt.is_left()
    }
}

impl Cluster {
    /// Appends each parcel, no two of which may go to the same partition: those of one leader in one request, the leaders side by side.
    /// One outcome for each, in their order; a partition that fails is tried again alone.
    pub(super) async fn produce(
        &self,
        transactional_id: Option<&str>,
        parcels: &[Parcel<'_>],
        deadline: Deadline,
    ) -> Vec<Result<(), AppendError>> {
        let first = self.produce_together(transactional_id, parcels, deadline);
        let first = first.await;
        let outcomes = parcels.iter().zip(first).map(|(parcel, first)| async move {
            let answer = match first {
                Some(Ok(())) => return Ok(()),
                Some(Err(Failure::Final(error))) => Err(error),
                Some(Err(Failure::Passing(error))) => {
                    self.forget(Target::Leader(parcel.to));
                    if Instant::now() >= deadline.at {
                        Err(error)
                    } else {
                        tracing::debug!(%error, partition = %parcel.to, "appending again, alone");
                        self.produce_alone(transactional_id, parcel, deadline).await
                    }
                }
                None => self.produce_alone(transactional_id, parcel, deadline).await,
            };
            answer.or_else(|error| judge(parcel.to, error, parcel.is_in_doubt()))
        });
        join_all(outcomes).await
    }

    /// The first try: `None` for parcels whose leader is not known.
    async fn produce_together(
        &self,
        transactional_id: Option<&str>,
        parcels: &[Parcel<'_>],
        deadline: Deadline,
    ) -> Vec<Option<Result<(), Failure>>> {
        let leader = |parcel: &Parcel<'_>| {
            let route = self.known_route(Target::Leader(parcel.to));
            route.map(|route| route.address)
        };
        let tries = share_out(parcels, leader).into_iter().map(|share| async {
            let outcomes = self
                .produce_share(transactional_id, &share, deadline)
                .await
                .unwrap_or_else(|error| {
                    let failed = |_| Err(error.clone());
                    share.parcels.iter().map(failed).collect()
                });
            (share, outcomes)
        });
        let mut found = HashMap::new();
        for (share, outcomes) in join_all(tries).await {
            for (parcel, outcome) in share.parcels.iter().zip(outcomes) {
                found.insert(parcel.to, outcome.map_err(Failure::asking));
            }
        }
        parcels
            .iter()
            .map(|parcel| found.remove(parcel.to))
            .collect()
    }

    async fn produce_share(
        &self,
        transactional_id: Option<&str>,
        share: &Share<'_>,
        deadline: Deadline,
    ) -> Result<Vec<Result<(), KafkaError>>, KafkaError> {
        let timeout = self.config().request_timeout;
        let asked = self.ask_at(&share.leader, Lane::Request, deadline, |_| {
            for parcel in &share.parcels {
                parcel.doubt.sent();
            }
            request(transactional_id, &share.parcels, timeout)
        });
        check(&share.parcels, asked.await?)
    }

    async fn produce_alone(
        &self,
        transactional_id: Option<&str>,
        parcel: &Parcel<'_>,
        deadline: Deadline,
    ) -> Result<(), KafkaError> {
        let timeout = self.config().request_timeout;
        self.ask_until(
            deadline,
            Target::Leader(parcel.to),
            Duration::ZERO,
            |_| {
                parcel.doubt.sent();
                request(transactional_id, &[parcel], timeout)
            },
            |response| check(&[parcel], response)?.into_iter().collect(),
        )
        .await
    }
}

/// What goes to one leader in one request.
#[derive(Debug)]
struct Share<'a> {
    leader: Arc<str>,
    parcels: Vec<&'a Parcel<'a>>,
    bytes: usize,
}

/// By leader, and no request larger than [`REQUEST_BYTES_MAX`] that carries more than one batch.
fn share_out<'a>(
    parcels: &'a [Parcel<'_>],
    leader: impl Fn(&Parcel<'_>) -> Option<Arc<str>>,
) -> Vec<Share<'a>> {
    let mut shares: Vec<Share<'a>> = Vec::new();
    for parcel in parcels {
        let Some(leader) = leader(parcel) else {
            continue;
        };
        let bytes = parcel.batch.len();
        let open = shares.iter_mut().find(|share| {
            share.leader == leader && share.bytes.saturating_add(bytes) <= REQUEST_BYTES_MAX
        });
        if let Some(share) = open {
            share.parcels.push(parcel);
            share.bytes += bytes;
        } else {
            shares.push(Share {
                leader,
                parcels: vec![parcel],
                bytes,
            });
        }
    }
    shares
}

fn request(
    transactional_id: Option<&str>,
    parcels: &[&Parcel<'_>],
    timeout: Duration,
) -> ProduceRequest {
    let mut topics: BTreeMap<&str, Vec<PartitionProduceData>> = BTreeMap::new();
    for parcel in parcels {
        let data = PartitionProduceData::default()
            .with_index(parcel.to.partition)
            .with_records(Some(parcel.batch.clone()));
        topics.entry(&parcel.to.topic).or_default().push(data);
    }
    let topics = topics.into_iter().map(|(name, data)| {
        TopicProduceData::default()
            .with_name(topic_name(name))
            .with_partition_data(data)
    });
    let transactional_id =
        transactional_id.map(|id| TransactionalId(StrBytes::from_string(id.to_owned())));
    ProduceRequest::default()
        .with_transactional_id(transactional_id)
        .with_acks(ACKS_ALL)
        .with_timeout_ms(i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX))
        .with_topic_data(topics.collect())
}

/// One outcome for each parcel. Brokers answer in any order; an answer that does not name each partition once is no answer to any.
fn check(
    parcels: &[&Parcel<'_>],
    response: ProduceResponse,
) -> Result<Vec<Result<(), KafkaError>>, KafkaError> {
    let mut answers = HashMap::new();
    let mut count = 0_usize;
    for topic in response.responses {
        for answer in topic.partition_responses {
            let to = TopicPartition::new(topic.name.as_str(), answer.index);
            answers.insert(to, answer);
            count += 1;
        }
    }
    let found: Vec<_> = parcels
        .iter()
        .filter_map(|parcel| answers.remove(parcel.to).map(|answer| (parcel, answer)))
        .collect();
    if found.len() != parcels.len() || count != parcels.len() {
        let asked: Vec<_> = parcels.iter().map(|parcel| parcel.to.to_string()).collect();
        return Err(KafkaError::Protocol {
            operation: "Produce",
            detail: format!(
                "asked for {}, it holds {count} entries or another one",
                asked.join(", ")
            ),
        });
    }
    let outcomes = found.into_iter().map(|(parcel, answer)| {
        if is_unwritten(answer.error_code) {
            parcel.doubt.settled();
        }
        check_code(
            format!("Produce to {}", parcel.to),
            answer.error_code,
            answer.error_message.as_ref(),
        )
    });
    Ok(outcomes.collect())
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
