//! What a commit partition's log says about one key, kept while the log is read once for all keys. Pure.
//!
//! # Invariants
//! 1. The newest record kept is the one that folding every record of the key with [`newest`](super::newest) gives, or one that can stand
//!    for it: see [`Seen::takes_quickly`].
//! 2. A claim that overrules an owner is found for as long as its record lies at or beyond where that owner's look begins.
//! 3. Where 1 or 2 cannot be kept, it is said ([`Seen::is_odd_from`], [`Seen::is_unusable`]), and the key is read by itself.

use bytes::Bytes;

use super::owner::{Standing, standing};
use super::record::CommitRecord;
use super::store::Owner;
use crate::types::Offset;

/// Owners of the highest epoch that are told apart: of several that claimed with the same epoch the earliest wins, so each of the others has
/// one before it, whichever two are kept.
const RIVALS_MAX: usize = 2;
/// What an entry takes beside its key, names and value: the structure itself and its place in the map.
pub(super) const SEEN_BYTES: usize = 512;

/// The name before the number that moves with each commit. It cannot stand inside of a JSON string, where its quotes are escaped.
const BEFORE_NEXT_OFFSET: &[u8] = b"\"next_offset\":";

/// One key's part of the log, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Seen {
    newest: Option<Ranked>,
    /// The highest epoch since the last tombstone.
    top_epoch: u64,
    /// Who wrote records with it, the earliest first.
    claims: Vec<Claimed>,
    /// The last record that was read as a whole, as far as it says who wrote it; `None` when it was not written as this program writes.
    stem: Option<Stem>,
    /// The last record that is a tombstone or cannot be used.
    odd_at: Option<Offset>,
    is_unusable: bool,
}

#[derive(Debug)]
struct Ranked {
    owner_epoch: u64,
    next_offset: Offset,
    at: Offset,
    /// Not in the memory of the fetch that brought it.
    value: Bytes,
}

#[derive(Debug)]
struct Claimed {
    owner: String,
    first: Offset,
    last: Offset,
}

#[derive(Debug)]
struct Stem {
    /// Up to the number of `next_offset`.
    bytes: Vec<u8>,
    owner: String,
    owner_epoch: u64,
}

impl Seen {
    /// Takes the next record of the key; a tombstone has no value.
    pub(super) fn take(&mut self, at: Offset, value: Option<&Bytes>) {
        let Some(value) = value else {
            *self = Self {
                odd_at: Some(at),
                is_unusable: self.is_unusable,
                ..Self::default()
            };
            return;
        };
        if self.takes_quickly(at, value) {
            return;
        }
        self.stem = None;
        match CommitRecord::from_value(value) {
            Ok(record) => {
                self.claim(&record.owner, record.owner_epoch, at);
                self.rank(record.owner_epoch, record.next_offset, at, value);
                self.stem = Stem::of(record, value);
            }
            Err(_) => {
                self.odd_at = Some(at);
                self.is_unusable = true;
            }
        }
    }

