//! Exactly once: the broker refuses whatever a former owner still writes, and an owner that nobody has overruled goes on.

use std::time::Duration;

use kafka_llm_processor::app::RunEnd;
use kafka_llm_processor::sandbox::vllm::{Latency, VllmConfig};
use kafka_protocol::messages::ApiKey;

use crate::harness::{COMMITS, Flavour, Running, World, eventually, plain};

/// Nothing but transactions fences.
fn no_transactions() -> bool {
    Flavour::current() != Flavour::ExactlyOnce
}

async fn slow_world(partitions: i32) -> World {
    let vllm = VllmConfig {
        latency: Latency::fixed(Duration::from_millis(20)),
        ..VllmConfig::default()
    };
    World::with_vllm(partitions, vllm).await
}

/// A service in the middle of 200 documents on two partitions.
async fn at_work() -> (World, Running) {
    let world = slow_world(2).await;
    world.produce(0..200, plain);
    let running = world.start(&["llm.concurrency=4"]);
    eventually("it works", || world.commits(0).len() > 3).await;
    (world, running)
}

/// The end of its transaction is on its way when the process is stopped; it comes in, and the process goes on, after another has taken over.
#[tokio::test]
async fn a_process_that_was_stopped_inside_a_transaction_is_fenced() {
    if no_transactions() {
        return;
    }
    let world = slow_world(1).await;
    world.produce(0..200, plain);
    let (older, freezer) = Running::start_apart(world.settings(&["llm.concurrency=4"]));
    eventually("it works", || world.commits(0).len() > 3).await;
    let end = world.broker.faults().on(ApiKey::EndTxn);
    let end = end.transactional_id("test/docs/0").hold();
    end.wait_for_hits(1).await;
    let frozen = freezer.freeze().await;
    let written = world.results().len();
    let newer = world.start(&["llm.concurrency=4"]);
    eventually("the newer works", || world.results().len() > written + 10).await;
    end.release();
    drop(frozen);
    let (end, _) = older.end().await;
    let RunEnd::Fenced(detail) = &end else {
        panic!("{end:?}")
    };
    assert!(detail.contains("has taken over"), "{detail}");
    assert_eq!(end.exit_code(), 3);
    eventually("everything is committed", || world.is_all_committed()).await;
    newer.drain().await;
    world.assert_all_have_results(200);
}

/// The broker ends a transaction that is open for too long and fences its writer; nobody else wants the partition. What is in memory is kept:
/// no document is asked about twice.
#[tokio::test]
async fn a_writer_whose_transaction_timed_out_goes_on() {
    if no_transactions() {
        return;
    }
    let (world, running) = at_work().await;
    let end = world.broker.faults().on(ApiKey::EndTxn);
    let end = end.transactional_id("test/docs/0").keep().hold();
    end.wait_for_hits(1).await;
    let is_open = || {
        let open = world.broker.open_transactions();
        open.iter()
            .any(|open| open.transactional_id == "test/docs/0")
    };
    assert!(is_open());
    eventually("the transaction times out", || !is_open()).await;
    end.remove();
    eventually("everything is committed", || world.is_all_committed()).await;
    assert_eq!(running.partitions(), [(0, 1), (1, 1)].into());
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    assert_eq!(world.vllm.calls(), 200);
    world.assert_all_have_results(200);
}

/// Kafka forgets a transactional id that was not used for a week.
#[tokio::test]
async fn a_writer_that_the_broker_has_forgotten_takes_over_again() {
    if no_transactions() {
        return;
    }
    let (world, running) = at_work().await;
    assert!(world.broker.expire_transactional_id("test/docs/0"));
    eventually("everything is committed", || world.is_all_committed()).await;
    assert_eq!(running.partitions(), [(0, 2), (1, 1)].into());
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    world.assert_all_have_results(200);
}

/// Two partitions commit to one; behind the open transaction of one lie the commits of the other.
#[tokio::test]
async fn an_open_transaction_of_another_partition_hides_no_commit_and_blocks_no_recovery() {
    if no_transactions() {
        return;
    }
    let world = slow_world(2).await;
    let compacted = [("cleanup.policy", "compact")];
    world.broker.create_topic(COMMITS, 1, &compacted).unwrap();
    world.produce(0..20, plain);
    let end = world.broker.faults().on(ApiKey::EndTxn);
    // The claim passes.
    let end = end.transactional_id("test/docs/0").after(1).keep().hold();
    let killed = world.start(&["llm.concurrency=4"]);
    end.wait_for_hits(1).await;
    let is_through = || {
        let partitions = killed.board.snapshot().partitions;
        let mut partitions = partitions.iter();
        partitions.any(|status| status.partition == 1 && status.commit_offset.value() == 10)
    };
    eventually("the other partition is through", is_through).await;
    killed.kill().await;
    let open = world.broker.open_transactions();
    assert_eq!(open.len(), 1, "{open:?}");
    assert_eq!(open[0].transactional_id, "test/docs/0");
    assert!(
        open[0]
            .partitions
            .iter()
            .any(|found| &*found.topic == COMMITS),
        "{open:?}"
    );
    end.remove();
    let calls = world.vllm.calls();

    let static_share = |share| ["input.assignment=static", share];
    let other = world.start(&static_share("input.static_partitions=1"));
    eventually("the other partition is taken over", || {
        other.partitions() == [(1, 2)].into()
    })
    .await;
    world.produce(20..24, plain);
    eventually("and worked on", || world.commit_offset(1) == Some(12)).await;
    assert_eq!(world.vllm.calls(), calls + 2, "nothing was done again");
    let first = world.start(&static_share("input.static_partitions=0"));
    eventually("everything is committed", || world.is_all_committed()).await;
    for running in [first, other] {
        running.drain().await;
    }
    world.assert_all_have_results(24);
}
