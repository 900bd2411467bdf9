//! The fetch side: one partition client, so one connection, per input partition.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rskafka::client::partition::{OffsetAt, PartitionClient};
use rskafka::record::RecordAndOffset;
use tokio::time::sleep;
use uuid::Uuid;

use super::super::wire::{Cluster, Isolation, WireSource};
use super::super::{Fetched, KafkaConfig, KafkaError, LogReader as _, RecordStream, Source};
use super::{Connector, error};
use crate::types::{Header, Offset, Record, TopicPartition};

/// Reads input partitions.
#[derive(Debug)]
pub struct RskafkaSource {
    connector: Arc<Connector>,
    /// Sees where an emptied batch ends, which rskafka does not tell.
    wire: Cluster,
    /// Reads what rskafka cannot: all such partitions of a broker in one poll.
    reader: Arc<WireSource>,
}

impl RskafkaSource {
    /// A source that connects when it is first used. `wire` takes over the partitions that rskafka turns out not to be able to read.
    #[must_use]
    pub fn new(config: KafkaConfig, wire: Cluster) -> Self {
        Self {
            connector: Arc::new(Connector::new(config)),
            reader: Arc::new(WireSource::new(wire.clone(), Isolation::ReadUncommitted)),
            wire,
        }
    }
}

#[async_trait]
impl Source for RskafkaSource {
    async fn open(
        &self,
        partition: &TopicPartition,
        start: Offset,
    ) -> Result<Box<dyn RecordStream>, KafkaError> {
        let client = self.connector.partition(partition).await?;
        Ok(Box::new(RskafkaStream {
            connector: Arc::clone(&self.connector),
            wire: self.wire.clone(),
            reader: Arc::clone(&self.reader),
            on_wire: None,
            partition: partition.clone(),
            client: Some(client),
            position: start,
        }))
    }

    async fn bounds(&self, partition: &TopicPartition) -> Result<(Offset, Offset), KafkaError> {
        let client = self.connector.partition(partition).await?;
        bounds(&self.connector, &client, partition).await
    }

    async fn topic_id(&self, topic: &str) -> Result<Option<Uuid>, KafkaError> {
        // rskafka knows topics by name alone.
        self.wire.topic_id(topic).await
    }
}

async fn bounds(
    connector: &Connector,
    client: &PartitionClient,
    partition: &TopicPartition,
) -> Result<(Offset, Offset), KafkaError> {
    let mut offsets = [Offset::ZERO; 2];
    for (offset, at) in offsets
        .iter_mut()
        .zip([OffsetAt::Earliest, OffsetAt::Latest])
    {
        let answer = connector
            .within("list offsets", Duration::ZERO, client.get_offset(at))
            .await?;
        *offset = answer
            .map(Offset::new)
            .map_err(|error| error::translate("list offsets of", Some(partition), &error))?;
    }
    Ok(offsets.into())
}

struct RskafkaStream {
    connector: Arc<Connector>,
    wire: Cluster,
    reader: Arc<WireSource>,
    /// Reads on once rskafka has met something in this partition that it cannot read.
    on_wire: Option<Box<dyn RecordStream>>,
    partition: TopicPartition,
    /// `None` after a call that ran into its deadline: the next call dials again.
    client: Option<Arc<PartitionClient>>,
    position: Offset,
}

#[async_trait]
impl RecordStream for RskafkaStream {
    async fn next(&mut self, max_bytes: usize, wait: Duration) -> Result<Fetched, KafkaError> {
        if let Some(on_wire) = &mut self.on_wire {
            return on_wire.next(max_bytes, wait).await;
        }
        let client = match &self.client {
            Some(client) => Arc::clone(client),
            None => Arc::clone(
                self.client
                    .insert(self.connector.partition(&self.partition).await?),
            ),
        };
        let bytes = 1..i32::try_from(max_bytes).unwrap_or(i32::MAX).max(2);
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let fetch = client.fetch_records(self.position.value(), bytes, wait_ms);
        let answer = match self.connector.within("fetch", wait, fetch).await {
            Ok(answer) => answer,
            Err(error) => {
                self.client = None;
                return Err(error);
            }
        };
        let (records, high_watermark) = match answer {
            Ok(answer) => answer,
            Err(error) if error::is_unreadable(&error) => {
                self.client = None;
                self.tell_why(&error);
                let opened = self.reader.open(&self.partition, self.position).await?;
                return self.on_wire.insert(opened).next(max_bytes, wait).await;
            }
            Err(error) => return Err(self.fetch_error(&client, &error).await),
        };
        let high_watermark = Offset::new(high_watermark);
        let records: Vec<_> = records.into_iter().map(from_rskafka).collect();
        if !are_plausible(&records, self.position, high_watermark) {
            return self.once_on_wire(max_bytes).await;
        }
        match records.last() {
            Some((last, _)) => self.position = last.next(),
            // There is something, and no record in it: a batch that compaction emptied, which rskafka drops without telling where it
            // ended. Asked again, the broker would answer at once, again and again.
            None if high_watermark > self.position => {
                let before = self.position;
                let fetched = self.once_on_wire(max_bytes).await?;
                if self.position == before {
                    sleep(wait).await;
                }
                return Ok(fetched);
            }
            None => {}
        }
        Ok(Fetched {
            records,
            next_offset: self.position,
            high_watermark,
        })
    }
}

