//! Reads partitions: fetches, leaves out what transactions aborted, and always knows where the reading ended.
//!
//! # Invariants
//! 1. `next_offset` of an answer lies beyond every whole batch in it, whatever compaction, markers and aborted transactions left of
//!    it: a loop up to the high watermark ends.
//! 2. A batch that cannot be read is reported at its own offset, after everything before it was handed out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    BrokerId, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse,
};
use tokio::time::timeout_at;
use uuid::Uuid;

use super::api::{check_code, only};
use super::batch::{Batch, BatchError, Marker, take_batch};
use super::bounds;
use super::cluster::{Cluster, Target, Way, check_topic, metadata_request, topic_name};
use super::codec::INFLATED_BYTES_MAX;
use super::scan::Scan;
use crate::kafka::{Fetched, KafkaError, LogReader, LogScan, LogScanner};
use crate::types::{Offset, Record, TopicPartition};

/// What one read of [`LogReader`] asks for. The first batch comes whole even when it is larger.
pub(super) const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// `isolation.level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Everything up to the high watermark, aborted transactions too.
    ReadUncommitted,
    /// Up to the last stable offset, aborted transactions left out.
    ReadCommitted,
}

impl Isolation {
    pub(super) const fn level(self) -> i8 {
        match self {
            Self::ReadUncommitted => 0,
            Self::ReadCommitted => 1,
        }
    }
}

/// A place in a log that `ListOffsets` can find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetAt {
    /// The log start offset.
    Earliest,
    /// The end, exclusive: the high watermark, or with [`Isolation::ReadCommitted`] the last stable offset.
    Latest,
    /// The first record whose timestamp is not before this one, in milliseconds since the Unix epoch.
    Timestamp(i64),
}

impl OffsetAt {
    pub(super) const fn timestamp(self) -> i64 {
        match self {
            Self::Earliest => -2,
            Self::Latest => -1,
            // Negative times are taken for the two above.
            Self::Timestamp(ms) if ms < 0 => 0,
            Self::Timestamp(ms) => ms,
        }
    }
}

