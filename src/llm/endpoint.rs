//! One model server: how it is called, what it has shown of itself, and whether it is held.
//!
//! # Invariants
//! 1. While it is held nothing but the probe is sent to it, and its lane in the pool is closed.
//! 2. A hold ends by a probe that went well: a chat completion of one token with the parameters that documents use. It is tried at
//!    once and then at least every second or so.
//! 3. Whether it is held is its breaker's decision; gate and lane follow it under the same lock, so that they never say otherwise.
//! 4. `/health` is asked every [`HEALTH_EVERY`] while it is not held: an engine that died while nobody called is known before the next
//!    document. What it says is not believed while the probe says otherwise.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::api::{
    self, Answer, CHAT_PATH, ChatRequest, HEALTH_PATH, MODELS_PATH, TOKENIZE_PATH, TokenizeRequest,
};
use super::auth::Authorization;
use super::breaker::{Breaker, Change};
use super::classify::{self, Failure, Fault, Target};
use super::gate::{Gate, Hold, JointGate, Turn};
use super::metrics::LlmMetrics;
use super::pool::Pool;
use super::suspicion::Shown;
use super::transport::{Call, Reply, Transport, TransportError};
use super::{AnswerSchema, LlmConfig, LlmError, Message, ServedModel};
use crate::clock;
use crate::retry::Backoff;

/// Ceilings of the waits between two probes.
const PROBE_WAIT_INITIAL: Duration = Duration::from_millis(250);
/// See [`PROBE_WAIT_INITIAL`]; with the probe itself it must stay below the two seconds in which work resumes.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(1);
/// The longest that listing the models may take; it decides nothing when it takes longer.
const MODELS_TIMEOUT: Duration = Duration::from_secs(2);
/// A hold whose first probe neither succeeds nor fails is reported after this.
const FIRST_REPORT_AFTER: Duration = Duration::from_secs(1);
/// How often a hold is reported.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// How often `/health` is asked while the endpoint is not held.
const HEALTH_EVERY: Duration = Duration::from_secs(5);
/// The longest that counting tokens may take: a megabyte of text takes some tenths of a second where the server has little to do.
const TOKENIZE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that an answer of `/health` may take; it decides nothing when it takes longer.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Header of a request's name, from client to server and back in the answer's `id`.
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C trace context.
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The request parameters that every document shares.
#[derive(Debug, Clone)]
pub(super) struct Parameters {
    pub(super) model: String,
    pub(super) temperature: f64,
    pub(super) top_p: Option<f64>,
    pub(super) seed: Option<i64>,
    pub(super) max_tokens: u32,
}

impl Parameters {
    pub(super) fn new(config: &LlmConfig) -> Self {
        Self {
            model: config.model.clone(),
            temperature: config.temperature,
            top_p: config.top_p,
            seed: config.seed,
            max_tokens: config.max_tokens,
        }
    }

