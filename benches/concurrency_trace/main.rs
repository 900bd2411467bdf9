//! Adaptive concurrency over two minutes: the real client over TCP against the simulated vLLM, which runs 48 calls at once, 24 from 60 s on,
//! and 48 again from 90 s on. Nobody tells the client any of these numbers.
//!
//! Calls take some 200 to 600 ms, as their answers have some 40 to 130 tokens; documents never run out. Before that, settings that are fixed
//! are tried for a few seconds each: the best of them is what there is to reach. Three servers: one that tells how many requests wait in it
//! (vLLM does), one that tells nothing (an older one, or a proxy), and one that tells nothing and refuses what would be too much for its queue.
//!
//! Estimate before measuring: 48 calls of 0.39 s are 123 documents a second. Adaptive begins at 64, above the capacity, so 95 % of it are there
//! when the first calls are: within 1 s.
//!
//! - *Told*: the limit settles where a tenth waits, at 50 to 56; the server never runs dry: share 1.00. After the halving 30 of 54 wait;
//!   each window of half a second and a round trip cuts to 0.6 at most, so 54, 33, 28: 3 s until it is below 1.3 × 24. After the doubling steps
//!   of 1/16, 1/8, 1/4, 1/2: 4 s until 95 %.
//! - *Not told*: limits a quarter apart in turns, the lower costs up to a twentieth: share 0.97. With the capacity halved a call takes
//!   0.9 s, a window one and a half of these, a comparison at least two windows and cuts by a quarter at most: 58, 44, 33, 29: 10 s. The
//!   way up is as long.
//! - *Refused*: as *not told*, but that the start is cut below the bound at once.
//!
//! Measured, the start and what follows the doubling are as estimated. *Not told* takes longer to fall, 17 to 26 s, as a comparison is repeated before it is believed twice; and *refused* does not fall at
//! all: the bound of the queue is where it was, so the limit stays below it, and what is too much waits in the server. Throughput is the same.
//!
//! `TRACE_SECONDS` (default 120) is the length of each trace, all its parts in proportion: 20 is enough to try it out. `TRACE_FIXED_SECONDS`
//! (default 8) is that of each fixed setting, `TRACE_CAPACITY` (default 48) the calls that the server runs at once, `TRACE_SERVER` (`told`,
//! `untold` or `refused`) leaves one server. Only a run without any of them writes `docs/concurrency.svg`; others write
//! `target/tmp/concurrency.svg`.

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

mod plot;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use kafka_llm_processor::llm::{
    Class, Complete as _, CompletionRequest, Concurrency, HttpTransport, KafkaContext, LlmConfig,
    LlmMetrics, Prompt, PromptConfig, Scope, VllmClient,
};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::{Offset, SourcePosition, TopicPartition};
use prometheus_client::registry::Registry;
use serde_json::Map;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;

use plot::{Line, Panel};

/// Documents that want to be asked about at any time: as many as a processor reads ahead, and far above any limit here.
const DOCUMENTS_OPEN: usize = 1_024;
const EVERY: Duration = Duration::from_millis(500);
/// Fixed settings, as parts of the capacity.
const FIXED: [f64; 7] = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0];
/// What a fixed setting is not measured for at its start: two calls.
const WARM_UP: Duration = Duration::from_secs(1);
/// What is enough of the best throughput.
const ENOUGH: f64 = 0.95;
/// What is enough less for half of the capacity.
const LESS: f64 = 1.3;

const TOLD: Server = Server {
    name: "told",
    title: "The server tells how many requests wait (vLLM)",
    reports_load: true,
    refuses_beyond: None,
};
const UNTOLD: Server = Server {
    name: "untold",
    title: "The server tells nothing",
    reports_load: false,
    refuses_beyond: None,
};
const REFUSED: Server = Server {
    name: "refused",
    title: "The server tells nothing and refuses more than 1.25 × 48 requests (503)",
    reports_load: false,
    refuses_beyond: Some(1.25),
};

