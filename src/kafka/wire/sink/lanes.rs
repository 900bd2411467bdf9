//! The partitions that a writer appends to, each with the sequence numbers that it has reached there.

use std::collections::HashMap;

use bytes::Bytes;

use super::super::cluster::Cluster;
use super::super::connection::Deadline;
use super::super::encode::{Stamp, encode_batch, sequence_after};
use super::super::produce::AppendError;
use super::super::transaction::Producer;
use crate::kafka::{Batch, KafkaError, StepError};
use crate::types::TopicPartition;

/// One lane for each partition that was ever appended to.
#[derive(Debug, Default)]
pub(super) struct Lanes(HashMap<TopicPartition, Lane>);

#[derive(Debug)]
pub(super) struct Lane {
    producer: Producer,
    /// Of the next batch, or of the one that is unsettled.
    sequence: i32,
    /// The batch that was sent under [`sequence`](Self::sequence) and has no clear answer.
    unsettled: Option<Bytes>,
}

impl Lanes {
    /// The lane of each batch, in their order; new lanes are `producer`'s. Of two batches to one partition the second has none.
    pub(super) fn of(
        &mut self,
        producer: Producer,
        batches: &[Batch],
    ) -> Vec<Result<&mut Lane, StepError>> {
        for batch in batches {
            self.0.entry(batch.to.clone()).or_insert(Lane {
                producer,
                sequence: 0,
                unsettled: None,
            });
        }
        let mut lanes: HashMap<_, _> = self.0.iter_mut().collect();
        batches
            .iter()
            .map(|batch| {
                lanes.remove(&batch.to).ok_or_else(|| {
                    let detail = format!("two batches of one call go to {}", batch.to);
                    StepError::Refused(invalid(detail))
                })
            })
            .collect()
    }
}

impl Lane {
    /// Appends a batch under the next sequence numbers, or again under those that it has.
    ///
    /// # Cancel safety
    /// The batch stays unsettled.
    pub(super) async fn append(
        &mut self,
        cluster: &Cluster,
        transactional_id: Option<&str>,
        batch: &Batch,
        deadline: Deadline,
    ) -> Result<(), AppendError> {
        let stamp = Stamp {
            producer_id: self.producer.id,
            producer_epoch: self.producer.epoch,
            base_sequence: self.sequence,
            is_transactional: transactional_id.is_some(),
        };
        if batch.records.is_empty() {
            return Err(AppendError::Refused(invalid("it is empty".to_owned())));
        }
        let bytes = encode_batch(&batch.records, stamp)
            .map_err(|error| AppendError::Refused(invalid(error.to_string())))?;
        let was_sent = match &self.unsettled {
            None => false,
            Some(unsettled) if *unsettled == bytes => true,
            // Under these numbers the leader would take it for the one before, and drop it.
            Some(_) => {
                return Err(AppendError::Forgotten {
                    error: invalid("another one is still without an answer".to_owned()),
                    in_doubt: true,
                });
            }
        };
        self.unsettled = Some(bytes.clone());
        let outcome = cluster
            .produce(transactional_id, &batch.to, &bytes, was_sent, deadline)
            .await;
        match &outcome {
            Ok(()) => {
                self.sequence = sequence_after(self.sequence, batch.records.len());
                self.unsettled = None;
            }
            Err(
                AppendError::Refused(_)
                | AppendError::Forgotten {
                    in_doubt: false, ..
                },
            ) => {
                self.unsettled = None;
            }
            Err(_) => {}
        }
        outcome
    }

    /// Begins anew as another producer.
    pub(super) fn restart(&mut self, producer: Producer) {
        *self = Self {
            producer,
            sequence: 0,
            unsettled: None,
        };
    }
}

fn invalid(detail: String) -> KafkaError {
    KafkaError::Protocol {
        operation: "writing a batch",
        detail,
    }
}
