//! `produce`, `results` and `check` against the sandbox's servers, as a person at a terminal meets them.
#![cfg(feature = "sandbox")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use kafka_llm_processor::app::App;
use kafka_llm_processor::cli::check::{self, CheckItem, CheckReport};
use kafka_llm_processor::cli::output::Terminal;
use kafka_llm_processor::cli::produce::{
    self, InputDocument, ProduceArgs, ProduceError, ProduceReport, ProduceTarget,
};
use kafka_llm_processor::cli::results::{self, ResultTopics, ResultsArgs, ResultsError};
use kafka_llm_processor::clock;
use kafka_llm_processor::config::Settings;
use kafka_llm_processor::kafka::{KafkaConfig, SaslMechanism, SecurityProtocol};
use kafka_llm_processor::llm::LlmConfig;
use kafka_llm_processor::offsets::{CommitRecord, Guarantee};
use kafka_llm_processor::pipeline::InputTopic;
use kafka_llm_processor::records::partitioner::partition_for_key;
use kafka_llm_processor::records::result::{
    ResultOutput, ResultRecord, ResultSource, ResultStatus, ResultTiming, ResultUsage,
    SCHEMA_VERSION,
};
use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, BrokerConfig, ErrorCode, ToldRights};
use kafka_llm_processor::sandbox::vllm::{Vllm, VllmConfig};
use kafka_llm_processor::types::{Offset, Record, Secret, SourcePosition, TopicPartition};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What the design allows for telling that a setting is wrong.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

const TOPICS: ResultTopics<'_> = ResultTopics {
    output: "results",
    dead_letters: "dead",
};

async fn broker() -> Broker {
    Broker::start(BrokerConfig::default()).await.unwrap()
}

fn kafka(broker: &Broker) -> KafkaConfig {
    KafkaConfig {
        brokers: broker.bootstrap(),
        ..KafkaConfig::default()
    }
}