impl Cluster {
    /// Finds an offset; `None` when no record is as young as the timestamp.
    ///
    /// # Errors
    /// When the partition does not exist or its leader does not answer in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn list_offset(
        &self,
        partition: &TopicPartition,
        at: OffsetAt,
        isolation: Isolation,
    ) -> Result<Option<Offset>, KafkaError> {
        self.ask(
            Target::Leader(partition),
            Duration::ZERO,
            |way| list_request(partition, at, isolation, way),
            |response| check_list(partition, response),
        )
        .await
    }

    /// Fetches records from `from` (inclusive); waits up to `wait` when there are none. Keys and values share the memory of the
    /// whole answer: copy what is kept for long.
    ///
    /// # Errors
    /// [`KafkaError::OffsetOutOfRange`], [`KafkaError::Unreadable`] at a batch that cannot be read, or when the partition does not
    /// exist or its leader does not answer in time.
    ///
    /// # Cancel safety
    /// Safe: there is no state.
    pub async fn fetch(
        &self,
        partition: &TopicPartition,
        from: Offset,
        isolation: Isolation,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Fetched, KafkaError> {
        let data = self
            .fetch_data(partition, from, isolation, max_bytes, wait)
            .await?;
        let mut aborted = Aborted::new(isolation, &data);
        read_data(partition, from, data, &mut aborted)
    }

    /// Fetches the batches from `from` (inclusive) as they lie in the log.
    pub(super) async fn fetch_data(
        &self,
        partition: &TopicPartition,
        from: Offset,
        isolation: Isolation,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<PartitionData, KafkaError> {
        let mut is_again = false;
        loop {
            let answer = self
                .ask(
                    Target::Leader(partition),
                    wait,
                    |way| fetch_request(partition, from, isolation, max_bytes, wait, way),
                    |response| check_fetch(partition, response),
                )
                .await?;
            match answer {
                Answer::Data(data) => return Ok(*data),
                Answer::OutOfRange => self.out_of_range(partition, from, is_again).await?,
            }
            is_again = true;
        }
    }

    /// What a refused offset means; the refusal names no bounds. `Ok` when the offset is worth asking for once more: a new leader may
    /// still be catching up with an offset that the old one had.
    pub(super) async fn out_of_range(
        &self,
        partition: &TopicPartition,
        offset: Offset,
        is_again: bool,
    ) -> Result<(), KafkaError> {
        let (log_start, high_watermark) = self.log_bounds(partition).await?;
        if !is_again && (log_start..=high_watermark).contains(&offset) {
            return Ok(());
        }
        Err(KafkaError::OffsetOutOfRange {
            partition: partition.clone(),
            offset,
            log_start,
            high_watermark,
        })
    }
}

#[async_trait]
impl LogReader for Cluster {
    async fn log_bounds(&self, partition: &TopicPartition) -> Result<(Offset, Offset), KafkaError> {
        bounds::log_bounds(self, partition).await
    }

    async fn topic_id(&self, topic: &str) -> Result<Option<Uuid>, KafkaError> {
        let deadline = self.deadline();
        let told = async {
            let looks = &self.looks().topic_ids;
            let look = async |topics| topic_ids(self, topics).await;
            if let Some(id) = looks.ask(topic.into(), look).await {
                return id;
            }
            // What is wrong with it is told by asking for it alone.
            let mut described = self.describe_topics(&[topic]).await?;
            Ok(described.remove(topic).flatten().map(|topic| topic.id))
        };
        let told = timeout_at(deadline.at, told).await;
        told.unwrap_or(Err(KafkaError::Timeout {
            operation: "Metadata",
            after: deadline.after,
        }))
    }

    async fn read(
        &self,
        partition: &TopicPartition,
        from: Offset,
        wait: Duration,
    ) -> Result<Fetched, KafkaError> {
        let isolation = Isolation::ReadCommitted;
        self.fetch(partition, from, isolation, READ_BYTES_MAX, wait)
            .await
    }
}

impl LogScanner for Cluster {
    fn scan(&self, partition: &TopicPartition, from: Offset) -> Box<dyn LogScan> {
        Box::new(Scan::new(self.clone(), partition.clone(), from))
    }

    fn leader_epoch(&self, partition: &TopicPartition) -> Option<i32> {
        // Requests carry it, and a leader of another epoch refuses them.
        let route = self.known_route(Target::Leader(partition))?;
        Some(route.leader_epoch).filter(|epoch| *epoch >= 0)
    }
}

/// The ids of all of them that a broker tells of without an error, asked for at once; an error when none answers.
async fn topic_ids(
    cluster: &Cluster,
    topics: Vec<Arc<str>>,
) -> HashMap<Arc<str>, Result<Option<Uuid>, KafkaError>> {
    let names: Vec<_> = topics.iter().map(|topic| &**topic).collect();
    let build = |_way| metadata_request(Some(&names));
    let asked = cluster.ask(Target::Any, Duration::ZERO, build, Ok).await;
    let response = match asked {
        Ok(response) => response,
        Err(error) => {
            let failed = |topic| (topic, Err(error.clone()));
            return topics.into_iter().map(failed).collect();
        }
    };
    let id = |topic: MetadataResponseTopic| {
        let name: Arc<str> = topic.name.as_ref()?.as_str().into();
        match check_topic(&name, topic.error_code) {
            Ok(()) => Some((name, Ok(Some(topic.topic_id)))),
            Err(KafkaError::UnknownTopic { .. }) => Some((name, Ok(None))),
            Err(_) => None,
        }
    };
    response.topics.into_iter().filter_map(id).collect()
}

pub(super) fn list_request(
    partition: &TopicPartition,
    at: OffsetAt,
    isolation: Isolation,
    way: Way,
) -> ListOffsetsRequest {
    let asked = ListOffsetsPartition::default()
        .with_partition_index(partition.partition)
        .with_current_leader_epoch(way.leader_epoch)
        .with_timestamp(at.timestamp());
    let topic = ListOffsetsTopic::default()
        .with_name(topic_name(&partition.topic))
        .with_partitions(vec![asked]);
    ListOffsetsRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_isolation_level(isolation.level())
        .with_topics(vec![topic])
}

pub(super) fn check_list(
    partition: &TopicPartition,
    response: ListOffsetsResponse,
) -> Result<Option<Offset>, KafkaError> {
    let operation = "ListOffsets";
    let topic = only(operation, &partition.topic, response.topics, |topic| {
        topic.name.as_str() == &*partition.topic
    })?;
    let what = partition.to_string();
    let found = only(operation, &what, topic.partitions, |found| {
        found.partition_index == partition.partition
    })?;
    check_code(
        format!("ListOffsets of {partition}"),
        found.error_code,
        None,
    )?;
    Ok(Some(found.offset)
        .filter(|offset| *offset >= 0)
        .map(Offset::new))
}

fn fetch_request(
    partition: &TopicPartition,
    from: Offset,
    isolation: Isolation,
    max_bytes: usize,
    wait: Duration,
    way: Way,
) -> FetchRequest {
    let max_bytes = i32::try_from(max_bytes).unwrap_or(i32::MAX);
    let asked = FetchPartition::default()
        .with_partition(partition.partition)
        .with_current_leader_epoch(way.leader_epoch)
        .with_fetch_offset(from.value())
        .with_partition_max_bytes(max_bytes);
    let topic = FetchTopic::default()
        .with_topic(topic_name(&partition.topic))
        .with_partitions(vec![asked]);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(1)
        .with_max_bytes(max_bytes)
        .with_isolation_level(isolation.level())
        // No fetch session: each request names its partition.
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}

/// What the leader says about the partition.
#[derive(Debug)]
pub(super) enum Answer {
    Data(Box<PartitionData>),
    OutOfRange,
}

fn check_fetch(partition: &TopicPartition, response: FetchResponse) -> Result<Answer, KafkaError> {
    check_code(format!("Fetch of {partition}"), response.error_code, None)?;
    let topic = only("Fetch", &partition.topic, response.responses, |topic| {
        topic.topic.as_str() == &*partition.topic
    })?;
    let what = partition.to_string();
    let data = only("Fetch", &what, topic.partitions, |data| {
        data.partition_index == partition.partition
    })?;
    check_data(partition, data)
}

/// What the leader says about one partition.
pub(super) fn check_data(
    partition: &TopicPartition,
    data: PartitionData,
) -> Result<Answer, KafkaError> {
    match ResponseError::try_from_code(data.error_code) {
        Some(ResponseError::OffsetOutOfRange) => Ok(Answer::OutOfRange),
        _ => check_code(format!("Fetch of {partition}"), data.error_code, None)
            .map(|()| Answer::Data(Box::new(data))),
    }
}

type Records = Vec<(Offset, Record)>;

/// Decides what readers see of the batches of a log.
pub(super) trait Sieve {
    /// The records that readers may see now that this batch was reached; to be asked once per batch, in their order. Of the batch itself
    /// those below `from` are left out. After an error nothing has changed.
    fn sift(&mut self, batch: &Batch, from: Offset) -> Result<Records, BatchError>;
}

/// The records of a batch from `from` (inclusive) on.
pub(super) fn records_from(batch: &Batch, from: Offset) -> Result<Records, BatchError> {
    let mut records = batch.records()?;
    if batch.base_offset < from.value() {
        records.retain(|(offset, _)| *offset >= from);
    }
    Ok(records)
}

/// Reads all whole batches of an answer, or all before the first that cannot be read, or as many as fill the bound on inflated bytes.
pub(super) fn read_data(
    partition: &TopicPartition,
    from: Offset,
    data: PartitionData,
    sieve: &mut impl Sieve,
) -> Result<Fetched, KafkaError> {
    let mut fetched = Fetched {
        records: Vec::new(),
        next_offset: from,
        high_watermark: Offset::new(data.high_watermark),
    };
    let mut bytes = data.records.unwrap_or_default();
    let received = bytes.len();
    let mut inflated = 0_usize;
    let mut is_ahead = false;
    // What one batch may inflate to bounds the whole answer too; what lies behind is fetched again.
    while inflated < INFLATED_BYTES_MAX {
        match read_batch(&mut bytes, from, data.high_watermark, sieve) {
            Ok(Step::End) => break,
            Ok(Step::Ahead) => {
                is_ahead = true;
                break;
            }
            Ok(Step::Read(last_offset, records)) => {
                inflated += records
                    .iter()
                    .map(|(_, record)| weight(record))
                    .sum::<usize>();
                fetched.records.extend(records);
                fetched.next_offset = fetched.next_offset.max(Offset::new(last_offset).next());
            }
            // What lies before it is handed out first; the next fetch begins at the bad batch.
            Err(_) if fetched.next_offset > from => return Ok(fetched),
            Err((offset, error)) => {
                return Err(KafkaError::Unreadable {
                    partition: partition.clone(),
                    offset: Offset::new(offset).max(from),
                    detail: error.to_string(),
                });
            }
        }
    }
    if received > 0 && fetched.next_offset == from && !is_ahead {
        return Err(KafkaError::Protocol {
            operation: "Fetch",
            detail: format!(
                "{received} bytes of {partition} at {from} hold no whole batch beyond it"
            ),
        });
    }
    Ok(fetched)
}

/// Bytes that a record takes in memory.
pub(super) fn weight(record: &Record) -> usize {
    record.size() + size_of::<(Offset, Record)>()
}

/// What became of the front of an answer.
enum Step {
    /// There is no whole batch.
    End,
    /// The batch ends beyond the high watermark of its own answer: the log has grown meanwhile, or it claims offsets that the log does not have,
    /// and believed would take the reader past all records between. The next fetch tells which.
    Ahead,
    /// The last offset (inclusive) of the batch, and the records that readers may see since it was reached.
    Read(i64, Records),
}

fn read_batch(
    bytes: &mut Bytes,
    from: Offset,
    high_watermark: i64,
    sieve: &mut impl Sieve,
) -> Result<Step, (i64, BatchError)> {
    let Some(batch) = take_batch(bytes)? else {
        return Ok(Step::End);
    };
    if batch.last_offset >= high_watermark {
        return Ok(Step::Ahead);
    }
    // Nobody asked for it: it must not decide anything.
    if batch.last_offset < from.value() {
        return Ok(Step::Read(batch.last_offset, Vec::new()));
    }
    let records = sieve
        .sift(&batch, from)
        .map_err(|error| (batch.base_offset, error))?;
    Ok(Step::Read(batch.last_offset, records))
}

/// The aborted transactions of an answer, begun one after the other as the batches go by.
#[derive(Debug)]
pub(super) struct Aborted {
    /// First offset and producer id of those not reached yet, the next one last.
    ahead: Vec<(i64, i64)>,
    /// Producers whose transactional batches are aborted until their marker comes.
    open: HashSet<i64>,
}

impl Aborted {
    pub(super) fn new(isolation: Isolation, data: &PartitionData) -> Self {
        let mut ahead: Vec<_> = match isolation {
            Isolation::ReadUncommitted => Vec::new(),
            Isolation::ReadCommitted => data
                .aborted_transactions
                .iter()
                .flatten()
                .map(|aborted| (aborted.first_offset, aborted.producer_id.0))
                .collect(),
        };
        ahead.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            ahead,
            open: HashSet::new(),
        }
    }

    /// Whether readers must not see the batch.
    fn hides(&mut self, batch: &Batch) -> Result<bool, BatchError> {
        while let Some((_, producer_id)) = self
            .ahead
            .pop_if(|(first_offset, _)| *first_offset <= batch.last_offset)
        {
            self.open.insert(producer_id);
        }
        if batch.is_control() {
            if batch.marker()? == Marker::Abort {
                self.open.remove(&batch.producer_id);
            }
            return Ok(true);
        }
        Ok(batch.is_transactional() && self.open.contains(&batch.producer_id))
    }
}

impl Sieve for Aborted {
    /// An error ends the answer that this belongs to, so what has changed before it does not matter.
    fn sift(&mut self, batch: &Batch, from: Offset) -> Result<Records, BatchError> {
        if self.hides(batch)? {
            return Ok(Vec::new());
        }
        records_from(batch, from)
    }
}

#[cfg(test)]
pub(super) mod tests;
