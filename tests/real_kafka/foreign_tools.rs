//! Kafka's own tools see what the processor did: results, commits, topic configuration, lag.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Job, Kafka, PARTITIONS, SOON};
use crate::topic_log::Results;

const DOCUMENTS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn kafkas_own_tools_read_everything() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let job = Job::new(&kafka, "foreign-tools").await;
    kafka.create_topic(&job.name, PARTITIONS).await;
    let partitions: Vec<_> = (0..PARTITIONS).collect();
    kafka
        .write_documents(&job.name, &partitions, 0, DOCUMENTS)
        .await;
    let processor = job.start();
    Results::new(&kafka, &job).wait_for(DOCUMENTS).await;
    processor.drain(SOON).await;

    tokio::join!(
        the_results_are_json_lines(&kafka, &job),
        the_commits_are_json_under_their_partitions(&kafka, &job),
        the_commit_topic_is_compacted(&kafka, &job),
        dead_letters_are_kept(&kafka, &job),
        the_group_has_no_lag(&kafka, &job),
    );
}

async fn consume(kafka: &Kafka, topic: &str, properties: &[&str]) -> Vec<String> {
    let server = kafka.address();
    #[rustfmt::skip]
    let mut arguments = vec![
        "kafka-console-consumer", "--bootstrap-server", &server, "--topic", topic, "--from-beginning",
        "--timeout-ms", "5000",
    ];
    for property in properties {
        arguments.extend(["--formatter-property", property]);
    }
    let text = kafka.tool(&arguments).await;
    text.lines().map(str::to_owned).collect()
}

async fn the_results_are_json_lines(kafka: &Kafka, job: &Job) {
    let lines = consume(kafka, &job.results(), &[]).await;
    assert_eq!(lines.len(), DOCUMENTS);
    let mut answered = BTreeSet::new();
    for line in lines {
        let result: Value = serde_json::from_str(&line).expect("a line is JSON");
        assert_eq!(
            (&result["schema"], &result["status"]),
            (&1.into(), &"ok".into())
        );
        assert_eq!(result["source"]["topic"], job.name);
        let text = result["output"]["text"].as_str().expect("an answer");
        assert!(!text.is_empty());
        answered.insert(result["document_id"].as_str().expect("a name").to_owned());
    }
    let expected = (0..DOCUMENTS).map(|number| format!("document-{number}"));
    assert_eq!(answered, expected.collect());
}

async fn the_commits_are_json_under_their_partitions(kafka: &Kafka, job: &Job) {
    let lines = consume(kafka, &job.commits(), &["print.key=true"]).await;
    let mut newest = std::collections::BTreeMap::new();
    for line in lines {
        let (key, value) = line.split_once('\t').expect("key and value");
        let commit: Value = serde_json::from_str(value).expect("a commit is JSON");
        newest.insert(
            key.to_owned(),
            commit["next_offset"].as_i64().expect("an offset"),
        );
    }
    assert_eq!(
        newest.remove("(group)/0"),
        Some(0),
        "the claim of the group stands beside them"
    );
    let expected = (0..PARTITIONS).map(|partition| (format!("{}/{partition}", job.name), 50));
    assert_eq!(newest, expected.collect());
}

async fn the_commit_topic_is_compacted(kafka: &Kafka, job: &Job) {
    let configs = [
        "cleanup.policy=compact ",
        "segment.bytes=1048576 ",
        "min.cleanable.dirty.ratio=0.1 ",
    ];
    has_configs(kafka, &job.commits(), &configs).await;
}

/// A dead letter is as old as its document, so no age is too old.
async fn dead_letters_are_kept(kafka: &Kafka, job: &Job) {
    has_configs(kafka, &job.dead_letters(), &["retention.ms=-1 "]).await;
}

async fn has_configs(kafka: &Kafka, topic: &str, configs: &[&str]) {
    let server = kafka.address();
    #[rustfmt::skip]
    let arguments = [
        "kafka-configs", "--bootstrap-server", &server, "--describe", "--entity-type", "topics", "--entity-name", topic,
    ];
    let text = kafka.tool(&arguments).await;
    for config in configs {
        assert!(text.contains(config), "{topic}: {config}: {text}");
    }
}

/// The last mirrored offsets are those of the drain.
async fn the_group_has_no_lag(kafka: &Kafka, job: &Job) {
    let server = kafka.address();
    #[rustfmt::skip]
    let arguments = ["kafka-consumer-groups", "--bootstrap-server", &server, "--describe", "--group", &job.name];
    let table = kafka.tool(&arguments).await;
    for partition in 0..PARTITIONS {
        let partition = partition.to_string();
        let expected = [&job.name, &job.name, &partition, "50", "50", "0"];
        let found = table.lines().any(|line| {
            let columns: Vec<_> = line.split_whitespace().take(expected.len()).collect();
            columns == expected
        });
        assert!(found, "{expected:?} in {table}");
    }
}
