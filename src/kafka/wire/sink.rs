//! The append half of the driver: idempotent appends for "at least once", transactions for "exactly once".
//!
//! # Invariants
//! 1. A batch without a clear answer is sent again as the same bytes under the same sequence numbers, so that its partition's leader, also
//!    a new one, writes it once. No other batch is ever sent under them: the leader would take it for the one before and drop it.
//! 2. One batch per partition is under way; a partition's sequence numbers have no gaps.
//! 3. What may still be on its way when a transaction has ended is fenced by a new epoch before the next begins: a late append or a late
//!    end would otherwise count for that one.
//!
//! # Not here
//! Which step follows which, and whether a failed one is repeated: the commit protocol in `offsets`. When a leader has forgotten a producer,
//! an idempotent append goes on under a new id and warns where that may repeat a batch; a transactional writer has expired, and its
//! partition has to be taken over anew.

mod lanes;
mod regain;

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::cluster::Cluster;
use super::connection::Deadline;
use super::encode::Compression;
use super::produce::{AppendError, Doubt};
use super::transaction::{NO_TRANSACTION, Producer, Writer};
use crate::kafka::{Batch, End, KafkaError, PartitionSink, Sink, StepError};
use crate::types::TopicPartition;
use lanes::Lanes;
use regain::Regaining;

/// Writes results, dead letters and commits on our own connections.
#[derive(Debug)]
pub struct WireSink {
    cluster: Cluster,
    /// Begins every transactional id; without it there are no transactions.
    group: Option<String>,
    compression: Compression,
}

impl WireSink {
    /// Appends that neither a lost answer nor the death of a leader doubles. Whoever had the partition before is not fenced.
    #[must_use]
    pub const fn idempotent(cluster: Cluster) -> Self {
        Self {
            cluster,
            group: None,
            compression: Compression::Gzip,
        }
    }

    /// Appends in transactions, with one transactional id for each input partition: `{group_id}/{topic}/{partition}`.
    #[must_use]
    pub fn transactional(cluster: Cluster, group_id: &str) -> Self {
        Self {
            cluster,
            group: Some(group_id.to_owned()),
            compression: Compression::Gzip,
        }
    }

    /// The same, with batches packed so.
    #[must_use]
    pub fn with_compression(self, compression: Compression) -> Self {
        Self {
            compression,
            ..self
        }
    }
}

#[async_trait]
impl Sink for WireSink {
    async fn take_over(&self, input: &TopicPartition) -> Result<Box<dyn PartitionSink>, StepError> {
        let cluster = self.cluster.clone();
        let Some(group) = &self.group else {
            return Ok(Box::new(IdempotentSink {
                cluster,
                producer: None,
                lanes: Lanes::new(self.compression),
            }));
        };
        let transactional_id = format!("{group}/{input}");
        let producer = cluster
            .take_transactional_id(&transactional_id, cluster.deadline())
            .await?;
        tracing::debug!(transactional_id, ?producer, "writer taken over");
        Ok(Box::new(Regaining(TransactionalSink {
            cluster,
            transactional_id,
            producer,
            lanes: Lanes::new(self.compression),
            is_open: false,
            added: BTreeSet::new(),
            is_late_possible: false,
        })))
    }
}

/// Plain appends under a producer id that is nobody else's.
struct IdempotentSink {
    cluster: Cluster,
    /// Asked for at the first append.
    producer: Option<Producer>,
    lanes: Lanes,
}

#[async_trait]
impl PartitionSink for IdempotentSink {
    fn is_transactional(&self) -> bool {
        false
    }

    async fn begin(&mut self) -> Result<(), StepError> {
        Ok(())
    }

    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        let deadline = self.cluster.deadline();
        let producer = match self.producer {
            Some(producer) => producer,
            None => match self.cluster.new_producer(deadline).await {
                Ok(producer) => *self.producer.insert(producer),
                // No batch was sent yet, in this call or any before.
                Err(error) => return all(batches, &StepError::Refused(error)),
            },
        };
        let appended = self
            .lanes
            .append(&self.cluster, producer, None, batches, deadline);
        let mut outcomes = Vec::with_capacity(batches.len());
        for (batch, outcome) in batches.iter().zip(appended.await) {
            outcomes.push(match outcome {
                Ok(()) => Ok(()),
                Err(AppendError::Refused(error)) => Err(StepError::Refused(error)),
                Err(AppendError::Unknown(error)) => Err(StepError::OutcomeUnknown(error)),
                Err(AppendError::Forgotten { error, in_doubt }) => {
                    self.append_anew(batch, &error, in_doubt, deadline).await
                }
                // Nobody else has this id: it is the leader that has mixed something up.
                Err(AppendError::Fenced) => {
                    self.append_anew(batch, &fenced(&batch.to), true, deadline)
                        .await
                }
            });
        }
        outcomes
    }

    async fn end(&mut self, _end: End) -> Result<(), StepError> {
        Ok(())
    }
}

impl IdempotentSink {
    /// Appends once more, under a new producer id, as the leader has forgotten the old one.
    async fn append_anew(
        &mut self,
        batch: &Batch,
        forgotten: &KafkaError,
        in_doubt: bool,
        deadline: Deadline,
    ) -> Result<(), StepError> {
        let unsettled = |error| {
            if in_doubt {
                StepError::OutcomeUnknown(error)
            } else {
                StepError::Refused(error)
            }
        };
        let producer = self.cluster.new_producer(deadline).await;
        let producer = producer.map_err(unsettled)?;
        if in_doubt {
            tracing::warn!(
                partition = %batch.to,
                records = batch.records.len(),
                error = %forgotten,
                "the broker has forgotten this producer; a batch that it may have written is written again"
            );
        } else {
            tracing::info!(partition = %batch.to, error = %forgotten, "the broker has forgotten this producer; going on under a new id");
        }
        self.lanes.restart(&batch.to, producer);
        let batch = std::slice::from_ref(batch);
        let appended = self
            .lanes
            .append(&self.cluster, producer, None, batch, deadline);
        let mut outcomes = appended.await.into_iter().zip(batch);
        outcomes.try_for_each(|(outcome, batch)| match outcome {
            Ok(()) => Ok(()),
            Err(AppendError::Refused(error)) => Err(unsettled(error)),
            Err(AppendError::Unknown(error) | AppendError::Forgotten { error, .. }) => {
                Err(StepError::OutcomeUnknown(error))
            }
            Err(AppendError::Fenced) => Err(StepError::OutcomeUnknown(fenced(&batch.to))),
        })
    }
}

