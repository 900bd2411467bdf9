//! The bound on open documents: everything fetched and not yet committed, over all partitions.
//!
//! A quarter of the bytes is for fetches on their way, an even part for each partition. A quarter, and a quarter of the records, is
//! reserved: each topic has a part by its weight, and each of its partitions an even share of that which it may always hold, so a deep
//! partition never starves a shallow one. The rest is a pool that any partition may use up; while it is used up and somebody waits, what
//! becomes free goes to topics that have less of it than their weight says. The sum of the three is the configured bound.
//!
//! # Invariants
//! 1. Who waits holds something, or it might fetch: it is told when what it holds itself becomes less, if not before.
//! 2. A document that becomes free wakes no more than its own partition and one of each topic: what it costs does not grow with partitions.

use std::collections::{BTreeMap, VecDeque};
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
/// The pool is fetched for while one part of this many is free: asked for each record that is done, one fetch would bring one.
const WORTH_A_FETCH: usize = 8;

/// Counts open documents of all partitions.
#[derive(Debug)]
pub struct ReadAhead {
    fetch_bytes: usize,
    used: Mutex<Used>,
    /// Told to those that wait for room in a partition, by its index.
    wakes: Vec<Notify>,
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
    /// The size of the pool.
    pool: Amount,
    /// What the partitions hold beyond their shares.
    used: Amount,
}

/// What records have of late, each; 0 before the first.
#[derive(Debug, Default, Clone, Copy)]
struct Like {
    /// Of a fetch, where they may be packed.
    fetched: usize,
    /// Here.
    held: usize,
}

#[derive(Debug)]
struct Partition {
    /// Its topic's place among those.
    topic: usize,
    share: Amount,
    open: Amount,
    /// What its records are like of late.
    like: Like,
    /// How many wait for its room: more than one while it is given from hand to hand.
    waiting: usize,
    /// Whether it stands in its topic's queue.
    is_queued: bool,
}

#[derive(Debug, Default)]
struct Topic {
    weight: usize,
    /// Of all topics together.
    weights: usize,
    partitions: usize,
    /// Its part of the pool.
    part: Amount,
    /// What it has of the pool.
    used: Amount,
    /// How many wait for room in its partitions.
    waiting: usize,
    /// Its partitions that wait and were not woken, who has waited longest first.
    queue: VecDeque<usize>,
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
        gauges.set_bounds(records_max, bytes_max);
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
                topic.weight = flow.weight;
                topic.weights = weights;
                topic.partitions = flow.partitions;
                topic.part = pool.part(flow.weight, weights);
            }
        }
        let partition = |class: &Class| {
            let flow = flows.get(&class.flow)?;
            Some(Partition {
                topic: flow.topic,
                share: reserved.part(flow.weight, weights).part(1, flow.partitions),
                open: Amount::default(),
                like: Like::default(),
                waiting: 0,
                is_queued: false,
            })
        };
        let fetch_bytes = bytes_max / 4 / partitions.len().max(1);
        Arc::new(Self {
            fetch_bytes: fetch_bytes.clamp(FETCH_BYTES_MIN, FETCH_BYTES_MAX),
            wakes: partitions.iter().map(|_| Notify::new()).collect(),
            used: Mutex::new(Used {
                partitions: partitions.iter().filter_map(partition).collect(),
                topics,
                pool,
                used: Amount::default(),
            }),
            gauges,
        })
    }

    /// How much the partition's next fetch may ask for: as many records as have room, by the bound on records, by that on bytes and by its even
    /// part of the bytes for fetches. Before the first record the least: nobody knows what comes. A broker gives one batch at least, whatever
    /// comes out of it.
    #[must_use]
    pub fn fetch_bytes(&self, partition: usize) -> usize {
        let bytes = self.used().fetch_for(partition, self.fetch_bytes);
        bytes.clamp(FETCH_BYTES_MIN, self.fetch_bytes)
    }

    /// Waits until the partition may fetch.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken.
    pub async fn room(&self, partition: usize) {
        let Some(wake) = self.wakes.get(partition) else {
            return std::future::pending().await;
        };
        if self.used().has_room(partition) {
            return;
        }
        let _waiting = Waiting::new(self, partition);
        loop {
            let woken = wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if !self.used().must_wait(partition) {
                return;
            }
            woken.await;
        }
    }

    /// Learns from a fetch of at most `asked` bytes what its records are like. What was packed comes out as more than was asked for.
    pub fn learn(&self, partition: usize, asked: usize, records: usize, bytes: usize) {
        if let Some(fetched) = bytes.min(asked).checked_div(records) {
            let held = bytes / records;
            self.used().learn(partition, Like { fetched, held });
        }
    }

    /// Counts a record as open until the token is dropped.
    #[must_use]
    pub fn hold(self: &Arc<Self>, partition: usize, record_bytes: usize) -> OpenToken {
        let bytes = record_bytes + RECORD_OVERHEAD_BYTES;
        self.used().change(partition, |open| {
            open.records += 1;
            open.bytes += bytes;
        });
        self.gauges.add(bytes);
        OpenToken {
            read_ahead: Arc::clone(self),
            partition,
            bytes,
        }
    }

    /// Whether a fetch of the partition waits for room.
    #[must_use]
    pub fn is_waited_for(&self, partition: usize) -> bool {
        let used = self.used();
        let partition = used.partitions.get(partition);
        partition.is_some_and(|partition| partition.waiting > 0)
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

    /// Whoever may fetch now and waits at the head of its topic, and `freed` where it may, is woken.
    fn pass_on(&self, mut used: MutexGuard<'_, Used>, freed: Option<usize>) {
        let freed = freed.filter(|partition| used.may_be_woken(*partition));
        let heads = used.take_heads();
        drop(used);
        for partition in freed.into_iter().chain(heads) {
            if let Some(wake) = self.wakes.get(partition) {
                wake.notify_waiters();
            }
        }
    }
}

