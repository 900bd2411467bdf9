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
//! - A JSON schema gives the simplest object of the schema's types; its other rules are not obeyed. Of a wrong schema only an unknown
//!   type is noticed. The other kinds of `structured_outputs` but `json`, `json_object` and `choice` are taken and not obeyed.
//! - What vLLM's validation lists once per branch of a union (a message, `response_format`) is listed once; JSON syntax errors have a
//!   close position. `NaN` is a syntax error here, and a finite-number error there.
//! - Headers: `server` says `simulated-vllm`, and there is no `vary`.
//! - What is not HTTP gets an empty 400; bodies over 64 MiB a 413.
//!
//! # Faults
//! [`Faults`] holds hooks that a request takes in order, and the state of the engine; [`Vllm::stop_listener`] is an outage.

mod answer;
mod chat;
mod engine;
mod faults;
mod fields;
mod metrics;
mod reply;
mod request;
mod routes;
mod seen;
mod server;
mod tokenizer;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use answer::SIMULATED;
pub use engine::Latency;
pub use faults::{Action, EngineState, Fault, Faults};
pub use seen::{SeenEnd, SeenRequest};

use engine::Engine;
use metrics::Metrics;
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
    /// Sequences that run at once; more wait. Default 256.
    pub max_num_seqs: usize,
    /// Sequences that run and wait together; more are refused with 503. Default: no bound.
    pub max_num_queued_reqs: Option<usize>,
    /// How long a call takes.
    pub latency: Latency,
    /// Whether the model's template takes a system message; the first revisions of Mistral-7B-Instruct-v0.2 do not. Default true.
    pub accepts_system_role: bool,
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
            latency: Latency::default(),
            accepts_system_role: true,
            answers: Answers::Extract,
            requests_logged: 4096,
            prompt_chars_logged: 1024,
        }
    }
}

/// A running server. Clones are handles to the same one; it ends with [`Vllm::shutdown`] or with the last handle.
#[derive(Debug, Clone)]
pub struct Vllm {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Bumped when a count or the request log changes.
    changed: watch::Receiver<u64>,
    /// The token that ends the listener and its connections; `None` while stopped.
    listener: Mutex<Option<CancellationToken>>,
    /// Parent of all listeners' tokens.
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Vllm {
    /// Starts a server; when it returns, requests are answered.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(config: VllmConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let (changes, changed) = watch::channel(0);
        let faults = Arc::new(Faults::new());
        let engine = Engine::new(
            config.latency,
            config.max_num_seqs,
            config.max_num_queued_reqs,
            faults.watch_engine(),
            changes.clone(),
        );
        let log = RequestLog::new(config.requests_logged, config.prompt_chars_logged, changes);
        let shared = Arc::new(Shared {
            config,
            engine: Arc::new(engine),
            faults,
            metrics: Metrics::default(),
            log: Arc::new(log),
            ids: AtomicU64::new(1),
        });
        let server = Self {
            inner: Arc::new(Inner {
                shared,
                address,
                changed,
                listener: Mutex::new(None),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        };
        server.accept(&mut *server.inner.listener.lock().await, listener);
        Ok(server)
    }

    fn accept(&self, current: &mut Option<CancellationToken>, listener: TcpListener) {
        let stop = self.inner.stop.child_token();
        *current = Some(stop.clone());
        let tasks = self.inner.tasks.clone();
        let shared = Arc::clone(&self.inner.shared);
        self.inner
            .tasks
            .spawn(server::accept(listener, shared, stop, tasks));
    }

    /// `http://127.0.0.1:port`, as `LLM_URL` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.inner.address)
    }

    /// Where it listens; the same after an outage.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// The fault hooks and the state of the engine.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.inner.shared.faults
    }

    /// The newest chat completions that arrived, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.inner.shared.log.requests()
    }

    /// Chat completions that arrived, answered or not.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.inner.shared.log.calls()
    }

    /// Sequences that run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.inner.shared.engine.load().running
    }

    /// Sequences that wait for a place now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.shared.engine.load().waiting
    }

    /// The most sequences that ever ran at once.
    #[must_use]
    pub fn peak_running(&self) -> usize {
        self.inner.shared.engine.load().peak_running
    }

    /// Waits until a condition on this server's counts and requests holds; false when the time has passed before.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when it is dropped.
    pub async fn wait_until(&self, within: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let mut changed = self.inner.changed.clone();
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
        let mut listener = self.inner.listener.lock().await;
        if let Some(stop) = listener.take() {
            stop.cancel();
            self.inner.tasks.close();
            self.inner.tasks.wait().await;
            self.inner.tasks.reopen();
        }
    }

    /// Ends an outage: listens again at the same address. Nothing happens when it listens.
    ///
    /// # Errors
    /// When the address cannot be listened on any more.
    ///
    /// # Cancel safety
    /// Safe: either it listens or it does not.
    pub async fn start_listener(&self) -> io::Result<()> {
        let mut current = self.inner.listener.lock().await;
        if current.is_none() && !self.inner.stop.is_cancelled() {
            let listener = TcpListener::bind(self.inner.address).await?;
            self.accept(&mut current, listener);
        }
        Ok(())
    }

    /// Ends the server for all handles and waits for its tasks.
    ///
    /// # Cancel safety
    /// Safe: the end begins with the first poll.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.stop_listener().await;
    }
}
