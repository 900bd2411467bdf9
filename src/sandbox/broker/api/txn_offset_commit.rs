//! TxnOffsetCommit, versions 0 to 3.
//!
//! Offsets that a group has when the transaction is committed. The group must be in the transaction, and the member must be one of it;
//! generation −1 with an empty member needs no membership. A fenced producer gets 47, as in Kafka.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::txn_offset_commit_request::TxnOffsetCommitRequestPartition;
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{TxnOffsetCommitRequest, TxnOffsetCommitResponse};
use tokio::time::Instant;

use super::super::connection::Context;
use super::super::groups::Caller;
use super::super::state::State;
use super::super::transactions::ProducerEpoch;
use super::offset_commit::checked;
use super::{Api, Reply};

impl Api for TxnOffsetCommitRequest {
    const SERVED: (i16, i16) = (0, 3);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=1 => "S S l s {S {i l S}}",
            2 => "S S l s {S {i l i S}}",
            _ => "S S l s i S S {S {i l i S}}",
        }
    }

    fn topics(&self) -> Vec<String> {
        self.topics
            .iter()
            .map(|topic| topic.name.to_string())
            .collect()
    }

    fn transactional_id(&self) -> Option<&str> {
        Some(&self.transactional_id)
    }

    fn refuse(&self, code: ResponseError) -> TxnOffsetCommitResponse {
        respond(self, |_, _| Err(code))
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<TxnOffsetCommitResponse> {
        let response = context.shared.change(|state| {
            let allowed = check(state, &self);
            respond(&self, |topic, partition| {
                if state.partition(topic, partition.partition_index).is_none() {
                    return Err(ResponseError::UnknownTopicOrPartition);
                }
                allowed?;
                commit(state, &self, topic, partition)
            })
        });
        Reply::Answer(response)
    }
}

fn respond(
    request: &TxnOffsetCommitRequest,
    mut each: impl FnMut(&str, &TxnOffsetCommitRequestPartition) -> Result<(), ResponseError>,
) -> TxnOffsetCommitResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let code = each(&topic.name, partition).map_or_else(|code| code.code(), |()| 0);
            TxnOffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code)
        });
        TxnOffsetCommitResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    TxnOffsetCommitResponse::default().with_topics(topics.collect())
}

/// Checks the producer, then the member.
fn check(state: &mut State, request: &TxnOffsetCommitRequest) -> Result<(), ResponseError> {
    let producer = ProducerEpoch {
        id: request.producer_id.0,
        epoch: request.producer_epoch,
    };
    let transactions = &state.transactions;
    transactions.verify_group(&request.transactional_id, producer, &request.group_id)?;
    let caller = Caller {
        member_id: &request.member_id,
        instance: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    let groups = &mut state.groups;
    groups.check_commit(&request.group_id, caller, true, Instant::now())
}

fn commit(
    state: &mut State,
    request: &TxnOffsetCommitRequest,
    topic: &str,
    partition: &TxnOffsetCommitRequestPartition,
) -> Result<(), ResponseError> {
    let committed = checked(
        partition.committed_offset,
        partition.committed_leader_epoch,
        partition.committed_metadata.as_deref(),
    )?;
    let place = (topic.to_owned(), partition.partition_index);
    let transactions = &mut state.transactions;
    transactions.commit_with(
        &request.transactional_id,
        &request.group_id,
        place,
        committed,
    );
    Ok(())
}