fn whole(weight: NonZeroU32) -> usize {
    usize::try_from(weight.get()).unwrap_or(usize::MAX)
}

impl Used {
    /// Whether the partition may fetch, and may fetch enough.
    fn has_room(&self, partition: usize) -> bool {
        self.has_room_of_its_own(partition)
            || (self.is_pool_worth_it() && self.is_turn_of_partition(partition))
    }

    fn has_room_of_its_own(&self, partition: usize) -> bool {
        let Some(Partition { share, open, .. }) = self.partitions.get(partition) else {
            return false;
        };
        // A partition that holds nothing may always fetch: one record larger than every bound must still pass.
        open.records == 0
            || (open.is_below(*share) && share.records - open.records >= share.records / 2)
    }

    fn is_pool_worth_it(&self) -> bool {
        let free = self.pool.beyond(self.used);
        let worth = self.pool.part(1, WORTH_A_FETCH);
        self.used.is_below(self.pool) && free.records >= worth.records && free.bytes >= worth.bytes
    }

    fn is_turn_of_partition(&self, partition: usize) -> bool {
        let partition = self.partitions.get(partition);
        partition.is_some_and(|partition| self.is_turn_of(partition.topic))
    }

    /// Whether a topic may have more of the pool: not while another that waits has less than its part.
    fn is_turn_of(&self, topic: usize) -> bool {
        let has_less = |topic: &Topic| topic.used.is_below(topic.part);
        let mut others = self.topics.iter().enumerate();
        self.topics.get(topic).is_some_and(has_less)
            || !others.any(|(index, other)| index != topic && other.waiting > 0 && has_less(other))
    }

    /// Looks once more for somebody who waits, and queues the partition when there is no room.
    fn must_wait(&mut self, partition: usize) -> bool {
        if self.has_room(partition) {
            return false;
        }
        let Some(waits) = self.partitions.get_mut(partition) else {
            return true;
        };
        if !waits.is_queued
            && let Some(topic) = self.topics.get_mut(waits.topic)
        {
            waits.is_queued = true;
            topic.queue.push_back(partition);
        }
        true
    }

    /// Whether somebody waits for a partition that has room of its own now.
    fn may_be_woken(&self, partition: usize) -> bool {
        let waits = self.partitions.get(partition);
        waits.is_some_and(|partition| partition.waiting > 0) && self.has_room_of_its_own(partition)
    }

