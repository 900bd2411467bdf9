//! The commit record: the truth about how far a partition has come, readable with a console consumer.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::records::audit::AuditHead;
use crate::types::{Offset, Record, TopicPartition};

/// The version of the value's schema that this program writes and reads.
pub(super) const VERSION: u32 = 1;

/// Most bytes of a commit record's value: half of Kafka's default `max.message.bytes`, so that whatever the codec makes of it the commit topic
/// accepts it.
pub const COMMIT_BYTES_MAX: usize = 512 * 1024;

/// What a commit record takes beside its ranges: its names and punctuation 110, the topic's id 36, three numbers of up to 20 digits, the
/// guarantee 15, the time 30, the end of the audit trail 110, and the owner: a host of up to 253 characters and 9 more, which JSON may write as
/// six characters each.
pub(super) const COMMIT_FIXED_BYTES_MAX: usize = 2 * 1024;

/// The most bytes of a commit record with that many ranges, none of which names an offset beyond `far_end`. A range is written as
/// `[first,end],`: twice the digits, and four.
pub(super) fn commit_bytes_max(ranges: usize, far_end: Offset) -> usize {
    let digits = far_end.value().checked_ilog10().map_or(1, |log| log + 1);
    let digits = usize::try_from(digits).unwrap_or(usize::MAX);
    let range_bytes = digits.saturating_mul(2).saturating_add(4);
    COMMIT_FIXED_BYTES_MAX.saturating_add(ranges.saturating_mul(range_bytes))
}

/// `processing.guarantee`, with Kafka Streams' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Every document has a result; a crash may repeat some.
    #[default]
    AtLeastOnce,
    /// Every document has one result.
    ExactlyOnce,
}

impl std::fmt::Display for Guarantee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AtLeastOnce => "at_least_once",
            Self::ExactlyOnce => "exactly_once",
        })
    }
}

/// How long an owner is taken for alive after it wrote a commit record, which it does every 15 s also when idle.
pub const LIVE_FOR: Duration = Duration::from_secs(45);

/// How far a partition has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommitPosition {
    /// The next offset to read: everything below is finished.
    pub next_offset: Offset,
    /// What is finished beyond it: sorted ranges that do not touch, first inclusive, end exclusive.
    pub done: Vec<(Offset, Offset)>,
}

impl CommitPosition {
    /// Whether the record at `offset` is finished.
    #[must_use]
    pub fn contains(&self, offset: Offset) -> bool {
        offset < self.next_offset || in_ranges(&self.done, offset)
    }
}

/// Whether one of the sorted ranges (end exclusive) holds the offset.
pub(super) fn in_ranges(ranges: &[(Offset, Offset)], offset: Offset) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= offset);
    after
        .checked_sub(1)
        .and_then(|index| ranges.get(index))
        .is_some_and(|(_, end)| offset < *end)
}

/// The value of a commit record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// Schema version.
    pub v: u32,
    /// Id of the input topic: another one means that the topic was created anew.
    pub topic_id: Uuid,
    /// Name of the instance that wrote it.
    pub owner: String,
    /// Counts take-overs; the highest owns the partition.
    pub owner_epoch: u64,
    /// The guarantee that the owner works under.
    pub guarantee: Guarantee,
    /// The next offset to read: everything below is finished.
    pub next_offset: Offset,
    /// What is finished beyond `next_offset`; ends are exclusive.
    pub done: Vec<(Offset, Offset)>,
    /// Where the chain of the audit trail ends; null where it has no records.
    #[serde(default)]
    pub audit: Option<AuditHead>,
    /// When it was written; an owner is live for a while after it.
    pub at: Timestamp,
    /// Whether its owner ended with it: nobody works on the partition for its sake.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
}

/// A record in the commit topic that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not JSON, or fields are missing.
    #[error("the commit record cannot be read")]
    Malformed(#[from] serde_json::Error),
    /// Written by a newer program.
    #[error("the commit record has version {found}; this program knows {VERSION}: upgrade it")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Ranges overlap, are empty, or do not lie beyond `next_offset`.
    #[error("the ranges of the commit record are not sorted beyond its next_offset {next_offset}")]
    Ranges {
        /// The record's `next_offset`.
        next_offset: Offset,
    },
}

/// The key under which a partition's commits are kept.
#[must_use]
pub fn commit_key(partition: &TopicPartition) -> Bytes {
    Bytes::from(format!("{}/{}", partition.topic, partition.partition))
}

impl CommitRecord {
    /// How far it says the partition has come.
    #[must_use]
    pub fn position(&self) -> CommitPosition {
        CommitPosition {
            next_offset: self.next_offset,
            done: self.done.clone(),
        }
    }

