//! `dead-letters replay`: documents go to their input topic again.
//!
//! # Guarantees
//! 1. A dead letter is replayed once, whatever the filters of the run: each has a mark, which is written with the document or, at least once,
//!    after it was acknowledged. Under `exactly_once` the two are one transaction, and the broker refuses what a former run still writes.
//!    At least once, a run that is killed between the two replays its last [`CHUNK_RECORDS_MAX`] at most again, and so do two runs at a time.
//! 2. What was given up while a replay runs is left for the next: each partition is read to the end that it had.
//! 3. A document that was replayed `--max-replays` times stays where it is.
//!
//! It writes with our own driver, whatever `kafka.driver` says: headers of one name twice, or without a value, are lost on the other one, and
//! an append whose answer is lost may double.

mod original;
mod progress;
mod tally;
mod writer;

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use tokio_util::sync::CancellationToken;

use self::original::original;
use self::progress::Progress;
use self::tally::{Left, Tally};
use self::writer::Writer;
use super::cursor::Cursor;
use super::filter::FilterArgs;
use super::marks::{Marks, MarksTopic, span_of};
use super::{Completion, DeadLetterSettings, DeadLettersError, Topic};
use crate::cli::contact;
use crate::cli::output::Terminal;
use crate::clock;
use crate::kafka::BATCH_BYTES_MAX;
use crate::kafka::wire::Cluster;
use crate::records::dead_letter::{DeadLetter, POINTER, replay_count, replayed};
use crate::records::headers;
use crate::records::partitioner::partition_for_key;
use crate::types::{DeadLetterReason, Offset, Record, TopicPartition};

/// Most documents that are sent before they are marked.
const CHUNK_RECORDS_MAX: usize = 500;

/// Topics whose number of partitions is kept: a dead letter can name any.
const TOPICS_KEPT_MAX: usize = 1_000;

/// How often a document is replayed, unless it is said.
const MAX_REPLAYS_DEFAULT: u32 = 3;

/// Arguments of `dead-letters replay`.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// Which are replayed.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Send them to this topic instead of the one that they came from.
    #[arg(long, value_name = "TOPIC")]
    pub to: Option<String>,
    /// Write nothing: tell what would be replayed, by reason.
    #[arg(long)]
    pub dry_run: bool,
    /// Leave documents that were replayed so often already.
    #[arg(long, value_name = "N", default_value_t = MAX_REPLAYS_DEFAULT)]
    pub max_replays: u32,
    /// Stop after so many.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// The report as one JSON object.
    #[arg(long)]
    pub json: bool,
}

impl Default for ReplayArgs {
    fn default() -> Self {
        Self {
            filter: FilterArgs::default(),
            to: None,
            dry_run: false,
            max_replays: MAX_REPLAYS_DEFAULT,
            count: None,
            json: false,
        }
    }
}

pub(super) async fn replay(
    args: &ReplayArgs,
    settings: DeadLetterSettings<'_>,
    topic: &Topic,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<Completion, DeadLettersError> {
    let partitions = topic.partitions(&args.filter.partition)?;
    let mut targets = Targets::new(topic, args.to.clone());
    if let Some(to) = &args.to {
        targets.check(to).await?;
    }
    let writer = if args.dry_run {
        None
    } else {
        let marks = MarksTopic::ensure(&topic.cluster, settings.kafka, topic.name()).await?;
        // Before the marks are read: what another run left open is ended, and what it still writes is refused.
        let writer = Writer::take_over(settings, topic, marks, &partitions).await;
        Some(writer.map_err(|source| not_acknowledged(0, source))?)
    };
    let marks = MarksTopic::find(&topic.cluster, topic.name()).await?;
    let marks = match marks {
        Some(marks) => marks.load(&topic.cluster, topic.description.id).await?,
        None => Marks::none(topic.description.id),
    };
    let mut cursors = Vec::with_capacity(partitions.len());
    for partition in partitions {
        cursors.push(Cursor::open(&topic.cluster, partition).await?);
    }
    let total = cursors.iter().map(Cursor::length).sum();
    let progress = Progress::new(terminal, total, args);
    let mut run = Run {
        args,
        topic,
        targets,
        writer,
        marks,
        tally: Tally::default(),
        chunk: Chunk::default(),
        passed: 0,
        progress,
    };
    let mut outcome = Ok(true);
    for cursor in cursors {
        outcome = run.partition(cursor, out, shutdown).await;
        if !matches!(outcome, Ok(true)) {
            break;
        }
    }
    run.progress.finish();
    // Of what was done before something went wrong there is a report too.
    let tally = &run.tally;
    let told = if args.json {
        writeln!(out, "{}", tally.as_json(args))
    } else {
        tally.write_text(args, terminal, out)
    };
    let is_whole = outcome?;
    told.and_then(|()| out.flush())
        .map_err(DeadLettersError::Output)?;
    Ok(if !is_whole && !run.is_enough() {
        Completion::Stopped
    } else if run.tally.is_complete() {
        Completion::Done
    } else {
        Completion::Incomplete
    })
}

fn not_acknowledged(replayed: u64, source: crate::kafka::StepError) -> DeadLettersError {
    DeadLettersError::NotAcknowledged { replayed, source }
}

/// A document that is about to be replayed.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    /// Where its dead letter lies.
    offset: Offset,
    reason: DeadLetterReason,
    to: TopicPartition,
    record: Record,
}

