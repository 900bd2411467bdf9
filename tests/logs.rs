//! What the log of a running processor says of documents, what it never says, and that no log can stop the work.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use assert_cmd::cargo::CommandCargoExt as _;
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::Record;
use serde_json::Value;
use tokio::time::{Instant, sleep};

const INPUT: &str = "financial-documents";
const WITHIN: Duration = Duration::from_secs(60);

struct World {
    broker: Broker,
    vllm: Vllm,
    folder: tempfile::TempDir,
}

impl World {
    async fn new(api_key: Option<&str>) -> Self {
        let broker = Broker::start(BrokerConfig::default()).await.unwrap();
        broker.create_topic(INPUT, 1, &[]).unwrap();
        let vllm = Vllm::start(VllmConfig {
            latency: Latency::ZERO,
            api_key: api_key.map(str::to_owned),
            ..VllmConfig::default()
        });
        Self {
            broker,
            vllm: vllm.await.unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn put(&self, value: &str) {
        let record = Record {
            value: Some(value.to_owned().into()),
            timestamp_ms: 1_700_000_000_000,
            ..Record::default()
        };
        self.broker.append(INPUT, 0, vec![record]).unwrap();
    }

    fn file(&self) -> String {
        self.folder.path().join("klp.log").display().to_string()
    }

    /// Runs until all that was put is committed in Kafka and drains; answers with what stood on standard error.
    async fn run(&self, set: &[(&str, &str)]) -> String {
        let mut command = Command::cargo_bin("kafka-llm-processor").unwrap();
        command
            .env_clear()
            .env("NO_COLOR", "1")
            .env("KAFKA_BROKERS", self.broker.bootstrap())
            .env("LLM_URL", self.vllm.url())
            .env("KLP_ADMIN__LISTEN", "off")
            .envs(set.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Read beside it, or a full pipe would hold the log back.
        let mut stderr = child.stderr.take().unwrap();
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
            text
        });
        let end = self.broker.high_watermark(INPUT, 0).unwrap().value();
        let committed = || {
            self.broker
                .committed_offset("kafka-llm-processor", INPUT, 0)
        };
        let deadline = Instant::now() + WITHIN;
        while committed() != Some(end) && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        let all_done = committed() == Some(end);
        let pid = child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
        let status = status.await.unwrap();
        let said = reading.join().unwrap();
        assert!(all_done, "not everything is committed:\n{said}");
        assert_eq!(status.code(), Some(0), "{said}");
        said
    }
}

fn read(file: impl AsRef<Path>) -> String {
    fs::read_to_string(file).unwrap()
}

/// A good document, one that is tried twice, one that is refused with an echo of its text in quotes, as vLLM has them, and one that is none.
fn put_documents(world: &World) {
    world.put(r#"{"id":"good","content":"hush-prompt one of revenue"}"#);
    world.put(r#"{"id":"retried","content":"hush-prompt two, marked-retried"}"#);
    world.put(r#"{"id":"refused","content":"hush-prompt three, marked-refused"}"#);
    world.put(r#"{"id":"broken","content":"hush-prompt four"#);
    let faults = world.vllm.faults();
    faults.push(
        Fault::new(Action::answer(503, "hush-answer is not here")).on_prompt("marked-retried"),
    );
    faults.push(
        Fault::new(Action::answer(
            200,
            r#"{"model":"m","choices":[{"message":{"content":"hush-answer of revenue"},"finish_reason":"stop"}]}"#,
        ))
        .on_prompt("hush-prompt one"),
    );
    let echo = r#"{"error":{"message":"cannot take 'hush-prompt three'","type":"BadRequestError","param":null,"code":400}}"#;
    faults.push(
        Fault::new(Action::answer(400, echo))
            .on_prompt("marked-refused")
            .kept(),
    );
}

/// At the most talkative level of everything that logs.
#[tokio::test(flavor = "multi_thread")]
async fn no_line_has_a_prompt_an_answer_or_a_secret() {
    let world = World::new(Some("hush-key")).await;
    put_documents(&world);
    let said = world
        .run(&[
            (
                "KLP_LOG__LEVEL",
                "trace,hyper=trace,hyper_util=trace,reqwest=trace",
            ),
            ("KLP_LOG__FILE", &world.file()),
            ("KLP_LLM__API_KEY", "hush-key"),
            ("KLP_TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:1"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hush-token"),
        ])
        .await;
    assert!(said.contains("the model answered"), "{said}");
    for text in [&said, &read(world.file())] {
        assert!(text.contains("document goes to the dead letters"), "{text}");
        let found = text.lines().find(|line| line.contains("hush"));
        assert_eq!(found, None);
    }
}

/// Also where the level leaves nothing but warnings.
#[tokio::test(flavor = "multi_thread")]
async fn every_line_about_a_document_says_which() {
    for level in ["debug", "warn"] {
        let world = World::new(None).await;
        put_documents(&world);
        let file = world.file();
        world
            .run(&[
                ("KLP_LOG__LEVEL", level),
                ("KLP_LOG__FORMAT", "json"),
                ("KLP_LOG__FILE", &file),
                ("KLP_TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:1"),
            ])
            .await;
        let text = read(&file);
        let lines = text.lines();
        let lines: Vec<Value> = lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let about = |message: &str| -> Vec<&Value> {
            let about = lines.iter().filter(|line| line["message"] == message);
            about.collect()
        };
        let dead = about("document goes to the dead letters");
        let ids: Vec<_> = dead.iter().map(|line| &line["document_id"]).collect();
        assert_eq!(ids.len(), 2, "{text}");
        assert!(ids.contains(&&Value::from("refused")), "{text}");
        let failed = about("the attempt failed");
        let answered = about("the model answered");
        if level == "debug" {
            assert!(!failed.is_empty() && answered.len() == 2, "{text}");
        }
        for line in dead.iter().chain(&failed).chain(&answered) {
            assert_eq!(line["topic"], INPUT, "{line}");
            assert_eq!(line["partition"], 0, "{line}");
            assert!(line["offset"].is_i64(), "{line}");
            assert!(line["document_id"].is_string(), "{line}");
            let trace_id = line["trace_id"].as_str().unwrap();
            assert_eq!(trace_id.len(), 32, "{line}");
        }
        for line in failed.iter().chain(&answered) {
            assert!(line["attempt"].is_u64() && line["request_id"].is_string());
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_lines_and_no_document() {
    let world = World::new(None).await;
    put_documents(&world);
    let day = kafka_llm_processor::clock::now().to_string();
    let day = day.split('T').next().unwrap();
    let today = world.folder.path().join(format!("klp.{day}.log"));
    std::os::unix::fs::symlink("/dev/full", today).unwrap();
    let said = world.run(&[("KLP_LOG__FILE", &world.file())]).await;
    assert!(said.contains("drained"), "the console has them: {said}");
    let last = said.lines().last().unwrap();
    let (_, counted) = last
        .split_once("log: 0 lines were dropped because a queue was full, ")
        .unwrap_or_else(|| panic!("{said}"));
    let lines = said.lines().count() - 1;
    assert_eq!(counted, format!("{lines} could not be written"));
}

#[test]
fn a_file_that_cannot_be_written_ends_with_64_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let below = file.join("klp.log").display().to_string();
    let output = Command::cargo_bin("kafka-llm-processor")
        .unwrap()
        .env_clear()
        .env("KLP_LOG__FILE", &below)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("log.file") && said.contains(&below), "{said}");
}
