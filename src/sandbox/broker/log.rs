//! The log of one partition: stored batches, where it starts, where it ends, and the leader epochs in it.
//!
//! # Invariants
//! 1. `start <= end`; every batch ends below `end`, and batches are in offset order without overlap.
//! 2. Offsets are never given twice; after compaction there are gaps.
//! 3. `start <= last stable offset <= end`; no open transaction has a record below the last stable offset.
//! 4. A stored batch is bytes: base offset and leader epoch are assigned, the time stamp is rewritten where the topic wants
//!    the append time, and nothing else changes.
//!
//! There are no segments and no retention: the log keeps everything until records are deleted.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::batch::{Batch, BatchError, BatchHeader};
use super::state::Refusal;
use crate::types::{Offset, Record};
use producers::Producers;

mod producers;

pub(super) use producers::{Aborted, Appended, KnownProducer};

/// A batch in the log.
#[derive(Debug)]
struct Stored {
    first: i64,
    last: i64,
    max_timestamp: i64,
    leader_epoch: i32,
    bytes: Bytes,
}

impl Stored {
    fn of(batch: &Batch) -> Self {
        Self {
            first: batch.header.base_offset,
            last: batch.header.last_offset(),
            max_timestamp: batch.header.max_timestamp,
            leader_epoch: batch.header.leader_epoch,
            bytes: batch.to_bytes(),
        }
    }

    fn batch(&self) -> Result<Batch, BatchError> {
        Batch::split_from(&mut self.bytes.clone())
    }
}

/// What a lookup by time found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundOffset {
    pub offset: i64,
    pub timestamp: i64,
    pub leader_epoch: i32,
}

/// The log of one partition.
#[derive(Debug, Default)]
pub(super) struct PartitionLog {
    batches: VecDeque<Stored>,
    start: i64,
    end: i64,
    bytes: usize,
    /// (epoch, first offset in it), ascending.
    epochs: Vec<(i32, i64)>,
    producers: Producers,
}

impl PartitionLog {
    /// The first offset that can be read.
    pub(super) fn start(&self) -> i64 {
        self.start
    }

    /// The offset that the next record gets; with one replica also the high watermark.
    pub(super) fn end(&self) -> i64 {
        self.end
    }

    /// Up to here (exclusive) every transaction has ended.
    pub(super) fn last_stable(&self) -> i64 {
        let unstable = self.producers.first_unstable();
        unstable.map_or(self.end, |first| first.max(self.start))
    }

    /// Checks what a producer with an id says of its batch; `Some` when the batch was appended before.
    pub(super) fn check_producer(&self, header: &BatchHeader) -> Result<Option<Appended>, Refusal> {
        self.producers.check(header)
    }

    /// Whether the producer has a transaction open here, in this epoch.
    pub(super) fn has_open_transaction(&self, producer_id: i64, epoch: i16) -> bool {
        self.producers.has_open(producer_id, epoch)
    }

    /// The producers that have written here.
    pub(super) fn producers(&self) -> impl Iterator<Item = KnownProducer> {
        self.producers.describe()
    }

    /// The aborted transactions that a `read_committed` reader at `offset` has to know of.
    pub(super) fn aborted_from(&self, offset: i64) -> impl Iterator<Item = Aborted> {
        self.producers.aborted_within(offset, self.last_stable())
    }

    /// Bytes of all batches.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a checked batch: assigns its offsets, stamps the epoch, and answers the first offset.
    pub(super) fn append(&mut self, mut batch: Batch, leader_epoch: i32) -> i64 {
        let base = self.end;
        batch.header.base_offset = base;
        batch.header.leader_epoch = leader_epoch;
        self.end = batch.header.last_offset().saturating_add(1);
        if self
            .epochs
            .last()
            .is_none_or(|(epoch, _)| *epoch < leader_epoch)
        {
            self.epochs.push((leader_epoch, base));
        }
        self.producers.record(&batch.header, batch.marker_commits());
        let stored = Stored::of(&batch);
        self.bytes += stored.bytes.len();
        self.batches.push_back(stored);
        base
    }

    fn position(&self, offset: i64) -> usize {
        self.batches.partition_point(|batch| batch.last < offset)
    }

    /// Bytes from the batch that holds `offset` up to `before` (exclusive), at most `max_bytes`: the last batch may be cut off, as
    /// Kafka cuts it. The first batch comes whole when `first_whole`, and not at all when it would be cut otherwise.
    pub(super) fn read(
        &self,
        offset: i64,
        before: i64,
        max_bytes: usize,
        first_whole: bool,
    ) -> Bytes {
        let batches = self.batches.range(self.position(offset)..);
        let mut batches = batches.take_while(|batch| batch.first < before).peekable();
        let Some(first) = batches.peek() else {
            return Bytes::new();
        };
        if first.bytes.len() > max_bytes {
            return if first_whole {
                first.bytes.clone()
            } else {
                Bytes::new()
            };
        }
        let mut out = BytesMut::new();
        for batch in batches {
            let room = max_bytes - out.len();
            match batch.bytes.get(..room) {
                Some(part) => {
                    out.extend_from_slice(part);
                    break;
                }
                None => out.extend_from_slice(&batch.bytes),
            }
        }
        out.freeze()
    }

