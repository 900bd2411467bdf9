//! The shared broker, the documents, and a job over them: topics, group, model and the processor's arguments.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::Duration;

use kafka_llm_processor::kafka::wire::{Cluster, NewTopic};
use kafka_llm_processor::kafka::{KafkaConfig, LogReader as _};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::TopicPartition;
use tokio::sync::{Mutex, MutexGuard};

use crate::support::kafka::{Broker, tools};
use crate::support::load;
pub(crate) use crate::support::load::DOCUMENT_BYTES;
use crate::support::processor::Processor;

/// The listeners take this and the next five, the controller is among them; `REAL_KAFKA_PORT` names another.
const PORT: u16 = 24_000;

/// How long the model takes for each call.
pub(crate) const LATENCY: Duration = Duration::from_millis(50);
/// Calls in flight.
pub(crate) const CONCURRENCY: usize = 64;
/// Partitions of the input, and so of everything that is created after it.
pub(crate) const PARTITIONS: i32 = 4;
pub(crate) const DOCUMENTS: usize = 2_000;
/// Documents of one produced batch: the broker hands out whole batches only.
pub(crate) const BATCH_DOCUMENTS: usize = 50;

/// The longest that anything which takes seconds may take: a debug build on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

static BROKER: Mutex<Option<Broker>> = Mutex::const_new(None);

fn port() -> u16 {
    let named = std::env::var("REAL_KAFKA_PORT").ok();
    named.map_or(PORT, |port| {
        port.parse().expect("REAL_KAFKA_PORT is a port")
    })
}

/// A test's turn with the shared broker.
pub(crate) struct Kafka {
    broker: MutexGuard<'static, Option<Broker>>,
    pub(crate) cluster: Cluster,
}

impl Kafka {
    /// Waits for the turn, and starts the broker where it does not run. `None` when the tests are skipped.
    pub(crate) async fn turn() -> Option<Self> {
        let tools = tools()?;
        let mut broker = BROKER.lock().await;
        match &mut *broker {
            Some(broker) => {
                // A test that killed it has failed before it started it again.
                if !broker.is_running() {
                    broker.restart().await;
                }
            }
            None => *broker = Some(Broker::start(&tools, port()).await),
        }
        let address = broker.as_ref().map(Broker::address);
        let config = KafkaConfig {
            brokers: address.expect("it was started"),
            ..KafkaConfig::default()
        };
        Some(Self {
            broker,
            cluster: Cluster::new(&config),
        })
    }

    pub(crate) fn broker_mut(&mut self) -> &mut Broker {
        self.broker.as_mut().expect("it was started")
    }

    /// The high watermark of a partition.
    pub(crate) async fn end_of(&self, topic: &str, partition: i32) -> usize {
        let (_, end) = self
            .cluster
            .log_bounds(&TopicPartition::new(topic, partition))
            .await
            .expect("the broker answers");
        usize::try_from(end.value()).expect("an offset")
    }

    pub(crate) async fn create_topic(&self, name: &str, partitions: i32) {
        let topic = NewTopic {
            name: name.to_owned(),
            partitions,
            replication_factor: -1,
            configs: BTreeMap::new(),
        };
        self.cluster.create_topic(&topic).await.expect("created");
    }

    /// Writes documents number `first..first + count` to the partitions in turn, as batches of [`BATCH_DOCUMENTS`].
    pub(crate) async fn write_documents(
        &self,
        topic: &str,
        partitions: &[i32],
        first: usize,
        count: usize,
    ) {
        let address = self.address();
        load::write_documents(address, topic, partitions, first, count, BATCH_DOCUMENTS).await;
    }
}

impl Deref for Kafka {
    type Target = Broker;
    fn deref(&self) -> &Broker {
        self.broker.as_ref().expect("it was started")
    }
}

/// The model: every call takes [`LATENCY`].
pub(crate) async fn model() -> Vllm {
    let config = VllmConfig {
        latency: Latency::fixed(LATENCY),
        ..VllmConfig::default()
    };
    Vllm::start(config).await.expect("the simulated vLLM")
}

/// What one processor works on: an input topic, and an output topic and a group named after it.
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) vllm: Vllm,
    /// Begins the names of the group and of the topics that are written.
    output: String,
    arguments: Vec<String>,
}

impl Job {
    /// A job over an input topic with [`DOCUMENTS`] documents on [`PARTITIONS`] partitions.
    pub(crate) async fn with_documents(kafka: &Kafka, name: &str) -> Self {
        let job = Self::new(kafka, name).await;
        kafka.create_topic(name, PARTITIONS).await;
        let partitions: Vec<_> = (0..PARTITIONS).collect();
        kafka.write_documents(name, &partitions, 0, DOCUMENTS).await;
        job
    }

    /// A job over an input topic that the test makes.
    pub(crate) async fn new(kafka: &Kafka, name: &str) -> Self {
        let vllm = model().await;
        let settings = [
            format!("--set=kafka.brokers={}", kafka.address()),
            format!("--group-id={name}"),
            format!("--input-topic={name}"),
            format!("--output-topic={name}-results"),
            format!("--llm-url={}", vllm.url()),
            format!("--set=llm.concurrency={CONCURRENCY}"),
            format!("--set=dead_letters.topic={name}-dead-letters"),
            "--set=admin.listen=127.0.0.1:0".to_owned(),
            "--set=log.file=off".to_owned(),
        ];
        Self {
            name: name.to_owned(),
            vllm,
            output: name.to_owned(),
            arguments: settings.to_vec(),
        }
    }

    /// Gives the job an output topic and a group of its own beside other jobs over the same input topic.
    pub(crate) fn rename_output(&mut self, suffix: &str) {
        self.output = format!("{}-{suffix}", self.name);
        let settings = [
            format!("--group-id={}", self.output),
            format!("--output-topic={}", self.results()),
            format!("--set=dead_letters.topic={}", self.dead_letters()),
        ];
        self.arguments.retain(|argument| {
            let is_replaced = |new: &String| {
                let key = new.rsplit_once('=').map_or("", |(key, _)| key);
                argument.starts_with(&format!("{key}="))
            };
            !settings.iter().any(is_replaced)
        });
        self.arguments.extend(settings);
    }

    /// Sets one more key; the last of equal keys counts.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.arguments.push(format!("--set={key}={value}"));
    }

    /// Another argument as it is.
    pub(crate) fn argument(&mut self, argument: String) {
        self.arguments.push(argument);
    }

    /// The topic of the results.
    pub(crate) fn results(&self) -> String {
        format!("{}-results", self.output)
    }

    /// The topic of the dead letters.
    pub(crate) fn dead_letters(&self) -> String {
        format!("{}-dead-letters", self.output)
    }

    /// The topic of the commits.
    pub(crate) fn commits(&self) -> String {
        format!("{}-commits", self.output)
    }

    /// Runs the processor.
    pub(crate) fn start(&self) -> Processor {
        self.start_with(&[], &[])
    }

    /// Runs the processor with more arguments, behind the others, and with variables.
    pub(crate) fn start_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Processor {
        let more = arguments.iter().map(|argument| (*argument).to_owned());
        let arguments: Vec<_> = self.arguments.iter().cloned().chain(more).collect();
        Processor::start(&arguments, variables)
    }

    /// Waits until the model was called so often, by whichever run of the processor.
    pub(crate) async fn calls(&self, count: u64) {
        let reached = self
            .vllm
            .wait_until(SOON, |vllm| vllm.calls() >= count)
            .await;
        assert!(reached, "{count} calls: {}", self.vllm.calls());
    }
}
