//! Settings of the way of a document.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::assignment::Assignment;
use super::emit::Order;
use crate::offsets::{Guarantee, StartAt};
use crate::records::document::InputFormat;

/// Section `[processing]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessingConfig {
    /// `processing.guarantee`, with Kafka Streams' names.
    pub guarantee: Guarantee,
    /// `commit.interval.ms`: the least time between two flushes of a partition; 0 flushes as soon as the last one is through.
    pub commit_interval_ms: u64,
}

/// One topic of documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputTopic {
    /// Topic name.
    pub name: String,
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
    /// `fetch.max.wait.ms`: how long the broker waits for records when there are none.
    #[serde(with = "crate::types::duration")]
    pub fetch_wait: Duration,
}

impl Default for InputConfig {
    fn default() -> Self {
        Self {
            topics: vec![InputTopic {
                name: "financial-documents".to_owned(),
            }],
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
}

impl Default for DeadLettersConfig {
    fn default() -> Self {
        Self {
            topic: "llm-dead-letters".to_owned(),
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
            drain_timeout: Duration::from_secs(45),
        }
    }
}
