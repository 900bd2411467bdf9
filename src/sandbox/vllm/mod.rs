//! A simulated vLLM: an HTTP server that answers as vLLM 0.32 does, without a model.
//!
//! It is for `quickstart`, `sandbox`, examples and tests. Statuses, error bodies, the keys of answers and their order, limits and
//! the behaviour of connections follow vLLM 0.32.0; what was compared with a running one, and what differs, is listed below. Its
//! answers are extracts of the document behind the words [`SIMULATED`].
//!
//! # Compared
//! 112 requests of every kind were sent to this server and to vLLM 0.32.0 (CPU build, the same context, a tiny model): 99 answers had
//! the same status, headers and body, or, for a success, the same keys in the same order with the same types. The refusals of the
//! chat template were compared under the template of the first revisions of Mistral-7B-Instruct-v0.2. The rest differed as follows.
//!
//! # Not the same as vLLM
//! - Served: `/v1/chat/completions`, `/v1/models`, `/health`, `/ping`, `/version`, `/load`, `/metrics`, `/tokenize`,
//!   `/detokenize`. Nothing else, and no streaming (501).
//! - Sampling parameters are checked and have no effect. `logprobs`, `tools`, `min_tokens`, `truncate_prompt_tokens` and whatever is
//!   not read in `request.rs` are ignored, as vLLM ignores unknown fields.
//! - The tokenizer is a stand-in (`tokenizer.rs`): other counts, and a prompt is refused by its characters from 7 per token on (vLLM:
//!   the longest token of the model's vocabulary).
//! - A JSON schema gives the simplest instance; which keywords it obeys is said in `schema.rs`. Of a wrong schema only an unknown
//!   outermost type is noticed. The other kinds of `structured_outputs` but `json`, `json_object` and `choice` are taken and not
//!   obeyed.
//! - The time of a call is known when it begins: who comes later does not slow it down ([`Latency`]). KV cache has no end, and
//!   nothing is preempted.
//! - `endpoint-load-metrics` is sent as JSON, not as text, and tells the load at the end of the call, where vLLM tells that of its
//!   engine's last step.
//! - While the server drains, a new call is refused before its prompt is looked at; the body of the refusal for
//!   `max_num_queued_tokens` and the answer while scaling were read in vLLM's source, not compared.
//! - A server whose engine dies closes its port at once and its connections after their answers, 3 s later at most. No answer with
//!   `abort` comes out of a death, which vLLM's shutdown can do by race.
//! - What vLLM's validation lists once per branch of a union (a message, `response_format`) is listed once; JSON syntax errors have a
//!   close position. `NaN` is a syntax error here, and a finite-number error there.
//! - Requests may have 16 MiB and 4096 lines of headers (vLLM: no bound); more is a 431.
//! - Headers: `server` says `simulated-vllm`, and there is no `vary`.
//! - What is not HTTP gets an empty 400; bodies over 64 MiB a 413.
//!
//! # Faults
//! [`Faults`] holds hooks that a request takes in order, and the state of the engine; [`Vllm::stop_listener`] is an outage,
//! [`Vllm::kill_engine`] a crash, [`Vllm::drain`] a stop that waits, and [`Vllm::set_max_num_seqs`] changes what it can carry.

mod answer;
mod chat;
mod engine;
mod faults;
mod fields;
mod metrics;
mod process;
mod reply;
mod request;
mod routes;
mod schema;
mod seen;
mod server;
mod slots;
mod tokenizer;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

pub use answer::SIMULATED;
pub use engine::Latency;
pub use faults::{Action, EngineState, Fault, Faults};
pub use seen::{SeenEnd, SeenRequest};

use engine::{Engine, QueueBounds};
use metrics::Metrics;
use process::Process;
use seen::RequestLog;
use server::Shared;

/// Path of chat completions.
pub const CHAT_PATH: &str = "/v1/chat/completions";
/// The model that is served unless another is named.
pub const DEFAULT_MODEL: &str = "mistralai/Mistral-7B-Instruct-v0.2";

/// What the simulated model says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Answers {
    /// An extract of the document, behind [`SIMULATED`].
    #[default]
    Extract,
    /// Always this.
    Fixed(String),
}

/// How the server is set up. The names are those of vLLM's flags where it has them.
#[derive(Debug, Clone)]
pub struct VllmConfig {
    /// Where it listens; port 0 (default) takes a free one of 127.0.0.1.
    pub listen: SocketAddr,
    /// Served model names; the first one is the `model` of every answer. Default [`DEFAULT_MODEL`].
    pub models: Vec<String>,
    /// The context in tokens, prompt and answer together. Default 32768.
    pub max_model_len: usize,
    /// When set, paths under `/v1` need `Authorization: Bearer` with it.
    pub api_key: Option<String>,
    /// Sequences that run at once, at least one; more wait. [`Vllm::set_max_num_seqs`] changes it. Default 256.
    pub max_num_seqs: usize,
    /// Sequences that run and wait together; more are refused with 503. Default: no bound.
    pub max_num_queued_reqs: Option<usize>,
    /// Prompt tokens of calls that wait or are in their prefill; while there are so many, calls are refused with 503. Default: no
    /// bound.
    pub max_num_queued_tokens: Option<usize>,
    /// How long a call takes.
    pub latency: Latency,
    /// Whether the model's template takes a system message; the first revisions of Mistral-7B-Instruct-v0.2 do not. Default true.
    pub accepts_system_role: bool,
    /// Whether it tells its load, in the gauges of `/metrics` and in the header `endpoint-load-metrics` for who asks. An older
    /// server, or a proxy in front of several, does not. Default true.
    pub reports_load: bool,
    /// Whether `/tokenize` and `/detokenize` exist; a proxy may pass `/v1` only. Default true.
    pub serves_tokenize: bool,
    /// What the model says.
    pub answers: Answers,
    /// Requests that [`Vllm::requests`] remembers. Default 4096.
    pub requests_logged: usize,
    /// Characters of each prompt that it remembers. Default 1024.
    pub prompt_chars_logged: usize,
}