fn fenced(to: &TopicPartition) -> KafkaError {
    KafkaError::Protocol {
        operation: "Produce",
        detail: format!("the leader of {to} knows a newer epoch of a producer that has none"),
    }
}

/// Appends in transactions, as the one producer of a transactional id.
struct TransactionalSink {
    cluster: Cluster,
    transactional_id: String,
    producer: Producer,
    lanes: Lanes,
    /// Between begin and end.
    is_open: bool,
    /// Partitions of the open transaction, as far as the coordinator knows or may know of them.
    added: BTreeSet<TopicPartition>,
    /// Whether a request of this epoch without an answer may arrive late (invariant 3).
    is_late_possible: bool,
}

#[async_trait]
impl PartitionSink for TransactionalSink {
    fn is_transactional(&self) -> bool {
        true
    }

    async fn begin(&mut self) -> Result<(), StepError> {
        if self.is_open {
            return Err(misused("begin", "a transaction is open"));
        }
        if self.is_late_possible {
            // A late request may have opened a transaction behind the end of the last one. Raised under an open transaction, the new epoch
            // would be nobody's, not ours.
            let deadline = self.cluster.deadline();
            self.end_at_the_coordinator(End::Abort, deadline).await?;
            self.raise_epoch(deadline).await?;
        }
        self.is_open = true;
        Ok(())
    }

    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        if !self.is_open {
            return all(batches, &misused("append", "no transaction is open"));
        }
        let deadline = self.cluster.deadline();
        if let Err(error) = self.add(batches, deadline).await {
            return all(batches, &error);
        }
        let appended = self.lanes.append(
            &self.cluster,
            self.producer,
            Some(&self.transactional_id),
            batches,
            deadline,
        );
        let outcomes: Vec<_> = appended
            .await
            .into_iter()
            .map(|outcome| outcome.map_err(in_transaction))
            .collect();
        self.is_late_possible |= outcomes
            .iter()
            .any(|outcome| matches!(outcome, Err(StepError::OutcomeUnknown(_))));
        outcomes
    }

    async fn end(&mut self, end: End) -> Result<(), StepError> {
        if !self.added.is_empty() {
            let deadline = self.cluster.deadline();
            self.end_at_the_coordinator(end, deadline).await?;
        }
        self.added.clear();
        self.is_open = false;
        Ok(())
    }
}

impl TransactionalSink {
    fn writer(&self) -> Writer<'_> {
        Writer {
            transactional_id: &self.transactional_id,
            producer: self.producer,
        }
    }

    /// Goes on under the next epoch: nothing that was sent under the old one can arrive any more.
    async fn raise_epoch(&mut self, deadline: Deadline) -> Result<(), StepError> {
        self.producer = self.cluster.raise_epoch(self.writer(), deadline).await?;
        // Sequence numbers begin anew with each epoch.
        self.lanes.clear();
        self.is_late_possible = false;
        Ok(())
    }

    async fn end_at_the_coordinator(
        &mut self,
        end: End,
        deadline: Deadline,
    ) -> Result<(), StepError> {
        let doubt = Doubt::default();
        let ended = self
            .cluster
            .end_transaction(self.writer(), end, deadline, &doubt)
            .await;
        self.is_late_possible |= doubt.is_left();
        match ended {
            // Nothing that could be aborted is there.
            Err(StepError::Refused(error))
                if end == End::Abort && error.server_code() == Some(NO_TRANSACTION) =>
            {
                Ok(())
            }
            ended => ended,
        }
    }

    /// Adds those partitions to the transaction that are not in it yet.
    async fn add(&mut self, batches: &[Batch], deadline: Deadline) -> Result<(), StepError> {
        let missing: BTreeSet<_> = batches
            .iter()
            .map(|batch| &batch.to)
            .filter(|to| !self.added.contains(*to))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let doubt = Doubt::default();
        let added = self
            .cluster
            .add_to_transaction(self.writer(), &missing, deadline, &doubt)
            .await;
        self.is_late_possible |= doubt.is_left();
        if matches!(added, Ok(()) | Err(StepError::OutcomeUnknown(_))) {
            self.added.extend(missing.into_iter().cloned());
        }
        added
    }
}

/// The same end for each batch.
fn all(batches: &[Batch], error: &StepError) -> Vec<Result<(), StepError>> {
    batches.iter().map(|_| Err(error.clone())).collect()
}

fn in_transaction(error: AppendError) -> StepError {
    match error {
        AppendError::Refused(error) => StepError::Refused(error),
        AppendError::Unknown(error) => StepError::OutcomeUnknown(error),
        AppendError::Forgotten { error, .. } => StepError::Expired(error),
        AppendError::Fenced => StepError::Fenced,
    }
}

/// A step that does not follow the one before.
fn misused(operation: &'static str, detail: &str) -> StepError {
    StepError::Refused(KafkaError::Protocol {
        operation,
        detail: detail.to_owned(),
    })
}

#[cfg(test)]
mod tests;
