//! All the bars in one table: how fast, how small, how soon back, on a real Apache Kafka.
//!
//! Estimates before measuring, for 10,000 documents of 1 KiB on two cores that broker, stub and harness share with the processor:
//!
//! | row | arithmetic | bound |
//! | --- | --- | --- |
//! | `in_process` | 10,000 × 2.5 ms ÷ 100 | 0.25 s |
//! | `w1`: 0–5 ms through HTTP, 100 in flight | the same; a call costs this machine 0.2 ms of its two cores, ours and the stub's | 0.25 s, on two cores 1.0 s |
//! | `w2`: 50 ms, 256 in flight | 10,000 × 50 ms ÷ 256 | 1.95 s |
//! | `w2_64`: 50 ms, 64 in flight | 10,000 × 50 ms ÷ 64 | 7.81 s |
//! | `w3`: no latency | reqwest 20 µs, fetch 5 µs, append with gzip 15 µs a document, alone | 0.4 CPU s |
//! | `restart` | spawn 50 ms, recovery 100 ms, a call 50 ms | 0.2 s |
//! | `scale_out` | twice the calls in flight | 2.0 |
//! | `partitions`: 1,000 | a claim each, 32 at a time, 5 ms | 0.2 s |
//! | `memory` | see docs/performance.md | 32 MiB |
//!
//! `REAL_KAFKA_TOOLS` and `KLP_TEST_BINARY` are as for `tests/real_kafka.rs`. `BENCH_PEERS` names the folder of `measure.py`, its `venv` and its
//! `bin/llm-stub`, for the rows that go through HTTP and for the alternatives. `BARS` names rows, comma separated, or `all`; `BARS_ROUNDS`
//! (default 5) runs are made of each, `BARS_DRIVER` leaves one driver, `BARS_PORT` moves the broker. The table goes to standard output, and with
//! every run to `target/bars.json`. A wall is judged only where others used less than a tenth of the machine; other runs are counted as
//! disturbed and left out.

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

mod documents;
mod in_process;
mod measure;
mod memory;
mod partitions;
mod parts;
#[path = "../support/plain_client.rs"]
mod plain_client;
mod scale_out;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;

use kafka_llm_processor::kafka::KafkaConfig;
use kafka_llm_processor::kafka::wire::Cluster;

use support::kafka::{Broker, tools};
use table::Table;

/// The listeners take this and the next five.
const PORT: u16 = 26_100;

/// What every row needs.
struct Bench {
    broker: Broker,
    cluster: Cluster,
    rounds: usize,
    drivers: Vec<String>,
}

impl Bench {
    fn config(&self) -> KafkaConfig {
        KafkaConfig {
            brokers: self.broker.address(),
            ..KafkaConfig::default()
        }
    }
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let Some(tools) = tools() else {
        return;
    };
    let rows = std::env::var("BARS").unwrap_or_else(|_| "all".to_owned());
    let is_asked = |row: &str| rows == "all" || rows.split(',').any(|asked| asked == row);
    let port = number("BARS_PORT").map_or(PORT, |port| u16::try_from(port).expect("a port"));
    let broker = Broker::start(&tools, port).await;
    let drivers = std::env::var("BARS_DRIVER").unwrap_or_else(|_| "rskafka,wire".to_owned());
    let mut bench = Bench {
        cluster: Cluster::new(&KafkaConfig {
            brokers: broker.address(),
            ..KafkaConfig::default()
        }),
        broker,
        rounds: number("BARS_ROUNDS").unwrap_or(5),
        drivers: drivers.split(',').map(str::to_owned).collect(),
    };
    let mut table = Table::default();
    if is_asked("in_process") {
        in_process::run(&bench, &mut table).await;
    }
    if let Some(measure) = measure::Measure::find() {
        for row in measure::ROWS.iter().filter(|row| is_asked(row.name)) {
            measure.run(&bench, row, &mut table).await;
        }
        if is_asked("w3") {
            parts::run(&bench, &measure, &mut table).await;
        }
        if rows == "peers" {
            measure.compare(&bench, &mut table).await;
        }
    }
    if is_asked("partitions") {
        partitions::run(&bench, &mut table).await;
    }
    if is_asked("scale_out") {
        scale_out::run(&bench, &mut table).await;
    }
    if is_asked("memory") {
        memory::run(&mut bench, &mut table).await;
    }
    table.print();
}

/// The number that an environment variable holds.
fn number(name: &str) -> Option<usize> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}: {error}")),
    )
}
