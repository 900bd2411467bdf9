//! `produce`: sends documents to the input topic, as another program would.
//!
//! Each document is acknowledged by all in-sync replicas before it counts as sent. What fails in passing is sent again within a
//! deadline; as an append whose outcome is unknown may have landed, a document can arrive twice, as with any producer that is not
//! idempotent.

mod documents;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::cli::contact;
use crate::cli::output::Terminal;
use crate::cli::progress::{Progress, Task};
use crate::cli::samples;
use crate::clock;
use crate::kafka::wire::{Cluster, Compression, NewTopic, WireSink};
use crate::kafka::{Batch, KafkaConfig, KafkaError, PartitionSink, Sink, StepError};
use crate::records::partitioner::partition_for_key;
use crate::retry::Backoff;
use crate::types::{Record, TopicPartition};

pub use documents::{FileError, InputDocument, read_file};

/// Documents that are sent side by side, when no rate bounds them.
const CHUNK_DOCUMENTS_MAX: usize = 100;

/// Bytes that are sent side by side; a larger document is sent alone. Half of the brokers' default `message.max.bytes`.
const CHUNK_BYTES_MAX: usize = 512 * 1024;

/// How long a chunk is sent again before the command gives up.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// Chunks per second with a rate: a higher rate makes larger chunks.
const TICKS_PER_SECOND: f64 = 20.0;

/// Arguments of `produce`.
#[derive(Debug, Clone, Default, Args)]
pub struct ProduceArgs {
    /// Send this file: JSON lines are a document each, anything else is one document. Default: six sample documents.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How many to send: fewer than there are, or more, by repeating them under new names.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// At most so many per second.
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    pub rate: Option<f64>,
    /// How batches are packed, Kafka's `compression.type`.
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    pub compression: CompressionArg,
}

/// `--compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CompressionArg {
    /// Plain, as Kafka's own producer where it is told nothing
    #[default]
    None,
    /// Gzip
    Gzip,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("write a number of documents per second, from 0.001 to 1000000".to_owned()),
    }
}

/// Where documents go.
#[derive(Debug, Clone, Copy)]
pub struct ProduceTarget<'a> {
    /// How to reach Kafka, and whether topics may be created.
    pub kafka: &'a KafkaConfig,
    /// The input topic (`INPUT_TOPIC`).
    pub topic: &'a str,
    /// Partitions of the topic when it is created here.
    pub partitions_if_created: i32,
}

/// Why documents cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Kafka, or the way to it, before anything was sent.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The topic is not there and must not be created.
    #[error(
        "topic `{topic}` (INPUT_TOPIC) does not exist, and kafka.create_topics = false: create it, or allow it to be created"
    )]
    NoTopic {
        /// The topic.
        topic: String,
    },
    /// The samples, which a test rules out.
    #[error("the sample documents cannot be written")]
    Samples(#[source] serde_json::Error),
    /// Nothing to send.
    #[error("there is no document to send")]
    Nothing,
    /// Some documents were not acknowledged.
    #[error("{sent} documents were sent; the next was not acknowledged")]
    NotAcknowledged {
        /// Documents that were acknowledged.
        sent: u64,
        /// What the last try came to.
        source: StepError,
    },
    /// Standard output.
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProduceReport {
    /// Documents that Kafka acknowledged.
    pub sent: u64,
    /// Whether the topic was created.
    pub created_topic: bool,
    /// How long the sending took.
    pub elapsed: Duration,
}

/// The six sample documents.
///
/// # Errors
/// [`ProduceError::Samples`] when they cannot be written as JSON, which a test rules out.
pub fn sample_documents() -> Result<Vec<InputDocument>, ProduceError> {
    let samples = samples::documents().map_err(ProduceError::Samples)?;
    let documents = samples.into_iter().map(|sample| {
        let value = sample.value().map_err(ProduceError::Samples)?;
        Ok(InputDocument {
            id: sample.id,
            value: value.into(),
        })
    });
    documents.collect()
}

/// Sends the documents of `--file`, or the six samples.
///
/// # Errors
/// When the file cannot be read, and as [`send_documents`].
///
/// # Cancel safety
/// As [`send_documents`].
pub async fn run(
    args: &ProduceArgs,
    target: ProduceTarget<'_>,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<ProduceReport, ProduceError> {
    let documents = match &args.file {
        Some(path) => read_file(path)?,
        None => sample_documents()?,
    };
    send_documents(args, &documents, target, terminal, out, shutdown).await
}

/// Sends documents; of `args` the count and the rate hold.
///
/// # Errors
/// When Kafka does not answer in time, the topic is missing and must not be created, there is nothing to send, or documents are not
/// acknowledged within the deadline.
///
/// # Cancel safety
/// Not to be dropped: documents on their way may or may not arrive. Cancel `shutdown`: it ends after the documents on their way.
pub async fn send_documents(
    args: &ProduceArgs,
    documents: &[InputDocument],
    target: ProduceTarget<'_>,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<ProduceReport, ProduceError> {
    let total = documents::planned(documents, args.count).ok_or(ProduceError::Nothing)?;
    let (partitions, created_topic) = open_topic(target).await?;
    let sink = sink(target.kafka, args.compression);
    let started = Instant::now();
    let place = format!("to {}", target.topic);
    let task = Task {
        done: "sent",
        unit: "documents",
        place: &place,
        total,
    };
    let mut progress = Progress::new(terminal, out, task);
    let mut plan = Plan {
        documents,
        topic: target.topic,
        partitions,
        next: 0,
        total,
    };
    let outcome = send(&sink, &mut plan, args.rate, &mut progress, shutdown).await;
    progress.finish().map_err(ProduceError::Output)?;
    outcome?;
    Ok(ProduceReport {
        sent: plan.next,
        created_topic,
        elapsed: started.elapsed(),
    })
}

fn sink(kafka: &KafkaConfig, compression: CompressionArg) -> WireSink {
    WireSink::idempotent(Cluster::new(kafka)).with_compression(match compression {
        CompressionArg::None => Compression::None,
        CompressionArg::Gzip => Compression::Gzip,
    })
}

async fn open_topic(target: ProduceTarget<'_>) -> Result<(i32, bool), ProduceError> {
    let cluster = contact::impatient(target.kafka);
    if let Some(topic) = contact::topic(&cluster, target.topic).await? {
        return Ok((topic.partitions, false));
    }
    if !target.kafka.create_topics {
        return Err(ProduceError::NoTopic {
            topic: target.topic.to_owned(),
        });
    }
    let new = NewTopic {
        name: target.topic.to_owned(),
        partitions: target.partitions_if_created,
        replication_factor: target.kafka.replication_factor,
        configs: BTreeMap::new(),
    };
    cluster.create_topic(&new).await?;
    // Somebody else may have been first, with another number of partitions.
    match contact::topic(&cluster, target.topic).await? {
        Some(topic) => Ok((topic.partitions, true)),
        None => Err(ProduceError::NoTopic {
            topic: target.topic.to_owned(),
        }),
    }
}

/// What is to be sent, and how far the sending has come.
struct Plan<'a> {
    documents: &'a [InputDocument],
    topic: &'a str,
    partitions: i32,
    /// Documents that were acknowledged.
    next: u64,
    total: u64,
}

