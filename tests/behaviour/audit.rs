//! The audit trail: what each document came to, by whom; whole after any crash, and broken by whatever is changed, left out or moved.

use std::time::Duration;

use clap::Parser as _;
use kafka_llm_processor::app::RunEnd;
use kafka_llm_processor::cli::args::{Cli, Command};
use kafka_llm_processor::cli::audit::{self, AuditError, Completion};
use kafka_llm_processor::cli::output::Terminal;
use kafka_llm_processor::records::audit::{AuditKind, AuditRecord, Hash};
use kafka_llm_processor::sandbox::vllm::{Latency, VllmConfig};
use kafka_llm_processor::types::{Offset, Record};
use kafka_protocol::messages::ApiKey;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::harness::{COMMITS, DEAD, Flavour, OUTPUT, Running, World, eventually, plain};

const AUDIT: &str = "llm-audit";
const ON: &str = "audit.enabled=true";

impl World {
    /// Runs `audit` with these arguments; what it printed.
    async fn audit(&self, arguments: &str) -> (Result<Completion, AuditError>, String) {
        let arguments = ["klp", "audit"].into_iter().chain(arguments.split(' '));
        let Some(Command::Audit(args)) = Cli::try_parse_from(arguments).unwrap().command else {
            panic!("another command");
        };
        let settings = self.settings(&[]);
        let (mut out, stop) = (Vec::new(), CancellationToken::new());
        let terminal = Terminal::plain();
        let end = audit::run(&args, &settings, &terminal, &mut out, &stop).await;
        (end, String::from_utf8(out).unwrap())
    }

    /// The chains as `audit verify` tells of them.
    async fn chains(&self) -> (Completion, Vec<Value>) {
        let (end, out) = self.audit("verify --json").await;
        let report: Value = serde_json::from_str(&out).unwrap();
        let chains = report["chains"].as_array().unwrap().clone();
        assert_eq!(
            report["broken"],
            end.as_ref().unwrap() == &Completion::Broken
        );
        (end.unwrap(), chains)
    }

    /// The chains, none of which is broken.
    async fn whole_chains(&self) -> Vec<Value> {
        let (end, chains) = self.chains().await;
        assert_eq!(end, Completion::Whole, "{chains:#?}");
        chains
    }

    fn audit_records(&self) -> Vec<AuditRecord> {
        let records = self.records(AUDIT).into_iter();
        records
            .map(|(_, _, record)| AuditRecord::parse(&record.value.unwrap()).unwrap())
            .collect()
    }

    /// Puts the audit trail there anew, as `change` leaves that of partition 0.
    fn rewrite(&self, change: impl FnOnce(&mut Vec<Record>)) {
        let partitions = i32::try_from(self.broker.partitions(AUDIT).unwrap()).unwrap();
        let mut logs: Vec<Vec<Record>> = (0..partitions).map(|_| Vec::new()).collect();
        for (partition, _, record) in self.records(AUDIT) {
            logs[usize::try_from(partition.partition).unwrap()].push(record);
        }
        change(&mut logs[0]);
        self.broker.delete_topic(AUDIT).unwrap();
        self.broker.create_topic(AUDIT, partitions, &[]).unwrap();
        for (partition, records) in (0..).zip(logs) {
            if !records.is_empty() {
                self.broker.append(AUDIT, partition, records).unwrap();
            }
        }
    }

    async fn work(&self, set: &[&str]) {
        let running = self.start(set);
        eventually("everything is committed", || self.is_all_committed()).await;
        running.drain().await;
    }
}

fn sum(chains: &[Value], field: &str) -> u64 {
    chains
        .iter()
        .map(|chain| chain[field].as_u64().unwrap())
        .sum()
}

