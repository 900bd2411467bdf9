//! Answers to identical requests: what was answered is answered again, and what is on its way is waited for, not asked twice.
//!
//! Whoever finds nothing gets a [`Flight`] and asks the model; whoever finds a flight gets a [`Waiter`]. Waiting takes no slot: give
//! yours back first, as those who wait could otherwise hold all the slots that the flights need.
//!
//! # Invariants
//! 1. Kept answers weigh no more than the bound, what the cache itself needs for each included. The one that was used longest ago
//!    makes room; one that is heavier than the whole bound is not kept, but all who wait for it get it.
//! 2. For one key one flight is under way at most.
//! 3. Every end of a flight, also that it is dropped, wakes all who wait for it: with the answer, or to look again, when one of them
//!    gets the next flight. So a failure is not shared: it may lie in the attempt and not in the document.
//!
//! Least recently used and nothing cleverer: repeats come soon after, when the sender tries again, and not because some documents are
//! popular. The policies of general caches make short work of what was seen once, which here is everything until it is repeated.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

/// What an answer costs beside its own weight, in bytes: its key in two maps, the count of its use, its weight, and what the maps
/// allocate in reserve.
const ENTRY_BYTES: u64 = 256;

/// What makes two requests the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CacheKey([u8; 32]);

/// Answers of type `V`, a cheap clone such as an `Arc`; clones of the cache share them.
#[derive(Debug)]
pub(super) struct Cache<V> {
    shared: Arc<Shared<V>>,
}

/// What a look at the cache found.
#[derive(Debug)]
#[must_use = "a flight that is dropped is a failure, a waiter that is dropped has waited for nothing"]
pub(super) enum Look<V> {
    /// It was answered already.
    Hit(V),
    /// Nothing is known and nobody asks: ask, and tell the flight.
    Begin(Flight<V>),
    /// It is being asked.
    Wait(Waiter<V>),
}

/// The duty to ask for one key. Dropping it says that there is no answer.
#[derive(Debug)]
pub(super) struct Flight<V> {
    shared: Arc<Shared<V>>,
    key: CacheKey,
    /// To all who wait; its end without a value means that they must look again.
    landing: watch::Sender<Option<V>>,
}

/// A place beside a flight. Dropping it has no effect on anyone.
#[derive(Debug)]
pub(super) struct Waiter<V> {
    cache: Cache<V>,
    key: CacheKey,
    landing: watch::Receiver<Option<V>>,
}

/// What the cache holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheLevel {
    pub(super) entries: usize,
    /// At most the bound.
    pub(super) bytes: u64,
    pub(super) flights: usize,
}

#[derive(Debug)]
struct Shared<V> {
    state: Mutex<State<V>>,
}

#[derive(Debug)]
struct State<V> {
    kept: Kept<V>,
    /// What is being asked. As many as documents are open at most, which the pipeline bounds.
    flights: HashMap<CacheKey, watch::Receiver<Option<V>>>,
}

/// Answers up to a weight, the least recently used first to go.
#[derive(Debug)]
struct Kept<V> {
    bytes_max: u64,
    bytes: u64,
    entries: HashMap<CacheKey, Entry<V>>,
    /// Keys by when they were last used.
    uses: BTreeMap<u64, CacheKey>,
    next_use: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: u64,
    last_use: u64,
}

impl CacheKey {
    /// The digest of `parts`, each with its length before it: no two lists of parts run together into the same key.
    pub(super) fn new<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
            digest.update(length.to_be_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
    }
}

impl<V> Kept<V> {
    fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            entries: HashMap::new(),
            uses: BTreeMap::new(),
            next_use: 0,
        }
    }

    fn insert(&mut self, key: CacheKey, value: V, weight: u64) {
        let bytes = weight.saturating_add(ENTRY_BYTES);
        self.remove(key);
        if bytes > self.bytes_max {
            return;
        }
        while self.bytes > self.bytes_max - bytes {
            let Some((_, oldest)) = self.uses.first_key_value() else {
                break;
            };
            self.remove(*oldest);
        }
        self.bytes = self.bytes.saturating_add(bytes);
        let last_use = self.count_use(key);
        let entry = Entry {
            value,
            bytes,
            last_use,
        };
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: CacheKey) {
        if let Some(entry) = self.entries.remove(&key) {
            self.uses.remove(&entry.last_use);
            self.bytes = self.bytes.saturating_sub(entry.bytes);
        }
    }

    fn count_use(&mut self, key: CacheKey) -> u64 {
        let this = self.next_use;
        self.next_use += 1;
        self.uses.insert(this, key);
        this
    }
}

impl<V: Clone> Kept<V> {
    fn get(&mut self, key: CacheKey) -> Option<V> {
        let before = self.entries.get(&key)?.last_use;
        self.uses.remove(&before);
        let last_use = self.count_use(key);
        let entry = self.entries.get_mut(&key)?;
        entry.last_use = last_use;
        Some(entry.value.clone())
    }
}

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<V: Clone> Cache<V> {
    /// Empty, for at most `bytes_max` bytes of answers.
    pub(super) fn new(bytes_max: NonZeroU64) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    kept: Kept::new(bytes_max.get()),
                    flights: HashMap::new(),
                }),
            }),
        }
    }

    /// Looks for an answer, and without one for somebody who asks already.
    pub(super) fn look(&self, key: CacheKey) -> Look<V> {
        let mut state = self.shared.state();
        if let Some(value) = state.kept.get(key) {
            return Look::Hit(value);
        }
        if let Some(landing) = state.flights.get(&key) {
            return Look::Wait(Waiter {
                cache: self.clone(),
                key,
                landing: landing.clone(),
            });
        }
        let (landing, for_waiters) = watch::channel(None);
        state.flights.insert(key, for_waiters);
        Look::Begin(Flight {
            shared: Arc::clone(&self.shared),
            key,
            landing,
        })
    }

    pub(super) fn level(&self) -> CacheLevel {
        let state = self.shared.state();
        CacheLevel {
            entries: state.kept.entries.len(),
            bytes: state.kept.bytes,
            flights: state.flights.len(),
        }
    }
}

impl<V: Clone> Flight<V> {
    /// There is an answer, which weighs `weight` bytes: it is kept, and given to all who wait.
    pub(super) fn land(self, value: V, weight: u64) {
        self.shared
            .state()
            .kept
            .insert(self.key, value.clone(), weight);
        self.landing.send_replace(Some(value));
    }
}

impl<V> Drop for Flight<V> {
    fn drop(&mut self) {
        // Before the channel closes, which wakes those who wait: they must not find this flight again.
        self.shared.state().flights.remove(&self.key);
    }
}

impl<V: Clone> Waiter<V> {
    /// Waits for the end of the flight: a hit when it brought an answer, otherwise what another look finds.
    ///
    /// # Cancel safety
    /// Safe: it holds nothing that others need.
    pub(super) async fn wait(mut self) -> Look<V> {
        let landed = match self.landing.wait_for(Option::is_some).await {
            Ok(value) => value.clone(),
            Err(_ended_without) => None,
        };
        match landed {
            Some(value) => Look::Hit(value),
            None => self.cache.look(self.key),
        }
    }
}

impl<V> Shared<V> {
    fn state(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
