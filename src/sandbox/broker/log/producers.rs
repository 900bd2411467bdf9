//! What one partition knows of producers with an id: their epoch, their last batches, the transactions they have open here, and those
//! that were aborted. The rules and codes are those of Kafka 4's `ProducerStateManager`.
//!
//! # Invariants
//! 1. A batch is appended once: a repeat of one of the last five answers the offsets of the first time.
//! 2. The last stable offset never passes the first offset of an open transaction.
//! 3. Producers are bounded; who has a transaction open is never forgotten.
//!
//! A producer that is not known may begin with any sequence, as in Kafka since version 2.5: its older records may have been deleted.

use std::collections::{BTreeMap, VecDeque};

use kafka_protocol::error::ResponseError;

use super::super::batch::BatchHeader;
use super::super::state::Refusal;

/// Batches per producer that a repeat is recognised of, as in Kafka.
const BATCHES_REMEMBERED: usize = 5;
/// Producers per partition. Kafka forgets them by time (`producer.id.expiration.ms`), which a test would not live to see.
const PRODUCERS_MAX: usize = 10_000;

/// A batch that was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Appended {
    first_sequence: i32,
    last_sequence: i32,
    pub first_offset: i64,
    pub timestamp: i64,
}

/// A transaction that ended in an abort; both offsets inclusive, the last is that of the marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Aborted {
    pub producer_id: i64,
    pub first: i64,
    pub last: i64,
}

#[derive(Debug)]
struct Producer {
    epoch: i16,
    /// The last batches in this epoch, oldest first.
    batches: VecDeque<Appended>,
    /// The first offset of the transaction that it has open here.
    open_from: Option<i64>,
    /// Where it last wrote: who wrote longest ago is forgotten first.
    last_offset: i64,
}

/// The producers of one partition.
#[derive(Debug, Default)]
pub(super) struct Producers {
    known: BTreeMap<i64, Producer>,
    /// In the order of their markers.
    aborted: Vec<Aborted>,
}

/// The sequence after `count` more records; sequences begin again at 0 behind the largest.
fn advance(sequence: i32, count: i32) -> i32 {
    let next = i64::from(sequence) + i64::from(count);
    let wrapped = next % (i64::from(i32::MAX) + 1);
    i32::try_from(wrapped).unwrap_or(0)
}

impl Producers {
    /// What a client's batch is, before it is appended: `Some` when it was appended before.
    pub(super) fn check(&self, header: &BatchHeader) -> Result<Option<Appended>, Refusal> {
        let Some(producer) = self.known.get(&header.producer_id) else {
            return Ok(None);
        };
        if header.producer_epoch == producer.epoch {
            let last_sequence = advance(header.base_sequence, header.last_offset_delta);
            let is_repeat = |batch: &&Appended| {
                batch.first_sequence == header.base_sequence && batch.last_sequence == last_sequence
            };
            if let Some(repeated) = producer.batches.iter().find(is_repeat) {
                return Ok(Some(*repeated));
            }
        }
        if header.producer_epoch < producer.epoch {
            let message = format!(
                "Epoch of producer {} is {}, which is smaller than the last seen epoch {}",
                header.producer_id, header.producer_epoch, producer.epoch
            );
            return Err(Refusal::new(ResponseError::InvalidProducerEpoch, message));
        }
        let last = producer.batches.back().map(|batch| batch.last_sequence);
        let expected = match last {
            Some(last) if header.producer_epoch == producer.epoch => advance(last, 1),
            _ => 0,
        };
        if header.base_sequence != expected {
            let message = format!(
                "Out of order sequence number for producer {}: {} (incoming seq. number), {expected} (expected)",
                header.producer_id, header.base_sequence
            );
            return Err(Refusal::new(
                ResponseError::OutOfOrderSequenceNumber,
                message,
            ));
        }
        if producer.open_from.is_some() && !header.is_transactional() {
            let message = format!(
                "Expected transactional write from producer {}",
                header.producer_id
            );
            return Err(Refusal::new(ResponseError::InvalidTxnState, message));
        }
        Ok(None)
    }

