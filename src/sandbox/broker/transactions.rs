//! The transaction coordinator: who may write under a transactional id, and which transaction is open. The rules and codes are those
//! of Kafka 4's `TransactionCoordinator` for the classic protocol, in which the client adds its partitions itself.
//!
//! # Invariants
//! 1. One epoch of one producer id may write under a transactional id; every older one is fenced.
//! 2. A transaction ends in one step with its markers and its groups' offsets, so nobody sees half of it.
//! 3. An open transaction is aborted when its timeout is over, and its producer is fenced.
//!
//! Because of 2, `CONCURRENT_TRANSACTIONS` comes only from a second `InitProducerId` that has to abort what the first left open: it
//! aborts and answers 51, as Kafka does, and the client asks again. A real broker is also busy for some milliseconds after each
//! `EndTxn`; a fault hook that answers 51 stands for that. Transactional ids do not expire by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::batch::Batch;
use super::clock::now_ms;
use super::groups::Committed;
use super::shared::Shared;
use super::state::State;
use crate::types::TopicPartition;

/// Kafka's `transaction.max.timeout.ms`.
const TIMEOUT_MAX_MS: i32 = 900_000;
/// Transactional ids that are remembered.
const IDS_MAX: usize = 10_000;
/// Groups in one transaction. Its partitions are those of existing topics, which are bounded themselves.
const GROUPS_MAX: usize = 1_000;
/// The first producer id that is given out: a marker of the handle uses one below.
const FIRST_PRODUCER_ID: i64 = 1_000;
/// No epoch of a producer that has asked for an id is this large; the one above is for fencing it.
const EPOCH_EXHAUSTED: i16 = i16::MAX - 1;
const NONE: i16 = -1;

/// Where a transactional id is in its life. Kafka's states while it writes markers are never seen here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Empty,
    Ongoing,
    CompleteCommit,
    CompleteAbort,
}

impl Phase {
    /// What Kafka calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Ongoing => "Ongoing",
            Self::CompleteCommit => "CompleteCommit",
            Self::CompleteAbort => "CompleteAbort",
        }
    }
}

/// A producer in one of its epochs, as a client names itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProducerEpoch {
    pub id: i64,
    pub epoch: i16,
}

/// What the coordinator knows of one transactional id.
#[derive(Debug)]
pub(super) struct Transaction {
    pub producer: ProducerEpoch,
    /// What the producer was before its last change: a repeat of the request that made the change names it.
    last: ProducerEpoch,
    pub timeout: Duration,
    pub phase: Phase,
    pub partitions: BTreeSet<(String, i32)>,
    /// What is committed for a group when the transaction is, by topic and partition.
    groups: BTreeMap<String, BTreeMap<(String, i32), Committed>>,
    /// When it began, by the wall clock, and when it is aborted. Only looked at while it is open.
    pub started_ms: i64,
    deadline: Instant,
}

impl Transaction {
    fn new(producer_id: i64) -> Self {
        Self {
            producer: ProducerEpoch {
                id: producer_id,
                epoch: NONE,
            },
            last: ProducerEpoch {
                id: -1,
                epoch: NONE,
            },
            timeout: Duration::ZERO,
            phase: Phase::Empty,
            partitions: BTreeSet::new(),
            groups: BTreeMap::new(),
            started_ms: -1,
            deadline: Instant::now(),
        }
    }

    /// Whether a client that names this producer may go on, or repeats what it has not heard the answer of (KIP-360).
    fn accepts(&self, named: ProducerEpoch) -> bool {
        self.producer.epoch == NONE
            || named.id == self.producer.id
            || (named.id == self.last.id && named.epoch >= EPOCH_EXHAUSTED)
    }

