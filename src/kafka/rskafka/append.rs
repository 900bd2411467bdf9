//! The append side: gzip batches, acknowledged by all in-sync replicas.
//!
//! Each partition that is written to has one writer, a task with one append on its way. What all input partitions send meanwhile gathers, and
//! goes out as one batch with the next: sixteen input partitions that spread their results over sixteen output partitions would make a request
//! of nearly each result otherwise.
//!
//! # Invariants
//! 1. The parts of one sender are written in the order in which it sent them.
//! 2. Every part is answered, or its sender sees that the writer is gone. A part whose sender no longer waits is not begun.
//! 3. Parts that go out together share the outcome; refused together for what is in them, each goes out alone.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::partition::{Compression, PartitionClient};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::super::{
    BATCH_BYTES_MAX, Batch, End, KafkaConfig, KafkaError, PartitionSink, Sink, StepError,
};
use super::{Connector, error};
use crate::types::{Record, TopicPartition};

/// The least time between the beginnings of two appends to a partition, as `linger.ms` of Kafka's own producer since 4.0. Who comes after a
/// longer pause waits for nothing.
const LINGER: Duration = Duration::from_millis(5);
/// Most bytes of a batch, uncompressed, while little waits. rskafka's connections have 8 KiB of buffer and no `TCP_NODELAY`: of a longer
/// request the length goes out alone, and the kernel keeps the rest back until the broker has acknowledged that, which takes it 40 ms. Results
/// pack to a fifth, so this much stays below.
const QUICK_BYTES: usize = 32 * 1024;
/// While more waits for a partition, of one input partition or of all together, batches are as large as they may be: one that carries this much,
/// up to [`BATCH_BYTES_MAX`], is worth the 40 ms.
const QUICK_WAITING_BYTES: usize = 256 * 1024;
/// Batches of fewer bytes are not packed: a commit record by itself, which each flush has, is some 300 bytes.
const PACKED_FROM_BYTES: usize = 512;
/// Most parts that wait for a writer; their senders wait with the others.
const PARTS_WAITING: usize = 64;
/// A batch of more bytes is packed on a thread for blocking work: it takes more than a millisecond, and calls to the model would wait for it.
const PACKED_AT_ONCE_BYTES: usize = 64 * 1024;
/// Most threads for that. Each is held until the broker has answered, as rskafka packs and sends in one call: while a broker hangs they are
/// held for long, and of the 512 that the runtime has, name look-ups and files need some.
const PACKERS_MAX: usize = 32;

/// Writes results, dead letters and commits; writers are shared by all input partitions.
#[derive(Debug)]
pub struct RskafkaSink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connector: Arc<Connector>,
    writers: Mutex<HashMap<TopicPartition, WriterTask>>,
    packers: Arc<Semaphore>,
}