/// What the server does beside answering.
struct Server {
    name: &'static str,
    title: &'static str,
    reports_load: bool,
    /// Requests that run or wait, as a part of the capacity; more are refused.
    refuses_beyond: Option<f64>,
}

/// How long, and at how much.
struct Plan {
    capacity: u32,
    seconds: f64,
    fixed: Duration,
    server: Option<String>,
}

impl Plan {
    fn read() -> Self {
        Self {
            capacity: number("TRACE_CAPACITY").unwrap_or(48),
            seconds: f64::from(number("TRACE_SECONDS").unwrap_or(120)),
            fixed: Duration::from_secs(u64::from(number("TRACE_FIXED_SECONDS").unwrap_or(8))),
            server: std::env::var("TRACE_SERVER").ok(),
        }
    }

    fn halved_at(&self) -> f64 {
        self.seconds / 2.0
    }

    fn doubled_at(&self) -> f64 {
        self.seconds * 0.75
    }

    fn capacity_at(&self, second: f64) -> u32 {
        if (self.halved_at()..self.doubled_at()).contains(&second) {
            self.capacity / 2
        } else {
            self.capacity
        }
    }
}

/// One look at both sides.
#[derive(Debug, Clone, Copy)]
struct Sample {
    second: f64,
    limit: usize,
    running: usize,
    /// Documents that have been answered so far.
    answered: u64,
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let plan = Plan::read();
    println!("| fixed setting | documents/s |");
    println!("| --- | --- |");
    let mut best = 0.0_f64;
    for part in FIXED {
        let calls = whole(f64::from(plan.capacity) * part);
        let speed = fixed(&plan, calls).await;
        println!("| {calls} | {speed:.1} |");
        best = best.max(speed);
    }
    println!();
    println!(
        "| server | share of the best fixed setting, before the halving | limit there | seconds to 95 % from the start | seconds to a limit below 1.3 × half | share while halved | seconds to 95 % from the doubling | share after recovery | calls refused |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut panels = Vec::new();
    let is_asked = |server: &&Server| {
        let asked = plan.server.as_ref();
        asked.is_none_or(|name| name == server.name)
    };
    for server in [TOLD, UNTOLD, REFUSED].iter().filter(is_asked) {
        let trace = Trace::record(&plan, server).await;
        println!("{}", trace.row(&plan, server, best));
        panels.push(trace.panel(&plan, server, best));
    }
    let is_whole = !std::env::vars_os()
        .any(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("TRACE_")));
    let path = if is_whole {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
    } else {
        Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned()
    };
    let path = path.join("concurrency.svg");
    std::fs::write(&path, plot::svg(&panels)).expect("written");
    eprintln!("written: {}", path.display());
}

/// The number that an environment variable holds.
fn number(name: &str) -> Option<u32> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}: {error}")),
    )
}

/// Documents a second with so many calls at once.
async fn fixed(plan: &Plan, calls: usize) -> f64 {
    let load = Load::start(plan, &TOLD, Concurrency::Fixed(calls)).await;
    sleep(WARM_UP).await;
    let (began, before) = (Instant::now(), load.answered());
    sleep(plan.fixed).await;
    let speed = count(load.answered() - before) / began.elapsed().as_secs_f64();
    load.end().await;
    speed
}

/// A client with more documents than it may ask about, and its server.
struct Load {
    vllm: Vllm,
    client: Arc<VllmClient>,
    answered: Arc<AtomicU64>,
    documents: JoinSet<()>,
}

