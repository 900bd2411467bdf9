//! `quickstart`: sandbox, six sample documents, the processor and its results, in one process and in seconds.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use super::Outcome;
use super::output::Terminal;
use super::produce::{self, ProduceArgs, ProduceTarget};
use super::results::{self, From, ResultTopics, ResultsArgs};
use super::sandbox::vllm_config;
use crate::app::{App, RunEnd, preflight, wanted_topics};
use crate::config::{Override, Settings};
use crate::kafka::topics;
use crate::kafka::wire::{Cluster, Isolation, OffsetAt};
use crate::pipeline::InputTopic;
use crate::sandbox::broker::{Broker, BrokerConfig};
use crate::sandbox::vllm::Vllm;
use crate::telemetry::StatusBoard;
use crate::telemetry::server::Listen;
use crate::types::{Offset, TopicPartition};

/// The longest that a real model may take for six documents.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(20);
/// The names used on a real Kafka, unless others are named: a trial must not touch the topics of real work.
const NAME: &str = "klp-quickstart";

/// What was named by the user, and is therefore used in the place of the sandbox.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given {
    brokers: bool,
    llm: bool,
    topic: bool,
    group: bool,
}

impl Given {
    pub(super) fn new(environment: &[(String, String)], overrides: &[Override]) -> Self {
        let given = |key: &str, variables: [&str; 2]| {
            environment
                .iter()
                .any(|(name, _)| variables.contains(&name.as_str()))
                || overrides.iter().any(|set| set.key == key)
        };
        Self {
            brokers: given("kafka.brokers", ["KAFKA_BROKERS", "KLP_KAFKA__BROKERS"]),
            llm: given("llm.url", ["LLM_URL", "KLP_LLM__URL"]),
            topic: given("input.topics", ["INPUT_TOPIC", "KLP_INPUT__TOPICS"]),
            group: given("kafka.group_id", ["KLP_KAFKA__GROUP_ID", ""]),
        }
    }
}

/// Runs everything once. Exit code 0 when every document has a result.
pub(super) async fn run(mut settings: Settings, given: Given, stop: &CancellationToken) -> Outcome {
    let mut out = io::stdout();
    // Beside a processor that runs, its port is taken; and nobody looks at this one.
    settings.admin.listen = Listen::Off;
    let sandbox = Sandbox::start(&mut settings, given).await?;
    sandbox.tell(&settings, &mut out)?;

    // Before anything is sent: what cannot be used is told within seconds, and leaves nothing behind.
    preflight(&settings).await?;
    let terminal = Terminal::stdout();
    let topic = settings
        .input
        .topics
        .first()
        .map(|topic| topic.name.clone())
        .unwrap_or_default();
    let target = ProduceTarget {
        kafka: &settings.kafka,
        topic: &topic,
        partitions_if_created: 1,
    };
    let produced = produce::run(&ProduceArgs::default(), target, &terminal, &mut out, stop).await?;

    let cluster = Cluster::new(&settings.kafka);
    topics::ensure(&cluster, &wanted_topics(&settings)).await?;
    let from = end_of_output(&cluster, &settings).await?;

    let app = App::build(settings.clone())?;
    let board = app.board();
    let drain = CancellationToken::new();
    let done = all_done(&board, produced.sent);
    let running = app.run(drain.clone(), true);
    tokio::pin!(running, done);
    let (end, summary) = tokio::select! {
        ended = &mut running => ended,
        waited = timeout(PATIENCE, &mut done) => {
            if waited.is_err() {
                writeln!(out, "Not everything was answered within {PATIENCE:?}; stopping.")?;
            }
            drain.cancel();
            running.await
        }
        () = stop.cancelled() => {
            drain.cancel();
            running.await
        }
    };
    if let RunEnd::Failed(error) = end {
        return Err(error.into());
    }
    let shown = ResultsArgs {
        from,
        count: Some(summary.totals.processed),
        ..ResultsArgs::default()
    };
    let topics = ResultTopics {
        output: &settings.output.topic,
        dead_letters: &settings.dead_letters.topic,
    };
    results::run(&shown, &settings.kafka, topics, &terminal, &mut out, stop).await?;
    writeln!(out, "\n{summary}")?;
    sandbox.end().await;
    Ok(if summary.totals.processed >= produced.sent {
        0
    } else {
        super::EXIT_FAILURE
    })
}

/// The servers that were not named by the user.
struct Sandbox {
    broker: Option<Broker>,
    vllm: Option<Vllm>,
}

impl Sandbox {
    async fn start(settings: &mut Settings, given: Given) -> io::Result<Self> {
        let mut sandbox = Self {
            broker: None,
            vllm: None,
        };
        if given.brokers {
            if !given.topic {
                settings.input.topics = vec![InputTopic::named(format!("{NAME}-documents"))];
                settings.output.topic = format!("{NAME}-results");
                settings.dead_letters.topic = format!("{NAME}-dead-letters");
            }
            if !given.group {
                NAME.clone_into(&mut settings.kafka.group_id);
            }
        } else {
            let broker = Broker::start(BrokerConfig::default()).await?;
            settings.kafka.brokers = broker.bootstrap();
            sandbox.broker = Some(broker);
        }
        if !given.llm {
            let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let vllm = Vllm::start(vllm_config(settings, listen)).await?;
            settings.llm.url = vllm.url();
            sandbox.vllm = Some(vllm);
        }
        Ok(sandbox)
    }

    fn tell(&self, settings: &Settings, out: &mut impl Write) -> io::Result<()> {
        let kafka = if self.broker.is_some() {
            " (in this process, in memory)"
        } else {
            ""
        };
        let vllm = if self.vllm.is_some() {
            " (SIMULATED, in this process: no model is run)"
        } else {
            ""
        };
        writeln!(out, "Kafka  {}{kafka}", settings.kafka.brokers)?;
        writeln!(out, "vLLM   {}{vllm}\n", settings.llm.url)
    }

    async fn end(self) {
        if let Some(vllm) = self.vllm {
            vllm.shutdown().await;
        }
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
    }
}

/// Where this run's results begin: our own topics have one partition. Elsewhere everything is shown.
async fn end_of_output(
    cluster: &Cluster,
    settings: &Settings,
) -> Result<From, crate::kafka::KafkaError> {
    let topic = settings.output.topic.as_str();
    let found = cluster
        .describe_topics(&[topic])
        .await?
        .remove(topic)
        .flatten();
    if found.is_none_or(|topic| topic.partitions != 1) {
        return Ok(From::Earliest);
    }
    let partition = TopicPartition::new(topic, 0);
    let end = cluster
        .list_offset(&partition, OffsetAt::Latest, Isolation::ReadUncommitted)
        .await?;
    Ok(From::Offset(end.unwrap_or(Offset::ZERO)))
}

async fn all_done(board: &StatusBoard, documents: u64) {
    let mut look = interval(LOOK);
    loop {
        look.tick().await;
        let totals = board.snapshot().totals;
        if totals.processed + totals.failed() >= documents {
            return;
        }
    }
}
