//! What of the input is unfinished, by the commits of the group. Only read: nothing is claimed.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::{DryRunError, From};
use crate::cli::contact;
use crate::config::Settings;
use crate::kafka::LogReader as _;
use crate::kafka::wire::{Cluster, TopicDescription};
use crate::offsets::{CommitPosition, CommitStore, Resume, recover};
use crate::types::{Offset, TopicPartition};

/// Partitions that are asked for side by side.
const LOOKS_MAX: usize = 8;

/// Where one partition stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Standing {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) log_start_offset: Offset,
    /// Where the group would go on.
    pub(super) commit_offset: Offset,
    pub(super) high_watermark: Offset,
    /// Records from the one to the other, without those that are finished. Transaction markers and gaps count.
    pub(super) unfinished: u64,
    /// What the outside took away before it was read.
    pub(super) data_loss: Option<String>,
}

/// Where all partitions stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backlog(pub(super) Vec<Standing>);

/// What to read of a partition.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    pub(super) partition: TopicPartition,
    pub(super) next: Offset,
    pub(super) end: Offset,
}

impl Backlog {
    /// Asks for the bounds of each partition, and for its commit.
    pub(super) async fn load(
        cluster: &Cluster,
        settings: &Settings,
        inputs: &[TopicDescription],
    ) -> Result<Self, DryRunError> {
        let commits = settings.kafka.commit_topic();
        // Where there is none, nothing was ever committed.
        let store = contact::topic(cluster, &commits).await?.map(|topic| {
            let reader = Arc::new(cluster.clone());
            CommitStore::new(reader, commits.as_str(), topic.partitions)
        });
        let partitions = inputs
            .iter()
            .flat_map(|input| (0..input.partitions).map(move |partition| (input, partition)));
        let looks = partitions.map(async |(input, partition)| {
            let partition = TopicPartition::new(input.name.as_str(), partition);
            let (log_start, high_watermark) = cluster.log_bounds(&partition).await?;
            let newest = match &store {
                Some(store) => store.load(&partition).await?.newest,
                None => None,
            };
            let newest = newest.as_ref().map(|(_, record)| record);
            let start = settings.input.start;
            let resume = recover(newest, input.id, log_start, high_watermark, start);
            let (position, data_loss) = match resume {
                Resume::From(position) => (position, None),
                Resume::DataLoss(loss) => (loss.resume_from(), Some(loss.to_string())),
            };
            Ok::<_, DryRunError>(Standing {
                topic: input.name.clone(),
                partition: partition.partition,
                log_start_offset: log_start,
                commit_offset: position.next_offset,
                high_watermark,
                unfinished: unfinished(&position, high_watermark),
                data_loss,
            })
        });
        let standings = stream::iter(looks).buffered(LOOKS_MAX).try_collect();
        Ok(Self(standings.await?))
    }

    /// Unfinished records of all partitions.
    pub(super) fn unfinished(&self) -> u64 {
        let unfinished = self.0.iter().map(|standing| standing.unfinished);
        unfinished.fold(0, u64::saturating_add)
    }

    /// Where to read from.
    pub(super) fn cursors(&self, from: From) -> Vec<Cursor> {
        let cursor = |standing: &Standing| {
            let Standing {
                topic,
                partition,
                log_start_offset: start,
                commit_offset,
                high_watermark: end,
                ..
            } = standing;
            let next = match from {
                From::Earliest => *start,
                From::Commit => *commit_offset,
                From::Offset(offset) => offset,
            };
            Cursor {
                partition: TopicPartition::new(topic.as_str(), *partition),
                next: next.max(*start).min(*end),
                end: *end,
            }
        };
        self.0.iter().map(cursor).collect()
    }

    /// How many records there are to read at most.
    pub(super) fn readable(&self, from: From) -> u64 {
        let cursors = self.cursors(from).into_iter();
        let records = cursors.map(|cursor| cursor.next.distance_to(cursor.end));
        records.fold(0, u64::saturating_add)
    }
}

/// What lies from a position to the end and is not finished.
fn unfinished(position: &CommitPosition, end: Offset) -> u64 {
    let done = position.done.iter();
    let done: u64 = done
        .map(|(first, done_end)| first.distance_to((*done_end).min(end)))
        .sum();
    let open = position.next_offset.distance_to(end);
    open.saturating_sub(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_finished_beyond_the_commit_is_not_unfinished() {
        let at = |next, done: &[(i64, i64)]| CommitPosition {
            next_offset: Offset::new(next),
            done: done
                .iter()
                .map(|(first, end)| (Offset::new(*first), Offset::new(*end)))
                .collect(),
        };
        let end = Offset::new(20);
        assert_eq!(unfinished(&at(0, &[]), end), 20);
        assert_eq!(unfinished(&at(4, &[(6, 8), (10, 11)]), end), 13);
        assert_eq!(unfinished(&at(20, &[]), end), 0);
        assert_eq!(unfinished(&at(18, &[(19, 25)]), end), 1);
    }
}
