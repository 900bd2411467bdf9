//! The bound on open documents: everything fetched and not yet committed, over all partitions.
//!
//! A quarter of the bytes is for fetches on their way, an even part for each partition. A quarter, and a quarter of the records, is
//! reserved: each topic has a part by its weight, and each of its partitions an even share of that which it may always hold, so a deep
//! partition never starves a shallow one. The rest is a pool that any partition may use up; while it is used up and somebody waits, what
//! becomes free goes to topics that have less of it than their weight says. The sum of the three is the configured bound.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::metrics::OpenGauges;
use crate::llm::Class;

/// What a record costs beyond its own bytes: map entries, the document's state, its task.
const RECORD_OVERHEAD_BYTES: usize = 1_024;
/// The largest fetch; Kafka's default of `max.partition.fetch.bytes`.
const FETCH_BYTES_MAX: usize = 1024 * 1024;
/// The smallest fetch: below it the requests would cost more than the records.
const FETCH_BYTES_MIN: usize = 16 * 1024;

/// Counts open documents of all partitions.
#[derive(Debug)]
pub struct ReadAhead {
    fetch_bytes: usize,
    /// The size of the pool.
    pool: Amount,
    used: Mutex<Used>,
    freed: Notify,
    gauges: OpenGauges,
}

#[derive(Debug, Default, Clone, Copy)]
struct Amount {
    records: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Used {
    partitions: Vec<Partition>,
    topics: Vec<Topic>,
    /// What the partitions hold beyond their shares.
    pool: Amount,
}

#[derive(Debug)]
struct Partition {
    /// Its topic's place among those.
    topic: usize,
    share: Amount,
    open: Amount,
    /// What its records have of late, each; 0 before the first.
    record_bytes: usize,
}

#[derive(Debug, Default)]
struct Topic {
    /// Its part of the pool.
    part: Amount,
    /// What it has of the pool.
    pool: Amount,
    /// How many of its partitions wait for room.
    waiting: usize,
}

impl Amount {
    const fn is_below(self, bound: Self) -> bool {
        self.records < bound.records && self.bytes < bound.bytes
    }

    const fn beyond(self, share: Self) -> Self {
        Self {
            records: self.records.saturating_sub(share.records),
            bytes: self.bytes.saturating_sub(share.bytes),
        }
    }

    const fn change(&mut self, before: Self, after: Self) {
        self.records = self.records + after.records - before.records;
        self.bytes = self.bytes + after.bytes - before.bytes;
    }

    /// `weight` parts of `weights`, rounded down.
    fn part(self, weight: usize, weights: usize) -> Self {
        let part = |whole: usize| whole.saturating_mul(weight) / weights.max(1);
        Self {
            records: part(self.records),
            bytes: part(self.bytes),
        }
    }
}

/// Partitions of one topic, and its weight.
struct Shared {
    topic: usize,
    weight: usize,
    partitions: usize,
}

impl ReadAhead {
    /// Bounds these partitions together.
    #[must_use]
    pub fn new(records_max: usize, bytes_max: usize, partitions: &[Class]) -> Arc<Self> {
        Self::with_gauges(records_max, bytes_max, partitions, OpenGauges::default())
    }

    /// Bounds these partitions together, and shows what is open.
    #[must_use]
    pub fn with_gauges(
        records_max: usize,
        bytes_max: usize,
        partitions: &[Class],
        gauges: OpenGauges,
    ) -> Arc<Self> {
        let reserved = Amount {
            records: records_max / 4,
            bytes: bytes_max / 4,
        };
        let pool = Amount {
            records: records_max - reserved.records,
            bytes: bytes_max / 2,
        };
        let mut flows: BTreeMap<u32, Shared> = BTreeMap::new();
        for class in partitions {
            let topic = flows.len();
            let flow = flows.entry(class.flow).or_insert_with(|| Shared {
                topic,
                weight: whole(class.weight),
                partitions: 0,
            });
            flow.partitions += 1;
        }
        let weights = flows.values().map(|flow| flow.weight).sum();
        let mut topics: Vec<_> = flows.values().map(|_| Topic::default()).collect();
        for flow in flows.values() {
            if let Some(topic) = topics.get_mut(flow.topic) {
                topic.part = pool.part(flow.weight, weights);
            }
        }
        let partition = |class: &Class| {
            let flow = flows.get(&class.flow)?;
            Some(Partition {
                topic: flow.topic,
                share: reserved.part(flow.weight, weights).part(1, flow.partitions),
                open: Amount::default(),
                record_bytes: 0,
            })
        };
        let fetch_bytes = bytes_max / 4 / partitions.len().max(1);
        Arc::new(Self {
            fetch_bytes: fetch_bytes.clamp(FETCH_BYTES_MIN, FETCH_BYTES_MAX),
            pool,
            used: Mutex::new(Used {
                partitions: partitions.iter().filter_map(partition).collect(),
                topics,
                pool: Amount::default(),
            }),
            freed: Notify::new(),
            gauges,
        })
    }