#[tokio::test]
async fn each_outcome_has_a_record_that_says_who_did_what() {
    let world = World::new(2).await;
    world.produce(0..10, plain);
    let bad = world.put(1, Some("bad"), Some("{no json"));
    world.put(1, Some("gone"), None);
    world.work(&[ON, "llm.seed=7"]).await;
    assert_eq!(
        world.broker.topic_config(AUDIT, "retention.ms").unwrap(),
        "-1"
    );

    let records = world.audit_records();
    assert_eq!(records.len(), 11, "a tombstone is no document");
    let results = world.records(OUTPUT);
    let input = world.broker.records("docs");
    for record in &records {
        let source = record.document.source.position();
        let (_, _, document) = input
            .iter()
            .find(|(partition, offset, _)| {
                *partition == source.topic_partition && *offset == source.offset
            })
            .unwrap();
        assert_eq!(
            record.document.hash,
            Hash::of(document.value.as_ref().unwrap())
        );
        assert_eq!(
            record.by.guarantee == "exactly_once",
            Flavour::current() == Flavour::ExactlyOnce
        );
        if record.outcome.kind == AuditKind::DeadLetter {
            assert_eq!((source.offset, record.outcome.topic.as_str()), (bad, DEAD));
            assert_eq!(record.outcome.reason.as_deref(), Some("invalid_json"));
            continue;
        }
        assert_eq!(record.outcome.topic, OUTPUT);
        let hash = record.outcome.hash.unwrap();
        let written = results.iter().find(|(partition, _, result)| {
            partition.partition == record.outcome.partition
                && Hash::of(result.value.as_ref().unwrap()) == hash
        });
        assert!(written.is_some(), "the result is there as it was written");
        let asked = record.asked.as_ref().unwrap();
        assert_eq!(asked.endpoint.as_deref().unwrap(), world.vllm.url());
        assert_eq!(asked.parameters.seed, Some(7));
        assert!(record.outcome.usage.unwrap().total_tokens > 0);
        assert!(record.times.fetched_at <= record.times.completed_at);
    }

    let chains = world.whole_chains().await;
    assert_eq!((chains.len(), sum(&chains, "records")), (2, 11));
    assert_eq!(sum(&chains, "forks") + sum(&chains, "late"), 0);
    for target in ["d3", "docs/1/1"] {
        let (end, out) = world.audit(&format!("show --json {target}")).await;
        end.unwrap();
        let shown: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(shown["record"]["document"]["id"], "d3");
        assert_eq!(shown["record"]["document"]["source"]["offset"], 1);
    }
    let (end, text) = world.audit("show d3").await;
    end.unwrap();
    assert!(
        text.contains("result, ok") && text.contains("docs/1@1"),
        "{text}"
    );
    let (end, _) = world.audit("show nobody").await;
    assert!(matches!(end, Err(AuditError::NotFound { .. })));
    let (_, text) = world.audit("verify").await;
    assert!(
        text.contains("✔ docs/0") && text.contains("none is broken"),
        "{text}"
    );
}

#[tokio::test]
async fn without_it_there_is_neither_topic_nor_record() {
    let world = World::new(1).await;
    world.produce(0..3, plain);
    world.work(&[]).await;
    assert_eq!(world.broker.partitions(AUDIT), None);
    assert!(
        world
            .commits(0)
            .iter()
            .all(|commit| commit["audit"].is_null())
    );
    let (end, _) = world.audit("verify").await;
    assert!(matches!(end, Err(AuditError::NoTopic { .. })));
}

/// Compaction would keep one record of each chain.
#[tokio::test]
async fn a_topic_that_loses_records_is_refused_and_a_missing_one_is_named() {
    let world = World::new(1).await;
    for topic in [OUTPUT, DEAD] {
        world.broker.create_topic(topic, 1, &[]).unwrap();
    }
    let compact = [("cleanup.policy", "compact")];
    world.broker.create_topic(COMMITS, 1, &compact).unwrap();
    world.broker.create_topic(AUDIT, 1, &compact).unwrap();
    for (set, what) in [
        (vec![ON], "cleanup.policy = compact"),
        (
            vec![ON, "kafka.create_topics=false", "audit.topic=nowhere"],
            "`nowhere` does not exist",
        ),
    ] {
        let (end, _) = world.start(&set).end().await;
        let RunEnd::Failed(error) = end else {
            panic!("{end:?}")
        };
        let error = error.to_string();
        assert!(
            error.contains("audit.topic") && error.contains(what),
            "{error}"
        );
    }
}

