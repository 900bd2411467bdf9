//! A partition has one owner: the newer claim wins, the older stops and commits nothing more.

use std::time::Duration;

use kafka_llm_processor::app::RunEnd;
use kafka_llm_processor::sandbox::vllm::{Latency, VllmConfig};
use kafka_llm_processor::telemetry::status::RunState;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::ApiKey;

use tokio::time::Instant;

use crate::harness::{Flavour, INPUT, World, eventually, plain};

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
    world.assert_all_have_results(2_000);
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
        world.assert_all_have_results(80);
    }
}

#[tokio::test]
async fn ordinals_share_the_partitions_and_nothing_is_done_twice() {
    let world = World::new(5).await;
    world.produce(0..100, plain);
    let start = |ordinal: &str| {
        let ordinal = format!("input.static_ordinal={ordinal}");
        world.start(&[
            "input.assignment=static",
            "input.static_count=2",
            ordinal.as_str(),
        ])
    };
    let (even, odd) = (start("0"), start("1"));
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("each shows its own", || {
        even.partitions().keys().eq(&[0, 2, 4]) && odd.partitions().keys().eq(&[1, 3])
    })
    .await;
    for running in [even, odd] {
        let (end, _) = running.drain().await;
        assert!(matches!(end, RunEnd::Drained), "{end:?}");
    }
    assert_eq!(world.results().len(), 100);
    world.assert_nothing_twice();
}

#[tokio::test]
async fn a_list_with_a_partition_that_does_not_exist_ends_the_start() {
    let world = World::new(4).await;
    let running = world.start(&["input.assignment=static", "input.static_partitions=2-4"]);
    let (end, _) = running.end().await;
    assert_eq!(end.exit_code(), 1);
    let RunEnd::Failed(error) = &end else {
        panic!("{end:?}")
    };
    let text = error.to_string();
    assert!(
        text.contains("input.static_partitions")
            && text.contains("partition 4")
            && text.contains("`docs` has 4 partitions"),
        "{text}"
    );
    assert!(world.commits(2).is_empty(), "nothing is taken over");
}

/// Two lists that overlap: the newer has the partition of both, the older ends as a whole, and says which it was.
#[tokio::test]
async fn of_instances_with_overlapping_lists_the_older_ends_and_says_so() {
    let latency = Latency::fixed(Duration::from_millis(20));
    let vllm = VllmConfig {
        latency,
        ..VllmConfig::default()
    };
    let world = World::with_vllm(3, vllm).await;
    world.produce(0..600, plain);
    let start = |list: &str| {
        let list = format!("input.static_partitions={list}");
        world.start(&[
            "input.assignment=static",
            "llm.concurrency=4",
            list.as_str(),
        ])
    };
    let older = start("0,1");
    eventually("the first works", || world.commits(1).len() > 3).await;
    let began = Instant::now();
    let newer = start("1,2");
    let (end, _) = older.end().await;
    assert!(began.elapsed() < Duration::from_secs(15));
    let RunEnd::Fenced(detail) = &end else {
        panic!("{end:?}")
    };
    assert_eq!(end.exit_code(), 3);
    assert!(
        detail.contains("has taken over docs/1 with owner epoch 2"),
        "{detail}"
    );
    let rest = start("0");
    eventually("everything is committed", || world.is_all_committed()).await;
    for running in [newer, rest] {
        running.drain().await;
    }
    world.assert_all_have_results(600);
}

/// Nothing fences across guarantees: an instance with another one waits until nobody works on the partition any more.
#[tokio::test]
async fn an_instance_with_another_guarantee_waits_for_the_one_that_works() {
    if Flavour::current() == Flavour::Rskafka {
        return;
    }
    let guarantees = ["at_least_once", "exactly_once"];
    let set = guarantees.map(|guarantee| format!("processing.guarantee={guarantee}"));
    for (older, newer) in [(0, 1), (1, 0)] {
        let latency = Latency::fixed(Duration::from_millis(20));
        let vllm = VllmConfig {
            latency,
            ..VllmConfig::default()
        };
        let world = World::with_vllm(1, vllm).await;
        world.produce(0..200, plain);
        let set = |index: usize| {
            [
                "kafka.driver=wire",
                "llm.concurrency=4",
                set[index].as_str(),
            ]
        };
        let working = world.start(&set(older));
        eventually("the first works", || world.commits(0).len() > 3).await;
        let waiting = world.start(&set(newer));
        eventually("the other waits", || !waiting.board.holds().is_empty()).await;
        let reason = waiting.board.holds()[0].reason.clone();
        assert!(
            reason.contains(&format!("processing.guarantee = {}", guarantees[older])),
            "{reason}"
        );
        eventually("everything is committed", || world.is_all_committed()).await;
        assert!(!working.is_over(), "it is left alone");
        assert_eq!(working.partitions(), [(0, 1)].into());
        working.drain().await;
        assert!(
            !waiting.board.holds().is_empty(),
            "it may have crashed only"
        );
        world.commit_again_as_if_long_ago(0);
        world.produce(200..220, plain);
        eventually("the other takes over", || world.is_all_committed()).await;
        eventually("it waits no more", || waiting.board.holds().is_empty()).await;
        waiting.drain().await;
        assert_eq!(world.results().len(), 220);
        world.assert_nothing_twice();
    }
}