    /// Whether the producer has a transaction open here, in this epoch.
    pub(super) fn has_open(&self, producer_id: i64, epoch: i16) -> bool {
        self.known
            .get(&producer_id)
            .is_some_and(|producer| producer.epoch == epoch && producer.open_from.is_some())
    }

    /// Takes note of a batch in the log, whoever wrote it. `commits` is what a transaction marker says.
    pub(super) fn record(&mut self, header: &BatchHeader, commits: Option<bool>) {
        if header.producer_id < 0 || (header.is_control() && commits.is_none()) {
            return;
        }
        self.make_room(header.producer_id);
        let producer = self.known.entry(header.producer_id).or_insert(Producer {
            epoch: header.producer_epoch,
            batches: VecDeque::new(),
            open_from: None,
            last_offset: header.base_offset,
        });
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        producer.last_offset = header.last_offset();
        if let Some(commits) = commits {
            if let Some(first) = producer.open_from.take()
                && !commits
            {
                self.aborted.push(Aborted {
                    producer_id: header.producer_id,
                    first,
                    last: header.base_offset,
                });
            }
            return;
        }
        if producer.batches.len() == BATCHES_REMEMBERED {
            producer.batches.pop_front();
        }
        producer.batches.push_back(Appended {
            first_sequence: header.base_sequence,
            last_sequence: advance(header.base_sequence, header.last_offset_delta),
            first_offset: header.base_offset,
            timestamp: header.max_timestamp,
        });
        if header.is_transactional() {
            producer.open_from.get_or_insert(header.base_offset);
        }
    }

    fn make_room(&mut self, newcomer: i64) {
        if self.known.len() < PRODUCERS_MAX || self.known.contains_key(&newcomer) {
            return;
        }
        let oldest = self
            .known
            .iter()
            .filter(|(_, producer)| producer.open_from.is_none())
            .min_by_key(|(_, producer)| producer.last_offset)
            .map(|(id, _)| *id);
        if let Some(oldest) = oldest {
            self.known.remove(&oldest);
        }
    }

    /// The first offset of the oldest open transaction.
    pub(super) fn first_unstable(&self) -> Option<i64> {
        self.known
            .values()
            .filter_map(|producer| producer.open_from)
            .min()
    }

    /// The aborted transactions that overlap offsets from `from` up to `to` (exclusive), in the order of their markers.
    pub(super) fn aborted_within(&self, from: i64, to: i64) -> impl Iterator<Item = Aborted> {
        self.aborted
            .iter()
            .filter(move |aborted| aborted.last >= from && aborted.first < to)
            .copied()
    }

    /// Whether a transactional record belongs to an aborted transaction.
    pub(super) fn is_aborted(&self, producer_id: i64, offset: i64) -> bool {
        self.aborted_within(offset, offset.saturating_add(1))
            .any(|aborted| aborted.producer_id == producer_id)
    }

    /// Forgets the aborted transactions that end below the start of the log.
    pub(super) fn delete_before(&mut self, start: i64) {
        self.aborted.retain(|aborted| aborted.last >= start);
    }

    /// The producers as an operator may look at them.
    pub(super) fn describe(&self) -> impl Iterator<Item = KnownProducer> {
        self.known.iter().map(|(id, producer)| {
            let last = producer.batches.back();
            KnownProducer {
                producer_id: *id,
                epoch: producer.epoch,
                last_sequence: last.map_or(-1, |batch| batch.last_sequence),
                last_timestamp: last.map_or(-1, |batch| batch.timestamp),
                open_from: producer.open_from,
            }
        })
    }
}

/// A producer that a partition knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct KnownProducer {
    pub producer_id: i64,
    pub epoch: i16,
    pub last_sequence: i32,
    pub last_timestamp: i64,
    pub open_from: Option<i64>,
}
