//! What Kafka refuses, with Kafka's codes: one table, run against the sandbox always and against a real broker when `REAL_KAFKA` names
//! one.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    ApiVersionsRequest, BrokerId, CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest,
    DescribeConfigsRequest, FindCoordinatorRequest, GroupId, ListOffsetsRequest, MetadataRequest,
    OffsetCommitRequest, ProduceRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::wire::{Wire, batch, broker, fetch, name, patch, produce};

/// Time stamps near enough to now for Kafka's limits, whatever the day: −1 is no time stamp.
const NO_TIME: i64 = -1;

#[tokio::test]
async fn the_sandbox_refuses_what_kafka_refuses() {
    let broker = broker().await;
    let found = ask_everything(&broker.bootstrap()).await;
    assert_refusals(&found);
    broker.shutdown().await;
}

#[tokio::test]
async fn kafka_refuses_what_the_sandbox_refuses() {
    let Ok(address) = std::env::var("REAL_KAFKA") else {
        println!("skipped: REAL_KAFKA names no broker");
        return;
    };
    assert_refusals(&ask_everything(&address).await);
}

pub(crate) fn assert_refusals(found: &[(&'static str, i16, i16)]) {
    let wrong: Vec<_> = found
        .iter()
        .filter(|(_, expected, code)| expected != code)
        .collect();
    assert!(wrong.is_empty(), "(request, expected, got): {wrong:#?}");
}

/// (what is asked, the expected code, the code that came).
pub(crate) type Found = Vec<(&'static str, i16, i16)>;

async fn ask_everything(address: &str) -> Found {
    let mut wire = Wire::connect(address).await;
    let prefix = format!("refusals-{}", Uuid::new_v4().simple());
    let topic = format!("{prefix}-plain");
    let compacted = format!("{prefix}-compacted");
    create(
        &mut wire,
        creatable(&topic, &[("max.message.bytes", "1000")]),
    )
    .await;
    create(
        &mut wire,
        creatable(&compacted, &[("cleanup.policy", "compact")]),
    )
    .await;
    let mut found = Vec::new();
    creations(&mut wire, &prefix, &topic, &mut found).await;
    productions(&mut wire, &topic, &compacted, &mut found).await;
    readings(&mut wire, &topic, &mut found).await;
    commits(&mut wire, &topic, &mut found).await;
    others(&mut wire, &topic, &compacted, &mut found).await;
    found
}

pub(crate) fn creatable(topic: &str, configs: &[(&str, &str)]) -> CreatableTopic {
    let configs = configs.iter().map(|(name, value)| {
        CreatableTopicConfig::default()
            .with_name(StrBytes::from_string((*name).to_owned()))
            .with_value(Some(StrBytes::from_string((*value).to_owned())))
    });
    CreatableTopic::default()
        .with_name(name(topic))
        .with_num_partitions(1)
        .with_replication_factor(1)
        .with_configs(configs.collect())
}

pub(crate) async fn create(wire: &mut Wire, topic: CreatableTopic) -> i16 {
    let request = CreateTopicsRequest::default()
        .with_topics(vec![topic])
        .with_timeout_ms(10_000);
    wire.call(7, &request).await.topics[0].error_code
}

async fn creations(wire: &mut Wire, prefix: &str, topic: &str, found: &mut Found) {
    let new = format!("{prefix}-new");
    let cases = [
        ("create: exists", 36, creatable(topic, &[])),
        (
            "create: unknown config",
            40,
            creatable(&new, &[("no.such", "1")]),
        ),
        (
            "create: config of another type",
            40,
            creatable(&new, &[("retention.ms", "soon")]),
        ),
        (
            "create: config out of range",
            40,
            creatable(&new, &[("max.message.bytes", "-1")]),
        ),
        (
            "create: unknown policy",
            40,
            creatable(&new, &[("cleanup.policy", "keep")]),
        ),
        (
            "create: zero partitions",
            37,
            creatable(&new, &[]).with_num_partitions(0),
        ),
        (
            "create: negative partitions",
            37,
            creatable(&new, &[]).with_num_partitions(-2),
        ),
        (
            "create: replication 0",
            38,
            creatable(&new, &[]).with_replication_factor(0),
        ),
        (
            "create: replication 3",
            38,
            creatable(&new, &[]).with_replication_factor(3),
        ),
        ("create: empty name", 17, creatable("", &[])),
        ("create: name with a blank", 17, creatable("a b", &[])),
        ("create: name of dots", 17, creatable("..", &[])),
        ("create: long name", 17, creatable(&"x".repeat(250), &[])),
        (
            "create: names collide",
            17,
            creatable(&format!("{prefix}_x.y"), &[]),
        ),
    ];
    create(wire, creatable(&format!("{prefix}_x_y"), &[])).await;
    for (what, expected, topic) in cases {
        found.push((what, expected, create(wire, topic).await));
    }
    let twice = CreateTopicsRequest::default()
        .with_topics(vec![creatable(&new, &[]), creatable(&new, &[])])
        .with_timeout_ms(10_000);
    let answer = wire.call(7, &twice).await;
    found.push(("create: one name twice", 42, answer.topics[0].error_code));
    let delete = DeleteTopicsRequest::default()
        .with_timeout_ms(10_000)
        .with_topics(vec![
            DeleteTopicState::default().with_name(Some(name(&new))),
        ]);
    let answer = wire.call(6, &delete).await;
    found.push(("delete: unknown topic", 3, answer.responses[0].error_code));
}

async fn produced(wire: &mut Wire, request: &ProduceRequest) -> i16 {
    let answer = wire.call(9, request).await;
    answer.responses[0].partition_responses[0].error_code
}

async fn productions(wire: &mut Wire, topic: &str, compacted: &str, found: &mut Found) {
    let one = || batch(&[(Some("k"), "v")], NO_TIME);
    let two = [one(), one()].concat();
    let mut corrupt = one();
    corrupt[69] ^= 1;
    let mut magic_1 = one();
    magic_1[16] = 1;
    let large = "x".repeat(2_000);
    let (past, future) = (1_000, 9_000_000_000_000);
    let keyless = || batch(&[(None, "v")], NO_TIME);
    let cases: Vec<(_, _, &str, i32, BytesMut)> = vec![
        ("produce: good", 0, topic, 0, one()),
        (
            "produce: long ago",
            0,
            topic,
            0,
            batch(&[(None, "v")], past),
        ),
        (
            "produce: in the future",
            32,
            topic,
            0,
            batch(&[(None, "v")], future),
        ),
        ("produce: unknown topic", 3, "no-such-topic", 0, one()),
        ("produce: unknown partition", 3, topic, 9, one()),
        ("produce: negative partition", 3, topic, -1, one()),
        ("produce: nothing", 87, topic, 0, BytesMut::new()),
        (
            "produce: two batches",
            87,
            topic,
            0,
            BytesMut::from(&two[..]),
        ),
        ("produce: magic 1", 87, topic, 0, magic_1),
        ("produce: checksum", 2, topic, 0, corrupt),
        (
            "produce: too large",
            10,
            topic,
            0,
            batch(&[(None, &large)], NO_TIME),
        ),
        (
            "produce: base offset",
            87,
            topic,
            0,
            patch(one(), 0, &5_i64.to_be_bytes()),
        ),
        (
            "produce: control",
            87,
            topic,
            0,
            patch(one(), 21, &32_i16.to_be_bytes()),
        ),
        (
            "produce: count of 0",
            87,
            topic,
            0,
            patch(one(), 57, &0_i32.to_be_bytes()),
        ),
        (
            "produce: count of 2",
            87,
            topic,
            0,
            patch(one(), 57, &2_i32.to_be_bytes()),
        ),
        (
            "produce: last offset",
            87,
            topic,
            0,
            patch(one(), 23, &3_i32.to_be_bytes()),
        ),
        ("produce: keyless, compacted", 87, compacted, 0, keyless()),
        ("produce: keyed, compacted", 0, compacted, 0, one()),
    ];
    for (what, expected, topic, partition, records) in cases {
        let request = produce(topic, partition, Bytes::from(records));
        found.push((what, expected, produced(wire, &request).await));
    }
    let acks = produce(topic, 0, one()).with_acks(2);
    found.push(("produce: acks 2", 21, produced(wire, &acks).await));
}

async fn readings(wire: &mut Wire, topic: &str, found: &mut Found) {
    let with_epoch = |epoch| {
        let mut request = fetch(topic, 0, 0);
        request.topics[0].partitions[0].current_leader_epoch = epoch;
        request
    };
    let cases = [
        ("fetch: good", 0, fetch(topic, 0, 0)),
        ("fetch: at the end", 0, fetch(topic, 0, 2)),
        ("fetch: beyond the end", 1, fetch(topic, 0, 99)),
        ("fetch: negative offset", 1, fetch(topic, 0, -1)),
        ("fetch: unknown topic", 3, fetch("no-such-topic", 0, 0)),
        ("fetch: unknown partition", 3, fetch(topic, 9, 0)),
        ("fetch: same epoch", 0, with_epoch(0)),
        ("fetch: newer epoch", 75, with_epoch(5)),
    ];
    for (what, expected, request) in cases {
        let answer = wire.call(12, &request).await;
        let code = answer.responses[0].partitions[0].error_code;
        found.push((what, expected, code));
    }
    let session = fetch(topic, 0, 0).with_session_id(7).with_session_epoch(1);
    found.push((
        "fetch: unknown session",
        70,
        wire.call(12, &session).await.error_code,
    ));
    for (what, expected, topic, timestamp) in [
        ("offsets: latest", 0, topic, -1),
        ("offsets: earliest", 0, topic, -2),
        ("offsets: largest time stamp", 0, topic, -3),
        ("offsets: by time", 0, topic, 5),
        ("offsets: unknown topic", 3, "no-such-topic", -1),
    ] {
        let wanted = ListOffsetsPartition::default().with_timestamp(timestamp);
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_topics(vec![
                ListOffsetsTopic::default()
                    .with_name(name(topic))
                    .with_partitions(vec![wanted]),
            ]);
        let answer = wire.call(7, &request).await;
        found.push((what, expected, answer.topics[0].partitions[0].error_code));
    }
}

async fn commits(wire: &mut Wire, topic: &str, found: &mut Found) {
    let group = format!("group-{}", Uuid::new_v4().simple());
    let find = FindCoordinatorRequest::default()
        .with_coordinator_keys(vec![StrBytes::from_string(group.clone())]);
    // A young cluster answers 15 while it makes the topic of the offsets, and 16 while it loads it.
    let mut coordinator = 15;
    for _ in 0..100 {
        coordinator = wire.call(4, &find).await.coordinators[0].error_code;
        if coordinator == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    found.push(("coordinator: of a group", 0, coordinator));
    let unknown_kind = find.clone().with_key_type(9);
    let answer = wire.try_call(4, &unknown_kind).await;
    let code = answer.map_or(42, |answer| answer.coordinators[0].error_code);
    found.push(("coordinator: unknown kind", 42, code));
    let commit = |topic: &str, generation: i32, member: &str| {
        let partition = OffsetCommitRequestPartition::default().with_committed_offset(1);
        OffsetCommitRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(group.clone())))
            .with_generation_id_or_member_epoch(generation)
            .with_member_id(StrBytes::from_string(member.to_owned()))
            .with_topics(vec![
                OffsetCommitRequestTopic::default()
                    .with_name(name(topic))
                    .with_partitions(vec![partition]),
            ])
    };
    let long = {
        let mut request = commit(topic, -1, "");
        request.topics[0].partitions[0].committed_metadata =
            Some(StrBytes::from_string("m".repeat(5_000)));
        request
    };
    for (what, expected, request) in [
        (
            "commit: generation of an unknown group",
            22,
            commit(topic, 3, "m"),
        ),
        ("commit: without membership", 0, commit(topic, -1, "")),
        ("commit: unknown topic", 3, commit("no-such-topic", -1, "")),
        (
            "commit: member of a group without members",
            25,
            commit(topic, 3, "m"),
        ),
        ("commit: long metadata", 12, long),
    ] {
        let mut code = 16;
        for _ in 0..100 {
            let answer = wire.call(8, &request).await;
            code = answer.topics[0].partitions[0].error_code;
            if code != 16 && code != 14 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        found.push((what, expected, code));
    }
}

async fn others(wire: &mut Wire, topic: &str, compacted: &str, found: &mut Found) {
    for (what, expected, topic, offset) in [
        ("delete records: beyond the end", 1, topic, 99),
        ("delete records: compacted", 44, compacted, 1),
        ("delete records: unknown topic", 3, "no-such-topic", 0),
        ("delete records: good", 0, topic, 1),
    ] {
        let partition = DeleteRecordsPartition::default().with_offset(offset);
        let topic = DeleteRecordsTopic::default()
            .with_name(name(topic))
            .with_partitions(vec![partition]);
        let request = DeleteRecordsRequest::default()
            .with_timeout_ms(10_000)
            .with_topics(vec![topic]);
        let answer = wire.call(2, &request).await;
        found.push((what, expected, answer.topics[0].partitions[0].error_code));
    }
    let answer = wire.call(12, &fetch(topic, 0, 0)).await;
    let code = answer.responses[0].partitions[0].error_code;
    found.push(("fetch: below the log start", 1, code));
    for (what, expected, kind, resource) in [
        ("configs: of a topic", 0, 2, topic),
        ("configs: unknown topic", 3, 2, "no-such-topic"),
        ("configs: of another broker", 42, 4, "99"),
    ] {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(StrBytes::from_string(resource.to_owned()))
            .with_configuration_keys(None);
        let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
        found.push((
            what,
            expected,
            wire.call(4, &request).await.results[0].error_code,
        ));
    }
    for (what, expected, asked) in [
        ("metadata: unknown topic", 3, Some(name("no-such-topic"))),
        ("metadata: invalid name", 17, Some(name("a b"))),
        ("metadata: unknown id", 100, None),
    ] {
        let id = if asked.is_none() {
            Uuid::new_v4()
        } else {
            Uuid::nil()
        };
        let asked = MetadataRequestTopic::default()
            .with_topic_id(id)
            .with_name(asked);
        let request = MetadataRequest::default().with_topics(Some(vec![asked]));
        found.push((
            what,
            expected,
            wire.call(12, &request).await.topics[0].error_code,
        ));
    }
    let sasl = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str("PLAIN"));
    found.push((
        "sasl: on an open listener",
        34,
        wire.call(1, &sasl).await.error_code,
    ));
    let unnamed = ApiVersionsRequest::default();
    found.push((
        "versions: unnamed client",
        42,
        wire.call(3, &unnamed).await.error_code,
    ));
}