    /// A request body. Messages are text and numbers are finite, so writing it cannot fail; an empty body would be refused.
    pub(super) fn body(
        &self,
        messages: &[Message],
        max_tokens: u32,
        response_format: Option<&RawValue>,
    ) -> Bytes {
        let request = ChatRequest {
            model: &self.model,
            messages,
            temperature: self.temperature,
            max_tokens,
            top_p: self.top_p,
            seed: self.seed,
            response_format,
        };
        serde_json::to_vec(&request).map_or_else(|_error| Bytes::new(), Bytes::from)
    }
}

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
    /// How many endpoints there are, for what is told of one of them.
    endpoints: usize,
    /// The longest that a probe may take.
    timeout: Duration,
    /// Whether documents are asked about with a system message: the probe must then have one too, as a chat template may refuse it.
    with_system: AtomicBool,
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
            pool: Arc::new(Pool::new(&vec![config.concurrency; endpoints])),
            joint: JointGate::new(endpoints),
            metrics,
            endpoints,
            timeout: config.timeout,
            with_system: AtomicBool::new(false),
        })
    }

    /// Documents are asked about with a system message: so must the probe be.
    pub(super) fn note_system(&self) {
        self.with_system.store(true, Ordering::Relaxed);
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

/// What calls to one endpoint have shown, over all documents.
#[derive(Debug)]
struct Record {
    breaker: Breaker,
    /// When the call began that began last among those that succeeded. Not when it ended: a server that shuts down answers what it has and
    /// refuses what is new.
    last_success: Option<Instant>,
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
    /// Whether what `/health` says agreed with the probe the last time.
    health_is_believed: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(common: Arc<Common>, index: usize, url: String) -> Self {
        let record = Record {
            breaker: Breaker::new(format!("{url} (LLM_URL)")),
            last_success: None,
        };
        Self {
            common,
            index,
            url: url.into(),
            gate: Gate::new(),
            record: Mutex::new(record),
            context: AtomicU64::new(0),
            health_is_believed: AtomicBool::new(true),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What the server says of the model's context, in tokens.
    pub(super) fn context(&self) -> Option<u64> {
        Some(self.context.load(Ordering::Relaxed)).filter(|tokens| *tokens > 0)
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
        }
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that was sent at `sent` was answered.
    pub(super) fn note_success(&self, sent: Instant) {
        let mut record = self.record();
        record.breaker.on_success(sent);
        record.last_success = record.last_success.max(Some(sent));
    }

    /// A call that was sent at `sent` failed; holds the endpoint when that is its fault or one of too many.
    pub(super) fn note_failure(&self, sent: Instant, failure: &Failure) {
        let (fault, detail) = (failure.fault, &failure.detail);
        self.change(|breaker| breaker.on_failure(Instant::now(), sent, fault, detail));
    }

    /// Holds the endpoint, if it is not held already. What is told of it is the keeper's business.
    pub(super) fn hold(&self, reason: &str) {
        self.change(|breaker| breaker.open(Instant::now(), reason));
    }

    /// Ends the hold after a probe that was sent at `sent` and succeeded.
    fn release(&self, sent: Instant) -> Option<Hold> {
        // Before the end: a document that wakes must see that the probe succeeded.
        self.note_success(sent);
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
            Change::Closed { .. } => {
                drop(self.gate.release());
                self.show(None);
                self.common.pool.set_closed(self.index, false);
            }
            Change::Nothing | Change::StaysOpen { .. } => {}
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
        traceparent: Option<&str>,
        within: Duration,
    ) -> Result<Answer, Failure> {
        let mut headers = HeaderMap::with_capacity(4);
        if let Some(key) = self.common.authorization.header() {
            headers.insert(AUTHORIZATION, key);
        }
        if let Ok(value) = HeaderValue::from_str(request_id) {
            headers.insert(REQUEST_ID.clone(), value);
        }
        if let Some(Ok(value)) = traceparent.map(HeaderValue::from_str) {
            headers.insert(TRACEPARENT.clone(), value);
        }
        let call = Call {
            base: Arc::clone(&self.url),
            path: CHAT_PATH,
            headers,
            body: Some(body),
        };
        let reply = self.exchange(call, within).await?;
        classify::reply(
            self.target(),
            reply.status,
            &reply.headers,
            &reply.body,
            clock::now(),
        )
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
            )
            .map(|_| None),
            _ => Ok(None),
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
            return Some(classify::unknown_model(self.target(), Some(models)));
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

    /// Finds out whether a document would be answered now.
    ///
    /// # Errors
    /// The failure, with the setting to change in its sentence.
    pub(super) async fn probe(&self) -> Result<Option<ServedModel>, Failure> {
        // A list that does not come in time or fails on the server's side decides nothing: the completion does.
        let models = match self.models().await {
            Ok(models) => models,
            Err(failure) if failure.fault == Fault::Endpoint => return Err(failure),
            Err(_undecided) => None,
        };
        let objection = models.as_deref().and_then(|models| self.objection(models));
        let found = models.unwrap_or_default();
        let served = found
            .into_iter()
            .find(|served| served.id == self.common.parameters.model);
        if let (Some(_known), Some(objection)) = (&served, &objection) {
            return Err(setup_failure(objection));
        }
        let result = match self.probe_chat().await {
            Err(failure) if failure.fault == Fault::Disconnected => self.probe_chat().await,
            result => result,
        };
        match (result, objection) {
            (Ok(()), _) => Ok(served),
            // The list says which names there are, the refusal does not.
            (Err(failure), Some(objection)) if failure.fault == Fault::Endpoint => {
                Err(setup_failure(&objection))
            }
            (Err(failure), _) => Err(failure),
        }
    }

    async fn probe_chat(&self) -> Result<(), Failure> {
        let message = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let mut messages = Vec::with_capacity(2);
        if self.common.with_system.load(Ordering::Relaxed) {
            messages.push(message("system", "Answer briefly."));
        }
        messages.push(message("user", "Are you there?"));
        let request_id = format!("klp-probe-{}", short_random());
        let schema = self.common.schema.as_ref();
        let format = schema.map(|schema| &**schema.response_format());
        let body = self.common.parameters.body(&messages, 1, format);
        match self
            .chat(body, &request_id, None, self.common.timeout)
            .await
        {
            Ok(_answer) => Ok(()),
            // The one token of a reasoning model is no text, and still an answer.
            Err(failure) if failure.fault == Fault::Empty => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Probes while the work is held, tells of it, and lets it flow again. Ends at shutdown.
    pub(super) async fn keep(&self, shutdown: CancellationToken) {
        let work = async {
            self.look_at_start().await;
            loop {
                self.watch_health().await;
                self.keep_one_hold().await;
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    /// Lists the models once at the start, so that a wrong setting is told before the first document comes.
    async fn look_at_start(&self) {
        match self.models().await {
            Ok(Some(models)) => match self.objection(&models) {
                Some(objection) => self.hold(&objection),
                None => tracing::info!(
                    url = %self.url, model = %self.common.parameters.model, "the model server is ready"
                ),
            },
            Ok(None) => {}
            // Also one that accepts connections and says nothing: whether it answers documents is for the probe to find out.
            Err(failure) => self.hold(&failure.detail),
        }
    }

    /// Asks for `/health` now and then, until the endpoint is held.
    async fn watch_health(&self) {
        loop {
            tokio::select! {
                biased;
                () = self.gate.held() => return,
                () = sleep(HEALTH_EVERY) => {}
            }
            // Its calls say enough, and a busy front end has better things to do.
            let called = self.record().last_success;
            if called.is_some_and(|at| at.elapsed() < HEALTH_EVERY) {
                continue;
            }
            let asked = self.exchange(self.get(HEALTH_PATH), HEALTH_TIMEOUT).await;
            let is_believed = self.health_is_believed.load(Ordering::Relaxed);
            match asked {
                Ok(reply) if reply.status == 200 => {
                    self.health_is_believed.store(true, Ordering::Relaxed);
                }
                Ok(reply) if reply.status >= 500 && is_believed => {
                    // Until a 200 comes: where the probe succeeds all the same, this would only hold and release in turn.
                    self.health_is_believed.store(false, Ordering::Relaxed);
                    let (url, status) = (&self.url, reply.status);
                    self.hold(&format!(
                        "{url}{HEALTH_PATH} answers with status {status}: vLLM's engine has died or is starting"
                    ));
                }
                // Not every OpenAI-compatible server has it.
                Ok(_) => {}
                Err(failure) if failure.fault == Fault::Endpoint => self.hold(&failure.detail),
                Err(_undecided) => {}
            }
        }
    }

    async fn keep_one_hold(&self) {
        let mut backoff = Backoff::new(PROBE_WAIT_INITIAL, PROBE_WAIT_MAX);
        let mut next_report = Instant::now() + FIRST_REPORT_AFTER;
        let mut has_failed = false;
        let sent = loop {
            let sent = Instant::now();
            if !self.record().breaker.begin_probe(sent) {
                // Nobody else probes, and the wait is over: it can only be closed.
                return;
            }
            let probe = self.probe();
            tokio::pin!(probe);
            let outcome = loop {
                tokio::select! {
                    biased;
                    outcome = &mut probe => break outcome,
                    // A probe may hang as long as a call: the hold is told of all the same.
                    () = sleep_until(next_report) => self.report(&mut next_report),
                }
            };
            let Err(failure) = outcome else { break sent };
            let wait = backoff.next_delay();
            let change =
                self.change(|breaker| breaker.probe_failed(Instant::now(), &failure.detail, wait));
            let is_news = matches!(
                change,
                Change::StaysOpen {
                    confirmed: true,
                    ..
                } | Change::StaysOpen {
                    explained: true,
                    ..
                }
            );
            if is_news || Instant::now() >= next_report {
                self.report(&mut next_report);
            }
            has_failed = true;
            sleep(wait).await;
            self.common.authorization.reload();
        };
        let Some(hold) = self.release(sent) else {
            return;
        };
        let length = hold.began.elapsed();
        let held_for = humantime::format_duration(length.saturating_sub(Duration::from_nanos(
            u64::from(length.subsec_nanos() % 1_000_000),
        )));
        if has_failed {
            tracing::info!(url = %self.url, %held_for, "the model server answers again: the work goes on");
        } else {
            tracing::info!(
                url = %self.url, %held_for, reason = %hold.reason,
                "the model server was checked after failures, and answers: the work goes on"
            );
        }
    }

    /// Tells of the hold: when the first probe has failed or takes long, when the reason changes, and each minute.
    fn report(&self, next_report: &mut Instant) {
        *next_report = Instant::now() + REPORT_EVERY;
        if let Some(hold) = self.gate.current() {
            let (url, reason, since) = (&self.url, &hold.reason, hold.since);
            if self.common.joint.gate().is_held() {
                tracing::warn!(
                    %url, %reason, %since,
                    "the model server cannot be used: the work is held, nothing is lost"
                );
            } else {
                let endpoints = self.common.endpoints;
                tracing::warn!(
                    %url, %reason, %since, endpoints,
                    "a model server cannot be used: the others of LLM_URL do its work"
                );
            }
        }
    }
}

fn setup_failure(detail: &str) -> Failure {
    Failure {
        fault: Fault::Endpoint,
        detail: detail.to_owned(),
        status: None,
    }
}

/// Eight characters that tell two attempts of one name apart, also over restarts.
pub(super) fn short_random() -> String {
    let mut text = uuid::Uuid::new_v4().simple().to_string();
    text.truncate(8);
    text
}
