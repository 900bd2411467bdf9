//! OffsetCommit, versions 2 to 8.
//!
//! A member commits with its id and generation; generation −1 is for clients without membership, and is taken while the group has no
//! members. Retention is not served: offsets stay.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::{OffsetCommitRequest, OffsetCommitResponse};
use tokio::time::Instant;

use super::super::connection::Context;
use super::super::groups::{Caller, Committed};
use super::super::state::State;
use super::{Api, Reply};

/// Kafka's `offset.metadata.max.bytes`.
const METADATA_BYTES_MAX: usize = 4096;

impl Api for OffsetCommitRequest {
    const SERVED: (i16, i16) = (2, 8);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=4 => "S i S l {S {i l S}}",
            5 => "S i S {S {i l S}}",
            6 => "S i S {S {i l i S}}",
            _ => "S i S S {S {i l i S}}",
        }
    }

    fn topics(&self) -> Vec<String> {
        self.topics
            .iter()
            .map(|topic| topic.name.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> OffsetCommitResponse {
        respond(self, |_, _| Err(code))
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<OffsetCommitResponse> {
        let group = self.group_id.to_string();
        let response = context.shared.change(|state| {
            let member = check_member(state, &self, Instant::now());
            respond(&self, |topic, partition| {
                if state.partition(topic, partition.partition_index).is_none() {
                    return Err(ResponseError::UnknownTopicOrPartition);
                }
                member?;
                commit(state, &group, topic, partition)
            })
        });
        Reply::Answer(response)
    }
}

fn respond(
    request: &OffsetCommitRequest,
    mut each: impl FnMut(&str, &OffsetCommitRequestPartition) -> Result<(), ResponseError>,
) -> OffsetCommitResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let code = each(&topic.name, partition).map_or_else(|code| code.code(), |()| 0);
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code)
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

fn check_member(
    state: &mut State,
    request: &OffsetCommitRequest,
    now: Instant,
) -> Result<(), ResponseError> {
    let caller = Caller {
        member_id: &request.member_id,
        instance: request.group_instance_id.as_deref(),
        generation: request.generation_id_or_member_epoch,
    };
    let groups = &mut state.groups;
    groups.check_commit(&request.group_id, caller, false, now)
}

fn commit(
    state: &mut State,
    group: &str,
    topic: &str,
    partition: &OffsetCommitRequestPartition,
) -> Result<(), ResponseError> {
    let committed = checked(
        partition.committed_offset,
        partition.committed_leader_epoch,
        partition.committed_metadata.as_deref(),
    )?;
    let groups = &mut state.groups;
    if groups.commit(group, topic, partition.partition_index, committed) {
        Ok(())
    } else {
        Err(ResponseError::CoordinatorNotAvailable)
    }
}

/// What a group keeps of a committed offset, in a transaction too.
pub(super) fn checked(
    offset: i64,
    leader_epoch: i32,
    metadata: Option<&str>,
) -> Result<Committed, ResponseError> {
    let metadata = metadata.unwrap_or_default();
    if metadata.len() > METADATA_BYTES_MAX {
        return Err(ResponseError::OffsetMetadataTooLarge);
    }
    Ok(Committed {
        offset,
        leader_epoch,
        metadata: metadata.to_owned(),
    })
}
