//! The commit topic: where the newest commit of a partition is found, and how a claim is made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::log::{Bounds, CommitLog, Progress, READ_WAIT};
use super::owner::{Standing, newest, standing};
use super::record::{CommitRecord, RecordError, commit_key};
use super::seen::Seen;
use crate::kafka::{KafkaError, LogScanner};
use crate::types::{Offset, TopicPartition};

/// Who works on a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Name of the instance: unique to this run of the process.
    pub instance: String,
    /// Counts take-overs of the partition.
    pub epoch: u64,
}

/// The name under which a group as a whole is claimed, in the place of an input partition. No topic can have it, as parentheses are not
/// allowed in the names of topics.
#[must_use]
pub fn group_claim() -> TopicPartition {
    TopicPartition::new("(group)", 0)
}

fn name_of(partition: &TopicPartition) -> String {
    if *partition == group_claim() {
        "this group".to_owned()
    } else {
        partition.to_string()
    }
}

/// What the commit topic says about a partition.
#[derive(Debug)]
pub struct Loaded {
    /// The newest commit, with the offset at which it lies in the commit topic.
    pub newest: Option<(Offset, CommitRecord)>,
    /// Where reading ended (exclusive): claims that were not seen lie from there on.
    pub end: Offset,
}

/// What a look for claims of others has found: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Where the owner's own claim lies in the commit topic, once it has come by.
    pub claimed_at: Option<Offset>,
    /// Where the next look begins.
    pub next: Offset,
}

/// Why a partition cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The commit topic cannot be read.
    #[error("the commit topic cannot be read")]
    Kafka(#[from] KafkaError),
    /// A commit record cannot be understood. Going on without it would repeat finished work, so it is not skipped.
    #[error(
        "the commit record of {partition} at offset {offset} of the commit topic cannot be used"
    )]
    Record {
        /// The input partition.
        partition: TopicPartition,
        /// Where the record lies in the commit topic.
        offset: Offset,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Another instance claimed the partition at the same time, or since.
    #[error(
        "instance `{owner}` has taken over {} with owner epoch {owner_epoch}",
        name_of(partition)
    )]
    Lost {
        /// The input partition.
        partition: TopicPartition,
        /// The other instance.
        owner: String,
        /// Its epoch.
        owner_epoch: u64,
    },
}

/// Reads the commit topic. Input partition p commits to commit partition p modulo their number. Each commit partition is read once for all
/// whose commits are in it, and on from there for whoever asks later. Clones share what was read.
#[derive(Debug, Clone)]
pub struct CommitStore {
    reader: Arc<dyn LogScanner>,
    topic: Arc<str>,
    partitions: i32,
    logs: Arc<Logs>,
}

#[derive(Debug, Default)]
struct Logs {
    bounds: Arc<Bounds>,
    /// By number of the commit partition.
    by_number: Mutex<HashMap<i32, Arc<CommitLog>>>,
}

impl CommitStore {
    /// A store on the topic, which has that many partitions (at least 1).
    pub fn new(reader: Arc<dyn LogScanner>, topic: impl Into<Arc<str>>, partitions: i32) -> Self {
        Self {
            reader,
            topic: topic.into(),
            partitions: partitions.max(1),
            logs: Arc::default(),
        }
    }

    /// Where an input partition's commits are.
    #[must_use]
    pub fn partition_of(&self, input: &TopicPartition) -> TopicPartition {
        TopicPartition {
            topic: Arc::clone(&self.topic),
            partition: input.partition.rem_euclid(self.partitions),
        }
    }

    fn log_of(&self, input: &TopicPartition) -> Arc<CommitLog> {
        let partition = self.partition_of(input);
        let logs = self.logs.by_number.lock();
        let mut logs = logs.unwrap_or_else(PoisonError::into_inner);
        let log = logs.entry(partition.partition).or_insert_with(|| {
            let (reader, bounds) = (Arc::clone(&self.reader), Arc::clone(&self.logs.bounds));
            Arc::new(CommitLog::new(reader, partition, bounds))
        });
        Arc::clone(log)
    }

