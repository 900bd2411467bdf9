//! How much of a real vLLM's own throughput arrives: documents per second through the whole pipeline, divided by the requests per second of
//! `vllm bench serve` on the same server, with the same prompts, the same length of answers and the same calls at once.
//!
//! Estimate before measuring: the tiny model on two cores answers some 30 to 60 documents a second, so a document may cost 15 to 30 ms; the
//! processor and the broker take well under 1 ms of it. The anchor is a Python client that streams, which costs it and the server something
//! for each token: it takes more from the shared cores than we do. On this machine 1.0 to 1.3; on a GPU with cores to spare 1.0.
//!
//! `REAL_VLLM_TOOLS` and `KLP_TEST_BINARY` are as for `tests/real_vllm.rs`; the anchor needs the Python package `pandas` beside vLLM. Each run
//! is measured `VLLM_RATIO_ROUNDS` times (default 5), the two in turns, after a round that only warms up. `VLLM_RATIO_DOCUMENTS` (default
//! 400) and `VLLM_RATIO_TOKENS` (of each answer, default 64) change what is done, `VLLM_RATIO_AT_ONCE` leaves one case, and `VLLM_RATIO_PORT` moves the
//! server.
//! `VLLM_RATIO_BAR=1` fails below the bar, which says something only where nothing else uses the machine.

#![cfg(feature = "sandbox")]
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a bench fails by panicking"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use kafka_llm_processor::clock;
use kafka_llm_processor::records::result::ResultRecord;
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::types::Record;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use support::eventually;
use support::processor::Processor;
use support::vllm::{Api, Server, tools};

/// Where the server listens; `VLLM_RATIO_PORT` is another.
const PORT: u16 = 18_200;
/// Calls at once; `VLLM_RATIO_AT_ONCE` leaves only one case.
const AT_ONCE: [u16; 2] = [16, 64];
const PARTITIONS: i32 = 8;
/// The least part of the anchor's throughput that must arrive.
const BAR: f64 = 0.97;
/// The anchor alone takes some ten seconds to start.
const RUN_WITHIN: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(5);

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure());
}

/// What both sides do.
struct Work {
    texts: Vec<String>,
    answer_tokens: u32,
    /// The prompts as the anchor reads them.
    prompts: PathBuf,
    model: String,
    /// Where vLLM is installed, with its model.
    installed: PathBuf,
}

/// One run of one side.
#[derive(Debug, Clone, Copy)]
struct Measured {
    per_second: f64,
    /// Calls in flight on average, as the client sees them: what is missing to the calls at once is the client's own time.
    in_flight: f64,
    /// Tokens of each prompt and of each answer, as the server counted them.
    prompt_tokens: f64,
    answer_tokens: f64,
}

async fn measure() {
    let Some(tools) = tools() else {
        return;
    };
    let rounds = number("VLLM_RATIO_ROUNDS").unwrap_or(5);
    let documents = usize::from(number("VLLM_RATIO_DOCUMENTS").unwrap_or(400));
    let port = number("VLLM_RATIO_PORT").unwrap_or(PORT);
    // Prompts would be cached the second time that they come, and who comes second is not who comes first.
    let flags = ["--no-enable-prefix-caching"];
    let server = Server::start(&tools, port, None, &flags, &[]).await;
    let (model, _) = server.api().model().await;
    let work = Work {
        texts: texts(documents),
        answer_tokens: u32::from(number("VLLM_RATIO_TOKENS").unwrap_or(64)),
        prompts: Path::new(env!("CARGO_TARGET_TMPDIR")).join("vllm-ratio.jsonl"),
        model,
        installed: installed(&tools).await,
    };
    let lines = work
        .texts
        .iter()
        .map(|text| json!({"prompt": text}).to_string() + "\n");
    fs::write(&work.prompts, lines.collect::<String>()).expect("written");
    println!(
        "| calls at once | documents/s | requests/s of `vllm bench serve` | ratio | calls in flight | tokens of a prompt | tokens of an answer |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut below = Vec::new();
    let only = number("VLLM_RATIO_AT_ONCE");
    for at_once in AT_ONCE
        .into_iter()
        .filter(|case| only.is_none_or(|only| only == *case))
    {
        let mut runs = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            // Whoever comes first finds another machine than the second: they take turns.
            let first = usize::from(round % 2);
            for side in [first, 1 - first] {
                let measured = if side == 0 {
                    ours(&work, server.api(), at_once).await
                } else {
                    anchor(&work, server.api(), at_once).await
                };
                eprintln!("{at_once} at once, round {round}, side {side}: {measured:?}");
                // The first round only warms up.
                if round > 0 {
                    runs[side].push(measured);
                }
            }
        }
        let ratio = report(at_once, &runs);
        if ratio < BAR {
            below.push((at_once, ratio));
        }
    }
    if std::env::var_os("VLLM_RATIO_BAR").is_some_and(|value| value == "1") {
        assert!(below.is_empty(), "below {BAR}: {below:?}");
    }
}

