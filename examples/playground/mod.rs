//! What the examples that look inside have in common: an in-memory Kafka and simulated vLLMs in this process, and documents in them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use kafka_llm_processor::app::{App, RunEnd};
use kafka_llm_processor::config::Settings;
use kafka_llm_processor::pipeline::InputTopic;
use kafka_llm_processor::records::result::ResultRecord;
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::telemetry::server::Listen;
use kafka_llm_processor::telemetry::status::Summary;
use kafka_llm_processor::types::{Offset, Record};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

pub(crate) const INPUT: &str = "reports";
pub(crate) const OUTPUT: &str = "answers";
/// The longest that an example waits for its documents.
const PATIENCE: Duration = Duration::from_secs(60);

/// Kafka, and one model server or more.
pub(crate) struct Playground {
    pub(crate) broker: Broker,
    pub(crate) models: Vec<Vllm>,
}

impl Playground {
    /// Starts a broker with an input topic of four partitions, and model servers whose calls take `call` each.
    pub(crate) async fn start(models: usize, call: Duration) -> anyhow::Result<Self> {
        let broker = Broker::start(BrokerConfig::default()).await?;
        broker.create_topic(INPUT, 4, &[])?;
        let mut started = Vec::new();
        for _ in 0..models {
            let config = VllmConfig {
                latency: Latency::fixed(call),
                ..VllmConfig::default()
            };
            started.push(Vllm::start(config).await?);
        }
        Ok(Self {
            broker,
            models: started,
        })
    }

    /// Puts documents into the input topic, spread over its partitions.
    pub(crate) fn send(&self, documents: impl Iterator<Item = String>) -> anyhow::Result<()> {
        for (number, content) in documents.enumerate() {
            let value = serde_json::json!({ "id": format!("report-{number}"), "content": content });
            let record = Record {
                key: Some(format!("report-{number}").into()),
                value: Some(value.to_string().into()),
                ..Record::default()
            };
            let partition = i32::try_from(number % 4)?;
            self.broker.append(INPUT, partition, vec![record])?;
        }
        Ok(())
    }

    /// Settings for these servers; everything else is at its default.
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.kafka.brokers = self.broker.bootstrap();
        settings.input.topics = vec![InputTopic::named(INPUT.to_owned())];
        OUTPUT.clone_into(&mut settings.output.topic);
        let urls: Vec<_> = self.models.iter().map(Vllm::url).collect();
        settings.llm.url = urls.join(",");
        settings.admin.listen = Listen::Off;
        settings
    }

    /// Every result that a reader of what is committed sees in the output topic, with how often, by the place of its document.
    pub(crate) fn results(&self) -> anyhow::Result<BTreeMap<(i32, Offset), (ResultRecord, usize)>> {
        let mut results = BTreeMap::new();
        if !self.broker.topics().iter().any(|topic| topic == OUTPUT) {
            return Ok(results);
        }
        for (_, _, record) in self.broker.records_committed(OUTPUT) {
            let value = record.value.context("a result has a value")?;
            let result = ResultRecord::parse(&value)?;
            let place = (result.source.partition, result.source.offset);
            results.entry(place).or_insert((result, 0)).1 += 1;
        }
        Ok(results)
    }

    pub(crate) async fn stop(self) {
        for model in self.models {
            model.shutdown().await;
        }
        self.broker.shutdown().await;
    }
}

/// Runs the service in this process until so many documents have ended.
pub(crate) async fn run_until(app: App, documents: u64) -> anyhow::Result<Summary> {
    let board = app.board();
    let drain = CancellationToken::new();
    let running = app.run(drain.clone(), true);
    tokio::pin!(running);
    let ended = async {
        let mut look = interval(Duration::from_millis(20));
        loop {
            look.tick().await;
            let totals = board.snapshot().totals;
            if totals.processed + totals.failed() >= documents {
                return;
            }
        }
    };
    let (end, summary) = tokio::select! {
        ended = &mut running => ended,
        waited = timeout(PATIENCE, ended) => {
            drain.cancel();
            let ended = running.await;
            waited.context("the documents took too long")?;
            ended
        }
    };
    match end {
        RunEnd::Drained => Ok(summary),
        RunEnd::Failed(error) => Err(error),
        other => anyhow::bail!("the service ended with {other:?}"),
    }
}