/// Stopped for good between the results with their audit trail and the commit record.
#[tokio::test]
async fn what_a_crash_leaves_behind_is_a_fork_at_least_once_and_nothing_exactly_once() {
    let world = World::new(1).await;
    world.produce(0..3, plain);
    let (_running, freezer) = Running::start_apart(world.settings(&[ON]));
    eventually("the first are committed", || world.is_all_committed()).await;
    let commits = world.broker.faults().on(ApiKey::Produce).topic(COMMITS);
    let commits = commits.keep().hang_up_before();
    world.produce(3..8, plain);
    eventually("a commit does not get through", || commits.hits() > 0).await;
    let _frozen = freezer.freeze().await;
    let is_exactly_once = Flavour::current() == Flavour::ExactlyOnce;
    // What it had sent has come by the time this is answered.
    let chains = world.whole_chains().await;
    assert_eq!(sum(&chains, "committed"), 3);
    assert_eq!(sum(&chains, "uncommitted") > 0, !is_exactly_once);
    commits.remove();

    world.work(&[ON]).await;
    let chains = world.whole_chains().await;
    assert_eq!((sum(&chains, "length"), sum(&chains, "committed")), (8, 8));
    assert_eq!(sum(&chains, "forks"), u64::from(!is_exactly_once));
    let (_, text) = world.audit("verify").await;
    assert_eq!(
        text.contains("fork at partition 0"),
        !is_exactly_once,
        "{text}"
    );
}

/// A lost answer has an append sent again, which the broker knows again.
#[tokio::test]
async fn a_flush_that_is_sent_again_is_no_repeat() {
    let world = World::new(1).await;
    let running = world.start(&[ON]);
    eventually("it is taken over", || !world.commits(0).is_empty()).await;
    let appended = world.broker.faults().on(ApiKey::Produce).topic(AUDIT);
    let appended = appended.hang_up_after();
    world.produce(0..5, plain);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert!(appended.hits() > 0);
    let chains = world.whole_chains().await;
    assert_eq!(sum(&chains, "length"), 5);
    assert_eq!(sum(&chains, "repeats"), 0, "{chains:#?}");
    let (_, text) = world.audit("verify").await;
    assert!(!text.contains("byte for byte"), "{text}");
}

/// Crashes at ten moments spread over the run, half of them within an append.
#[tokio::test]
async fn after_crashes_at_any_moment_the_chain_is_whole() {
    let latency = Latency::fixed(Duration::from_millis(2));
    let vllm = VllmConfig {
        latency,
        ..VllmConfig::default()
    };
    let world = World::with_vllm(2, vllm).await;
    world.produce(0..200, plain);
    let set = [ON, "llm.concurrency=6", "processing.commit_interval_ms=0"];
    for crash in 0..10 {
        let count = || world.commits(0).len() + world.commits(1).len();
        let committed = count();
        let running = world.start(&set);
        let topic = if crash % 4 == 1 { AUDIT } else { COMMITS };
        let appended = (crash % 2 == 1).then(|| {
            let faults = world.broker.faults().on(ApiKey::Produce).topic(topic);
            faults.after(4).hang_up_after()
        });
        eventually("some commits", || {
            let cut = appended.as_ref().is_some_and(|fault| fault.hits() > 0);
            cut || count() >= committed + 5 + crash || world.is_all_committed()
        })
        .await;
        running.kill().await;
        appended.iter().for_each(|fault| fault.remove());
    }
    world.work(&set).await;
    let chains = world.whole_chains().await;
    assert_eq!(sum(&chains, "length"), sum(&chains, "committed"));
    if Flavour::current() == Flavour::ExactlyOnce {
        let others = sum(&chains, "forks") + sum(&chains, "repeats") + sum(&chains, "late");
        assert_eq!((others, sum(&chains, "records")), (0, 200));
    }
    // Each result has its record.
    let sources: std::collections::BTreeSet<_> = world
        .audit_records()
        .into_iter()
        .map(|record| {
            (
                record.chain.partition,
                record.document.source.offset.value(),
            )
        })
        .collect();
    assert_eq!(sources.len(), 200);
}

