//! `offsets`: where a partition stands is shown, and it goes on where an operator says; an owner that is alive is asked first.

use std::time::Duration;

use clap::Parser as _;
use jiff::Timestamp;
use kafka_llm_processor::app::RunEnd;
use kafka_llm_processor::cli::args::{Cli, Command};
use kafka_llm_processor::cli::offsets::{self, OffsetsError};
use kafka_llm_processor::cli::output::Terminal;
use kafka_llm_processor::sandbox::vllm::{Latency, VllmConfig};
use kafka_llm_processor::types::Record;
use kafka_protocol::messages::ApiKey;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::harness::{COMMITS, Flavour, GROUP, INPUT, World, eventually, json, plain};

impl World {
    /// Runs `offsets` with these arguments; what it printed.
    async fn offsets(&self, arguments: &str) -> (Result<(), OffsetsError>, String) {
        let arguments = ["klp", "offsets"].into_iter().chain(arguments.split(' '));
        let Some(Command::Offsets(args)) = Cli::try_parse_from(arguments).unwrap().command else {
            panic!("another command");
        };
        let settings = self.settings(&[]);
        let (mut out, stop) = (Vec::new(), CancellationToken::new());
        let terminal = Terminal::plain();
        let end = offsets::run(&args, &settings, &terminal, &mut out, &stop).await;
        (end, String::from_utf8(out).unwrap())
    }

    async fn reset(&self, arguments: &str) -> String {
        let (end, out) = self.offsets(&format!("reset --execute {arguments}")).await;
        end.unwrap();
        out
    }

    async fn shown(&self) -> Vec<Value> {
        let (end, out) = self.offsets("show --json").await;
        end.unwrap();
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["group_id"], GROUP);
        report["partitions"].as_array().unwrap().clone()
    }

    /// Works on everything, and stops; its commits are old.
    async fn work_long_ago(&self, set: &[&str]) {
        let running = self.start(set);
        eventually("everything is committed", || self.is_all_committed()).await;
        running.drain().await;
        let partitions = self.broker.partitions(INPUT).unwrap();
        for partition in 0..i32::try_from(partitions).unwrap() {
            self.commit_again_as_if_long_ago(partition);
        }
    }

    /// How many results each offset of partition 0 has.
    fn results_of(&self, offsets: std::ops::Range<i64>) -> Vec<usize> {
        let results = self.results();
        let count = |offset| results.get(&(0, offset)).map_or(0, Vec::len);
        offsets.map(count).collect()
    }
}

async fn slow_world(partitions: i32) -> World {
    let vllm = VllmConfig {
        latency: Latency::fixed(Duration::from_millis(20)),
        ..VllmConfig::default()
    };
    World::with_vllm(partitions, vllm).await
}

#[tokio::test]
async fn what_is_shown_is_where_each_partition_stands() {
    let world = World::new(2).await;
    world.produce(0..7, plain);
    let before = world.shown().await;
    assert_eq!(before[0]["commit"], Value::Null);
    assert_eq!(
        (&before[0]["unfinished"], &before[1]["unfinished"]),
        (&4.into(), &3.into())
    );
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("and mirrored", || world.is_all_mirrored()).await;
    let shown = world.shown().await;
    assert_eq!(shown.len(), 2);
    let first = &shown[0];
    assert_eq!(
        (&first["topic"], &first["partition"]),
        (&INPUT.into(), &0.into())
    );
    assert_eq!(
        (&first["log_start"], &first["high_watermark"]),
        (&0.into(), &4.into())
    );
    assert_eq!(
        (&first["unfinished"], &first["group_offset"]),
        (&0.into(), &4.into())
    );
    let commit = &first["commit"];
    assert_eq!(
        (&commit["next_offset"], &commit["owner_epoch"]),
        (&4.into(), &1.into())
    );
    assert_eq!(commit["is_live"], true);
    assert_eq!(commit["owner"], running.board.snapshot().info["instance"]);
    assert_eq!(
        commit["guarantee"],
        running.board.snapshot().info["guarantee"]
    );
    running.drain().await;

    let (end, table) = world.offsets("show --partition docs/1").await;
    end.unwrap();
    assert!(
        table.contains("docs/1") && !table.contains("docs/0"),
        "{table}"
    );
    assert!(
        table.contains("live") && table.contains("epoch 1"),
        "{table}"
    );
    let (end, _) = world.offsets("show --partition docs/2").await;
    assert_eq!(end.unwrap_err().exit_code(), 64);
}

