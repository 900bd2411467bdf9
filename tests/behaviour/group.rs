//! `input.assignment = group`: Kafka's coordinator deals the partitions, and whatever happens to a member, each document is done.

use std::collections::BTreeSet;
use std::time::Duration;

use kafka_llm_processor::app::RunEnd;
use kafka_llm_processor::sandbox::broker::{BrokerConfig, GroupState, GroupView};
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, VllmConfig};
use kafka_llm_processor::telemetry::status::RunState;
use tokio::time::Instant;

use crate::harness::{Flavour, GROUP, Running, World, eventually, plain};

/// rskafka speaks no group protocol: there is nothing to test.
fn no_groups() -> bool {
    Flavour::current() == Flavour::Rskafka
}

/// A sandbox whose broker lets sessions be short.
async fn world(partitions: i32, latency: Duration) -> World {
    let vllm = VllmConfig {
        latency: Latency::fixed(latency),
        ..VllmConfig::default()
    };
    let broker = BrokerConfig {
        group_session_timeout_min: Duration::from_millis(500),
        ..BrokerConfig::default()
    };
    World::with(partitions, vllm, broker).await
}

const IN_GROUP: &str = "input.assignment=group";
const SHORT_SESSION: [&str; 2] = ["kafka.session_timeout=2s", "kafka.heartbeat_interval=300ms"];

fn member(world: &World, set: &[&str]) -> Running {
    world.start(&with_group(set))
}

fn with_group<'a>(set: &[&'a str]) -> Vec<&'a str> {
    [&[IN_GROUP], set].concat()
}

impl World {
    fn group(&self) -> Option<GroupView> {
        self.broker.group(GROUP)
    }

    /// That many members share all partitions.
    fn is_shared_by(&self, members: usize) -> bool {
        let all = self.broker.partitions("docs").unwrap();
        self.group().is_some_and(|group| {
            let dealt = group.members.iter().flat_map(|member| &member.partitions);
            group.state == GroupState::Stable
                && group.members.len() == members
                && dealt.collect::<BTreeSet<_>>().len() == all
        })
    }

    /// That many members have an even part each.
    fn is_dealt_evenly_to(&self, members: usize) -> bool {
        let all = self.broker.partitions("docs").unwrap();
        let shares = all / members..=all.div_ceil(members);
        self.is_shared_by(members)
            && self.group().is_some_and(|group| {
                let mut counts = group.members.iter().map(|member| member.partitions.len());
                counts.all(|count| shares.contains(&count))
            })
    }
}

/// One joins, one is drained, one is killed, one is stopped and comes back, one starts again: all while documents flow.
#[tokio::test]
async fn whatever_happens_to_its_members_the_group_does_every_document() {
    if no_groups() {
        return;
    }
    let world = world(8, Duration::from_millis(10)).await;
    let set = [&SHORT_SESSION[..], &["llm.concurrency=4"]].concat();
    world.produce(0..160, plain);
    let drained = member(&world, &set);
    let killed = member(&world, &set);
    let (stopped, freezer) = Running::start_apart(world.settings(&with_group(&set)));
    eventually("three share", || world.is_dealt_evenly_to(3)).await;

    world.produce(160..320, plain);
    let joined = member(&world, &set);
    eventually("four share", || world.is_dealt_evenly_to(4)).await;
    eventually("the fourth works", || {
        joined.board.snapshot().totals.processed > 0
    })
    .await;

    world.produce(320..480, plain);
    let began = Instant::now();
    let (end, _) = drained.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    eventually("what was drained goes on", || world.is_shared_by(3)).await;
    assert!(began.elapsed() < Duration::from_secs(10));

    world.produce(480..640, plain);
    killed.kill().await;
    eventually("what was killed is counted out", || world.is_shared_by(2)).await;

    world.produce(640..800, plain);
    let frozen = freezer.freeze().await;
    eventually("what is stopped is counted out", || world.is_shared_by(1)).await;
    let again = member(&world, &set);
    eventually("one has come back", || world.is_dealt_evenly_to(2)).await;
    eventually("the work is done without it", || world.is_all_committed()).await;
    drop(frozen);
    eventually("it comes back", || world.is_dealt_evenly_to(3)).await;
    assert!(!stopped.is_over());

    world.produce(800..960, plain);
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("lag tools see it", || world.is_all_mirrored()).await;
    for running in [stopped, joined, again] {
        let (end, _) = running.drain().await;
        assert!(matches!(end, RunEnd::Drained), "{end:?}");
    }
    world.assert_all_have_results(960);
    assert!(world.is_all_mirrored(), "nobody sets the offsets back");
}

