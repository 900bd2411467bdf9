//! The edges to Kafka: what the pipeline calls, carried to the broker in memory through the instance's fate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use kafka_llm_processor::kafka::{
    Batch, End, Fetched, KafkaError, LogReader, LogScan, LogScanner, PartitionSink, RecordStream,
    Sink, Source, StepError,
};
use kafka_llm_processor::types::{Offset, Record, TopicPartition};
use tokio::time::timeout;
use uuid::Uuid;

use crate::broker::Writer;
use crate::instance::{Instance, Step};
use crate::log::{Entry, Log, Visibility};
use crate::mutants::Swapped;
use crate::scenario::{Flavour, Mutant};

/// Id of the input topic.
pub const TOPIC_ID: Uuid = Uuid::from_u128(0x51);

/// All edges of one instance to Kafka.
#[derive(Debug, Clone)]
pub struct KafkaEdge(pub Arc<Instance>);

impl KafkaEdge {
    fn end(&self, partition: &TopicPartition) -> Offset {
        self.0.world.state().end_of(partition)
    }
}

#[async_trait]
impl Source for KafkaEdge {
    async fn open(
        &self,
        partition: &TopicPartition,
        start: Offset,
    ) -> Result<Box<dyn RecordStream>, KafkaError> {
        self.0
            .look(self.0.world.scenario.faults.failing_fetches)
            .await?;
        Ok(Box::new(Stream {
            instance: Arc::clone(&self.0),
            partition: partition.clone(),
            position: start,
        }))
    }

    async fn bounds(&self, partition: &TopicPartition) -> Result<(Offset, Offset), KafkaError> {
        self.0
            .look(self.0.world.scenario.faults.failing_fetches)
            .await?;
        let state = self.0.world.state();
        Ok((state.start_of(partition), state.end_of(partition)))
    }

    async fn topic_id(&self, _topic: &str) -> Result<Option<Uuid>, KafkaError> {
        self.0.look(false).await?;
        Ok(Some(TOPIC_ID))
    }
}

struct Stream {
    instance: Arc<Instance>,
    partition: TopicPartition,
    position: Offset,
}

impl Stream {
    fn check_exists(&self) -> Result<(), KafkaError> {
        let state = self.instance.world.state();
        let log_start = state.start_of(&self.partition);
        if log_start <= self.position {
            return Ok(());
        }
        Err(KafkaError::OffsetOutOfRange {
            partition: self.partition.clone(),
            offset: self.position,
            log_start,
            high_watermark: state.end_of(&self.partition),
        })
    }

    /// Some of what lies at the position; gaps and markers are stepped over.
    fn fetch(&mut self) -> Fetched {
        let state = &mut *self.instance.world.state();
        let most = usize::try_from(state.random.between(1, 12)).unwrap();
        let mut fetched = Fetched {
            records: Vec::new(),
            next_offset: self.position,
            high_watermark: state.end_of(&self.partition),
        };
        let Some(log) = state.logs.get(&self.partition) else {
            return fetched;
        };
        for (at, entry) in log.from(self.position) {
            if let Entry::Data { record, .. } = entry {
                if fetched.records.len() == most {
                    break;
                }
                fetched.records.push((at, record.clone()));
            }
            fetched.next_offset = at.next();
        }
        self.position = fetched.next_offset;
        fetched
    }
}

#[async_trait]
impl RecordStream for Stream {
    async fn next(&mut self, _max_bytes: usize, wait: Duration) -> Result<Fetched, KafkaError> {
        let instance = Arc::clone(&self.instance);
        let may_fail = instance.world.scenario.faults.failing_fetches;
        instance.look(may_fail).await?;
        let grew = instance.world.input_grew.notified();
        let has_more = instance.world.state().end_of(&self.partition) > self.position;
        if !has_more {
            drop(timeout(wait, grew).await);
            instance.gate().await;
        }
        self.check_exists()?;
        let before = self.position;
        let fetched = self.fetch();
        if fetched.next_offset > before {
            instance.note(format_args!(
                "fetched {}@{before}..{}",
                self.partition, fetched.next_offset
            ));
        }
        Ok(fetched)
    }
}

#[async_trait]
impl LogReader for KafkaEdge {
    async fn log_bounds(&self, partition: &TopicPartition) -> Result<(Offset, Offset), KafkaError> {
        self.0
            .look(self.0.world.scenario.faults.failing_scans)
            .await?;
        Ok((Offset::ZERO, self.end(partition)))
    }

    async fn topic_id(&self, topic: &str) -> Result<Option<Uuid>, KafkaError> {
        Source::topic_id(self, topic).await
    }

