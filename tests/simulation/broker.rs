//! Kafka in memory: logs, producers with epochs and sequences, and transactions that hide what they hold until their markers are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use kafka_llm_processor::kafka::{Batch, End, KafkaError, StepError};
use kafka_llm_processor::types::{Offset, Record, TopicPartition};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::group::Group;
use crate::log::{Entry, Log, Visibility};
use crate::oracle::{OUTPUT, Oracle};
use crate::random::Random;
use crate::scenario::{Flavour, Mutant, Scenario};
use crate::trace::Trace;

/// `transaction.timeout.ms`.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the output takes only small messages: records of a batch, and bytes of a value.
const BATCH_RECORDS_MAX: usize = 2;
pub const VALUE_BYTES_MAX: usize = 4_000;
/// How often what waits for markers looks again.
const MARKER_WAIT: Duration = Duration::from_millis(3);

/// Everything outside the processors. One thread runs all of it.
pub struct World {
    pub scenario: Scenario,
    state: Mutex<State>,
    /// Told of each record that is added to the input.
    pub input_grew: Notify,
}

pub struct State {
    pub random: Random,
    pub faults_on: bool,
    pub logs: BTreeMap<TopicPartition, Log>,
    pub oracle: Oracle,
    pub group: Group,
    /// Where the logs of input partitions begin that have lost what came first.
    pub starts: BTreeMap<i32, Offset>,
    pub trace: Trace,
    /// What the run has reached of what it is for.
    pub reached: BTreeSet<&'static str>,
    producers: BTreeMap<u64, Producer>,
    /// Which producer a transactional id has.
    ids: BTreeMap<String, u64>,
    ids_given: u64,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

#[derive(Debug, Default)]
struct Producer {
    transactional_id: Option<String>,
    epoch: u64,
    /// The next sequence per partition.
    sequences: BTreeMap<TopicPartition, u64>,
    transaction: Option<Transaction>,
    last_end: Option<End>,
    /// Who raised the epoch last without taking over.
    raised_by: Option<u64>,
}

#[derive(Debug)]
struct Transaction {
    number: u64,
    writer: Writer,
    records: BTreeMap<TopicPartition, Vec<Offset>>,
    /// Decided, and markers are on their way.
    ending: bool,
}

/// Who sends a request.
#[derive(Debug, Clone)]
pub struct Writer {
    /// Unique to the sink that asks.
    pub sink: u64,
    pub instance: String,
    /// None: nothing can be told apart.
    pub producer: Option<u64>,
    pub epoch: u64,
}

/// A request that has to wait for markers.
struct Busy;

type Answer<T> = Result<Result<T, StepError>, Busy>;

pub fn server_error(operation: &str, code: i16, name: &str) -> KafkaError {
    KafkaError::Server {
        operation: operation.to_owned(),
        code,
        name: name.to_owned(),
        detail: None,
    }
}

fn invalid_state() -> StepError {
    StepError::Refused(server_error("transaction", 48, "InvalidTxnState"))
}

impl World {
    pub fn new(scenario: Scenario, printed: bool) -> Arc<Self> {
        let state = State {
            // Another stream of numbers than the one that drew the scenario.
            random: Random::new(!scenario.seed),
            faults_on: true,
            logs: BTreeMap::new(),
            oracle: Oracle::new(&scenario),
            group: Group::new(scenario.input_partitions, scenario.mutant),
            starts: BTreeMap::new(),
            trace: Trace::new(printed),
            reached: BTreeSet::new(),
            producers: BTreeMap::new(),
            ids: BTreeMap::new(),
            ids_given: 0,
        };
        Arc::new(Self {
            scenario,
            state: Mutex::new(state),
            input_grew: Notify::new(),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn note(&self, event: fmt::Arguments<'_>) {
        self.state().trace.note(event);
    }

    /// Repeats a request until no markers are in its way.
    async fn when_ready<T>(
        &self,
        mut request: impl FnMut(&mut State) -> Answer<T>,
    ) -> Result<T, StepError> {
        loop {
            let answer = request(&mut self.state());
            match answer {
                Ok(answer) => return answer,
                Err(Busy) => sleep(MARKER_WAIT).await,
            }
        }
    }

    /// A new writer for an input partition; with transactions the former one is fenced and what it left open is aborted.
    pub async fn take_over(
        self: Arc<Self>,
        instance: String,
        input: TopicPartition,
    ) -> Result<Writer, StepError> {
        let flavour = self.scenario.flavour;
        let fences = self.scenario.mutant != Some(Mutant::NobodyIsFenced);
        let world = Arc::clone(&self);
        self.when_ready(move |state| {
            let writer = |state: &mut State, producer, epoch| Writer {
                sink: state.next_id(),
                instance: instance.clone(),
                producer,
                epoch,
            };
            let id = match flavour {
                Flavour::Plain => return Ok(Ok(writer(state, None, 0))),
                Flavour::Idempotent => None,
                Flavour::ExactlyOnce => Some(input.to_string()),
            };
            let known = id.as_ref().and_then(|id| state.ids.get(id).copied());
            let Some(producer_id) = known.filter(|_| fences) else {
                let producer_id = state.next_id();
                let producer = Producer {
                    transactional_id: id.clone(),
                    ..Producer::default()
                };
                state.producers.insert(producer_id, producer);
                if let Some(id) = id {
                    state.ids.insert(id, producer_id);
                }
                state.oracle.taken_over(&instance, &input);
                return Ok(Ok(writer(state, Some(producer_id), 0)));
            };
            world.raise_epoch(state, producer_id)?;
            state.oracle.taken_over(&instance, &input);
            let epoch = state.producer(producer_id).epoch;
            Ok(Ok(writer(state, Some(producer_id), epoch)))
        })
        .await
    }

    /// Aborts what is open, waits for the markers, and raises the epoch.
    fn raise_epoch(self: &Arc<Self>, state: &mut State, producer_id: u64) -> Result<(), Busy> {
        let producer = state.producer(producer_id);
        if let Some(transaction) = &producer.transaction {
            if !transaction.ending {
                // From here on the former owner's requests are refused.
                producer.epoch += 1;
                producer.raised_by = None;
                state.reached.insert("open transaction aborted");
                self.decide(state, producer_id, End::Abort);
            }
            return Err(Busy);
        }
        producer.epoch += 1;
        producer.raised_by = None;
        producer.sequences.clear();
        Ok(())
    }

    /// What a driver does when it cannot know what the broker has of it: it asks for a higher epoch, which also aborts.
    pub async fn renew(self: Arc<Self>, writer: Writer) -> Result<u64, StepError> {
        let Some(producer_id) = writer.producer else {
            return Ok(0);
        };
        let world = Arc::clone(&self);
        self.when_ready(move |state| {
            let Some(producer) = state.producers.get(&producer_id) else {
                return Ok(Err(forgotten()));
            };
            if producer.epoch == writer.epoch + 1 && producer.raised_by == Some(writer.sink) {
                // Its answer was lost; or the markers of what it aborted are still on their way.
                return if producer.transaction.is_some() {
                    Err(Busy)
                } else {
                    Ok(Ok(producer.epoch))
                };
            }
            if producer.epoch != writer.epoch {
                return Ok(Err(StepError::Fenced));
            }
            if producer
                .transaction
                .as_ref()
                .is_some_and(|open| open.ending)
            {
                return Err(Busy);
            }
            let raised = world.raise_epoch(state, producer_id);
            let producer = state.producer(producer_id);
            producer.raised_by = Some(writer.sink);
            producer.sequences.clear();
            raised.map(|()| Ok(producer.epoch))
        })
        .await
    }

    /// Appends a batch; `late` says that its sender has stopped to wait for it.
    pub async fn append(
        self: Arc<Self>,
        writer: Writer,
        batch: Batch,
        sequence: u64,
        late: impl Fn() -> bool + Send + 'static,
    ) -> Result<(), StepError> {
        let world = Arc::clone(&self);
        if self.is_too_large(&batch) {
            self.state().reached.insert("too large");
            let partition = batch.to;
            return Err(StepError::Refused(KafkaError::TooLarge { partition }));
        }
        self.when_ready(move |state| {
            let Some(producer_id) = writer.producer else {
                state.append_at_once(&writer, &batch, late());
                return Ok(Ok(()));
            };
            let forgets = world.scenario.mutant == Some(Mutant::ForgetsSequences);
            let Some(producer) = state.producers.get_mut(&producer_id) else {
                return Ok(Err(forgotten()));
            };
            if producer.epoch != writer.epoch {
                return Ok(Err(StepError::Fenced));
            }
            if producer
                .transaction
                .as_ref()
                .is_some_and(|open| open.ending)
            {
                return Err(Busy);
            }
            let next = producer.sequences.entry(batch.to.clone()).or_default();
            if sequence < *next && !forgets {
                state.reached.insert("repeated batch");
                state.trace.note(format_args!(
                    "broker {} has batch {sequence} already",
                    batch.to
                ));
                return Ok(Ok(()));
            }
            if sequence > *next {
                let error = server_error("append", 45, "OutOfOrderSequenceNumber");
                return Ok(Err(StepError::Expired(error)));
            }
            *next = sequence + 1;
            if producer.transactional_id.is_some() {
                world.append_in_transaction(state, &writer, producer_id, &batch);
            } else {
                state.append_at_once(&writer, &batch, late());
            }
            Ok(Ok(()))
        })
        .await
    }

    /// The output takes few records at a time, and none that is large.
    fn is_too_large(&self, batch: &Batch) -> bool {
        let size = |record: &Record| record.value.as_ref().map_or(0, Bytes::len);
        self.scenario.faults.small_messages
            && &*batch.to.topic == OUTPUT
            && (batch.records.len() > BATCH_RECORDS_MAX
                || batch
                    .records
                    .iter()
                    .any(|record| size(record) > VALUE_BYTES_MAX))
    }

    fn append_in_transaction(
        self: &Arc<Self>,
        state: &mut State,
        writer: &Writer,
        producer_id: u64,
        batch: &Batch,
    ) {
        let number = state.next_id();
        let offsets = state.push(batch, Some(producer_id));
        let producer = state.producer(producer_id);
        let begins = producer.transaction.is_none();
        let transaction = producer.transaction.get_or_insert_with(|| Transaction {
            number,
            writer: writer.clone(),
            records: BTreeMap::new(),
            ending: false,
        });
        transaction
            .records
            .entry(batch.to.clone())
            .or_default()
            .extend(offsets);
        if begins {
            let world = Arc::clone(self);
            tokio::spawn(async move {
                sleep(TRANSACTION_TIMEOUT).await;
                world.time_out(producer_id, number);
            });
        }
    }

    fn time_out(self: &Arc<Self>, producer_id: u64, number: u64) {
        let state = &mut *self.state();
        let Some(producer) = state.producers.get_mut(&producer_id) else {
            return;
        };
        if producer
            .transaction
            .as_ref()
            .is_some_and(|open| open.number == number && !open.ending)
        {
            producer.epoch += 1;
            producer.raised_by = None;
            producer.sequences.clear();
            state.trace.note(format_args!(
                "broker a transaction of producer {producer_id} has timed out"
            ));
            state.reached.insert("transaction timed out");
            self.decide(state, producer_id, End::Abort);
        }
    }

    /// Ends a transaction.
    pub async fn end(self: Arc<Self>, writer: Writer, end: End) -> Result<(), StepError> {
        let world = Arc::clone(&self);
        let Some(producer_id) = writer.producer else {
            return Ok(());
        };
        self.when_ready(move |state| {
            let Some(producer) = state.producers.get(&producer_id) else {
                return Ok(Err(forgotten()));
            };
            if producer.epoch != writer.epoch {
                return Ok(Err(StepError::Fenced));
            }
            match &producer.transaction {
                Some(open) if open.ending => Err(Busy),
                Some(_) => {
                    world.decide(state, producer_id, end);
                    Ok(Ok(()))
                }
                None if end == End::Abort => Ok(Ok(())),
                None if producer.last_end == Some(end) && !world.scenario.second_end_is_refused => {
                    Ok(Ok(()))
                }
                None => Ok(Err(invalid_state())),
            }
        })
        .await
    }

    /// The coordinator's decision: from here on it is what it is. Readers see it partition by partition, as the markers are written.
    fn decide(self: &Arc<Self>, state: &mut State, producer_id: u64, end: End) {
        let producer = state.producer(producer_id);
        producer.last_end = Some(end);
        let Some(transaction) = &mut producer.transaction else {
            return;
        };
        transaction.ending = true;
        let (records, writer) = (transaction.records.clone(), transaction.writer.clone());
        let id = producer.transactional_id.clone().unwrap_or_default();
        state.trace.note(format_args!("broker {end:?} of {id}"));
        let slow_markers = self.scenario.faults.slow_markers;
        let mut delays = Vec::new();
        for partition in records.keys() {
            let slow = state.faults_on && slow_markers && state.random.chance(20);
            let most = if slow { 2_000 } else { 4 };
            delays.push((partition.clone(), state.random.millis(0, most)));
        }
        if end == End::Commit {
            let records = records
                .iter()
                .flat_map(|(partition, offsets)| offsets.iter().map(|at| (partition.clone(), *at)));
            let records = records.map(|(partition, at)| {
                let record = state
                    .logs
                    .get(&partition)
                    .and_then(|log| log.record(at))
                    .cloned()
                    .unwrap();
                (partition, record)
            });
            let records: Vec<_> = records.collect();
            state.oracle.durable(&writer, records, false);
        }
        let world = Arc::clone(self);
        tokio::spawn(async move { world.write_markers(producer_id, end, delays).await });
    }

    async fn write_markers(
        &self,
        producer_id: u64,
        end: End,
        delays: Vec<(TopicPartition, Duration)>,
    ) {
        let decided = match end {
            End::Commit => Visibility::Committed,
            End::Abort => Visibility::Aborted,
        };
        for (partition, delay) in delays {
            sleep(delay).await;
            let log = &mut self.state().logs;
            log.entry(partition).or_default().mark(producer_id, decided);
        }
        if let Some(producer) = self.state().producers.get_mut(&producer_id) {
            producer.transaction = None;
        }
    }

    /// Forgets a writer that has nothing open, as the broker does after a week.
    pub fn forget_a_writer(&self) {
        let state = &mut *self.state();
        let idle: Vec<u64> = state
            .producers
            .iter()
            .filter(|(_, producer)| producer.transaction.is_none())
            .map(|(id, _)| *id)
            .collect();
        if idle.is_empty() {
            return;
        }
        let forgotten = state.random.pick(&idle);
        state.producers.remove(&forgotten);
        state.ids.retain(|_, producer| *producer != forgotten);
        state
            .trace
            .note(format_args!("broker producer {forgotten} is forgotten"));
    }
}

fn forgotten() -> StepError {
    StepError::Expired(server_error("append", 49, "InvalidProducerIdMapping"))
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.ids_given += 1;
        self.ids_given
    }

    fn producer(&mut self, id: u64) -> &mut Producer {
        self.producers.entry(id).or_default()
    }

    /// Without a transaction what is written is seen.
    fn append_at_once(&mut self, writer: &Writer, batch: &Batch, late: bool) {
        self.push(batch, None);
        if late {
            self.reached.insert("late request");
        }
        let records = batch.records.iter().cloned();
        let records = records.map(|record| (batch.to.clone(), record));
        self.oracle.durable(writer, records.collect(), late);
    }

    fn push(&mut self, batch: &Batch, transaction: Option<u64>) -> Vec<Offset> {
        let log = self.logs.entry(batch.to.clone()).or_default();
        let visibility = match transaction {
            Some(_) => Visibility::Open,
            None => Visibility::Committed,
        };
        let records = batch.records.iter().map(|record| {
            log.push(Entry::Data {
                record: record.clone(),
                transaction,
                visibility,
            })
        });
        records.collect()
    }

    /// Where the log of an input partition begins.
    pub fn start_of(&self, partition: &TopicPartition) -> Offset {
        let start = self.starts.get(&partition.partition);
        start.copied().unwrap_or(Offset::ZERO)
    }

    /// Deletes input up to somewhere, read or not.
    pub fn lose_input(&mut self, partition: &TopicPartition) {
        let (start, end) = (self.start_of(partition), self.end_of(partition));
        let lost = self.random.between(0, end.value().abs_diff(start.value()));
        let start = Offset::new(start.value() + i64::try_from(lost).unwrap());
        self.starts.insert(partition.partition, start);
        self.trace
            .note(format_args!("broker {partition} begins at {start}"));
        self.reached.insert("input lost");
        self.oracle.input_lost(partition.partition, start);
    }

    /// Where a log ends.
    pub fn end_of(&self, partition: &TopicPartition) -> Offset {
        self.logs.get(partition).map_or(Offset::ZERO, Log::end)
    }
}