/// The old owner finishes what is in flight and commits it before the new one begins: no document is asked twice.
#[tokio::test]
async fn a_partition_changes_hands_without_a_repeat() {
    if no_groups() {
        return;
    }
    let world = world(4, Duration::from_millis(300)).await;
    let set = ["llm.concurrency=8"];
    world.produce(0..200, plain);
    let older = member(&world, &set);
    eventually("calls run", || world.vllm.running() == 8).await;
    let newer = member(&world, &set);
    eventually("two share", || world.is_dealt_evenly_to(2)).await;
    eventually("everything is committed", || world.is_all_committed()).await;
    assert!(newer.board.snapshot().totals.processed > 0);
    for running in [older, newer] {
        running.drain().await;
    }
    assert_eq!(world.results().len(), 200);
    world.assert_nothing_twice();
    assert_eq!(world.vllm.calls(), 200, "no call was made in vain");
}

#[tokio::test]
async fn a_document_that_takes_longer_than_the_session_keeps_its_partition() {
    if no_groups() {
        return;
    }
    let world = world(2, Duration::ZERO).await;
    world.produce(0..4, plain);
    let slow = Duration::from_secs(5);
    world
        .vllm
        .faults()
        .push(Fault::new(Action::Delay(slow)).on_prompt("Document 1 "));
    let first = member(&world, &SHORT_SESSION);
    eventually("it is taken up", || world.vllm.calls() == 4).await;
    let began = Instant::now();
    eventually("everything is committed", || world.is_all_committed()).await;
    assert!(began.elapsed() > Duration::from_secs(3), "it was slow");
    assert_eq!(first.partitions(), [(0, 1), (1, 1)].into());
    first.drain().await;
    assert_eq!(world.vllm.calls(), 4, "nothing was given to anybody else");
}

/// Of several partitions that change hands, one with a slow document does not keep back the others.
#[tokio::test]
async fn a_slow_document_keeps_back_its_own_partition_only() {
    if no_groups() {
        return;
    }
    let world = world(6, Duration::ZERO).await;
    // Whichever three are moved, some of them have a document that hangs, and some have none.
    for number in [1, 4] {
        let marker = format!("Document {number} ");
        let fault = Fault::new(Action::HangForEver).on_prompt(marker);
        world.vllm.faults().push(fault);
    }
    world.produce(0..6, plain);
    let older = member(&world, &["pipeline.drain_timeout=1h"]);
    let quick = [0, 2, 3, 5];
    eventually("the others are done", || {
        let is_done = |partition: &i32| world.commit_offset(*partition) == Some(1);
        quick.iter().all(is_done) && world.vllm.faults().pending() == 0
    })
    .await;
    let newer = member(&world, &[]);
    eventually("it has what is not held back", || {
        !newer.partitions().is_empty()
    })
    .await;
    let held = newer.partitions();
    assert!(held.len() < 3 && held.keys().all(|partition| quick.contains(partition)));
    older.kill().await;
    eventually("everything is committed", || world.is_all_committed()).await;
    newer.drain().await;
    world.assert_all_have_results(6);
}

