//! Makes documents durable together with the marks of their dead letters.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Outgoing;
use crate::cli::dead_letters::marks::{Marks, MarksError, MarksTopic};
use crate::cli::dead_letters::{DeadLetterSettings, DeadLettersError, Topic};
use crate::clock;
use crate::kafka::wire::WireSink;
use crate::kafka::{Batch, End, KafkaError, PartitionSink, Sink as _, StepError};
use crate::offsets::Guarantee;
use crate::retry::Backoff;
use crate::types::{Offset, Record, TopicPartition};

/// How long a chunk is tried again before the run ends.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// Why a chunk is not durable, as far as is known.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Kafka did not take it.
    Step(StepError),
    /// What was replayed cannot be read or written down.
    Other(Box<DeadLettersError>),
}

impl From<StepError> for WriteError {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

impl From<DeadLettersError> for WriteError {
    fn from(error: DeadLettersError) -> Self {
        Self::Other(Box::new(error))
    }
}

impl From<MarksError> for WriteError {
    fn from(error: MarksError) -> Self {
        DeadLettersError::from(error).into()
    }
}

/// Writes for a run, one chunk at a time.
pub(super) struct Writer<'a> {
    topic: &'a Topic,
    marks: MarksTopic,
    sink: WireSink,
    /// By partition of the dead-letter topic.
    writers: BTreeMap<i32, Box<dyn PartitionSink>>,
}

impl<'a> Writer<'a> {
    /// Becomes the one that replays these partitions. Under exactly once another run of the same group can write nothing more.
    ///
    /// # Errors
    /// When a coordinator cannot be reached.
    pub(super) async fn take_over(
        settings: DeadLetterSettings<'_>,
        topic: &'a Topic,
        marks: MarksTopic,
        partitions: &[TopicPartition],
    ) -> Result<Self, StepError> {
        let cluster = topic.cluster.clone();
        let sink = match settings.guarantee {
            Guarantee::AtLeastOnce => WireSink::idempotent(cluster),
            Guarantee::ExactlyOnce => WireSink::transactional(cluster, &settings.kafka.group_id),
        };
        let mut writers = BTreeMap::new();
        for partition in partitions {
            writers.insert(partition.partition, sink.take_over(partition).await?);
        }
        Ok(Self {
            topic,
            marks,
            sink,
            writers,
        })
    }

    /// Writes documents whose dead letters share a partition and a span of marks; answers with those that their topic refuses for their size.
    ///
    /// What fails in passing is tried again. In a transaction that begins with taking over anew, which ends whatever was left open, and with
    /// the marks as they are then: they tell whether a try whose answer was lost has gone through.
    ///
    /// # Errors
    /// When it cannot be done within the deadline.
    ///
    /// # Cancel safety
    /// Not to be dropped: what was sent stays sent.
    pub(super) async fn write(
        &mut self,
        partition: &TopicPartition,
        documents: &[Outgoing],
        marks: &mut Marks,
    ) -> Result<Vec<Offset>, WriteError> {
        let mut documents: Vec<&Outgoing> = documents.iter().collect();
        let mut patience = Patience::new();
        let mut is_anew = false;
        loop {
            let tried = async {
                if is_anew {
                    self.begin_anew(partition, marks).await?;
                    documents
                        .retain(|document| !marks.contains(partition.partition, document.offset));
                }
                self.try_write(partition, &documents, marks, &mut patience)
                    .await
            };
            match tried.await {
                Ok(refused) => return Ok(refused),
                Err(WriteError::Step(error)) if self.may_go_on(partition, &error) => {
                    is_anew = true;
                    if let Err(error) = patience.wait(error).await {
                        self.abort(partition).await;
                        return Err(error.into());
                    }
                }
                Err(error) => {
                    self.abort(partition).await;
                    return Err(error);
                }
            }
        }
    }

    /// Without transactions each step is repeated by itself: what has failed for good there ends the run.
    fn may_go_on(&self, partition: &TopicPartition, error: &StepError) -> bool {
        let writer = self.writers.get(&partition.partition);
        writer.is_none_or(|writer| writer.is_transactional()) && may_pass(error)
    }

    async fn begin_anew(
        &mut self,
        partition: &TopicPartition,
        marks: &mut Marks,
    ) -> Result<(), WriteError> {
        let writer = self.sink.take_over(partition).await?;
        self.writers.insert(partition.partition, writer);
        let topic = self.topic;
        *marks = self
            .marks
            .load(&topic.cluster, topic.description.id)
            .await?;
        Ok(())
    }

