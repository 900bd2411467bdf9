//! A partition's commit put elsewhere, for an operator: under the protocol of every owner, so that it is either where it was or where it is to be.
//!
//! A reset takes two owner epochs. The first is a claim with the position as it stands, which shows that nobody else has claimed the partition at
//! the same moment: whoever is interrupted there has changed nothing. The second has the new position, as within an epoch the commit
//! offset never falls, and of two records of one epoch the one that got further counts. Exactly once each of the two is a transaction of the
//! partition's transactional id, which fences whoever had it.

use std::time::Duration;

use tokio::time::sleep;
use uuid::Uuid;

use super::commit::{Committer, Flush, FlushError, FlushObserver};
use super::record::{CommitPosition, CommitRecord, Guarantee};
use super::recovery::{done_from, is_same_topic};
use super::store::{ClaimError, CommitStore, Loaded, Owner};
use crate::clock;
use crate::kafka::{Sink, StepError};
use crate::retry::Backoff;
use crate::types::{Offset, TopicPartition, error_chain};

/// How often a reset begins anew that another writer came in between of.
const TRIES: u32 = 5;
const RETRY_INITIAL: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(2);
/// How far the epoch of the new position lies above that of the claim. An instance that starts at the same moment claims one above what it
/// has read, which is the claim at most: so it is overruled, and no record of its epoch can be taken for ours.
const EPOCHS_ABOVE_CLAIM: u64 = 2;

/// The writers of the two guarantees. A partition is reset under the guarantee of whoever wrote its newest commit, or it would not be fenced.
#[derive(Debug, Clone, Copy)]
pub struct Writers<'a> {
    /// Plain appends.
    pub at_least_once: &'a dyn Sink,
    /// Transactions.
    pub exactly_once: &'a dyn Sink,
}

/// What is to be done to a partition.
#[derive(Debug, Clone)]
pub struct Reset {
    /// The input partition.
    pub partition: TopicPartition,
    /// Id of its topic now.
    pub topic_id: Uuid,
    /// Where a partition without a commit would begin, and under which guarantee.
    pub uncommitted: (Offset, Guarantee),
    /// The next offset to read.
    pub to: Offset,
    /// Whether an owner that is alive is put down.
    pub force: bool,
    /// Name of this run of the command, in commit records.
    pub instance: String,
}

/// What a reset came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WasReset {
    /// Where the partition stood; `None` without a commit.
    pub before: Option<CommitPosition>,
    /// Where it stands.
    pub after: CommitPosition,
    /// The epoch in which it does.
    pub owner_epoch: u64,
    /// The live instance that was overruled.
    pub overruled: Option<String>,
}

/// Why a partition was not reset. It stands where it stood.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// Somebody works on it.
    #[error("instance `{}` works on {partition}, and is taken for alive until {}", .newest.owner, .newest.live_until())]
    Owned {
        /// The input partition.
        partition: TopicPartition,
        /// Its newest commit.
        newest: Box<CommitRecord>,
    },
    /// The commit topic cannot be used, or somebody claims the partition again and again.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The writer's place cannot be had.
    #[error("the writer's place of {partition} cannot be had")]
    Writer {
        /// The input partition.
        partition: TopicPartition,
        /// What the broker said.
        source: StepError,
    },
    /// The commit could not be written.
    #[error(transparent)]
    Flush(#[from] FlushError),
}

/// Where a reset to `to` leaves a partition. Backwards, everything from there on is done again. Forwards, what is finished beyond it stays
/// finished; what is not finished before it is passed over.
#[must_use]
pub fn reset_position(newest: Option<&CommitRecord>, topic_id: Uuid, to: Offset) -> CommitPosition {
    let forwards = newest
        .filter(|commit| is_same_topic(commit.topic_id, topic_id))
        .filter(|commit| to >= commit.next_offset);
    CommitPosition {
        next_offset: to,
        done: forwards.map_or_else(Vec::new, |commit| done_from(&commit.done, to)),
    }
}