/// Finished and unfinished records beyond the commit are told apart, and a reset forwards keeps what is finished.
#[tokio::test]
async fn a_reset_forwards_passes_over_what_is_stuck_and_doubles_nothing() {
    use kafka_llm_processor::sandbox::vllm::{Action, Fault};
    let world = World::new(1).await;
    world.produce(0..10, plain);
    let stuck = Fault::new(Action::HangForEver).on_prompt("Document 3 ");
    world.vllm.faults().push(stuck);
    let set = ["pipeline.order=completion", "pipeline.drain_timeout=200ms"];
    let running = world.start(&set);
    eventually("the others are finished", || {
        let commits = world.commits(0);
        let newest = commits.last();
        newest.is_some_and(|commit| commit["done"] == serde_json::json!([[4, 10]]))
    })
    .await;
    running.drain().await;
    world.commit_again_as_if_long_ago(0);
    let shown = world.shown().await;
    assert_eq!(shown[0]["commit"]["done"], serde_json::json!([[4, 10]]));
    assert_eq!(shown[0]["unfinished"], 1);

    let out = world.reset("--to 4").await;
    assert!(
        out.contains("1 unfinished records are passed over"),
        "{out}"
    );
    world.produce(10..12, plain);
    let running = world.start(&set);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    let mut expected = [1; 12];
    expected[3] = 0;
    assert_eq!(world.results_of(0..12), expected);
}

/// Under both guarantees: exactly once holds from the reset on.
#[tokio::test]
async fn a_reset_backwards_gives_results_again_from_there_on() {
    let world = World::new(2).await;
    world.produce(0..20, plain);
    world.work_long_ago(&[]).await;
    let (end, out) = world.offsets("reset --to 4 --partition docs/0").await;
    end.unwrap();
    assert!(out.contains("6 finished records are done again"), "{out}");
    assert!(out.contains("dry run"), "{out}");
    let is_told = out.contains("exactly once holds from the reset on");
    assert_eq!(is_told, Flavour::current() == Flavour::ExactlyOnce, "{out}");
    let commits = world.commits(0).len();
    let out = world.reset("--to 4 --partition docs/0").await;
    assert!(out.contains("docs/0  10 → 4"), "{out}");
    let written = &world.commits(0)[commits..];
    assert_eq!(written.len(), 2, "a claim and the new position");
    assert_eq!(
        (&written[0]["owner_epoch"], &written[0]["next_offset"]),
        (&2.into(), &10.into())
    );
    assert_eq!(
        (&written[1]["owner_epoch"], &written[1]["next_offset"]),
        (&4.into(), &4.into())
    );
    assert_eq!(world.broker.committed_offset(GROUP, INPUT, 0), Some(4));
    assert_eq!(world.commit_offset(1), Some(10), "the other is left alone");

    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results_of(0..10), [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
    let doubled = world.results().into_iter();
    let doubled = doubled.filter(|((partition, _), results)| *partition == 1 && results.len() > 1);
    assert_eq!(doubled.count(), 0);
}

#[tokio::test]
async fn each_target_is_found_also_without_a_commit() {
    let world = World::new(1).await;
    let first = Timestamp::from_second(1_700_000_000).unwrap();
    for number in 0..10 {
        let record = Record {
            value: Some(json(number, &plain(number)).into()),
            timestamp_ms: first.as_millisecond() + i64::try_from(number).unwrap() * 1_000,
            ..Record::default()
        };
        world.broker.append(INPUT, 0, vec![record]).unwrap();
    }
    world
        .broker
        .delete_records(INPUT, 0, kafka_llm_processor::types::Offset::new(2))
        .unwrap();
    for (target, expected) in [
        ("2023-11-14T22:13:26Z", 6),
        ("2023-11-14T23:13:27.5+01:00", 8),
        ("2020-01-01T00:00:00Z", 2),
        ("2030-01-01T00:00:00Z", 10),
        ("earliest", 2),
        ("latest", 10),
        ("7", 7),
    ] {
        // One right after the other: a reset is nobody at work.
        world.reset(&format!("--to {target}")).await;
        assert_eq!(world.commit_offset(0), Some(expected), "{target}");
    }
    for outside in ["1", "11"] {
        let (end, _) = world
            .offsets(&format!("reset --execute --to {outside}"))
            .await;
        let error = end.unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(
            error.to_string().contains("begins at 2 and ends at 10"),
            "{error}"
        );
    }
    assert_eq!(world.commit_offset(0), Some(7));
    let (end, out) = world.offsets("reset --to 7 --json").await;
    end.unwrap();
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["partitions"][0]["outcome"], "unchanged");
    assert_eq!(report["executed"], false);

    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(
        world.results().into_keys().collect::<Vec<_>>(),
        [(0, 7), (0, 8), (0, 9)]
    );
}

#[tokio::test]
async fn while_an_owner_is_alive_nothing_is_reset() {
    let world = World::new(2).await;
    world.produce(0..20, plain);
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    let instance = running.board.snapshot().info["instance"].clone();
    for execute in ["", " --execute"] {
        let (end, _) = world
            .offsets(&format!("reset --to earliest{execute}"))
            .await;
        let error = end.unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let message = error.to_string();
        for expected in [&instance, "docs/0", "docs/1", "alive until", "--force"] {
            assert!(message.contains(expected), "no {expected} in: {message}");
        }
    }
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    assert!(world.is_all_committed(), "nothing was written");
    let written = world.commits(0);
    assert!(written.iter().all(|commit| commit["owner"] == instance));
    // It has stopped, and nobody can tell before its last commit is old.
    let (end, _) = world.offsets("reset --to earliest").await;
    assert_eq!(end.unwrap_err().exit_code(), 3);
    for partition in 0..2 {
        world.commit_again_as_if_long_ago(partition);
    }
    world.reset("--to earliest").await;
    assert_eq!(world.commit_offset(0), Some(0));
}

