//! What the client costs beside plain HTTP: one document through `admit` and `complete()`, next to the same request sent by reqwest alone and by
//! the client's own transport alone.
//!
//! The server is a child process, this program with an argument, so that the processor time of this process is the client's alone. It reads a
//! request and answers with the same 700 bytes each time: the simulated vLLM would parse, count tokens and take cores from who is measured.
//!
//! Estimate before measuring: on loopback a request is two system calls to write, three to read and wait, and the way through hyper and reqwest:
//! 40 to 60 µs of processor time, and at one call at a time 100 to 150 µs of wall time, most of it waking the other process. The client's own:
//! prompt 4 µs, request as JSON 2 µs, request id and headers 2 µs, a span with seven fields 3 µs, the answer parsed 5 µs, timers, slot,
//! controller and metrics 3 µs: 20 µs. So 1.4 in processor time, 1.15 in wall time at one call at a time, and with 64 at once, where two cores
//! have to do for client and server, 1.2.
//!
//! Measured, reqwest alone takes 20 µs, at one call at a time sometimes 46 µs, as the scheduler places the two processes; the client adds 30 to
//! 40 µs. So the estimate of plain HTTP was too high, that of the client too low, and the ratio is 1.9 to 2.7.
//!
//! The document has 1 KiB, the prompt is the default one, concurrency is adaptive with 1 or 64 as its most, and a subscriber takes spans and events
//! from `info` on and writes nowhere, as the program does to its log. `OVERHEAD_ROUNDS` rounds are run (default 9), the three sides in turns, of
//! `OVERHEAD_CALLS` calls (default 20000) each; medians, lowest and highest. `OVERHEAD_LEVEL` is another level than `info`: with `off` spans cost
//! nothing. `OVERHEAD_SIDE` (0 to 2) leaves one side, for a profiler.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a bench fails by panicking"
)]

#[path = "support/plain_client.rs"]
mod plain_client;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, Response, header};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kafka_llm_processor::llm::{
    Call, Class, Complete as _, CompletionRequest, HttpTransport, KafkaContext, LlmConfig,
    LlmMetrics, Prompt, PromptConfig, Reply, Transport, TransportError, VllmClient,
};
use kafka_llm_processor::types::{Offset, SourcePosition, TopicPartition};
use prometheus_client::registry::Registry;
use serde_json::Map;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use plain_client::plain_client;

/// With this argument the program is the server.
const SERVE: &str = "--serve-one-answer";
const AT_ONCE: [u32; 2] = [1, 64];
const SIDES: [&str; 3] = ["reqwest alone", "our transport alone", "the whole client"];
/// Linux counts processor time in ticks of this length.
const MILLIS_PER_TICK: u64 = 10;
/// A prompt's and an answer's bytes, at most.
const BODY_BYTES_MAX: usize = 1024 * 1024;
const CHAT_PATH: &str = "/v1/chat/completions";
/// As vLLM 0.32 answers, with the load of a server where nobody waits.
const ANSWER: &str = r#"{"id":"chatcmpl-klp-documents-0-1-1-0123abcd","object":"chat.completion","created":1795421451,"model":"mistralai/Mistral-7B-Instruct-v0.2","choices":[{"index":0,"message":{"role":"assistant","content":"Revenue rose 12 % to 4.3 billion euro in the third quarter, and margins held.","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null,"routed_experts":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0","usage":{"prompt_tokens":390,"total_tokens":412,"completion_tokens":22,"prompt_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null,"metrics":null}"#;
const LOAD: &str =
    r#"JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.01}}"#;

fn main() {
    if std::env::args().any(|argument| argument == SERVE) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build();
        runtime.expect("a runtime").block_on(serve());
    } else {
        let level = std::env::var("OVERHEAD_LEVEL").map_or(LevelFilter::INFO, |level| {
            level.parse().expect("OVERHEAD_LEVEL: a level of tracing")
        });
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(std::io::sink)
            .init();
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(measure());
    }
}

/// Answers until it is killed; its first line is its address.
async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("http://{}", listener.local_addr().expect("an address"));
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        tokio::spawn(serve_connection(stream));
    }
}

