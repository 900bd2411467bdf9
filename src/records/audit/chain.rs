//! Verifies one chain of the audit trail, record by record, as they lie in the topic. Pure.
//!
//! A record is where it belongs when the one before it, by hash, is the last that was seen. Otherwise it is one of these:
//! - a **repeat**: the very bytes of an earlier one, as a flush whose answer was lost is written again at least once;
//! - a **fork**: the first of a new owner, in the place of what the former one had written and not committed;
//! - **late**: of an owner that somebody had taken over from, which at least once nobody can stop;
//! - a **break**: anything else. Under exactly once the other three are breaks too.
//!
//! Memory is bounded: records that lie further back than [`WINDOW`] are forgotten. A flush has fewer, and no honest fork goes further back than
//! one flush.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AUDIT_VERSION, AuditHead, EXACTLY_ONCE, Hash, Link};
use crate::types::Offset;

/// How many records a verifier remembers.
pub const WINDOW: usize = 1 << 16;

/// Forks that are told one by one; the others are counted.
const FORKS_TOLD_MAX: usize = 100;

/// Where a record lies in the audit topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Partition of the audit topic.
    pub partition: i32,
    /// Offset in it.
    pub offset: Offset,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {} offset {}", self.partition, self.offset)
    }
}

/// As much of a record as its verification needs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Seen {
    v: u32,
    /// Its place in the chain.
    pub chain: Link,
    by: By,
    /// Hash of its bytes.
    #[serde(skip, default = "nothing")]
    hash: Hash,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct By {
    instance: String,
    owner_epoch: u64,
    guarantee: String,
}

fn nothing() -> Hash {
    Hash::of(&[])
}

impl Seen {
    /// Reads a value.
    ///
    /// # Errors
    /// In words, when it is no record of the audit trail that this program knows.
    pub fn parse(value: &[u8]) -> Result<Self, String> {
        let seen: Self = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        if seen.v != AUDIT_VERSION {
            let found = seen.v;
            return Err(format!(
                "it has version {found}, and this program knows {AUDIT_VERSION}: upgrade it"
            ));
        }
        Ok(Self {
            hash: Hash::of(value),
            ..seen
        })
    }
}

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Break {
    /// Where it shows; `None` where it shows in the commit record.
    pub at: Option<Place>,
    /// Which record of the chain it shows in, or is about.
    pub sequence: Option<u64>,
    /// What is wrong, in one sentence.
    pub what: String,
}

/// A new owner has gone on from what was committed, and has left behind what the former one had not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fork {
    /// The record that declares it.
    pub at: Place,
    /// Its number in the chain.
    pub sequence: u64,
    /// The new owner.
    pub instance: String,
    /// Its epoch.
    pub owner_epoch: u64,
    /// How many records it leaves behind: their documents were processed again.
    pub left_behind: u64,
    /// Whether they are more than one flush, so that some had been committed: the former owner wrote on before it learnt of the new one, or the
    /// commit topic was set back. At least once the two look alike.
    pub had_commits: bool,
}

/// What the commit topic says about a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// There is no commit record of the partition.
    Nothing,
    /// The newest commit record has this head.
    Head {
        /// `None` where it says that the chain has no records.
        head: Option<AuditHead>,
        /// Whether its owner may be at work: then the chain may have grown since.
        is_live: bool,
    },
}

#[derive(Debug, Clone, Copy)]
struct Node {
    sequence: u64,
    hash: Hash,
    committed: u64,
    owner_epoch: u64,
    is_exactly_once: bool,
    at: Place,
}

/// Follows one chain.
#[derive(Debug, Default)]
pub struct Verifier {
    /// Whether records before the first that was seen may have been deleted.
    is_cut: bool,
    /// The first record of the chain that was verified.
    verified_from: Option<u64>,
    /// By hash, what was seen of late.
    known: HashMap<Hash, Node>,
    arrivals: VecDeque<Hash>,
    /// The chain, without what forks have left behind; numbered without gaps.
    line: VecDeque<Node>,
    records: u64,
    repeats: u64,
    late: u64,
    forks: Vec<Fork>,
    fork_count: u64,
    first_break: Option<Break>,
    breaks: u64,
}