/// Documents whose dead letters share a partition and a span of marks.
#[derive(Debug, Default)]
struct Chunk {
    documents: Vec<Outgoing>,
    bytes: usize,
}

impl Chunk {
    /// Whether another one has to wait until these are written.
    fn is_closed_to(&self, document: &Outgoing) -> bool {
        let Some(first) = self.documents.first() else {
            return false;
        };
        self.documents.len() >= CHUNK_RECORDS_MAX
            || self.bytes + document.record.size() > BATCH_BYTES_MAX
            || span_of(first.offset) != span_of(document.offset)
    }

    fn push(&mut self, document: Outgoing) {
        self.bytes += document.record.size();
        self.documents.push(document);
    }
}

/// One run of the command.
struct Run<'a> {
    args: &'a ReplayArgs,
    topic: &'a Topic,
    targets: Targets,
    /// None in a dry run.
    writer: Option<Writer<'a>>,
    marks: Marks,
    tally: Tally,
    chunk: Chunk,
    /// Offsets of the partitions that are through.
    passed: u64,
    progress: Progress,
}

impl Run<'_> {
    /// Replays a partition; false when it ended before the end.
    async fn partition(
        &mut self,
        mut cursor: Cursor<'_>,
        out: &mut (dyn Write + Send),
        shutdown: &CancellationToken,
    ) -> Result<bool, DeadLettersError> {
        let partition = cursor.partition.clone();
        loop {
            let read = shutdown.run_until_cancelled(cursor.next()).await;
            let Some(read) = read else {
                return Ok(false);
            };
            let Some(records) = read? else {
                break;
            };
            for (offset, record) in records {
                if shutdown.is_cancelled() || self.is_enough() {
                    // Nothing that was taken in is left behind without need.
                    self.write(&partition).await?;
                    return Ok(false);
                }
                let Some(document) = self.judge(&partition, offset, &record).await? else {
                    continue;
                };
                if self.chunk.is_closed_to(&document) {
                    self.write(&partition).await?;
                }
                self.chunk.push(document);
            }
            self.write(&partition).await?;
            let passed = self.passed + cursor.passed();
            let told = self.progress.passed(passed, &self.tally, out);
            told.map_err(DeadLettersError::Output)?;
        }
        self.passed += cursor.length();
        Ok(true)
    }

    fn is_enough(&self) -> bool {
        let taken = u64::try_from(self.chunk.documents.len()).unwrap_or(u64::MAX);
        let taken = self.tally.replayed().saturating_add(taken);
        self.args.count.is_some_and(|count| taken >= count)
    }

    /// The document to send for a dead letter, or none, which is counted.
    async fn judge(
        &mut self,
        partition: &TopicPartition,
        offset: Offset,
        record: &Record,
    ) -> Result<Option<Outgoing>, DeadLettersError> {
        let Some(letter) = DeadLetter::read(record) else {
            self.tally.foreign += 1;
            return Ok(None);
        };
        if !self.args.filter.takes(&letter, record) {
            self.tally.not_meant += 1;
            return Ok(None);
        }
        if self.marks.contains(partition.partition, offset) {
            self.tally.replayed_before += 1;
            return Ok(None);
        }
        let mut replays = replay_count(record);
        if replays >= self.args.max_replays {
            self.tally.park(letter.reason);
            return Ok(None);
        }
        let left = |tally: &mut Tally, why: Left| {
            tally.leave(why, format!("{}:{offset}", partition.partition));
            Ok(None)
        };
        let is_pointer = headers::text(record, POINTER).is_some();
        let fetched = if is_pointer {
            let source = &letter.source.topic_partition;
            if self.targets.partitions(&source.topic).await?.is_none() {
                return left(&mut self.tally, Left::Gone);
            }
            let Some(found) = original(&self.topic.cluster, &letter, record).await? else {
                return left(&mut self.tally, Left::Gone);
            };
            // The result of a document that was replayed does not say so; the document does.
            replays = replays.max(replay_count(&found));
            if replays >= self.args.max_replays {
                self.tally.park(letter.reason);
                return Ok(None);
            }
            Some(found)
        } else {
            None
        };
        let document = fetched.as_ref().unwrap_or(record);
        let Some(to) = self.targets.target(&letter, document).await? else {
            return left(&mut self.tally, Left::NoTopic);
        };
        let now = clock::now().as_millisecond();
        let record = replayed(document, replays.saturating_add(1), now);
        Ok(Some(Outgoing {
            offset,
            reason: letter.reason,
            to,
            record,
        }))
    }

    /// Makes the chunk durable, with its marks.
    async fn write(&mut self, partition: &TopicPartition) -> Result<(), DeadLettersError> {
        let chunk = std::mem::take(&mut self.chunk);
        if chunk.documents.is_empty() {
            return Ok(());
        }
        let mut refused = Vec::new();
        if let Some(writer) = &mut self.writer {
            let written = writer
                .write(partition, &chunk.documents, &mut self.marks)
                .await;
            refused = match written {
                Ok(refused) => refused,
                Err(writer::WriteError::Step(source)) => {
                    return Err(not_acknowledged(self.tally.replayed(), source));
                }
                Err(writer::WriteError::Other(error)) => return Err(*error),
            };
        }
        for document in &chunk.documents {
            if refused.contains(&document.offset) {
                let place = format!("{}:{}", partition.partition, document.offset);
                self.tally.leave(Left::TooLarge, place);
            } else {
                self.tally.replay(document.reason, &document.to.topic);
            }
        }
        Ok(())
    }
}