    /// How much the partition's next fetch may ask for: its even part of the bytes for fetches, or less where its records are so small that
    /// they would pass the bound on records. Before the first record the least: nobody knows what comes.
    #[must_use]
    pub fn fetch_bytes(&self, partition: usize) -> usize {
        let records = self.used().records_left(partition, self.pool);
        let bytes = records.map_or(0, |(count, bytes)| count.saturating_mul(bytes));
        bytes.clamp(FETCH_BYTES_MIN, self.fetch_bytes)
    }

    /// Waits until the partition may fetch.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken.
    pub async fn room(&self, partition: usize) {
        if self.used().has_room(partition, self.pool) {
            return;
        }
        let _waiting = Waiting::new(self, partition);
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.used().has_room(partition, self.pool) {
                return;
            }
            freed.await;
        }
    }

    /// Counts a record as open until the token is dropped.
    #[must_use]
    pub fn hold(self: &Arc<Self>, partition: usize, record_bytes: usize) -> OpenToken {
        let bytes = record_bytes + RECORD_OVERHEAD_BYTES;
        let mut used = self.used();
        used.learn(partition, record_bytes);
        used.change(partition, |open| {
            open.records += 1;
            open.bytes += bytes;
        });
        drop(used);
        self.gauges.add(bytes);
        OpenToken {
            read_ahead: Arc::clone(self),
            partition,
            bytes,
        }
    }