impl RskafkaStream {
    fn tell_why(&self, error: &rskafka::client::error::Error) {
        let (partition, offset) = (&self.partition, self.position);
        if error::is_packed(error) {
            tracing::info!(
                %partition,
                %offset,
                "packed batches lie here: the wire reader, which bounds what they come to, goes on from here"
            );
        } else {
            tracing::warn!(
                %partition,
                %offset,
                %error,
                "rskafka cannot read what lies here (a transaction marker, or a header without a value): the wire reader goes on from here"
            );
        }
    }

    /// One fetch on our own connection, which does not wait. Emptied batches are no obstacle there.
    async fn once_on_wire(&mut self, max_bytes: usize) -> Result<Fetched, KafkaError> {
        let (isolation, wait) = (Isolation::ReadUncommitted, Duration::ZERO);
        let mut fetched = self
            .wire
            .fetch(&self.partition, self.position, isolation, max_bytes, wait)
            .await?;
        for (_, record) in &mut fetched.records {
            *record = record.detached();
        }
        self.position = fetched.next_offset.max(self.position);
        fetched.next_offset = self.position;
        Ok(fetched)
    }

    async fn fetch_error(
        &mut self,
        client: &PartitionClient,
        error: &rskafka::client::error::Error,
    ) -> KafkaError {
        if error::is_out_of_range(error) {
            return match bounds(&self.connector, client, &self.partition).await {
                Ok(bounds) => error::out_of_range(&self.partition, self.position, bounds),
                Err(error) => error,
            };
        }
        self.client = None;
        error::translate("fetch from", Some(&self.partition), error)
    }
}

/// Whether offsets rise from the position and end below the high watermark. rskafka holds no record to its batch: one that claims to lie far
/// ahead would take the position past all that lies between. The high watermark may have gone up while the broker answered, so what lies
/// beyond it is no error; `wire`, which checks, reads it in that fetch.
fn are_plausible(records: &[(Offset, Record)], position: Offset, high_watermark: Offset) -> bool {
    let mut next = position;
    records.iter().all(|(offset, _)| {
        let rises = *offset >= next && *offset < high_watermark;
        next = offset.next();
        rises
    })
}

fn from_rskafka(record: RecordAndOffset) -> (Offset, Record) {
    let offset = Offset::new(record.offset);
    let record = record.record;
    let headers = record
        .headers
        .into_iter()
        .map(|(name, value)| Header {
            name,
            value: Some(value.into()),
        })
        .collect();
    let record = Record {
        key: record.key.map(Into::into),
        value: record.value.map(Into::into),
        headers,
        timestamp_ms: record.timestamp.timestamp_millis(),
    };
    (offset, record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offsets: &[i64]) -> Vec<(Offset, Record)> {
        let record = |offset: &i64| (Offset::new(*offset), Record::default());
        offsets.iter().map(record).collect()
    }

    #[test]
    fn offsets_rise_from_the_position_to_the_high_watermark() {
        let plausible =
            |offsets: &[i64]| are_plausible(&at(offsets), Offset::new(5), Offset::new(9));
        assert!(plausible(&[]) && plausible(&[5, 7, 8]));
        assert!(!plausible(&[5, 9]), "beyond the log");
        assert!(!plausible(&[4, 5]), "before the position");
        assert!(!plausible(&[5, 5]) && !plausible(&[7, 6]), "out of order");
    }
}
