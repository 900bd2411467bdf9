//! What exactly once costs: the same documents, once under each guarantee, on a real Apache Kafka.
//!
//! Estimate before measuring: a transaction costs the client three round trips more than an append, 8 to 16 ms with the broker's work on a
//! busy machine. With 50 ms a call the transactions run beside the calls, so throughput is the model's under both guarantees: 1.0. With
//! 0 ms the flushes are the bound: one partition has one transaction after the other, each with all that has gathered meanwhile, so the
//! documents of a transaction grow until the processor time decides: 0.7 to 0.9. Processor time: the same calls, answers and bytes, and
//! 0.2 ms for each transaction of some dozen documents: 1.1 at most.
//!
//! `REAL_KAFKA_TOOLS` and `KLP_TEST_BINARY` are as for `tests/real_kafka.rs`. `COST_ROUNDS` runs are made of each (default 5), in turns.
//! `COST_GUARANTEE=at_least_once` compares at least once with itself: that is the noise. `COST_LATENCY` leaves only the cases with that
//! latency in milliseconds. `COST_PORT` is the first of six ports for the broker (default 25100), where something else has those.

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

use kafka_llm_processor::kafka::KafkaConfig;
use kafka_llm_processor::kafka::wire::{Cluster, Isolation, NewTopic};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::{Offset, TopicPartition};
use tokio::time::{Instant, sleep};

use support::kafka::{Broker, tools};
use support::load;
use support::metrics;
use support::processor::Processor;

/// The listeners take this and the next five; the controller is among them. `COST_PORT` is another.
const PORT: u16 = 25_100;
const CONCURRENCY: usize = 64;
const BATCH_DOCUMENTS: usize = 100;
const FETCH_BYTES: usize = 4 * 1024 * 1024;
/// Reading begins when so many of ten documents were sent to the model: it must neither slow the run nor come late.
const READ_FROM_TENTH: usize = 9;
const LOOK: Duration = Duration::from_millis(5);
const RUN_WITHIN: Duration = Duration::from_secs(180);
const BASE: &str = "at_least_once";

/// What is measured under both guarantees.
struct Case {
    partitions: i32,
    latency: Duration,
    documents: usize,
}

const CASES: [Case; 4] = [
    Case::new(1, 50, 4_000),
    Case::new(8, 50, 4_000),
    Case::new(1, 0, 20_000),
    Case::new(8, 0, 20_000),
];

impl Case {
    const fn new(partitions: i32, latency_ms: u64, documents: usize) -> Self {
        Self {
            partitions,
            latency: Duration::from_millis(latency_ms),
            documents,
        }
    }

    /// The topic with its documents.
    fn input(&self) -> String {
        format!("cost-{}-{}", self.partitions, self.latency.as_millis())
    }
}

