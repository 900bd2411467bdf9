//! One commit partition's log, read once for all who ask about it.
//!
//! # Invariants
//! 1. An answer reflects everything up to an end of the log that was asked for after the question was put.
//! 2. Whoever is dropped while reading takes nothing from the others: what was read stays, the next one goes on there.
//! 3. What is kept is of the topic as it is now: its id is looked at after the reading. It begins anew with another id, where the log ends
//!    before, or starts after, what was read, and with another epoch of the leader, who may have less than the one before had.
//! 4. What is kept of the keys takes at most [`KEPT_BYTES_MAX`] for all logs together; those that have no room are read by themselves. The
//!    scan of a log stays with it, and with it what it withholds of transactions that are open: a commit for each, in practice, and never
//!    more than the driver's bound for one scan.
//! 5. A reading ends: each step has a deadline, and one that stays where it is fails, so that the end is asked for anew.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::yield_now;
use uuid::Uuid;

use super::seen::Seen;
use crate::kafka::{Fetched, KafkaError, LogScan, LogScanner};
use crate::types::{Offset, Record, TopicPartition};

/// How long one read of the commit topic waits for records that the log's end has promised.
pub(super) const READ_WAIT: Duration = Duration::from_millis(500);
/// A commit record has some 250 bytes, so the keys of fifty thousand partitions have room, or those of a hundred with the largest records.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Logs that are read at the same time: as many as there are connections to one broker, each with one fetch in memory.
const READING_MAX: usize = 32;
/// Empty answers in a row, each after [`READ_WAIT`], from a leader that says that there is more: a throttled one may have a few.
const EMPTY_MAX: u32 = 20;
/// Readings of one look: one more than a topic that is created anew meanwhile needs.
const READS_MAX: usize = 3;

/// What all logs of a store share.
#[derive(Debug)]
pub(super) struct Bounds {
    kept: AtomicUsize,
    kept_max: usize,
    turns: Semaphore,
}

impl Default for Bounds {
    fn default() -> Self {
        Self::new(KEPT_BYTES_MAX)
    }
}

impl Bounds {
    pub(super) fn new(kept_max: usize) -> Self {
        Self {
            kept: AtomicUsize::new(0),
            kept_max,
            turns: Semaphore::new(READING_MAX),
        }
    }

    /// Changes what is kept from `before` to `after` bytes; false when there is no room for more.
    fn change(&self, before: usize, after: usize) -> bool {
        let changed = |kept: usize| {
            let kept = kept.saturating_sub(before).saturating_add(after);
            (kept <= self.kept_max || after <= before).then_some(kept)
        };
        let order = Ordering::Relaxed;
        self.kept.fetch_update(order, order, changed).is_ok()
    }
}

/// The log, and what is known of it.
#[derive(Debug)]
pub(super) struct CommitLog {
    reader: Arc<dyn LogScanner>,
    partition: TopicPartition,
    bounds: Arc<Bounds>,
    /// Counts questions.
    asked: AtomicU64,
    reading: Mutex<Reading>,
}

/// How far the log was read, and what is in it.
#[derive(Default)]
pub(super) struct Reading {
    scan: Option<Box<dyn LogScan>>,
    position: Offset,
    topic_id: Option<Uuid>,
    /// Of the leader when the reading began.
    leader_epoch: Option<i32>,
    keys: HashMap<Bytes, Seen>,
    /// There was no room: what is not among the keys may be in the log all the same.
    is_full: bool,
    /// Questions that were put before the last look at the log's end, which was reached.
    answered: u64,
    /// The same for a look that failed.
    failed: Option<(u64, KafkaError)>,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading")
            .field("position", &self.position)
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}

impl CommitLog {
    pub(super) fn new(
        reader: Arc<dyn LogScanner>,
        partition: TopicPartition,
        bounds: Arc<Bounds>,
    ) -> Self {
        Self {
            reader,
            partition,
            bounds,
            asked: AtomicU64::new(0),
            reading: Mutex::default(),
        }
    }

    /// Reads up to the present end of the log, unless another question that was put later has done so, and answers from what is known then.
    ///
    /// # Errors
    /// When the log cannot be read.
    ///
    /// # Cancel safety
    /// Safe: it only reads, and what was read is kept.
    pub(super) async fn ask<T>(&self, answer: impl FnOnce(&Reading) -> T) -> Result<T, KafkaError> {
        let question = self.asked.fetch_add(1, Ordering::Relaxed);
        let mut reading = self.reading.lock().await;
        while reading.answered <= question {
            // Hundreds wait for a broker that is down: its silence answers all of them.
            if let Some((_, error)) = reading
                .failed
                .as_ref()
                .filter(|(until, _)| *until > question)
            {
                return Err(error.clone());
            }
            self.look(&mut reading).await;
        }
        Ok(answer(&reading))
    }

    async fn look(&self, reading: &mut Reading) {
        // Whoever asks at the same time is served by this look too.
        yield_now().await;
        let asked = self.asked.load(Ordering::Relaxed);
        match self.read(reading).await {
            Ok(()) => {
                reading.answered = asked;
                reading.failed = None;
            }
            Err(error) => {
                // A broker that is away does not change the log; everything else may mean that it is another one.
                if !error.is_transient() {
                    self.forget(reading);
                }
                reading.failed = Some((asked, error));
            }
        }
    }