    /// The partition's newest commit of all that is in the log up to its present end, which is asked for after this was called: whatever was
    /// written before is seen.
    ///
    /// # Errors
    /// As [`ClaimError`] says; `Lost` is not among them.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn load(&self, input: &TopicPartition) -> Result<Loaded, ClaimError> {
        let key = commit_key(input);
        let log = self.log_of(input);
        let known = log.ask(|reading| {
            let seen = reading.seen(&key).ok()?;
            if seen.is_some_and(Seen::is_unusable) {
                return None;
            }
            let newest = seen.and_then(Seen::newest);
            let newest = newest.map(|(at, value)| (at, CommitRecord::from_value(value)));
            Some((newest, reading.resume_at()))
        });
        match known.await? {
            Some((None, end)) => Ok(Loaded { newest: None, end }),
            Some((Some((at, Ok(record))), end)) => Ok(Loaded {
                newest: Some((at, record)),
                end,
            }),
            // Compaction may take what cannot be used away, or the log may tell more than had room.
            Some((Some((_, Err(_))), _)) | None => self.load_apart(input).await,
        }
    }

    async fn load_apart(&self, input: &TopicPartition) -> Result<Loaded, ClaimError> {
        let mut found = None;
        let end = self
            .scan(input, Offset::ZERO, |at, record| {
                found = record.map(|record| newest(found.take(), (at, record)));
                Ok(())
            })
            .await?;
        Ok(Loaded { newest: found, end })
    }

    /// Looks at what was written since `from`, to find out whether `owner` still owns the partition. `claimed_at` is where its claim lies,
    /// once it is known.
    ///
    /// # Errors
    /// [`ClaimError::Lost`] when another instance owns the partition; the others as they say.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn verify(
        &self,
        input: &TopicPartition,
        owner: &Owner,
        claimed_at: Option<Offset>,
        from: Offset,
    ) -> Result<Verified, ClaimError> {
        let key = commit_key(input);
        let lost = |owner: &str, owner_epoch| ClaimError::Lost {
            partition: input.clone(),
            owner: owner.to_owned(),
            owner_epoch,
        };
        let log = self.log_of(input);
        let known = log.ask(|reading| {
            let next = reading.resume_at();
            let Some(seen) = reading.seen(&key).ok()? else {
                return Some(Ok(Verified { claimed_at, next }));
            };
            if seen.is_odd_from(from) {
                return None;
            }
            let claimed_at = claimed_at.or_else(|| seen.claimed_at(owner, from));
            Some(match seen.overruled(owner, claimed_at, from) {
                Some((rival, epoch)) => Err(lost(rival, epoch)),
                None => Ok(Verified { claimed_at, next }),
            })
        });
        match known.await? {
            Some(verified) => verified,
            None => self.verify_apart(input, owner, claimed_at, from).await,
        }
    }

    async fn verify_apart(
        &self,
        input: &TopicPartition,
        owner: &Owner,
        claimed_at: Option<Offset>,
        from: Offset,
    ) -> Result<Verified, ClaimError> {
        let mut claimed_at = claimed_at;
        let next = self
            .scan(input, from, |at, record| {
                let Some(record) = record else { return Ok(()) };
                if record.owner == owner.instance && record.owner_epoch == owner.epoch {
                    claimed_at.get_or_insert(at);
                }
                // While our own claim has not come by, whatever did come by lies before it.
                let ours = claimed_at.unwrap_or(Offset::new(i64::MAX));
                let seen = (at, record.owner.as_str(), record.owner_epoch);
                match standing(&owner.instance, owner.epoch, ours, seen) {
                    Standing::Keep => Ok(()),
                    Standing::Lost => Err(ClaimError::Lost {
                        partition: input.clone(),
                        owner: record.owner,
                        owner_epoch: record.owner_epoch,
                    }),
                }
            })
            .await?;
        Ok(Verified { claimed_at, next })
    }

    /// Reads for one key alone: hands each of its records from `from` to the end of the log to `each`; a tombstone is `None`. Answers the end.
    async fn scan(
        &self,
        input: &TopicPartition,
        from: Offset,
        mut each: impl FnMut(Offset, Option<CommitRecord>) -> Result<(), ClaimError>,
    ) -> Result<Offset, ClaimError> {
        let partition = self.partition_of(input);
        let key = commit_key(input);
        let (start, end) = self.reader.log_bounds(&partition).await?;
        let mut scan = self.reader.scan(&partition, from.max(start));
        let mut position = from.max(start);
        let mut progress = Progress::to(&partition, end);
        while position < end {
            let fetched = scan.next(READ_WAIT).await?;
            progress.check(position, &fetched)?;
            for (at, record) in fetched.records {
                if record.key.as_ref() != Some(&key) {
                    continue;
                }
                let record = record
                    .value
                    .map(|value| CommitRecord::from_value(&value))
                    .transpose()
                    .map_err(|source| ClaimError::Record {
                        partition: input.clone(),
                        offset: at,
                        source,
                    })?;
                each(at, record)?;
            }
            position = fetched.next_offset.max(position);
        }
        Ok(scan.resume_at())
    }
}
