//! Kafka's side: the two drivers behind one pair of traits, and what only the wire side can do.
//!
//! - [`Source`] hands out a stream per input partition, [`Sink`] a writer per input partition. They are small steps; which
//!   step follows which, and what an unknown outcome means, is written once, above the drivers, in `offsets`.
//! - `rskafka` is the default reader of the input: fetch loops, at least once, without TLS.
//! - `wire` is our own, on the `kafka-protocol` codecs: streams at `read_committed` too, idempotent and transactional gzip appends, membership
//!   in a group, administration, the mirror of the group's offset, and the reader of our own topics, and of input partitions that `rskafka`
//!   turns out not to be able to read.
//!
//! The input is read and the output written on separate connections: a long-poll fetch delays what shares its connection.

mod config;
mod driver;
mod error;
pub mod rskafka;
mod security;
pub mod topics;
pub mod wire;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::types::{Offset, Record, TopicPartition};

pub use config::{DriverSetting, KafkaConfig};
pub use driver::{Driver, DriverChoice, Needs, choose_driver};
pub use error::KafkaError;
pub use security::{EndpointIdentification, SaslMechanism, SecurityProtocol};

/// What a fetch brought.
#[derive(Debug, Default)]
pub struct Fetched {
    /// Records in offset order; offsets may have gaps.
    pub records: Vec<(Offset, Record)>,
    /// Where the next fetch begins: beyond the last record, and beyond any trailing marker or gap the driver could see.
    pub next_offset: Offset,
    /// The broker's high watermark: the end (exclusive) of what is replicated.
    pub high_watermark: Offset,
}

/// Opens streams of input records; one per process.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Opens the stream of a partition; the first fetch begins at `start` (inclusive).
    ///
    /// # Errors
    /// When the partition's leader cannot be reached in time.
    async fn open(
        &self,
        partition: &TopicPartition,
        start: Offset,
    ) -> Result<Box<dyn RecordStream>, KafkaError>;

    /// The first offset that still exists and the high watermark (exclusive).
    ///
    /// # Errors
    /// When the partition's leader cannot be reached in time.
    async fn bounds(&self, partition: &TopicPartition) -> Result<(Offset, Offset), KafkaError>;

    /// The topic's id now: another one after it was deleted and created again. `None` while it does not exist.
    ///
    /// # Errors
    /// When no broker answers in time.
    ///
    /// # Cancel safety
    /// Safe.
    async fn topic_id(&self, topic: &str) -> Result<Option<Uuid>, KafkaError>;
}

/// The records of one partition, in order.
#[async_trait]
pub trait RecordStream: Send {
    /// The next records: waits up to `wait` when there are none and then answers with an empty batch.
    ///
    /// # Errors
    /// [`KafkaError::OffsetOutOfRange`] when the position is outside the log, [`KafkaError::Unreadable`] when the driver cannot
    /// read what lies there; the position stays where it was, so the call may be repeated.
    ///
    /// # Cancel safety
    /// Safe: the position moves only when records are handed out.
    async fn next(&mut self, max_bytes: usize, wait: Duration) -> Result<Fetched, KafkaError>;
}

/// Records bound for one partition, in order.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Where they go.
    pub to: TopicPartition,
    /// What is written; never empty.
    pub records: Vec<Record>,
}

