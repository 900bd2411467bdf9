//! The way of one document through its attempts: slot, call, judgement, wait, and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::api::Answer;
use super::classify::{Failure, Fault};
use super::endpoint::{Endpoint, short_random};
use super::gate::Hold;
use super::limiter::Limiter;
use super::metrics::LlmMetrics;
use super::policy::{Decision, History, Policy};
use super::transport::Transport;
use super::{
    Complete, CompleteError, Completion, CompletionRequest, GiveUp, LlmConfig, LlmError,
    OnTruncated, ServedModel, Slot, Usage,
};
use crate::types::DeadLetterReason;

/// How often a truncated answer is asked for again, with twice the tokens each time.
const LONGER_TRIES_MAX: u32 = 2;

/// A snapshot of the model's side, for the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlmState {
    /// Why and since when the work is held; `None` while it flows.
    pub held: Option<Hold>,
    /// Calls that may run at once.
    pub limit: usize,
    /// Calls that run.
    pub running: usize,
    /// Documents and admissions that wait for a slot or for a hold to end.
    pub waiting: usize,
    /// Documents that wait before their next attempt.
    pub retrying: usize,
    /// Those of them that wait because the server has too much to do.
    pub throttled: usize,
}

#[derive(Debug, Default)]
struct Levels {
    running: AtomicUsize,
    waiting: AtomicUsize,
    retrying: AtomicUsize,
    throttled: AtomicUsize,
}

/// Counts one up while it lives.
#[derive(Debug)]
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(level: &'a AtomicUsize) -> Self {
        level.fetch_add(1, Ordering::Relaxed);
        Self(level)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a running call while it lives, also when it is dropped.
#[derive(Debug)]
struct Running<'a> {
    _level: Counted<'a>,
    metrics: &'a LlmMetrics,
}

impl<'a> Running<'a> {
    fn new(level: &'a AtomicUsize, metrics: &'a LlmMetrics) -> Self {
        metrics.call_began();
        Self {
            _level: Counted::new(level),
            metrics,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.metrics.call_ended();
    }
}

/// Asks one vLLM server.
#[derive(Debug)]
pub struct VllmClient {
    endpoint: Arc<Endpoint>,
    limiter: Limiter,
    policy: Policy,
    on_truncated: OnTruncated,
    max_tokens: u32,
    draining: CancellationToken,
    levels: Levels,
    metrics: LlmMetrics,
    _keeper: AbortOnDropHandle<()>,
}

impl VllmClient {
    /// Sets the client up and starts its one task, which lists the models once and from then on probes while the work is held. The
    /// task ends with `shutdown` or with the client.
    ///
    /// # Errors
    /// When a setting or a file it names is of no use. What the server says or fails to say is no error here.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn new(
        config: &LlmConfig,
        transport: Arc<dyn Transport>,
        metrics: LlmMetrics,
        shutdown: &CancellationToken,
    ) -> Result<Self, LlmError> {
        let endpoint = Arc::new(Endpoint::new(config, transport, metrics.clone())?);
        let limiter = Limiter::new(config.concurrency);
        metrics.limited(limiter.limit());
        let keeper = {
            let endpoint = Arc::clone(&endpoint);
            let shutdown = shutdown.clone();
            tokio::spawn(async move { endpoint.keep(shutdown).await })
        };
        Ok(Self {
            endpoint,
            limiter,
            policy: Policy::new(config),
            on_truncated: config.on_truncated,
            max_tokens: config.max_tokens,
            draining: shutdown.child_token(),
            levels: Levels::default(),
            metrics,
            _keeper: AbortOnDropHandle::new(keeper),
        })
    }

