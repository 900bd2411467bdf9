//! The classic protocol of consumer groups, step by step on raw requests.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_llm_processor::sandbox::broker::{
    ApiKey, Broker, BrokerConfig, ErrorCode, GroupState, GroupView,
};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ConsumerProtocolSubscription, GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, OffsetCommitRequest, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use tokio::time::{Duration, timeout};

use crate::wire::{DEADLINE, Wire, name};

pub(crate) fn word(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

pub(crate) fn id(group: &str) -> GroupId {
    GroupId(word(group))
}

/// A subscription to one topic, as a consumer writes it. Kafka reads it, and never answers a join whose subscription announces more
/// topics than it has bytes.
pub(crate) fn subscription(topic: &str) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(0);
    ConsumerProtocolSubscription::default()
        .with_topics(vec![word(topic)])
        .encode(&mut out, 0)
        .unwrap();
    out.freeze()
}

pub(crate) fn join(group: &str, member: &str, instance: Option<&str>) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(word("range"))
        .with_metadata(subscription("t"));
    JoinGroupRequest::default()
        .with_group_id(id(group))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_member_id(word(member))
        .with_group_instance_id(instance.map(word))
        .with_protocol_type(word("consumer"))
        .with_protocols(vec![protocol])
}

pub(crate) fn sync(
    group: &str,
    member: &str,
    generation: i32,
    assignments: &[(&str, &'static str)],
) -> SyncGroupRequest {
    let assignments = assignments.iter().map(|(member, assignment)| {
        SyncGroupRequestAssignment::default()
            .with_member_id(word(member))
            .with_assignment(Bytes::from_static(assignment.as_bytes()))
    });
    SyncGroupRequest::default()
        .with_group_id(id(group))
        .with_member_id(word(member))
        .with_generation_id(generation)
        .with_protocol_type(Some(word("consumer")))
        .with_protocol_name(Some(word("range")))
        .with_assignments(assignments.collect())
}

pub(crate) fn heartbeat(group: &str, member: &str, generation: i32) -> HeartbeatRequest {
    HeartbeatRequest::default()
        .with_group_id(id(group))
        .with_member_id(word(member))
        .with_generation_id(generation)
}

pub(crate) fn leave(group: &str, member: &str, instance: Option<&str>) -> LeaveGroupRequest {
    let member = MemberIdentity::default()
        .with_member_id(word(member))
        .with_group_instance_id(instance.map(word));
    LeaveGroupRequest::default()
        .with_group_id(id(group))
        .with_members(vec![member])
}

pub(crate) fn commit(
    group: &str,
    topic: &str,
    member: &str,
    generation: i32,
) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(1);
    let topic = OffsetCommitRequestTopic::default()
        .with_name(name(topic))
        .with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(id(group))
        .with_member_id(word(member))
        .with_generation_id_or_member_epoch(generation)
        .with_topics(vec![topic])
}

/// A member with its own connection.
pub(crate) struct Member {
    pub(crate) wire: Wire,
    pub(crate) id: String,
    pub(crate) joined: JoinGroupResponse,
}

impl Member {
    /// Asks for an id and sends the second join, without waiting for its answer.
    pub(crate) async fn begin(address: &str, group: &str) -> (Wire, String) {
        let mut wire = Wire::connect(address).await;
        let first = wire.call(9, &join(group, "", None)).await;
        assert_eq!(first.error_code, 79);
        let id = first.member_id.to_string();
        wire.send(9, &join(group, &id, None)).await;
        (wire, id)
    }

    pub(crate) async fn joined((mut wire, id): (Wire, String)) -> Self {
        let joined: JoinGroupResponse = wire.receive::<JoinGroupRequest>(9).await;
        assert_eq!(joined.error_code, 0);
        assert_eq!(joined.member_id.as_str(), id);
        Self { wire, id, joined }
    }

    pub(crate) async fn alone(address: &str, group: &str) -> Self {
        let mut member = Self::joined(Self::begin(address, group).await).await;
        assert_eq!(member.joined.leader.as_str(), member.id);
        let request = sync(
            group,
            &member.id,
            member.generation(),
            &[(&member.id, "all")],
        );
        let synced = member.wire.call(5, &request).await;
        assert_eq!(
            (synced.error_code, &synced.assignment[..]),
            (0, &b"all"[..])
        );
        member
    }

    pub(crate) fn generation(&self) -> i32 {
        self.joined.generation_id
    }

    pub(crate) async fn heartbeat(&mut self, group: &str) -> i16 {
        let request = heartbeat(group, &self.id, self.generation());
        self.wire.call(4, &request).await.error_code
    }

    pub(crate) async fn rejoin(&mut self, group: &str) {
        self.wire.send(9, &join(group, &self.id, None)).await;
    }

    pub(crate) async fn receive_join(&mut self) {
        self.joined = self.wire.receive::<JoinGroupRequest>(9).await;
        assert_eq!(self.joined.error_code, 0);
    }

    pub(crate) async fn receive_sync(&mut self) -> SyncGroupResponse {
        self.wire.receive::<SyncGroupRequest>(5).await
    }
}

pub(crate) async fn start(config: BrokerConfig) -> Broker {
    let broker = Broker::start(config).await.unwrap();
    broker.create_topic("t", 2, &[]).unwrap();
    broker
}

/// Two members come, share the work, and one leaves.
#[tokio::test]
async fn members_come_and_go() {
    let broker = start(BrokerConfig::default()).await;
    let server = broker.bootstrap();
    let mut first = Member::alone(&server, "g").await;
    assert_eq!(first.generation(), 1);
    let second = Member::begin(&server, "g").await;
    let is_joining = |view: &GroupView| view.state == GroupState::PreparingRebalance;
    let wait = timeout(DEADLINE, broker.wait_for_group("g", is_joining));
    assert_eq!(wait.await.unwrap().generation, 1);
    assert_eq!(first.heartbeat("g").await, 27, "a rebalance begins");
    first.rejoin("g").await;
    first.receive_join().await;
    let mut second = Member::joined(second).await;
    assert_eq!((first.generation(), second.generation()), (2, 2));
    assert_eq!(first.joined.members.len(), 2, "the leader sees all members");
    assert!(second.joined.members.is_empty(), "others do not");
    assert_eq!(first.heartbeat("g").await, 0);
    assert_eq!(
        first
            .wire
            .call(8, &commit("g", "t", &first.id, 2))
            .await
            .topics[0]
            .partitions[0]
            .error_code,
        27,
        "no commit while the assignment is awaited"
    );
    second.wire.send(5, &sync("g", &second.id, 2, &[])).await;
    let (one, two) = (first.id.clone(), second.id.clone());
    let shares = [(one.as_str(), "one"), (two.as_str(), "two")];
    let request = sync("g", &first.id, 2, &shares);
    assert_eq!(&first.wire.call(5, &request).await.assignment[..], b"one");
    assert_eq!(&second.receive_sync().await.assignment[..], b"two");
    let view = broker.group("g").unwrap();
    assert_eq!((view.state, view.generation), (GroupState::Stable, 2));
    assert_eq!(view.leader.as_deref(), Some(first.id.as_str()));
    let assigned = view
        .members
        .iter()
        .map(|one| (one.member_id.as_str(), &one.assignment[..]));
    assert_eq!(
        assigned.collect::<BTreeMap<_, _>>(),
        shares
            .iter()
            .map(|(id, share)| (*id, share.as_bytes()))
            .collect()
    );
    assert_eq!(
        first
            .wire
            .call(8, &commit("g", "t", &first.id, 2))
            .await
            .topics[0]
            .partitions[0]
            .error_code,
        0
    );
    let left = first.wire.call(5, &leave("g", &first.id, None)).await;
    assert_eq!((left.error_code, left.members[0].error_code), (0, 0));
    assert_eq!(second.heartbeat("g").await, 27);
    second.rejoin("g").await;
    second.receive_join().await;
    assert_eq!(
        (second.generation(), second.joined.leader.as_str()),
        (3, second.id.as_str())
    );
    assert_eq!(first.heartbeat("g").await, 25);
    broker.shutdown().await;
}

#[tokio::test]
async fn faults_meet_the_requests_of_members() {
    let broker = start(BrokerConfig::default()).await;
    let server = broker.bootstrap();
    let faults = broker.faults();
    let lost = faults.on(ApiKey::JoinGroup).hang_up_before();
    let mut wire = Wire::connect(&server).await;
    let answer = wire.try_call(9, &join("g", "", Some("i"))).await;
    assert!(answer.is_none() && lost.hits() == 1);
    assert_eq!(broker.group("g"), None, "the request was not handled");

    let unheard = faults.on(ApiKey::JoinGroup).hang_up_after();
    let mut wire = Wire::connect(&server).await;
    let answer = wire.try_call(9, &join("g", "", Some("i"))).await;
    assert!(answer.is_none() && unheard.hits() == 1);
    let view = broker.group("g").unwrap();
    assert_eq!((view.generation, view.members.len()), (1, 1));

    let mut member = Member::alone(&server, "h").await;
    let held = faults.on(ApiKey::Heartbeat).hold();
    let beat = heartbeat("h", &member.id, member.generation());
    member.wire.send(4, &beat).await;
    timeout(DEADLINE, held.wait_for_hits(1)).await.unwrap();
    let mut other = Wire::connect(&server).await;
    assert_eq!(
        other.call(4, &beat).await.error_code,
        0,
        "others are served"
    );
    held.release();
    let answer = member.wire.receive::<HeartbeatRequest>(4).await;
    assert_eq!(answer.error_code, 0);

    let moved = faults
        .on(ApiKey::SyncGroup)
        .answer(ErrorCode::NotCoordinator);
    let again = sync("h", &member.id, member.generation(), &[]);
    assert_eq!(member.wire.call(5, &again).await.error_code, 16);
    assert_eq!(member.wire.call(5, &again).await.error_code, 0);
    assert_eq!(moved.hits(), 1);

    let silent = faults.on(ApiKey::LeaveGroup).silent_after();
    member.wire.send(5, &leave("h", &member.id, None)).await;
    timeout(DEADLINE, silent.wait_for_hits(1)).await.unwrap();
    let is_empty = |view: &GroupView| view.state == GroupState::Empty;
    let wait = timeout(DEADLINE, broker.wait_for_group("h", is_empty));
    assert!(wait.await.unwrap().members.is_empty());
    broker.shutdown().await;
}

/// A stopped listener stands for a broker that restarts: members keep their place, and their sessions begin anew.
#[tokio::test]
async fn members_survive_a_stop_and_a_start_of_the_listener() {
    let broker = start(BrokerConfig::default()).await;
    let server = broker.bootstrap();
    let mut member = Member::alone(&server, "g").await;
    let before = broker.group("g").unwrap();
    broker.stop_listener().await;
    broker.start_listener().await.unwrap();
    member.wire = Wire::connect(&server).await;
    assert_eq!(member.heartbeat("g").await, 0);
    assert_eq!(broker.group("g").unwrap(), before);
    broker.shutdown().await;
}

/// The clock of the groups ends a session without any request coming.
#[tokio::test]
async fn a_session_ends_by_itself() {
    let config = BrokerConfig {
        group_session_timeout_min: Duration::from_millis(1),
        ..BrokerConfig::default()
    };
    let broker = start(config).await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let request = join("g", "", Some("i")).with_session_timeout_ms(300);
    let joined = wire.call(9, &request).await;
    assert_eq!(joined.error_code, 0);
    let is_empty = |view: &GroupView| view.state == GroupState::Empty;
    let wait = timeout(DEADLINE, broker.wait_for_group("g", is_empty));
    assert_eq!(wait.await.unwrap().generation, 2);
    let beat = heartbeat("g", &joined.member_id, 1);
    assert_eq!(wire.call(4, &beat).await.error_code, 25);
    broker.shutdown().await;
}

/// A broker that ends does not wait for the joins that wait.
#[tokio::test]
async fn a_waiting_join_does_not_hold_up_the_end() {
    let config = BrokerConfig {
        group_initial_rebalance_delay: Duration::from_secs(3600),
        ..BrokerConfig::default()
    };
    let broker = start(config).await;
    let (mut wire, _) = Member::begin(&broker.bootstrap(), "g").await;
    let is_joining = |view: &GroupView| view.state == GroupState::PreparingRebalance;
    let wait = timeout(DEADLINE, broker.wait_for_group("g", is_joining));
    assert_eq!(wait.await.unwrap().generation, 0);
    timeout(DEADLINE, broker.shutdown()).await.unwrap();
    assert!(wire.try_receive::<JoinGroupRequest>(9).await.is_none());
}
