//! What `results` shows.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use kafka_llm_processor::cli::results::ResultsArgs;
use kafka_llm_processor::clock;
use kafka_llm_processor::records::result::{
    ResultOutput, ResultRecord, ResultSource, ResultStatus, ResultTiming, ResultUsage,
    SCHEMA_VERSION,
};
use kafka_llm_processor::sandbox::broker::ApiKey;
use kafka_llm_processor::types::{Offset, Record, SourcePosition, TopicPartition};

use crate::servers::{broker, kafka, shown};

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