async fn serve_connection(stream: TcpStream) {
    stream.set_nodelay(true).expect("an option");
    let service = service_fn(async |request: Request<hyper::body::Incoming>| {
        let is_chat = request.uri().path() == CHAT_PATH;
        axum::body::to_bytes(Body::new(request.into_body()), BODY_BYTES_MAX).await?;
        let response = Response::builder();
        // It lists no models: nobody is judged by that.
        let response = if is_chat {
            response
                .header(header::CONTENT_TYPE, "application/json")
                .header("endpoint-load-metrics", LOAD)
                .body(Body::from(ANSWER))
        } else {
            response.status(404).body(Body::empty())
        };
        Ok::<_, axum::Error>(response.expect("a response"))
    });
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A client that leaves is the end of its connection and nothing else.
    drop(served.await);
}

/// The server's process.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Self {
        let program = std::env::current_exe().expect("a program");
        let mut child = Command::new(program)
            .arg(SERVE)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdout = child.stdout.take().expect("its output");
        let line = BufReader::new(stdout).lines().next();
        let url = line.expect("a line").expect("text");
        Self { child, url }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("the server could not be ended: {error}");
        }
    }
}

/// One run of one side.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// Processor time of a call in microseconds, user and system.
    cpu_us: f64,
    /// Wall time of all calls over their number, in microseconds.
    wall_us: f64,
}

/// The three sides.
#[derive(Clone)]
struct Sides {
    reqwest: reqwest::Client,
    transport: Arc<HttpTransport>,
    client: Arc<VllmClient>,
    /// What `client` sends.
    call: Call,
    request: CompletionRequest,
}

/// Remembers the last chat completion that was sent.
#[derive(Debug)]
struct Recorded {
    inner: Arc<HttpTransport>,
    call: Mutex<Option<Call>>,
}

#[async_trait]
impl Transport for Recorded {
    async fn exchange(&self, call: Call) -> Result<Reply, TransportError> {
        if call.path == CHAT_PATH {
            *self.call.lock().expect("no panic") = Some(call.clone());
        }
        self.inner.exchange(call).await
    }
}

impl Sides {
    async fn new(url: &str, at_once: u32) -> Self {
        let at_once = usize::try_from(at_once).expect("a count");
        let config = LlmConfig {
            url: url.to_owned(),
            concurrency_max: at_once,
            ..LlmConfig::default()
        };
        let transport = Arc::new(HttpTransport::new(&config).expect("a transport"));
        let prompt = Prompt::new(&PromptConfig::default(), None).expect("a prompt");
        let context = Prompt::context(Map::new(), "document-1", KafkaContext::default());
        let sentence = "Revenue rose 12 % to 4.3 billion euro in the third quarter. ";
        let request = CompletionRequest {
            class: Class::ONLY,
            document_id: "document-1".to_owned(),
            position: SourcePosition {
                topic_partition: TopicPartition::new("documents", 0),
                offset: Offset::new(1),
            },
            scope: prompt.scope(&context),
            prompt: Arc::new(prompt),
            content: sentence.repeat(1024 / sentence.len() + 1),
            trace: Default::default(),
        };
        let client = |transport| {
            let metrics = LlmMetrics::new(&mut Registry::default());
            let client = VllmClient::new(&config, transport, metrics, &CancellationToken::new());
            Arc::new(client.expect("a client"))
        };
        let recorded = Arc::new(Recorded {
            inner: Arc::clone(&transport),
            call: Mutex::new(None),
        });
        let recording = client(Arc::<Recorded>::clone(&recorded));
        let slot = recording.admit(Class::ONLY).await;
        let completion = recording.complete(request.clone(), slot).await;
        completion.expect("an answer");
        let call = recorded.call.lock().expect("no panic").take();
        Self {
            reqwest: plain_client(at_once)
                .timeout(Duration::from_secs(30))
                .build()
                .expect("a client"),
            client: client(Arc::<HttpTransport>::clone(&transport)),
            transport,
            call: call.expect("a call"),
            request,
        }
    }