/// The number that an environment variable holds.
fn number(name: &str) -> Option<u16> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}: {error}")),
    )
}

/// Documents of 200 to 1 000 characters, each with its number in front.
fn texts(count: usize) -> Vec<String> {
    let sentence = "Revenue rose 12 % to 4.3 billion in the third quarter, and margins held. ";
    let texts = (0..count).map(|number| {
        let length = 200 + number * 37 % 800;
        let body: String = sentence.chars().cycle().take(length).collect();
        format!("Report {number}. {body}")
    });
    texts.collect()
}

async fn installed(tools: &Path) -> PathBuf {
    let text = run(Command::new(tools.join("install.sh"))).await;
    PathBuf::from(text.lines().last().expect("it prints a folder"))
}

/// What a program prints; fails unless it ends well and in time.
async fn run(mut command: Command) -> String {
    let output = command.kill_on_drop(true).output();
    let output = timeout(RUN_WITHIN, output)
        .await
        .expect("it ends")
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text} {errors}");
    text
}

/// The server's own counts of prompt and answer tokens.
async fn tokens(api: &Api) -> [f64; 2] {
    [
        api.metric("vllm:prompt_tokens_total").await,
        api.metric("vllm:generation_tokens_total").await,
    ]
}

/// The processor, from its first call to the last result that can be read.
async fn ours(work: &Work, api: &Api, at_once: u16) -> Measured {
    let broker = Broker::start(BrokerConfig::default()).await;
    let broker = broker.expect("the sandbox's broker");
    broker.create_topic("in", PARTITIONS, &[]).expect("created");
    for (text, partition) in work.texts.iter().zip((0..PARTITIONS).cycle()) {
        let record = Record {
            key: None,
            value: Some(Bytes::from(json!({"content": text}).to_string())),
            headers: Vec::new(),
            timestamp_ms: 1_700_000_000_000,
        };
        let appended = broker.append("in", partition, vec![record]);
        appended.expect("appended");
    }
    let before = tokens(api).await;
    let arguments = [
        format!("--set=kafka.brokers={}", broker.bootstrap()),
        "--input-topic=in".to_owned(),
        "--output-topic=out".to_owned(),
        format!("--llm-url={}", api.url()),
        format!("--model={}", work.model),
        format!("--set=llm.max_tokens={}", work.answer_tokens),
        format!("--concurrency={at_once}"),
        "--set=prompt.user={{ content }}".to_owned(),
        "--set=admin.listen=off".to_owned(),
        "--set=log.file=off".to_owned(),
    ];
    let processor = Processor::start(&arguments, &[]);
    let partitions = || 0..broker.partitions("out").map_or(0, |_| PARTITIONS);
    eventually("every result is visible", RUN_WITHIN, async || {
        let visible: i64 = partitions()
            .filter_map(|partition| broker.high_watermark("out", partition))
            .map(|end| end.value())
            .sum();
        if usize::try_from(visible).expect("a count") < work.texts.len() {
            sleep(LOOK).await;
            return None;
        }
        Some(())
    })
    .await;
    let ended = clock::now();
    processor.drain(RUN_WITHIN).await;
    let results: Vec<_> = broker
        .records("out")
        .into_iter()
        .map(|(_, _, record)| {
            ResultRecord::parse(&record.value.expect("a value")).expect("a result")
        })
        .collect();
    assert_eq!(results.len(), work.texts.len(), "one result each");
    let began = results.iter().map(|result| {
        let call = Duration::from_millis(result.timing.llm_ms);
        result.completed_at - call
    });
    let began: Timestamp = began.min().expect("results");
    let wall = Duration::try_from(ended.duration_since(began)).expect("time passes");
    let calls = results
        .iter()
        .map(|result| Duration::from_millis(result.timing.llm_ms));
    let calls: Duration = calls.sum();
    measured(work, wall, calls, before, tokens(api).await)
}

