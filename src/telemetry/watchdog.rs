//! Notices a partition that has work and makes no progress, and names the offset.
//!
//! Progress is what moves the commit offset: the oldest unfinished document ends, or a part of it is answered where it takes many calls.
//! That others behind it are answered is none: a document whose task is lost would hide behind them for ever.
//!
//! It is silent about what somebody else tells of: calls that are held, a budget that is used up, Kafka that cannot be read or written. So
//! its word means that nothing is known to be wrong, and that nothing happens all the same.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::limiting::is_about;
use super::status::{Head, Hold, ModelStatus, PartitionStatus, RunState, Stage, Status};
use crate::types::{Offset, TopicPartition};

/// A partition that has work and makes no progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stall {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// The oldest unfinished document; where the next fetch begins when none is open.
    pub offset: Offset,
    /// Where that document is; nothing when it was not read.
    pub stage: Option<Stage>,
    /// When something happened last.
    pub since: Timestamp,
}

/// What the watchdog tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bark {
    /// Nothing happened for so long.
    Stalled(Stall, Duration),
    /// Something did again.
    GoesOn(TopicPartition, Duration),
}

/// What changes when a partition makes progress.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trace {
    commit: Offset,
    /// The oldest unfinished document; without one the place that is read next.
    at: Offset,
    /// Answered calls of that document, where it takes many.
    parts: u64,
}

#[derive(Debug)]
struct Watched {
    trace: Trace,
    /// Since when it is as it is, and nobody else tells why.
    since: Instant,
    since_wall: Timestamp,
    is_stalled: bool,
}

/// Watches the partitions.
#[derive(Debug)]
pub struct Watchdog {
    patience: Duration,
    watched: HashMap<TopicPartition, Watched>,
}

impl Watchdog {
    /// Tells of what makes no progress for `patience`.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            watched: HashMap::new(),
        }
    }

    /// Looks at the partitions; `parts` tells how many calls of an unfinished document were answered. Answers what is to be told.
    pub fn look(
        &mut self,
        now: Instant,
        wall: Timestamp,
        status: &Status,
        parts: impl Fn(&TopicPartition, Offset) -> u64,
    ) -> Vec<Bark> {
        if !matches!(status.state, RunState::Running | RunState::Holding) {
            self.watched.clear();
            return Vec::new();
        }
        let mut barks = Vec::new();
        let mut before = std::mem::take(&mut self.watched);
        for partition in &status.partitions {
            let name = partition.name();
            let was = before.remove(&name);
            if !has_work(partition) {
                barks.extend(was.and_then(|was| was.goes_on(&name, now)));
                continue;
            }
            let at = partition.head.map(|head| head.offset);
            let trace = Trace {
                commit: partition.commit_offset,
                at: at.unwrap_or(partition.next_fetch_offset),
                parts: at.map_or(0, |offset| parts(&name, offset)),
            };
            let mut watched = match was {
                Some(was) if was.trace == trace => was,
                was => {
                    barks.extend(was.and_then(|was| was.goes_on(&name, now)));
                    Watched {
                        trace,
                        since: now,
                        since_wall: wall,
                        is_stalled: false,
                    }
                }
            };
            if !watched.is_stalled {
                if is_told_elsewhere(status, partition) {
                    watched.since = now;
                    watched.since_wall = wall;
                }
                let still_for = now.duration_since(watched.since);
                if still_for >= self.patience {
                    watched.is_stalled = true;
                    barks.push(Bark::Stalled(watched.stall(partition), still_for));
                }
            }
            self.watched.insert(name, watched);
        }
        barks
    }

    /// The partitions that make no progress, by name.
    #[must_use]
    pub fn stalled(&self, partitions: &[PartitionStatus]) -> Vec<Stall> {
        let stalled = partitions.iter().filter_map(|partition| {
            let watched = self.watched.get(&partition.name())?;
            watched.is_stalled.then(|| watched.stall(partition))
        });
        stalled.collect()
    }
}

impl Watched {
    fn stall(&self, partition: &PartitionStatus) -> Stall {
        Stall {
            topic: partition.topic.clone(),
            partition: partition.partition,
            offset: self.trace.at,
            stage: partition.head.map(|head| head.stage),
            since: self.since_wall,
        }
    }

    fn goes_on(&self, name: &TopicPartition, now: Instant) -> Option<Bark> {
        let stood_for = now.duration_since(self.since);
        self.is_stalled
            .then(|| Bark::GoesOn(name.clone(), stood_for))
    }
}

impl Stall {
    /// As one reads it behind the partition's name.
    #[must_use]
    pub fn told(&self) -> String {
        match self.stage {
            Some(stage) => format!("offset {} {}", self.offset, stage.told()),
            None => format!("offset {} is there to be read, and is not", self.offset),
        }
    }
}

const fn has_work(partition: &PartitionStatus) -> bool {
    partition.head.is_some() || partition.unread() > 0
}

/// Whether something else tells why nothing happens.
fn is_told_elsewhere(status: &Status, partition: &PartitionStatus) -> bool {
    let name = partition.name().to_string();
    // That read-ahead waits for the oldest document says nothing of why that one does not end.
    let is_kafkas = |hold: &Hold| is_about(hold, &name) && !hold.what.starts_with("read-ahead of ");
    if status.holds.iter().any(is_kafkas) {
        return true;
    }
    let model = &status.model;
    match partition.head.map(|Head { stage, .. }| stage) {
        Some(Stage::WithModel) => is_model_told(model),
        // Others have the slots, and one that hangs there is told of its own partition.
        Some(Stage::Queued) => {
            is_model_told(model) || model.endpoints.iter().any(|each| each.in_flight > 0)
        }
        Some(Stage::Appending) => false,
        // Others have the room.
        None => partition.waits_for_room,
    }
}

fn is_model_told(model: &ModelStatus) -> bool {
    model.held.is_some() || model.waiting_for_budget > 0
}

#[cfg(test)]
mod tests;