/// Where documents go.
struct Targets {
    cluster: Cluster,
    dead_letters: String,
    to: Option<String>,
    /// How many partitions each topic has; `None` for one that cannot have documents.
    known: BTreeMap<String, Option<i32>>,
}

impl Targets {
    fn new(topic: &Topic, to: Option<String>) -> Self {
        Self {
            cluster: topic.cluster.clone(),
            dead_letters: topic.name().to_owned(),
            to,
            known: BTreeMap::new(),
        }
    }

    /// Refuses a topic that must not have documents.
    async fn check(&mut self, to: &str) -> Result<(), DeadLettersError> {
        let why = if to == self.dead_letters {
            "it is the dead-letter topic itself"
        } else if self.partitions(to).await?.is_none() {
            "there is no such topic"
        } else {
            return Ok(());
        };
        Err(DeadLettersError::To {
            topic: to.to_owned(),
            why,
        })
    }

    async fn partitions(&mut self, topic: &str) -> Result<Option<i32>, DeadLettersError> {
        if let Some(known) = self.known.get(topic) {
            return Ok(*known);
        }
        let found = if topic == self.dead_letters {
            None
        } else {
            contact::topic(&self.cluster, topic).await?
        };
        let partitions = found.map(|topic| topic.partitions.max(1));
        if self.known.len() >= TOPICS_KEPT_MAX {
            self.known.clear();
        }
        self.known.insert(topic.to_owned(), partitions);
        Ok(partitions)
    }

    /// The partition that the document was read from, so that it stands behind its key's others whatever partitioner they were sent with;
    /// where there is none of that number, or another topic, the one of its key as the Java client has it. `None` without a topic.
    async fn target(
        &mut self,
        letter: &DeadLetter,
        document: &Record,
    ) -> Result<Option<TopicPartition>, DeadLettersError> {
        let source = &letter.source.topic_partition;
        let to = self.to.clone();
        let topic = to.as_deref().unwrap_or(&source.topic);
        let Some(partitions) = self.partitions(topic).await? else {
            return Ok(None);
        };
        let is_home = to.is_none() && (0..partitions).contains(&source.partition);
        let partition = match &document.key {
            _ if is_home => source.partition,
            Some(key) => partition_for_key(key, partitions),
            None => source.partition.rem_euclid(partitions),
        };
        Ok(Some(TopicPartition::new(topic, partition)))
    }
}
