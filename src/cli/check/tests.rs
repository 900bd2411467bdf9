use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use uuid::Uuid;

use super::backlog::Backlog;
use super::judge::Role;
use super::look::{Found, TopicFound};
use super::model::Room;
use super::*;
use crate::kafka::wire::{
    ApiGap, BrokerDescription, BrokerSpeech, ClusterDescription, Operations, TopicDescription,
    TopicRights,
};
use crate::kafka::{KafkaConfig, SecurityProtocol};
use crate::llm::LlmConfig;
use crate::offsets::{CommitRecord, Guarantee, LIVE_FOR};
use crate::types::{Offset, TopicPartition};

/// All eight operations on a topic.
const ALL: i32 = 0b1101_1111_1000;
const MESSAGE_BYTES: &str = "1048588";

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

fn topic(role: Role, name: &str, policy: &str) -> TopicFound {
    let configs = [
        ("cleanup.policy", policy),
        ("max.message.bytes", MESSAGE_BYTES),
    ];
    let configs = configs.map(|(key, value)| (key.to_owned(), value.to_owned()));
    TopicFound {
        role,
        name: name.to_owned(),
        rights: Ok(TopicRights {
            topic: Some(described(name, 4, 0)),
            operations: Operations::told(ALL),
        }),
        configs: Ok(BTreeMap::from(configs)),
        creation: None,
    }
}

fn broker(id: i32, gaps: Vec<ApiGap>) -> BrokerSpeech {
    BrokerSpeech {
        broker: BrokerDescription {
            id,
            host: format!("host-{id}"),
            port: 9092,
            rack: None,
        },
        gaps: Ok(gaps),
    }
}

fn healthy() -> Found {
    Found {
        cluster: ClusterDescription {
            cluster_id: Some("abc".to_owned()),
            controller_id: None,
            brokers: Vec::new(),
            metadata_version: Some(30),
            api_versions: BTreeMap::new(),
        },
        brokers: vec![broker(1, vec![]), broker(2, vec![])],
        topics: vec![
            topic(Role::Input, "docs", "delete"),
            topic(Role::Output, "results", "delete"),
            topic(Role::DeadLetters, "dead", "delete"),
            topic(Role::Commits, "commits", "compact"),
        ],
        group: Ok(Operations::told(ALL)),
        transactions: None,
        idempotence: None,
        commits: Ok(vec![(None, commit(now() - SignedDuration::from_secs(12)))]),
    }
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.kafka.security_protocol = SecurityProtocol::SaslPlaintext;
    settings.kafka.sasl_username = "alice".to_owned();
    settings.kafka.group_id = "ours".to_owned();
    settings
}

fn idle() -> Result<Option<Backlog>, String> {
    Ok(Some(Backlog {
        unfinished: Vec::new(),
        arrived: 0,
        finished: 0,
        apart: Duration::ZERO,
    }))
}

fn judged(found: &Found) -> Vec<CheckItem> {
    judged_with(found, &settings(), &idle())
}

fn judged_with(
    found: &Found,
    settings: &Settings,
    backlog: &Result<Option<Backlog>, String>,
) -> Vec<CheckItem> {
    let mut items = judge::kafka(settings, found);
    items.extend(rights::judge(settings, found));
    items.extend(judge::processor(found, backlog, settings, now()));
    items
}

#[track_caller]
fn cross<'a>(items: &'a [CheckItem], name: &str) -> &'a CheckItem {
    let crosses: Vec<_> = items.iter().filter(|item| !item.passed).collect();
    assert_eq!(crosses.len(), 1, "{items:?}");
    assert_eq!(crosses[0].name, name);
    assert!(crosses[0].remedy.is_some(), "a cross says what to do");
    crosses[0]
}

fn remedy(item: &CheckItem) -> &str {
    item.remedy.as_deref().unwrap()
}

#[test]
fn a_healthy_cluster_has_ticks_only() {
    let items = judged(&healthy());
    assert!(items.iter().all(|item| item.passed), "{items:?}");
    let details: Vec<&str> = items.iter().map(|item| item.detail.as_str()).collect();
    assert_eq!(
        details,
        [
            "localhost:9092: cluster abc, 2 brokers",
            "all versions that `run` needs are spoken by broker 1, 2; metadata.version 30",
            "`docs`, 4 partitions, cleanup.policy=delete, max.message.bytes=1048588",
            "`results`, 4 partitions, cleanup.policy=delete, max.message.bytes=1048588",
            "`dead`, 4 partitions, cleanup.policy=delete, max.message.bytes=1048588",
            "`commits`, 4 partitions, cleanup.policy=compact, max.message.bytes=1048588",
            "allowed: Read on topic `docs`; Write on topic `results`; Write on topic `dead`; \
             Read, Write, DescribeConfigs on topic `commits`; Read on group `ours`",
            "`host-1` runs: it committed 12s ago",
            "no unfinished records",
        ]
    );
}

