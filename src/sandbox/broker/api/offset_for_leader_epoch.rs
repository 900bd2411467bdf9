//! OffsetForLeaderEpoch, versions 2 to 4.
//!
//! Consumers ask it after a change of the leader epoch, to see whether the log was cut under them. Here it never is.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use super::super::connection::Context;
use super::super::state::State;
use super::{Api, Reply};

impl Api for OffsetForLeaderEpochRequest {
    const SERVED: (i16, i16) = (2, 4);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=2 => "{S {i i i}}",
            _ => "i {S {i i i}}",
        }
    }

    fn topics(&self) -> Vec<String> {
        self.topics
            .iter()
            .map(|topic| topic.topic.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> OffsetForLeaderEpochResponse {
        respond(self, |_, _| Err(code))
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<OffsetForLeaderEpochResponse> {
        let state = context.shared.state();
        let response = respond(&self, |topic, wanted| {
            look(&state, topic, wanted, context.client_id.as_deref())
        });
        Reply::Answer(response)
    }
}

fn respond(
    request: &OffsetForLeaderEpochRequest,
    each: impl Fn(&str, &OffsetForLeaderPartition) -> Result<(i32, i64), ResponseError>,
) -> OffsetForLeaderEpochResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|wanted| {
            let response = EpochEndOffset::default().with_partition(wanted.partition);
            match each(&topic.topic, wanted) {
                Ok((epoch, end)) => response.with_leader_epoch(epoch).with_end_offset(end),
                Err(code) => response
                    .with_error_code(code.code())
                    .with_leader_epoch(-1)
                    .with_end_offset(-1),
            }
        });
        OffsetForLeaderTopicResult::default()
            .with_topic(topic.topic.clone())
            .with_partitions(partitions.collect())
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

fn look(
    state: &State,
    topic: &str,
    wanted: &OffsetForLeaderPartition,
    client: Option<&str>,
) -> Result<(i32, i64), ResponseError> {
    let partition = state
        .partition(topic, wanted.partition)
        .ok_or(ResponseError::UnknownTopicOrPartition)?;
    partition.election.check(client)?;
    partition.check_epoch(wanted.current_leader_epoch)?;
    if wanted.leader_epoch > partition.leader_epoch {
        return Ok((-1, -1));
    }
    if wanted.leader_epoch == partition.leader_epoch {
        return Ok((partition.leader_epoch, partition.log.end()));
    }
    Ok(partition
        .log
        .end_of_epoch(wanted.leader_epoch)
        .unwrap_or((-1, -1)))
}
