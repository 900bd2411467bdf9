//! The scan of a log that several transactional writers share: decided by the markers in the log itself.
//!
//! A read at `read_committed` ends at the last stable offset, so one writer's open transaction would hide what all others have committed
//! behind it. The scan reads everything up to the high watermark and withholds the records of each transaction until its marker comes.
//!
//! # Invariants
//! 1. A record of a transaction is handed out when its commit marker was read, never before, and never after an abort marker.
//! 2. Whatever is withheld lies at or beyond `resume_at`.
//! 3. What is withheld takes at most [`WITHHELD_BYTES_MAX`]; a log that asks for more cannot be read.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;

use super::batch::{Batch, BatchError, Marker};
use super::cluster::Cluster;
use super::reader::{Isolation, READ_BYTES_MAX, Sieve, read_data, records_from, weight};
use crate::kafka::{Fetched, KafkaError, LogScan};
use crate::types::{Offset, Record, TopicPartition};

/// The most that records of open transactions may take in memory. A commit record has at most 512 KiB, so a hundred writers may be in
/// the middle of their largest commits.
const WITHHELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A reading of the commit topic.
#[derive(Debug)]
pub(super) struct Scan {
    cluster: Cluster,
    partition: TopicPartition,
    position: Offset,
    undecided: Undecided,
}

impl Scan {
    pub(super) fn new(cluster: Cluster, partition: TopicPartition, from: Offset) -> Self {
        Self {
            cluster,
            partition,
            position: from,
            undecided: Undecided::new(WITHHELD_BYTES_MAX),
        }
    }
}

#[async_trait]
impl LogScan for Scan {
    async fn next(&mut self, wait: Duration) -> Result<Fetched, KafkaError> {
        let isolation = Isolation::ReadUncommitted;
        let data = self
            .cluster
            .fetch_data(
                &self.partition,
                self.position,
                isolation,
                READ_BYTES_MAX,
                wait,
            )
            .await?;
        let fetched = read_data(&self.partition, self.position, data, &mut self.undecided)?;
        self.position = fetched.next_offset;
        Ok(fetched)
    }

    fn resume_at(&self) -> Offset {
        self.undecided.first_offset().unwrap_or(self.position)
    }
}

/// Records whose transactions have not ended yet, by the id of their producer: it has one transaction at a time.
#[derive(Debug)]
pub(super) struct Undecided {
    by_producer: HashMap<i64, Vec<(Offset, Record)>>,
    bytes: usize,
    bytes_max: usize,
}

impl Undecided {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            by_producer: HashMap::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// The first record of the oldest transaction.
    fn first_offset(&self) -> Option<Offset> {
        let firsts = self
            .by_producer
            .values()
            .filter_map(|records| records.first());
        firsts.map(|(offset, _)| *offset).min()
    }

    fn withhold(&mut self, batch: &Batch, from: Offset) -> Result<(), BatchError> {
        let records = records_from(batch, from)?;
        // Compaction leaves empty batches behind; there is nothing in them to decide about.
        if records.is_empty() {
            return Ok(());
        }
        let bytes: usize = records.iter().map(|(_, record)| weight(record)).sum();
        if self.bytes.saturating_add(bytes) > self.bytes_max {
            let oldest = self.first_offset().map_or(batch.base_offset, Offset::value);
            return Err(BatchError::Withheld(oldest, self.bytes_max));
        }
        self.bytes += bytes;
        // They may wait for long: they must not keep the whole answer in memory.
        let records = records
            .iter()
            .map(|(offset, record)| (*offset, record.detached()));
        self.by_producer
            .entry(batch.producer_id)
            .or_default()
            .extend(records);
        Ok(())
    }

    fn decide(&mut self, producer_id: i64) -> Vec<(Offset, Record)> {
        let records = self.by_producer.remove(&producer_id).unwrap_or_default();
        let bytes: usize = records.iter().map(|(_, record)| weight(record)).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        records
    }
}

impl Sieve for Undecided {
    fn sift(&mut self, batch: &Batch, from: Offset) -> Result<Vec<(Offset, Record)>, BatchError> {
        if batch.is_control() {
            return Ok(match batch.marker()? {
                Marker::Commit => self.decide(batch.producer_id),
                Marker::Abort => {
                    self.decide(batch.producer_id);
                    Vec::new()
                }
                Marker::Other => Vec::new(),
            });
        }
        if batch.is_transactional() {
            self.withhold(batch, from)?;
            return Ok(Vec::new());
        }
        records_from(batch, from)
    }
}

#[cfg(test)]
mod tests;
