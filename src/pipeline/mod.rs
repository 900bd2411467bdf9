//! The way of a document: fetch, admit, complete, order, append, commit. Begin with `worker.rs`.

mod asking;
mod assignment;
mod audit;
mod claims;
mod config;
mod emit;
mod intake;
mod metrics;
mod outcome;
mod ownership;
mod pace;
mod partition;
mod read_ahead;
mod sample;
mod supervisor;
mod take_over;
mod topics;
mod traced;
mod worker;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;

use self::outcome::{Count, Ending};
use crate::drift::Monitor;
use crate::kafka::{Sink, Source};
use crate::llm::Complete;
use crate::offsets::{CommitStore, Guarantee};
use crate::spans::Spans;
use crate::telemetry::StatusBoard;
use crate::telemetry::endings::Cost;
use crate::telemetry::holds::Holds;
use crate::types::{Offset, TopicPartition};

pub use asking::{Asked, Asking};
pub use assignment::{Assignment, StaticShare};
pub use audit::Auditing;
pub use config::{
    AuditConfig, DeadLettersConfig, InputConfig, InputTopic, IsolationLevel, OnDataLoss,
    OutputConfig, Partitioner, PipelineConfig, ProcessingConfig,
};
pub use emit::{Order, OrderBuffer};
pub use metrics::{OpenGauges, PipelineMetrics};
pub use outcome::{Destinations, request};
pub use ownership::Ownership;
pub use read_ahead::ReadAhead;
pub use supervisor::{PipelineEnd, run};
pub use topics::{Topics, Weight, WeightError};
pub use traced::document_span;

/// What all partitions share.
#[derive(Debug)]
pub struct Services {
    /// Reads the input.
    pub source: Arc<dyn Source>,
    /// Writes results, dead letters and commits.
    pub sink: Arc<dyn Sink>,
    /// Reads the commits.
    pub store: CommitStore,
    /// What is promised; the sink keeps it.
    pub guarantee: Guarantee,
    /// Asks the model.
    pub complete: Arc<dyn Complete>,
    /// What documents are asked with, and whose turn their calls take.
    pub asking: Asking,
    /// SHA-256 of the schema that answers must keep to, in hex; `None` without one.
    pub schema_hash: Option<String>,
    /// How the input is read.
    pub input: InputConfig,
    /// Where outcomes go.
    pub destinations: Destinations,
    /// The audit trail, where one is kept.
    pub audit: Option<Auditing>,
    /// In which order they go.
    pub order: Order,
    /// The least time between two flushes of a partition while documents are on their way.
    pub commit_interval: Duration,
    /// Most bytes of a commit record.
    pub commit_bytes_max: usize,
    /// The bound on open documents.
    pub read_ahead: Arc<ReadAhead>,
    /// How far each partition has come, for the mirror.
    pub commit_offsets: CommitOffsets,
    /// What is counted.
    pub metrics: PipelineMetrics,
    /// What is shown.
    pub board: StatusBoard,
    /// Looks at answers for drift; `None` where that is off.
    pub drift: Option<Monitor>,
    /// What is waited for.
    pub holds: Holds,
    /// Makes the spans of documents.
    pub spans: Spans,
    /// Name of this run of the process, in commit records.
    pub instance: String,
}

/// How long Kafka may take for a step before that is told: an operator hears of a dead broker within five seconds, long before
/// `kafka.request_timeout` ends the step.
const PATIENCE: Duration = Duration::from_secs(3);

impl Services {
    /// Waits for a step at Kafka, `extra` longer than [`PATIENCE`] when it waits on purpose; answers with whether it was told that it is
    /// slow.
    async fn patiently<T>(
        &self,
        what: &str,
        step: &str,
        extra: Duration,
        call: impl Future<Output = T>,
    ) -> (T, bool) {
        let reason = format!(
            "{step}: no answer from Kafka (kafka.brokers) for {PATIENCE:?}; asked again after kafka.request_timeout"
        );
        let patience = PATIENCE + extra;
        self.holds.patiently(what, &reason, patience, call).await
    }

    /// Counts what has become durable of a topic.
    fn count(&self, topic: &str, count: Count) {
        self.board
            .count_retries(count.attempts.saturating_sub(1).into());
        let is_result = matches!(count.ending, Ending::Result(_));
        self.board.count_of_topic(topic, is_result);
        let mut cost = Cost {
            attempts: count.attempts,
            ..Cost::default()
        };
        match count.ending {
            Ending::Result(result) => {
                cost.truncated = result.truncated;
                cost.prompt_tokens = result.prompt_tokens;
                cost.completion_tokens = result.completion_tokens;
                self.board.count_result(result);
            }
            Ending::DeadLetter(reason) => self.board.count_dead_letter(reason),
        }
        if let (Some(drift), Some(sample)) = (&self.drift, &count.sample) {
            drift.note(topic, sample);
        }
        self.board.endings().note(count.shown, cost);
    }

    /// Whether the status page shows the beginnings of answers.
    fn shows_payloads(&self) -> bool {
        self.board.endings().keeps_payloads()
    }
}

/// The name under which what keeps a partition from being read is told. Reading and writing have a name each: one that works again must
/// not end what is told of the other.
fn reading(partition: &TopicPartition) -> String {
    format!("partition {partition}")
}

/// The name under which what keeps a partition's results from being written is told.
fn writing(partition: &TopicPartition) -> String {
    format!("results of {partition}")
}

/// The name under which it is told that the commit record keeps a partition from reading ahead.
fn reading_ahead(partition: &TopicPartition) -> String {
    format!("read-ahead of {partition}")
}

/// How far each partition has come. Workers write it, the mirror reads it; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct CommitOffsets(Arc<Mutex<BTreeMap<TopicPartition, Offset>>>);

impl CommitOffsets {
    fn set(&self, partition: &TopicPartition, offset: Offset) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(partition.clone(), offset);
    }

    /// Another process works on the partition from now on.
    fn remove(&self, partition: &TopicPartition) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(partition);
    }

    /// The commit offset of every partition that has one.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(TopicPartition, Offset)> {
        let offsets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        offsets
            .iter()
            .map(|(partition, offset)| (partition.clone(), *offset))
            .collect()
    }
}

/// Waits for the future in the slot and empties it; for ever when there is none. Cancel safe: the future stays in the slot.
async fn ready<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(future) = slot else {
        return pending().await;
    };
    let value = future.await;
    *slot = None;
    value
}