#[test]
fn a_missing_topic_is_a_cross_with_its_setting() {
    let mut found = healthy();
    found.topics[0].rights.as_mut().unwrap().topic = None;
    let items = judged(&found);
    assert!(remedy(cross(&items, "input topic")).contains("INPUT_TOPIC"));
}

#[test]
fn a_topic_without_leaders_is_a_cross() {
    let mut found = healthy();
    found.topics[1].rights.as_mut().unwrap().topic = Some(described("results", 4, 2));
    let items = judged(&found);
    assert!(cross(&items, "output topic").detail.contains("2 of 4"));
}

#[test]
fn one_topic_that_cannot_be_asked_about_hides_no_other() {
    let mut found = healthy();
    found.topics[0].rights = Err("the broker answered InvalidTopicException (17)".to_owned());
    found.topics[1].rights.as_mut().unwrap().topic = None;
    let items = judged(&found);
    let crosses: Vec<_> = items.iter().filter(|item| !item.passed).collect();
    let names: Vec<_> = crosses.iter().map(|item| item.name.as_str()).collect();
    assert_eq!(names, ["input topic", "output topic"]);
    assert!(crosses[0].detail.contains("(17)"));
}

#[test]
fn a_commit_topic_that_deletes_is_a_cross() {
    for policy in ["delete", "compact,delete"] {
        let mut found = healthy();
        found.topics[3] = topic(Role::Commits, "commits", policy);
        let items = judged(&found);
        assert!(cross(&items, "commit topic").detail.contains(policy));
    }
}

#[test]
fn dead_letters_are_not_compacted() {
    let mut found = healthy();
    found.topics[2] = topic(Role::DeadLetters, "dead", "compact,delete");
    let items = judged(&found);
    let remedy = remedy(cross(&items, "dead letters"));
    assert!(remedy.contains("--topic dead --add-config cleanup.policy=delete"));
}

#[test]
fn an_audit_trail_is_not_compacted() {
    let mut found = healthy();
    found.topics.push(topic(Role::Audit, "audit", "delete"));
    let items = judged(&found);
    assert!(items.iter().all(|item| item.passed), "{items:?}");
    found.topics[4] = topic(Role::Audit, "audit", "compact,delete");
    let items = judged(&found);
    let remedy = remedy(cross(&items, "audit topic"));
    assert!(remedy.contains("--topic audit --add-config cleanup.policy=delete"));
}

/// Each topic accepts the largest record that may be for it: one byte less is a cross.
#[test]
fn topics_accept_what_may_be_written_to_them() {
    let settings = settings();
    let commits = settings.processing.commit_record_bytes_max as u64 + 2048;
    let results = u64::from(settings.llm.max_tokens) * 8 + 4096;
    for (index, name, most) in [
        (1, "output topic", results),
        (2, "dead letters", 1_048_588),
        (3, "commit topic", commits),
    ] {
        let mut found = healthy();
        let mut set = |bytes: u64| {
            let configs = found.topics[index].configs.as_mut().unwrap();
            configs.insert("max.message.bytes".to_owned(), bytes.to_string());
            judged(&found)
        };
        let items = set(most);
        assert!(items.iter().all(|item| item.passed), "{items:?}");
        let items = set(most - 1);
        let remedy = remedy(cross(&items, name));
        assert!(
            remedy.contains(&format!("max.message.bytes={most}")),
            "{remedy}"
        );
    }
}

#[test]
fn configurations_that_are_not_told_are_no_cross() {
    let mut found = healthy();
    found.topics[0].configs = Err("TopicAuthorizationFailed (29)".to_owned());
    let items = judged(&found);
    assert!(items.iter().all(|item| item.passed), "{items:?}");
    let told = items
        .iter()
        .find(|item| item.name == "input topic")
        .unwrap();
    assert!(told.detail.contains("not told"), "{told:?}");
}

