//! ListOffsets, versions 1 to 7.
//!
//! Earliest (−2), latest (−1), the largest time stamp (−3, from version 7), and lookup by time. With `read_committed` the latest is the
//! last stable offset, and nothing behind it is found by time. In a batch whose codec is unknown, lookup by time answers the batch's
//! first offset instead of the record's.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse};

use super::super::connection::Context;
use super::super::log::FoundOffset;
use super::super::state::Partition;
use super::{Api, Reply};

const READ_COMMITTED: i8 = 1;
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
/// From this version on the largest time stamp may be asked for (KIP-734).
const MAX_TIMESTAMP_FROM: i16 = 7;
/// From this version on the answer has the leader epoch of the offset.
const LEADER_EPOCH_FROM: i16 = 4;

impl Api for ListOffsetsRequest {
    const SERVED: (i16, i16) = (1, 7);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=1 => "i {S {i l}}",
            2..=3 => "i b {S {i l}}",
            _ => "i b {S {i i l}}",
        }
    }

    fn topics(&self) -> Vec<String> {
        self.topics
            .iter()
            .map(|topic| topic.name.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> ListOffsetsResponse {
        respond(self, |_, _| Err(code))
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<ListOffsetsResponse> {
        let state = context.shared.state();
        let committed = self.isolation_level == READ_COMMITTED;
        let response = respond(&self, |topic, wanted| {
            let partition = state
                .partition(topic, wanted.partition_index)
                .ok_or(ResponseError::UnknownTopicOrPartition)?;
            partition.election.check(context.client_id.as_deref())?;
            let mut found = look(partition, wanted, committed, version)?;
            if version < LEADER_EPOCH_FROM {
                found.leader_epoch = -1;
            }
            Ok(found)
        });
        Reply::Answer(response)
    }
}

fn respond(
    request: &ListOffsetsRequest,
    find: impl Fn(&str, &ListOffsetsPartition) -> Result<FoundOffset, ResponseError>,
) -> ListOffsetsResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|wanted| {
            let response = ListOffsetsPartitionResponse::default()
                .with_partition_index(wanted.partition_index);
            match find(&topic.name, wanted) {
                Ok(found) => response
                    .with_offset(found.offset)
                    .with_timestamp(found.timestamp)
                    .with_leader_epoch(found.leader_epoch),
                Err(code) => response
                    .with_error_code(code.code())
                    .with_offset(-1)
                    .with_timestamp(-1)
                    .with_leader_epoch(-1),
            }
        });
        ListOffsetsTopicResponse::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

fn look(
    partition: &Partition,
    wanted: &ListOffsetsPartition,
    committed: bool,
    version: i16,
) -> Result<FoundOffset, ResponseError> {
    partition.check_epoch(wanted.current_leader_epoch)?;
    let log = &partition.log;
    let nothing = FoundOffset {
        offset: -1,
        timestamp: -1,
        leader_epoch: -1,
    };
    let end = if committed {
        log.last_stable()
    } else {
        log.end()
    };
    let below_end = |found: &FoundOffset| found.offset < end;
    match wanted.timestamp {
        LATEST => Ok(FoundOffset {
            offset: end,
            leader_epoch: partition.leader_epoch,
            ..nothing
        }),
        EARLIEST => Ok(FoundOffset {
            offset: log.start(),
            leader_epoch: log.epoch_at(log.start()).unwrap_or(-1),
            ..nothing
        }),
        MAX_TIMESTAMP if version >= MAX_TIMESTAMP_FROM => {
            let found = log.find_max_timestamp().filter(below_end);
            Ok(found.unwrap_or(nothing))
        }
        timestamp if timestamp >= 0 => {
            let found = log.find_by_time(timestamp).filter(below_end);
            Ok(found.unwrap_or(nothing))
        }
        _ => Err(ResponseError::UnsupportedVersion),
    }
}