/// How a record is connected with what was seen.
enum Joint {
    /// It begins the chain.
    Root,
    /// It follows this one.
    After(Node),
    /// What it follows was not seen.
    Unknown,
}

impl Verifier {
    /// Follows a chain from the beginning of the log; `is_cut` says that the log does not begin with offset 0 any more.
    #[must_use]
    pub fn new(is_cut: bool) -> Self {
        Self {
            is_cut,
            ..Self::default()
        }
    }

    /// Takes the next record of the chain.
    pub fn take(&mut self, at: Place, seen: &Seen) {
        self.records += 1;
        let node = Node {
            sequence: seen.chain.sequence,
            hash: seen.hash,
            committed: seen.chain.committed,
            owner_epoch: seen.by.owner_epoch,
            is_exactly_once: seen.by.guarantee == EXACTLY_ONCE,
            at,
        };
        if let Some(first) = self.known.get(&node.hash).copied() {
            if node.is_exactly_once {
                let what = format!(
                    "it is the record at {} once more, which exactly once rules out",
                    first.at
                );
                self.broken(&node, what);
            } else {
                self.repeats += 1;
            }
            return;
        }
        match self.joint(seen) {
            Err(what) => self.broken_off(node, what),
            Ok(joint) => self.join(node, seen, joint),
        }
    }

    /// Notes a record of the chain that cannot be read, or that is not what it says.
    pub fn unusable(&mut self, at: Place, why: &str) {
        self.records += 1;
        self.note(Break {
            at: Some(at),
            sequence: None,
            what: format!("the record cannot be used: {why}"),
        });
    }

    fn joint(&self, seen: &Seen) -> Result<Joint, String> {
        let Link {
            sequence,
            previous,
            committed,
            ..
        } = seen.chain;
        if committed > sequence {
            return Err(format!(
                "it says that {committed} records of the chain were committed before it, and it is number {sequence}"
            ));
        }
        match (previous, sequence) {
            (None, 0) => Ok(Joint::Root),
            (None, _) | (Some(_), 0) => Err(
                "the first record of a chain, and no other, has the number 0 and none before it"
                    .to_owned(),
            ),
            (Some(previous), sequence) => match self.known.get(&previous) {
                None => Ok(Joint::Unknown),
                Some(node) if node.sequence + 1 == sequence => Ok(Joint::After(*node)),
                Some(node) => Err(format!(
                    "it has the number {sequence} and follows number {} at {}",
                    node.sequence, node.at
                )),
            },
        }
    }

    fn join(&mut self, node: Node, seen: &Seen, joint: Joint) {
        let Some(last) = self.line.back().copied() else {
            return self.begin(node, &joint);
        };
        let is_next = matches!(joint, Joint::After(before) if before.hash == last.hash);
        if is_next && node.owner_epoch < last.owner_epoch {
            let what = format!(
                "it is of owner epoch {} and follows one of owner epoch {}",
                node.owner_epoch, last.owner_epoch
            );
            return self.broken_off(node, what);
        }
        if is_next {
            return self.extend(node);
        }
        let is_former_owners = node.owner_epoch < last.owner_epoch;
        let is_linked = !matches!(joint, Joint::Unknown) || node.sequence <= last.sequence;
        if is_former_owners && !node.is_exactly_once && is_linked {
            self.late += 1;
            return self.remember(node);
        }
        let is_new_owners = seen.chain.take_over && node.owner_epoch > last.owner_epoch;
        match joint {
            Joint::Root | Joint::After(_) if is_new_owners => self.fork(node, &last, seen),
            Joint::Root => {
                let what = format!(
                    "a chain begins anew although one of {} records lies before it",
                    last.sequence + 1
                );
                self.broken_off(node, what);
            }
            Joint::After(before) => {
                let what = format!(
                    "it follows the record at {}, which another follows already, and is not the first of a new owner: records were moved, left out or put in",
                    before.at
                );
                self.broken(&node, what);
                self.remember(node);
            }
            Joint::Unknown => self.unlinked(node, &last, is_new_owners),
        }
    }

