//! The table of Parallel Consumer: work that is only waited for, in the process itself.

#![allow(
    clippy::disallowed_types,
    reason = "a thread beside the runtime keeps the time"
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kafka_llm_processor::kafka::rskafka::RskafkaSource;
use kafka_llm_processor::kafka::wire::{Isolation, WireSink, WireSource};
use kafka_llm_processor::kafka::{Fetched, KafkaError, LogReader as _, RecordStream, Sink, Source};
use kafka_llm_processor::llm::{
    Class, Complete, CompleteError, Completion, CompletionRequest, Prompt, PromptConfig, Slot,
    Usage,
};
use kafka_llm_processor::offsets::{COMMIT_BYTES_MAX, CommitStore, Guarantee};
use kafka_llm_processor::pipeline::{
    Asking, CommitOffsets, Destinations, InputConfig, Order, Ownership, Partitioner,
    PipelineConfig, PipelineEnd, PipelineMetrics, ProcessingConfig, ReadAhead, Services, Topics,
};
use kafka_llm_processor::records::dead_letter::HeaderStyle;
use kafka_llm_processor::spans::Spans;
use kafka_llm_processor::telemetry::holds::Holds;
use kafka_llm_processor::telemetry::registry::new_registry;
use kafka_llm_processor::telemetry::{Health, StatusBoard};
use kafka_llm_processor::types::{Offset, TopicPartition};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::table::{Bar, Row, Table};
use super::{Bench, documents};

const DOCUMENTS: usize = 10_000;
const DOCUMENT_BYTES: usize = 1_024;
const AT_ONCE: usize = 100;
const LONGEST_MS: f64 = 5.0;
/// 1.5 times the bound of 10,000 × 2.5 ms ÷ 100.
const BAR: f64 = 0.375;

pub(crate) async fn run(bench: &Bench, table: &mut Table) {
    documents::create(&bench.cluster, "in-process", 1).await;
    documents::write(&bench.cluster, "in-process", 1, DOCUMENTS, DOCUMENT_BYTES).await;
    for driver in &bench.drivers {
        for order in [Order::Completion, Order::Key, Order::Input] {
            let mut runs = Vec::new();
            for round in 0..bench.rounds {
                let group = format!("in-process-{driver}-{order:?}-{round}").to_lowercase();
                runs.push(once(bench, driver, order, &group).await);
            }
            table.add(Row {
                what: format!(
                    "0–5 ms in process, 100 in flight, `{}`",
                    format!("{order:?}").to_lowercase()
                ),
                driver: driver.clone(),
                guarantee: "at least once".to_owned(),
                unit: "s, first fetch to last commit",
                runs,
                disturbed: 0,
                bar: Some(Bar::AtMost(BAR)),
            });
        }
    }
}

/// Seconds from the first fetch to the last commit.
async fn once(bench: &Bench, driver: &str, order: Order, group: &str) -> f64 {
    let (output, commits) = (format!("{group}-results"), format!("{group}-commits"));
    let letters = format!("{group}-dead-letters");
    for topic in [&output, &commits, &letters] {
        documents::create(&bench.cluster, topic, 1).await;
    }
    let first_fetch = Arc::new(OnceLock::new());
    let (source, sink) = edges(bench, driver);
    let mut registry = new_registry();
    let board = StatusBoard::new(&mut registry);
    let commit_offsets = CommitOffsets::default();
    let pipeline = PipelineConfig::default();
    let input = TopicPartition::new("in-process", 0);
    let topic_id = bench
        .cluster
        .topic_id("in-process")
        .await
        .expect("asked")
        .expect("it is there");
    let prompt = Prompt::new(&PromptConfig::default(), None).expect("a prompt");
    let services = Services {
        source: Arc::new(Timed {
            source,
            first_fetch: Arc::clone(&first_fetch),
        }),
        sink,
        store: CommitStore::new(Arc::new(bench.cluster.clone()), commits, 1),
        guarantee: Guarantee::AtLeastOnce,
        commit_bytes_max: COMMIT_BYTES_MAX,
        complete: Arc::new(Work::start()),
        asking: Asking::new(Topics::any(Arc::new(prompt)), "bars"),
        schema_hash: None,
        input: InputConfig::default(),
        destinations: Destinations {
            output: output.into(),
            output_partitions: 1,
            partitioner: Partitioner::default(),
            dead_letters: letters.into(),
            dead_letter_partitions: 1,
            group_id: group.to_owned(),
            header_style: HeaderStyle::default(),
        },
        audit: None,
        order,
        commit_interval: ProcessingConfig::default().commit_interval(),
        read_ahead: ReadAhead::new(
            pipeline.read_ahead_records,
            pipeline.read_ahead_bytes,
            &[Class::ONLY],
        ),
        commit_offsets: commit_offsets.clone(),
        metrics: PipelineMetrics::new(&mut registry),
        holds: Holds::new(board.clone()),
        board,
        drift: None,
        spans: Spans::default(),
        instance: group.to_owned(),
    };
    let drain = CancellationToken::new();
    let owned = Health::new().latch("owned");
    let running = tokio::spawn(kafka_llm_processor::pipeline::run(
        Arc::new(services),
        Ownership::Static,
        vec![(input.clone(), topic_id)],
        owned,
        drain.clone(),
        Duration::from_secs(10),
    ));
    committed(&commit_offsets).await;
    let took = first_fetch
        .get()
        .map(Instant::elapsed)
        .expect("it has fetched");
    drain.cancel();
    assert_eq!(running.await.expect("it ends"), PipelineEnd::Drained);
    took.as_secs_f64()
}