/// One run.
#[derive(Debug, Clone, Copy)]
struct Measured {
    documents_per_second: f64,
    /// Processor time of a document in microseconds, user and system, from the first call on.
    cpu_us: f64,
    /// Under exactly once each is a transaction.
    flushes_per_second: f64,
    /// Bytes of commit records for each document, uncompressed.
    commit_bytes: f64,
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let Some(tools) = tools() else {
        return;
    };
    let rounds = usize::from(number("COST_ROUNDS").unwrap_or(5));
    let port = number("COST_PORT").unwrap_or(PORT);
    let latency = number("COST_LATENCY").map(|ms| Duration::from_millis(u64::from(ms)));
    let other = std::env::var("COST_GUARANTEE").unwrap_or_else(|_| "exactly_once".to_owned());
    let broker = Broker::start(&tools, port).await;
    let cluster = Cluster::new(&KafkaConfig {
        brokers: broker.address(),
        ..KafkaConfig::default()
    });
    println!(
        "| partitions | latency | documents/s, `{BASE}` | documents/s, `{other}` | ratio | CPU of a document, `{BASE}` | CPU of a document, `{other}` | ratio | flushes/s | commit bytes of a document |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let is_asked = |case: &&Case| latency.is_none_or(|latency| case.latency == latency);
    for case in CASES.iter().filter(is_asked) {
        write_input(&broker, &cluster, case).await;
        let mut runs = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            // Whoever comes first finds another machine than the second: they take turns.
            for turn in [round % 2, (round + 1) % 2] {
                let guarantee = [BASE, &other][turn];
                let group = format!("{}-{round}-{turn}", case.input());
                let run = run(&broker, &cluster, case, guarantee, &group).await;
                eprintln!("{group} {guarantee}: {run:?}");
                runs[turn].push(run);
            }
        }
        println!("{}", row(case, &runs));
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

async fn write_input(broker: &Broker, cluster: &Cluster, case: &Case) {
    let topic = NewTopic {
        name: case.input(),
        partitions: case.partitions,
        replication_factor: -1,
        configs: BTreeMap::new(),
    };
    cluster.create_topic(&topic).await.expect("created");
    let partitions: Vec<_> = (0..case.partitions).collect();
    load::write_documents(
        broker.address(),
        &case.input(),
        &partitions,
        0,
        case.documents,
        BATCH_DOCUMENTS,
    )
    .await;
}

/// All documents, from the first call to the last result that a reader with `read_committed` sees.
async fn run(
    broker: &Broker,
    cluster: &Cluster,
    case: &Case,
    guarantee: &str,
    group: &str,
) -> Measured {
    let vllm = Vllm::start(VllmConfig {
        latency: Latency::fixed(case.latency),
        ..VllmConfig::default()
    });
    let vllm = vllm.await.expect("the simulated vLLM");
    let results = format!("{group}-results");
    let arguments = [
        format!("--set=kafka.brokers={}", broker.address()),
        format!("--group-id={group}"),
        format!("--input-topic={}", case.input()),
        format!("--output-topic={results}"),
        format!("--llm-url={}", vllm.url()),
        format!("--concurrency={CONCURRENCY}"),
        format!("--set=dead_letters.topic={group}-dead-letters"),
        format!("--set=processing.guarantee={guarantee}"),
        "--set=admin.listen=127.0.0.1:0".to_owned(),
        "--set=log.file=off".to_owned(),
    ];
    let processor = Processor::start(&arguments, &[]);
    assert!(vllm.wait_until(RUN_WITHIN, |vllm| vllm.calls() > 0).await);
    let (began, cpu) = (Instant::now(), processor.cpu_time());
    let enough = u64::try_from(case.documents / 10 * READ_FROM_TENTH).expect("a count");
    let reached = vllm.wait_until(RUN_WITHIN, |vllm| vllm.calls() >= enough);
    assert!(reached.await, "{} calls", vllm.calls());
    wait_for_results(cluster, &results, case).await;
    let (wall, cpu) = (began.elapsed(), processor.cpu_time() - cpu);
    let line = processor.line(&["admin server listens"], RUN_WITHIN).await;
    let names = ["klp_flushes_total", "klp_commit_records_bytes_total"];
    let counters = metrics::counters(&metrics::admin_address(&line), names);
    let count = |count: u64| f64::from(u32::try_from(count).expect("a count"));
    let [flushes, commit_bytes] = counters.map(count);
    processor.drain(RUN_WITHIN).await;
    let documents = f64::from(u32::try_from(case.documents).expect("a count"));
    Measured {
        documents_per_second: documents / wall.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / documents,
        flushes_per_second: flushes / wall.as_secs_f64(),
        commit_bytes: commit_bytes / documents,
    }
}

/// Waits until each document has its one result.
async fn wait_for_results(cluster: &Cluster, topic: &str, case: &Case) {
    let deadline = Instant::now() + RUN_WITHIN;
    let mut next: BTreeMap<i32, Offset> = (0..case.partitions)
        .map(|partition| (partition, Offset::ZERO))
        .collect();
    let mut visible = 0;
    while visible < case.documents {
        let before = visible;
        for (partition, next) in &mut next {
            let place = TopicPartition::new(topic, *partition);
            let isolation = Isolation::ReadCommitted;
            let fetched = cluster.fetch(&place, *next, isolation, FETCH_BYTES, Duration::ZERO);
            let fetched = fetched.await.expect("a read");
            *next = fetched.next_offset;
            visible += fetched.records.len();
        }
        assert!(Instant::now() < deadline, "{visible} results");
        if visible == before {
            sleep(LOOK).await;
        }
    }
    assert_eq!(visible, case.documents, "nothing failed, nothing repeats");
}

fn row(case: &Case, runs: &[Vec<Measured>; 2]) -> String {
    let spreads = |figure: fn(&Measured) -> f64| {
        runs.each_ref()
            .map(|runs| Spread::of(runs.iter().map(figure)))
    };
    let speeds = spreads(|run| run.documents_per_second);
    let cpus = spreads(|run| run.cpu_us);
    let flushes = spreads(|run| run.flushes_per_second);
    let commits = spreads(|run| run.commit_bytes);
    format!(
        "| {} | {} ms | {} | {} | {:.2} | {} µs | {} µs | {:.2} | {:.0} / {:.0} | {:.1} / {:.1} |",
        case.partitions,
        case.latency.as_millis(),
        speeds[0].text(),
        speeds[1].text(),
        speeds[1].median / speeds[0].median,
        cpus[0].text(),
        cpus[1].text(),
        cpus[1].median / cpus[0].median,
        flushes[0].median,
        flushes[1].median,
        commits[0].median,
        commits[1].median,
    )
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        Self {
            least: values[0],
            median: values[values.len() / 2],
            most: values[values.len() - 1],
        }
    }

    fn text(&self) -> String {
        format!("{:.0} ({:.0} to {:.0})", self.median, self.least, self.most)
    }
}
