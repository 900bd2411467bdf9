//! The servers, and the commands against them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use kafka_llm_processor::cli::check::{CheckItem, CheckReport};
use kafka_llm_processor::cli::output::Terminal;
use kafka_llm_processor::cli::produce::{
    InputDocument, ProduceArgs, ProduceError, ProduceReport, ProduceTarget,
};
use kafka_llm_processor::cli::results::{ResultTopics, ResultsArgs, ResultsError};
use kafka_llm_processor::cli::{check, produce, results};
use kafka_llm_processor::config::Settings;
use kafka_llm_processor::kafka::KafkaConfig;
use kafka_llm_processor::llm::LlmConfig;
use kafka_llm_processor::offsets::{CommitRecord, Guarantee};
use kafka_llm_processor::pipeline::InputTopic;
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Vllm, VllmConfig};
use kafka_llm_processor::types::{Offset, Secret, TopicPartition};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What the design allows for telling that a setting is wrong.
pub const TOLD_WITHIN: Duration = Duration::from_secs(5);

pub const TOPICS: ResultTopics<'_> = ResultTopics {
    output: "results",
    dead_letters: "dead",
};

pub async fn broker() -> Broker {
    Broker::start(BrokerConfig::default()).await.unwrap()
}

pub fn kafka(broker: &Broker) -> KafkaConfig {
    KafkaConfig {
        brokers: broker.bootstrap(),
        ..KafkaConfig::default()
    }
}

pub fn documents(count: usize) -> Vec<InputDocument> {
    let document = |index| InputDocument {
        id: format!("report-{index}"),
        value: format!(r#"{{"id":"report-{index}","content":"Revenue rose."}}"#).into(),
    };
    (0..count).map(document).collect()
}

pub async fn produced(
    kafka: &KafkaConfig,
    args: &ProduceArgs,
    documents: &[InputDocument],
) -> (Result<ProduceReport, ProduceError>, String) {
    let mut out = Vec::new();
    let target = ProduceTarget {
        kafka,
        topic: "docs",
        partitions_if_created: 3,
    };
    let (terminal, shutdown) = (Terminal::plain(), CancellationToken::new());
    let report =
        produce::send_documents(args, documents, target, &terminal, &mut out, &shutdown).await;
    (report, String::from_utf8(out).unwrap())
}

pub async fn shown(kafka: &KafkaConfig, args: &ResultsArgs) -> (Result<u64, ResultsError>, String) {
    let mut out = Vec::new();
    let (terminal, shutdown) = (Terminal::plain(), CancellationToken::new());
    let count = results::run(args, kafka, TOPICS, &terminal, &mut out, &shutdown).await;
    (count, String::from_utf8(out).unwrap())
}

pub struct World {
    pub broker: Broker,
    pub vllm: Vllm,
    pub kafka: KafkaConfig,
    pub llm: LlmConfig,
}

impl World {
    pub async fn new() -> Self {
        Self::with(BrokerConfig::default()).await
    }

    pub async fn with(config: BrokerConfig) -> Self {
        let vllm = Vllm::start(VllmConfig {
            api_key: Some("right".to_owned()),
            ..VllmConfig::default()
        })
        .await
        .unwrap();
        let broker = Broker::start(config).await.unwrap();
        for topic in ["docs", "results", "dead"] {
            broker.create_topic(topic, 2, &[]).unwrap();
        }
        let kafka = kafka(&broker);
        let policy = [("cleanup.policy", "compact")];
        broker
            .create_topic(&kafka.commit_topic(), 2, &policy)
            .unwrap();
        let llm = LlmConfig {
            url: vllm.url(),
            api_key: Some(Secret::new("right")),
            ..LlmConfig::default()
        };
        Self {
            broker,
            vllm,
            kafka,
            llm,
        }
    }

    pub fn commit(&self, at: Timestamp) {
        let input = TopicPartition::new("docs", 1);
        let commit = CommitRecord {
            v: 1,
            topic_id: Uuid::nil(),
            owner: "host-1".to_owned(),
            owner_epoch: 1,
            guarantee: Guarantee::AtLeastOnce,
            next_offset: Offset::ZERO,
            done: Vec::new(),
            audit: None,
            at,
            released: false,
        };
        let record = commit.into_record(&input).unwrap();
        let topic = self.kafka.commit_topic();
        self.broker.append(&topic, 1, vec![record]).unwrap();
    }

    pub fn settings(&self) -> Settings {
        let mut settings = Settings {
            kafka: self.kafka.clone(),
            llm: self.llm.clone(),
            ..Settings::default()
        };
        settings.input.topics = vec![InputTopic::named("docs")];
        settings.output.topic = "results".to_owned();
        settings.dead_letters.topic = "dead".to_owned();
        settings
    }

    pub async fn check(&self) -> CheckReport {
        let started = Instant::now();
        let report = check::report(&self.settings()).await;
        assert!(started.elapsed() < TOLD_WITHIN);
        assert_eq!(report.passed, crosses(&report).is_empty());
        report
    }
}

pub fn crosses(report: &CheckReport) -> BTreeMap<&str, &CheckItem> {
    let crosses = report.items.iter().filter(|item| !item.passed);
    crosses.map(|item| (item.name.as_str(), item)).collect()
}
