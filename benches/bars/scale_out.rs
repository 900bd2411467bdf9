//! Two processes that share the partitions of a topic, beside one that has them all.

use std::time::Duration;

use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use tokio::time::Instant;

use super::support::processor::Processor;
use super::table::{Bar, Row, Table};
use super::{Bench, documents};

const DOCUMENTS: usize = 6_000;
const DOCUMENT_BYTES: usize = 1_024;
const PARTITIONS: i32 = 16;
const LATENCY: Duration = Duration::from_millis(50);
/// Calls in flight of each process.
const AT_ONCE: usize = 32;
/// The speed is taken between these shares of the documents: without the start, and while both have work.
const FROM_TENTH: usize = 2;
const TO_TENTH: usize = 8;
const RUN_WITHIN: Duration = Duration::from_secs(120);

pub(crate) async fn run(bench: &Bench, table: &mut Table) {
    for driver in &bench.drivers {
        let mut runs = Vec::new();
        for round in 0..bench.rounds {
            let one = speed(bench, driver, 1, round).await;
            let two = speed(bench, driver, 2, round).await;
            runs.push(two / one);
        }
        table.add(Row {
            what: "two processes over one, 50 ms, 32 in flight each, 16 partitions".to_owned(),
            driver: driver.clone(),
            guarantee: "at least once".to_owned(),
            unit: "times the documents/s",
            runs,
            disturbed: 0,
            bar: Some(Bar::AtLeast(1.9)),
        });
    }
}

/// Documents a second.
async fn speed(bench: &Bench, driver: &str, processes: usize, round: usize) -> f64 {
    let config = VllmConfig {
        latency: Latency::fixed(LATENCY),
        ..VllmConfig::default()
    };
    let vllm = Vllm::start(config).await.expect("the simulated vLLM");
    let group = format!("shared-{driver}-{processes}-{round}");
    documents::create(&bench.cluster, &group, PARTITIONS).await;
    let mut running = Vec::new();
    for _ in 0..processes {
        let arguments = [
            format!("--set=kafka.brokers={}", bench.broker.address()),
            format!("--group-id={group}"),
            format!("--input-topic={group}"),
            format!("--output-topic={group}-results"),
            format!("--llm-url={}", vllm.url()),
            format!("--concurrency={AT_ONCE}"),
            format!("--set=kafka.driver={driver}"),
            "--set=input.assignment=group".to_owned(),
            "--set=admin.listen=127.0.0.1:0".to_owned(),
            "--set=log.file=off".to_owned(),
        ];
        running.push(Processor::start(&arguments, &[]));
    }
    // Documents come when the partitions are dealt out: how a group comes together is another question.
    for processor in &running {
        let words = ["all partitions are taken over"];
        processor.line(&words, RUN_WITHIN).await;
    }
    documents::write(
        &bench.cluster,
        &group,
        PARTITIONS,
        DOCUMENTS,
        DOCUMENT_BYTES,
    )
    .await;
    let mut times = Vec::new();
    for tenth in [FROM_TENTH, TO_TENTH] {
        let enough = u64::try_from(DOCUMENTS / 10 * tenth).expect("a count");
        let reached = vllm
            .wait_until(RUN_WITHIN, |vllm| vllm.calls() >= enough)
            .await;
        assert!(reached, "{} calls", vllm.calls());
        times.push(Instant::now());
    }
    for processor in running {
        processor.drain(RUN_WITHIN).await;
    }
    let documents =
        f64::from(u32::try_from(DOCUMENTS / 10 * (TO_TENTH - FROM_TENTH)).expect("a count"));
    documents / (times[1] - times[0]).as_secs_f64()
}