#[derive(Debug)]
struct WriterTask {
    parts: mpsc::Sender<Part>,
    waiting: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl RskafkaSink {
    /// A sink that connects when it is first used.
    #[must_use]
    pub fn new(config: KafkaConfig) -> Self {
        let shared = Shared {
            connector: Arc::new(Connector::new(config)),
            writers: Mutex::default(),
            packers: Arc::new(Semaphore::new(PACKERS_MAX)),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

#[async_trait]
impl Sink for RskafkaSink {
    async fn take_over(
        &self,
        _input: &TopicPartition,
    ) -> Result<Box<dyn PartitionSink>, StepError> {
        // Nothing to fence with: plain appends carry no producer id. The claim in the commit topic tells who owns the partition.
        Ok(Box::new(RskafkaPartitionSink {
            shared: Arc::clone(&self.shared),
        }))
    }
}

struct RskafkaPartitionSink {
    shared: Arc<Shared>,
}

#[async_trait]
impl PartitionSink for RskafkaPartitionSink {
    fn is_transactional(&self) -> bool {
        false
    }

    fn batch_bytes(&self, waiting: usize) -> usize {
        batch_bytes_max(waiting)
    }

    async fn begin(&mut self) -> Result<(), StepError> {
        Ok(())
    }

    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        join_all(batches.iter().map(|batch| self.shared.append(batch))).await
    }

    async fn end(&mut self, _end: End) -> Result<(), StepError> {
        Ok(())
    }
}

/// The most for one batch when so much waits.
const fn batch_bytes_max(waiting: usize) -> usize {
    if waiting <= QUICK_WAITING_BYTES {
        QUICK_BYTES
    } else {
        BATCH_BYTES_MAX
    }
}

impl Shared {
    async fn append(&self, batch: &Batch) -> Result<(), StepError> {
        let (reply, outcome) = oneshot::channel();
        let (parts, waiting) = self.writer(&batch.to);
        let bytes = batch.records.iter().map(Record::size).sum();
        let part = Part {
            records: batch.records.iter().map(to_rskafka).collect(),
            bytes,
            reply,
            _counted: Counted::new(waiting, bytes),
        };
        // It lives as long as the sink, unless a library panics: then there is another one for the next append.
        let gone = || KafkaError::Disconnected {
            operation: "append",
            detail: format!("the writer of {} is gone", batch.to),
        };
        let sent = parts.send(part).await;
        sent.map_err(|_closed| StepError::Refused(gone()))?;
        outcome
            .await
            .unwrap_or_else(|_closed| Err(StepError::OutcomeUnknown(gone())))
    }

    /// The way to the writer of a partition, and what counts the bytes that wait for it.
    fn writer(&self, to: &TopicPartition) -> (mpsc::Sender<Part>, Arc<AtomicUsize>) {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has ended, as by a panic of a library, would refuse all that is written to the partition from then on.
        writers.retain(|other, task| other != to || !task.parts.is_closed());
        let task = writers.entry(to.clone()).or_insert_with(|| {
            let (sender, parts) = mpsc::channel(PARTS_WAITING);
            let waiting = Arc::default();
            let writer = Writer {
                to: to.clone(),
                connector: Arc::clone(&self.connector),
                packers: Arc::clone(&self.packers),
                client: None,
                parts,
                waiting: Arc::clone(&waiting),
                left: None,
                began: None,
            };
            WriterTask {
                parts: sender,
                waiting,
                _task: AbortOnDropHandle::new(tokio::spawn(writer.run())),
            }
        });
        (task.parts.clone(), Arc::clone(&task.waiting))
    }
}

/// What one input partition appends at a time.
struct Part {
    records: Vec<rskafka::record::Record>,
    /// Uncompressed.
    bytes: usize,
    reply: oneshot::Sender<Result<(), StepError>>,
    _counted: Counted,
}

/// Counts bytes among those that wait for as long as it lives.
struct Counted {
    waiting: Arc<AtomicUsize>,
    bytes: usize,
}

impl Counted {
    fn new(waiting: Arc<AtomicUsize>, bytes: usize) -> Self {
        waiting.fetch_add(bytes, Ordering::Relaxed);
        Self { waiting, bytes }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Writes to one partition.
struct Writer {
    to: TopicPartition,
    connector: Arc<Connector>,
    /// Shared with all other writers.
    packers: Arc<Semaphore>,
    /// `None` after a failure: the next append dials again, as the peer may be silently dead, or no longer the leader.
    client: Option<Arc<PartitionClient>>,
    parts: mpsc::Receiver<Part>,
    /// Bytes of all parts that were not answered, those whose senders wait for room among them.
    waiting: Arc<AtomicUsize>,
    /// Did not fit into the last batch.
    left: Option<Part>,
    /// When the last append began.
    began: Option<Instant>,
}

impl Writer {
    async fn run(mut self) {
        while let Some(parts) = self.gather().await {
            self.began = Some(Instant::now());
            self.write(parts).await;
        }
    }

    /// The parts of the next batch, at least one; `None` when the sink is gone.
    async fn gather(&mut self) -> Option<Vec<Part>> {
        loop {
            let (first, has_waited) = match self.left.take() {
                Some(part) => (part, true),
                None => (self.parts.recv().await?, false),
            };
            // With what nearly fills a batch there is little to wait for.
            let lingers = !has_waited && self.waiting() < QUICK_BYTES / 2;
            if let Some(began) = self.began.filter(|_| lingers) {
                sleep_until(began + LINGER).await;
            }
            let bytes_max = batch_bytes_max(self.waiting());
            let mut bytes = first.bytes;
            let mut parts = vec![first];
            while let Ok(part) = self.parts.try_recv() {
                if bytes + part.bytes > bytes_max {
                    self.left = Some(part);
                    break;
                }
                bytes += part.bytes;
                parts.push(part);
            }
            parts.retain(|part| !part.reply.is_closed());
            if !parts.is_empty() {
                return Some(parts);
            }
        }
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    async fn write(&mut self, mut parts: Vec<Part>) {
        if let [part] = &mut *parts {
            let records = std::mem::take(&mut part.records);
            let outcome = self.append(records, part.bytes).await;
            answer(parts, &outcome);
            return;
        }
        let records = parts.iter().flat_map(|part| part.records.iter().cloned());
        let bytes = parts.iter().map(|part| part.bytes).sum();
        let outcome = self.append(records.collect(), bytes).await;
        if !outcome.as_ref().is_err_and(error::is_about_content) {
            answer(parts, &outcome);
            return;
        }
        for mut part in parts {
            if part.reply.is_closed() {
                continue;
            }
            let records = std::mem::take(&mut part.records);
            let outcome = self.append(records, part.bytes).await;
            answer(vec![part], &outcome);
        }
    }

    async fn append(
        &mut self,
        records: Vec<rskafka::record::Record>,
        bytes: usize,
    ) -> Result<(), StepError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => {
                let dialled = self.connector.partition(&self.to).await;
                dialled.map_err(StepError::Refused)?
            }
        };
        let (connector, producing) = (Arc::clone(&self.connector), Arc::clone(&client));
        // The deadline is inside: a thread for blocking work cannot be told to give up.
        let produce = async move {
            let compression = if bytes < PACKED_FROM_BYTES {
                Compression::NoCompression
            } else {
                Compression::Gzip
            };
            let produce = producing.produce(records, compression);
            connector.within("append", Duration::ZERO, produce).await
        };
        let produced = if bytes <= PACKED_AT_ONCE_BYTES {
            produce.await
        } else {
            aside(&self.packers, produce).await
        };
        match produced {
            Ok(Ok(_offsets)) => {
                self.client = Some(client);
                Ok(())
            }
            Ok(Err(error)) => Err(error::append_outcome(&self.to, &error)),
            Err(late) => Err(StepError::OutcomeUnknown(late)),
        }
    }
}

/// Does the work on a thread for blocking work, or here when none of ours is free: a few milliseconds for others to wait, and not as long as a
/// broker that hangs takes.
async fn aside<T: Send + 'static>(
    packers: &Arc<Semaphore>,
    work: impl Future<Output = Result<T, KafkaError>> + Send + 'static,
) -> Result<T, KafkaError> {
    let Ok(permit) = Arc::clone(packers).try_acquire_owned() else {
        return work.await;
    };
    let runtime = Handle::current();
    let working = spawn_blocking(move || {
        let _permit = permit;
        runtime.block_on(work)
    });
    working.await.unwrap_or_else(|ended| {
        Err(KafkaError::Protocol {
            operation: "append",
            detail: format!("rskafka failed: {ended}"),
        })
    })
}

/// Tells the outcome to all who wait for it. Who no longer waits has given the partition up; its next owner reads what was committed.
fn answer(parts: Vec<Part>, outcome: &Result<(), StepError>) {
    for part in parts {
        drop(part.reply.send(outcome.clone()));
    }
}

/// rskafka keeps headers in a map with values that are not null: of several with one name the last is kept, and null becomes empty.
fn to_rskafka(record: &Record) -> rskafka::record::Record {
    let headers: BTreeMap<_, _> = record
        .headers
        .iter()
        .map(|header| {
            (
                header.name.clone(),
                header.value.as_deref().unwrap_or_default().to_vec(),
            )
        })
        .collect();
    rskafka::record::Record {
        key: record.key.as_ref().map(|key| key.to_vec()),
        value: record.value.as_ref().map(|value| value.to_vec()),
        headers,
        timestamp: DateTime::<Utc>::from_timestamp_millis(record.timestamp_ms).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
