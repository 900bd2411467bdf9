//! How long a start takes until the first new result: with a thousand partitions, and after five million commits, on a real Apache Kafka.
//!
//! Estimate before measuring: a process is up and has the topics after 0.1 s. A take-over is four round trips that nobody shares (writer,
//! claim, and two reads), of 1 ms with the broker's work: a thousand take a second of one core, 32 at a time. What is left of five million
//! commits is what the cleaner has not taken: with segments of 1 MiB about 1.5 MiB in each commit partition, 24 MiB in 16. Read by 16 scans
//! side by side, 80,000 records take 0.1 s to bring and 0.2 s to decode; with segments of 16 MiB it is eight times that.
//!
//! `REAL_KAFKA_TOOLS` and `KLP_TEST_BINARY` are as for `tests/real_kafka.rs`. `RESTART_CASE` leaves only one of `many` (a thousand
//! partitions), `commits` (16 partitions with their earlier commits), `few` (16 without). `RESTART_COMMITS` is how many thousand commits
//! there are before (default 5000), `RESTART_ROUNDS` how often each restart is measured (default 3). `RESTART_PORT` is the first of six
//! ports for the broker (default 27000).

#![cfg(feature = "sandbox")]
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a bench fails by panicking"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_llm_processor::clock;
use kafka_llm_processor::kafka::wire::{Cluster, Isolation, NewTopic, OffsetAt};
use kafka_llm_processor::kafka::{KafkaConfig, LogReader as _};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::TopicPartition;
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};
use rskafka::record::Record;
use tokio::time::{Instant, sleep};

use support::kafka::{Broker, tools};
use support::load;
use support::processor::Processor;

/// The listeners take this and the next five; the controller is among them. `RESTART_PORT` is another.
const PORT: u16 = 27_000;
const MANY: i32 = 1_000;
const SOME: i32 = 16;
const WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(5);
/// Idle processor time is taken over so long.
const IDLE_FOR: Duration = Duration::from_secs(60);
/// A guarantee is left for the other only when the commits of its owner are so old.
const OLD_AFTER: Duration = Duration::from_secs(46);
/// Records of a batch of earlier commits, which are written as fast as one can.
const BULK: usize = 200;
/// The last commits of each partition lie in batches of their own, as a processor writes them: more than a segment of 1 MiB holds.
const SINGLES: usize = 4_000;
/// The cleaner is through when what is to be read was the same for so long: its longest pause is 15 s.
const CLEAN_AFTER: Duration = Duration::from_secs(20);

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let Some(tools) = tools() else {
        return;
    };
    let port = number("RESTART_PORT").unwrap_or(PORT);
    let rounds = number("RESTART_ROUNDS").unwrap_or(3);
    let thousands = usize::from(number("RESTART_COMMITS").unwrap_or(5_000));
    let only = std::env::var("RESTART_CASE").ok();
    let is_asked = |case: &str| only.as_deref().is_none_or(|only| only == case);
    let bench = Bench::start(Broker::start(&tools, port).await).await;
    println!("| case | guarantee | assignment | ready | first result | CPU until then |");
    println!("| --- | --- | --- | --- | --- | --- |");
    if is_asked("few") {
        bench.restarts("few", rounds, 0).await;
    }
    if is_asked("commits") {
        bench.restarts("commits", rounds, thousands * 1_000).await;
    }
    if is_asked("many") {
        bench.many(rounds).await;
    }
}

/// The number that an environment variable holds.
fn number(name: &str) -> Option<u16> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}: {error}")),
    )
}

struct Bench {
    broker: Broker,
    cluster: Cluster,
    vllm: Vllm,
}

/// One start.
struct Started {
    processor: Processor,
    began: Instant,
}

impl Bench {
    async fn start(broker: Broker) -> Self {
        let cluster = Cluster::new(&KafkaConfig {
            brokers: broker.address(),
            ..KafkaConfig::default()
        });
        let vllm = Vllm::start(VllmConfig {
            latency: Latency::fixed(Duration::from_millis(1)),
            ..VllmConfig::default()
        });
        let vllm = vllm.await.expect("the simulated vLLM");
        Self {
            broker,
            cluster,
            vllm,
        }
    }

