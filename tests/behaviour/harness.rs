//! A sandbox, and the service on it in this process. Every wait is for a condition, under a deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_llm_processor::app::{App, RunEnd};
use kafka_llm_processor::config::{Override, Settings};
use kafka_llm_processor::records::dead_letter::DeadLetter;
use kafka_llm_processor::records::headers;
use kafka_llm_processor::records::result::ResultRecord;
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Answers, Latency, Vllm, VllmConfig};
use kafka_llm_processor::telemetry::StatusBoard;
use kafka_llm_processor::telemetry::status::{RunState, Summary};
use kafka_llm_processor::types::{Offset, Record, SourcePosition};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub const INPUT: &str = "docs";
pub const OUTPUT: &str = "results";
pub const DEAD: &str = "dead";
pub const COMMITS: &str = "test-commits";
pub const GROUP: &str = "test";

/// Names the flavour under which the whole suite runs, in a process of its own.
pub const FLAVOUR: &str = "KLP_BEHAVIOUR_FLAVOUR";

/// Which driver the service takes, and what it promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// rskafka reads, at least once.
    Rskafka,
    /// Our own connections, at least once.
    Wire,
    /// Our own connections, exactly once.
    ExactlyOnce,
}

impl Flavour {
    pub fn current() -> Self {
        match std::env::var(FLAVOUR).as_deref() {
            Err(_) | Ok("rskafka") => Self::Rskafka,
            Ok("wire") => Self::Wire,
            Ok("exactly_once") => Self::ExactlyOnce,
            Ok(other) => panic!("{FLAVOUR} = {other}"),
        }
    }

    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Rskafka => &["kafka.driver=rskafka"],
            Self::Wire => &["kafka.driver=wire"],
            Self::ExactlyOnce => &["processing.guarantee=exactly_once"],
        }
    }
}

/// The longest that anything here may take; what takes it has failed.
const DEADLINE: Duration = Duration::from_secs(30);

pub struct World {
    pub broker: Broker,
    pub vllm: Vllm,
}

impl World {
    /// A sandbox whose model answers at once.
    pub async fn new(partitions: i32) -> Self {
        Self::with_vllm(
            partitions,
            VllmConfig {
                latency: Latency::ZERO,
                ..VllmConfig::default()
            },
        )
        .await
    }

    pub async fn with_vllm(partitions: i32, config: VllmConfig) -> Self {
        Self::with(partitions, config, BrokerConfig::default()).await
    }

    pub async fn with(partitions: i32, config: VllmConfig, broker: BrokerConfig) -> Self {
        let broker = Broker::start(broker).await.unwrap();
        broker.create_topic(INPUT, partitions, &[]).unwrap();
        let config = VllmConfig {
            answers: Answers::Extract,
            ..config
        };
        let vllm = Vllm::start(config).await.unwrap();
        Self { broker, vllm }
    }

    /// Appends documents `first..end` of `text(n)`, spread over the partitions by number, each with its number as key.
    pub fn produce(&self, numbers: std::ops::Range<usize>, text: impl Fn(usize) -> String) {
        let partitions = self.broker.partitions(INPUT).unwrap();
        for number in numbers {
            let partition = i32::try_from(number % partitions).unwrap();
            self.put(
                partition,
                Some(&format!("k{number}")),
                Some(&json(number, &text(number))),
            );
        }
    }

    /// Appends one record.
    pub fn put(&self, partition: i32, key: Option<&str>, value: Option<&str>) -> Offset {
        let record = Record {
            key: key.map(|key| Bytes::from(key.to_owned())),
            value: value.map(|value| Bytes::from(value.to_owned())),
            headers: Vec::new(),
            timestamp_ms: 1_700_000_000_000,
        };
        self.broker.append(INPUT, partition, vec![record]).unwrap()
    }

