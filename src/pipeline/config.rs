//! Settings of the way of a document.

use std::num::NonZeroUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::assignment::Assignment;
use super::emit::Order;
use super::topics::Weight;
use crate::llm::PromptConfig;
use crate::offsets::{COMMIT_BYTES_MAX, Guarantee, StartAt};
use crate::records::dead_letter::HeaderStyle;
use crate::records::document::InputFormat;

/// Section `[processing]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessingConfig {
    /// `processing.guarantee`, with Kafka Streams' names.
    pub guarantee: Guarantee,
    /// `commit.interval.ms`: the least time between two flushes of a partition while documents are on their way; 0 flushes as soon as the
    /// last one is through. Unless it is set, 10 at least once and 50 exactly once, where each flush is a transaction (Kafka Streams waits
    /// 100 there).
    pub commit_interval_ms: Option<u64>,
    /// Most bytes of a commit record: read-ahead waits before it could be passed. Lower it where the commit topic's `max.message.bytes` is
    /// lower than Kafka's default.
    pub commit_record_bytes_max: usize,
}

impl Default for ProcessingConfig {
    fn default() -> Self {
        Self {
            guarantee: Guarantee::default(),
            commit_interval_ms: None,
            commit_record_bytes_max: COMMIT_BYTES_MAX,
        }
    }
}

impl ProcessingConfig {
    /// The least time between two flushes of a partition, which follows from the guarantee unless it is set.
    #[must_use]
    pub fn commit_interval(&self) -> Duration {
        let by_guarantee = match self.guarantee {
            Guarantee::AtLeastOnce => 10,
            Guarantee::ExactlyOnce => 50,
        };
        Duration::from_millis(self.commit_interval_ms.unwrap_or(by_guarantee))
    }
}

/// One topic of documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputTopic {
    /// Topic name.
    pub name: String,
    /// Its share of the calls while other topics have work too, relative to their weights; from 1 to 1,000, default 1.
    #[serde(default)]
    pub weight: Weight,
    /// The keys of section `[prompt]` that are others for its documents. Default none.
    #[serde(default)]
    pub prompt: PromptConfig,
}

impl InputTopic {
    /// A topic of weight 1 with the general prompt.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            weight: Weight::default(),
            prompt: PromptConfig::default(),
        }
    }
}

/// `isolation.level`, with Kafka's names and default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationLevel {
    /// Everything that is replicated, also what a transaction aborted later.
    #[default]
    ReadUncommitted,
    /// Only what is committed.
    ReadCommitted,
}

/// What to do when unread input was taken away by the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDataLoss {
    /// Hold the partition until somebody decides.
    #[default]
    Hold,
    /// Go on at the first record that exists, with a warning.
    Resume,
}

/// Section `[input]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InputConfig {
    /// The topics to read. `INPUT_TOPIC` is its short form with one element.
    pub topics: Vec<InputTopic>,
    /// What the values are: `auto`, `json` or `text`.
    pub format: InputFormat,
    /// The JSON field that holds the text.
    pub content_field: String,
    /// Where to begin a partition that has no commit.
    pub start: StartAt,
    /// Which partitions this process works on.
    pub assignment: Assignment,
    /// With `assignment = static`: the partitions, such as `0-3,7`, of each input topic.
    pub static_partitions: String,
    /// With `assignment = static`, in place of a list: which of the instances this is, from 0, or `hostname` for the number at the end of
    /// the host's name.
    pub static_ordinal: String,
    /// With `static_ordinal`: how many instances there are.
    pub static_count: i32,
    /// `isolation.level`: whether records of aborted transactions are left out, and those of open ones waited for. Exactly once implies
    /// `read_committed`.
    pub isolation_level: IsolationLevel,
    /// What to do when unread input is gone.
    pub on_data_loss: OnDataLoss,
    /// `fetch.max.wait.ms`: how long the broker waits for records when there are none; up to 1.5 s where none have come for a while.
    #[serde(with = "crate::types::duration")]
    pub fetch_wait: Duration,
}

impl Default for InputConfig {
    fn default() -> Self {
        Self {
            topics: vec![InputTopic::named("financial-documents")],
            format: InputFormat::default(),
            content_field: "content".to_owned(),
            start: StartAt::default(),
            assignment: Assignment::default(),
            static_partitions: String::new(),
            static_ordinal: String::new(),
            static_count: 0,
            isolation_level: IsolationLevel::default(),
            on_data_loss: OnDataLoss::default(),
            fetch_wait: Duration::from_millis(500),
        }
    }
}

/// To which partition of the output topic a result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partitioner {
    /// By the hash of the key, as Kafka's Java client does; without a key as `source`.
    #[default]
    Key,
    /// The source partition modulo the output's partitions, which keeps the order of a whole partition.
    Source,
}

/// Section `[output]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputConfig {
    /// Topic of the results. Also `OUTPUT_TOPIC`.
    pub topic: String,
    /// How a result's partition is chosen.
    pub partitioner: Partitioner,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            topic: "llm-results".to_owned(),
            partitioner: Partitioner::default(),
        }
    }
}

/// Section `[dead_letters]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLettersConfig {
    /// Topic of the documents that were given up.
    pub topic: String,
    /// Whose reason headers they have beside our own: `connect`, `spring` or `share`.
    pub header_style: HeaderStyle,
}

impl Default for DeadLettersConfig {
    fn default() -> Self {
        Self {
            topic: "llm-dead-letters".to_owned(),
            header_style: HeaderStyle::default(),
        }
    }
}

/// Section `[audit]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// Whether a record is kept of each document: who has done what to it, with which outcome.
    pub enabled: bool,
    /// Topic of these records.
    pub topic: String,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            topic: "llm-audit".to_owned(),
        }
    }
}

/// Section `[pipeline]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineConfig {
    /// In which order results leave; calls run at full concurrency in each.
    pub order: Order,
    /// Most open documents, fetched and not yet committed, over all partitions. A fetch that is on its way may pass it once.
    pub read_ahead_records: usize,
    /// Most bytes of open documents, over all partitions, fetches on their way included.
    pub read_ahead_bytes: usize,
    /// How long a partition that has work may make no progress before that is told, where nothing is known to hold it. Unless it is set,
    /// `llm.deadline` and one `llm.timeout`: by then every document that can be asked about has its answer or is given up.
    #[serde(with = "crate::types::duration::option")]
    pub stall_after: Option<Duration>,
    /// Threads that do the work. One moves some 10,000 documents a second; more of them wait for each other.
    pub worker_threads: NonZeroUsize,
    /// How long a stop may take before it is cut off.
    #[serde(with = "crate::types::duration")]
    pub drain_timeout: Duration,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            order: Order::default(),
            read_ahead_records: 1_024,
            read_ahead_bytes: 16 * 1024 * 1024,
            stall_after: None,
            worker_threads: NonZeroUsize::MIN,
            drain_timeout: Duration::from_secs(45),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_interval_follows_from_the_guarantee_unless_it_is_set() {
        let mut processing = ProcessingConfig::default();
        assert_eq!(processing.commit_interval(), Duration::from_millis(10));
        processing.guarantee = Guarantee::ExactlyOnce;
        assert_eq!(processing.commit_interval(), Duration::from_millis(50));
        processing.commit_interval_ms = Some(0);
        assert_eq!(processing.commit_interval(), Duration::ZERO);
    }
}
