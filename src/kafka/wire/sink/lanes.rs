//! The partitions that a writer appends to, each with the sequence numbers that it has reached there.

use std::collections::{HashMap, HashSet};
use std::io;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::super::cluster::Cluster;
use super::super::connection::Deadline;
use super::super::encode::{Compression, Stamp, encode_batch, sequence_after};
use super::super::produce::{AppendError, Parcel};
use super::super::transaction::Producer;
use crate::kafka::{Batch, KafkaError};
use crate::types::{Record, TopicPartition};

/// So much is packed in a third of a millisecond (bench `append_gzip`); to change the thread takes some tens of microseconds.
const ENCODED_AT_ONCE_BYTES: usize = 64 * 1024;

/// As many threads as do that at the same time. After an outage all partitions flush at once.
static PACKERS: Semaphore = Semaphore::const_new(2);

/// One lane for each partition that was ever appended to.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: HashMap<TopicPartition, Lane>,
    compression: Compression,
}

#[derive(Debug)]
struct Lane {
    producer: Producer,
    /// Of the next batch, or of the one that is unsettled.
    sequence: i32,
    /// The batch that was sent under [`sequence`](Self::sequence) and has no clear answer.
    unsettled: Option<Bytes>,
}

impl Lanes {
    /// None yet.
    pub(super) fn new(compression: Compression) -> Self {
        Self {
            lanes: HashMap::new(),
            compression,
        }
    }

    /// Appends each batch under the next sequence numbers of its lane, or again under those that it has; new lanes are `producer`'s. One
    /// outcome for each, in their order. Of two batches to one partition the second is refused.
    ///
    /// # Cancel safety
    /// The batches stay unsettled, those too that were not sent yet.
    pub(super) async fn append(
        &mut self,
        cluster: &Cluster,
        producer: Producer,
        transactional_id: Option<&str>,
        batches: &[Batch],
        deadline: Deadline,
    ) -> Vec<Result<(), AppendError>> {
        let mut outcomes = Vec::with_capacity(batches.len());
        let mut sent = Vec::new();
        let mut parcels = Vec::new();
        let mut partitions = HashSet::new();
        for (index, batch) in batches.iter().enumerate() {
            let compression = self.compression;
            let lane = self.lane(&batch.to, producer);
            let prepared = if partitions.insert(&batch.to) {
                lane.prepare(transactional_id.is_some(), compression, batch)
                    .await
            } else {
                let detail = format!("two batches of one call go to {}", batch.to);
                Err(AppendError::Refused(invalid(detail)))
            };
            outcomes.push(prepared.map(|parcel| {
                sent.push((index, batch));
                parcels.push(parcel);
            }));
        }
        let answers = cluster.produce(transactional_id, &parcels, deadline).await;
        for ((index, batch), answer) in sent.into_iter().zip(answers) {
            self.lane(&batch.to, producer)
                .settle(batch.records.len(), &answer);
            if let Some(outcome) = outcomes.get_mut(index) {
                *outcome = answer;
            }
        }
        outcomes
    }

    /// Every lane begins anew.
    pub(super) fn clear(&mut self) {
        self.lanes.clear();
    }

    fn lane(&mut self, to: &TopicPartition, producer: Producer) -> &mut Lane {
        self.lanes
            .entry(to.clone())
            .or_insert_with(|| Lane::new(producer))
    }

    /// The partition's lane begins anew as another producer's.
    pub(super) fn restart(&mut self, to: &TopicPartition, producer: Producer) {
        self.lanes.insert(to.clone(), Lane::new(producer));
    }
}

impl Lane {
    const fn new(producer: Producer) -> Self {
        Self {
            producer,
            sequence: 0,
            unsettled: None,
        }
    }

    /// The batch's bytes, which are unsettled from now on.
    async fn prepare<'a>(
        &mut self,
        is_transactional: bool,
        compression: Compression,
        batch: &'a Batch,
    ) -> Result<Parcel<'a>, AppendError> {
        let stamp = Stamp {
            producer_id: self.producer.id,
            producer_epoch: self.producer.epoch,
            base_sequence: self.sequence,
            is_transactional,
        };
        if batch.records.is_empty() {
            return Err(AppendError::Refused(invalid("it is empty".to_owned())));
        }
        let bytes = encoded(&batch.records, stamp, compression)
            .await
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
        Ok(Parcel::new(&batch.to, bytes, was_sent))
    }

    /// What became of the prepared batch.
    fn settle(&mut self, records: usize, outcome: &Result<(), AppendError>) {
        match outcome {
            Ok(()) => {
                self.sequence = sequence_after(self.sequence, records);
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
    }
}

/// On a thread for blocking work when it takes long, as calls to the model would wait for it.
async fn encoded(records: &[Record], stamp: Stamp, compression: Compression) -> io::Result<Bytes> {
    let bytes: usize = records.iter().map(Record::size).sum();
    if bytes <= ENCODED_AT_ONCE_BYTES {
        return encode_batch(records, stamp, compression);
    }
    // It is never closed.
    let _turn = PACKERS.acquire().await.map_err(io::Error::other)?;
    let records = records.to_vec();
    let encoding = spawn_blocking(move || encode_batch(&records, stamp, compression));
    encoding.await.map_err(io::Error::other)?
}

fn invalid(detail: String) -> KafkaError {
    KafkaError::Protocol {
        operation: "writing a batch",
        detail,
    }
}