    async fn read(&self, reading: &mut Reading) -> Result<(), KafkaError> {
        for _ in 0..READS_MAX {
            if reading.scan.is_none() {
                reading.topic_id = self.topic_id().await?;
            }
            self.read_to_end(reading).await?;
            let topic_id = self.topic_id().await?;
            if topic_id == reading.topic_id {
                return Ok(());
            }
            tracing::warn!(topic = %self.partition.topic, "the commit topic was created anew: it is read from its start");
            self.forget(reading);
        }
        Err(KafkaError::Protocol {
            operation: "Metadata",
            detail: format!(
                "topic `{}` has another id each time it is asked for",
                self.partition.topic
            ),
        })
    }

    async fn topic_id(&self) -> Result<Option<Uuid>, KafkaError> {
        self.reader.topic_id(&self.partition.topic).await
    }

    async fn read_to_end(&self, reading: &mut Reading) -> Result<(), KafkaError> {
        let (start, end) = self.reader.log_bounds(&self.partition).await?;
        let epoch = self.reader.leader_epoch(&self.partition);
        let is_elected = epoch.is_some() && epoch != reading.leader_epoch;
        let is_outside = !(start..=end).contains(&reading.position);
        if reading.scan.is_some() && (is_elected || is_outside) {
            self.forget(reading);
            // With the id of before: a topic that was created anew meanwhile is noticed after the reading.
        }
        let scan = reading.scan.get_or_insert_with(|| {
            reading.position = start;
            reading.leader_epoch = epoch;
            self.reader.scan(&self.partition, start)
        });
        if reading.position >= end {
            return Ok(());
        }
        let _turn = self.bounds.turns.acquire().await;
        let mut progress = Progress::to(&self.partition, end);
        while reading.position < end {
            let fetched = scan.next(READ_WAIT).await?;
            progress.check(reading.position, &fetched)?;
            reading.position = fetched.next_offset.max(reading.position);
            take(
                &mut reading.keys,
                &mut reading.is_full,
                &self.bounds,
                fetched.records,
            );
        }
        Ok(())
    }

    fn forget(&self, reading: &mut Reading) {
        let bytes = reading
            .keys
            .iter()
            .map(|(key, seen)| key.len() + seen.bytes());
        self.bounds.change(bytes.sum(), 0);
        let (answered, failed, topic_id) =
            (reading.answered, reading.failed.take(), reading.topic_id);
        *reading = Reading {
            answered,
            failed,
            topic_id,
            ..Reading::default()
        };
    }
}

/// Sees to it that a reading up to an end of the log comes to an end itself: since that was asked for the log may have been cut, by an
/// unclean election, or by a topic that was created anew.
#[derive(Debug)]
pub(super) struct Progress<'a> {
    partition: &'a TopicPartition,
    end: Offset,
    empty: u32,
}

impl<'a> Progress<'a> {
    pub(super) const fn to(partition: &'a TopicPartition, end: Offset) -> Self {
        Self {
            partition,
            end,
            empty: 0,
        }
    }

    /// Judges the answer to a fetch at `position`: a transient error when asking again there would lead nowhere.
    pub(super) fn check(&mut self, position: Offset, fetched: &Fetched) -> Result<(), KafkaError> {
        if fetched.next_offset > position {
            self.empty = 0;
            return Ok(());
        }
        self.empty += 1;
        if fetched.high_watermark >= self.end && self.empty < EMPTY_MAX {
            return Ok(());
        }
        Err(KafkaError::Stalled {
            partition: self.partition.clone(),
            position,
            end: self.end,
            high_watermark: fetched.high_watermark,
        })
    }
}

/// Takes what a fetch has brought. All of it is taken, or nothing: nobody waits for anything in here.
fn take(
    keys: &mut HashMap<Bytes, Seen>,
    is_full: &mut bool,
    bounds: &Bounds,
    records: Vec<(Offset, Record)>,
) {
    // With what it took before; each is copied out of the fetch's memory once, whatever it held of the key.
    let mut changed: HashMap<Bytes, usize> = HashMap::new();
    for (at, record) in records {
        let Some(key) = record.key else {
            continue;
        };
        let seen = match keys.entry(key) {
            Entry::Occupied(entry) => {
                if !changed.contains_key(entry.key()) {
                    changed.insert(entry.key().clone(), entry.key().len() + entry.get().bytes());
                }
                entry.into_mut()
            }
            Entry::Vacant(_) if *is_full => continue,
            Entry::Vacant(entry) => {
                let key = Bytes::copy_from_slice(entry.key());
                changed.insert(key.clone(), 0);
                keys.entry(key).or_default()
            }
        };
        seen.take(at, record.value.as_ref());
    }
    for (key, before) in changed {
        let Some(seen) = keys.get_mut(&key) else {
            continue;
        };
        seen.detach();
        if !bounds.change(before, key.len() + seen.bytes()) {
            keys.remove(&key);
            bounds.change(before, 0);
            *is_full = true;
        }
    }
}

impl Reading {
    /// What is known of a key; `Err` when it has to be read by itself.
    pub(super) fn seen(&self, key: &Bytes) -> Result<Option<&Seen>, Apart> {
        let seen = self.keys.get(key);
        if seen.is_none() && self.is_full {
            return Err(Apart);
        }
        Ok(seen)
    }

    /// Where another reading has to begin to miss nothing that was not decided yet.
    pub(super) fn resume_at(&self) -> Offset {
        let scan = self.scan.as_ref();
        scan.map_or(self.position, |scan| scan.resume_at())
    }
}

/// A key has to be read by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Apart;

#[cfg(test)]
mod tests;