/// Resets a partition.
///
/// # Errors
/// As [`ResetError`] says; also when others come in between again and again. Repeating it is harmless.
///
/// # Cancel safety
/// Safe in effect: what was sent stays sent, and the partition is where it was or where it was to be.
pub async fn reset(
    writers: Writers<'_>,
    store: &CommitStore,
    order: &Reset,
) -> Result<WasReset, ResetError> {
    let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_CAP);
    let mut overruled = None;
    let mut tries = 1;
    loop {
        match try_reset(writers, store, order, &mut overruled).await {
            Ok(done) => return Ok(done),
            Err(error) if tries < TRIES && is_worth_another_try(&error) => {
                tracing::warn!(partition = %order.partition, error = error_chain(&error), "begun anew");
                tries += 1;
                sleep(backoff.next_delay()).await;
            }
            Err(error) => return Err(error),
        }
    }
}

const fn is_worth_another_try(error: &ResetError) -> bool {
    match error {
        ResetError::Owned { .. }
        | ResetError::Claim(ClaimError::Record { .. })
        | ResetError::Flush(FlushError::Record { .. }) => false,
        ResetError::Claim(ClaimError::Kafka(_) | ClaimError::Lost { .. })
        | ResetError::Writer { .. }
        | ResetError::Flush(FlushError::Fenced { .. } | FlushError::Expired { .. }) => true,
    }
}

async fn try_reset(
    writers: Writers<'_>,
    store: &CommitStore,
    order: &Reset,
    overruled: &mut Option<String>,
) -> Result<WasReset, ResetError> {
    let partition = &order.partition;
    let seen = store.load(partition).await?;
    // Before anything is fenced.
    note_owner(order, &seen, overruled)?;
    let guarantee = guarantee_of(order, &seen);
    let sink = match guarantee {
        Guarantee::AtLeastOnce => writers.at_least_once,
        Guarantee::ExactlyOnce => writers.exactly_once,
    };
    let taken = sink.take_over(partition).await;
    let sink = taken.map_err(|source| ResetError::Writer {
        partition: partition.clone(),
        source,
    })?;
    // What the former owner wrote until it was fenced.
    let loaded = store.load(partition).await?;
    note_owner(order, &loaded, overruled)?;
    if guarantee_of(order, &loaded) != guarantee {
        return Err(lost(partition, &loaded).into());
    }
    let newest = loaded.newest.as_ref().map(|(_, record)| record);
    let before = newest.map(CommitRecord::position);
    let after = reset_position(newest, order.topic_id, order.to);
    let owner = Owner {
        instance: order.instance.clone(),
        epoch: newest
            .map_or(0, |record| record.owner_epoch)
            .saturating_add(1),
    };
    let mut committer = Committer::new(
        partition.clone(),
        newest.map_or(order.topic_id, |record| record.topic_id),
        owner.clone(),
        sink,
        store.clone(),
        Box::new(Told(partition.clone())),
        Box::new(|_| None),
    )
    // What is done again gets records of its own, behind those that are there.
    .with_audit(newest.and_then(|record| record.audit), None);
    let claim = before.clone().unwrap_or(CommitPosition {
        next_offset: order.uncommitted.0,
        done: Vec::new(),
    });
    committer.flush(only(claim)).await?;
    let verified = store.verify(partition, &owner, None, loaded.end).await?;

    let owner_epoch = owner.epoch.saturating_add(EPOCHS_ABOVE_CLAIM);
    // One that was overruled while it was alive may write for some seconds more: until then another guarantee has to wait.
    committer.begin_epoch(owner_epoch, order.topic_id, overruled.is_none());
    committer.flush(only(after.clone())).await?;
    match store
        .verify(partition, committer.owner(), None, verified.next)
        .await
    {
        Ok(_) => {}
        // It has read ours, and goes on from there.
        Err(ClaimError::Lost {
            owner_epoch: other, ..
        }) if other > owner_epoch => {}
        Err(error @ (ClaimError::Lost { .. } | ClaimError::Record { .. })) => {
            return Err(error.into());
        }
        // It is written; that nobody can look now changes nothing.
        Err(error @ ClaimError::Kafka(_)) => {
            tracing::warn!(%partition, error = error_chain(&error), "written, and not looked at again");
        }
    }
    Ok(WasReset {
        before,
        after,
        owner_epoch,
        overruled: overruled.clone(),
    })
}