/// `vllm bench serve`, by its own clock.
async fn anchor(work: &Work, api: &Api, at_once: u16) -> Measured {
    let before = tokens(api).await;
    let found = work.prompts.with_extension("result.json");
    let mut command = Command::new(work.installed.join("venv/bin/vllm"));
    command
        .args(["bench", "serve", "--backend", "openai-chat"])
        .args([
            "--endpoint",
            "/v1/chat/completions",
            "--base-url",
            api.url(),
        ])
        .arg("--model")
        .arg(work.installed.join("tiny"))
        .args(["--served-model-name", &work.model])
        .args(["--dataset-name", "custom", "--dataset-path"])
        .arg(&work.prompts)
        // The server applies it; and the order is that of the documents.
        .args(["--skip-chat-template", "--disable-shuffle"])
        .args(["--num-prompts", &work.texts.len().to_string()])
        .args(["--custom-output-len", &work.answer_tokens.to_string()])
        .args(["--temperature", "0", "--request-rate", "inf"])
        .args(["--max-concurrency", &at_once.to_string()])
        .args(["--percentile-metrics", "e2el"])
        .args(["--disable-tqdm", "--save-result", "--result-filename"])
        .arg(&found)
        .envs([("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1")]);
    run(command).await;
    let result = fs::read_to_string(&found).expect("it has saved its result");
    let result: Value = serde_json::from_str(&result).expect("JSON");
    fs::remove_file(&found).expect("removed");
    let completed = result["completed"].as_u64().expect("a count");
    assert_eq!(usize::try_from(completed), Ok(work.texts.len()), "{result}");
    let wall = result["duration"].as_f64().expect("seconds");
    let each = result["mean_e2el_ms"].as_f64().expect("milliseconds");
    let calls = Duration::from_secs_f64(each / 1e3).mul_f64(count(work.texts.len()));
    let wall = Duration::from_secs_f64(wall);
    measured(work, wall, calls, before, tokens(api).await)
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("a count"))
}

fn measured(
    work: &Work,
    wall: Duration,
    calls: Duration,
    before: [f64; 2],
    after: [f64; 2],
) -> Measured {
    let documents = count(work.texts.len());
    Measured {
        per_second: documents / wall.as_secs_f64(),
        in_flight: calls.as_secs_f64() / wall.as_secs_f64(),
        prompt_tokens: (after[0] - before[0]) / documents,
        answer_tokens: (after[1] - before[1]) / documents,
    }
}

/// Prints the row of a case and gives back the median of the rounds' ratios.
fn report(at_once: u16, runs: &[Vec<Measured>; 2]) -> f64 {
    let [ours, anchor] = runs;
    let ratios = ours
        .iter()
        .zip(anchor)
        .map(|(ours, anchor)| ours.per_second / anchor.per_second);
    let (ratio, spread) = middle(ratios.collect());
    let of = |runs: &[Measured], figure: fn(&Measured) -> f64| {
        middle(runs.iter().map(figure).collect()).0
    };
    let both = |figure: fn(&Measured) -> f64| [of(ours, figure), of(anchor, figure)];
    let speeds = both(|run| run.per_second);
    let in_flight = both(|run| run.in_flight);
    let prompts = both(|run| run.prompt_tokens);
    let answers = both(|run| run.answer_tokens);
    println!(
        "| {at_once} | {:.1} | {:.1} | {ratio:.3} ({:.3} to {:.3}) | {:.1} / {:.1} | {:.1} / {:.1} | {:.1} / {:.1} |",
        speeds[0],
        speeds[1],
        spread[0],
        spread[1],
        in_flight[0],
        in_flight[1],
        prompts[0],
        prompts[1],
        answers[0],
        answers[1],
    );
    ratio
}

/// The median, and the least and the most.
fn middle(mut figures: Vec<f64>) -> (f64, [f64; 2]) {
    figures.sort_by(f64::total_cmp);
    let (least, most) = (figures[0], figures[figures.len() - 1]);
    (figures[figures.len() / 2], [least, most])
}