impl Plan<'_> {
    /// The next documents, by partition, and how many they are.
    fn chunk(&self, documents_max: usize) -> (Vec<Batch>, u64) {
        let mut records: BTreeMap<i32, Vec<Record>> = BTreeMap::new();
        let (mut count, mut bytes) = (0, 0);
        let timestamp_ms = clock::now().as_millisecond();
        for index in (self.next..self.total).take(documents_max) {
            let Some(document) = documents::repeated(self.documents, index) else {
                break;
            };
            let record = Record {
                key: Some(document.id.into_bytes().into()),
                value: Some(document.value),
                headers: Vec::new(),
                timestamp_ms,
            };
            bytes += record.size();
            if count > 0 && bytes > CHUNK_BYTES_MAX {
                break;
            }
            let key = record.key.as_deref().unwrap_or_default();
            let partition = partition_for_key(key, self.partitions);
            records.entry(partition).or_default().push(record);
            count += 1;
        }
        let batches = records.into_iter().map(|(partition, records)| Batch {
            to: TopicPartition::new(self.topic, partition),
            records,
        });
        (batches.collect(), count)
    }
}

async fn send(
    sink: &dyn Sink,
    plan: &mut Plan<'_>,
    rate: Option<f64>,
    progress: &mut Progress<'_>,
    shutdown: &CancellationToken,
) -> Result<(), ProduceError> {
    let not_acknowledged = |sent: u64| move |source| ProduceError::NotAcknowledged { sent, source };
    // The partition counts for a sink that fences writers; a producer owns none.
    let input = TopicPartition::new(plan.topic, 0);
    let mut writer = sink
        .take_over(&input)
        .await
        .map_err(not_acknowledged(plan.next))?;
    let (documents_max, mut ticks) = pace(rate);
    while plan.next < plan.total {
        if let Some(ticks) = &mut ticks {
            if shutdown.run_until_cancelled(ticks.tick()).await.is_none() {
                break;
            }
        } else if shutdown.is_cancelled() {
            break;
        }
        let (batches, count) = plan.chunk(documents_max);
        append(writer.as_mut(), batches)
            .await
            .map_err(not_acknowledged(plan.next))?;
        plan.next += count;
        progress.set(plan.next).map_err(ProduceError::Output)?;
    }
    Ok(())
}

/// Documents per chunk, and the clock between chunks.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "rates are from 0.001 to 1000000, chunks from 1 to 100"
)]
fn pace(rate: Option<f64>) -> (usize, Option<tokio::time::Interval>) {
    let Some(rate) = rate else {
        return (CHUNK_DOCUMENTS_MAX, None);
    };
    let documents = (rate / TICKS_PER_SECOND).clamp(1.0, CHUNK_DOCUMENTS_MAX as f64) as usize;
    let mut ticks = interval(Duration::from_secs_f64(documents as f64 / rate));
    // What was late is not caught up with a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    (documents, Some(ticks))
}

/// Appends, and appends again what failed in passing, until the deadline.
async fn append(writer: &mut dyn PartitionSink, mut batches: Vec<Batch>) -> Result<(), StepError> {
    let deadline = Instant::now() + SEND_DEADLINE;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    while !batches.is_empty() {
        let outcomes = writer.append(&batches).await;
        let mut failed = Vec::new();
        let mut last = None;
        for (batch, outcome) in batches.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {}
                Err(error) if may_pass(&error) => {
                    failed.push(batch);
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        batches = failed;
        if let Some(error) = last {
            let delay = backoff.next_delay();
            if Instant::now() + delay >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, "sent again");
            tokio::time::sleep(delay).await;
        }
    }
    Ok(())
}

fn may_pass(error: &StepError) -> bool {
    error.kafka().is_some_and(KafkaError::is_transient)
}

#[cfg(test)]
mod tests;
