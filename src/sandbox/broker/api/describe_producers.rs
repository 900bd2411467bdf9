//! DescribeProducers, version 0.
//!
//! Who has written to a partition with a producer id, as `kafka-transactions.sh describe-producers` shows it. The epoch of the coordinator is
//! −1: the sandbox has no epochs of coordinators.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use kafka_protocol::messages::{DescribeProducersRequest, DescribeProducersResponse, ProducerId};

use super::super::connection::Context;
use super::super::state::Partition;
use super::{Api, Reply};

impl Api for DescribeProducersRequest {
    const SERVED: (i16, i16) = (0, 0);

    fn layout(_: i16) -> &'static str {
        "{S [i]}"
    }

    fn topics(&self) -> Vec<String> {
        self.topics
            .iter()
            .map(|topic| topic.name.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> DescribeProducersResponse {
        respond(self, |_, _| Err(code))
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<DescribeProducersResponse> {
        let state = context.shared.state();
        Reply::Answer(respond(&self, |topic, index| {
            let partition = state.partition(topic, index);
            partition
                .map(describe)
                .ok_or(ResponseError::UnknownTopicOrPartition)
        }))
    }
}

fn respond(
    request: &DescribeProducersRequest,
    each: impl Fn(&str, i32) -> Result<Vec<ProducerState>, ResponseError>,
) -> DescribeProducersResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|index| {
            let response = PartitionResponse::default().with_partition_index(*index);
            match each(&topic.name, *index) {
                Ok(producers) => response.with_active_producers(producers),
                Err(code) => response.with_error_code(code.code()),
            }
        });
        TopicResponse::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    DescribeProducersResponse::default().with_topics(topics.collect())
}

fn describe(partition: &Partition) -> Vec<ProducerState> {
    let producers = partition.log.producers().map(|producer| {
        ProducerState::default()
            .with_producer_id(ProducerId(producer.producer_id))
            .with_producer_epoch(i32::from(producer.epoch))
            .with_last_sequence(producer.last_sequence)
            .with_last_timestamp(producer.last_timestamp)
            .with_coordinator_epoch(-1)
            .with_current_txn_start_offset(producer.open_from.unwrap_or(-1))
    });
    producers.collect()
}