fn documents(count: usize) -> Vec<InputDocument> {
    let document = |index| InputDocument {
        id: format!("report-{index}"),
        value: format!(r#"{{"id":"report-{index}","content":"Revenue rose."}}"#).into(),
    };
    (0..count).map(document).collect()
}

async fn produced(
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

async fn shown(kafka: &KafkaConfig, args: &ResultsArgs) -> (Result<u64, ResultsError>, String) {
    let mut out = Vec::new();
    let (terminal, shutdown) = (Terminal::plain(), CancellationToken::new());
    let count = results::run(args, kafka, TOPICS, &terminal, &mut out, &shutdown).await;
    (count, String::from_utf8(out).unwrap())
}

fn result(id: &str) -> Record {
    let position = SourcePosition {
        topic_partition: TopicPartition::new("docs", 0),
        offset: Offset::new(5),
    };
    ResultRecord {
        schema: SCHEMA_VERSION,
        document_id: id.to_owned(),
        status: ResultStatus::Ok,
        output: ResultOutput::Text("Revenue rose.".to_owned()),
        finish_reason: "stop".to_owned(),
        model: "stub".to_owned(),
        system_fingerprint: None,
        generation: String::new(),
        prompt_hash: String::new(),
        schema_hash: None,
        long_document: None,
        cached: false,
        usage: ResultUsage::default(),
        timing: ResultTiming::default(),
        attempts: 1,
        truncated: None,
        source: ResultSource::new(&position, -1),
        request_id: String::new(),
        completed_at: clock::now(),
    }
    .into_record(Some(Bytes::from(id.to_owned())), None)
}

#[tokio::test]
async fn produce_creates_the_topic_and_follows_the_java_partitioner() {
    let broker = broker().await;
    let args = ProduceArgs {
        count: Some(250),
        ..ProduceArgs::default()
    };
    let (report, out) = produced(&kafka(&broker), &args, &documents(6)).await;
    let report = report.unwrap();
    assert_eq!((report.sent, report.created_topic), (250, true));
    assert!(
        out.ends_with("sent 250 of 250 documents to docs\n"),
        "{out}"
    );
    let records = broker.records("docs");
    assert_eq!(records.len(), 250);
    let mut ids = BTreeSet::new();
    for (place, _, record) in records {
        let key = record.key.unwrap();
        assert_eq!(place.partition, partition_for_key(&key, 3));
        let value: serde_json::Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
        assert_eq!(value["id"].as_str().unwrap().as_bytes(), key);
        ids.insert(key);
    }
    assert_eq!(ids.len(), 250, "each has a name of its own");
}

#[tokio::test]
async fn produce_sends_a_file_or_the_samples_to_a_topic_that_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("reports.jsonl");
    std::fs::write(&file, "{\"id\":\"a\",\"content\":\"x\"}\n{\"id\":\"b\"}\n").unwrap();
    for (file, count) in [(Some(file), 2), (None, 6)] {
        let broker = broker().await;
        broker.create_topic("docs", 1, &[]).unwrap();
        let args = ProduceArgs {
            file,
            ..ProduceArgs::default()
        };
        let kafka = kafka(&broker);
        let target = ProduceTarget {
            kafka: &kafka,
            topic: "docs",
            partitions_if_created: 3,
        };
        let (terminal, shutdown) = (Terminal::plain(), CancellationToken::new());
        let report = produce::run(&args, target, &terminal, &mut Vec::new(), &shutdown)
            .await
            .unwrap();
        assert_eq!((report.sent, report.created_topic), (count, false));
        let mut keys: Vec<_> = broker
            .records("docs")
            .into_iter()
            .map(|(_, _, record)| record.key.unwrap())
            .collect();
        keys.dedup();
        assert_eq!(u64::try_from(keys.len()).unwrap(), count);
    }
}

#[tokio::test]
async fn produce_names_the_topic_that_it_must_not_create() {
    let broker = broker().await;
    let kafka = KafkaConfig {
        create_topics: false,
        ..kafka(&broker)
    };
    let (report, _) = produced(&kafka, &ProduceArgs::default(), &documents(1)).await;
    let message = report.unwrap_err().to_string();
    assert!(
        message.contains("`docs`") && message.contains("kafka.create_topics"),
        "{message}"
    );
    assert!(broker.topics().is_empty(), "nothing was written");
}

#[tokio::test]
async fn produce_survives_a_broker_that_hangs_up() {
    let broker = broker().await;
    let fault = broker
        .faults()
        .on(ApiKey::Produce)
        .times(2)
        .hang_up_before();
    let (report, _) = produced(&kafka(&broker), &ProduceArgs::default(), &documents(6)).await;
    assert_eq!(report.unwrap().sent, 6);
    assert_eq!(fault.hits(), 2);
    assert_eq!(broker.records("docs").len(), 6);
}

#[tokio::test]
async fn produce_refuses_a_document_larger_than_the_topic_takes() {
    let broker = broker().await;
    broker
        .create_topic("docs", 1, &[("max.message.bytes", "200")])
        .unwrap();
    // Without repetition, so that gzip cannot make it small.
    let text: String = (0..2000_u32)
        .map(|index| char::from(b'a' + (index.wrapping_mul(2_654_435_761) >> 27) as u8))
        .collect();
    let large = InputDocument {
        id: "large".to_owned(),
        value: text.into(),
    };
    let (report, _) = produced(&kafka(&broker), &ProduceArgs::default(), &[large]).await;
    let error = report.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap();
    let chain = format!("{error}: {cause}: {}", cause.source().unwrap());
    assert!(chain.contains("max.message.bytes"), "{chain}");
}

#[tokio::test]
async fn results_are_read_over_transaction_markers() {
    let broker = broker().await;
    broker.create_topic("results", 2, &[]).unwrap();
    broker.append("results", 0, vec![result("a")]).unwrap();
    broker.append_marker("results", 0, true).unwrap();
    broker
        .append("results", 0, vec![result("b"), result("c")])
        .unwrap();
    broker.append_marker("results", 0, true).unwrap();
    broker.append("results", 1, vec![result("d")]).unwrap();
    let args = ResultsArgs {
        json: true,
        ..ResultsArgs::default()
    };
    let (count, out) = shown(&kafka(&broker), &args).await;
    assert_eq!(count.unwrap(), 4);
    let ids: BTreeSet<String> = out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|value| value["document_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, BTreeSet::from(["a", "b", "c", "d"].map(str::to_owned)));
}

#[tokio::test]
async fn results_follow_over_an_outage() {
    let broker = broker().await;
    broker.create_topic("results", 1, &[]).unwrap();
    broker.append("results", 0, vec![result("first")]).unwrap();
    let kafka = kafka(&broker);
    let args = ResultsArgs {
        follow: true,
        count: Some(2),
        ..ResultsArgs::default()
    };
    let fetches = broker.faults().on(ApiKey::Fetch).watch();
    let reading = shown(&kafka, &args);
    let outage = async {
        fetches.wait_for_hits(2).await;
        broker.stop_listener().await;
        broker.start_listener().await.unwrap();
        broker.append("results", 0, vec![result("second")]).unwrap();
    };
    let both = async { tokio::join!(reading, outage) };
    let ((count, out), ()) = tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .unwrap();
    assert_eq!(count.unwrap(), 2);
    assert!(out.contains("first") && out.contains("second"), "{out}");
}

#[tokio::test]
async fn results_name_the_setting_of_a_missing_topic() {
    let broker = broker().await;
    for (dead_letters, setting) in [(false, "OUTPUT_TOPIC"), (true, "dead_letters.topic")] {
        let args = ResultsArgs {
            dead_letters,
            ..ResultsArgs::default()
        };
        let message = shown(&kafka(&broker), &args)
            .await
            .0
            .unwrap_err()
            .to_string();
        assert!(message.contains(setting), "{message}");
    }
}

#[tokio::test]
async fn an_absent_broker_is_told_in_time() {
    let kafka = KafkaConfig {
        brokers: "127.0.0.1:1".to_owned(),
        ..KafkaConfig::default()
    };
    let started = Instant::now();
    let (report, _) = produced(&kafka, &ProduceArgs::default(), &documents(1)).await;
    let (count, _) = shown(&kafka, &ResultsArgs::default()).await;
    assert!(started.elapsed() < TOLD_WITHIN);
    for message in [
        report.unwrap_err().to_string(),
        count.unwrap_err().to_string(),
    ] {
        assert!(
            message.contains("kafka.brokers") && message.contains("127.0.0.1:1"),
            "{message}"
        );
    }
}

struct World {
    broker: Broker,
    vllm: Vllm,
    kafka: KafkaConfig,
    llm: LlmConfig,
}

impl World {
    async fn new() -> Self {
        Self::with(BrokerConfig::default()).await
    }

    async fn with(config: BrokerConfig) -> Self {
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

    fn commit(&self, at: Timestamp) {
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

    fn settings(&self) -> Settings {
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

    async fn check(&self) -> CheckReport {
        let started = Instant::now();
        let report = check::report(&self.settings()).await;
        assert!(started.elapsed() < TOLD_WITHIN);
        assert_eq!(report.passed, crosses(&report).is_empty());
        report
    }
}

fn crosses(report: &CheckReport) -> BTreeMap<&str, &CheckItem> {
    let crosses = report.items.iter().filter(|item| !item.passed);
    crosses.map(|item| (item.name.as_str(), item)).collect()
}

#[tokio::test]
async fn check_passes_when_all_is_there_and_a_processor_runs() {
    let world = World::new().await;
    world.commit(clock::now());
    // Markers of transactions may follow the newest commit.
    for _ in 0..3 {
        let topic = world.kafka.commit_topic();
        world.broker.append_marker(&topic, 1, true).unwrap();
    }
    let report = world.check().await;
    assert!(report.passed, "{report:#?}");
}

#[tokio::test]
async fn check_tells_a_processor_that_is_gone() {
    let world = World::new().await;
    let report = world.check().await;
    assert_eq!(
        crosses(&report).into_keys().collect::<Vec<_>>(),
        ["processor"]
    );
    world.commit(clock::now() - SignedDuration::from_mins(5));
    let report = world.check().await;
    assert!(crosses(&report)["processor"].detail.contains("5m"));
}

#[tokio::test]
async fn check_tells_a_wrong_key_and_an_unknown_model() {
    let mut world = World::new().await;
    world.commit(clock::now());
    world.llm.api_key = Some(Secret::new("wrong"));
    let report = world.check().await;
    let found = crosses(&report);
    assert_eq!(found.len(), 1, "{found:#?}");
    let item = found["model and key"];
    assert!(item.detail.contains("llm.api_key"), "{item:?}");
    assert!(!format!("{report:?}").contains("wrong"), "no key is shown");

    world.llm.api_key = Some(Secret::new("right"));
    world.llm.model = "another/model".to_owned();
    let report = world.check().await;
    let item = crosses(&report)["model and key"];
    assert!(
        item.detail.contains("another/model") && item.detail.contains("mistralai"),
        "{item:?}"
    );
}

#[tokio::test]
async fn check_tells_missing_topics_and_a_commit_topic_that_deletes() {
    let world = World::new().await;
    world.commit(clock::now());
    world.broker.delete_topic("docs").unwrap();
    let topic = world.kafka.commit_topic();
    world
        .broker
        .set_topic_config(&topic, "cleanup.policy", "delete")
        .unwrap();
    let report = world.check().await;
    let found = crosses(&report);
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        ["commit topic", "input topic"]
    );
    assert!(found["commit topic"].detail.contains("cleanup.policy"));
}

/// Read is bit 3, Write 4, Describe 8.
#[tokio::test]
async fn check_tells_what_the_broker_does_not_allow() {
    let world = World::with(BrokerConfig {
        rights: ToldRights {
            topics: BTreeMap::from([
                ("docs".to_owned(), 1 << 8),
                ("dead".to_owned(), i32::MIN),
                (
                    "kafka-llm-processor-commits".to_owned(),
                    (1 << 3) | (1 << 8),
                ),
            ]),
            groups: Some(1 << 8),
        },
        ..BrokerConfig::default()
    })
    .await;
    world.commit(clock::now());
    let faults = world.broker.faults();
    let refusal = ErrorCode::TransactionalIdAuthorizationFailed;
    let _refused = faults.on(ApiKey::InitProducerId).keep().answer(refusal);
    let mut settings = world.settings();
    settings.processing.guarantee = Guarantee::ExactlyOnce;
    let report = check::report(&settings).await;
    let crosses = report.items.iter().filter(|item| !item.passed);
    let details: Vec<_> = crosses.map(|item| item.detail.as_str()).collect();
    assert_eq!(
        details,
        [
            "Read is not allowed on topic `docs`",
            "Write, DescribeConfigs is not allowed on topic `kafka-llm-processor-commits`",
            "Read is not allowed on group `kafka-llm-processor`",
            "Write is not allowed on transactional ids `kafka-llm-processor/…`",
        ]
    );
    let told = report.items.iter().map(|item| item.detail.as_str());
    let told: Vec<_> = told.collect();
    assert!(
        told.contains(&"not told: Write on topic `dead`"),
        "{told:?}"
    );
}

/// Asking whether a transactional id may be used, or a topic be created, leaves nothing behind.
#[tokio::test]
async fn check_changes_nothing() {
    let world = World::new().await;
    world.commit(clock::now());
    world.broker.delete_topic("results").unwrap();
    let mut settings = world.settings();
    settings.processing.guarantee = Guarantee::ExactlyOnce;
    let report = check::report(&settings).await;
    let allowed = report.items.iter().find(|item| item.name == "rights");
    let allowed = &allowed.unwrap().detail;
    assert!(allowed.contains("Create on topic `results`"), "{allowed}");
    assert!(allowed.contains("Write on transactional ids"), "{allowed}");
    assert_eq!(
        crosses(&report).into_keys().collect::<Vec<_>>(),
        ["output topic"]
    );
    assert!(world.broker.log_bytes("results").is_none());
    let id = "kafka-llm-processor/(check)/0";
    assert!(
        !world.broker.expire_transactional_id(id),
        "nobody was given it"
    );
}

/// Of the brokers' answers one stays out: what the others say is told all the same.
#[tokio::test]
async fn a_check_without_an_answer_hides_no_other() {
    let world = World::new().await;
    world.commit(clock::now());
    let faults = world.broker.faults();
    let _configs = faults.on(ApiKey::DescribeConfigs).keep().silent();
    let _groups = faults.on(ApiKey::DescribeGroups).keep().silent();
    let report = check::report(&world.settings()).await;
    assert!(report.passed, "{report:#?}");
    let told: String = report
        .items
        .iter()
        .map(|item| item.detail.clone())
        .collect();
    assert!(told.contains("not told: Read on group"), "{told}");
    assert!(told.contains("its configuration is not told"), "{told}");
    assert!(told.contains("allowed: Read on topic `docs`"), "{told}");
}

#[tokio::test]
async fn check_tells_both_outages_at_once() {
    let world = World::new().await;
    world.vllm.stop_listener().await;
    world.broker.stop_listener().await;
    let report = world.check().await;
    let found = crosses(&report);
    for name in ["model server", "model and key", "kafka"] {
        assert!(found.contains_key(name), "{found:#?}");
    }
}

#[tokio::test]
async fn servers_that_never_answer_are_told_in_time() {
    let mut world = World::new().await;
    // It takes connections, and says nothing on them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    world.kafka.brokers = address.to_string();
    world.llm.url = format!("http://{address}");
    let report = world.check().await;
    let found = crosses(&report);
    for name in ["model server", "model and key", "kafka"] {
        assert!(found.contains_key(name), "{found:#?}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_in_time() {
    let users = BTreeMap::from([("user".to_owned(), Secret::new("right"))]);
    let broker = Broker::start(BrokerConfig {
        sasl: Some(users),
        ..BrokerConfig::default()
    })
    .await
    .unwrap();
    for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha512] {
        let kafka = KafkaConfig {
            security_protocol: SecurityProtocol::SaslPlaintext,
            sasl_mechanism: mechanism,
            sasl_username: "user".to_owned(),
            sasl_password: Some(Secret::new("wrong")),
            ..kafka(&broker)
        };
        let started = Instant::now();
        let (report, _) = produced(&kafka, &ProduceArgs::default(), &documents(1)).await;
        let message = report.unwrap_err().to_string();
        assert!(started.elapsed() < TOLD_WITHIN);
        assert!(message.contains("kafka.sasl_password"), "{message}");
        assert!(!message.contains("wrong"), "{message}");

        let kafka = KafkaConfig {
            sasl_password: Some(Secret::new("right")),
            ..kafka
        };
        let (report, _) = produced(&kafka, &ProduceArgs::default(), &documents(2)).await;
        assert_eq!(report.unwrap().sent, 2);
    }
}

/// The whole way: what `produce` sends, the processor answers, `results` shows, and `check` sees it run.
#[tokio::test]
async fn the_commands_agree_about_a_running_processor() {
    let (broker, vllm) = (
        broker().await,
        Vllm::start(VllmConfig::default()).await.unwrap(),
    );
    let mut settings = Settings {
        kafka: kafka(&broker),
        ..Settings::default()
    };
    settings.llm.url = vllm.url();
    settings.admin.listen = "127.0.0.1:0".parse().unwrap();
    let inputs: Vec<String> = settings
        .input
        .topics
        .iter()
        .map(|topic| topic.name.clone())
        .collect();
    let target = ProduceTarget {
        kafka: &settings.kafka,
        topic: &inputs[0],
        partitions_if_created: 3,
    };
    let (terminal, shutdown) = (Terminal::plain(), CancellationToken::new());
    produce::run(
        &ProduceArgs::default(),
        target,
        &terminal,
        &mut Vec::new(),
        &shutdown,
    )
    .await
    .unwrap();

    let app = App::build(settings.clone()).unwrap();
    let drain = CancellationToken::new();
    let running = tokio::spawn(app.run(drain.clone(), true));
    assert!(
        vllm.wait_until(Duration::from_secs(20), |vllm| vllm.calls() >= 6)
            .await
    );
    let args = ResultsArgs {
        follow: true,
        count: Some(6),
        ..ResultsArgs::default()
    };
    let topics = ResultTopics {
        output: &settings.output.topic,
        dead_letters: &settings.dead_letters.topic,
    };
    let mut out = Vec::new();
    let shown = results::run(
        &args,
        &settings.kafka,
        topics,
        &terminal,
        &mut out,
        &shutdown,
    );
    let shown = tokio::time::timeout(Duration::from_secs(20), shown).await;
    assert_eq!(shown.unwrap().unwrap(), 6);
    let text = String::from_utf8(out).unwrap();
    for document in produce::sample_documents().unwrap() {
        assert!(text.contains(&document.id), "{}\n{text}", document.id);
    }

    let report = check::report(&settings).await;
    assert!(report.passed, "{report:#?}");

    drain.cancel();
    let (end, summary) = running.await.unwrap();
    assert_eq!(end.exit_code(), 0, "{end:?}");
    assert_eq!((summary.totals.processed, summary.totals.failed()), (6, 0));
}