    /// Settings for this sandbox; each of `set` is `key=value`.
    pub fn settings(&self, set: &[&str]) -> Settings {
        let brokers = format!("kafka.brokers={}", self.broker.bootstrap());
        let url = format!("llm.url={}", self.vllm.url());
        let fixed = [
            brokers.as_str(),
            url.as_str(),
            "input.topics=docs",
            "output.topic=results",
            "dead_letters.topic=dead",
            "kafka.group_id=test",
            "admin.listen=off",
            "log.file=off",
            "kafka.request_timeout=2s",
            "llm.retry_backoff_initial=10ms",
            "llm.retry_backoff_max=50ms",
            "input.fetch_wait=50ms",
        ];
        // Secrets are not taken from the command line.
        let secrets = ["llm.api_key=", "telemetry.otlp_headers="];
        let is_secret = |set: &&&str| secrets.iter().any(|secret| set.starts_with(secret));
        let environment = set.iter().filter(is_secret).map(|set| {
            let (key, value) = set.split_once('=').unwrap();
            let variable = format!("KLP_{}", key.to_uppercase().replace('.', "__"));
            (variable, value.to_owned())
        });
        let environment: Vec<_> = environment.collect();
        let overrides: Vec<_> = fixed
            .iter()
            .chain(Flavour::current().settings())
            .chain(set.iter().filter(|set| !is_secret(set)))
            .map(|set| {
                let (key, value) = set.split_once('=').unwrap();
                Override {
                    key: key.into(),
                    value: value.into(),
                    flag: "test".into(),
                }
            })
            .collect();
        Settings::load(None, environment, &overrides).unwrap()
    }

    pub fn start(&self, set: &[&str]) -> Running {
        Running::start(self.settings(set), false)
    }

    /// Every result, by source.
    pub fn results(&self) -> BTreeMap<(i32, i64), Vec<ResultRecord>> {
        let mut results: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (_, _, record) in self.records(OUTPUT) {
            let result = ResultRecord::parse(record.value.as_ref().unwrap()).unwrap();
            let SourcePosition {
                topic_partition,
                offset,
            } = headers::source(&record).unwrap();
            assert_eq!(result.source.position(), headers::source(&record).unwrap());
            results
                .entry((topic_partition.partition, offset.value()))
                .or_default()
                .push(result);
        }
        results
    }

    /// Every dead letter, by source.
    pub fn dead_letters(&self) -> BTreeMap<(i32, i64), (DeadLetter, Record)> {
        self.records(DEAD)
            .into_iter()
            .map(|(_, _, record)| {
                let letter = DeadLetter::read(&record).unwrap();
                let source = letter.source.clone();
                (
                    (source.topic_partition.partition, source.offset.value()),
                    (letter, record),
                )
            })
            .collect()
    }

    /// Every one of that many documents has its result, exactly once where that is promised.
    pub fn assert_all_have_results(&self, documents: usize) {
        let results = self.results();
        assert_eq!(results.len(), documents, "every document has a result");
        if Flavour::current() == Flavour::ExactlyOnce {
            self.assert_nothing_twice();
        }
    }

    pub fn assert_nothing_twice(&self) {
        let results = self.results();
        let twice: Vec<_> = results
            .iter()
            .filter(|(_, results)| results.len() > 1)
            .map(|(source, results)| (source, results.len()))
            .collect();
        assert!(twice.is_empty(), "more than one result: {twice:?}");
    }

    /// The group's offsets in Kafka itself have reached the end of every partition.
    pub fn is_all_mirrored(&self) -> bool {
        let partitions = i32::try_from(self.broker.partitions(INPUT).unwrap()).unwrap();
        (0..partitions).all(|partition| {
            let end = self.broker.high_watermark(INPUT, partition).unwrap();
            self.broker.committed_offset(GROUP, INPUT, partition) == Some(end.value())
        })
    }

    /// The values of the commit records of a partition, oldest first.
    pub fn commits(&self, partition: i32) -> Vec<serde_json::Value> {
        let key = format!("{INPUT}/{partition}");
        self.records(COMMITS)
            .into_iter()
            .filter(|(_, _, record)| record.key.as_deref() == Some(key.as_bytes()))
            .map(|(_, _, record)| serde_json::from_slice(record.value.as_ref().unwrap()).unwrap())
            .collect()
    }

    /// Writes the newest commit of a partition once more, older than an owner may be that is alive.
    pub fn commit_again_as_if_long_ago(&self, partition: i32) {
        let mut commit = self.commits(partition).pop().unwrap();
        commit["at"] = "2020-01-01T00:00:00Z".into();
        let record = Record {
            key: Some(format!("{INPUT}/{partition}").into()),
            value: Some(commit.to_string().into()),
            headers: Vec::new(),
            timestamp_ms: 1_700_000_000_000,
        };
        self.broker
            .append(COMMITS, partition, vec![record])
            .unwrap();
    }

