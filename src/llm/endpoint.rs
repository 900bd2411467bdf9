//! One model server: how it is called, what it has shown of itself, and whether it is held.
//!
//! # Invariants
//! 1. While it is held nothing but the probe is sent to it, and its lane in the pool is closed.
//! 2. Whether it is held is its breaker's decision; gate and lane follow it under the same lock, so that they never say otherwise.

mod keeper;
mod request;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::adaptive::{Bounds, Controller};
use super::api::{self, Answer, CHAT_PATH, MODELS_PATH, TOKENIZE_PATH, TokenizeRequest};
use super::auth::Authorization;
use super::breaker::{Breaker, Change};
use super::classify::{self, Failure, Target};
use super::gate::{Gate, Hold, JointGate, Turn};
use super::metrics::LlmMetrics;
use super::pool::Pool;
use super::suspicion::Shown;
use super::transport::{Call, Reply, Transport, TransportError};
use super::{AnswerSchema, BreakerState, Concurrency, LlmConfig, LlmError, Message, ServedModel};
use crate::clock;
use crate::spans::TraceHeaders;

use self::request::{ByShape, Parameters};

pub(super) use self::request::Shape;

/// The longest that listing the models may take; it decides nothing when it takes longer.
const MODELS_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest that counting tokens may take: a megabyte of text takes some tenths of a second where the server has little to do.
const TOKENIZE_TIMEOUT: Duration = Duration::from_secs(10);

/// Header of a request's name, from client to server and back in the answer's `id`.
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Asks for the server's load beside the answer, in the header `endpoint-load-metrics`.
static LOAD_FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
/// W3C trace context.
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What all endpoints of a client share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) authorization: Authorization,
    pub(super) parameters: Parameters,
    /// What answers must look like: the probe asks for it too, as a server may refuse it.
    schema: Option<Arc<AnswerSchema>>,
    pub(super) pool: Arc<Pool>,
    pub(super) joint: JointGate,
    pub(super) metrics: LlmMetrics,
    /// Told of each answered document and of each change of a breaker, for those who wait for a verdict.
    pub(super) news: Notify,
    /// How many endpoints there are, for what is told of one of them.
    endpoints: usize,
    /// The longest that a probe may take.
    timeout: Duration,
    /// Whether documents are asked about without a system message, and whether with one: a chat template may refuse it.
    asked_as: ByShape<AtomicBool>,
    /// How many endpoints were asked for their models at the start, whatever they said. The keepers send; documents wait for it, as
    /// before nobody knows what is too long.
    looked_at: watch::Sender<usize>,
}

impl Common {
    /// # Errors
    /// When a setting or a file that it names is of no use.
    pub(super) fn new(
        config: &LlmConfig,
        schema: Option<Arc<AnswerSchema>>,
        endpoints: usize,
        transport: Arc<dyn Transport>,
        metrics: LlmMetrics,
    ) -> Result<Self, LlmError> {
        Ok(Self {
            transport,
            authorization: Authorization::new(config)?,
            parameters: Parameters::new(config),
            schema,
            pool: Arc::new(Pool::new(&vec![config.concurrency_initial(); endpoints])),
            joint: JointGate::new(endpoints),
            metrics,
            news: Notify::new(),
            endpoints,
            timeout: config.timeout,
            asked_as: ByShape::default(),
            looked_at: watch::Sender::new(0),
        })
    }

    /// An endpoint was asked for its models, or will not be.
    fn note_look(&self) {
        self.looked_at.send_modify(|endpoints| *endpoints += 1);
    }

    /// Waits until `told`, or until each endpoint was asked.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub(super) async fn looked_at(&self, told: impl Fn() -> bool) {
        let mut looked_at = self.looked_at.subscribe();
        let is_done = |endpoints: &usize| *endpoints >= self.endpoints || told();
        // The sender is ours.
        let _closed = looked_at.wait_for(is_done).await.is_err();
    }

    /// Documents are asked about in that shape.
    pub(super) fn note_shape(&self, shape: Shape) {
        self.asked_as.of(shape).store(true, Ordering::Relaxed);
    }

    /// What a probe asks like that speaks for the server as a whole: with a system message only where no document is asked about without one.
    pub(super) fn plainest(&self) -> Shape {
        let ByShape { plain, with_system } = &self.asked_as;
        if with_system.load(Ordering::Relaxed) && !plain.load(Ordering::Relaxed) {
            Shape::WithSystem
        } else {
            Shape::Plain
        }
    }

    /// Shows whether the work as a whole stands still.
    pub(super) fn turned(&self, turn: &Turn) {
        match turn {
            Turn::Began => self.metrics.hold_began(),
            Turn::Ended(hold) => self.metrics.hold_ended(hold.began.elapsed()),
            Turn::None => {}
        }
    }
}