/// How the driver reads, and how both write.
fn edges(bench: &Bench, driver: &str) -> (Arc<dyn Source>, Arc<dyn Sink>) {
    let cluster = || bench.cluster.clone();
    let source: Arc<dyn Source> = match driver {
        "rskafka" => Arc::new(RskafkaSource::new(bench.config(), cluster())),
        _ => Arc::new(WireSource::new(cluster(), Isolation::ReadUncommitted)),
    };
    (source, Arc::new(WireSink::idempotent(cluster())))
}

/// Waits until all documents are committed.
async fn committed(commit_offsets: &CommitOffsets) {
    let end = Offset::new(i64::try_from(DOCUMENTS).expect("an offset"));
    let until = Instant::now() + Duration::from_secs(60);
    let is_behind = || {
        let offsets = commit_offsets.snapshot();
        offsets.first().is_none_or(|(_, offset)| *offset < end)
    };
    while is_behind() {
        assert!(Instant::now() < until, "{:?}", commit_offsets.snapshot());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Notes when the first fetch begins.
#[derive(Debug)]
struct Timed {
    source: Arc<dyn Source>,
    first_fetch: Arc<OnceLock<Instant>>,
}

struct TimedStream {
    stream: Box<dyn RecordStream>,
    first_fetch: Arc<OnceLock<Instant>>,
}

#[async_trait]
impl Source for Timed {
    async fn open(
        &self,
        partition: &TopicPartition,
        start: Offset,
    ) -> Result<Box<dyn RecordStream>, KafkaError> {
        let stream = self.source.open(partition, start).await?;
        Ok(Box::new(TimedStream {
            stream,
            first_fetch: Arc::clone(&self.first_fetch),
        }))
    }

    async fn bounds(&self, partition: &TopicPartition) -> Result<(Offset, Offset), KafkaError> {
        self.source.bounds(partition).await
    }

    async fn topic_id(&self, topic: &str) -> Result<Option<Uuid>, KafkaError> {
        self.source.topic_id(topic).await
    }
}

#[async_trait]
impl RecordStream for TimedStream {
    async fn next(&mut self, max_bytes: usize, wait: Duration) -> Result<Fetched, KafkaError> {
        self.first_fetch.get_or_init(Instant::now);
        self.stream.next(max_bytes, wait).await
    }
}

/// Work of 0 to 5 ms, to within a tenth of a millisecond: the runtime's own timers round up to whole ones.
#[derive(Debug)]
struct Work {
    slots: Arc<Semaphore>,
    due: std_mpsc::Sender<(Instant, oneshot::Sender<()>)>,
    random: Mutex<u64>,
}

impl Work {
    fn start() -> Self {
        let (due, waiting) = std_mpsc::channel();
        thread::spawn(move || wake(&waiting));
        Self {
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            due,
            random: Mutex::new(42),
        }
    }

    /// Evenly spread.
    fn length(&self) -> Duration {
        let mut random = self.random.lock().expect("nobody has panicked");
        // Knuth's numbers for a linear congruence modulo 2^64.
        *random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let share = f64::from(u32::try_from(*random >> 32).expect("32 bits")) / f64::from(u32::MAX);
        Duration::from_secs_f64(share * LONGEST_MS / 1_000.0)
    }
}

/// Ends work when it is due, until nobody starts any.
fn wake(waiting: &std_mpsc::Receiver<(Instant, oneshot::Sender<()>)>) {
    let mut at: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
    let mut senders: Vec<Option<oneshot::Sender<()>>> = Vec::new();
    loop {
        let now = Instant::now();
        while let Some(Reverse((due, index))) =
            at.peek().copied().filter(|Reverse((due, _))| *due <= now)
        {
            at.pop();
            let sender = senders[index].take();
            let is_heard = sender.is_some_and(|sender| sender.send(()).is_ok());
            assert!(is_heard, "work that was due at {due:?} is waited for");
        }
        let wait = at
            .peek()
            .map_or(Duration::from_secs(1), |Reverse((due, _))| {
                due.saturating_duration_since(now)
            });
        match waiting.recv_timeout(wait) {
            Ok((due, sender)) => {
                at.push(Reverse((due, senders.len())));
                senders.push(Some(sender));
            }
            Err(std_mpsc::RecvTimeoutError::Timeout) => {}
            Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[async_trait]
impl Complete for Work {
    async fn admit(&self, _class: Class) -> Slot {
        match Arc::clone(&self.slots).acquire_owned().await {
            Ok(permit) => Slot::new(permit),
            Err(_closed) => Slot::unbounded(),
        }
    }

    async fn complete(
        &self,
        _request: CompletionRequest,
        slot: Slot,
    ) -> Result<Completion, CompleteError> {
        let (sender, done) = oneshot::channel();
        let length = self.length();
        self.due
            .send((Instant::now() + length, sender))
            .expect("the thread lives");
        done.await.expect("it is woken");
        drop(slot);
        Ok(Completion {
            text: "Revenue rose.".to_owned(),
            data: None,
            finish_reason: "stop".to_owned(),
            model: "in-process".to_owned(),
            system_fingerprint: None,
            endpoint: String::new(),
            usage: Usage::default(),
            long: None,
            cached: false,
            attempts: 1,
            request_id: String::new(),
            llm_time: length,
        })
    }

    fn begin_drain(&self) {}
}