#[tokio::test]
async fn what_is_changed_left_out_or_moved_is_found_the_last_too() {
    let world = World::new(2).await;
    world.produce(0..16, plain);
    world.work(&[ON]).await;
    let chains = world.whole_chains().await;
    assert_eq!(chains[0]["length"], 8);
    let originals: Vec<_> = world
        .records(AUDIT)
        .into_iter()
        .filter(|(partition, _, _)| partition.partition == 0)
        .map(|(_, _, record)| record)
        .collect();
    let change = |record: &mut Record| {
        let text = String::from_utf8(record.value.as_ref().unwrap().to_vec()).unwrap();
        record.value = Some(text.replace("\"attempts\":1", "\"attempts\":2").into());
    };
    let tampered: [(&str, Vec<Record>, Option<i64>); 6] = [
        (
            "changed",
            with(&originals, |log| change(&mut log[3])),
            Some(4),
        ),
        (
            "the last changed",
            with(&originals, |log| change(&mut log[7])),
            None,
        ),
        (
            "left out",
            with(&originals, |log| drop(log.remove(3))),
            Some(3),
        ),
        (
            "the last left out",
            with(&originals, |log| drop(log.pop())),
            None,
        ),
        ("all left out", Vec::new(), None),
        ("moved", with(&originals, |log| log.swap(2, 5)), Some(2)),
    ];
    for (how, records, offset) in tampered {
        world.rewrite(|log| *log = records);
        let (end, chains) = world.chains().await;
        assert_eq!(end, Completion::Broken, "{how}");
        let at = &chains[0]["first_break"]["at"];
        assert_eq!(at["offset"].as_i64(), offset, "{how}: {:#?}", chains[0]);
        assert_eq!(chains[1]["breaks"], 0, "the other is whole");
        let (_, text) = world.audit("verify").await;
        assert!(
            text.contains("✘ docs/0") && text.contains("✔ docs/1"),
            "{text}"
        );
    }
    world.rewrite(|log| *log = originals);
    world.whole_chains().await;
}

fn with(records: &[Record], change: impl FnOnce(&mut Vec<Record>)) -> Vec<Record> {
    let mut records = records.to_vec();
    change(&mut records);
    records
}

#[tokio::test]
async fn the_chain_goes_on_after_a_time_without_it_and_after_a_reset() {
    let world = World::new(1).await;
    world.produce(0..4, plain);
    world.work(&[ON]).await;
    let head = world.commits(0).last().unwrap()["audit"].clone();
    assert_eq!(head["length"], 4);
    world.produce(4..6, plain);
    world.work(&[]).await;
    assert_eq!(
        world.commits(0).last().unwrap()["audit"],
        head,
        "it is kept"
    );
    world.commit_again_as_if_long_ago(0);
    let arguments = "klp offsets reset --execute --to 2".split(' ');
    let Some(Command::Offsets(args)) = Cli::try_parse_from(arguments).unwrap().command else {
        panic!("another command");
    };
    let (mut out, stop, terminal) = (Vec::new(), CancellationToken::new(), Terminal::plain());
    let settings = world.settings(&[ON]);
    kafka_llm_processor::cli::offsets::run(&args, &settings, &terminal, &mut out, &stop)
        .await
        .unwrap();
    assert_eq!(
        world.commits(0).last().unwrap()["audit"],
        head,
        "it is kept"
    );
    world.work(&[ON]).await;
    let chains = world.whole_chains().await;
    assert_eq!((sum(&chains, "length"), sum(&chains, "forks")), (8, 0));
}

#[tokio::test]
async fn where_retention_has_deleted_the_beginning_the_rest_is_verified() {
    let world = World::new(1).await;
    world.produce(0..8, plain);
    world.work(&[ON]).await;
    world
        .broker
        .delete_records(AUDIT, 0, Offset::new(3))
        .unwrap();
    let chains = world.whole_chains().await;
    let from = chains[0]["verified_from"].as_u64().unwrap();
    assert!((1..8).contains(&from), "{from}");
    let (_, text) = world.audit("verify").await;
    assert!(
        text.contains(&format!("verified from number {from} on")),
        "{text}"
    );
    let end = world.broker.high_watermark(AUDIT, 0).unwrap();
    world.broker.delete_records(AUDIT, 0, end).unwrap();
    world.whole_chains().await;
    let (_, text) = world.audit("verify").await;
    assert!(
        text.contains("nothing left to verify of 8 records"),
        "{text}"
    );
}

#[tokio::test]
async fn while_it_works_the_chain_is_whole() {
    let latency = Latency::fixed(Duration::from_millis(5));
    let vllm = VllmConfig {
        latency,
        ..VllmConfig::default()
    };
    let world = World::with_vllm(2, vllm).await;
    world.produce(0..400, plain);
    let running = world.start(&[ON, "llm.concurrency=4"]);
    eventually("some records", || world.records(AUDIT).len() > 20).await;
    let mut looks = 0;
    while !world.is_all_committed() {
        world.whole_chains().await;
        looks += 1;
    }
    assert!(looks > 1);
    running.drain().await;
    assert_eq!(sum(&world.whole_chains().await, "length"), 400);
}
