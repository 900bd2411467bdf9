//! From the newest commit to the first offset to read.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::record::{CommitPosition, CommitRecord};
use crate::types::Offset;

/// `input.start`: where to begin where nothing was ever committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartAt {
    /// At the first record that still exists.
    #[default]
    Earliest,
    /// After the last record.
    Latest,
}

/// Where work goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// From there.
    From(CommitPosition),
    /// Somebody outside has taken unread input away; nothing goes on unless a policy says so.
    DataLoss(DataLoss),
}

/// How input was lost, and where work could go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataLoss {
    /// The topic was deleted and created again.
    TopicRecreated {
        /// The id in the commit record.
        committed: Uuid,
        /// The id of the topic now.
        found: Uuid,
        /// The first offset of the new topic.
        log_start: Offset,
    },
    /// Retention, or somebody, deleted records that were not read.
    Deleted {
        /// Where reading was to go on.
        next_offset: Offset,
        /// The first offset that still exists.
        log_start: Offset,
        /// What is finished of the records that still exist.
        done: Vec<(Offset, Offset)>,
    },
    /// The log ends before the commit.
    Truncated {
        /// Where reading was to go on.
        next_offset: Offset,
        /// The end of the log, exclusive.
        high_watermark: Offset,
    },
}

impl DataLoss {
    /// Where `input.on_data_loss = resume` goes on: at the first record that exists, without those that are finished.
    #[must_use]
    pub fn resume_from(&self) -> CommitPosition {
        let (next_offset, done) = match self {
            Self::TopicRecreated { log_start, .. } => (*log_start, Vec::new()),
            Self::Deleted {
                log_start, done, ..
            } => (*log_start, done.clone()),
            Self::Truncated { high_watermark, .. } => (*high_watermark, Vec::new()),
        };
        CommitPosition { next_offset, done }
    }
}

impl fmt::Display for DataLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopicRecreated {
                committed, found, ..
            } => write!(
                f,
                "the input topic was deleted and created again: the commit is for topic id {committed}, the topic's id is {found}"
            ),
            Self::Deleted {
                next_offset,
                log_start,
                ..
            } => write!(
                f,
                "unread input was deleted: the commit says to go on at offset {next_offset}, the log begins at {log_start}"
            ),
            Self::Truncated {
                next_offset,
                high_watermark,
            } => write!(
                f,
                "the log was cut off: the commit says to go on at offset {next_offset}, the log ends at {high_watermark}"
            ),
        }
    }
}

/// Decides where to go on. `log_start` is the first offset that exists, `high_watermark` the end (exclusive), `topic_id` the topic's id now.
#[must_use]
pub fn recover(
    newest: Option<&CommitRecord>,
    topic_id: Uuid,
    log_start: Offset,
    high_watermark: Offset,
    start: StartAt,
) -> Resume {
    let Some(commit) = newest else {
        let next_offset = match start {
            StartAt::Earliest => log_start,
            StartAt::Latest => high_watermark,
        };
        return Resume::From(CommitPosition {
            next_offset,
            done: Vec::new(),
        });
    };
    let next_offset = commit.next_offset;
    if !is_same_topic(commit.topic_id, topic_id) {
        return Resume::DataLoss(DataLoss::TopicRecreated {
            committed: commit.topic_id,
            found: topic_id,
            log_start,
        });
    }
    if next_offset < log_start {
        return Resume::DataLoss(DataLoss::Deleted {
            next_offset,
            log_start,
            done: done_from(&commit.done, log_start),
        });
    }
    if next_offset > high_watermark {
        return Resume::DataLoss(DataLoss::Truncated {
            next_offset,
            high_watermark,
        });
    }
    Resume::From(commit.position())
}

/// Whether the ids may be one topic's: the nil id is that of a broker before Kafka 2.8, which knows none.
#[must_use]
pub fn is_same_topic(one: Uuid, other: Uuid) -> bool {
    one == other || one.is_nil() || other.is_nil()
}

/// What lies at or beyond `from` of the sorted ranges.
pub(super) fn done_from(done: &[(Offset, Offset)], from: Offset) -> Vec<(Offset, Offset)> {
    let left = done.iter().filter(|(_, end)| *end > from);
    left.map(|(first, end)| ((*first).max(from), *end))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::sample;
    use super::*;

    fn recover_at(next_offset: i64, log_start: i64, high_watermark: i64) -> Resume {
        let commit = sample("me", 1, next_offset);
        recover(
            Some(&commit),
            commit.topic_id,
            Offset::new(log_start),
            Offset::new(high_watermark),
            StartAt::Earliest,
        )
    }

    #[test]
    fn a_commit_inside_the_log_goes_on_there() {
        for next_offset in [5, 7, 9] {
            assert!(
                matches!(recover_at(next_offset, 5, 9), Resume::From(position) if position.next_offset == Offset::new(next_offset))
            );
        }
    }

    #[test]
    fn lost_input_is_named_with_both_offsets() {
        assert!(
            matches!(recover_at(4, 5, 9), Resume::DataLoss(loss) if loss.to_string().contains("offset 4") && loss.to_string().contains("begins at 5"))
        );
        assert!(
            matches!(recover_at(10, 5, 9), Resume::DataLoss(loss) if loss.to_string().contains("offset 10") && loss.to_string().contains("ends at 9"))
        );
        let commit = sample("me", 1, 6);
        let resume = recover(
            Some(&commit),
            Uuid::from_u128(8),
            Offset::ZERO,
            Offset::new(9),
            StartAt::Latest,
        );
        assert!(matches!(
            resume,
            Resume::DataLoss(DataLoss::TopicRecreated { .. })
        ));
    }

    /// A commit at 4 with 6, 7 and 10 finished; then the log begins at `log_start`.
    fn resumed_at(log_start: i64) -> CommitPosition {
        let mut commit = sample("me", 1, 4);
        let range = |first, end| (Offset::new(first), Offset::new(end));
        commit.done = vec![range(6, 8), range(10, 11)];
        let resume = recover(
            Some(&commit),
            commit.topic_id,
            Offset::new(log_start),
            Offset::new(20),
            StartAt::Earliest,
        );
        let Resume::DataLoss(loss) = resume else {
            panic!("{resume:?}")
        };
        loss.resume_from()
    }

    #[test]
    fn what_is_finished_beyond_deleted_input_stays_finished() {
        for log_start in 5..=12 {
            let position = resumed_at(log_start);
            assert_eq!(position.next_offset, Offset::new(log_start));
            for offset in log_start..20 {
                let is_finished = [6, 7, 10].contains(&offset);
                let offset = Offset::new(offset);
                assert_eq!(
                    position.contains(offset),
                    is_finished,
                    "{offset} after the log begins at {log_start}"
                );
            }
            let mut record = sample("me", 2, log_start);
            record.done = position.done;
            let value = serde_json::to_vec(&record).unwrap();
            assert_eq!(CommitRecord::from_value(&value).unwrap(), record);
        }
    }

    #[test]
    fn without_a_commit_the_setting_decides() {
        let at = |start| recover(None, Uuid::nil(), Offset::new(3), Offset::new(8), start);
        let from = |offset| {
            Resume::From(CommitPosition {
                next_offset: Offset::new(offset),
                done: vec![],
            })
        };
        assert_eq!(at(StartAt::Earliest), from(3));
        assert_eq!(at(StartAt::Latest), from(8));
    }
}