    async fn create(&self, name: &str, partitions: i32) {
        let topic = NewTopic {
            name: name.to_owned(),
            partitions,
            replication_factor: -1,
            configs: BTreeMap::new(),
        };
        self.cluster.create_topic(&topic).await.expect("created");
    }

    fn processor(&self, case: &str, guarantee: &str, assignment: &str) -> Started {
        let mut arguments = vec![
            format!("--set=kafka.brokers={}", self.broker.address()),
            format!("--group-id={case}"),
            format!("--input-topic={case}"),
            format!("--output-topic={case}-results"),
            format!("--llm-url={}", self.vllm.url()),
            format!("--set=dead_letters.topic={case}-dead-letters"),
            format!("--set=kafka.commit_topic={case}-commits"),
            format!("--set=processing.guarantee={guarantee}"),
            format!("--set=input.assignment={assignment}"),
            "--set=kafka.driver=wire".to_owned(),
            "--set=admin.listen=127.0.0.1:0".to_owned(),
            "--set=log.file=off".to_owned(),
        ];
        if assignment == "static" {
            arguments.push("--set=input.static_ordinal=0".to_owned());
            arguments.push("--set=input.static_count=1".to_owned());
        }
        let began = Instant::now();
        let processor = Processor::start(&arguments, &[]);
        Started { processor, began }
    }

    async fn results(&self, case: &str) -> i64 {
        let place = TopicPartition::new(format!("{case}-results"), 0);
        let (at, isolation) = (OffsetAt::Latest, Isolation::ReadCommitted);
        let end = self.cluster.list_offset(&place, at, isolation).await;
        end.expect("an answer").expect("an end").value()
    }

    async fn until_result(&self, case: &str, before: i64, started: &Started) -> Duration {
        while self.results(case).await == before {
            assert!(started.began.elapsed() < WITHIN, "no result");
            sleep(LOOK).await;
        }
        started.began.elapsed()
    }

    /// Restarts after `kill -9`, under each guarantee and assignment.
    async fn restarts(&self, case: &str, rounds: u16, commits: usize) {
        self.create(case, SOME).await;
        self.create(&format!("{case}-results"), 1).await;
        let first = self.processor(case, "at_least_once", "all");
        ready(&first).await;
        first.processor.kill();
        if commits > 0 {
            self.write_commits(case, commits).await;
        }
        let partitions: Vec<_> = (0..SOME).collect();
        let mut written = 0;
        for guarantee in ["at_least_once", "exactly_once"] {
            for assignment in ["all", "static"] {
                for _ in 0..rounds {
                    let before = self.results(case).await;
                    let count = partitions.len();
                    let address = self.broker.address();
                    load::write_documents(address, case, &partitions, written, count, 1).await;
                    written += count;
                    let started = self.processor(case, guarantee, assignment);
                    let result = self.until_result(case, before, &started).await;
                    let cpu = started.processor.cpu_time();
                    ready(&started).await;
                    let ready = started.began.elapsed().max(result);
                    println!(
                        "| {case} | {guarantee} | {assignment} | {ready:.2?} | {result:.2?} | {cpu:.2?} |"
                    );
                    // Marker and commits of all of them, so that nothing of this round is a result of the next.
                    sleep(Duration::from_secs(1)).await;
                    started.processor.kill();
                }
            }
            sleep(OLD_AFTER).await;
        }
    }