    fn begin(&mut self, node: Node, joint: &Joint) {
        if !self.is_cut && !matches!(joint, Joint::Root) {
            let what = match node.sequence {
                1 => "the first record of the chain is missing".to_owned(),
                missing => format!("the first {missing} records of the chain are missing"),
            };
            return self.broken_off(node, what);
        }
        self.extend(node);
    }

    /// A new owner goes on where the commit record says, which is where a flush began. What is left behind is the flush that the former owner had
    /// not committed; more than that where it wrote on before it learnt of the new one, or where the commit topic was set back.
    fn fork(&mut self, node: Node, last: &Node, seen: &Seen) {
        let left_behind = self.line.iter().rev();
        let left_behind = left_behind.take_while(|each| each.sequence >= node.sequence);
        let mut is_final = false;
        let mut is_boundary = false;
        let mut count = 0;
        for each in left_behind {
            is_final |= each.is_exactly_once;
            is_boundary |= each.committed == node.sequence;
            count += 1;
        }
        if !is_boundary || is_final {
            let what = format!(
                "a new owner goes on from number {}, before records that were committed: the commit topic was set back, or records were put in",
                node.sequence
            );
            return self.broken_off(node, what);
        }
        self.fork_count += 1;
        if self.forks.len() < FORKS_TOLD_MAX {
            self.forks.push(Fork {
                at: node.at,
                sequence: node.sequence,
                instance: seen.by.instance.clone(),
                owner_epoch: node.owner_epoch,
                left_behind: count,
                had_commits: node.sequence != last.committed,
            });
        }
        self.retreat_to(node.sequence);
        self.extend(node);
    }

    /// What it follows is not there: it was deleted with the beginning of the log, changed, or left out.
    fn unlinked(&mut self, node: Node, last: &Node, is_new_owners: bool) {
        let is_before_cut = self.is_cut && Some(node.sequence) <= self.verified_from;
        if is_before_cut && is_new_owners {
            self.fork_count += 1;
            self.line.clear();
            self.verified_from = Some(node.sequence);
            return self.extend(node);
        }
        if is_before_cut && !node.is_exactly_once && Some(node.sequence) < self.verified_from {
            self.repeats += 1;
            return self.remember(node);
        }
        let before = node.sequence.saturating_sub(1);
        let what = if node.sequence > last.sequence + 1 {
            let first = last.sequence + 1;
            if first == before {
                format!("number {first} of the chain, which should lie before it, is missing")
            } else {
                format!(
                    "numbers {first} to {before} of the chain, which should lie before it, are missing"
                )
            }
        } else {
            match self.on_line(before) {
                Some(changed) => format!(
                    "it does not follow number {before} as that lies at {}: one of the two was changed",
                    changed.at
                ),
                None => format!("it follows a number {before} that is not there"),
            }
        };
        self.broken_off(node, what);
    }

    fn extend(&mut self, node: Node) {
        self.verified_from.get_or_insert(node.sequence);
        self.remember(node);
        self.line.push_back(node);
        if self.line.len() > WINDOW {
            self.line.pop_front();
        }
    }

    fn retreat_to(&mut self, sequence: u64) {
        while self
            .line
            .back()
            .is_some_and(|last| last.sequence >= sequence)
        {
            self.line.pop_back();
        }
    }

    fn remember(&mut self, node: Node) {
        if self.known.insert(node.hash, node).is_none() {
            self.arrivals.push_back(node.hash);
        }
        if self.arrivals.len() > WINDOW
            && let Some(oldest) = self.arrivals.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn on_line(&self, sequence: u64) -> Option<&Node> {
        let first = self.line.front()?.sequence;
        let index = usize::try_from(sequence.checked_sub(first)?).ok()?;
        self.line.get(index)
    }

    fn broken(&mut self, node: &Node, what: String) {
        self.note(Break {
            at: Some(node.at),
            sequence: Some(node.sequence),
            what,
        });
    }

    /// A break, behind which the chain is followed from the record on.
    fn broken_off(&mut self, node: Node, what: String) {
        self.broken(&node, what);
        self.line.clear();
        self.extend(node);
    }

    fn note(&mut self, found: Break) {
        self.breaks += 1;
        self.first_break.get_or_insert(found);
    }

    /// How many records the chain has as far as it was followed.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.line.back().map_or(0, |last| last.sequence + 1)
    }