    /// Takes a record that begins as the last one of the key does, up to the number of `next_offset`, without reading all of it: nearly all
    /// are such.
    ///
    /// That beginning is, byte for byte, what this program writes: version, owner and epoch are those of the last record, and they and the
    /// number are all that rank and claims ask for. What is not read is the rest, until the record is loaded; so a record whose rest is
    /// damaged goes unnoticed once a later one of the same owner and epoch has taken its place. Nothing is lost by that: the later record
    /// has the same key, and compaction may take the earlier one away at any time, so whoever reads the log has to be right without it.
    fn takes_quickly(&mut self, at: Offset, value: &Bytes) -> bool {
        let Some(stem) = &mut self.stem else {
            return false;
        };
        let Some(rest) = value.strip_prefix(stem.bytes.as_slice()) else {
            return false;
        };
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, after) = rest.split_at(digits);
        let number = std::str::from_utf8(number).ok();
        let (Some(next_offset), true) = (
            number.and_then(|number| number.parse().ok()),
            after.starts_with(b",\"done\":["),
        ) else {
            return false;
        };
        let owner_epoch = stem.owner_epoch;
        let owner = std::mem::take(&mut stem.owner);
        self.claim(&owner, owner_epoch, at);
        if let Some(stem) = &mut self.stem {
            stem.owner = owner;
        }
        self.rank(owner_epoch, Offset::new(next_offset), at, value);
        true
    }

    fn rank(&mut self, owner_epoch: u64, next_offset: Offset, at: Offset, value: &Bytes) {
        let rank = (owner_epoch, next_offset, at);
        let is_older = |kept: &Ranked| (kept.owner_epoch, kept.next_offset, kept.at) > rank;
        if !self.newest.as_ref().is_some_and(is_older) {
            self.newest = Some(Ranked {
                owner_epoch,
                next_offset,
                at,
                value: value.clone(),
            });
        }
    }

    /// Copies what is kept out of the memory of a fetch.
    pub(super) fn detach(&mut self) {
        if let Some(newest) = &mut self.newest {
            newest.value = Bytes::copy_from_slice(&newest.value);
        }
    }

    fn claim(&mut self, owner: &str, owner_epoch: u64, at: Offset) {
        if owner_epoch < self.top_epoch {
            return;
        }
        if owner_epoch > self.top_epoch {
            self.top_epoch = owner_epoch;
            self.claims.clear();
        }
        if let Some(claimed) = self
            .claims
            .iter_mut()
            .find(|claimed| claimed.owner == owner)
        {
            // Transactions are decided in another order than they were begun in.
            claimed.first = claimed.first.min(at);
            claimed.last = claimed.last.max(at);
        } else {
            self.claims.push(Claimed {
                owner: owner.to_owned(),
                first: at,
                last: at,
            });
        }
        self.claims.sort_by_key(|claimed| claimed.first);
        self.claims.truncate(RIVALS_MAX);
    }

    /// Whether a record at or beyond `from` is a tombstone or cannot be used: then what is kept does not tell all that lies there.
    pub(super) fn is_odd_from(&self, from: Offset) -> bool {
        self.odd_at.is_some_and(|at| at >= from)
    }

    /// Whether there was a record that cannot be used. Compaction may have taken it away since.
    pub(super) const fn is_unusable(&self) -> bool {
        self.is_unusable
    }

    /// The newest record and where it lies.
    pub(super) fn newest(&self) -> Option<(Offset, &Bytes)> {
        self.newest
            .as_ref()
            .map(|newest| (newest.at, &newest.value))
    }

    /// Where the owner's claim lies, if it has come by at or beyond `from`.
    pub(super) fn claimed_at(&self, owner: &Owner, from: Offset) -> Option<Offset> {
        let ours = |claimed: &&Claimed| claimed.owner == owner.instance && claimed.last >= from;
        let ours = self.claims.iter().find(ours);
        ours.filter(|_| self.top_epoch == owner.epoch)
            .map(|claimed| claimed.first)
    }

    /// Whoever has overruled the owner with a record at or beyond `from`; `claimed_at` is where the owner's own claim lies, if it is there.
    ///
    /// Records below the highest epoch need no look. Where the owner's epoch is lower than theirs it is lower than the highest too, and that
    /// was written at or beyond `from` as well: the owner has taken an epoch above all that it could read before `from`.
    pub(super) fn overruled(
        &self,
        owner: &Owner,
        claimed_at: Option<Offset>,
        from: Offset,
    ) -> Option<(&str, u64)> {
        // While the owner's claim has not come by, whatever did come by lies before it.
        let ours = claimed_at.unwrap_or(Offset::new(i64::MAX));
        let (me, epoch) = (&owner.instance, owner.epoch);
        let is_lost = |claimed: &&Claimed| {
            let judged = standing(
                me,
                epoch,
                ours,
                (claimed.first, &claimed.owner, self.top_epoch),
            );
            claimed.last >= from && judged == Standing::Lost
        };
        let rival = self.claims.iter().find(is_lost)?;
        Some((&rival.owner, self.top_epoch))
    }

    /// Bytes that it takes, its key apart.
    pub(super) fn bytes(&self) -> usize {
        let value = self.newest.as_ref().map_or(0, |newest| newest.value.len());
        let owners = self.claims.iter().map(|claimed| claimed.owner.len());
        let stem = self
            .stem
            .as_ref()
            .map_or(0, |stem| stem.bytes.len() + stem.owner.len());
        SEEN_BYTES + value + owners.sum::<usize>() + stem
    }
}

impl Stem {
    fn of(record: CommitRecord, value: &[u8]) -> Option<Self> {
        let written = serde_json::to_vec(&record).ok()?;
        if written != value {
            return None;
        }
        let width = BEFORE_NEXT_OFFSET.len();
        let begin = value
            .windows(width)
            .position(|found| found == BEFORE_NEXT_OFFSET)?;
        Some(Self {
            bytes: value.get(..begin + width)?.to_vec(),
            owner: record.owner,
            owner_epoch: record.owner_epoch,
        })
    }
}

/// What the crate's `fuzzing` hands to fuzzers: a record after the other.
pub(crate) fn fuzzing(values: &[Bytes]) {
    let mut seen = Seen::default();
    for (at, value) in (0..).zip(values) {
        seen.take(
            Offset::new(at),
            Some(value).filter(|value| !value.is_empty()),
        );
    }
}

#[cfg(test)]
mod tests;
