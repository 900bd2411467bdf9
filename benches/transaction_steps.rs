//! Where the time of a transaction goes, step by step, on a real Apache Kafka: two partitions of results and one commit record.
//!
//! Estimate before measuring: a round trip with an append takes 1 ms, with gzip and a busy machine 2 ms. The coordinator answers an end before
//! it has written the markers, and refuses to open the next transaction until it has: what follows at once is asked again after 0 to 4 ms, once
//! or twice. After 50 ms, the pause that `processing.commit_interval_ms` makes, the markers are long written. So the first append takes 5 ms
//! right behind an end and 3 ms after a pause; a commit record that goes out behind the results takes 3 ms more than one that goes with them.
//!
//! `REAL_KAFKA_TOOLS` is as for `tests/real_kafka.rs`. `STEPS_PORT` is the first of six ports for the broker (default 25100).

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

use kafka_llm_processor::kafka::wire::{Cluster, NewTopic, WireSink};
use kafka_llm_processor::kafka::{Batch, End, KafkaConfig, PartitionSink, Sink};
use kafka_llm_processor::types::{Record, TopicPartition};
use tokio::time::{Instant, sleep};

use support::kafka::{Broker, tools};

/// The listeners take this and the next five; the controller is among them. `STEPS_PORT` is another.
const PORT: u16 = 25_100;
const TRANSACTIONS: usize = 100;
const PAUSES: [Duration; 2] = [Duration::ZERO, Duration::from_millis(50)];
const DOCUMENTS: usize = 32;

/// Whether the commit record goes out with the results or behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commit {
    With,
    Behind,
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let Some(tools) = tools() else {
        return;
    };
    let port = std::env::var("STEPS_PORT").map_or(PORT, |port| port.parse().expect("a port"));
    let broker = Broker::start(&tools, port).await;
    let cluster = Cluster::new(&KafkaConfig {
        brokers: broker.address(),
        ..KafkaConfig::default()
    });
    for (name, partitions) in [("results", 2), ("commits", 1)] {
        let topic = NewTopic {
            name: name.to_owned(),
            partitions,
            replication_factor: -1,
            configs: BTreeMap::new(),
        };
        cluster.create_topic(&topic).await.expect("created");
    }
    println!(
        "| commit record | pause before | first append | second append | the first append again | end | whole transaction |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for commit in [Commit::Behind, Commit::With] {
        for pause in PAUSES {
            let input = TopicPartition::new(format!("input-{commit:?}-{}", pause.as_millis()), 0);
            let sink = WireSink::transactional(cluster.clone(), "steps");
            let mut sink = sink.take_over(&input).await.expect("taken over");
            let mut steps: [Vec<Duration>; 4] = Default::default();
            for _ in 0..TRANSACTIONS {
                sleep(pause).await;
                for (step, took) in steps.iter_mut().zip(transaction(&mut *sink, commit).await) {
                    step.push(took);
                }
            }
            println!("{}", row(commit, pause, steps));
        }
    }
}

/// What the first append took, the second, the first again, and the end.
async fn transaction(sink: &mut dyn PartitionSink, commit: Commit) -> [Duration; 4] {
    let mut first = vec![batch("results", 0), batch("results", 1)];
    let mut second = vec![batch("commits", 0)];
    second[0].records.truncate(1);
    if commit == Commit::With {
        first.append(&mut second);
    }
    let mut took = [Duration::ZERO; 4];
    sink.begin().await.expect("begun");
    for (took, batches) in took.iter_mut().zip([&first, &second, &first]) {
        let began = Instant::now();
        if !batches.is_empty() {
            let outcomes = sink.append(batches).await;
            outcomes.into_iter().for_each(|o| o.expect("appended"));
            *took = began.elapsed();
        }
    }
    let began = Instant::now();
    sink.end(End::Commit).await.expect("committed");
    took[3] = began.elapsed();
    took
}

fn batch(topic: &str, partition: i32) -> Batch {
    let record = |number: usize| Record {
        value: Some(format!("{number:04} ").repeat(200).into()),
        ..Record::default()
    };
    Batch {
        to: TopicPartition::new(topic, partition),
        records: (0..DOCUMENTS).map(record).collect(),
    }
}

/// Medians, and the 95th percentile of the whole; the repeated append, which no flush makes, is not in the whole.
fn row(commit: Commit, pause: Duration, steps: [Vec<Duration>; 4]) -> String {
    let mut whole: Vec<_> = (0..TRANSACTIONS)
        .map(|turn| steps[0][turn] + steps[1][turn] + steps[3][turn])
        .collect();
    whole.sort();
    let [first, second, again, end] = steps.map(|mut step| {
        step.sort();
        millis(step[TRANSACTIONS / 2])
    });
    let (median, late) = (whole[TRANSACTIONS / 2], whole[TRANSACTIONS * 95 / 100]);
    format!(
        "| {commit:?} | {} ms | {first} | {second} | {again} | {end} | {} (95 %: {}) |",
        pause.as_millis(),
        millis(median),
        millis(late),
    )
}

fn millis(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}