    async fn ask(&self, side: usize) {
        match side {
            0 => {
                let url = format!("{}{}", self.call.base, self.call.path);
                let sent = self
                    .reqwest
                    .post(url)
                    .header(header::CONTENT_TYPE, "application/json")
                    .headers(self.call.headers.clone())
                    .body(self.call.body.clone().expect("a body"))
                    .send();
                let bytes = sent.await.expect("an answer").bytes().await;
                assert_eq!(bytes.expect("its body").len(), ANSWER.len());
            }
            1 => {
                let reply = self.transport.exchange(self.call.clone()).await;
                assert_eq!(reply.expect("an answer").body.len(), ANSWER.len());
            }
            _ => {
                let slot = self.client.admit(Class::ONLY).await;
                let completion = self.client.complete(self.request.clone(), slot).await;
                assert_eq!(completion.expect("an answer").attempts, 1);
            }
        }
    }

    /// So many calls, shared out to so many tasks.
    async fn run(&self, side: usize, at_once: u32, calls: u32) -> Measured {
        let each = calls / at_once;
        let (began, cpu) = (Instant::now(), cpu_time());
        let mut tasks = JoinSet::new();
        for _ in 0..at_once {
            let sides = self.clone();
            tasks.spawn(async move {
                for _ in 0..each {
                    sides.ask(side).await;
                }
            });
        }
        tasks.join_all().await;
        let calls = f64::from(each * at_once);
        Measured {
            wall_us: began.elapsed().as_secs_f64() * 1e6 / calls,
            cpu_us: (cpu_time() - cpu).as_secs_f64() * 1e6 / calls,
        }
    }
}

/// The processor time that this process has used so far, its own and the kernel's for it.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    // The name, in parentheses, may hold anything; the state follows it, then ten numbers, then user and system time.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(ticks * MILLIS_PER_TICK)
}

async fn measure() {
    let rounds = number("OVERHEAD_ROUNDS").unwrap_or(9);
    let calls = number("OVERHEAD_CALLS").unwrap_or(20_000);
    println!(
        "| calls at once | side | CPU of a call | ratio | wall time ÷ calls | ratio | calls/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let only = number("OVERHEAD_SIDE").map(|side| usize::try_from(side).expect("a side"));
    let is_asked = |side: &usize| only.is_none_or(|only| only == *side);
    for at_once in AT_ONCE {
        let server = Server::start();
        let sides = Sides::new(&server.url, at_once).await;
        let mut runs = [const { Vec::new() }; SIDES.len()];
        for round in 0..=rounds {
            // Whoever comes first finds another machine than the next: they take turns.
            let first = usize::try_from(round).expect("a count");
            let turns = (first..first + SIDES.len()).map(|turn| turn % SIDES.len());
            for side in turns.filter(is_asked) {
                let run = sides.run(side, at_once, calls).await;
                eprintln!("{at_once} at once, round {round}, {}: {run:?}", SIDES[side]);
                // The first round only warms up.
                if round > 0 {
                    runs[side].push(run);
                }
            }
        }
        for side in (0..SIDES.len()).filter(is_asked) {
            println!("{}", row(at_once, side, &runs));
        }
    }
}

/// The number that an environment variable holds.
fn number(name: &str) -> Option<u32> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}: {error}")),
    )
}

/// The ratios are medians of the rounds' ratios to reqwest alone.
fn row(at_once: u32, side: usize, runs: &[Vec<Measured>; SIDES.len()]) -> String {
    let figures = |figure: fn(&Measured) -> f64| {
        let (middle, least, most) = middle(runs[side].iter().map(figure).collect());
        let plain = if runs[0].is_empty() {
            &runs[side]
        } else {
            &runs[0]
        };
        let ratios = runs[side].iter().zip(plain);
        let ratios = ratios.map(|(run, plain)| figure(run) / figure(plain));
        let ratio = self::middle(ratios.collect()).0;
        (
            middle,
            format!("{middle:.1} ({least:.1} to {most:.1}) µs | {ratio:.2}"),
        )
    };
    let (_, cpu) = figures(|run| run.cpu_us);
    let (each, wall) = figures(|run| run.wall_us);
    format!(
        "| {at_once} | {} | {cpu} | {wall} | {:.0} |",
        SIDES[side],
        1e6 / each
    )
}

/// The median, the least and the most.
fn middle(mut figures: Vec<f64>) -> (f64, f64, f64) {
    figures.sort_by(f64::total_cmp);
    (
        figures[figures.len() / 2],
        figures[0],
        figures[figures.len() - 1],
    )
}
