//! What the partitions work with: the driver's two ends, the share of the input, and what all of them have in common.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::App;
use crate::kafka::rskafka::RskafkaSource;
use crate::kafka::topics::Topics;
use crate::kafka::wire::{GroupMember, Isolation, MembershipConfig, WireSink, WireSource};
use crate::kafka::{Driver, Sink, Source};
use crate::llm::Complete;
use crate::offsets::{AuditWriter, CommitStore, Guarantee};
use crate::pipeline::{Auditing, CommitOffsets, Destinations, IsolationLevel, ReadAhead, Services};
use crate::records::audit::AuditParameters;
use crate::types::TopicPartition;

/// What a program that embeds the service puts around the driver's sink; nothing by default.
#[derive(Default)]
pub(super) struct SinkLayer(Option<Box<Layer>>);

type Layer = dyn Fn(Arc<dyn Sink>) -> Arc<dyn Sink> + Send + Sync;

impl SinkLayer {
    fn around(&self, sink: Arc<dyn Sink>) -> Arc<dyn Sink> {
        match &self.0 {
            Some(layer) => layer(sink),
            None => sink,
        }
    }
}

impl fmt::Debug for SinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SinkLayer").field(&self.0.is_some()).finish()
    }
}

impl App {
    /// Puts a sink of the caller's around the driver's, for programs that embed the service: whatever is appended goes through it.
    ///
    /// Results, dead letters, audit records and commit records come as batches, told apart by [`Batch::to`](crate::kafka::Batch); the commit that claims a
    /// result is appended after it has succeeded. So what the layer keeps of a result before it passes the batch on is kept at least once
    /// for each document, whatever happens: keep it under the document's source position, and a repeat changes nothing. A layer has to pass
    /// commit records on, or nothing is remembered.
    #[must_use]
    pub fn with_sink(
        mut self,
        layer: impl Fn(Arc<dyn Sink>) -> Arc<dyn Sink> + Send + Sync + 'static,
    ) -> Self {
        self.sink_layer = SinkLayer(Some(Box::new(layer)));
        self
    }

    pub(super) fn group_member(&self, topics: &Topics) -> GroupMember {
        let kafka = &self.settings.kafka;
        let instance_id = Some(kafka.group_instance_id.clone()).filter(|id| !id.is_empty());
        let config = MembershipConfig {
            instance_id,
            session_timeout: kafka.session_timeout,
            heartbeat_interval: kafka.heartbeat_interval,
            ..MembershipConfig::new(kafka.group_id.clone())
        };
        let inputs = topics.inputs.iter();
        let inputs = inputs.map(|(topic, _, partitions)| (topic.clone(), *partitions));
        GroupMember::new(self.cluster.clone(), config, inputs.collect())
    }

    /// The partitions that may become ours, with the ids of their topics.
    pub(super) fn partitions(
        &self,
        topics: &Topics,
    ) -> anyhow::Result<Vec<(TopicPartition, Uuid)>> {
        let share = self.settings.static_share().map_err(anyhow::Error::msg)?;
        let mut partitions = Vec::new();
        for (topic, id, count) in &topics.inputs {
            if let Some(missing) = share.as_ref().and_then(|share| share.missing_in(*count)) {
                anyhow::bail!(
                    "input.static_partitions names partition {missing}: topic `{topic}` has {count} partitions, numbered from 0"
                );
            }
            let topic: Arc<str> = topic.as_str().into();
            let is_ours = |partition: &i32| {
                share
                    .as_ref()
                    .is_none_or(|share| share.contains(*partition))
            };
            partitions.extend((0..*count).filter(is_ours).map(|partition| {
                let topic = Arc::clone(&topic);
                (TopicPartition { topic, partition }, *id)
            }));
        }
        Ok(partitions)
    }

    /// What reads the input and what writes.
    fn edges(&self, partitions: usize) -> (Arc<dyn Source>, Arc<dyn Sink>) {
        let (kafka, cluster) = (&self.settings.kafka, &self.cluster);
        let choice = self.driver.for_partitions(kafka.driver, partitions);
        if choice != self.driver {
            let (driver, because_of) = (choice.driver, choice.reason);
            tracing::info!(%driver, partitions, because_of, "another driver reads the input");
            self.board.set_info("driver", driver.to_string());
        }
        let isolation = match self.settings.isolation_level() {
            IsolationLevel::ReadUncommitted => Isolation::ReadUncommitted,
            IsolationLevel::ReadCommitted => Isolation::ReadCommitted,
        };
        let source: Arc<dyn Source> = match choice.driver {
            Driver::Rskafka => Arc::new(RskafkaSource::new(kafka.clone(), cluster.clone())),
            Driver::Wire => Arc::new(WireSource::new(cluster.clone(), isolation)),
        };
        let sink = match self.settings.processing.guarantee {
            Guarantee::AtLeastOnce => WireSink::idempotent(cluster.clone()),
            Guarantee::ExactlyOnce => WireSink::transactional(cluster.clone(), &kafka.group_id),
        };
        (source, Arc::new(sink))
    }

    /// The audit trail, where one is kept.
    fn auditing(&self, topics: &Topics) -> Option<Auditing> {
        let settings = &self.settings;
        let writer = AuditWriter {
            topic: settings.audit.topic.as_str().into(),
            partitions: topics.audit_partitions?,
            group: settings.kafka.group_id.clone(),
        };
        let parameters = AuditParameters {
            max_tokens: settings.llm.max_tokens,
            temperature: settings.llm.temperature,
            top_p: settings.llm.top_p,
            seed: settings.llm.seed,
        };
        Some(Auditing::new(writer, &settings.llm.model, parameters))
    }

    pub(super) fn services(
        &self,
        topics: &Topics,
        partitions: &[(TopicPartition, Uuid)],
        commit_offsets: CommitOffsets,
    ) -> Services {
        let settings = &self.settings;
        let asked = self.asking.now();
        let (source, sink) = self.edges(partitions.len());
        let partitions = partitions.iter();
        let classes = partitions.map(|(partition, _)| asked.topics.class(partition));
        let classes: Vec<_> = classes.collect();
        let sink = self.sink_layer.around(sink);
        Services {
            source,
            sink,
            store: CommitStore::new(
                Arc::new(self.cluster.clone()),
                settings.kafka.commit_topic(),
                topics.commit_partitions,
            ),
            guarantee: settings.processing.guarantee,
            complete: Arc::clone(&self.client) as Arc<dyn Complete>,
            asking: self.asking.clone(),
            schema_hash: self.schema_hash.clone(),
            input: settings.input.clone(),
            destinations: Destinations {
                output: settings.output.topic.as_str().into(),
                output_partitions: topics.output_partitions,
                partitioner: settings.output.partitioner,
                dead_letters: settings.dead_letters.topic.as_str().into(),
                dead_letter_partitions: topics.dead_letter_partitions,
                group_id: settings.kafka.group_id.clone(),
                header_style: settings.dead_letters.header_style,
            },
            audit: self.auditing(topics),
            order: settings.pipeline.order,
            commit_interval: settings.processing.commit_interval(),
            commit_bytes_max: settings.processing.commit_record_bytes_max,
            read_ahead: ReadAhead::with_gauges(
                settings.pipeline.read_ahead_records,
                settings.pipeline.read_ahead_bytes,
                &classes,
                self.pipeline_metrics.open(),
            ),
            commit_offsets,
            metrics: self.pipeline_metrics.clone(),
            board: self.board.clone(),
            drift: self.drift.clone(),
            holds: self.holds.clone(),
            spans: self.spans(),
            instance: self.instance.clone(),
        }
    }
}