/// Refuses while somebody is alive, or notes who is overruled.
fn note_owner(
    order: &Reset,
    loaded: &Loaded,
    overruled: &mut Option<String>,
) -> Result<(), ResetError> {
    let is_alive =
        |record: &&CommitRecord| record.owner != order.instance && record.is_live(clock::now());
    let newest = loaded.newest.as_ref().map(|(_, record)| record);
    let Some(newest) = newest.filter(is_alive) else {
        return Ok(());
    };
    if !order.force {
        return Err(ResetError::Owned {
            partition: order.partition.clone(),
            newest: Box::new(newest.clone()),
        });
    }
    *overruled = Some(newest.owner.clone());
    Ok(())
}

fn guarantee_of(order: &Reset, loaded: &Loaded) -> Guarantee {
    let newest = loaded.newest.as_ref();
    newest.map_or(order.uncommitted.1, |(_, record)| record.guarantee)
}

fn lost(partition: &TopicPartition, loaded: &Loaded) -> ClaimError {
    let newest = loaded.newest.as_ref().map(|(_, record)| record);
    ClaimError::Lost {
        partition: partition.clone(),
        owner: newest.map_or_else(String::new, |record| record.owner.clone()),
        owner_epoch: newest.map_or(0, |record| record.owner_epoch),
    }
}

const fn only(position: CommitPosition) -> Flush {
    Flush {
        outputs: Vec::new(),
        audit: Vec::new(),
        position,
    }
}

/// Tells of trouble while it is tried again.
struct Told(TopicPartition);

impl FlushObserver for Told {
    fn step_failed(&self, step: &'static str, error: &StepError) {
        tracing::warn!(partition = %self.0, step, error = error_chain(error), "tried again");
    }

    fn too_large(&self, _source: Offset, _replaced: bool) {}

    fn recovered(&self) {}
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::sample;
    use super::*;

    fn ranges(pairs: &[(i64, i64)]) -> Vec<(Offset, Offset)> {
        let range = |(first, end): &(i64, i64)| (Offset::new(*first), Offset::new(*end));
        pairs.iter().map(range).collect()
    }

    /// A commit at 5 with 6 to 9 and 12 finished.
    fn commit() -> CommitRecord {
        CommitRecord {
            done: ranges(&[(6, 10), (12, 13)]),
            ..sample("me", 1, 5)
        }
    }

    #[test]
    fn backwards_everything_is_done_again_and_forwards_nothing_is() {
        let commit = commit();
        for (to, done) in [
            (0, &[][..]),
            (4, &[]),
            (5, &[(6, 10), (12, 13)]),
            (6, &[(6, 10), (12, 13)]),
            (8, &[(8, 10), (12, 13)]),
            (11, &[(12, 13)]),
            (20, &[]),
        ] {
            let position = reset_position(Some(&commit), commit.topic_id, Offset::new(to));
            assert_eq!(position.next_offset, Offset::new(to));
            assert_eq!(position.done, ranges(done), "to {to}");
            let mut record = sample("me", 2, to);
            record.done = position.done;
            let value = serde_json::to_vec(&record).unwrap();
            assert_eq!(CommitRecord::from_value(&value).unwrap(), record);
        }
    }

    #[test]
    fn of_a_topic_that_was_created_again_nothing_is_finished() {
        let position = reset_position(Some(&commit()), Uuid::from_u128(8), Offset::new(8));
        assert_eq!(position.done, []);
        assert_eq!(reset_position(None, Uuid::nil(), Offset::new(8)).done, []);
    }
}