    /// The earliest record at or after `timestamp`. In a batch whose codec cannot be read here, its first offset stands for it.
    pub(super) fn find_by_time(&self, timestamp: i64) -> Option<FoundOffset> {
        let candidates = self
            .batches
            .iter()
            .filter(|batch| batch.max_timestamp >= timestamp);
        for stored in candidates {
            let found = |offset, timestamp| FoundOffset {
                offset,
                timestamp,
                leader_epoch: stored.leader_epoch,
            };
            let Ok(records) = stored.batch().and_then(|batch| batch.records()) else {
                return Some(found(stored.first, stored.max_timestamp));
            };
            let hit = records.iter().find(|(offset, record)| {
                record.timestamp_ms >= timestamp && offset.value() >= self.start
            });
            if let Some((offset, record)) = hit {
                return Some(found(offset.value(), record.timestamp_ms));
            }
        }
        None
    }

    /// The first record with the largest time stamp.
    pub(super) fn find_max_timestamp(&self) -> Option<FoundOffset> {
        let max = self.batches.iter().map(|batch| batch.max_timestamp).max()?;
        self.find_by_time(max)
    }

    /// The epoch in which the log had reached `offset`.
    pub(super) fn epoch_at(&self, offset: i64) -> Option<i32> {
        let reached = |(_, first): &&(i32, i64)| *first <= offset;
        self.epochs
            .iter()
            .rev()
            .find(reached)
            .map(|(epoch, _)| *epoch)
    }

    /// The largest epoch not above `epoch`, and where it ends (exclusive).
    pub(super) fn end_of_epoch(&self, epoch: i32) -> Option<(i32, i64)> {
        let next = self.epochs.iter().find(|(other, _)| *other > epoch);
        let end = next.map_or(self.end, |(_, first)| *first);
        let last = self.epochs.iter().rev().find(|(other, _)| *other <= epoch);
        last.map(|(found, _)| (*found, end))
    }

    /// Moves the start of the log; batches that lie below it altogether are dropped.
    pub(super) fn delete_before(&mut self, offset: i64) {
        self.start = self.start.max(offset.min(self.end));
        while let Some(first) = self.batches.front()
            && first.last < self.start
        {
            self.bytes -= first.bytes.len();
            self.batches.pop_front();
        }
        self.producers.delete_before(self.start);
    }

    /// Removes the records in `range`, as compaction does: the offsets stay unused and the log's end stays.
    pub(super) fn punch_gap(&mut self, range: &Range<i64>) {
        self.rewrite(|offset, _| !range.contains(&offset.value()));
    }

    /// Keeps the last record of each key, and records without key; records of aborted transactions go, as nobody may read them. The
    /// last batch stays, as Kafka's active segment does, and so does what lies behind the last stable offset.
    pub(super) fn compact(&mut self) {
        let active = self.batches.back().map_or(self.end, |batch| batch.first);
        let active = active.min(self.last_stable());
        let readable: BTreeMap<_, _> = self.records_committed().into_iter().collect();
        let mut newest = HashMap::new();
        for (offset, record) in &readable {
            if let Some(key) = &record.key {
                newest.insert(key.clone(), *offset);
            }
        }
        self.rewrite(|offset, record| {
            let is_newest = |key| newest.get(key).is_none_or(|newest| *newest <= offset);
            offset.value() >= active
                || (readable.contains_key(&offset) && record.key.as_ref().is_none_or(is_newest))
        });
    }

    /// Batches that cannot be read (codec) or are markers stay as they are.
    fn rewrite(&mut self, mut keep: impl FnMut(Offset, &Record) -> bool) {
        self.batches.retain_mut(|stored| {
            let Ok(batch) = stored.batch() else {
                return true;
            };
            if batch.header.is_control() {
                return true;
            }
            match batch.retain(&mut keep) {
                Ok(Some(rest)) => {
                    stored.bytes = rest.to_bytes();
                    true
                }
                Ok(None) => false,
                Err(_) => true,
            }
        });
        self.bytes = self.batches.iter().map(|batch| batch.bytes.len()).sum();
    }

    /// All records that can be read, without markers; a batch in an unknown codec is left out.
    pub(super) fn records(&self) -> Vec<(Offset, Record)> {
        self.records_of(|_| true)
    }

    /// What a `read_committed` consumer sees: the records up to the last stable offset, without those of aborted transactions.
    pub(super) fn records_committed(&self) -> Vec<(Offset, Record)> {
        let last_stable = self.last_stable();
        self.records_of(|header| {
            let is_aborted = header.is_transactional()
                && self
                    .producers
                    .is_aborted(header.producer_id, header.base_offset);
            header.base_offset < last_stable && !is_aborted
        })
    }

    fn records_of(&self, wanted: impl Fn(&BatchHeader) -> bool) -> Vec<(Offset, Record)> {
        self.batches
            .iter()
            .filter_map(|stored| stored.batch().ok())
            .filter(|batch| !batch.header.is_control() && wanted(&batch.header))
            .filter_map(|batch| batch.records().ok())
            .flatten()
            .filter(|(offset, _)| offset.value() >= self.start)
            .collect()
    }
}

#[cfg(test)]
mod tests;