    /// Open records and bytes, over all partitions.
    #[must_use]
    pub fn open(&self) -> (usize, usize) {
        let used = self.used();
        let open = used.partitions.iter().map(|partition| partition.open);
        open.fold((0, 0), |(records, bytes), open| {
            (records + open.records, bytes + open.bytes)
        })
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn whole(weight: NonZeroU32) -> usize {
    usize::try_from(weight.get()).unwrap_or(usize::MAX)
}

impl Used {
    /// Whether the partition may fetch, and may fetch enough: asked for each record that is done, one fetch would bring one record.
    fn has_room(&self, partition: usize, pool: Amount) -> bool {
        let Some(Partition {
            topic, share, open, ..
        }) = self.partitions.get(partition)
        else {
            return false;
        };
        let left_of_share = share.records.saturating_sub(open.records);
        let in_share = open.is_below(*share) && left_of_share >= share.records / 2;
        let in_pool = || {
            let whole = share.records + pool.records / self.partitions.len();
            let left = left_of_share + self.left_of_pool(pool);
            self.pool.is_below(pool) && left >= whole / 8 && self.is_turn_of(*topic)
        };
        // A partition that holds nothing may always fetch: one record larger than every bound must still pass.
        open.records == 0 || in_share || in_pool()
    }

    /// A partition's even part of the records that the pool has room for.
    fn left_of_pool(&self, pool: Amount) -> usize {
        pool.records.saturating_sub(self.pool.records) / self.partitions.len()
    }

    /// Whether a topic may have more of the pool: not while another that waits has less than its part.
    fn is_turn_of(&self, topic: usize) -> bool {
        let has_less = |topic: &Topic| topic.pool.is_below(topic.part);
        let mut others = self.topics.iter().enumerate();
        self.topics.get(topic).is_some_and(has_less)
            || !others.any(|(index, other)| index != topic && other.waiting > 0 && has_less(other))
    }

    /// How many records the partition may still hold, with an even part of what is left of the pool, and what each has.
    fn records_left(&self, partition: usize, pool: Amount) -> Option<(usize, usize)> {
        let of_pool = pool.records.saturating_sub(self.pool.records) / self.partitions.len();
        let partition = self.partitions.get(partition)?;
        let of_share = partition
            .share
            .records
            .saturating_sub(partition.open.records);
        Some((of_share + of_pool, partition.record_bytes))
    }

    fn learn(&mut self, partition: usize, record_bytes: usize) {
        if let Some(partition) = self.partitions.get_mut(partition) {
            partition.record_bytes = match partition.record_bytes {
                0 => record_bytes,
                of_late => (of_late * 7 + record_bytes) / 8,
            };
        }
    }

    fn change(&mut self, partition: usize, change: impl FnOnce(&mut Amount)) {
        let Some(partition) = self.partitions.get_mut(partition) else {
            return;
        };
        let before = partition.open.beyond(partition.share);
        change(&mut partition.open);
        let after = partition.open.beyond(partition.share);
        self.pool.change(before, after);
        if let Some(topic) = self.topics.get_mut(partition.topic) {
            topic.pool.change(before, after);
        }
    }

    fn topic_of(&mut self, partition: usize) -> Option<&mut Topic> {
        let topic = self.partitions.get(partition)?.topic;
        self.topics.get_mut(topic)
    }
}

/// Counts a partition among those that wait for room.
struct Waiting<'a> {
    read_ahead: &'a ReadAhead,
    partition: usize,
}

impl<'a> Waiting<'a> {
    fn new(read_ahead: &'a ReadAhead, partition: usize) -> Self {
        if let Some(topic) = read_ahead.used().topic_of(partition) {
            topic.waiting += 1;
        }
        Self {
            read_ahead,
            partition,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut used = self.read_ahead.used();
        let is_shared = used.topics.len() > 1;
        if let Some(topic) = used.topic_of(self.partition) {
            topic.waiting = topic.waiting.saturating_sub(1);
        }
        drop(used);
        // What was kept for it may be another topic's now.
        if is_shared {
            self.read_ahead.freed.notify_waiters();
        }
    }
}

/// Keeps one document counted as open; dropping it frees its place.
#[derive(Debug)]
pub struct OpenToken {
    read_ahead: Arc<ReadAhead>,
    partition: usize,
    bytes: usize,
}

impl Drop for OpenToken {
    fn drop(&mut self) {
        self.read_ahead.used().change(self.partition, |open| {
            open.records = open.records.saturating_sub(1);
            open.bytes = open.bytes.saturating_sub(self.bytes);
        });
        self.read_ahead.gauges.remove(self.bytes);
        self.read_ahead.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn may_fetch(read_ahead: &ReadAhead, partition: usize) -> bool {
        read_ahead.room(partition).now_or_never().is_some()
    }

    #[test]
    fn a_deep_partition_leaves_the_others_their_share() {
        let read_ahead = ReadAhead::new(16, 1 << 30, &[Class::ONLY; 2]);
        let mut held = Vec::new();
        while may_fetch(&read_ahead, 0) {
            held.push(read_ahead.hold(0, 10));
        }
        assert_eq!(
            held.len(),
            2 + 11,
            "its share, and of the pool all that is worth a fetch"
        );
        for _ in 0..2 {
            assert!(may_fetch(&read_ahead, 1));
            held.push(read_ahead.hold(1, 10));
        }
        assert!(!may_fetch(&read_ahead, 1));
        assert!(read_ahead.open().0 <= 16, "the bound is the sum");
        held.remove(0);
        assert!(may_fetch(&read_ahead, 1), "what one frees, another may use");
    }

    fn topic(flow: u32, weight: u32) -> Class {
        Class {
            flow,
            weight: NonZeroU32::new(weight).unwrap(),
            member: 0,
        }
    }

    /// Fetches records of one byte, one at a time, for as long as the partition may.
    fn fill(read_ahead: &Arc<ReadAhead>, partition: usize, held: &mut Vec<OpenToken>) -> usize {
        let before = held.len();
        while may_fetch(read_ahead, partition) {
            held.push(read_ahead.hold(partition, 1));
        }
        held.len() - before
    }

    #[test]
    fn a_topics_share_is_its_weights_however_many_partitions_it_has() {
        // Partition 0 is the only one of a topic of weight 3, the others are of one of weight 1.
        let mut classes = vec![topic(0, 3)];
        classes.extend([topic(1, 1); 4]);
        let read_ahead = ReadAhead::new(64, 1 << 30, &classes);
        let mut held = Vec::new();
        let first = fill(&read_ahead, 1, &mut held);
        assert_eq!(
            first,
            1 + 44,
            "its share, and of the pool all that is worth a fetch"
        );
        for partition in 2..5 {
            assert_eq!(fill(&read_ahead, partition, &mut held), 1);
        }
        assert_eq!(fill(&read_ahead, 0, &mut held), 11);
        assert!(read_ahead.open().0 <= 64, "the bound is the sum");
    }

    #[test]
    fn shares_that_come_to_nothing_keep_the_sum_within_the_bound() {
        let mut classes = vec![topic(0, 1_000)];
        classes.extend([topic(1, 1); 999]);
        let read_ahead = ReadAhead::new(1_024, 1 << 30, &classes);
        let used = read_ahead.used();
        let shares = used.partitions.iter().map(|partition| partition.share);
        let (records, bytes) = shares.fold((0, 0), |(records, bytes), share| {
            (records + share.records, bytes + share.bytes)
        });
        assert!(records <= 256 && bytes <= 1 << 28, "{records}, {bytes}");
        assert_eq!(used.partitions[0].share.records, 255);
        drop(used);
        assert!(may_fetch(&read_ahead, 999), "who holds nothing may fetch");
    }

    /// What a topic had of the pool while it was alone goes to the other, document by document, up to its part.
    #[test]
    fn a_pool_that_is_used_up_is_divided_by_weight() {
        let read_ahead = ReadAhead::new(64, 1 << 30, &[topic(0, 3), topic(1, 1)]);
        let (mut deep, mut other) = (Vec::new(), Vec::new());
        let alone = fill(&read_ahead, 1, &mut deep);
        assert_eq!(alone, 4 + 43);
        assert_eq!(fill(&read_ahead, 0, &mut other), 11);
        for _ in 0..100 {
            let mut waits = Box::pin(read_ahead.room(0));
            let is_waiting = waits.as_mut().now_or_never().is_none();
            drop(deep.pop());
            fill(&read_ahead, 1, &mut deep);
            if is_waiting && waits.now_or_never().is_some() {
                other.push(read_ahead.hold(0, 1));
            }
        }
        let of_pool = other.len().saturating_sub(12);
        assert!(
            (32..=36).contains(&of_pool),
            "{of_pool}: three quarters of the pool"
        );
        drop(other);
        fill(&read_ahead, 1, &mut deep);
        assert_eq!(deep.len(), alone, "nothing is kept for whom does not wait");
    }

    #[test]
    fn a_fetch_asks_for_what_may_be_held_of_small_records_and_no_more() {
        let read_ahead = ReadAhead::new(1_024, 16 << 20, &[Class::ONLY; 16]);
        assert_eq!(
            read_ahead.fetch_bytes(0),
            FETCH_BYTES_MIN,
            "nothing is known"
        );
        drop(read_ahead.hold(0, 1_000));
        // Its share of 16 records, and 48 of the pool.
        assert_eq!(read_ahead.fetch_bytes(0), 64 * 1_000);
        assert_eq!(
            read_ahead.fetch_bytes(1),
            FETCH_BYTES_MIN,
            "another's say nothing"
        );
        let held: Vec<_> = (0..784).map(|_| read_ahead.hold(0, 1_000)).collect();
        assert_eq!(
            read_ahead.fetch_bytes(0),
            FETCH_BYTES_MIN,
            "share and pool are used up"
        );
        drop(held);
        for _ in 0..40 {
            drop(read_ahead.hold(0, 100_000));
        }
        assert_eq!(
            read_ahead.fetch_bytes(0),
            256 * 1024,
            "its part of the bytes for fetches"
        );
    }

    #[test]
    fn bytes_are_bounded_too_and_a_giant_record_still_passes() {
        let read_ahead = ReadAhead::new(1_000, 64 * 1024, &[Class::ONLY]);
        let giant = read_ahead.hold(0, 10 * 1024 * 1024);
        assert!(!may_fetch(&read_ahead, 0));
        drop(giant);
        assert!(may_fetch(&read_ahead, 0));
        assert_eq!(read_ahead.open(), (0, 0));
    }

    #[tokio::test]
    async fn a_waiter_is_woken_when_a_place_is_freed() {
        let read_ahead = ReadAhead::new(1, 1 << 20, &[Class::ONLY]);
        let held: Vec<_> = (0..4).map(|_| read_ahead.hold(0, 1)).collect();
        let mut waiting = Box::pin(read_ahead.room(0));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(held);
        waiting.await;
    }
}
