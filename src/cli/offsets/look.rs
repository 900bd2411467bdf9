//! What Kafka says about the input partitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use uuid::Uuid;

use super::OffsetsError;
use crate::config::Settings;
use crate::kafka::LogReader as _;
use crate::kafka::wire::Cluster;
use crate::offsets::{CommitRecord, CommitStore, Resume, StartAt, is_same_topic, recover};
use crate::types::{Offset, TopicPartition, error_chain};

/// Partitions that are looked at side by side.
const LOOKS_MAX: usize = 64;

/// One input partition.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Seen {
    pub(in crate::cli) partition: TopicPartition,
    /// Id of its topic now.
    pub(in crate::cli) topic_id: Uuid,
    /// The first offset that exists.
    pub(in crate::cli) log_start: Offset,
    /// The end of the log, exclusive.
    pub(in crate::cli) high_watermark: Offset,
    /// The newest commit.
    pub(in crate::cli) commit: Option<CommitRecord>,
    /// What lag tools see.
    pub(in crate::cli) group_offset: Option<Offset>,
}

impl Seen {
    /// Where it begins without a commit.
    pub(in crate::cli) const fn start(&self, start: StartAt) -> Offset {
        match start {
            StartAt::Earliest => self.log_start,
            StartAt::Latest => self.high_watermark,
        }
    }

    /// Records that are not finished, counted by offsets: gaps and transaction markers count too.
    pub(in crate::cli) fn unfinished(&self, start: StartAt) -> u64 {
        match (&self.commit, self.is_of_this_topic()) {
            (None, _) => self.start(start).distance_to(self.high_watermark),
            (Some(_), false) => self.log_start.distance_to(self.high_watermark),
            (Some(commit), true) => {
                let from = commit.next_offset.max(self.log_start);
                open_between(commit, from, self.high_watermark)
            }
        }
    }

    /// Whether the commit is about the topic that is there now, and not about one of that name before it.
    pub(in crate::cli) fn is_of_this_topic(&self) -> bool {
        let commit = self.commit.as_ref();
        commit.is_some_and(|commit| is_same_topic(commit.topic_id, self.topic_id))
    }

    /// Why nothing is read on from the commit, where that is so.
    pub(in crate::cli) fn problem(&self, start: StartAt) -> Option<String> {
        let (log_start, end) = (self.log_start, self.high_watermark);
        match recover(self.commit.as_ref(), self.topic_id, log_start, end, start) {
            Resume::From(_) => None,
            Resume::DataLoss(loss) => Some(loss.to_string()),
        }
    }
}

/// Offsets from `from` (inclusive) to `end` (exclusive) that the commit does not say are finished; `from` is not below its `next_offset`.
pub(in crate::cli) fn open_between(commit: &CommitRecord, from: Offset, end: Offset) -> u64 {
    let finished = commit.done.iter();
    let finished = finished.map(|(first, last)| (*first).max(from).distance_to((*last).min(end)));
    from.distance_to(end).saturating_sub(finished.sum())
}

/// What was found.
#[derive(Debug)]
pub(in crate::cli) struct Found {
    pub(in crate::cli) partitions: Vec<Seen>,
    /// Why the group's offsets are not known, where they are not.
    pub(in crate::cli) group_problem: Option<String>,
}

/// Looks at the chosen partitions, or at all of the input.
pub(in crate::cli) async fn look(
    cluster: &Cluster,
    settings: &Settings,
    chosen: &[TopicPartition],
) -> Result<Found, OffsetsError> {
    let commits = settings.kafka.commit_topic();
    let topics = settings.input.topics.iter();
    let inputs: Vec<&str> = topics.map(|topic| topic.name.as_str()).collect();
    let mut names = inputs.clone();
    names.push(&commits);
    let mut described = cluster.describe_topics(&names).await?;
    let store = described.remove(&commits).flatten().map(|topic| {
        CommitStore::new(
            Arc::new(cluster.clone()),
            commits.as_str(),
            topic.partitions,
        )
    });
    let mut partitions = Vec::new();
    for name in inputs {
        let topic = described.remove(name).flatten();
        let topic = topic.ok_or_else(|| OffsetsError::NoTopic(name.to_owned()))?;
        let name: Arc<str> = name.into();
        for partition in 0..topic.partitions {
            let topic_name = Arc::clone(&name);
            partitions.push((
                TopicPartition {
                    topic: topic_name,
                    partition,
                },
                topic.id,
            ));
        }
    }
    if let Some(unknown) = chosen
        .iter()
        .find(|chosen| !partitions.iter().any(|(known, _)| known == *chosen))
    {
        return Err(OffsetsError::NoPartition(unknown.clone()));
    }
    partitions.retain(|(known, _)| chosen.is_empty() || chosen.contains(known));
    let mirrored = cluster.fetch_group_offsets(&settings.kafka.group_id).await;
    let (mirrored, group_problem) = match mirrored {
        Ok(mirrored) => (mirrored, None),
        Err(error) => (BTreeMap::new(), Some(error_chain(&error))),
    };
    let looks = partitions.into_iter().map(|(partition, topic_id)| {
        let (store, group_offset) = (store.clone(), mirrored.get(&partition).copied());
        look_at(cluster, store, partition, topic_id, group_offset)
    });
    let partitions = stream::iter(looks)
        .buffered(LOOKS_MAX)
        .try_collect()
        .await?;
    Ok(Found {
        partitions,
        group_problem,
    })
}

async fn look_at(
    cluster: &Cluster,
    store: Option<CommitStore>,
    partition: TopicPartition,
    topic_id: Uuid,
    group_offset: Option<Offset>,
) -> Result<Seen, OffsetsError> {
    // The commit first: an end that was asked for before could lie below it.
    let commit = match store {
        Some(store) => store
            .load(&partition)
            .await?
            .newest
            .map(|(_, commit)| commit),
        None => None,
    };
    let (log_start, high_watermark) = cluster.log_bounds(&partition).await?;
    Ok(Seen {
        partition,
        topic_id,
        log_start,
        high_watermark,
        commit,
        group_offset,
    })
}
