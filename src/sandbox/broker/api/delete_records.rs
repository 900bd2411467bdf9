//! DeleteRecords, versions 0 to 2.
//!
//! Moves the log start offset. Refused on a topic whose policy lacks `delete` (44) and beyond the high watermark (1), as in Kafka.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_records_request::DeleteRecordsPartition;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse};

use super::super::connection::Context;
use super::super::state::State;
use super::{Api, Reply};

/// Asks for everything up to the high watermark.
const HIGH_WATERMARK: i64 = -1;

impl Api for DeleteRecordsRequest {
    const SERVED: (i16, i16) = (0, 2);

    fn layout(_: i16) -> &'static str {
        "{S {i l}} i"
    }

    fn topics(&self) -> Vec<String> {
        self.topics
            .iter()
            .map(|topic| topic.name.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> DeleteRecordsResponse {
        respond(self, |_, _| Err(code))
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<DeleteRecordsResponse> {
        let response = context
            .shared
            .change(|state| respond(&self, |topic, wanted| delete(state, topic, wanted)));
        Reply::Answer(response)
    }
}

fn respond(
    request: &DeleteRecordsRequest,
    mut each: impl FnMut(&str, &DeleteRecordsPartition) -> Result<i64, ResponseError>,
) -> DeleteRecordsResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|wanted| {
            let result = DeleteRecordsPartitionResult::default()
                .with_partition_index(wanted.partition_index);
            match each(&topic.name, wanted) {
                Ok(start) => result.with_low_watermark(start),
                Err(code) => result.with_low_watermark(-1).with_error_code(code.code()),
            }
        });
        DeleteRecordsTopicResult::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    DeleteRecordsResponse::default().with_topics(topics.collect())
}

fn delete(
    state: &mut State,
    topic: &str,
    wanted: &DeleteRecordsPartition,
) -> Result<i64, ResponseError> {
    let config = state.topics.get(topic).map(|topic| &topic.config);
    let may_delete = config.is_some_and(|config| config.may_delete_records());
    let log = state
        .partition_mut(topic, wanted.partition_index)
        .map(|partition| &mut partition.log)
        .ok_or(ResponseError::UnknownTopicOrPartition)?;
    if !may_delete {
        return Err(ResponseError::PolicyViolation);
    }
    let before = match wanted.offset {
        HIGH_WATERMARK => log.end(),
        offset => offset,
    };
    if before < 0 || before > log.end() {
        return Err(ResponseError::OffsetOutOfRange);
    }
    log.delete_before(before);
    Ok(log.start())
}