    /// The first that wait of each topic whose turn it is, while the pool is worth a fetch.
    fn take_heads(&mut self) -> Vec<usize> {
        if self.topics.iter().all(|topic| topic.queue.is_empty()) || !self.is_pool_worth_it() {
            return Vec::new();
        }
        let turns: Vec<_> = (0..self.topics.len())
            .filter(|topic| self.is_turn_of(*topic))
            .collect();
        let mut heads = Vec::new();
        for topic in turns {
            let head = self
                .topics
                .get_mut(topic)
                .and_then(|topic| topic.queue.pop_front());
            if let Some(head) = head {
                if let Some(partition) = self.partitions.get_mut(head) {
                    partition.is_queued = false;
                }
                heads.push(head);
            }
        }
        heads
    }

    /// Bytes of a fetch whose records have room in what is left of the share and an even part of what is left of the pool, and in `part` of the
    /// bytes for fetches; 0 while nobody knows what they are like.
    fn fetch_for(&self, partition: usize, part: usize) -> usize {
        let Some(partition) = self.partitions.get(partition) else {
            return 0;
        };
        let Some(topic) = self.topics.get(partition.topic) else {
            return 0;
        };
        let of_share = partition.share.beyond(partition.open);
        let of_pool = self.pool.beyond(self.used);
        let of_pool = of_pool
            .part(topic.weight, topic.weights)
            .part(1, topic.partitions);
        let Like { fetched, held } = partition.like;
        let by_bytes = (of_share.bytes + of_pool.bytes) / (held + RECORD_OVERHEAD_BYTES);
        let in_a_fetch = part.checked_div(held).unwrap_or_default();
        let records = (of_share.records + of_pool.records)
            .min(by_bytes)
            .min(in_a_fetch);
        records.saturating_mul(fetched)
    }

    /// What turns out smaller in a fetch than was thought is believed at once: to ask for too much passes the bound.
    fn learn(&mut self, partition: usize, like: Like) {
        if let Some(partition) = self.partitions.get_mut(partition) {
            let mean = |of_late: usize, now: usize| match of_late {
                0 => now,
                of_late => (of_late * 7 + now) / 8,
            };
            let before = partition.like;
            partition.like = Like {
                fetched: mean(before.fetched, like.fetched).min(like.fetched),
                held: mean(before.held, like.held),
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
        self.used.change(before, after);
        if let Some(topic) = self.topics.get_mut(partition.topic) {
            topic.used.change(before, after);
        }
    }
}

/// Counts somebody among those that wait for room.
struct Waiting<'a> {
    read_ahead: &'a ReadAhead,
    partition: usize,
}

impl<'a> Waiting<'a> {
    fn new(read_ahead: &'a ReadAhead, partition: usize) -> Self {
        let mut used = read_ahead.used();
        let Used {
            partitions, topics, ..
        } = &mut *used;
        if let Some(waits) = partitions.get_mut(partition) {
            waits.waiting += 1;
            if let Some(topic) = topics.get_mut(waits.topic) {
                topic.waiting += 1;
            }
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
        let Used {
            partitions, topics, ..
        } = &mut *used;
        if let Some(waited) = partitions.get_mut(self.partition) {
            waited.waiting = waited.waiting.saturating_sub(1);
            if let Some(topic) = topics.get_mut(waited.topic) {
                topic.waiting = topic.waiting.saturating_sub(1);
                if waited.waiting == 0 && waited.is_queued {
                    waited.is_queued = false;
                    topic.queue.retain(|queued| *queued != self.partition);
                }
            }
        }
        // What was kept for it may be another topic's now.
        if used.topics.len() > 1 {
            self.read_ahead.pass_on(used, None);
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
        let mut used = self.read_ahead.used();
        used.change(self.partition, |open| {
            open.records = open.records.saturating_sub(1);
            open.bytes = open.bytes.saturating_sub(self.bytes);
        });
        self.read_ahead.pass_on(used, Some(self.partition));
        self.read_ahead.gauges.remove(self.bytes);
    }
}

#[cfg(test)]
mod tests;