    /// Asks a server once whether it would answer a document: reachable, right key, right model, a completion of one token. For
    /// commands that do not wait. Returns what the server says of the model, when it says so.
    ///
    /// # Errors
    /// [`LlmError::Unusable`] with what to change; others when a setting is of no use.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn preflight(
        config: &LlmConfig,
        transport: Arc<dyn Transport>,
    ) -> Result<Option<ServedModel>, LlmError> {
        let metrics = LlmMetrics::new(&mut prometheus_client::registry::Registry::default());
        Endpoint::new(config, transport, metrics)?
            .probe()
            .await
            .map_err(|failure| LlmError::Unusable(failure.detail))
    }

    /// How things stand now.
    #[must_use]
    pub fn state(&self) -> LlmState {
        LlmState {
            held: self.endpoint.gate().current(),
            limit: self.limiter.limit(),
            running: self.levels.running.load(Ordering::Relaxed),
            waiting: self.levels.waiting.load(Ordering::Relaxed),
            retrying: self.levels.retrying.load(Ordering::Relaxed),
            throttled: self.levels.throttled.load(Ordering::Relaxed),
        }
    }

    /// Tells when a hold begins, changes its reason, or ends.
    #[must_use]
    pub fn holds(&self) -> watch::Receiver<Option<Hold>> {
        self.endpoint.gate().subscribe()
    }

    /// Waits for a slot at a moment when nothing holds the work, without keeping one through a hold.
    async fn slot_again(&self) -> Result<Slot, CompleteError> {
        let _waiting = Counted::new(&self.levels.waiting);
        loop {
            self.unless_draining(self.endpoint.gate().flowing()).await?;
            let slot = self.limiter.acquire().await;
            if !self.endpoint.gate().is_held() {
                return Ok(slot);
            }
        }
    }

    /// Waits for a hold to end; a drain ends the waiting at once.
    async fn unless_draining(&self, wait: impl Future<Output = ()>) -> Result<(), CompleteError> {
        tokio::select! {
            biased;
            () = wait => Ok(()),
            () = self.draining.cancelled() => Err(CompleteError::Abandoned),
        }
    }

    async fn wait_for_retry(&self, delay: Duration, fault: Fault) {
        if !delay.is_zero() {
            let _retrying = Counted::new(&self.levels.retrying);
            let _throttled = matches!(fault, Fault::Capacity { .. })
                .then(|| Counted::new(&self.levels.throttled));
            sleep(delay).await;
        }
    }
}

#[async_trait]
impl Complete for VllmClient {
    async fn admit(&self) -> Slot {
        let _waiting = Counted::new(&self.levels.waiting);
        // The slot first, and kept while held: the order of the waiters stands, and nobody else could use it.
        let slot = self.limiter.acquire().await;
        self.endpoint.gate().flowing().await;
        slot
    }

    async fn complete(
        &self,
        request: CompletionRequest,
        slot: Slot,
    ) -> Result<Completion, CompleteError> {
        self.endpoint.note_messages(&request.messages);
        Attempts::new(self, &request).run(slot).await
    }

    fn begin_drain(&self) {
        self.draining.cancel();
    }
}

/// The attempts of one document.
#[derive(Debug)]
struct Attempts<'a> {
    client: &'a VllmClient,
    request: &'a CompletionRequest,
    history: History,
    max_tokens: u32,
    longer_tries: u32,
    usage: Usage,
    request_id: Option<String>,
}

/// What follows a call.
enum Next {
    Done(Box<Completion>),
    /// Ask again at once with more tokens.
    Longer,
    GiveUp(DeadLetterReason, Failure),
    Failed(Failure, Decision),
}

impl<'a> Attempts<'a> {
    fn new(client: &'a VllmClient, request: &'a CompletionRequest) -> Self {
        Self {
            client,
            request,
            history: History::new(client.policy),
            max_tokens: client.max_tokens,
            longer_tries: 0,
            usage: Usage::default(),
            request_id: None,
        }
    }

    async fn run(mut self, slot: Slot) -> Result<Completion, CompleteError> {
        let endpoint = &self.client.endpoint;
        let mut slot = Some(slot);
        loop {
            let slot = match slot.take() {
                Some(slot) if !endpoint.gate().is_held() => slot,
                surplus => {
                    drop(surplus);
                    self.client.slot_again().await?
                }
            };
            let next = self.attempt().await;
            drop(slot);
            let (failure, mut decision) = match next {
                Next::Done(completion) => return Ok(*completion),
                Next::Longer => {
                    self.client.metrics.retried("truncated");
                    continue;
                }
                Next::GiveUp(reason, failure) => return Err(self.give_up(reason, failure)),
                Next::Failed(failure, decision) => (failure, decision),
            };
            loop {
                match decision {
                    Decision::Retry { delay, .. } => {
                        self.client.wait_for_retry(delay, failure.fault).await;
                        break;
                    }
                    Decision::DeadLetter(reason) => return Err(self.give_up(reason, failure)),
                    Decision::Hold => {
                        endpoint.hold(&failure.detail);
                        let _waiting = Counted::new(&self.client.levels.waiting);
                        self.client
                            .unless_draining(endpoint.gate().flowing())
                            .await?;
                        decision = self.history.resume(endpoint.view());
                    }
                }
            }
            self.client.metrics.retried(failure.fault.as_str());
        }
    }

