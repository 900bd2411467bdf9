//! Produce, versions 3 to 9.
//!
//! Versions below 3 carry formats older than magic 2, which Kafka 4 refuses too; 13 names topics by id. Acknowledgements 1 and −1
//! are the same with one replica. With acks 0 nothing is answered, and an error closes the connection, as in Kafka. There are no
//! producer ids yet: an idempotent batch gets 59, a transactional one 48.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TopicName};

use super::super::clock::now_ms;
use super::super::connection::Context;
use super::super::state::{Refusal, State};
use super::super::validate::{self, BatchRefusal};
use super::{Api, Reply, text};
use bytes::Bytes;

impl Api for ProduceRequest {
    const SERVED: (i16, i16) = (3, 9);

    fn layout(_: i16) -> &'static str {
        "S s i {S {i B}}"
    }

    fn topics(&self) -> Vec<String> {
        self.topic_data
            .iter()
            .map(|topic| topic.name.to_string())
            .collect()
    }

    fn expects_answer(&self) -> bool {
        self.acks != 0
    }

    fn refuse(&self, code: ResponseError) -> ProduceResponse {
        let topics = self.topic_data.iter().map(|topic| {
            let partitions = topic
                .partition_data
                .iter()
                .map(|partition| failed(partition.index, code));
            topic_response(&topic.name, partitions.collect())
        });
        ProduceResponse::default().with_responses(topics.collect())
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<ProduceResponse> {
        if !(-1..=1).contains(&self.acks) {
            return Reply::Answer(self.refuse(ResponseError::InvalidRequiredAcks));
        }
        let acks = self.acks;
        let mut all_good = true;
        let topics = context.shared.change(|state| {
            let mut topics = Vec::with_capacity(self.topic_data.len());
            for topic in self.topic_data {
                let mut partitions = Vec::with_capacity(topic.partition_data.len());
                for data in topic.partition_data {
                    let records = data.records.unwrap_or_default();
                    let appended = append(state, &topic.name, data.index, records, version);
                    all_good &= appended.is_ok();
                    partitions.push(match appended {
                        Ok(response) => response,
                        Err(refusal) => explain(data.index, refusal),
                    });
                }
                topics.push(topic_response(&topic.name, partitions));
            }
            topics
        });
        match (acks, all_good) {
            (0, true) => Reply::Nothing,
            (0, false) => Reply::Close,
            _ => Reply::Answer(ProduceResponse::default().with_responses(topics)),
        }
    }
}

fn append(
    state: &mut State,
    topic: &str,
    partition: i32,
    records: Bytes,
    version: i16,
) -> Result<PartitionProduceResponse, BatchRefusal> {
    let found = state.topics.get(topic);
    let config = found
        .filter(|topic| topic.partition(partition).is_some())
        .map(|topic| &topic.config)
        .ok_or_else(Refusal::unknown_partition)?;
    let now = now_ms();
    let batch = validate::check(records, version, config, now)?;
    let append_time = if config.is_log_append_time() { now } else { -1 };
    let (base_offset, log_start) = state.append(topic, partition, batch)?;
    Ok(PartitionProduceResponse::default()
        .with_index(partition)
        .with_base_offset(base_offset)
        .with_log_append_time_ms(append_time)
        .with_log_start_offset(log_start))
}

fn topic_response(
    name: &TopicName,
    partitions: Vec<PartitionProduceResponse>,
) -> TopicProduceResponse {
    TopicProduceResponse::default()
        .with_name(name.clone())
        .with_partition_responses(partitions)
}

fn failed(index: i32, code: ResponseError) -> PartitionProduceResponse {
    PartitionProduceResponse::default()
        .with_index(index)
        .with_error_code(code.code())
        .with_base_offset(-1)
        .with_log_append_time_ms(-1)
        .with_log_start_offset(-1)
}

fn explain(index: i32, refused: BatchRefusal) -> PartitionProduceResponse {
    let records = refused.records.into_iter().map(|(index, why)| {
        BatchIndexAndErrorMessage::default()
            .with_batch_index(index)
            .with_batch_index_error_message(Some(text(why)))
    });
    let records: Vec<_> = records.collect();
    // Kafka has a sentence only where it names records.
    let message = (!records.is_empty()).then(|| text(refused.refusal.message.as_str()));
    tracing::debug!(refusal = %refused.refusal, "the sandbox broker refused a batch");
    failed(index, refused.refusal.code)
        .with_record_errors(records)
        .with_error_message(message)
}