    /// The next epoch, or a new producer id where there is none; nothing changes for a repeat.
    fn advance(
        &mut self,
        named: Option<ProducerEpoch>,
        fresh_id: impl FnOnce() -> i64,
    ) -> Result<(), ResponseError> {
        let current = self.producer;
        let is_exhausted = current.epoch >= EPOCH_EXHAUSTED;
        if is_exhausted && named.is_none_or(|named| named.epoch == current.epoch) {
            self.last = ProducerEpoch {
                id: current.id,
                epoch: named.map_or(NONE, |named| named.epoch),
            };
            self.producer = ProducerEpoch {
                id: fresh_id(),
                epoch: 0,
            };
            return Ok(());
        }
        let last_epoch = match named {
            None => NONE,
            Some(named) if current.epoch == NONE || named.epoch == current.epoch => current.epoch,
            Some(named) if named.epoch == self.last.epoch => return Ok(()),
            Some(_) => return Err(ResponseError::ProducerFenced),
        };
        self.last = ProducerEpoch {
            id: current.id,
            epoch: last_epoch,
        };
        self.producer.epoch = current.epoch.saturating_add(1);
        Ok(())
    }

    fn check(&self, producer: ProducerEpoch) -> Result<(), ResponseError> {
        if producer.id != self.producer.id {
            Err(ResponseError::InvalidProducerIdMapping)
        } else if producer.epoch != self.producer.epoch {
            Err(ResponseError::ProducerFenced)
        } else {
            Ok(())
        }
    }
}

/// All transactional ids.
#[derive(Debug)]
pub(super) struct Transactions {
    ids: BTreeMap<String, Transaction>,
    next_producer_id: i64,
    /// Tells the timer of every transaction that begins.
    begun: watch::Sender<u64>,
}

impl Default for Transactions {
    fn default() -> Self {
        Self {
            ids: BTreeMap::new(),
            next_producer_id: FIRST_PRODUCER_ID,
            begun: watch::Sender::new(0),
        }
    }
}

impl Transactions {
    /// A producer id that nobody had before, for a producer without transactions.
    pub(super) fn fresh_producer_id(&mut self) -> i64 {
        let id = self.next_producer_id;
        self.next_producer_id += 1;
        id
    }

    pub(super) fn find(&self, id: &str) -> Option<&Transaction> {
        self.ids.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Transaction)> {
        self.ids.iter().map(|(id, found)| (id.as_str(), found))
    }

    /// The transaction of a client that is who it says it is.
    fn of_client(
        &mut self,
        id: &str,
        producer: ProducerEpoch,
    ) -> Result<&mut Transaction, ResponseError> {
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let found = self.ids.get_mut(id);
        let found = found.ok_or(ResponseError::InvalidProducerIdMapping)?;
        found.check(producer)?;
        Ok(found)
    }

    /// Puts partitions into the transaction, which begins with the first.
    pub(super) fn add_partitions(
        &mut self,
        id: &str,
        producer: ProducerEpoch,
        partitions: impl IntoIterator<Item = (String, i32)>,
    ) -> Result<(), ResponseError> {
        let found = self.begin(id, producer)?;
        found.partitions.extend(partitions);
        Ok(())
    }