/// What the former owner still writes, results or commits, takes nothing back.
#[tokio::test]
async fn by_force_an_owner_in_the_middle_of_its_work_is_fenced() {
    let world = slow_world(1).await;
    world.produce(0..2_000, plain);
    let older = world.start(&["llm.concurrency=2"]);
    eventually("it works", || world.commits(0).len() > 3).await;
    let (end, out) = world.offsets("reset --to latest --force").await;
    end.unwrap();
    assert!(out.contains("--force overrules it"), "{out}");
    let out = world.reset("--to latest --force").await;
    assert!(out.contains("is overruled"), "{out}");
    let (end, _) = older.end().await;
    let RunEnd::Fenced(detail) = &end else {
        panic!("{end:?}")
    };
    assert!(detail.contains("offsets-reset-"), "{detail}");
    assert_eq!(end.exit_code(), 3);
    let shown = world.shown().await;
    let commit = &shown[0]["commit"];
    assert_eq!(commit["next_offset"], 2_000);
    // A late write may still be on its way: another guarantee has to wait.
    assert_eq!(commit["is_live"], true);

    let calls = world.vllm.calls();
    let newer = world.start(&[]);
    world.produce(2_000..2_004, plain);
    eventually("the new ones are committed", || {
        world.results_of(2_000..2_004) == [1; 4]
    })
    .await;
    newer.drain().await;
    assert_eq!(
        world.vllm.calls(),
        calls + 4,
        "what was passed over is not asked about"
    );
    assert!(world.results().len() < 2_004);
    if Flavour::current() == Flavour::ExactlyOnce {
        world.assert_nothing_twice();
    }
}

/// In a group the coordinator says whose the partition is: its member takes it over again, and goes on from there.
#[tokio::test]
async fn by_force_a_member_of_a_group_goes_on_from_there() {
    let world = World::new(1).await;
    world.produce(0..10, plain);
    let running = world.start(&["input.assignment=group"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    world.reset("--to 5 --force").await;
    eventually("they are done again", || {
        world.results_of(0..10) == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    })
    .await;
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
}

/// The claim is written and the new position is not: nothing has changed, and whoever comes next goes on where it stood.
#[tokio::test]
async fn a_reset_that_is_cut_off_after_its_claim_has_changed_nothing() {
    for target in ["earliest", "latest"] {
        let world = World::new(1).await;
        world.produce(0..10, plain);
        world.work_long_ago(&[]).await;
        world.produce(10..20, plain);
        let written = world.commits(0).len();
        // The second commit record, or what ends its transaction.
        let faults = world.broker.faults();
        let cut = match Flavour::current() {
            Flavour::ExactlyOnce => faults.on(ApiKey::EndTxn),
            Flavour::Rskafka | Flavour::Wire => faults.on(ApiKey::Produce).topic(COMMITS),
        };
        let cut = cut.after(1).keep().silent();
        let arguments = format!("reset --execute --to {target}");
        tokio::select! {
            end = world.offsets(&arguments) => panic!("{end:?}"),
            () = cut.wait_for_hits(1) => {}
        }
        let commits = world.commits(0);
        assert_eq!(commits.len(), written + 1);
        assert_eq!(commits[written]["next_offset"], 10);
        cut.remove();

        let running = world.start(&[]);
        eventually("everything is committed", || world.is_all_committed()).await;
        running.drain().await;
        assert_eq!(world.results_of(0..20), [1; 20], "{target}");
    }
}

/// An instance that holds a partition as its input was lost is told where to go on; it is not stopped for that.
#[tokio::test]
async fn a_reset_ends_a_hold_over_lost_input() {
    let world = World::new(1).await;
    world.produce(0..10, plain);
    world.work_long_ago(&[]).await;
    world.broker.delete_topic(INPUT).unwrap();
    world.broker.create_topic(INPUT, 1, &[]).unwrap();
    world.produce(20..30, plain);
    let running = world.start(&[]);
    eventually("it is held", || running.hold("partition docs/0").is_some()).await;
    let reason = running.hold("partition docs/0").unwrap();
    assert!(reason.contains("offsets reset"), "{reason}");
    let (end, shown) = world.offsets("show").await;
    end.unwrap();
    assert!(shown.contains("deleted and created again"), "{shown}");
    world.reset("--to 3").await;
    eventually("everything is committed", || world.is_all_committed()).await;
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    assert_eq!(world.results_of(0..10), [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]);
}
