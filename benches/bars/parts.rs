//! The parts of a document's way, each alone in this process: what the whole is held to.

use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kafka_llm_processor::kafka::rskafka::RskafkaSource;
use kafka_llm_processor::kafka::wire::{Isolation, WireSink, WireSource};
use kafka_llm_processor::kafka::{Batch, Sink, Source};
use kafka_llm_processor::types::{Offset, TopicPartition};
use serde_json::json;

use super::measure::Measure;
use super::plain_client::plain_client;
use super::support::process;
use super::table::{Bar, Row, Table};
use super::{Bench, documents};

const DOCUMENTS: usize = 10_000;
const DOCUMENT_BYTES: usize = 1_024;
/// What a result of the simulated vLLM takes.
const RESULT_BYTES: usize = 1_024;
const BATCH: usize = 100;
const FETCH_BYTES: usize = 1024 * 1024;
const AT_ONCE: usize = 64;
const BAR: f64 = 1.35;

pub(crate) async fn run(bench: &Bench, measure: &Measure, table: &mut Table) {
    documents::create(&bench.cluster, "parts", 1).await;
    documents::write(&bench.cluster, "parts", 1, DOCUMENTS, DOCUMENT_BYTES).await;
    documents::create(&bench.cluster, "parts-results", 1).await;
    for driver in &bench.drivers {
        let mut runs = [const { Vec::new() }; 5];
        for _ in 0..bench.rounds {
            let whole = measure.cpu_without_latency(bench, driver).await;
            let call = cpu(calls(measure)).await;
            let fetch = cpu(fetches(bench, driver)).await;
            let append = cpu(appends(bench)).await;
            let figures = [whole / (call + fetch + append), whole, call, fetch, append];
            figures
                .into_iter()
                .zip(&mut runs)
                .for_each(|(figure, runs)| runs.push(figure));
        }
        let names = [
            "the whole over its parts",
            "the whole",
            "reqwest alone",
            "fetch alone",
            "append with gzip alone",
        ];
        for (index, (name, runs)) in names.into_iter().zip(runs).enumerate() {
            table.add(Row {
                what: format!("W3, 10,000 documents: {name}"),
                driver: driver.clone(),
                guarantee: "at least once".to_owned(),
                unit: if index == 0 { "times" } else { "CPU s" },
                runs,
                disturbed: 0,
                bar: (index == 0).then_some(Bar::AtMost(BAR)),
            });
        }
    }
}

/// CPU seconds of this process while it does something.
async fn cpu(what: impl Future<Output = ()>) -> f64 {
    let before = process::cpu_time("self");
    what.await;
    (process::cpu_time("self") - before).as_secs_f64()
}

async fn calls(measure: &Measure) {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = port.expect("a free port").to_string();
    let mut command = process::mortal(measure.stub());
    command
        .args(["-addr", &address, "-latency", "0"])
        .stdout(Stdio::null());
    let mut stub = process::spawn(command);
    let client = plain_client(AT_ONCE).build().expect("a client");
    let health = format!("http://{address}/health");
    super::support::eventually("the stub answers", Duration::from_secs(10), async || {
        client.get(&health).send().await.ok()
    })
    .await;
    let url = format!("http://{address}/v1/chat/completions");
    let document = documents::document(1, DOCUMENT_BYTES)
        .value
        .expect("a value");
    let content = String::from_utf8_lossy(&document);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 512, "temperature": 0.1});
    let body = bytes::Bytes::from(body.to_string());
    let calls = futures::stream::iter(0..DOCUMENTS).map(|_| {
        let request = client
            .post(&url)
            .header("content-type", "application/json")
            .body(body.clone());
        async move { request.send().await?.bytes().await }
    });
    let answers = calls
        .buffer_unordered(AT_ONCE)
        .map(|answer| answer.expect("an answer").len());
    assert!(answers.all(async |bytes| bytes > 0).await);
    stub.kill().expect("it is ended");
    stub.wait().expect("it ends");
}

async fn fetches(bench: &Bench, driver: &str) {
    let source: Arc<dyn Source> = match driver {
        "rskafka" => Arc::new(RskafkaSource::new(bench.config(), bench.cluster.clone())),
        _ => Arc::new(WireSource::new(
            bench.cluster.clone(),
            Isolation::ReadUncommitted,
        )),
    };
    let input = TopicPartition::new("parts", 0);
    let mut stream = source.open(&input, Offset::ZERO).await.expect("open");
    let mut read = 0;
    while read < DOCUMENTS {
        let fetched = stream.next(FETCH_BYTES, Duration::from_millis(100)).await;
        read += fetched.expect("a fetch").records.len();
    }
}

async fn appends(bench: &Bench) {
    let sink = WireSink::idempotent(bench.cluster.clone());
    let input = TopicPartition::new("parts", 0);
    let mut writer = sink.take_over(&input).await.expect("a writer");
    let records: Vec<_> = (0..DOCUMENTS)
        .map(|number| documents::document(number, RESULT_BYTES))
        .collect();
    for records in records.chunks(BATCH) {
        let batch = Batch {
            to: TopicPartition::new("parts-results", 0),
            records: records.to_vec(),
        };
        for outcome in writer.append(&[batch]).await {
            outcome.expect("appended");
        }
    }
}