/// An answer, and what came with it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) answer: Answer,
    /// Requests that wait in the server, where it tells.
    pub(super) waiting: Option<f64>,
}

/// What calls to one endpoint have shown, over all documents.
#[derive(Debug)]
struct Record {
    breaker: Breaker,
    /// When the call began that began last among those that succeeded. Not when it ended: a server that shuts down answers what it has and
    /// refuses what is new.
    last_success: Option<Instant>,
    /// The same of documents alone.
    last_answer: Option<Instant>,
    /// The same of probes, by shape.
    last_probes: ByShape<Option<Instant>>,
}

/// One server.
#[derive(Debug)]
pub(super) struct Endpoint {
    common: Arc<Common>,
    /// Its number, which is that of its lane in the pool.
    index: usize,
    url: Arc<str>,
    gate: Gate,
    record: Mutex<Record>,
    /// What the server says of the model's context, in tokens; 0 while it is not known.
    context: AtomicU64,
    /// Requests that wait in the server, as it told last; `u64::MAX` while it has not told.
    queued_there: AtomicU64,
    /// How many calls may run at once, where that is for the server to show.
    controller: Option<Mutex<Controller>>,
    /// Whether what `/health` says agreed with the probe the last time.
    health_is_believed: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(config: &LlmConfig, common: Arc<Common>, index: usize, url: String) -> Self {
        let record = Record {
            breaker: Breaker::new(format!("{url} (LLM_URL)")),
            last_success: None,
            last_answer: None,
            last_probes: ByShape::default(),
        };
        Self {
            common,
            index,
            url: url.into(),
            gate: Gate::new(),
            record: Mutex::new(record),
            context: AtomicU64::new(0),
            queued_there: AtomicU64::new(u64::MAX),
            controller: (config.concurrency == Concurrency::Adaptive).then(|| {
                let bounds = Bounds {
                    initial: config.concurrency_initial(),
                    min: 1,
                    max: config.concurrency_max,
                };
                Mutex::new(Controller::new(bounds, Instant::now()))
            }),
            health_is_believed: AtomicBool::new(true),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn breaker(&self) -> BreakerState {
        self.record().breaker.state()
    }

    pub(super) const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What the server says of the model's context, in tokens.
    pub(super) fn context(&self) -> Option<u64> {
        Some(self.context.load(Ordering::Relaxed)).filter(|tokens| *tokens > 0)
    }

    /// Requests that wait in the server, as it told last.
    pub(super) fn queued_there(&self) -> Option<u64> {
        let queued = self.queued_there.load(Ordering::Relaxed);
        (queued < u64::MAX).then_some(queued)
    }

    fn target(&self) -> Target<'_> {
        Target {
            url: &self.url,
            model: &self.common.parameters.model,
        }
    }

    /// What it has shown since the start.
    pub(super) fn shown(&self) -> Shown {
        let record = self.record();
        Shown {
            outages: record.breaker.outages(),
            last_success: record.last_success,
            last_answer: record.last_answer,
        }
    }

    /// When the last of the probes of that shape that succeeded began.
    pub(super) fn last_probe(&self, shape: Shape) -> Option<Instant> {
        *self.record().last_probes.of(shape)
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A document's call that was sent at `sent` was answered.
    pub(super) fn note_answer(&self, sent: Instant) {
        self.note_success(sent);
        let mut record = self.record();
        record.last_answer = record.last_answer.max(Some(sent));
    }

    /// A probe that was sent at `sent` succeeded.
    fn note_probe(&self, sent: Instant, shape: Shape) {
        let mut record = self.record();
        let last = record.last_probes.of_mut(shape);
        *last = (*last).max(Some(sent));
        drop(record);
        self.note_success(sent);
    }

    /// A call that was sent at `sent` succeeded, be it a probe.
    fn note_success(&self, sent: Instant) {
        let mut record = self.record();
        record.breaker.on_success(sent);
        record.last_success = record.last_success.max(Some(sent));
    }

    /// A call that was sent at `sent` failed; holds the endpoint when that is its fault or one of too many.
    pub(super) fn note_failure(&self, sent: Instant, failure: &Failure) {
        let (fault, detail) = (failure.fault, &failure.detail);
        self.change(|breaker| breaker.on_failure(Instant::now(), sent, fault, detail));
    }

    /// Whether its limit is found out.
    pub(super) const fn is_adaptive(&self) -> bool {
        self.controller.is_some()
    }

    /// Lets the controller learn from a call, and the lane follow it.
    pub(super) fn adapt(&self, learn: impl FnOnce(&mut Controller)) {
        let Some(controller) = &self.controller else {
            return;
        };
        let mut controller = controller.lock().unwrap_or_else(PoisonError::into_inner);
        let before = controller.limit();
        learn(&mut controller);
        let limit = controller.limit();
        if limit != before {
            // Under the lock, so that two changes cannot overtake each other.
            self.common.pool.set_limit(self.index, limit);
            self.common.metrics.endpoint_limit(&self.url, limit);
        }
    }

    /// Holds the endpoint, if it is not held already. What is told of it is the keeper's business.
    pub(super) fn hold(&self, reason: &str) {
        self.change(|breaker| breaker.open(Instant::now(), reason));
    }

    /// Ends the hold after a probe that was sent at `sent` and succeeded.
    fn release(&self, sent: Instant, shape: Shape) -> Option<Hold> {
        // Before the end: a document that wakes must see that the probe succeeded.
        self.note_probe(sent, shape);
        let hold = self.gate.current();
        let change = self.change(|breaker| breaker.probe_succeeded(Instant::now()));
        hold.filter(|_| matches!(change, Change::Closed { .. }))
    }

    /// Changes the breaker, and with it the gate and the lane.
    fn change(&self, change: impl FnOnce(&mut Breaker) -> Change) -> Change {
        let mut record = self.record();
        let change = change(&mut record.breaker);
        let reason = record.breaker.reason();
        match change {
            Change::Opened => {
                self.gate.hold(reason.unwrap_or_default());
                self.common.pool.set_closed(self.index, true);
                self.show(reason);
            }
            Change::StaysOpen {
                explained: true, ..
            } => {
                self.gate.explain(reason.unwrap_or_default());
                self.show(reason);
            }
            Change::Closed { confirmed, .. } => {
                if confirmed {
                    self.adapt(|controller| controller.reset(Instant::now()));
                }
                // The lane first: a document that the gate wakes must find it open.
                self.common.pool.set_closed(self.index, false);
                drop(self.gate.release());
                self.show(None);
            }
            Change::Nothing | Change::StaysOpen { .. } => {}
        }
        drop(record);
        if change != Change::Nothing {
            self.common.news.notify_waiters();
        }
        change
    }

    fn show(&self, reason: Option<&str>) {
        let common = &self.common;
        common.metrics.endpoint_held(&self.url, reason.is_some());
        common.turned(&common.joint.set_endpoint(self.index, reason));
    }

    async fn exchange(&self, call: Call, within: Duration) -> Result<Reply, Failure> {
        timeout(within, self.common.transport.exchange(call))
            .await
            .unwrap_or(Err(TransportError::TimedOut))
            .map_err(|error| classify::transport(self.target(), &error))
    }

    /// Servers repeat what they were sent, the key too: also in pieces that only the sentence puts together.
    fn redacted(&self, failure: Failure) -> Failure {
        Failure {
            detail: self.common.authorization.redact(failure.detail),
            ..failure
        }
    }

    fn get(&self, path: &'static str) -> Call {
        let mut headers = HeaderMap::new();
        if let Some(key) = self.common.authorization.header() {
            headers.insert(AUTHORIZATION, key);
        }
        Call {
            base: Arc::clone(&self.url),
            path,
            headers,
            body: None,
        }
    }

    /// One chat completion.
    pub(super) async fn chat(
        &self,
        body: Bytes,
        request_id: &str,
        trace: Option<&TraceHeaders>,
        within: Duration,
    ) -> Result<Answered, Failure> {
        let mut headers = HeaderMap::with_capacity(6);
        if let Some(key) = self.common.authorization.header() {
            headers.insert(AUTHORIZATION, key);
        }
        if let Ok(value) = HeaderValue::from_str(request_id) {
            headers.insert(REQUEST_ID.clone(), value);
        }
        if let Some(trace) = trace {
            let mut set = |name: &HeaderName, value: &str| {
                if let Ok(value) = HeaderValue::from_str(value) {
                    headers.insert(name.clone(), value);
                }
            };
            set(&TRACEPARENT, &trace.traceparent);
            if let Some(state) = &trace.tracestate {
                set(&TRACESTATE, state);
            }
        }
        if self.controller.is_some() {
            headers.insert(LOAD_FORMAT.clone(), HeaderValue::from_static("JSON"));
        }
        let call = Call {
            base: Arc::clone(&self.url),
            path: CHAT_PATH,
            headers,
            body: Some(body),
        };
        let reply = self.exchange(call, within).await?;
        let answer = classify::reply(
            self.target(),
            reply.status,
            &reply.headers,
            &reply.body,
            clock::now(),
            |said| self.common.authorization.redact(said),
        )
        .map_err(|failure| self.redacted(failure))?;
        let waiting = api::read_waiting(&reply.headers);
        if let Some(waiting) = waiting {
            self.queued_there.store(whole(waiting), Ordering::Relaxed);
        }
        Ok(Answered { answer, waiting })
    }

    /// Lists the served models: reachable, right key, right model, room for the answer. A server that has no such list is not
    /// judged by it (`None`).
    pub(super) async fn models(&self) -> Result<Option<Vec<ServedModel>>, Failure> {
        let reply = self.exchange(self.get(MODELS_PATH), MODELS_TIMEOUT).await?;
        match reply.status {
            200 => Ok(api::read_models(&reply.body)),
            401 | 403 | 407 => classify::reply(
                self.target(),
                reply.status,
                &reply.headers,
                &reply.body,
                clock::now(),
                |said| self.common.authorization.redact(said),
            )
            .map(|_| None)
            .map_err(|failure| self.redacted(failure)),
            _ => Ok(None),
        }
    }

    /// Asks what the model's context is. A server that does not tell, or not now, leaves it unknown.
    pub(super) async fn learn_context(&self) {
        if let Ok(Some(models)) = self.models().await {
            drop(self.objection(&models));
        }
    }

    /// Tokens of these messages as the server counts them; `None` when it cannot tell.
    pub(super) async fn count_tokens(&self, messages: &[Message]) -> Option<u64> {
        let body = serde_json::to_vec(&TokenizeRequest {
            model: &self.common.parameters.model,
            messages,
        });
        let call = Call {
            body: Some(body.ok()?.into()),
            ..self.get(TOKENIZE_PATH)
        };
        let reply = self.exchange(call, TOKENIZE_TIMEOUT).await.ok()?;
        (reply.status == 200)
            .then(|| api::read_count(&reply.body))
            .flatten()
    }

    /// What the list of models says against our settings.
    pub(super) fn objection(&self, models: &[ServedModel]) -> Option<String> {
        let Parameters {
            model, max_tokens, ..
        } = &self.common.parameters;
        let Some(served) = models.iter().find(|served| served.id == *model) else {
            let unknown = classify::unknown_model(self.target(), Some(models));
            return Some(self.common.authorization.redact(unknown));
        };
        let context = served.max_model_len?;
        self.context.store(context, Ordering::Relaxed);
        (u64::from(*max_tokens) > context).then(|| {
            format!(
                "llm.max_tokens = {max_tokens} is more than the {context} tokens of context of `{model}` at {}: lower llm.max_tokens",
                self.url
            )
        })
    }
}

/// A count that a server tells as a number with a fraction.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped, and a count"
)]
fn whole(count: f64) -> u64 {
    count.clamp(0.0, 1e9) as u64
}

/// Eight characters that tell two attempts of one name apart, also over restarts.
pub(super) fn short_random() -> String {
    let mut text = uuid::Uuid::new_v4().simple().to_string();
    text.truncate(8);
    text
}
