//! The requests of a member and the checks of their answers.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity as Leaver;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::MembershipConfig;
use super::protocol::Topics;
use crate::kafka::KafkaError;
use crate::kafka::wire::api::check_code;
use crate::kafka::wire::group::group_id;

/// Kafka's name for groups that read topics; its tools show the partitions of no others.
const PROTOCOL_TYPE: &str = "consumer";

/// The name of our assignor. A consumer of another kind under the same group id offers no protocol of this name, so the coordinator
/// keeps it out instead of giving it documents.
pub(super) const PROTOCOL: &str = "kafka-llm-processor-sticky";

/// What an error of the coordinator means to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The group is being dealt anew: join again, keep working.
    Rebalance,
    /// It counts us out; the member id may still be good.
    Lost,
    /// It counts us out and has forgotten the member id.
    Forgotten,
    /// Another process has joined with our instance id.
    Fenced,
    /// It says nothing about the membership.
    Unclear,
}

pub(super) fn verdict(error: &KafkaError) -> Verdict {
    let KafkaError::Server { code, .. } = error else {
        return Verdict::Unclear;
    };
    match ResponseError::try_from_code(*code) {
        Some(ResponseError::RebalanceInProgress) => Verdict::Rebalance,
        Some(ResponseError::IllegalGeneration) => Verdict::Lost,
        Some(ResponseError::UnknownMemberId) => Verdict::Forgotten,
        Some(ResponseError::FencedInstanceId) => Verdict::Fenced,
        _ => Verdict::Unclear,
    }
}

/// How the coordinator takes a member in.
#[derive(Debug)]
pub(super) enum Joined {
    /// It wants the member to join again under this id, so that an answer that gets lost leaves nobody behind (KIP-394).
    IdGiven(String),
    Member(Membership),
}

#[derive(Debug)]
pub(super) struct Membership {
    pub(super) member_id: String,
    pub(super) generation: i32,
    pub(super) is_leader: bool,
    /// A static leader that came back: everybody keeps what they have (KIP-814).
    pub(super) skip_assignment: bool,
    /// All members, for the leader only: member id, instance id, what it told.
    pub(super) members: Vec<(String, Option<String>, Bytes)>,
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn instance(config: &MembershipConfig) -> Option<StrBytes> {
    config.instance_id.as_deref().map(text)
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

pub(super) fn join_request(
    config: &MembershipConfig,
    member_id: &str,
    metadata: &Bytes,
) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(StrBytes::from_static_str(PROTOCOL))
        .with_metadata(metadata.clone());
    JoinGroupRequest::default()
        .with_group_id(group_id(&config.group_id))
        .with_session_timeout_ms(millis(config.session_timeout))
        .with_rebalance_timeout_ms(millis(config.rebalance_timeout))
        .with_member_id(text(member_id))
        .with_group_instance_id(instance(config))
        .with_protocol_type(StrBytes::from_static_str(PROTOCOL_TYPE))
        .with_protocols(vec![protocol])
}

pub(super) fn check_join(group: &str, answer: JoinGroupResponse) -> Result<Joined, KafkaError> {
    let member_id = answer.member_id.to_string();
    let error = ResponseError::try_from_code(answer.error_code);
    if error == Some(ResponseError::MemberIdRequired) && !member_id.is_empty() {
        return Ok(Joined::IdGiven(member_id));
    }
    check_code(
        format!("JoinGroup of group {group}"),
        answer.error_code,
        None,
    )?;
    if member_id.is_empty() || answer.generation_id < 0 {
        return Err(KafkaError::Protocol {
            operation: "JoinGroup",
            detail: "it names no member id or no generation".to_owned(),
        });
    }
    let members = answer.members.into_iter().map(|member| {
        (
            member.member_id.to_string(),
            member.group_instance_id.map(|id| id.to_string()),
            member.metadata,
        )
    });
    Ok(Joined::Member(Membership {
        is_leader: answer.leader.as_str() == member_id,
        member_id,
        generation: answer.generation_id,
        skip_assignment: answer.skip_assignment,
        members: members.collect(),
    }))
}

pub(super) fn sync_request(
    config: &MembershipConfig,
    (member_id, generation): (&str, i32),
    dealt: &BTreeMap<String, Bytes>,
    version: i16,
) -> SyncGroupRequest {
    let assignments = dealt.iter().map(|(member, assignment)| {
        SyncGroupRequestAssignment::default()
            .with_member_id(text(member))
            .with_assignment(assignment.clone())
    });
    let request = SyncGroupRequest::default()
        .with_group_id(group_id(&config.group_id))
        .with_generation_id(generation)
        .with_member_id(text(member_id))
        .with_group_instance_id(instance(config))
        .with_assignments(assignments.collect());
    if version >= 5 {
        request
            .with_protocol_type(Some(StrBytes::from_static_str(PROTOCOL_TYPE)))
            .with_protocol_name(Some(StrBytes::from_static_str(PROTOCOL)))
    } else {
        request
    }
}

pub(super) fn check_sync(group: &str, answer: SyncGroupResponse) -> Result<Bytes, KafkaError> {
    check_code(
        format!("SyncGroup of group {group}"),
        answer.error_code,
        None,
    )?;
    Ok(answer.assignment)
}

pub(super) fn heartbeat_request(
    config: &MembershipConfig,
    (member_id, generation): (&str, i32),
) -> HeartbeatRequest {
    HeartbeatRequest::default()
        .with_group_id(group_id(&config.group_id))
        .with_generation_id(generation)
        .with_member_id(text(member_id))
        .with_group_instance_id(instance(config))
}

pub(super) fn check_heartbeat(group: &str, answer: &HeartbeatResponse) -> Result<(), KafkaError> {
    check_code(
        format!("Heartbeat of group {group}"),
        answer.error_code,
        None,
    )
}

pub(super) fn leave_request(
    config: &MembershipConfig,
    member_id: &str,
    version: i16,
) -> LeaveGroupRequest {
    let leaver = Leaver::default().with_member_id(text(member_id));
    let leaver = if version >= 5 {
        leaver.with_reason(Some(StrBytes::from_static_str("the process ends")))
    } else {
        leaver
    };
    LeaveGroupRequest::default()
        .with_group_id(group_id(&config.group_id))
        .with_members(vec![leaver])
}

pub(super) fn check_leave(group: &str, answer: &LeaveGroupResponse) -> Result<(), KafkaError> {
    let operation = || format!("LeaveGroup of group {group}");
    check_code(operation(), answer.error_code, None)?;
    for member in &answer.members {
        check_code(operation(), member.error_code, None)?;
    }
    Ok(())
}

/// Topics for a log line.
pub(super) fn names(topics: &Topics) -> String {
    let topics: Vec<_> = topics
        .iter()
        .map(|(topic, partitions)| format!("{topic} ({partitions})"))
        .collect();
    topics.join(", ")
}