    /// One call and its judgement.
    async fn attempt(&mut self) -> Next {
        let endpoint = &self.client.endpoint;
        self.history.begin(Instant::now(), endpoint.view());
        let attempt = self.history.calls();
        let position = &self.request.position;
        let request_id = format!(
            "klp-{}-{}-{}-{attempt}-{}",
            position.topic_partition.topic,
            position.topic_partition.partition,
            position.offset,
            short_random()
        );
        let span = tracing::info_span!(
            "attempt",
            document_id = %self.request.document_id,
            topic = %position.topic_partition.topic,
            partition = position.topic_partition.partition,
            offset = position.offset.value(),
            attempt,
            request_id = %request_id,
        );
        let body = endpoint
            .parameters()
            .body(&self.request.messages, self.max_tokens);
        let began = Instant::now();
        let outcome = {
            let _running = Running::new(&self.client.levels.running, &self.client.metrics);
            endpoint
                .chat(
                    body,
                    &request_id,
                    self.request.traceparent.as_deref(),
                    self.history.timeout(),
                )
                .instrument(span.clone())
                .await
        };
        let time = began.elapsed();
        self.request_id = Some(request_id);
        span.in_scope(|| match outcome {
            Ok(answer) => self.answered(answer, time),
            Err(failure) => self.failed(failure, time),
        })
    }

    fn answered(&mut self, answer: Answer, time: Duration) -> Next {
        let client = self.client;
        let truncated = answer.finish_reason == "length";
        client.endpoint.note_success();
        client.metrics.answered(
            truncated,
            time,
            answer.prompt_tokens,
            answer.completion_tokens,
        );
        self.usage.prompt_tokens += answer.prompt_tokens;
        self.usage.completion_tokens += answer.completion_tokens;
        self.usage.total_tokens += answer.prompt_tokens + answer.completion_tokens;
        self.usage.calls += 1;
        tracing::debug!(
            finish_reason = %answer.finish_reason,
            prompt_tokens = answer.prompt_tokens,
            completion_tokens = answer.completion_tokens,
            time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            "the model answered"
        );
        if truncated {
            match client.on_truncated {
                OnTruncated::Accept => {}
                OnTruncated::RetryLonger if self.may_ask_longer(&answer, time) => {
                    return Next::Longer;
                }
                OnTruncated::RetryLonger => {}
                OnTruncated::DeadLetter => {
                    return Next::GiveUp(
                        DeadLetterReason::InvalidResponse,
                        Failure {
                            fault: Fault::Document(DeadLetterReason::InvalidResponse),
                            detail: format!(
                                "the answer was cut at llm.max_tokens = {} or at the end of the context, and llm.on_truncated is dead_letter",
                                self.max_tokens
                            ),
                            status: Some(200),
                        },
                    );
                }
            }
        }
        Next::Done(Box::new(Completion {
            text: answer.content.unwrap_or_default(),
            finish_reason: answer.finish_reason,
            model: answer
                .model
                .unwrap_or_else(|| client.endpoint.parameters().model.clone()),
            system_fingerprint: answer.system_fingerprint,
            usage: self.usage,
            attempts: self.history.calls(),
            request_id: self.request_id.clone().unwrap_or_default(),
            llm_time: time,
        }))
    }

    /// Whether more tokens could help and may be asked for. An answer shorter than asked for ended at the end of the context: vLLM
    /// cuts `max_tokens` to what is left there without a word.
    fn may_ask_longer(&mut self, answer: &Answer, time: Duration) -> bool {
        let context_is_full =
            answer.completion_tokens > 0 && answer.completion_tokens < u64::from(self.max_tokens);
        if context_is_full || self.longer_tries >= LONGER_TRIES_MAX {
            return false;
        }
        if !self.history.spend_on_longer(time) {
            return false;
        }
        self.longer_tries += 1;
        self.max_tokens = self.max_tokens.saturating_mul(2);
        true
    }

    fn failed(&mut self, failure: Failure, time: Duration) -> Next {
        let endpoint = &self.client.endpoint;
        self.client.metrics.failed(failure.fault);
        if !self.history.is_stale_connection(failure.fault) {
            endpoint.note_failure(&failure);
        }
        let decision = self.history.decide(&failure, time, endpoint.view());
        tracing::debug!(
            error = %failure.detail,
            fault = failure.fault.as_str(),
            status = failure.status,
            decision = ?decision,
            "the attempt failed"
        );
        Next::Failed(failure, decision)
    }

    fn give_up(self, reason: DeadLetterReason, failure: Failure) -> CompleteError {
        CompleteError::DeadLetter(GiveUp {
            reason,
            detail: failure.detail,
            attempts: self.history.calls(),
            http_status: failure.status,
            request_id: self.request_id,
            answer: None,
        })
    }
}

#[cfg(test)]
mod tests;