    async fn read(
        &self,
        partition: &TopicPartition,
        from: Offset,
        _wait: Duration,
    ) -> Result<Fetched, KafkaError> {
        self.0
            .look(self.0.world.scenario.faults.failing_scans)
            .await?;
        let state = self.0.world.state();
        let high_watermark = state.end_of(partition);
        let mut fetched = Fetched {
            records: Vec::new(),
            next_offset: from,
            high_watermark,
        };
        for (at, entry) in state
            .logs
            .get(partition)
            .into_iter()
            .flat_map(|log| log.from(from))
        {
            if let Entry::Data {
                record, visibility, ..
            } = entry
            {
                match visibility {
                    Visibility::Open => break,
                    Visibility::Aborted => {}
                    Visibility::Committed => fetched.records.push((at, record.clone())),
                }
            }
            fetched.next_offset = at.next();
        }
        Ok(fetched)
    }
}

impl LogScanner for KafkaEdge {
    fn scan(&self, partition: &TopicPartition, from: Offset) -> Box<dyn LogScan> {
        Box::new(Scan {
            instance: Arc::clone(&self.0),
            partition: partition.clone(),
            position: from,
            open: BTreeMap::new(),
        })
    }
}

/// Reads on without waiting for what is open; hands a transaction out where its end lies.
struct Scan {
    instance: Arc<Instance>,
    partition: TopicPartition,
    position: Offset,
    /// Records of transactions that have no end yet, by producer.
    open: BTreeMap<u64, Vec<(Offset, Record)>>,
}

impl Scan {
    fn read(&mut self, log: &Log, hands_out_aborted: bool) -> Vec<(Offset, Record)> {
        let mut records = Vec::new();
        for (at, entry) in log.from(self.position) {
            match entry {
                Entry::Data {
                    record,
                    transaction: None,
                    ..
                } => {
                    records.push((at, record.clone()));
                }
                Entry::Data {
                    record,
                    transaction: Some(producer),
                    visibility,
                } => {
                    let aborted = *visibility == Visibility::Aborted;
                    if !aborted || hands_out_aborted {
                        let open = self.open.entry(*producer).or_default();
                        open.push((at, record.clone()));
                    }
                }
                Entry::Marker { producer } => {
                    // The list of aborted transactions comes with the records in Kafka; here the log tells.
                    let ended = self.open.remove(producer).into_iter().flatten();
                    records
                        .extend(ended.filter(|(at, _)| hands_out_aborted || !log.is_aborted(*at)));
                }
                Entry::Gap => {}
            }
            self.position = at.next();
        }
        records
    }
}

#[async_trait]
impl LogScan for Scan {
    async fn next(&mut self, wait: Duration) -> Result<Fetched, KafkaError> {
        let instance = Arc::clone(&self.instance);
        let scenario = &instance.world.scenario;
        instance.look(scenario.faults.failing_scans).await?;
        if instance.world.state().end_of(&self.partition) <= self.position {
            tokio::time::sleep(wait).await;
            instance.gate().await;
        }
        let state = instance.world.state();
        let high_watermark = state.end_of(&self.partition);
        let mut records = match state.logs.get(&self.partition) {
            Some(log) => self.read(log, scenario.mutant == Some(Mutant::HandsOutAborted)),
            None => Vec::new(),
        };
        if scenario.mutant == Some(Mutant::HidesNewestCommit) {
            records.pop();
        }
        Ok(Fetched {
            records,
            next_offset: self.position,
            high_watermark,
        })
    }

    fn resume_at(&self) -> Offset {
        let open = self.open.values().filter_map(|records| records.first());
        open.map(|(at, _)| *at).min().unwrap_or(self.position)
    }
}

#[async_trait]
impl Sink for KafkaEdge {
    async fn take_over(&self, input: &TopicPartition) -> Result<Box<dyn PartitionSink>, StepError> {
        let world = Arc::clone(&self.0.world);
        let (name, partition) = (self.0.name.clone(), input.clone());
        let writer = self
            .0
            .step(Step::TakeOver, &input.to_string(), |_| {
                world.take_over(name, partition)
            })
            .await?;
        let sink = PartitionEdge {
            instance: Arc::clone(&self.0),
            writer,
            sequences: BTreeMap::new(),
            unresolved: BTreeMap::new(),
            must_renew: false,
            told: None,
        };
        Ok(match self.0.world.scenario.mutant {
            Some(mutant @ (Mutant::AcksBeforeWriting | Mutant::EndsBeforeAppending)) => {
                Box::new(Swapped::new(Box::new(sink), mutant))
            }
            _ => Box::new(sink),
        })
    }
}