/// The end of the log was looked at before the former owner was fenced, which has committed beyond it meanwhile: nothing was cut off.
#[tokio::test]
async fn what_the_former_owner_commits_until_it_is_fenced_is_no_loss() {
    let set = [
        "kafka.driver=wire",
        "processing.guarantee=exactly_once",
        "input.assignment=static",
        "input.static_partitions=0",
        "input.on_data_loss=resume",
    ];
    let world = World::new(1).await;
    world.produce(0..10, plain);
    let older = world.start(&set);
    eventually("everything is committed", || world.is_all_committed()).await;
    let fencing = world
        .broker
        .faults()
        .on(ApiKey::InitProducerId)
        .transactional_id("test/docs/0")
        .hold();
    let newer = world.start(&set);
    fencing.wait_for_hits(1).await;
    world.produce(10..30, plain);
    eventually("the older goes on", || world.is_all_committed()).await;
    fencing.release();
    eventually("the newer has it", || {
        world.commits(0).last().unwrap()["owner_epoch"] == 2
    })
    .await;
    world.produce(30..35, plain);
    assert_eq!(older.end().await.0.exit_code(), 3);
    eventually("everything is committed", || world.is_all_committed()).await;
    newer.drain().await;
    let results = world.results();
    assert_eq!(results.len(), 35);
    assert!(results.values().all(|results| results.len() == 1));
}

/// The next member has seen the old topic when it started, and the commit is for the new one: that is no loss.
#[tokio::test]
async fn a_topic_created_again_under_another_member_goes_on_where_that_has_committed() {
    let set = [
        "kafka.driver=wire",
        "input.assignment=group",
        "input.on_data_loss=resume",
    ];
    let world = World::new(1).await;
    world.produce(0..10, plain);
    let first = world.start(&set);
    eventually("everything is committed", || world.is_all_committed()).await;
    let joining = world.broker.faults().on(ApiKey::JoinGroup).watch();
    let next = world.start(&set);
    joining.wait_for_hits(1).await;
    world.broker.delete_topic(INPUT).unwrap();
    world.broker.create_topic(INPUT, 1, &[]).unwrap();
    world.produce(0..3, plain);
    eventually("the new topic is read", || {
        world.commit_offset(0) == Some(3)
    })
    .await;
    let epoch = world.commits(0).last().unwrap()["owner_epoch"].as_u64();
    first.drain().await;
    eventually("the next member has it", || {
        world.commits(0).last().unwrap()["owner_epoch"].as_u64() > epoch
    })
    .await;
    world.produce(3..8, plain);
    eventually("what comes later too", || world.is_all_committed()).await;
    next.drain().await;
    let results = world.results();
    assert!((0..3).all(|offset| results[&(0, offset)].len() == 2));
}

#[tokio::test]
async fn an_instance_without_a_partition_is_ready_and_drains() {
    let world = World::new(1).await;
    let set = [
        "input.assignment=static",
        "input.static_ordinal=1",
        "input.static_count=2",
    ];
    let running = world.start(&set);
    eventually("it runs", || {
        running.board.snapshot().state == RunState::Running
    })
    .await;
    assert_eq!(running.drain().await.0.exit_code(), 0);
}

#[tokio::test]
async fn a_broker_that_allows_no_transaction_of_ours_names_its_setting() {
    let world = World::new(1).await;
    let refused = world
        .broker
        .faults()
        .on(ApiKey::InitProducerId)
        .transactional_id("test/(group)/0")
        .keep()
        .answer(ResponseError::InvalidTransactionTimeout);
    let running = world.start(&["kafka.driver=wire", "processing.guarantee=exactly_once"]);
    eventually("the setting is named", || {
        running
            .hold("kafka")
            .is_some_and(|reason| reason.contains("transaction.max.timeout.ms"))
    })
    .await;
    refused.remove();
    eventually("it goes on", || !world.commits(0).is_empty()).await;
    running.drain().await;
}
