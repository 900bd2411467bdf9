//! Fetch, versions 4 to 12.
//!
//! A consumer's fetch: long poll until `min_bytes` are there or `max_wait_ms` is over. Stored batches go out as they are, the one
//! that holds the offset whole even where the offset lies inside it; the last one may be cut off at the limit, as Kafka cuts it. The
//! first batch of the response comes whole whatever the limits. With one replica the high watermark is the end of the log. With
//! `read_committed` the batches end at the last stable offset, and the aborted transactions from the offset on are listed, those behind
//! the returned batches too, as Kafka does in a short log. Sessions are never granted (session id 0, which Kafka answers
//! when its cache is full), so every fetch is a full one. A diverging epoch is not looked for: consumers do not ask for it.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, FetchableTopicResponse, PartitionData,
};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse, ProducerId};
use tokio::time::{Instant, timeout_at};

use super::super::connection::Context;
use super::super::state::{Partition, State};
use super::{Api, Reply};

/// Kafka's `fetch.max.bytes` of a broker.
const RESPONSE_BYTES_MAX: usize = 55 * 1024 * 1024;
/// Longest wait that is granted, whatever the client asks for.
const WAIT_MAX: Duration = Duration::from_secs(300);
const READ_COMMITTED: i8 = 1;

impl Api for FetchRequest {
    const SERVED: (i16, i16) = (4, 12);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=4 => "i i i i b {S {i l i}}",
            5..=6 => "i i i i b {S {i l l i}}",
            7..=8 => "i i i i b i i {S {i l l i}} {S [i]}",
            9..=11 => "i i i i b i i {S {i i l l i}} {S [i]}",
            _ => "i i i i b i i {S {i i l i l i}} {S [i]} S",
        }
    }

    fn topics(&self) -> Vec<String> {
        self.topics
            .iter()
            .map(|topic| topic.topic.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> FetchResponse {
        let topics = self.topics.iter().map(|topic| {
            let partitions = topic
                .partitions
                .iter()
                .map(|partition| failed(partition.partition, code));
            FetchableTopicResponse::default()
                .with_topic(topic.topic.clone())
                .with_partitions(partitions.collect())
        });
        FetchResponse::default().with_responses(topics.collect())
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<FetchResponse> {
        // Epochs 0 and −1 open and close a session with a full fetch; only others need one that exists.
        if self.session_epoch > 0 {
            let code = ResponseError::FetchSessionIdNotFound.code();
            return Reply::Answer(FetchResponse::default().with_error_code(code));
        }
        let wait = Duration::from_millis(u64::try_from(self.max_wait_ms).unwrap_or(0));
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let mut changes = context.shared.changes();
        loop {
            // Marked as seen before the look, so that no change in between is missed.
            changes.mark_unchanged();
            let client = context.client_id.as_deref();
            let taken = take(&context.shared.state(), &self, client);
            let enough = taken.bytes >= usize::try_from(self.min_bytes).unwrap_or(0);
            let done = enough || taken.has_error || taken.topics.is_empty();
            if done || timeout_at(deadline, changes.changed()).await.is_err() {
                return Reply::Answer(FetchResponse::default().with_responses(taken.topics));
            }
        }
    }
}

/// What one look at the logs brought.
struct Taken {
    topics: Vec<FetchableTopicResponse>,
    bytes: usize,
    has_error: bool,
}

fn take(state: &State, request: &FetchRequest, client: Option<&str>) -> Taken {
    let limit = usize::try_from(request.max_bytes).unwrap_or(0);
    let limit = limit.min(RESPONSE_BYTES_MAX);
    let mut taken = Taken {
        topics: Vec::with_capacity(request.topics.len()),
        bytes: 0,
        has_error: false,
    };
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for wanted in &topic.partitions {
            let room = limit.saturating_sub(taken.bytes);
            let first_whole = taken.bytes == 0;
            let partition = state
                .partition(&topic.topic, wanted.partition)
                .ok_or(ResponseError::UnknownTopicOrPartition);
            let committed = request.isolation_level == READ_COMMITTED;
            let read = partition
                .and_then(|partition| partition.election.check(client).map(|()| partition))
                .and_then(|partition| read(partition, wanted, committed, room, first_whole));
            match read {
                Ok((records, partition)) => {
                    taken.bytes += records.len();
                    partitions.push(found(wanted, partition, records, committed));
                }
                Err(code) => {
                    taken.has_error = true;
                    partitions.push(failed(wanted.partition, code));
                }
            }
        }
        taken.topics.push(
            FetchableTopicResponse::default()
                .with_topic(topic.topic.clone())
                .with_partitions(partitions),
        );
    }
    taken
}

fn read<'a>(
    partition: &'a Partition,
    wanted: &FetchPartition,
    committed: bool,
    room: usize,
    first_whole: bool,
) -> Result<(Bytes, &'a Partition), ResponseError> {
    partition.check_epoch(wanted.current_leader_epoch)?;
    let log = &partition.log;
    if !(log.start()..=log.end()).contains(&wanted.fetch_offset) {
        return Err(ResponseError::OffsetOutOfRange);
    }
    let limit = usize::try_from(wanted.partition_max_bytes).unwrap_or(0);
    let before = if committed {
        log.last_stable()
    } else {
        log.end()
    };
    let records = log.read(wanted.fetch_offset, before, limit.min(room), first_whole);
    Ok((records, partition))
}

fn found(
    wanted: &FetchPartition,
    partition: &Partition,
    records: Bytes,
    committed: bool,
) -> PartitionData {
    let log = &partition.log;
    let aborted = committed.then(|| {
        let aborted = log.aborted_from(wanted.fetch_offset).map(|aborted| {
            AbortedTransaction::default()
                .with_producer_id(ProducerId(aborted.producer_id))
                .with_first_offset(aborted.first)
        });
        aborted.collect()
    });
    PartitionData::default()
        .with_partition_index(wanted.partition)
        .with_high_watermark(log.end())
        .with_last_stable_offset(log.last_stable())
        .with_log_start_offset(log.start())
        .with_aborted_transactions(aborted)
        .with_preferred_read_replica(BrokerId(-1))
        .with_records(Some(records))
}

fn failed(index: i32, code: ResponseError) -> PartitionData {
    // Kafka's answers differ in this too: an empty list where it finds no partition, null for other errors.
    let aborted = (code == ResponseError::UnknownTopicOrPartition).then(Vec::new);
    PartitionData::default()
        .with_partition_index(index)
        .with_error_code(code.code())
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_log_start_offset(-1)
        .with_aborted_transactions(aborted)
        .with_preferred_read_replica(BrokerId(-1))
        .with_records(Some(Bytes::new()))
}