/// The group must not wait for ever for a member that has to let go of a partition.
#[tokio::test]
async fn what_does_not_end_before_the_drain_timeout_is_done_by_the_next_owner() {
    if no_groups() {
        return;
    }
    let world = world(2, Duration::ZERO).await;
    for number in 0..2 {
        let marker = format!("Document {number} ");
        let fault = Fault::new(Action::HangForEver).on_prompt(marker);
        world.vllm.faults().push(fault);
    }
    world.produce(0..2, plain);
    let set = ["pipeline.drain_timeout=1s"];
    let older = member(&world, &set);
    eventually("both hang", || world.vllm.faults().pending() == 0).await;
    let newer = member(&world, &set);
    eventually("two share", || world.is_dealt_evenly_to(2)).await;
    eventually("the next owner has done it", || {
        newer.board.snapshot().totals.processed == 1
    })
    .await;
    assert_eq!(world.results().len(), 1);
    assert!(!older.is_over());
    let (end, _) = older.drain().await;
    assert!(
        matches!(end, RunEnd::DeadlinePassed { partitions: 1 }),
        "the other still hangs: {end:?}"
    );
    eventually("and that one too", || world.is_all_committed()).await;
    newer.drain().await;
    assert_eq!(world.results().len(), 2);
    world.assert_nothing_twice();
}

/// More members than partitions: those without wait for their turn, and are ready.
#[tokio::test]
async fn a_member_without_partitions_is_ready_and_steps_in() {
    if no_groups() {
        return;
    }
    let world = world(1, Duration::ZERO).await;
    let working = member(&world, &[]);
    eventually("the first works", || working.partitions().len() == 1).await;
    let waiting = member(&world, &[]);
    eventually("it is a member", || world.is_shared_by(2)).await;
    eventually("it is ready", || waiting.state() == RunState::Running).await;
    assert_eq!(waiting.partitions().len(), 0);
    assert!(waiting.board.holds().is_empty());
    working.drain().await;
    world.produce(0..3, plain);
    eventually("it steps in", || world.is_all_committed()).await;
    let (end, _) = waiting.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    world.assert_all_have_results(3);
}

/// `kafka.group_instance_id`: whoever comes back within the session finds its partitions, and nobody else is disturbed.
#[tokio::test]
async fn a_static_member_that_restarts_moves_no_partition() {
    if no_groups() {
        return;
    }
    let world = world(4, Duration::ZERO).await;
    let (one, two) = (
        ["kafka.group_instance_id=i1"],
        ["kafka.group_instance_id=i2"],
    );
    let first = member(&world, &one);
    let second = member(&world, &two);
    eventually("two share", || world.is_dealt_evenly_to(2)).await;
    eventually("both work", || {
        first.partitions().len() == 2 && second.partitions().len() == 2
    })
    .await;
    let (before, untouched) = (first.partitions(), second.partitions());
    first.drain().await;
    world.produce(0..8, plain);
    let first = member(&world, &one);
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("it shows its partitions", || first.partitions().len() == 2).await;
    assert!(first.partitions().keys().eq(before.keys()));
    assert_eq!(second.partitions(), untouched, "never taken over anew");
    for running in [first, second] {
        running.drain().await;
    }
    world.assert_nothing_twice();
    world.assert_all_have_results(8);
}

#[tokio::test]
async fn of_two_with_one_instance_id_the_older_ends_and_says_so() {
    if no_groups() {
        return;
    }
    let world = world(2, Duration::from_millis(20)).await;
    world.produce(0..300, plain);
    let set = ["kafka.group_instance_id=same", "llm.concurrency=4"];
    let set = [&SHORT_SESSION[..], &set].concat();
    let older = member(&world, &set);
    eventually("it works", || world.results().len() > 10).await;
    let newer = member(&world, &set);
    let (end, _) = older.end().await;
    let RunEnd::Fenced(detail) = &end else {
        panic!("{end:?}")
    };
    assert_eq!(end.exit_code(), 3);
    assert!(
        detail.contains("kafka.group_instance_id") && detail.contains("`same`"),
        "{detail}"
    );
    eventually("everything is committed", || world.is_all_committed()).await;
    newer.drain().await;
    world.assert_all_have_results(300);
}