impl Default for VllmConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            models: vec![DEFAULT_MODEL.to_owned()],
            max_model_len: 32768,
            api_key: None,
            max_num_seqs: 256,
            max_num_queued_reqs: None,
            max_num_queued_tokens: None,
            latency: Latency::default(),
            accepts_system_role: true,
            reports_load: true,
            serves_tokenize: true,
            answers: Answers::Extract,
            requests_logged: 4096,
            prompt_chars_logged: 1024,
        }
    }
}

/// A running server. Clones are handles to the same one; it ends with [`Vllm::shutdown`] or with the last handle.
#[derive(Debug, Clone)]
pub struct Vllm {
    process: Arc<Process>,
}

impl Vllm {
    /// Starts a server; when it returns, requests are answered.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(config: VllmConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let changed = watch::Sender::new(0);
        let faults = Arc::new(Faults::new(changed.clone()));
        let engine = Engine::new(
            config.latency,
            config.max_num_seqs,
            QueueBounds {
                requests_max: config.max_num_queued_reqs,
                tokens_max: config.max_num_queued_tokens,
            },
            faults.watch_engine(),
            changed.clone(),
        );
        let log = RequestLog::new(
            config.requests_logged,
            config.prompt_chars_logged,
            changed.clone(),
        );
        // An engine dies once before it serves again: one place is enough.
        let (deaths, told_deaths) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            config,
            engine: Arc::new(engine),
            faults,
            metrics: Metrics::default(),
            log: Arc::new(log),
            ids: AtomicU64::new(1),
            deaths,
        });
        let process = Process::start(shared, listener, changed, told_deaths).await?;
        Ok(Self { process })
    }

    /// `http://127.0.0.1:port`, as `LLM_URL` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.process.address)
    }

    /// Where it listens; the same after an outage.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.process.address
    }

    /// The fault hooks and the state of the engine.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.process.shared.faults
    }

    /// The newest chat completions that arrived, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.process.shared.log.requests()
    }

    /// Chat completions that arrived, answered or not.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.process.shared.log.calls()
    }

    /// Sequences that run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.process.shared.engine.load().running
    }

    /// Sequences that wait for a place now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.process.shared.engine.load().waiting
    }

    /// The most sequences that ever ran at once.
    #[must_use]
    pub fn peak_running(&self) -> usize {
        self.process.shared.engine.load().peak_running
    }

    /// Times that the engine has died: by a hook, by [`Vllm::kill_engine`] or by [`Faults::set_engine`].
    #[must_use]
    pub fn engine_deaths(&self) -> u64 {
        self.process.shared.faults.deaths()
    }

    /// Whether connections are accepted; false between an outage's or a death's last connection and the new start.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.process.listens()
    }

    /// Changes how many sequences run at once, at least one. When they become fewer those that run finish; when they become more
    /// those that wait begin at once.
    pub fn set_max_num_seqs(&self, max_num_seqs: usize) {
        self.process.shared.engine.set_max_num_seqs(max_num_seqs);
    }

    /// A stop that waits (SIGTERM with `--shutdown-timeout`): calls that were taken end as usual, new ones are refused with 500, and
    /// `/health` stays 200, until [`Vllm::stop_listener`]. [`Vllm::start_listener`] serves again.
    pub fn drain(&self) {
        self.faults().set_engine(EngineState::Draining);
    }

    /// A crash (or SIGTERM without `--shutdown-timeout`): as [`Action::KillEngine`], now. Nothing happens when it is dead.
    pub fn kill_engine(&self, restart_after: Option<Duration>) {
        self.process.shared.kill_engine(restart_after);
    }

    /// Waits until a condition on this server's counts and requests holds; false when the time has passed before.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when it is dropped.
    pub async fn wait_until(&self, within: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let mut changed = self.process.changed.subscribe();
        let reached = async {
            loop {
                changed.mark_unchanged();
                if condition(self) {
                    return;
                }
                if changed.changed().await.is_err() {
                    // Nothing changes any more, and the condition does not hold.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(within, reached).await.is_ok()
    }

    /// An outage: connections are cut, their requests end, and new connections are refused. Nothing happens when it is stopped.
    ///
    /// # Cancel safety
    /// Safe: the outage begins with the first poll.
    pub async fn stop_listener(&self) {
        self.process.stop_listener().await;
    }

    /// Ends an outage: a new process listens at the same address. Its counters of `/metrics` begin at nothing, and an engine that was
    /// dead or drained serves. Nothing happens when it listens.
    ///
    /// # Errors
    /// When the address cannot be listened on any more.
    ///
    /// # Cancel safety
    /// Safe: either it listens or it does not.
    pub async fn start_listener(&self) -> io::Result<()> {
        self.process.start_listener().await
    }

    /// Ends the server for all handles and waits for its tasks.
    ///
    /// # Cancel safety
    /// Safe: the end begins with the first poll.
    pub async fn shutdown(&self) {
        self.process.shutdown().await;
    }
}
