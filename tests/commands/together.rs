//! What holds for all three.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_llm_processor::app::App;
use kafka_llm_processor::cli::output::Terminal;
use kafka_llm_processor::cli::produce::{ProduceArgs, ProduceTarget};
use kafka_llm_processor::cli::results::{ResultTopics, ResultsArgs};
use kafka_llm_processor::cli::{check, produce, results};
use kafka_llm_processor::config::Settings;
use kafka_llm_processor::kafka::{KafkaConfig, SaslMechanism, SecurityProtocol};
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Vllm, VllmConfig};
use kafka_llm_processor::types::Secret;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::servers::{TOLD_WITHIN, World, broker, crosses, documents, kafka, produced, shown};

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