#[test]
fn a_broker_that_is_too_old_is_named_where_it_matters() {
    let gap = |api| ApiGap {
        api,
        ours: (3, 4),
        theirs: Some((0, 2)),
    };
    let mut found = healthy();
    found.brokers[1] = broker(2, vec![gap("EndTxn"), gap("JoinGroup")]);
    // At least once, without a group, needs neither.
    assert!(judged(&found).iter().all(|item| item.passed));
    found.brokers[1] = broker(2, vec![gap("InitProducerId"), gap("JoinGroup")]);
    let items = judged(&found);
    let detail = &cross(&items, "broker").detail;
    assert_eq!(
        detail,
        "broker 2 at host-2:9092 does not speak InitProducerId 3 to 4 (it: 0 to 2)"
    );
    found.brokers[1] = broker(2, vec![gap("JoinGroup")]);
    found.brokers[0].gaps = Err(KafkaError::Timeout {
        operation: "ApiVersions",
        after: Duration::from_secs(4),
    });
    let items = judged(&found);
    assert!(remedy(cross(&items, "broker")).contains("advertised.listeners"));
}

/// Of each resource the operation is named, with the arguments that allow it.
#[test]
fn a_missing_right_is_a_cross_with_its_acl() {
    let bits = |bits: &[u8]| {
        let all = bits.iter().fold(0, |all, bit| all | (1 << bit));
        Operations::told(all)
    };
    let add = "kafka-acls.sh --bootstrap-server localhost:9092 --add --allow-principal User:alice ";
    for (index, told, missing, arguments) in [
        (0, bits(&[8]), "Read", "--operation Read --topic docs"),
        (
            1,
            bits(&[3, 8]),
            "Write",
            "--operation Write --topic results",
        ),
        (2, bits(&[8]), "Write", "--operation Write --topic dead"),
        (
            3,
            bits(&[3, 8]),
            "Write, DescribeConfigs",
            "--operation Write --operation DescribeConfigs --topic commits",
        ),
    ] {
        let mut found = healthy();
        found.topics[index].rights.as_mut().unwrap().operations = told;
        let items = judged(&found);
        let item = cross(&items, "rights");
        assert!(
            item.detail
                .starts_with(&format!("{missing} is not allowed on topic"))
        );
        assert_eq!(remedy(item), format!("{add}{arguments}"));
    }
    let mut found = healthy();
    found.group = Ok(Some(Operations::NONE));
    let items = judged(&found);
    let item = cross(&items, "rights");
    assert_eq!(remedy(item), format!("{add}--operation Read --group ours"));

    let mut found = healthy();
    found.transactions = Some(Ok(Some(false)));
    let items = judged(&found);
    assert_eq!(
        remedy(cross(&items, "rights")),
        format!("{add}--operation Write --transactional-id ours/ --resource-pattern-type prefixed")
    );
    let mut found = healthy();
    found.idempotence = Some(Ok(Some(false)));
    let items = judged(&found);
    let item = cross(&items, "rights");
    assert_eq!(
        remedy(item),
        format!("{add}--operation IdempotentWrite --cluster")
    );
}

#[test]
fn a_topic_that_may_not_be_created_is_a_cross_of_its_own() {
    let mut found = healthy();
    found.topics[1].rights.as_mut().unwrap().topic = None;
    found.topics[1].creation = Some(Ok(false));
    let items = judged(&found);
    let crosses: Vec<_> = items.iter().filter(|item| !item.passed).collect();
    assert_eq!(crosses.len(), 2, "{items:?}");
    assert!(remedy(crosses[1]).ends_with("--operation Create --topic results"));
}

#[test]
fn what_the_broker_does_not_tell_is_said_and_no_cross() {
    let mut found = healthy();
    found.topics[0].rights.as_mut().unwrap().operations = None;
    found.group = Err("the coordinator is away".to_owned());
    found.transactions = Some(Ok(None));
    let items = judged(&found);
    assert!(items.iter().all(|item| item.passed), "{items:?}");
    let told = items
        .iter()
        .find(|item| item.detail.starts_with("not told"));
    assert_eq!(
        told.unwrap().detail,
        "not told: Read on topic `docs`; Read on group `ours` (the coordinator is away); \
         Write on transactional ids `ours/…`"
    );
}

/// What a shell would take apart stands in quotes.
#[test]
fn names_in_commands_are_quoted_for_a_shell() {
    let mut settings = settings();
    settings.kafka.group_id = "it's ours; rm".to_owned();
    let mut found = healthy();
    found.group = Ok(Some(Operations::NONE));
    let items = judged_with(&found, &settings, &idle());
    let remedy = remedy(cross(&items, "rights"));
    assert!(remedy.ends_with(r"--group 'it'\''s ours; rm'"), "{remedy}");
}

