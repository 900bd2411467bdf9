//! The program as a process, and the servers that it is run against.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt as _;
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::Record;

/// The program in an empty folder, without any setting from outside.
pub fn program(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("kafka-llm-processor").unwrap();
    command
        .env_clear()
        .env("NO_COLOR", "1")
        .args(arguments)
        .stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// An address where nothing listens.
pub fn refused() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Ends the process with the test.
pub struct Processor {
    pub child: Child,
    pub log: BufReader<ChildStderr>,
}

impl Processor {
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = program(arguments);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// Reads the log up to a line that holds the text; the end of the log is a failure.
    pub fn wait_for(&mut self, what: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert!(
                self.log.read_line(&mut line).unwrap() > 0,
                "no `{what}` in:\n{seen}"
            );
            if line.contains(what) {
                return line;
            }
            seen.push_str(&line);
        }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Exit code and standard output.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut stdout = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut stdout)
            .unwrap();
        (self.child.wait().unwrap().code(), stdout)
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A simulated model on a runtime of its own, for tests that block on processes.
pub struct Model {
    pub runtime: tokio::runtime::Runtime,
    pub vllm: Vllm,
}

pub fn sandbox_model() -> Model {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let config = VllmConfig {
        latency: Latency::ZERO,
        ..VllmConfig::default()
    };
    let vllm = runtime.block_on(Vllm::start(config)).unwrap();
    Model { runtime, vllm }
}

impl Model {
    pub fn url(&self) -> String {
        self.vllm.url()
    }

    pub fn broker(&self, documents: i64) -> Broker {
        let broker = self
            .runtime
            .block_on(Broker::start(BrokerConfig::default()))
            .unwrap();
        broker.create_topic("financial-documents", 1, &[]).unwrap();
        let records = (0..documents).map(|number| Record {
            value: Some(format!("Document {number} is here.").into()),
            timestamp_ms: 1_700_000_000_000,
            ..Record::default()
        });
        broker
            .append("financial-documents", 0, records.collect())
            .unwrap();
        broker
    }

    pub fn end(self) {
        self.runtime.block_on(self.vllm.shutdown());
    }
}

pub fn processor(model: &Model, broker: &Broker, more: &[&str]) -> Processor {
    let (brokers, url) = (broker.bootstrap(), model.url());
    let arguments = [
        "--brokers",
        &brokers,
        "--llm-url",
        &url,
        "--set",
        "log.file=off",
    ];
    let listen = ["--set", "admin.listen=127.0.0.1:0"];
    let all: Vec<_> = arguments
        .iter()
        .chain(&listen)
        .chain(more)
        .copied()
        .collect();
    Processor::start(&all)
}