    /// Puts a group into the transaction, which begins with it when it is the first.
    pub(super) fn add_group(
        &mut self,
        id: &str,
        producer: ProducerEpoch,
        group: &str,
    ) -> Result<(), ResponseError> {
        let found = self.begin(id, producer)?;
        if found.groups.len() >= GROUPS_MAX && !found.groups.contains_key(group) {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        found.groups.entry(group.to_owned()).or_default();
        Ok(())
    }

    /// The transaction of a client, open from now on.
    fn begin(
        &mut self,
        id: &str,
        producer: ProducerEpoch,
    ) -> Result<&mut Transaction, ResponseError> {
        let begun = self.begun.clone();
        let found = self.of_client(id, producer)?;
        if found.phase != Phase::Ongoing {
            found.phase = Phase::Ongoing;
            found.started_ms = now_ms();
            found.deadline = Instant::now() + found.timeout;
            begun.send_modify(|count| *count += 1);
        }
        Ok(found)
    }

    /// Notes an offset that the group has when the transaction is committed. The caller has asked [`Self::verify_group`].
    pub(super) fn commit_with(
        &mut self,
        id: &str,
        group: &str,
        place: (String, i32),
        what: Committed,
    ) {
        let found = self.ids.get_mut(id);
        if let Some(offsets) = found.and_then(|found| found.groups.get_mut(group)) {
            offsets.insert(place, what);
        }
    }

    /// Whether an open transaction holds an offset of the group for this partition.
    pub(super) fn has_pending_offset(&self, group: &str, topic: &str, partition: i32) -> bool {
        let place = (topic.to_owned(), partition);
        self.ids
            .values()
            .filter_map(|found| found.groups.get(group))
            .any(|offsets| offsets.contains_key(&place))
    }

    /// Whether the producer has this partition in its open transaction, as the leader of a partition asks before it appends.
    pub(super) fn verify(
        &self,
        id: &str,
        producer: ProducerEpoch,
        topic: &str,
        partition: i32,
    ) -> Result<(), ResponseError> {
        self.verify_member(id, producer, |found| {
            found.partitions.contains(&(topic.to_owned(), partition))
        })
    }

    /// Whether the producer has this group in its open transaction.
    pub(super) fn verify_group(
        &self,
        id: &str,
        producer: ProducerEpoch,
        group: &str,
    ) -> Result<(), ResponseError> {
        self.verify_member(id, producer, |found| found.groups.contains_key(group))
    }

    fn verify_member(
        &self,
        id: &str,
        producer: ProducerEpoch,
        is_member: impl FnOnce(&Transaction) -> bool,
    ) -> Result<(), ResponseError> {
        let found = self.ids.get(id);
        let found = found.ok_or(ResponseError::InvalidProducerIdMapping)?;
        found.check(producer).map_err(|code| match code {
            // What Produce and TxnOffsetCommit say for it, of the versions that are served.
            ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
            other => other,
        })?;
        if found.phase == Phase::Ongoing && is_member(found) {
            Ok(())
        } else {
            Err(ResponseError::InvalidTxnState)
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.ids
            .values()
            .filter(|found| found.phase == Phase::Ongoing)
            .map(|found| found.deadline)
            .min()
    }
}

impl State {
    /// Gives a producer its id and epoch; whoever had the transactional id before is fenced.
    pub(super) fn init_producer(
        &mut self,
        id: &str,
        timeout_ms: i32,
        named: Option<ProducerEpoch>,
    ) -> Result<ProducerEpoch, ResponseError> {
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let timeout = u64::try_from(timeout_ms).ok().filter(|ms| *ms > 0);
        let timeout = timeout
            .filter(|_| timeout_ms <= TIMEOUT_MAX_MS)
            .ok_or(ResponseError::InvalidTransactionTimeout)?;
        let transactions = &mut self.transactions;
        if !transactions.ids.contains_key(id) {
            if transactions.ids.len() >= IDS_MAX {
                return Err(ResponseError::CoordinatorNotAvailable);
            }
            let new = Transaction::new(transactions.fresh_producer_id());
            transactions.ids.insert(id.to_owned(), new);
        }
        let Transactions {
            ids,
            next_producer_id,
            ..
        } = transactions;
        let found = ids.get_mut(id).ok_or(ResponseError::UnknownServerError)?;
        if named.is_some_and(|named| !found.accepts(named)) {
            return Err(ResponseError::ProducerFenced);
        }
        if found.phase == Phase::Ongoing {
            self.fence_and_abort(id);
            return Err(ResponseError::ConcurrentTransactions);
        }
        found.advance(named, || {
            let fresh = *next_producer_id;
            *next_producer_id += 1;
            fresh
        })?;
        found.phase = Phase::Empty;
        found.timeout = Duration::from_millis(timeout);
        Ok(found.producer)
    }

    /// Ends a transaction as its producer asks; asking again for the same is answered as the first time.
    pub(super) fn end_transaction(
        &mut self,
        id: &str,
        producer: ProducerEpoch,
        commit: bool,
    ) -> Result<(), ResponseError> {
        let found = self.transactions.of_client(id, producer)?;
        match (found.phase, commit) {
            (Phase::Ongoing, _) => {
                self.complete(id, commit);
                Ok(())
            }
            (Phase::CompleteCommit, true) | (Phase::CompleteAbort, false) => Ok(()),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    /// Aborts what is open under a transactional id, in a new epoch that no client has.
    fn fence_and_abort(&mut self, id: &str) {
        if let Some(found) = self.transactions.ids.get_mut(id) {
            found.producer.epoch = found.producer.epoch.saturating_add(1);
            found.last.epoch = NONE;
        }
        self.complete(id, false);
    }

    /// Writes the markers and publishes or drops the offsets of the groups.
    fn complete(&mut self, id: &str, commit: bool) {
        let Some(found) = self.transactions.ids.get_mut(id) else {
            return;
        };
        found.phase = if commit {
            Phase::CompleteCommit
        } else {
            Phase::CompleteAbort
        };
        let producer = found.producer;
        let partitions = std::mem::take(&mut found.partitions);
        let groups = std::mem::take(&mut found.groups);
        let now = now_ms();
        for (topic, index) in partitions {
            // A topic that was deleted meanwhile needs no marker.
            if let Some(partition) = self.partition_mut(&topic, index) {
                let epoch = partition.leader_epoch;
                let marker = Batch::marker(commit, producer.id, producer.epoch, now);
                partition.log.append(marker, epoch);
            }
        }
        for (group, offsets) in groups.into_iter().filter(|_| commit) {
            for ((topic, partition), what) in offsets {
                // A topic that was deleted meanwhile has no offsets either.
                if self.partition(&topic, partition).is_some()
                    && !self.groups.commit(&group, &topic, partition, what)
                {
                    tracing::warn!(group, "the sandbox broker has no room for one more group");
                }
            }
        }
    }

    /// Aborts what has been open for too long.
    fn abort_overdue(&mut self, now: Instant) {
        let overdue: Vec<_> = self
            .transactions
            .ids
            .iter()
            .filter(|(_, found)| found.phase == Phase::Ongoing && found.deadline <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in overdue {
            self.fence_and_abort(&id);
        }
    }

    /// Forgets a transactional id, as Kafka does a week after its last use; what it has open is aborted first. False when it is not
    /// known.
    pub(super) fn expire_transactional_id(&mut self, id: &str) -> bool {
        let is_open = self
            .transactions
            .find(id)
            .is_some_and(|found| found.phase == Phase::Ongoing);
        if is_open {
            self.fence_and_abort(id);
        }
        self.transactions.ids.remove(id).is_some()
    }
}

/// Aborts overdue transactions until the broker ends.
pub(super) async fn run_timers(shared: Arc<Shared>, stop: CancellationToken) {
    let mut begun = shared.state().transactions.begun.subscribe();
    loop {
        begun.mark_unchanged();
        let deadline = shared.state().transactions.next_deadline();
        let overdue = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = begun.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = overdue => shared.change(|state| state.abort_overdue(Instant::now())),
        }
    }
}

/// A transaction that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenTransaction {
    /// The transactional id.
    pub transactional_id: String,
    /// The producer's id.
    pub producer_id: i64,
    /// The producer's epoch.
    pub producer_epoch: i16,
    /// Partitions in it.
    pub partitions: Vec<TopicPartition>,
    /// Consumer groups whose offsets are in it.
    pub groups: Vec<String>,
}

impl Transactions {
    /// What is open, by transactional id.
    pub(super) fn open(&self) -> Vec<OpenTransaction> {
        self.ids
            .iter()
            .filter(|(_, found)| found.phase == Phase::Ongoing)
            .map(|(id, found)| OpenTransaction {
                transactional_id: id.clone(),
                producer_id: found.producer.id,
                producer_epoch: found.producer.epoch,
                partitions: found
                    .partitions
                    .iter()
                    .map(|(topic, index)| TopicPartition::new(topic.as_str(), *index))
                    .collect(),
                groups: found.groups.keys().cloned().collect(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