impl Load {
    async fn start(plan: &Plan, server: &Server, concurrency: Concurrency) -> Self {
        let capacity = plan.capacity;
        let bound = server.refuses_beyond;
        let vllm = Vllm::start(VllmConfig {
            max_num_seqs: usize::try_from(capacity).expect("a count"),
            max_num_queued_reqs: bound.map(|part| whole(f64::from(capacity) * part)),
            reports_load: server.reports_load,
            latency: Latency {
                base: Duration::from_millis(20),
                per_prompt_token: Duration::from_micros(100),
                per_output_token: Duration::from_millis(4),
                per_output_token_running: Duration::ZERO,
            },
            ..VllmConfig::default()
        });
        let vllm = vllm.await.expect("the simulated vLLM");
        let config = LlmConfig {
            url: vllm.url(),
            concurrency,
            ..LlmConfig::default()
        };
        let transport = Arc::new(HttpTransport::new(&config).expect("a transport"));
        let metrics = LlmMetrics::new(&mut Registry::default());
        let client = VllmClient::new(&config, transport, metrics, &CancellationToken::new());
        let client = Arc::new(client.expect("a client"));
        let prompt = Arc::new(Prompt::new(&PromptConfig::default(), None).expect("a prompt"));
        let context = Prompt::context(Map::new(), "report", KafkaContext::default());
        let scope = prompt.scope(&context);
        let answered = Arc::new(AtomicU64::new(0));
        let next = Arc::new(AtomicI64::new(0));
        let mut documents = JoinSet::new();
        for _ in 0..DOCUMENTS_OPEN {
            let (client, prompt, scope) = (Arc::clone(&client), Arc::clone(&prompt), scope.clone());
            let (answered, next) = (Arc::clone(&answered), Arc::clone(&next));
            documents.spawn(async move {
                loop {
                    let slot = client.admit(Class::ONLY).await;
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let request = request(number, Arc::clone(&prompt), scope.clone());
                    let completion = client.complete(request, slot).await;
                    completion.expect("no document is at fault");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self {
            vllm,
            client,
            answered,
            documents,
        }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    async fn end(mut self) {
        assert!(
            self.documents.try_join_next().is_none(),
            "a document has failed"
        );
        self.documents.shutdown().await;
        self.vllm.shutdown().await;
    }
}

/// A document with three sentences that come back as the answer, of 8 to 40 words each; numbers that follow each other differ much.
fn request(number: i64, prompt: Arc<Prompt>, scope: Scope) -> CompletionRequest {
    let words = usize::try_from(8 + number * 37 % 33).expect("a few words");
    let sentence = |begin: &str| format!("{begin}{}.", " words".repeat(words));
    let content = [
        sentence("Report"),
        sentence("Revenue 12"),
        sentence("Margin 34"),
    ];
    CompletionRequest {
        class: Class::ONLY,
        document_id: format!("report-{number}"),
        position: SourcePosition {
            topic_partition: TopicPartition::new("reports", 0),
            offset: Offset::new(number),
        },
        prompt,
        scope,
        content: content.join(" "),
        trace: Default::default(),
    }
}

struct Trace {
    samples: Vec<Sample>,
    /// Calls that the server saw and that were not answered at the end.
    unanswered: u64,
}

impl Trace {
    async fn record(plan: &Plan, server: &Server) -> Self {
        let load = Load::start(plan, server, Concurrency::Adaptive).await;
        let began = Instant::now();
        let mut looks = interval(EVERY);
        let mut samples = Vec::new();
        let mut capacity = plan.capacity;
        loop {
            looks.tick().await;
            let sample = Sample {
                second: began.elapsed().as_secs_f64(),
                limit: load.client.state().limit,
                running: load.vllm.running(),
                answered: load.answered(),
            };
            samples.push(sample);
            if sample.second >= plan.seconds {
                break;
            }
            let now = plan.capacity_at(sample.second);
            if now != capacity {
                load.vllm
                    .set_max_num_seqs(usize::try_from(now).expect("a count"));
                capacity = now;
            }
        }
        let unanswered = load.vllm.calls() - load.answered();
        load.end().await;
        Self {
            samples,
            unanswered,
        }
    }

    /// Documents a second between two moments.
    fn speed(&self, from: f64, to: f64) -> f64 {
        let at = |second: f64| {
            let found = self.samples.iter().find(|sample| sample.second >= second);
            found.or(self.samples.last()).expect("samples")
        };
        let (from, to) = (at(from), at(to));
        count(to.answered - from.answered) / (to.second - from.second).max(EVERY.as_secs_f64())
    }

    /// How long after `from` the documents of one second were enough for the first time.
    fn enough_after(&self, from: f64, best: f64) -> Option<f64> {
        let ends = self
            .samples
            .iter()
            .filter(|sample| sample.second >= from + 1.0);
        let mut ends = ends.map(|sample| sample.second);
        let end = ends.find(|end| self.speed(end - 1.0 - 0.01, *end) >= ENOUGH * best)?;
        Some(end - from)
    }

    fn row(&self, plan: &Plan, server: &Server, best: f64) -> String {
        let (halved, doubled, end) = (plan.halved_at(), plan.doubled_at(), plan.seconds);
        let steady = (halved / 2.0, halved);
        let limits = self
            .samples
            .iter()
            .filter(|sample| sample.second > steady.0 && sample.second <= steady.1)
            .map(|sample| sample.limit);
        let (least, most) = (limits.clone().min(), limits.clone().max());
        let mut after = self.samples.iter().filter(|sample| sample.second >= halved);
        let less = f64::from(plan.capacity / 2) * LESS;
        let fell = after.find(|sample| size(sample.limit) < less);
        let seconds = |seconds: Option<f64>| {
            seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.1}"))
        };
        // The last third of what follows the doubling is after recovery, and so is that of what follows the halving.
        let settled = |from: f64, to: f64| from + (to - from) / 3.0;
        let half = best / 2.0;
        format!(
            "| {} | {:.3} | {} to {} | {} | {} | {:.3} | {} | {:.3} | {} |",
            server.name,
            self.speed(steady.0, steady.1) / best,
            least.unwrap_or_default(),
            most.unwrap_or_default(),
            seconds(self.enough_after(0.0, best)),
            seconds(fell.map(|sample| sample.second - halved)),
            self.speed(settled(halved, doubled), doubled) / half,
            seconds(self.enough_after(doubled, best)),
            self.speed(settled(doubled, end), end) / best,
            // Those that run at the end are not answered either.
            self.unanswered.saturating_sub(
                u64::try_from(self.samples.last().map_or(0, |last| last.limit)).unwrap_or(0)
            ),
        )
    }

    fn panel<'a>(&self, plan: &Plan, server: &'a Server, best: f64) -> Panel<'a> {
        let points = |value: &dyn Fn(&Sample) -> f64| -> Vec<(f64, f64)> {
            let points = self.samples.iter();
            points
                .map(|sample| (sample.second, value(sample)))
                .collect()
        };
        let line = |name, colour, dashed, points| Line {
            name,
            colour,
            dashed,
            points,
        };
        let (halved, doubled, end) = (plan.halved_at(), plan.doubled_at(), plan.seconds);
        let capacity = f64::from(plan.capacity);
        let steps = |full: f64| {
            let half = full / 2.0;
            let steps = [(0.0, full), (halved, full), (halved, half), (doubled, half)];
            [steps.as_slice(), &[(doubled, full), (end, full)]].concat()
        };
        let limits = points(&|sample| size(sample.limit));
        let running = points(&|sample| size(sample.running));
        // Of the second before.
        let documents = points(&|sample| self.speed(sample.second - 1.01, sample.second));
        Panel {
            title: server.title.replace("48", &plan.capacity.to_string()),
            unit: "calls, and documents/s",
            lines: vec![
                line("documents/s", "#d55e00", false, documents),
                line("documents/s, best fixed", "#d55e00", true, steps(best)),
                line("limit, calls", "#0072b2", false, limits),
                line("running on the server, calls", "#009e73", false, running),
                line("hidden capacity, calls", "#555555", true, steps(capacity)),
            ],
            events: vec![(halved, "capacity halved"), (doubled, "doubled")],
        }
    }
}

fn count(number: u64) -> f64 {
    f64::from(u32::try_from(number).expect("a count"))
}

fn size(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("a count"))
}

/// The nearest count to a small figure.
fn whole(figure: f64) -> usize {
    (0..)
        .find(|number| size(*number) + 0.5 > figure)
        .unwrap_or(0)
}
