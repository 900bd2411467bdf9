//! Where a record lies in Kafka.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition index, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Names a partition.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// An offset in a partition, from 0. As a commit it is the next offset to read, as in Kafka.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Offset(i64);

impl Offset {
    /// The first offset that a partition can have.
    pub const ZERO: Self = Self(0);

    /// Wraps an offset as Kafka gives it.
    #[must_use]
    pub const fn new(value: i64) -> Self {
        Self(value)
    }

    /// An offset as people write it; `None` for what is no number, or below 0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let offset = text.parse().ok().filter(|offset| *offset >= 0)?;
        Some(Self(offset))
    }

    /// The offset as Kafka takes it.
    #[must_use]
    pub const fn value(self) -> i64 {
        self.0
    }

    /// The offset that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// How many offsets lie from `self` (inclusive) to `end` (exclusive); 0 when `end` is not above `self`.
    #[must_use]
    pub const fn distance_to(self, end: Self) -> u64 {
        if end.0 > self.0 {
            end.0.abs_diff(self.0)
        } else {
            0
        }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of one record: the key by which a repeated result is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourcePosition {
    /// Topic and partition of the record.
    pub topic_partition: TopicPartition,
    /// Its offset.
    pub offset: Offset,
}

impl fmt::Display for SourcePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.topic_partition, self.offset)
    }
}
