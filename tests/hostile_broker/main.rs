//! A broker that lies: the program neither panics nor grows, and every document gets its answer once it has been told the truth.

#![cfg(feature = "sandbox")]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

mod bomb;
mod proxy;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::Record;

use proxy::{About, Lie, Proxy};
use support::eventually;
use support::processor::Processor;

const DOCUMENTS: usize = 40;
/// Each lie costs a back-off, or a deadline of 2 s.
const ALL_WITHIN: Duration = Duration::from_secs(180);
/// What a build without optimisation holds when nothing is wrong is a tenth of it. A frame may have 64 MiB (`rskafka`) or 100 MiB (`wire`);
/// what is believed of a length of 2 GiB would show.
const PEAK_KIB_MAX: u64 = 400 * 1024;

/// What can be said instead of any answer.
const FRAMES: [Lie; 11] = [
    Lie::Garbage,
    Lie::Cut,
    Lie::Half,
    Lie::Empty,
    Lie::OtherRequest,
    Lie::Length(-1),
    Lie::Length(i32::MIN),
    Lie::Length(i32::MAX),
    Lie::Length(60 * 1024 * 1024),
    // In one of these places stands a count of the answer's outermost list, whichever version it has.
    Lie::LargeAt(4),
    Lie::LargeAt(10),
];
/// What the bomb inflates to: nine times what one batch may.
const BOMB_BYTES: u64 = 600 * 1024 * 1024;
const BATCHES: [Lie; 2] = [Lie::RecordCount, Lie::LastOffset];

