//! What `produce` sends, and what it says where it cannot.

use std::collections::BTreeSet;

use kafka_llm_processor::cli::output::Terminal;
use kafka_llm_processor::cli::produce;
use kafka_llm_processor::cli::produce::{InputDocument, ProduceArgs, ProduceTarget};
use kafka_llm_processor::kafka::KafkaConfig;
use kafka_llm_processor::records::partitioner::partition_for_key;
use kafka_llm_processor::sandbox::broker::ApiKey;
use tokio_util::sync::CancellationToken;

use crate::servers::{broker, documents, kafka, produced};

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
