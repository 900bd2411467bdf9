//! AddPartitionsToTxn, versions 0 to 3.
//!
//! All partitions or none: where one does not exist it gets 3 and the others 55, and the transaction does not begin. Versions 4 and 5 are
//! for brokers among themselves.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::{AddPartitionsToTxnRequest, AddPartitionsToTxnResponse};

use super::super::connection::Context;
use super::super::state::State;
use super::super::transactions::ProducerEpoch;
use super::{Api, Reply, fenced_as_of};

impl Api for AddPartitionsToTxnRequest {
    const SERVED: (i16, i16) = (0, 3);

    fn layout(_: i16) -> &'static str {
        "S l s {S [i]}"
    }

    fn topics(&self) -> Vec<String> {
        self.v3_and_below_topics
            .iter()
            .map(|topic| topic.name.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> AddPartitionsToTxnResponse {
        respond(self, |_, _| code.code())
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<AddPartitionsToTxnResponse> {
        let response = context.shared.change(|state| {
            if partitions(&self).any(|(topic, index)| state.partition(topic, index).is_none()) {
                return refuse_missing(&self, state);
            }
            let producer = ProducerEpoch {
                id: self.v3_and_below_producer_id.0,
                epoch: self.v3_and_below_producer_epoch,
            };
            let added = state.transactions.add_partitions(
                &self.v3_and_below_transactional_id,
                producer,
                partitions(&self).map(|(topic, index)| (topic.to_owned(), index)),
            );
            let code = added.map_err(|code| fenced_as_of(version, code));
            let code = code.map_or_else(|code| code.code(), |()| 0);
            respond(&self, |_, _| code)
        });
        Reply::Answer(response)
    }
}

fn partitions(request: &AddPartitionsToTxnRequest) -> impl Iterator<Item = (&str, i32)> {
    let topics = request.v3_and_below_topics.iter();
    topics.flat_map(|topic| {
        let indexes = topic.partitions.iter();
        indexes.map(|index| (topic.name.as_str(), *index))
    })
}

fn refuse_missing(
    request: &AddPartitionsToTxnRequest,
    state: &State,
) -> AddPartitionsToTxnResponse {
    respond(request, |topic, index| {
        let code = match state.partition(topic, index) {
            None => ResponseError::UnknownTopicOrPartition,
            Some(_) => ResponseError::OperationNotAttempted,
        };
        code.code()
    })
}

fn respond(
    request: &AddPartitionsToTxnRequest,
    each: impl Fn(&str, i32) -> i16,
) -> AddPartitionsToTxnResponse {
    let topics = request.v3_and_below_topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|index| {
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*index)
                .with_partition_error_code(each(&topic.name, *index))
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name.clone())
            .with_results_by_partition(partitions.collect())
    });
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics.collect())
}
