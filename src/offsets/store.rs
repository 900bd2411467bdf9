//! The commit topic: where the newest commit of a partition is found, and how a claim is made.

use std::sync::Arc;
use std::time::Duration;

use super::owner::{Standing, newest, standing};
use super::record::{CommitRecord, RecordError, commit_key};
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
    /// Where reading ended (exclusive): claims written later lie from there on.
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

/// Reads the commit topic. Input partition p commits to commit partition p modulo their number, so that recoveries of different
/// partitions do not wait for each other's open transactions.
#[derive(Debug, Clone)]
pub struct CommitStore {
    reader: Arc<dyn LogScanner>,
    topic: Arc<str>,
    partitions: i32,
}

impl CommitStore {
    /// A store on the topic, which has that many partitions (at least 1).
    pub fn new(reader: Arc<dyn LogScanner>, topic: impl Into<Arc<str>>, partitions: i32) -> Self {
        Self {
            reader,
            topic: topic.into(),
            partitions: partitions.max(1),
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

    /// Reads the partition's commits from the start of the log to its present end.
    ///
    /// # Errors
    /// As [`ClaimError`] says; `Lost` is not among them.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn load(&self, input: &TopicPartition) -> Result<Loaded, ClaimError> {
        let (start, _) = self.reader.log_bounds(&self.partition_of(input)).await?;
        let nothing = Loaded {
            newest: None,
            end: start,
        };
        self.reload(input, nothing).await
    }

    /// Goes on where an earlier [`load`](Self::load) ended, to the present end of the log.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn reload(&self, input: &TopicPartition, seen: Loaded) -> Result<Loaded, ClaimError> {
        let mut found = seen.newest;
        let end = self
            .scan(input, seen.end, |at, record| {
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
        let mut claimed_at = claimed_at;
        let next = self
            .scan(input, from, |at, record| {
                let Some(record) = record else { return Ok(()) };
                if record.owner == owner.instance && record.owner_epoch == owner.epoch {
                    claimed_at.get_or_insert(at);
                }
                // While our own claim has not come by, whatever did come by lies before it.
                let ours = claimed_at.unwrap_or(Offset::new(i64::MAX));
                match standing(&owner.instance, owner.epoch, ours, (at, &record)) {
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

    /// Hands each record of the partition's key from `from` to the end of the log to `each`; a tombstone is `None`. Answers the end.
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
        while position < end {
            let fetched = scan.next(READ_WAIT).await?;
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

/// How long one read of the commit topic waits for what an open transaction still hides.
const READ_WAIT: Duration = Duration::from_millis(500);
