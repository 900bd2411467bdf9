//! Resident memory over half a million documents, and under a bound on bytes while the first document stalls.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, Vllm, VllmConfig};
use tokio::time::{Instant, sleep};

use super::support::metrics;
use super::support::processor::Processor;
use super::table::{Bar, Row, Table};
use super::{Bench, documents, number};

/// `BARS_DOCUMENTS` is another number.
const DOCUMENTS: usize = 500_000;
const SMALL_BYTES: usize = 1_024;
const AT_ONCE: usize = 256;
const EVERY: Duration = Duration::from_millis(500);
const RUN_WITHIN: Duration = Duration::from_secs(600);
const BAR_MIB: f64 = 64.0;
const CURVE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/memory.svg");
/// 2,000 documents of 64 KiB are 125 MiB, far above the bound.
const LARGE_BYTES: usize = 64 * 1024;
const LARGE_DOCUMENTS: usize = 2_000;

pub(crate) async fn run(bench: &mut Bench, table: &mut Table) {
    let count = number("BARS_DOCUMENTS").unwrap_or(DOCUMENTS);
    documents::create(&bench.cluster, "half-a-million", 1).await;
    documents::write(&bench.cluster, "half-a-million", 1, count, SMALL_BYTES).await;
    for driver in &bench.drivers {
        let curve = over_all(bench, driver, count).await;
        let most = curve.iter().map(|(_, mib)| *mib).fold(0.0, f64::max);
        table.add(Row {
            what: format!("{count} documents of 1 KiB: resident, peak"),
            driver: driver.clone(),
            guarantee: "at least once".to_owned(),
            unit: "MiB",
            runs: vec![most],
            disturbed: 0,
            bar: Some(Bar::AtMost(BAR_MIB)),
        });
        // The second half over the first: a leak shows as more than one.
        let (first, second) = curve.split_at(curve.len() / 2);
        let mean = |part: &[(f64, f64)]| {
            part.iter().map(|(_, mib)| mib).sum::<f64>()
                / f64::from(u32::try_from(part.len()).expect("a count"))
        };
        table.add(Row {
            what: "the same: second half over first".to_owned(),
            driver: driver.clone(),
            guarantee: "at least once".to_owned(),
            unit: "times",
            runs: vec![mean(second) / mean(first)],
            disturbed: 0,
            bar: Some(Bar::AtMost(1.1)),
        });
        if *driver == bench.drivers[0] {
            fs::write(CURVE, svg(&curve)).expect("written");
        }
    }
    documents::create(&bench.cluster, "large", 1).await;
    documents::write(&bench.cluster, "large", 1, LARGE_DOCUMENTS, LARGE_BYTES).await;
    for driver in &bench.drivers {
        let mib = stalled(bench, driver).await;
        table.add(Row {
            what: "64-KiB documents behind one that stalls, `input`: open bytes at most".to_owned(),
            driver: driver.clone(),
            guarantee: "at least once".to_owned(),
            unit: "MiB",
            runs: vec![mib],
            disturbed: 0,
            bar: Some(Bar::AtMost(16.0)),
        });
    }
}

fn arguments(bench: &Bench, driver: &str, topic: &str, url: &str) -> Vec<String> {
    vec![
        format!("--set=kafka.brokers={}", bench.broker.address()),
        format!("--group-id={topic}-{driver}"),
        format!("--input-topic={topic}"),
        format!("--output-topic={topic}-{driver}-results"),
        format!("--llm-url={url}"),
        format!("--concurrency={AT_ONCE}"),
        format!("--set=kafka.driver={driver}"),
        "--set=admin.listen=127.0.0.1:0".to_owned(),
        "--set=log.file=off".to_owned(),
    ]
}

/// Seconds since the start, and MiB resident.
async fn over_all(bench: &Bench, driver: &str, count: usize) -> Vec<(f64, f64)> {
    let config = VllmConfig {
        latency: Latency::fixed(Duration::ZERO),
        requests_logged: 1,
        ..VllmConfig::default()
    };
    let vllm = Vllm::start(config).await.expect("the simulated vLLM");
    let processor = Processor::start(
        &arguments(bench, driver, "half-a-million", &vllm.url()),
        &[],
    );
    let began = Instant::now();
    let mut curve = Vec::new();
    let enough = u64::try_from(count).expect("a count");
    while vllm.calls() < enough {
        assert!(began.elapsed() < RUN_WITHIN, "{} calls", vllm.calls());
        curve.push((began.elapsed().as_secs_f64(), mib(processor.resident_kib())));
        sleep(EVERY).await;
    }
    curve.push((
        began.elapsed().as_secs_f64(),
        mib(processor.peak_resident_kib()),
    ));
    processor.drain(RUN_WITHIN).await;
    curve
}

/// The most MiB that were open at once, while the first document gets no answer.
async fn stalled(bench: &Bench, driver: &str) -> f64 {
    let vllm = Vllm::start(VllmConfig::default())
        .await
        .expect("the simulated vLLM");
    vllm.faults()
        .push(Fault::new(Action::HangForEver).on_prompt("Report 0."));
    let mut arguments = arguments(bench, driver, "large", &vllm.url());
    arguments.push("--order=input".to_owned());
    let processor = Processor::start(&arguments, &[]);
    let line = processor.line(&["admin server listens"], RUN_WITHIN).await;
    let address = metrics::admin_address(&line);
    let (mut most, mut calls, mut still_since) = (0, 0, Instant::now());
    // Until nothing moves any more: the bound is what holds it, and not that there is no time.
    while still_since.elapsed() < Duration::from_secs(3) || calls == 0 {
        let [open] = metrics::counters(&address, ["klp_read_ahead_bytes"]);
        most = most.max(open);
        if vllm.calls() > calls {
            (calls, still_since) = (vllm.calls(), Instant::now());
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert!(
        calls < u64::try_from(LARGE_DOCUMENTS).expect("a count"),
        "the stall holds nothing up"
    );
    processor.kill();
    mib(most / 1_024)
}

fn mib(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).expect("a count")) / 1_024.0
}

/// The curve as a picture, readable on light and dark.
fn svg(curve: &[(f64, f64)]) -> String {
    let (width, height, left, bottom) = (720.0, 260.0, 50.0, 220.0);
    let until = curve.last().map_or(1.0, |(at, _)| *at);
    let x = |at: f64| left + at / until * (width - left - 20.0);
    let y = |mib: f64| bottom - mib / BAR_MIB * (bottom - 20.0);
    let mut points = String::new();
    for (at, mib) in curve {
        write!(points, "{:.1},{:.1} ", x(*at), y(*mib)).expect("a string");
    }
    let mut lines = String::new();
    for mib in [0.0, 16.0, 32.0, 48.0, 64.0] {
        let at = y(mib);
        write!(
            lines,
            r##"<line x1="{left}" x2="{width}" y1="{at:.1}" y2="{at:.1}" stroke="#888" stroke-opacity="0.4"/><text x="8" y="{:.1}">{mib}</text>"##,
            at + 4.0
        )
        .expect("a string");
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="#888">
{lines}
<polyline points="{points}" fill="none" stroke="#2f81f7" stroke-width="2"/>
<text x="{left}" y="14">MiB resident (VmRSS) over seconds; the bar is 64</text><text x="{left}" y="244">0 s</text><text x="{:.0}" y="244" text-anchor="end">{until:.0} s</text>
</svg>
"##,
        width - 20.0
    )
}
