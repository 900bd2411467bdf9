use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use uuid::Uuid;

use super::judge::Role;
use super::*;
use crate::offsets::Guarantee;
use crate::offsets::LIVE_FOR;

fn described(name: &str, partitions: i32, leaders_missing: i32) -> TopicDescription {
    TopicDescription {
        name: name.to_owned(),
        id: Uuid::nil(),
        partitions,
        replication_factor: 1,
        leaders_missing,
    }
}

fn commit(at: Timestamp) -> CommitRecord {
    CommitRecord {
        v: 1,
        topic_id: Uuid::nil(),
        owner: "host-1".to_owned(),
        owner_epoch: 1,
        guarantee: Guarantee::AtLeastOnce,
        next_offset: Offset::ZERO,
        done: Vec::new(),
        audit: None,
        at,
        released: false,
    }
}

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn healthy() -> Found {
    let topic = |role, name: &str| (role, name.to_owned(), Some(described(name, 4, 0)));
    Found {
        brokers: 3,
        cluster_id: Some("abc".to_owned()),
        topics: vec![
            topic(Role::Input, "docs"),
            topic(Role::Output, "results"),
            topic(Role::DeadLetters, "dead"),
            topic(Role::Commits, "commits"),
        ],
        commit_policy: Some(Ok("compact".to_owned())),
        audit_policy: None,
        newest_commits: Ok(vec![commit(now() - SignedDuration::from_secs(12))]),
    }
}

fn judged(found: &Found) -> Vec<CheckItem> {
    let (kafka, llm) = (KafkaConfig::default(), LlmConfig::default());
    let settings = CheckSettings {
        kafka: &kafka,
        llm: &llm,
        input_topics: &[],
        output_topic: "results",
        dead_letter_topic: "dead",
        audit_topic: None,
    };
    judge::kafka(settings, found, now())
}

#[track_caller]
fn cross<'a>(items: &'a [CheckItem], name: &str) -> &'a CheckItem {
    let crosses: Vec<_> = items.iter().filter(|item| !item.passed).collect();
    assert_eq!(crosses.len(), 1, "{items:?}");
    assert_eq!(crosses[0].name, name);
    assert!(crosses[0].remedy.is_some(), "a cross says what to do");
    crosses[0]
}

#[test]
fn a_healthy_cluster_has_ticks_only() {
    let items = judged(&healthy());
    assert!(items.iter().all(|item| item.passed), "{items:?}");
    let details: Vec<&str> = items.iter().map(|item| item.detail.as_str()).collect();
    assert_eq!(
        details,
        [
            "localhost:9092: cluster abc, 3 brokers",
            "`docs`, 4 partitions",
            "`results`, 4 partitions",
            "`dead`, 4 partitions",
            "`commits`, 4 partitions, compacted",
            "`host-1` runs: it committed 12s ago",
        ]
    );
}

#[test]
fn an_audit_topic_that_loses_records_is_a_cross() {
    let mut found = healthy();
    let audit = Some(described("audit", 4, 0));
    found.topics.push((Role::Audit, "audit".to_owned(), audit));
    found.audit_policy = Some(Ok("delete".to_owned()));
    let items = judged(&found);
    assert!(items.iter().all(|item| item.passed), "{items:?}");
    found.audit_policy = Some(Ok("compact,delete".to_owned()));
    let items = judged(&found);
    let item = cross(&items, "audit topic");
    assert!(item.detail.contains("compact,delete"), "{item:?}");
}

#[test]
fn a_missing_topic_is_a_cross_with_its_setting() {
    let mut found = healthy();
    found.topics[0].2 = None;
    let items = judged(&found);
    let item = cross(&items, "input topic");
    assert!(item.remedy.as_ref().unwrap().contains("INPUT_TOPIC"));
}

#[test]
fn a_topic_without_leaders_is_a_cross() {
    let mut found = healthy();
    found.topics[1].2 = Some(described("results", 4, 2));
    let items = judged(&found);
    assert!(cross(&items, "output topic").detail.contains("2 of 4"));
}

#[test]
fn a_commit_topic_that_deletes_is_a_cross() {
    for policy in ["delete", "compact,delete"] {
        let mut found = healthy();
        found.commit_policy = Some(Ok(policy.to_owned()));
        let items = judged(&found);
        assert!(cross(&items, "commit topic").detail.contains(policy));
    }
}

#[test]
fn a_processor_lives_by_its_newest_commit() {
    let mut found = healthy();
    let age = SignedDuration::try_from(LIVE_FOR).unwrap();
    found.newest_commits = Ok(vec![commit(now() - age)]);
    assert!(
        cross(&judged(&found), "processor")
            .detail
            .contains("45s old")
    );
    found.newest_commits = Ok(Vec::new());
    cross(&judged(&found), "processor");
    // A clock that is ahead of ours does not make it dead.
    found.newest_commits = Ok(vec![commit(now() + age)]);
    assert!(judged(&found).iter().all(|item| item.passed));
}

/// Of several instances the operator sees each that is alive.
#[test]
fn every_processor_that_lives_is_named() {
    let by = |owner: &str, seconds| CommitRecord {
        owner: owner.to_owned(),
        ..commit(now() - SignedDuration::from_secs(seconds))
    };
    let mut found = healthy();
    found.newest_commits = Ok(vec![by("a", 2), by("b", 9), by("gone", 50)]);
    let items = judged(&found);
    let told = |item: &&CheckItem| {
        item.passed
            && item.detail == "`a` runs: it committed 2s ago; so did 1 more in the last 45s: `b`"
    };
    assert!(items.iter().any(|item| told(&item)), "{items:?}");
}

#[test]
fn health_is_200_and_nothing_else() {
    assert!(judge::health("model server", "http://a", 200).passed);
    for status in [401, 404, 500, 503] {
        let item = judge::health("model server", "http://a", status);
        assert!(!item.passed && item.remedy.is_some());
    }
}

/// Nothing listens on port 1 of this machine.
#[tokio::test]
async fn nobody_there_is_told_within_five_seconds() {
    let kafka = KafkaConfig {
        brokers: "127.0.0.1:1".to_owned(),
        ..KafkaConfig::default()
    };
    let llm = LlmConfig {
        url: "http://127.0.0.1:1".to_owned(),
        ..LlmConfig::default()
    };
    let settings = CheckSettings {
        kafka: &kafka,
        llm: &llm,
        input_topics: &["docs".to_owned()],
        output_topic: "results",
        dead_letter_topic: "dead",
        audit_topic: None,
    };
    let started = Instant::now();
    let mut out = Vec::new();
    let passed = run(CheckArgs::default(), settings, &Terminal::plain(), &mut out)
        .await
        .unwrap();
    assert!(!passed);
    assert!(started.elapsed() < Duration::from_secs(5));
    let text = String::from_utf8(out).unwrap();
    for part in [
        "✘ model server",
        "✘ kafka",
        "127.0.0.1:1",
        "KAFKA_BROKERS",
        "LLM_URL",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let mut out = Vec::new();
    run(
        CheckArgs { json: true },
        settings,
        &Terminal::plain(),
        &mut out,
    )
    .await
    .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(json["passed"], false);
}
