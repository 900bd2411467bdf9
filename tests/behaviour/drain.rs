//! A stop finishes what is in flight, commits it, and takes no longer than it may.

use std::time::Duration;

use kafka_llm_processor::app::RunEnd;
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, VllmConfig};
use tokio::time::Instant;

use crate::harness::{World, eventually, plain};

#[tokio::test]
async fn what_is_in_flight_is_finished_and_committed() {
    let latency = Latency::fixed(Duration::from_millis(200));
    let world = World::with_vllm(
        2,
        VllmConfig {
            latency,
            ..VllmConfig::default()
        },
    )
    .await;
    world.produce(0..50, plain);
    let running = world.start(&["llm.concurrency=8"]);
    eventually("calls run", || world.vllm.running() == 8).await;
    let (end, summary) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    assert_eq!(end.exit_code(), 0);
    let written = world.results().len();
    assert_eq!(summary.totals.processed, u64::try_from(written).unwrap());
    assert!(
        (8..50).contains(&written),
        "{written} results: those in flight, and no new ones"
    );
    assert_eq!(world.vllm.running(), 0);
    let committed: i64 = (0..2)
        .map(|partition| world.commit_offset(partition).unwrap())
        .sum();
    assert_eq!(
        usize::try_from(committed).unwrap(),
        written,
        "in input order all that is written is committed"
    );

    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert!(
        world.results().values().all(|results| results.len() == 1),
        "nothing is done twice"
    );
}

#[tokio::test]
async fn the_drain_deadline_cuts_what_does_not_end() {
    let world = World::new(1).await;
    world.produce(0..3, plain);
    world
        .vllm
        .faults()
        .push(Fault::new(Action::HangForEver).on_prompt("Document 1 "));
    let running = world.start(&["pipeline.drain_timeout=300ms", "pipeline.order=completion"]);
    eventually("the others are committed", || {
        world
            .commits(0)
            .last()
            .is_some_and(|commit| commit["done"] == serde_json::json!([[2, 3]]))
    })
    .await;
    let began = Instant::now();
    let (end, _) = running.drain().await;
    assert!(
        matches!(end, RunEnd::DeadlinePassed { partitions: 1 }),
        "{end:?}"
    );
    assert_eq!(end.exit_code(), 2);
    assert!(began.elapsed() < Duration::from_secs(5));
}

/// Documents that wait for a server that is away are given back at once: they are asked again after the restart.
#[tokio::test]
async fn a_drain_does_not_wait_for_an_outage() {
    let world = World::new(1).await;
    world.vllm.stop_listener().await;
    world.produce(0..5, plain);
    let running = world.start(&[]);
    eventually("the outage is noticed", || running.hold("llm").is_some()).await;
    let began = Instant::now();
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
    world.vllm.start_listener().await.unwrap();
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 5);
}

#[tokio::test]
async fn a_stop_before_kafka_is_up_ends_at_once() {
    let world = World::new(1).await;
    world.broker.stop_listener().await;
    let running = world.start(&[]);
    eventually("the wait is told", || running.hold("kafka").is_some()).await;
    let reason = running.hold("kafka").unwrap();
    assert!(reason.contains("kafka.brokers"), "{reason}");
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
}
