//! Produce, versions 3 to 9.
//!
//! Versions below 3 carry formats older than magic 2, which Kafka 4 refuses too; 13 names topics by id. Acknowledgements 1 and −1
//! are the same with one replica. With acks 0 nothing is answered, and an error closes the connection, as in Kafka. A batch that a
//! producer repeats is answered with the offset of the first time. A transactional batch must lie in a partition that its producer has
//! added to its open transaction.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse, TopicName};

use super::super::batch::Batch;
use super::super::clock::now_ms;
use super::super::connection::Context;
use super::super::state::{Partition, Refusal, State};
use super::super::transactions::ProducerEpoch;
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
        let from = Sender {
            transactional_id: self.transactional_id.as_ref().map(|id| id.as_str()),
            client: context.client_id.as_deref(),
            version,
        };
        let mut all_good = true;
        let topics = context.shared.change(|state| {
            let mut topics = Vec::with_capacity(self.topic_data.len());
            for topic in self.topic_data {
                let mut partitions = Vec::with_capacity(topic.partition_data.len());
                for data in topic.partition_data {
                    let records = data.records.unwrap_or_default();
                    let place = (topic.name.as_str(), data.index);
                    let appended = append(state, place, records, &from);
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

/// Who sends the batches.
struct Sender<'a> {
    transactional_id: Option<&'a str>,
    client: Option<&'a str>,
    version: i16,
}

fn append(
    state: &mut State,
    (topic, index): (&str, i32),
    records: Bytes,
    from: &Sender<'_>,
) -> Result<PartitionProduceResponse, BatchRefusal> {
    let found = state.topics.get(topic);
    let (config, partition) = found
        .and_then(|topic| Some((&topic.config, topic.partition(index)?)))
        .ok_or_else(Refusal::unknown_partition)?;
    partition
        .election
        .check(from.client)
        .map_err(|code| Refusal::new(code, "This server is not the leader."))?;
    let now = now_ms();
    let batch = validate::check(records, from.version, config, now)?;
    let append_time = if config.is_log_append_time() { now } else { -1 };
    let response = PartitionProduceResponse::default().with_index(index);
    if batch.header.is_transactional() {
        check_transaction(
            state,
            (topic, index),
            partition,
            &batch,
            from.transactional_id,
        )?;
    }
    if batch.header.producer_id >= 0
        && let Some(first) = partition.log.check_producer(&batch.header)?
    {
        return Ok(response
            .with_base_offset(first.first_offset)
            .with_log_append_time_ms(first.timestamp)
            .with_log_start_offset(partition.log.start()));
    }
    let (base_offset, log_start) = state.append(topic, index, batch)?;
    Ok(response
        .with_base_offset(base_offset)
        .with_log_append_time_ms(append_time)
        .with_log_start_offset(log_start))
}

/// Asks the coordinator whether the batch belongs to an open transaction, unless the partition has seen one of it before (KIP-890).
fn check_transaction(
    state: &State,
    (topic, index): (&str, i32),
    partition: &Partition,
    batch: &Batch,
    transactional_id: Option<&str>,
) -> Result<(), Refusal> {
    let producer = ProducerEpoch {
        id: batch.header.producer_id,
        epoch: batch.header.producer_epoch,
    };
    let Some(id) = transactional_id else {
        let message = "A transactional batch needs the transactional id.";
        let code = ResponseError::TransactionalIdAuthorizationFailed;
        return Err(Refusal::new(code, message));
    };
    let log = &partition.log;
    if log.has_open_transaction(producer.id, producer.epoch) {
        return Ok(());
    }
    let verified = state.transactions.verify(id, producer, topic, index);
    verified.map_err(|code| Refusal::new(code, "The batch is not part of an open transaction."))
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