/// How a step that did not succeed has ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StepError {
    /// Nothing was written.
    #[error("the broker refused the step")]
    Refused(#[source] KafkaError),
    /// The broker may or may not have written it.
    #[error("the outcome of the step is unknown")]
    OutcomeUnknown(#[source] KafkaError),
    /// The broker has forgotten this writer, or what it had written last: the partition has to be taken over anew.
    #[error("the broker no longer knows the writer of this partition")]
    Expired(#[source] KafkaError),
    /// The broker has raised the writer's epoch: somebody else owns the partition now, or a transaction of ours was open for too long.
    #[error("another owner has taken the partition over")]
    Fenced,
}

impl StepError {
    /// What the broker or the connection said.
    #[must_use]
    pub fn kafka(&self) -> Option<&KafkaError> {
        match self {
            Self::Refused(error) | Self::OutcomeUnknown(error) | Self::Expired(error) => {
                Some(error)
            }
            Self::Fenced => None,
        }
    }
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Everything in it becomes visible.
    Commit,
    /// Nothing in it becomes visible.
    Abort,
}

/// Writes results; one per process.
#[async_trait]
pub trait Sink: Send + Sync + std::fmt::Debug {
    /// Becomes the writer for an input partition. A transactional driver fences the previous owner and aborts what it left open.
    ///
    /// # Errors
    /// When the coordinator cannot be reached, or somebody else took over meanwhile.
    async fn take_over(&self, input: &TopicPartition) -> Result<Box<dyn PartitionSink>, StepError>;
}

/// Most bytes of one appended batch, uncompressed: half of Kafka's default `max.message.bytes`, which counts compressed bytes.
pub const BATCH_BYTES_MAX: usize = 512 * 1024;

/// The steps that the owner of one input partition can take. A dropped future may still have written: never drop one.
#[async_trait]
pub trait PartitionSink: Send {
    /// Whether [`begin`](Self::begin) and [`end`](Self::end) do anything: what is appended between them is visible all or not at all.
    fn is_transactional(&self) -> bool;

    /// Begins a transaction.
    ///
    /// # Errors
    /// As [`StepError`] says.
    async fn begin(&mut self) -> Result<(), StepError>;

    /// Appends each batch, acknowledged by all in-sync replicas; one outcome per batch, in their order. Batches go out side by side; no two
    /// of one call go to the same partition.
    ///
    /// After [`StepError::OutcomeUnknown`] the next append to that partition has to be the same batch again, unless the transaction is
    /// aborted first: an idempotent driver sends it under the same sequence number, so that it is written once.
    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>>;

    /// Ends the transaction. Aborting when there is none is done already.
    ///
    /// # Errors
    /// As [`StepError`] says; an unknown outcome may be repeated with the same `end`. A refused abort leaves the transaction open.
    async fn end(&mut self, end: End) -> Result<(), StepError>;
}

/// What the group's coordinator has given to this member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Goes up each time the membership was lost, as after a session timeout: nothing that was held before is ours any more.
    pub session: u64,
    /// Our name in the group; empty while we are no member.
    pub member_id: String,
    /// The generation of the group that dealt this, −1 while we are no member.
    pub generation: i32,
    /// What is ours to work on. What is no longer in here and was not lost is still ours to finish, for as long as it is held.
    pub partitions: BTreeSet<TopicPartition>,
}

/// Membership in a consumer group, which decides who works on which partition.
///
/// The hand-over is cooperative (KIP-429): a partition that goes from one member to another is assigned to nobody until the first has given
/// it up, and all others are worked on meanwhile. To begin work on a partition: see it in [`assigned`](Self::assigned), name it in
/// [`set_held`](Self::set_held), and begin unless that refuses it.
#[async_trait]
pub trait Membership: Send + Sync + std::fmt::Debug {
    /// What is ours now, and each change of it.
    fn assigned(&self) -> watch::Receiver<Assigned>;

    /// Tells what this process works on, or is about to, partitions that it only finishes included. Partitions that the group wants for
    /// another member are handed over as soon as they are out of this set.
    ///
    /// Answers with what is refused: partitions that were not held before and are not ours any more. They do not count as held; work on
    /// them must not begin.
    #[must_use = "work on what is refused must not begin"]
    fn set_held(&self, partitions: BTreeSet<TopicPartition>) -> BTreeSet<TopicPartition>;

    /// Until when nobody else can have been given what is [`assigned`](Self::assigned), unless a heartbeat prolongs it; `None` while we are
    /// no member.
    fn valid_until(&self) -> Option<Instant>;

    /// Asks the coordinator now whether we are still a member, in the generation of the last [`Assigned`].
    ///
    /// It is `false` also for the moment in which the group has a new generation that has not dealt its partitions yet.
    ///
    /// # Errors
    /// When the coordinator does not answer in time.
    ///
    /// # Cancel safety
    /// Safe.
    async fn confirm(&self) -> Result<bool, KafkaError>;
}

/// Reads a log from start to end.
#[async_trait]
pub trait LogReader: Send + Sync + std::fmt::Debug {
    /// Where a scan begins and where it ends: the log start offset and the high watermark (exclusive), markers included.
    ///
    /// # Errors
    /// When the partition's leader cannot be reached in time.
    async fn log_bounds(&self, partition: &TopicPartition) -> Result<(Offset, Offset), KafkaError>;

    /// The topic's id; `None` while it does not exist.
    ///
    /// # Errors
    /// When no broker answers in time.
    ///
    /// # Cancel safety
    /// Safe.
    async fn topic_id(&self, topic: &str) -> Result<Option<Uuid>, KafkaError>;

    /// Reads from `from` (inclusive) what is committed, up to the last stable offset: a transaction that is open is waited for.
    /// `next_offset` of the answer is beyond everything read, records or markers.
    ///
    /// # Errors
    /// When the partition's leader cannot be reached in time or the log cannot be read.
    ///
    /// # Cancel safety
    /// Safe: there is no state.
    async fn read(
        &self,
        partition: &TopicPartition,
        from: Offset,
        wait: Duration,
    ) -> Result<Fetched, KafkaError>;
}

/// Reads the commit topic: commits at recovery, claims while running.
pub trait LogScanner: LogReader {
    /// Begins to read at `from` (inclusive) without waiting for open transactions; nothing is asked before the first [`LogScan::next`].
    fn scan(&self, partition: &TopicPartition, from: Offset) -> Box<dyn LogScan>;

    /// The epoch of the leader that told the last [`LogReader::log_bounds`], another one after each election; nobody is asked. `None` when it
    /// is not known.
    fn leader_epoch(&self, _partition: &TopicPartition) -> Option<i32> {
        None
    }
}

/// One reading of a log that several transactional writers share.
///
/// It hands out what is decided: records of aborted transactions never, those of an open transaction once its end is in the log. It does
/// not wait for a transaction that is open: what others have written behind it is handed out all the same. So records come in the order in
/// which they were decided, which for one writer is the order of their offsets.
#[async_trait]
pub trait LogScan: Send {
    /// The next records. `next_offset` of the answer is beyond everything read, records or markers, so a loop that goes on until it
    /// reaches the high watermark of [`LogReader::log_bounds`] always ends. Waits up to `wait` when there is nothing.
    ///
    /// # Errors
    /// When the partition's leader cannot be reached in time or the log cannot be read; the call may be repeated.
    ///
    /// # Cancel safety
    /// Safe: the position moves only when records are handed out.
    async fn next(&mut self, wait: Duration) -> Result<Fetched, KafkaError>;

    /// Where another scan has to begin to miss nothing: the first record of the oldest transaction that is still open, or the position.
    fn resume_at(&self) -> Offset;
}
