//! Reads partitions: fetches, leaves out what transactions aborted, and always knows where the reading ended.
//!
//! # Invariants
//! 1. `next_offset` of an answer lies beyond every whole batch in it, whatever compaction, markers and aborted transactions left of
//!    it: a loop up to the high watermark ends.
//! 2. A batch that cannot be read is reported at its own offset, after everything before it was handed out.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    BrokerId, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse,
};
use uuid::Uuid;

use super::api::{check_code, only};
use super::batch::{Batch, BatchError, Marker, take_batch};
use super::cluster::{Cluster, Target, Way, topic_name};
use super::codec::INFLATED_BYTES_MAX;
use crate::kafka::{Fetched, KafkaError, LogReader, LogScan, LogScanner};
use crate::types::{Offset, Record, TopicPartition};

/// What one read of [`LogReader`] asks for. The first batch comes whole even when it is larger.
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// `isolation.level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Everything up to the high watermark, aborted transactions too.
    ReadUncommitted,
    /// Up to the last stable offset, aborted transactions left out.
    ReadCommitted,
}

impl Isolation {
    const fn level(self) -> i8 {
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
    const fn timestamp(self) -> i64 {
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
        let mut refused = None;
        // A new leader may still be catching up with an offset that the old one had: such a refusal is asked for once more.
        for _ in 0..2 {
            let answer = self
                .ask(
                    Target::Leader(partition),
                    wait,
                    |way| fetch_request(partition, from, isolation, max_bytes, wait, way),
                    |response| check_fetch(partition, response),
                )
                .await?;
            match answer {
                Answer::Data(data) => return read_data(partition, from, isolation, *data),
                Answer::OutOfRange => {
                    // The refusal names no bounds.
                    let (log_start, high_watermark) = self.log_bounds(partition).await?;
                    refused = Some((log_start, high_watermark));
                    if from < log_start || from > high_watermark {
                        break;
                    }
                }
            }
        }
        let (log_start, high_watermark) = refused.unwrap_or_default();
        Err(KafkaError::OffsetOutOfRange {
            partition: partition.clone(),
            offset: from,
            log_start,
            high_watermark,
        })
    }
}

#[async_trait]
impl LogReader for Cluster {
    async fn log_bounds(&self, partition: &TopicPartition) -> Result<(Offset, Offset), KafkaError> {
        let isolation = Isolation::ReadUncommitted;
        let missing = || KafkaError::Protocol {
            operation: "ListOffsets",
            detail: format!("{partition} has neither start nor end"),
        };
        let start = self.list_offset(partition, OffsetAt::Earliest, isolation);
        let start = start.await?.ok_or_else(missing)?;
        let end = self.list_offset(partition, OffsetAt::Latest, isolation);
        let end = end.await?.ok_or_else(missing)?;
        Ok((start, end))
    }

    async fn topic_id(&self, topic: &str) -> Result<Option<Uuid>, KafkaError> {
        let found = self.describe_topics(&[topic]).await?.remove(topic);
        Ok(found.flatten().map(|topic| topic.id))
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
        Box::new(Scan {
            cluster: self.clone(),
            partition: partition.clone(),
            position: from,
        })
    }
}

/// A reading of the commit topic.
#[derive(Debug)]
struct Scan {
    cluster: Cluster,
    partition: TopicPartition,
    position: Offset,
}

#[async_trait]
impl LogScan for Scan {
    async fn next(&mut self, wait: Duration) -> Result<Fetched, KafkaError> {
        let read = self.cluster.read(&self.partition, self.position, wait);
        let fetched = read.await?;
        self.position = fetched.next_offset;
        Ok(fetched)
    }

    fn resume_at(&self) -> Offset {
        self.position
    }
}

fn list_request(
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

fn check_list(
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
enum Answer {
    Data(Box<PartitionData>),
    OutOfRange,
}

fn check_fetch(partition: &TopicPartition, response: FetchResponse) -> Result<Answer, KafkaError> {
    let operation = || format!("Fetch of {partition}");
    check_code(operation(), response.error_code, None)?;
    let topic = only("Fetch", &partition.topic, response.responses, |topic| {
        topic.topic.as_str() == &*partition.topic
    })?;
    let what = partition.to_string();
    let data = only("Fetch", &what, topic.partitions, |data| {
        data.partition_index == partition.partition
    })?;
    match ResponseError::try_from_code(data.error_code) {
        None => Ok(Answer::Data(Box::new(data))),
        Some(ResponseError::OffsetOutOfRange) => Ok(Answer::OutOfRange),
        Some(_) => Err(check_code(operation(), data.error_code, None)
            .err()
            .unwrap_or(KafkaError::Protocol {
                operation: "Fetch",
                detail: "an error without a code".to_owned(),
            })),
    }
}

/// Reads all whole batches of an answer, or all before the first that cannot be read, or as many as fill the bound on inflated bytes.
fn read_data(
    partition: &TopicPartition,
    from: Offset,
    isolation: Isolation,
    data: PartitionData,
) -> Result<Fetched, KafkaError> {
    let mut aborted = Aborted::new(isolation, &data);
    let mut fetched = Fetched {
        records: Vec::new(),
        next_offset: from,
        high_watermark: Offset::new(data.high_watermark),
    };
    let mut bytes = data.records.unwrap_or_default();
    let received = bytes.len();
    let mut inflated = 0_usize;
    // What one batch may inflate to bounds the whole answer too; what lies behind is fetched again.
    while inflated < INFLATED_BYTES_MAX {
        match read_batch(&mut bytes, &mut aborted) {
            Ok(None) => break,
            Ok(Some((last_offset, records))) => {
                let records = records.into_iter().filter(|(offset, _)| *offset >= from);
                for (offset, record) in records {
                    inflated += record.size() + size_of::<(Offset, Record)>();
                    fetched.records.push((offset, record));
                }
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
    if received > 0 && fetched.next_offset == from {
        return Err(KafkaError::Protocol {
            operation: "Fetch",
            detail: format!(
                "{received} bytes of {partition} at {from} hold no whole batch beyond it"
            ),
        });
    }
    Ok(fetched)
}

type Records = Vec<(Offset, Record)>;

/// The last offset (inclusive) of the next whole batch, and those of its records that are for readers.
fn read_batch(
    bytes: &mut Bytes,
    aborted: &mut Aborted,
) -> Result<Option<(i64, Records)>, (i64, BatchError)> {
    let Some(batch) = take_batch(bytes)? else {
        return Ok(None);
    };
    let fail = |error| (batch.base_offset, error);
    let records = if aborted.hides(&batch).map_err(fail)? {
        Vec::new()
    } else {
        batch.records().map_err(fail)?
    };
    Ok(Some((batch.last_offset, records)))
}

/// The aborted transactions of an answer, begun one after the other as the batches go by.
#[derive(Debug)]
struct Aborted {
    /// First offset and producer id of those not reached yet, the next one last.
    ahead: Vec<(i64, i64)>,
    /// Producers whose transactional batches are aborted until their marker comes.
    open: HashSet<i64>,
}

impl Aborted {
    fn new(isolation: Isolation, data: &PartitionData) -> Self {
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

    /// Whether readers must not see the batch; to be asked once per batch, in their order.
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

#[cfg(test)]
mod tests;
