//! The log of one partition: stored batches, where it starts, where it ends, and the leader epochs in it.
//!
//! # Invariants
//! 1. `start <= end`; every batch ends below `end`, and batches are in offset order without overlap.
//! 2. Offsets are never given twice; after compaction there are gaps.
//! 3. A stored batch is bytes: base offset and leader epoch are assigned, the time stamp is rewritten where the topic wants
//!    the append time, and nothing else changes.
//!
//! There are no segments and no retention: the log keeps everything until records are deleted.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::batch::{Batch, BatchError};
use crate::types::{Offset, Record};

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
}

impl PartitionLog {
    /// The first offset that can be read.
    pub(super) fn start(&self) -> i64 {
        self.start
    }

    /// The offset that the next record gets; with one replica also the high watermark and the last stable offset.
    pub(super) fn end(&self) -> i64 {
        self.end
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
        let stored = Stored::of(&batch);
        self.bytes += stored.bytes.len();
        self.batches.push_back(stored);
        base
    }

    fn position(&self, offset: i64) -> usize {
        self.batches.partition_point(|batch| batch.last < offset)
    }

    /// Bytes from the batch that holds `offset` on, at most `max_bytes`: the last batch may be cut off, as Kafka cuts it. The first
    /// batch comes whole when `first_whole`, and not at all when it would be cut otherwise.
    pub(super) fn read(&self, offset: i64, max_bytes: usize, first_whole: bool) -> Bytes {
        let mut batches = self.batches.range(self.position(offset)..).peekable();
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
    }

    /// Removes the records in `range`, as compaction does: the offsets stay unused and the log's end stays.
    pub(super) fn punch_gap(&mut self, range: &Range<i64>) {
        self.rewrite(|offset, _| !range.contains(&offset.value()));
    }

    /// Keeps the last record of each key, and records without key. The last batch stays, as Kafka's active segment does.
    pub(super) fn compact(&mut self) {
        let mut newest = HashMap::new();
        for (offset, record) in self.records() {
            if let Some(key) = record.key {
                newest.insert(key, offset);
            }
        }
        let active = self.batches.back().map_or(self.end, |batch| batch.first);
        self.rewrite(|offset, record| {
            let is_newest = |key| newest.get(key).is_none_or(|newest| *newest <= offset);
            offset.value() >= active || record.key.as_ref().is_none_or(is_newest)
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

    /// All records that can be read, without markers; a batch in a codec that cannot be read here is left out.
    pub(super) fn records(&self) -> Vec<(Offset, Record)> {
        self.batches
            .iter()
            .filter_map(|stored| stored.batch().ok())
            .filter(|batch| !batch.header.is_control())
            .filter_map(|batch| batch.records().ok())
            .flatten()
            .filter(|(offset, _)| offset.value() >= self.start)
            .collect()
    }
}

#[cfg(test)]
mod tests;