    async fn try_write(
        &mut self,
        partition: &TopicPartition,
        documents: &[&Outgoing],
        marks: &mut Marks,
        patience: &mut Patience,
    ) -> Result<Vec<Offset>, WriteError> {
        if documents.is_empty() {
            return Ok(Vec::new());
        }
        let Some(writer) = self.writers.get_mut(&partition.partition) else {
            return Err(StepError::Refused(KafkaError::UnknownPartition {
                partition: partition.clone(),
            })
            .into());
        };
        writer.begin().await?;
        let items = documents.iter().map(|document| Item {
            offset: document.offset,
            to: &document.to,
            record: &document.record,
        });
        let (refused, failure) = match deliver(&mut **writer, items, patience).await {
            Ok(refused) => (refused, None),
            Err(failed) if writer.is_transactional() => return Err(failed.error.into()),
            // What was acknowledged is marked all the same.
            Err(failed) => (failed.open, Some(failed.error)),
        };
        let offsets = documents.iter().map(|document| document.offset);
        let replayed: Vec<_> = offsets.filter(|offset| !refused.contains(offset)).collect();
        if let Some(first) = replayed.first() {
            let record = marks.record_with(partition.partition, &replayed, clock::now())?;
            let to = self.marks.partition_of(&record);
            let mark = Item {
                offset: *first,
                to: &to,
                record: &record,
            };
            let marked = deliver(&mut **writer, [mark], patience).await;
            let unmarked = marked.map_err(|failed| failed.error)?;
            if !unmarked.is_empty() {
                return Err(StepError::Refused(KafkaError::TooLarge { partition: to }).into());
            }
        }
        loop {
            match writer.end(End::Commit).await {
                Ok(()) => break,
                Err(error @ StepError::OutcomeUnknown(_)) => patience.wait(error).await?,
                Err(error) => return Err(error.into()),
            }
        }
        for offset in replayed {
            marks.insert(partition.partition, offset);
        }
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(refused),
        }
    }

    /// What the run leaves open would hide what others write behind it, until the broker ends it.
    async fn abort(&mut self, partition: &TopicPartition) {
        if let Some(writer) = self.writers.get_mut(&partition.partition)
            && let Err(error) = writer.end(End::Abort).await
        {
            tracing::debug!(%error, %partition, "the broker will end what was left open");
        }
    }
}

/// What is appended: a document, or a record of marks.
struct Item<'a> {
    /// Of the dead letter.
    offset: Offset,
    to: &'a TopicPartition,
    record: &'a Record,
}

/// Not everything was acknowledged.
struct Undelivered {
    error: StepError,
    /// What was not, or was refused.
    open: Vec<Offset>,
}

/// Appends all, those of one partition in their order; answers with those that are larger than their topic accepts. Without transactions
/// what fails in passing is sent again as the same batch, so that it is written once.
async fn deliver<'a>(
    writer: &mut dyn PartitionSink,
    items: impl IntoIterator<Item = Item<'a>>,
    patience: &mut Patience,
) -> Result<Vec<Offset>, Undelivered> {
    let mut lanes: BTreeMap<&TopicPartition, Lane<'_>> = BTreeMap::new();
    for item in items {
        let lane = lanes.entry(item.to).or_default();
        lane.together += 1;
        lane.waiting.push_back(item);
    }
    let mut refused = Vec::new();
    while !lanes.is_empty() {
        let batches: Vec<_> = lanes.values().filter_map(Lane::batch).collect();
        let mut outcomes = writer.append(&batches).await.into_iter();
        let mut passing = None;
        let mut lasting = None;
        for batch in &batches {
            let Some(lane) = lanes.get_mut(&batch.to) else {
                continue;
            };
            let sent = batch.records.len();
            match outcomes.next().unwrap_or_else(|| Err(no_outcome())) {
                Ok(()) => drop(lane.waiting.drain(..sent)),
                Err(StepError::Refused(KafkaError::TooLarge { .. })) if sent > 1 => {
                    lane.together = sent.div_ceil(2);
                }
                Err(StepError::Refused(KafkaError::TooLarge { .. })) => {
                    refused.extend(lane.waiting.pop_front().map(|item| item.offset));
                }
                Err(error) if writer.is_transactional() || !may_pass(&error) => {
                    lasting = Some(error);
                }
                Err(error) => passing = Some(error),
            }
        }
        lanes.retain(|_, lane| !lane.waiting.is_empty());
        let failure = match (lasting, passing) {
            (Some(error), _) => Some(error),
            (None, Some(error)) => patience.wait(error).await.err(),
            (None, None) => None,
        };
        if let Some(error) = failure {
            let waiting = lanes.values().flat_map(|lane| &lane.waiting);
            refused.extend(waiting.map(|item| item.offset));
            return Err(Undelivered {
                error,
                open: refused,
            });
        }
    }
    Ok(refused)
}

/// What goes to one partition.
#[derive(Default)]
struct Lane<'a> {
    waiting: VecDeque<Item<'a>>,
    /// How many of them go out in one batch.
    together: usize,
}

impl Lane<'_> {
    fn batch(&self) -> Option<Batch> {
        let head = self.waiting.iter().take(self.together.max(1));
        Some(Batch {
            to: self.waiting.front()?.to.clone(),
            records: head.map(|item| item.record.clone()).collect(),
        })
    }
}

fn no_outcome() -> StepError {
    StepError::OutcomeUnknown(KafkaError::Protocol {
        operation: "append",
        detail: "the driver gave no outcome for a batch".to_owned(),
    })
}

fn may_pass(error: &StepError) -> bool {
    match error {
        StepError::Fenced => false,
        StepError::Expired(_) => true,
        StepError::Refused(error) | StepError::OutcomeUnknown(error) => {
            error.is_transient() || matches!(error, KafkaError::TransactionTimedOut { .. })
        }
    }
}

/// Waits between the tries of one chunk, up to a deadline for all of them.
struct Patience {
    deadline: Instant,
    backoff: Backoff,
}

impl Patience {
    fn new() -> Self {
        Self {
            deadline: Instant::now() + WRITE_DEADLINE,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(2)),
        }
    }

    /// Waits before the next try; the error, when it is too late for one.
    async fn wait(&mut self, error: StepError) -> Result<(), StepError> {
        let delay = self.backoff.next_delay();
        if Instant::now() + delay >= self.deadline {
            return Err(error);
        }
        tracing::debug!(%error, "tried again");
        sleep(delay).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