#[test]
fn a_processor_lives_by_its_newest_commit() {
    let mut found = healthy();
    let age = SignedDuration::try_from(LIVE_FOR).unwrap();
    found.commits = Ok(vec![(None, commit(now() - age))]);
    assert!(
        cross(&judged(&found), "processor")
            .detail
            .contains("45s old")
    );
    found.commits = Ok(Vec::new());
    cross(&judged(&found), "processor");
    // A clock that is ahead of ours does not make it dead.
    found.commits = Ok(vec![(None, commit(now() + age))]);
    assert!(judged(&found).iter().all(|item| item.passed));
}

/// Of several instances the operator sees each that is alive.
#[test]
fn every_processor_that_lives_is_named() {
    let by = |owner: &str, seconds| {
        let commit = CommitRecord {
            owner: owner.to_owned(),
            ..commit(now() - SignedDuration::from_secs(seconds))
        };
        (None, commit)
    };
    let mut found = healthy();
    found.commits = Ok(vec![by("a", 2), by("a", 3), by("b", 9), by("gone", 50)]);
    let items = judged(&found);
    let told = |item: &&CheckItem| {
        item.passed
            && item.detail == "`a` runs: it committed 2s ago; so did 1 more in the last 45s: `b`"
    };
    assert!(items.iter().any(|item| told(&item)), "{items:?}");
}

/// A backlog is a cross when it grows, or when nobody works on it; not when it shrinks, and not when it is no longer than read-ahead.
#[test]
fn a_backlog_is_a_cross_when_it_grows_or_lies() {
    let settings = settings();
    let bound = settings.pipeline.read_ahead_records as u64;
    let backlog = |unfinished, finished, arrived| {
        Ok(Some(Backlog {
            unfinished: vec![(TopicPartition::new("docs", 0), unfinished)],
            arrived,
            finished,
            apart: Duration::from_millis(1_500),
        }))
    };
    let mut found = healthy();
    for passes in [
        backlog(bound + 1, 9, 8),
        backlog(bound, 0, 8),
        backlog(bound + 1, 0, 0),
    ] {
        let items = judged_with(&found, &settings, &passes);
        assert!(items.iter().all(|item| item.passed), "{items:?}");
    }
    let items = judged_with(&found, &settings, &backlog(bound + 1, 7, 8));
    let item = cross(&items, "backlog");
    let numbers = "in 1.5 s 7 were finished and 8 arrived: it grows";
    assert!(item.detail.ends_with(numbers), "{item:?}");
    found.commits = Ok(Vec::new());
    let items = judged_with(&found, &settings, &backlog(1, 0, 0));
    let item = items.iter().find(|item| item.name == "backlog").unwrap();
    assert!(!item.passed && item.detail.contains("nobody"), "{item:?}");
    // Where it is not known, that is said, and the processor is judged all the same.
    let items = judged_with(&healthy(), &settings, &Err("no answer".to_owned()));
    assert!(cross(&items, "backlog").detail.contains("no answer"));
}

#[test]
fn a_context_has_room_for_more_than_prompt_and_answer() {
    let room = |context, prompt| {
        let room = Room {
            context,
            prompt,
            counted: true,
        };
        judge::room("context".to_owned(), 1_000, room)
    };
    let enough = room(Some(1_101), Some(100));
    assert!(
        enough.passed && enough.detail.contains("leaves 1 "),
        "{enough:?}"
    );
    let full = room(Some(1_100), Some(100));
    assert!(!full.passed && remedy(&full).contains("llm.max_tokens"));
    assert!(room(None, Some(100)).passed, "a server need not tell it");
    // A prompt that needs fields of a document is not counted.
    assert!(room(Some(1_001), None).passed);
    assert!(!room(Some(1_000), None).passed);
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
    let settings = Settings {
        kafka: KafkaConfig {
            brokers: "127.0.0.1:1".to_owned(),
            ..KafkaConfig::default()
        },
        llm: LlmConfig {
            url: "http://127.0.0.1:1".to_owned(),
            ..LlmConfig::default()
        },
        ..Settings::default()
    };
    let started = Instant::now();
    let mut out = Vec::new();
    let args = CheckArgs::default();
    let passed = run(args, &settings, &Terminal::plain(), &mut out).await;
    assert!(!passed.unwrap());
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
    let args = CheckArgs { json: true };
    let passed = run(args, &settings, &Terminal::plain(), &mut out).await;
    assert!(!passed.unwrap());
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(json["passed"], false);
}