    /// Commits of the earlier run's owner, then waits for the cleaner.
    async fn write_commits(&self, case: &str, commits: usize) {
        let topic = format!("{case}-commits");
        let id = self.cluster.topic_id(case).await;
        let id = id.expect("an answer").expect("an id").to_string();
        let client = ClientBuilder::new(vec![self.broker.address()]).build();
        let client = client.await.expect("a client");
        let began = Instant::now();
        let each = commits / usize::try_from(SOME).expect("a count");
        let mut writers = tokio::task::JoinSet::new();
        for partition in 0..SOME {
            let unknown = UnknownTopicHandling::Error;
            let writer = client.partition_client(&topic, partition, unknown).await;
            let writer = writer.expect("a writer");
            let commit = Commit {
                key: format!("{case}/{partition}"),
                topic_id: id.clone(),
            };
            writers.spawn(async move { write(&writer, &commit, each).await });
        }
        writers.join_all().await;
        eprintln!("{commits} commits written in {:.1?}", began.elapsed());
        let mut seen = (self.readable(&topic).await, Instant::now());
        while seen.1.elapsed() < CLEAN_AFTER {
            sleep(Duration::from_secs(5)).await;
            let now = self.readable(&topic).await;
            if now != seen.0 {
                seen = (now, Instant::now());
            }
        }
        eprintln!(
            "cleaned {:.0?} after they began; to be read: {} records",
            began.elapsed(),
            seen.0
        );
    }

    /// Records that a reading of the whole topic would bring.
    async fn readable(&self, topic: &str) -> usize {
        let mut records = 0;
        for partition in 0..SOME {
            let place = TopicPartition::new(topic, partition);
            let (mut at, end) = self.cluster.log_bounds(&place).await.expect("its bounds");
            while at < end {
                let fetched = self.cluster.read(&place, at, LOOK).await.expect("a read");
                at = fetched.next_offset;
                records += fetched.records.len();
            }
        }
        records
    }

    /// A thousand partitions in one process: the start, what it costs to be idle, and restarts.
    async fn many(&self, rounds: u16) {
        let case = "many";
        self.create(case, MANY).await;
        self.create(&format!("{case}-results"), 1).await;
        for round in 0..=rounds {
            let before = self.results(case).await;
            let address = self.broker.address();
            let number = usize::from(round);
            load::write_documents(address, case, &[0], number, 1, 1).await;
            let started = self.processor(case, "at_least_once", "all");
            let result = self.until_result(case, before, &started).await;
            ready(&started).await;
            let ready = started.began.elapsed();
            let cpu = started.processor.cpu_time();
            println!(
                "| {case}, start {round} | at_least_once | all | {ready:.2?} | {result:.2?} | {cpu:.2?} |"
            );
            if round == rounds {
                let idle = started.processor.cpu_time();
                sleep(IDLE_FOR).await;
                let idle = started.processor.cpu_time() - idle;
                let percent = 100.0 * idle.as_secs_f64() / IDLE_FOR.as_secs_f64();
                println!("{case}: idle, {percent:.1} % of a core");
            }
            started.processor.kill();
        }
    }
}

async fn ready(started: &Started) {
    let words = ["all partitions are taken over"];
    started.processor.line(&words, WITHIN).await;
}

/// A commit as the processor writes it; the numbers of a busy partition.
struct Commit {
    key: String,
    topic_id: String,
}

impl Commit {
    fn record(&self, number: usize) -> Record {
        let value = format!(
            r#"{{"v":1,"topic_id":"{}","owner":"processor-5b7f9c6d8-{number:020}-a81bc81b","owner_epoch":1,"guarantee":"at_least_once","next_offset":0,"done":[],"audit":null,"at":"2026-01-01T00:00:00.000000000Z"}}"#,
            self.topic_id
        );
        Record {
            key: Some(self.key.clone().into_bytes()),
            value: Some(value.into_bytes()),
            headers: BTreeMap::new(),
            // Of today: a record that is a week younger than the first of its segment begins a new one, and the old one is cleaned.
            timestamp: DateTime::<Utc>::from_timestamp_millis(clock::now().as_millisecond())
                .expect("a time"),
        }
    }
}

async fn write(writer: &PartitionClient, commit: &Commit, count: usize) {
    let bulk = count.saturating_sub(SINGLES) / BULK;
    let batches = std::iter::repeat_n(BULK, bulk).chain(std::iter::repeat_n(1, SINGLES));
    for batch in batches {
        let records = (0..batch).map(|_| commit.record(7)).collect();
        let written = writer.produce(records, Compression::NoCompression);
        written.await.expect("written");
    }
}
