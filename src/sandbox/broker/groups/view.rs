//! What a test and an operator see of a group.

use bytes::Bytes;
use kafka_protocol::messages::ConsumerProtocolAssignment;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::protocol::Decodable;

use super::super::layout;
use super::member::{Member, word};
use super::membership::{GroupState, Membership};
use crate::types::TopicPartition;

/// A consumer group at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupView {
    /// Its state.
    pub state: GroupState,
    /// The generation: it counts completed join phases.
    pub generation: i32,
    /// What kind of group it is, `consumer` for consumers; `None` when nobody ever joined.
    pub protocol_type: Option<String>,
    /// The assignor that was agreed on.
    pub protocol: Option<String>,
    /// Member id of the leader.
    pub leader: Option<String>,
    /// Its members, by member id.
    pub members: Vec<GroupMember>,
}

/// A member of a group at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// The id that the broker gave it.
    pub member_id: String,
    /// `group.instance.id` of a static member.
    pub instance_id: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// What the leader has assigned, as the consumer protocol writes it; empty when nothing is assigned.
    pub assignment: Bytes,
    /// The partitions in `assignment`; none when that is not of the consumer protocol.
    pub partitions: Vec<TopicPartition>,
}

impl Membership {
    pub(in super::super) fn state(&self) -> GroupState {
        self.state
    }

    pub(in super::super) fn protocol_type(&self) -> Option<&str> {
        self.protocol_type.as_deref()
    }

    pub(in super::super) fn view(&self) -> GroupView {
        let members = self.members.iter().map(|(id, member)| GroupMember {
            member_id: id.clone(),
            instance_id: member.instance.clone(),
            client_id: member.client_id.clone(),
            assignment: member.assignment.clone(),
            partitions: partitions(&member.assignment),
        });
        GroupView {
            state: self.state,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: members.collect(),
        }
    }

    /// The group as `DescribeGroups` tells it.
    pub(in super::super) fn describe(&self) -> DescribedGroup {
        let protocol = match self.state {
            GroupState::Stable => self.protocol.as_deref(),
            _ => None,
        };
        let members = self.members.iter().map(|(id, member)| {
            let described = described(id, member);
            match protocol {
                Some(protocol) => described
                    .with_member_metadata(member.metadata(protocol))
                    .with_member_assignment(member.assignment.clone()),
                None => described,
            }
        });
        DescribedGroup::default()
            .with_group_state(word(self.state.name()))
            .with_protocol_type(word(self.protocol_type.as_deref().unwrap_or_default()))
            .with_protocol_data(word(protocol.unwrap_or_default()))
            .with_members(members.collect())
    }
}

fn described(id: &str, member: &Member) -> DescribedGroupMember {
    DescribedGroupMember::default()
        .with_member_id(word(id))
        .with_group_instance_id(member.instance.as_deref().map(word))
        .with_client_id(word(&member.client_id))
        .with_client_host(word(&member.client_host))
}

/// The partitions that an assignment of the consumer protocol names.
fn partitions(assignment: &Bytes) -> Vec<TopicPartition> {
    let mut body = assignment.clone();
    let Some(version) = assignment.first_chunk().copied().map(i16::from_be_bytes) else {
        return Vec::new();
    };
    if !layout::is_sound("s {S [i]} B", false, &body) {
        return Vec::new();
    }
    drop(body.split_to(size_of::<i16>()));
    // Later versions only add to the end.
    let Ok(decoded) = ConsumerProtocolAssignment::decode(&mut body, version.clamp(0, 3)) else {
        return Vec::new();
    };
    let topics = decoded.assigned_partitions.iter();
    let named = topics.flat_map(|topic| {
        let name = topic.topic.as_str();
        topic
            .partitions
            .iter()
            .map(move |index| TopicPartition::new(name, *index))
    });
    named.collect()
}
