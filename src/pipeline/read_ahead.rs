//! The bound on open documents: everything fetched and not yet committed, over all partitions.
//!
//! A quarter of the bytes is for fetches on their way, an even part for each partition. A quarter, and a quarter of the records, is
//! reserved: each partition may always hold its share, so a deep partition never starves a shallow one. The rest is a pool that any
//! partition may use up. The sum of the three is the configured bound.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// What a record costs beyond its own bytes: map entries, the document's state, its task.
const RECORD_OVERHEAD_BYTES: usize = 1_024;
/// The largest fetch; Kafka's default of `max.partition.fetch.bytes`.
const FETCH_BYTES_MAX: usize = 1024 * 1024;
/// The smallest fetch: below it the requests would cost more than the records.
const FETCH_BYTES_MIN: usize = 16 * 1024;

/// Counts open documents of all partitions.
#[derive(Debug)]
pub struct ReadAhead {
    limits: Limits,
    used: Mutex<Used>,
    freed: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    fetch_bytes: usize,
    share_records: usize,
    share_bytes: usize,
    pool_records: usize,
    pool_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Open {
    records: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Used {
    partitions: Vec<Open>,
    /// What the partitions hold beyond their shares.
    pool: Open,
}

impl Open {
    fn beyond(self, limits: &Limits) -> Self {
        Self {
            records: self.records.saturating_sub(limits.share_records),
            bytes: self.bytes.saturating_sub(limits.share_bytes),
        }
    }
}

impl ReadAhead {
    /// Bounds `partitions` partitions together.
    #[must_use]
    pub fn new(records_max: usize, bytes_max: usize, partitions: usize) -> Arc<Self> {
        let partitions = partitions.max(1);
        let limits = Limits {
            fetch_bytes: (bytes_max / 4 / partitions).clamp(FETCH_BYTES_MIN, FETCH_BYTES_MAX),
            share_records: (records_max / 4 / partitions).max(1),
            share_bytes: bytes_max / 4 / partitions,
            pool_records: records_max - records_max / 4,
            pool_bytes: bytes_max / 2,
        };
        Arc::new(Self {
            limits,
            used: Mutex::new(Used {
                partitions: vec![Open::default(); partitions],
                pool: Open::default(),
            }),
            freed: Notify::new(),
        })
    }

    /// How much one fetch may ask for.
    #[must_use]
    pub fn fetch_bytes(&self) -> usize {
        self.limits.fetch_bytes
    }

    /// Waits until the partition may fetch.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken.
    pub async fn room(&self, partition: usize) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.has_room(partition) {
                return;
            }
            freed.await;
        }
    }

    /// Counts a record as open until the token is dropped.
    #[must_use]
    pub fn hold(self: &Arc<Self>, partition: usize, record_bytes: usize) -> OpenToken {
        let bytes = record_bytes + RECORD_OVERHEAD_BYTES;
        self.change(partition, |open| {
            open.records += 1;
            open.bytes += bytes;
        });
        OpenToken {
            read_ahead: Arc::clone(self),
            partition,
            bytes,
        }
    }

    /// Open records and bytes, over all partitions.
    #[must_use]
    pub fn open(&self) -> (usize, usize) {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.partitions
            .iter()
            .fold((0, 0), |(records, bytes), open| {
                (records + open.records, bytes + open.bytes)
            })
    }

    fn has_room(&self, partition: usize) -> bool {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = used.partitions.get(partition) else {
            return false;
        };
        let in_share =
            open.records < self.limits.share_records && open.bytes < self.limits.share_bytes;
        let in_pool = used.pool.records < self.limits.pool_records
            && used.pool.bytes < self.limits.pool_bytes;
        // A partition that holds nothing may always fetch: one record larger than every bound must still pass.
        open.records == 0 || in_share || in_pool
    }

    fn change(&self, partition: usize, change: impl FnOnce(&mut Open)) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Used { partitions, pool } = &mut *used;
        let Some(open) = partitions.get_mut(partition) else {
            return;
        };
        let before = open.beyond(&self.limits);
        change(open);
        let after = open.beyond(&self.limits);
        pool.records = pool.records + after.records - before.records;
        pool.bytes = pool.bytes + after.bytes - before.bytes;
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
        self.read_ahead.change(self.partition, |open| {
            open.records = open.records.saturating_sub(1);
            open.bytes = open.bytes.saturating_sub(self.bytes);
        });
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
        let read_ahead = ReadAhead::new(16, 1 << 30, 2);
        let mut held = Vec::new();
        while may_fetch(&read_ahead, 0) {
            held.push(read_ahead.hold(0, 10));
        }
        assert_eq!(held.len(), 2 + 12, "its share and the whole pool");
        for _ in 0..2 {
            assert!(may_fetch(&read_ahead, 1));
            held.push(read_ahead.hold(1, 10));
        }
        assert!(!may_fetch(&read_ahead, 1));
        assert_eq!(read_ahead.open().0, 16, "the bound is the sum");
        held.remove(0);
        assert!(may_fetch(&read_ahead, 1), "what one frees, another may use");
    }

    #[test]
    fn bytes_are_bounded_too_and_a_giant_record_still_passes() {
        let read_ahead = ReadAhead::new(1_000, 64 * 1024, 1);
        let giant = read_ahead.hold(0, 10 * 1024 * 1024);
        assert!(!may_fetch(&read_ahead, 0));
        drop(giant);
        assert!(may_fetch(&read_ahead, 0));
        assert_eq!(read_ahead.open(), (0, 0));
    }

    #[tokio::test]
    async fn a_waiter_is_woken_when_a_place_is_freed() {
        let read_ahead = ReadAhead::new(1, 1 << 20, 1);
        let held: Vec<_> = (0..4).map(|_| read_ahead.hold(0, 1)).collect();
        let mut waiting = Box::pin(read_ahead.room(0));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(held);
        waiting.await;
    }
}
