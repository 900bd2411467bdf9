//! The append side: gzip batches, acknowledged by all in-sync replicas.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::partition::{Compression, PartitionClient};
use tokio::sync::Mutex;

use super::super::{Batch, End, KafkaConfig, PartitionSink, Sink, StepError};
use super::{Connector, error};
use crate::types::{Record, TopicPartition};

/// Writes results, dead letters and commits; partition clients are shared by all input partitions.
#[derive(Debug)]
pub struct RskafkaSink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connector: Connector,
    clients: Mutex<HashMap<TopicPartition, Arc<PartitionClient>>>,
}

impl RskafkaSink {
    /// A sink that connects when it is first used.
    #[must_use]
    pub fn new(config: KafkaConfig) -> Self {
        let shared = Shared {
            connector: Connector::new(config),
            clients: Mutex::new(HashMap::new()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

#[async_trait]
impl Sink for RskafkaSink {
    async fn take_over(
        &self,
        _input: &TopicPartition,
    ) -> Result<Box<dyn PartitionSink>, StepError> {
        // Nothing to fence with: plain appends carry no producer id. The claim in the commit topic tells who owns the partition.
        Ok(Box::new(RskafkaPartitionSink {
            shared: Arc::clone(&self.shared),
        }))
    }
}

struct RskafkaPartitionSink {
    shared: Arc<Shared>,
}

#[async_trait]
impl PartitionSink for RskafkaPartitionSink {
    fn is_transactional(&self) -> bool {
        false
    }

    async fn begin(&mut self) -> Result<(), StepError> {
        Ok(())
    }

    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        join_all(batches.iter().map(|batch| self.shared.append(batch))).await
    }

    async fn end(&mut self, _end: End) -> Result<(), StepError> {
        Ok(())
    }
}

impl Shared {
    async fn append(&self, batch: &Batch) -> Result<(), StepError> {
        let client = self.client(&batch.to).await?;
        let records = batch.records.iter().map(to_rskafka).collect();
        let produce = client.produce(records, Compression::Gzip);
        match self
            .connector
            .within("append", Duration::ZERO, produce)
            .await
        {
            Ok(Ok(_offsets)) => Ok(()),
            Ok(Err(error)) => {
                self.forget(&batch.to, &client).await;
                Err(error::append_outcome(&batch.to, &error))
            }
            Err(timeout) => {
                self.forget(&batch.to, &client).await;
                Err(StepError::OutcomeUnknown(timeout))
            }
        }
    }

    async fn client(&self, to: &TopicPartition) -> Result<Arc<PartitionClient>, StepError> {
        if let Some(client) = self.clients.lock().await.get(to) {
            return Ok(Arc::clone(client));
        }
        // Dialled outside the lock: a broker that does not answer must not hold up the appends to others.
        let client = self
            .connector
            .partition(to)
            .await
            .map_err(StepError::Refused)?;
        let mut clients = self.clients.lock().await;
        Ok(Arc::clone(clients.entry(to.clone()).or_insert(client)))
    }

    /// The next append dials again: the peer may be silently dead, or no longer the leader.
    async fn forget(&self, to: &TopicPartition, failed: &Arc<PartitionClient>) {
        let mut clients = self.clients.lock().await;
        if clients
            .get(to)
            .is_some_and(|client| Arc::ptr_eq(client, failed))
        {
            clients.remove(to);
        }
    }
}

/// rskafka keeps headers in a map with values that are not null: of several with one name the last is kept, and null becomes empty.
fn to_rskafka(record: &Record) -> rskafka::record::Record {
    let headers: BTreeMap<_, _> = record
        .headers
        .iter()
        .map(|header| {
            (
                header.name.clone(),
                header.value.as_deref().unwrap_or_default().to_vec(),
            )
        })
        .collect();
    rskafka::record::Record {
        key: record.key.as_ref().map(|key| key.to_vec()),
        value: record.value.as_ref().map(|value| value.to_vec()),
        headers,
        timestamp: DateTime::<Utc>::from_timestamp_millis(record.timestamp_ms).unwrap_or_default(),
    }
}