fn document(index: usize) -> Record {
    Record {
        key: Some(format!("key-{index}").into()),
        value: Some(format!(r#"{{"id":"doc-{index}","content":"Revenue rose {index}."}}"#).into()),
        timestamp_ms: 1_700_000_000_000,
        ..Record::default()
    }
}

/// How often each document has a result.
fn results(broker: &Broker) -> BTreeMap<String, usize> {
    let mut results = BTreeMap::new();
    for (_, _, record) in broker.records("llm-results") {
        let key = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
        *results.entry(key).or_default() += 1;
    }
    results
}

/// Runs the program while it is lied to; gives back how often each document was answered.
async fn lied_to(settings: &[&str], lies: &[(About, Vec<Lie>)]) -> BTreeMap<String, usize> {
    let proxy = Proxy::start().await;
    let broker = &proxy.broker;
    broker.create_topic("financial-documents", 2, &[]).unwrap();
    let llm = Vllm::start(VllmConfig {
        latency: Latency::ZERO,
        ..VllmConfig::default()
    });
    let llm = llm.await.unwrap();
    for (about, lies) in lies {
        proxy.lie(*about, lies);
    }
    let send = |documents: std::ops::Range<usize>| {
        for index in documents {
            let partition = i32::from(index % 2 == 1);
            let batch = vec![document(index)];
            broker
                .append("financial-documents", partition, batch)
                .unwrap();
        }
    };
    send(0..DOCUMENTS / 2);
    let mut arguments = vec![
        "run".to_owned(),
        format!("--brokers={}", proxy.address()),
        format!("--llm-url={}", llm.url()),
        "--set=kafka.request_timeout=2s".to_owned(),
        "--set=kafka.connect_timeout=2s".to_owned(),
        "--set=admin.listen=127.0.0.1:0".to_owned(),
        "--set=log.file=off".to_owned(),
    ];
    arguments.extend(settings.iter().map(|set| format!("--set={set}")));
    let mut processor = Processor::start(&arguments, &[]);
    eventually("half of the results", ALL_WITHIN, async || {
        assert!(processor.is_running(), "it goes on");
        (results(broker).len() >= DOCUMENTS / 2).then_some(())
    })
    .await;
    // Lies that nobody asked for yet are told now, to a program in the middle of its work.
    send(DOCUMENTS / 2..DOCUMENTS);
    eventually("every result", ALL_WITHIN, async || {
        assert!(processor.is_running(), "it goes on");
        let is_done = results(broker).len() == DOCUMENTS;
        is_done.then_some(())
    })
    .await;
    let peak = processor.peak_resident_kib();
    let printed = processor.lines().all().join("\n");
    assert!(!printed.contains("panicked"), "{printed}");
    assert!(peak < PEAK_KIB_MAX, "it held {peak} KiB");
    println!("held {peak} KiB at most");
    for (about, lies) in lies {
        let left = proxy.left(*about);
        println!(
            "{about:?}: {} of {} lies were told",
            lies.len() - left,
            lies.len()
        );
        assert!(left < lies.len(), "no lie about {about:?} was told");
    }
    processor.drain(Duration::from_secs(30)).await;
    assert!(broker.records("llm-dead-letters").is_empty());
    results(broker)
}

/// What both drivers ask.
fn lies() -> Vec<(About, Vec<Lie>)> {
    let all = [&BATCHES[..], &FRAMES[..]].concat();
    vec![
        ((ApiKey::ApiVersions, ""), FRAMES[..4].to_vec()),
        ((ApiKey::Metadata, ""), FRAMES.to_vec()),
        ((ApiKey::ListOffsets, ""), FRAMES[..5].to_vec()),
        ((ApiKey::Fetch, "financial-documents"), all),
        ((ApiKey::Fetch, "-commits"), BATCHES.to_vec()),
        ((ApiKey::Produce, "llm-results"), FRAMES[..8].to_vec()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn with_rskafka_it_is_lied_to_and_writes_each_result_once() {
    is_lied_to_and_writes_each_result_once("rskafka").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wire_it_is_lied_to_and_writes_each_result_once() {
    is_lied_to_and_writes_each_result_once("wire").await;
}

async fn is_lied_to_and_writes_each_result_once(driver: &str) {
    let mut lies = lies();
    lies.push(((ApiKey::InitProducerId, ""), FRAMES[..5].to_vec()));
    let results = lied_to(&[&format!("kafka.driver={driver}")], &lies).await;
    assert_eq!(results.len(), DOCUMENTS);
    assert!(results.values().all(|times| *times == 1), "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_rskafka_a_gzip_bomb_is_inflated_to_the_bound_and_held() {
    a_gzip_bomb_is_inflated_to_the_bound_and_held("rskafka").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wire_a_gzip_bomb_is_inflated_to_the_bound_and_held() {
    a_gzip_bomb_is_inflated_to_the_bound_and_held("wire").await;
}

/// Held with its reason, not lost: it can be read once it fits, or passed over by `offsets reset`. Its partition waits, no other does.
async fn a_gzip_bomb_is_inflated_to_the_bound_and_held(driver: &str) {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("financial-documents", 2, &[]).unwrap();
    broker
        .append_raw("financial-documents", 0, bomb::gzip(BOMB_BYTES))
        .unwrap();
    let documents = (0..DOCUMENTS).map(document).collect();
    broker.append("financial-documents", 1, documents).unwrap();
    let llm = Vllm::start(VllmConfig {
        latency: Latency::ZERO,
        ..VllmConfig::default()
    });
    let llm = llm.await.unwrap();
    let arguments = [
        "run".to_owned(),
        format!("--brokers={}", broker.bootstrap()),
        format!("--llm-url={}", llm.url()),
        format!("--set=kafka.driver={driver}"),
        "--set=admin.listen=127.0.0.1:0".to_owned(),
        "--set=log.file=off".to_owned(),
    ];
    let mut processor = Processor::start(&arguments, &[]);
    let words = ["financial-documents/0", "inflates to more than"];
    processor.line(&words, ALL_WITHIN).await;
    eventually("every other result", ALL_WITHIN, async || {
        assert!(processor.is_running(), "it goes on");
        (results(&broker).len() == DOCUMENTS).then_some(())
    })
    .await;
    let peak = processor.peak_resident_kib();
    println!("{driver} held {peak} KiB at most");
    assert!(peak < PEAK_KIB_MAX, "{driver} held {peak} KiB");
    processor.drain(Duration::from_secs(30)).await;
    assert!(broker.records("llm-dead-letters").is_empty());
    let group = "kafka-llm-processor";
    let committed = broker.committed_offset(group, "financial-documents", 0);
    assert!(committed.is_none_or(|offset| offset <= 0), "{committed:?}");
}