    /// Ends it, with what the commit topic says.
    #[must_use]
    pub fn conclude(mut self, committed: Committed) -> Verdict {
        let (mut committed_length, mut uncommitted) = (0, 0);
        match committed {
            Committed::Nothing if self.line.is_empty() => {}
            Committed::Nothing => self.note(Break {
                at: None,
                sequence: None,
                what: "the commit topic has no commit record of the partition, which would tell where the chain ends".to_owned(),
            }),
            Committed::Head { head, is_live } => {
                let length = head.map_or(0, |head| head.length);
                committed_length = length;
                uncommitted = self.length().saturating_sub(length);
                if let Some(what) = self.against_head(head, is_live, uncommitted) {
                    self.note(Break {
                        at: None,
                        sequence: length.checked_sub(1),
                        what,
                    });
                }
            }
        }
        Verdict {
            records: self.records,
            length: self.length(),
            verified_from: self.verified_from,
            head: self.line.back().map(|last| last.hash),
            repeats: self.repeats,
            late: self.late,
            forks: self.fork_count,
            told_forks: self.forks,
            committed: committed_length,
            uncommitted,
            breaks: self.breaks,
            first_break: self.first_break,
        }
    }

    /// What is wrong between the chain and the head in the commit record.
    fn against_head(
        &self,
        head: Option<AuditHead>,
        is_live: bool,
        uncommitted: u64,
    ) -> Option<String> {
        if let Some(head) = head.filter(|head| head.length > 0) {
            if self.line.is_empty() && self.is_cut {
                // Retention has deleted all of it.
                return None;
            }
            if self.length() < head.length {
                let missing = head.length - self.length();
                return Some(format!(
                    "the last {missing} of {} records of the chain are missing: its commit record says that it ends with {}",
                    head.length, head.head
                ));
            }
            match self.on_line(head.length - 1) {
                Some(node) if node.hash == head.head => {}
                Some(node) => {
                    return Some(format!(
                        "number {} of the chain, at {}, is not the one that its commit record names: it was changed, or the commit record was",
                        node.sequence, node.at
                    ));
                }
                // That one was deleted with the beginning of the log.
                None if self.is_cut && self.verified_from >= Some(head.length) => {}
                None => {
                    return Some(format!(
                        "the commit record says that the chain ends with number {}, which lies far back",
                        head.length - 1
                    ));
                }
            }
        }
        let last = self.line.back()?;
        let length = head.map_or(0, |head| head.length);
        let is_one_flush = last.committed == length && !last.is_exactly_once;
        // One that is at work may have committed more since its commit record was read.
        if uncommitted > 0 && !is_live && !is_one_flush {
            return Some(format!(
                "{uncommitted} records lie behind the end of the chain that its commit record names, and nobody is at work that could have written them: the commit topic was set back, or records were put in"
            ));
        }
        None
    }
}

/// What became of the verification of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Records that were read.
    pub records: u64,
    /// Records of the chain, those included that were deleted with the beginning of the log.
    pub length: u64,
    /// The first record of the chain that was there; 0 is its beginning, `None` where nothing was there.
    pub verified_from: Option<u64>,
    /// Hash of the last record.
    pub head: Option<Hash>,
    /// Records that were there before, byte for byte.
    pub repeats: u64,
    /// Records of an owner that somebody had taken over from.
    pub late: u64,
    /// Times that a new owner has left behind what the former one had not committed.
    pub forks: u64,
    /// The first of them.
    pub told_forks: Vec<Fork>,
    /// Records of the chain, as the commit record says.
    pub committed: u64,
    /// Records behind the end that the commit record names.
    pub uncommitted: u64,
    /// How often the chain is broken.
    pub breaks: u64,
    /// Where first.
    pub first_break: Option<Break>,
}

impl Verdict {
    /// Whether there is nothing of the chain, and never was.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records == 0 && self.breaks == 0
    }
}

#[cfg(test)]
mod tests;
