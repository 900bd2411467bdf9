//! A partition has one owner: the newer claim wins, the older stops and commits nothing more.

use std::time::Duration;

use kafka_llm_processor::app::RunEnd;
use kafka_llm_processor::sandbox::vllm::{Latency, VllmConfig};

use crate::harness::{World, eventually, plain};

#[tokio::test]
async fn an_instance_that_is_overruled_stops_and_says_so() {
    let latency = Latency::fixed(Duration::from_millis(20));
    let world = World::with_vllm(
        1,
        VllmConfig {
            latency,
            ..VllmConfig::default()
        },
    )
    .await;
    world.produce(0..2_000, plain);
    let older = world.start(&["llm.concurrency=2"]);
    eventually("the first works", || world.commits(0).len() > 3).await;
    let newer = world.start(&["llm.concurrency=64"]);
    let (end, _) = older.end().await;
    let RunEnd::Fenced(detail) = &end else {
        panic!("{end:?}")
    };
    assert!(
        detail.contains("has taken over") && detail.contains("owner epoch 2"),
        "{detail}"
    );
    assert_eq!(end.exit_code(), 3);
    eventually("the newer finishes", || {
        world
            .commits(0)
            .last()
            .is_some_and(|commit| commit["owner_epoch"] == 2 && commit["next_offset"] == 2_000)
    })
    .await;
    newer.drain().await;
    assert_eq!(world.results().len(), 2_000);
}

/// Each could win some partitions of the other's: one must win them all, and work.
#[tokio::test]
async fn of_instances_that_start_together_one_goes_on() {
    for _ in 0..5 {
        let world = World::new(8).await;
        world.produce(0..80, plain);
        let mut instances = Vec::new();
        for _ in 0..3 {
            instances.push(world.start(&[]));
        }
        eventually("everything is committed", || world.is_all_committed()).await;
        let mut codes = Vec::new();
        for instance in instances {
            instance.begin_drain();
            codes.push(instance.end().await.0.exit_code());
        }
        assert!(codes.contains(&0), "one was not overruled: {codes:?}");
        assert_eq!(world.results().len(), 80);
    }
}