    /// Whether its owner may still be at work.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        let age = now.duration_since(self.at);
        let is_young = Duration::try_from(age).is_ok_and(|age| age < LIVE_FOR);
        !self.released && (is_young || age.is_negative())
    }

    /// From when on its owner is taken for gone, unless it writes another.
    #[must_use]
    pub fn live_until(&self) -> Timestamp {
        if self.released {
            return self.at;
        }
        self.at.saturating_add(LIVE_FOR).unwrap_or(Timestamp::MAX)
    }

    /// Writes it for `partition`.
    ///
    /// # Errors
    /// When serde refuses, which no value of this type makes it do.
    pub fn into_record(self, partition: &TopicPartition) -> Result<Record, RecordError> {
        let timestamp_ms = self.at.as_millisecond();
        Ok(Record {
            key: Some(commit_key(partition)),
            value: Some(Bytes::from(serde_json::to_vec(&self)?)),
            headers: Vec::new(),
            timestamp_ms,
        })
    }

    /// Reads a value and checks what later code relies on.
    ///
    /// # Errors
    /// As [`RecordError`] says.
    pub fn from_value(value: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            v: u32,
        }
        let Versioned { v } = serde_json::from_slice(value)?;
        if v != VERSION {
            return Err(RecordError::Version { found: v });
        }
        let record: Self = serde_json::from_slice(value)?;
        let mut end = record.next_offset;
        for (index, (first, range_end)) in record.done.iter().enumerate() {
            // A range that touches what lies below it should have been part of it; only the first may not touch next_offset.
            let beyond = if index == 0 {
                *first >= end
            } else {
                *first > end
            };
            if !beyond || range_end <= first {
                return Err(RecordError::Ranges {
                    next_offset: record.next_offset,
                });
            }
            end = *range_end;
        }
        Ok(record)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::offsets) fn sample(owner: &str, epoch: u64, next_offset: i64) -> CommitRecord {
        CommitRecord {
            v: VERSION,
            topic_id: Uuid::from_u128(7),
            owner: owner.to_owned(),
            owner_epoch: epoch,
            guarantee: Guarantee::AtLeastOnce,
            next_offset: Offset::new(next_offset),
            done: Vec::new(),
            audit: None,
            at: crate::clock::now(),
            released: false,
        }
    }

    #[test]
    fn an_owner_that_ended_with_its_record_is_not_live() {
        let mut record = sample("me", 1, 5);
        let now = record.at;
        assert!(record.is_live(now) && record.live_until() > now);
        record.released = true;
        assert!(!record.is_live(now) && record.live_until() == now);
        let value = serde_json::to_vec(&record).unwrap();
        assert_eq!(CommitRecord::from_value(&value).unwrap(), record);
    }

    #[test]
    fn the_value_is_the_documented_json() {
        let mut record = sample("me", 3, 17);
        record.done = vec![(Offset::new(19), Offset::new(21))];
        record.at = Timestamp::UNIX_EPOCH;
        let written = record.into_record(&TopicPartition::new("docs", 4)).unwrap();
        assert_eq!(written.key.unwrap(), "docs/4");
        assert_eq!(
            std::str::from_utf8(&written.value.unwrap()).unwrap(),
            r#"{"v":1,"topic_id":"00000000-0000-0000-0000-000000000007","owner":"me","owner_epoch":3,"guarantee":"at_least_once","next_offset":17,"done":[[19,21]],"audit":null,"at":"1970-01-01T00:00:00Z"}"#
        );
    }

    #[test]
    fn another_version_and_bad_ranges_are_refused() {
        assert!(matches!(
            CommitRecord::from_value(br#"{"v":2}"#),
            Err(RecordError::Version { found: 2 })
        ));
        for done in [
            "[[16,18]]",
            "[[20,20]]",
            "[[20,22],[22,23]]",
            "[[25,26],[20,22]]",
        ] {
            let value = format!(
                r#"{{"v":1,"topic_id":"00000000-0000-0000-0000-000000000007","owner":"me","owner_epoch":1,"guarantee":"at_least_once","next_offset":17,"done":{done},"at":"1970-01-01T00:00:00Z"}}"#
            );
            assert!(
                matches!(
                    CommitRecord::from_value(value.as_bytes()),
                    Err(RecordError::Ranges { .. })
                ),
                "{done}"
            );
        }
        assert!(CommitRecord::from_value(b"rubbish").is_err());
    }

    proptest! {
        #[test]
        fn records_round_trip(next in 0i64..1000, steps in prop::collection::vec((1i64..9, 1i64..9), 0..40)) {
            let mut record = sample("me", 1, next);
            let mut end = next;
            for (gap, length) in steps {
                record.done.push((Offset::new(end + gap), Offset::new(end + gap + length)));
                end += gap + length;
            }
            let written = record.clone().into_record(&TopicPartition::new("docs", 0)).unwrap();
            prop_assert_eq!(CommitRecord::from_value(&written.value.unwrap()).unwrap(), record);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            assert!(CommitRecord::from_value(&bytes).is_err());
        }
    }
}