/// A driver for one input partition: gives sequences, and asks for a higher epoch where an unknown outcome could come back later.
struct PartitionEdge {
    instance: Arc<Instance>,
    writer: Writer,
    /// The next sequence per partition.
    sequences: BTreeMap<TopicPartition, u64>,
    /// Batches with unknown outcomes: the same has to come again.
    unresolved: BTreeMap<TopicPartition, Batch>,
    must_renew: bool,
    /// What ended it: nothing may follow.
    told: Option<&'static str>,
}

impl PartitionEdge {
    fn is_idempotent(&self) -> bool {
        self.instance.world.scenario.flavour != Flavour::Plain
    }

    /// Nothing may be asked once the broker has said that this writer is over.
    fn check_not_over(&self, step: &str) {
        if let Some(told) = self.told {
            let what = format!(
                "{} goes on with {step} after it was told that it is {told}",
                self.instance.name
            );
            self.instance.world.state().oracle.violated(what);
        }
    }

    fn learn<T>(&mut self, outcome: &Result<T, StepError>) {
        match outcome {
            Err(StepError::Fenced) => self.told = Some("fenced"),
            Err(StepError::Expired(_)) => self.told = Some("forgotten"),
            Err(StepError::OutcomeUnknown(_)) => self.must_renew |= self.is_transactional(),
            Ok(_) | Err(StepError::Refused(_)) => {}
        }
    }

    /// Aborts, and raises the epoch, so that nothing that is still on its way can land in a later transaction.
    async fn renew(&mut self) -> Result<(), StepError> {
        let (world, writer) = (Arc::clone(&self.instance.world), self.writer.clone());
        let renewed = self
            .instance
            .step(Step::End, "with a higher epoch", |_| world.renew(writer))
            .await;
        self.learn(&renewed);
        self.writer.epoch = renewed?;
        self.sequences.clear();
        self.unresolved.clear();
        self.must_renew = false;
        Ok(())
    }
}

#[async_trait]
impl PartitionSink for PartitionEdge {
    fn is_transactional(&self) -> bool {
        self.instance.world.scenario.flavour == Flavour::ExactlyOnce
    }

    async fn begin(&mut self) -> Result<(), StepError> {
        self.check_not_over("begin");
        if self.must_renew {
            self.renew().await?;
        }
        Ok(())
    }

    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        self.check_not_over("append");
        let mut sent = Vec::new();
        for batch in batches {
            let unresolved = self.unresolved.get(&batch.to);
            if self.is_idempotent()
                && unresolved.is_some_and(|before| before.records != batch.records)
            {
                let what = format!(
                    "{} sends another batch to {} while one is unresolved",
                    self.instance.name, batch.to
                );
                self.instance.world.state().oracle.violated(what);
            }
            let sequence = self.sequences.get(&batch.to).copied().unwrap_or_default();
            let (world, writer, batch) = (
                Arc::clone(&self.instance.world),
                self.writer.clone(),
                batch.clone(),
            );
            let what = format!("{} #{sequence} of {}", batch.to, batch.records.len());
            let instance = Arc::clone(&self.instance);
            sent.push(async move {
                let append = |waits: crate::instance::Waits| {
                    world.append(writer, batch, sequence, move || waits.is_over())
                };
                instance.step(Step::Append, &what, append).await
            });
        }
        let outcomes = join_all(sent).await;
        for (batch, outcome) in batches.iter().zip(&outcomes) {
            self.learn(outcome);
            match outcome {
                Ok(()) => {
                    self.unresolved.remove(&batch.to);
                    *self.sequences.entry(batch.to.clone()).or_default() += 1;
                }
                Err(StepError::OutcomeUnknown(_)) => {
                    self.unresolved.insert(batch.to.clone(), batch.clone());
                }
                // What is too large now was too large before.
                Err(StepError::Refused(KafkaError::TooLarge { .. })) => {
                    self.unresolved.remove(&batch.to);
                }
                Err(_) => {}
            }
        }
        outcomes
    }

    async fn end(&mut self, end: End) -> Result<(), StepError> {
        self.check_not_over("end");
        if end == End::Abort && self.must_renew {
            return self.renew().await;
        }
        let (world, writer) = (Arc::clone(&self.instance.world), self.writer.clone());
        let ended = self
            .instance
            .step(Step::End, &format!("{end:?}"), |_| world.end(writer, end))
            .await;
        self.learn(&ended);
        ended
    }
}