    pub fn commit_offset(&self, partition: i32) -> Option<i64> {
        self.commits(partition)
            .last()
            .map(|commit| commit["next_offset"].as_i64().unwrap())
    }

    /// The commit offset of every partition has reached its end.
    pub fn is_all_committed(&self) -> bool {
        let partitions = i32::try_from(self.broker.partitions(INPUT).unwrap()).unwrap();
        (0..partitions).all(|partition| {
            let end = self
                .broker
                .high_watermark(INPUT, partition)
                .unwrap()
                .value();
            self.commit_offset(partition) == Some(end)
        })
    }

    /// What a reader of a topic sees that keeps to what is committed.
    pub fn records(
        &self,
        topic: &str,
    ) -> Vec<(kafka_llm_processor::types::TopicPartition, Offset, Record)> {
        if self.broker.partitions(topic).is_none() {
            return Vec::new();
        }
        // What a reader sees that keeps to what is committed.
        self.broker.records_committed(topic)
    }
}

pub struct Running {
    pub board: StatusBoard,
    drain: CancellationToken,
    task: JoinHandle<(RunEnd, Summary)>,
}

impl Running {
    pub fn start(settings: Settings, fail_fast: bool) -> Self {
        let app = App::build(settings).unwrap();
        let board = app.board();
        let drain = CancellationToken::new();
        let task = tokio::spawn(app.run(drain.clone(), fail_fast));
        Self { board, drain, task }
    }

    pub fn begin_drain(&self) {
        self.drain.cancel();
    }

    /// Runs it in a thread of its own, which can be stopped as `SIGSTOP` stops a process.
    pub fn start_apart(settings: Settings) -> (Self, Freezer) {
        let drain = CancellationToken::new();
        let (to_us, from_thread) = std::sync::mpsc::channel();
        let (mut to_task, task) = oneshot::channel();
        let token = drain.clone();
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let app = App::build(settings).unwrap();
                to_us.send((app.board(), Handle::current())).unwrap();
                let ended = tokio::select! {
                    ended = app.run(token, false) => ended,
                    // The test is over.
                    () = to_task.closed() => return,
                };
                drop(to_task.send(ended));
            });
        });
        let (board, runtime) = from_thread.recv().unwrap();
        let task = tokio::spawn(async { task.await.unwrap() });
        (Self { board, drain, task }, Freezer { runtime })
    }

    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    pub fn state(&self) -> RunState {
        self.board.snapshot().state
    }

    /// The owner epochs of what it works on, by partition.
    pub fn partitions(&self) -> BTreeMap<i32, u64> {
        let partitions = self.board.snapshot().partitions.into_iter();
        partitions
            .map(|status| (status.partition, status.owner_epoch))
            .collect()
    }

    /// Waits for the end.
    pub async fn end(self) -> (RunEnd, Summary) {
        timeout(DEADLINE, self.task)
            .await
            .expect("the service ends in time")
            .unwrap()
    }

    pub async fn drain(self) -> (RunEnd, Summary) {
        self.begin_drain();
        self.end().await
    }

    /// What a crash leaves: nothing more is written, whatever was on its way.
    pub async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()));
    }

    pub fn hold(&self, what: &str) -> Option<String> {
        self.board
            .holds()
            .into_iter()
            .find(|hold| hold.what == what)
            .map(|hold| hold.reason)
    }
}

/// Stops all that an instance does.
pub struct Freezer {
    runtime: Handle,
}

impl Freezer {
    /// Nothing of the instance moves until the answer is dropped; returns once that is so.
    pub async fn freeze(&self) -> Frozen {
        let (thaw, thawed) = std::sync::mpsc::channel::<()>();
        let (frozen, is_frozen) = oneshot::channel();
        // It blocks the only thread of the instance, on purpose.
        self.runtime.spawn(async move {
            frozen.send(()).unwrap();
            assert!(thawed.recv().is_err());
        });
        is_frozen.await.unwrap();
        Frozen { _thaw: thaw }
    }
}

pub struct Frozen {
    _thaw: std::sync::mpsc::Sender<()>,
}

/// Waits until the condition holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came to be: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A document.
pub fn json(number: usize, text: &str) -> String {
    serde_json::json!({"id": format!("d{number}"), "content": text}).to_string()
}

/// A text that names its number.
pub fn plain(number: usize) -> String {
    format!("Document {number} reports revenue of {number} million dollars.")
}
