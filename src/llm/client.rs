//! The client: its endpoints, what they share, and the way of a document into them.

mod turned;

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::api::Answer;
use super::budget::{Budget, CompletionEstimate, Reservation};
use super::cache::Cache;
use super::classify::Fault;
use super::endpoint::{Common, Endpoint, Shape};
use super::gate::{Gate, Hold};
use super::long::TokenEstimate;
use super::metrics::LlmMetrics;
use super::policy::{Policy, View};
use super::pool::{Permit, Pool, Wish};
use super::refusals::Refusals;
use super::state::{Counted, EndpointState, Levels, LlmState, Parts, Running};
use super::suspicion::Others;
use super::transport::Transport;
use super::{
    AnswerSchema, Class, Complete, CompleteError, Completion, CompletionRequest, LlmConfig,
    LlmError, LongDocumentsConfig, Message, OnTruncated, Prompt, ServedModel, Slot, document,
};
use crate::types::SourcePosition;

/// How soon it shows that documents wait for a budget, and how often that is brought up to date.
const BUDGET_SHOWN_EVERY: Duration = Duration::from_secs(1);

/// What a client is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The servers, and how they are asked.
    pub llm: LlmConfig,
    /// What is done with documents that are longer than the context.
    pub long: LongDocumentsConfig,
    /// What answers must look like.
    pub schema: Option<Arc<AnswerSchema>>,
}

/// Without a schema, and with the defaults for long documents.
impl From<&LlmConfig> for Setup {
    fn from(config: &LlmConfig) -> Self {
        Self {
            llm: config.clone(),
            long: LongDocumentsConfig::default(),
            schema: None,
        }
    }
}

/// Asks one vLLM server, or several that serve the same model.
#[derive(Debug)]
pub struct VllmClient {
    pub(super) common: Arc<Common>,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    pub(super) policy: Policy,
    pub(super) on_truncated: OnTruncated,
    pub(super) max_tokens: u32,
    pub(super) schema: Option<Arc<AnswerSchema>>,
    pub(super) long: LongDocumentsConfig,
    pub(super) cache: Option<Cache<Arc<Completion>>>,
    pub(super) budget: Option<Budget>,
    /// What the budgets make wait.
    budget_gate: Gate,
    /// What prompts are expected to have.
    pub(super) tokens: TokenEstimate,
    completion_estimate: Mutex<CompletionEstimate>,
    /// Whether prompts prefer an endpoint.
    pub(super) affinity: bool,
    pub(super) refusals: Refusals,
    /// Documents that were found to kill the engine.
    pub(super) culprits: AtomicU64,
    draining: CancellationToken,
    levels: Levels,
    pub(super) parts: Parts,
    /// The setting that bounds each limit, and the bound.
    limit_setting: (&'static str, usize),
    _keepers: Vec<AbortOnDropHandle<()>>,
}

impl VllmClient {
    /// Sets the client up and starts a task for each endpoint, which lists the models once, asks for its health now and then, and probes
    /// while the endpoint is held. The tasks end with `shutdown` or with the client.
    ///
    /// # Errors
    /// When a setting or a file it names is of no use. What the server says or fails to say is no error here.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn new(
        setup: impl Into<Setup>,
        transport: Arc<dyn Transport>,
        metrics: LlmMetrics,
        shutdown: &CancellationToken,
    ) -> Result<Self, LlmError> {
        let Setup { llm, long, schema } = setup.into();
        let config = &llm;
        let endpoints = endpoints(config, schema.clone(), transport, metrics)?;
        let common = endpoints.common;
        let endpoints = endpoints.all;
        for (endpoint, lane) in endpoints.iter().zip(common.pool.lanes()) {
            common.metrics.endpoint_limit(endpoint.url(), lane.limit);
        }
        let keep = |endpoint: &Arc<Endpoint>| {
            let endpoint = Arc::clone(endpoint);
            let shutdown = shutdown.clone();
            AbortOnDropHandle::new(tokio::spawn(async move { endpoint.keep(shutdown).await }))
        };
        Ok(Self {
            _keepers: endpoints.iter().map(keep).collect(),
            common,
            endpoints,
            policy: Policy::new(config),
            on_truncated: config.on_truncated,
            max_tokens: config.max_tokens,
            schema,
            long,
            cache: NonZeroU64::new(config.cache_bytes_max).map(Cache::new),
            budget: config.has_budget().then(|| Budget::new(config)),
            budget_gate: Gate::new(),
            tokens: TokenEstimate::default(),
            completion_estimate: Mutex::new(CompletionEstimate::new(config.max_tokens)),
            affinity: config.prefix_affinity,
            refusals: Refusals::new(config.refusals_to_hold),
            culprits: AtomicU64::new(0),
            draining: shutdown.child_token(),
            levels: Levels::default(),
            parts: Parts::default(),
            limit_setting: config.concurrency_setting(),
        })
    }

    /// Asks each server once whether it would answer a document: reachable, right key, right model, a completion of one token. For
    /// commands that do not wait. Returns what the last server says of the model, when it says so.
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
        let schema = AnswerSchema::load(config)?.map(Arc::new);
        let mut served = None;
        for endpoint in endpoints(config, schema, transport, metrics)?.all {
            let probed = endpoint.probe(Shape::Plain).await;
            served = probed.map_err(|failure| LlmError::Unusable(failure.detail))?;
        }
        Ok(served)
    }

    /// Tells that documents are going to be asked about with `prompt`, so that probes ask as they do also before the first of them comes.
    pub fn expect(&self, prompt: &Prompt) {
        self.common.note_shape(Shape::new(prompt.has_system()));
    }

    /// How things stand now.
    #[must_use]
    pub fn state(&self) -> LlmState {
        let lanes = self.pool().lanes();
        let limit = lanes.iter().map(|lane| lane.limit).sum();
        let (setting, bound) = self.limit_setting;
        let is_at_bound = lanes.iter().all(|lane| lane.limit >= bound);
        let endpoints = self
            .endpoints
            .iter()
            .zip(lanes)
            .map(|(endpoint, lane)| EndpointState {
                url: endpoint.url().to_owned(),
                breaker: endpoint.breaker(),
                held: endpoint.gate().current(),
                limit: lane.limit,
                running: lane.running,
                queued_there: endpoint.queued_there(),
                outstanding_tokens: lane.tokens,
            });
        LlmState {
            held: self.common.joint.gate().current(),
            over_budget: self.budget_gate.current(),
            endpoints: endpoints.collect(),
            limit,
            running: self.levels.running.load(Ordering::Relaxed),
            waiting: self.levels.waiting.load(Ordering::Relaxed),
            waiting_for_budget: self.levels.for_budget.load(Ordering::Relaxed),
            limited_by: is_at_bound.then_some(setting),
            retrying: self.levels.retrying.load(Ordering::Relaxed),
            throttled: self.levels.throttled.load(Ordering::Relaxed),
            budgets: self.budget.as_ref().map_or_else(Vec::new, Budget::states),
        }
    }

    /// How many calls for a part of that document were answered; 0 for one that takes one call.
    #[must_use]
    pub fn parts_answered(&self, position: &SourcePosition) -> u64 {
        self.parts.answered(position)
    }

    /// Tells when the work as a whole begins to stand still, for another reason, or flows again.
    #[must_use]
    pub fn holds(&self) -> watch::Receiver<Option<Hold>> {
        self.common.joint.gate().subscribe()
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.common.pool
    }

    pub(super) fn metrics(&self) -> &LlmMetrics {
        &self.common.metrics
    }

    /// The endpoint of a lane.
    ///
    /// # Panics
    /// Never: the pool has as many lanes as there are endpoints.
    #[allow(
        clippy::indexing_slicing,
        reason = "the pool has as many lanes as there are endpoints"
    )]
    pub(super) fn endpoint(&self, lane: usize) -> &Endpoint {
        &self.endpoints[lane]
    }

    /// The memory that policy asks for.
    pub(super) fn view(&self) -> View {
        let shown = self.endpoints.iter().map(|endpoint| endpoint.shown());
        let (mut last_success, mut outages) = (None, 0);
        for shown in shown {
            last_success = last_success.max(shown.last_success);
            outages += shown.outages;
        }
        View {
            held: !self.pool().is_usable(),
            last_success,
            outages,
        }
    }

    /// The same for a request that was refused: only what has the same prompt speaks against the document, an answer of its flow or a probe of
    /// its shape.
    pub(super) fn view_of_refused(&self, flow: u32, shape: Shape) -> View {
        let endpoints = self.endpoints.iter();
        let last_probe = endpoints.map(|endpoint| endpoint.last_probe(shape)).max();
        View {
            last_success: self.refusals.last_answer(flow).max(last_probe.flatten()),
            ..self.view()
        }
    }

    /// A flow is on trial, or no more; `reason` is why any is.
    pub(super) fn turn_trial(&self, flow: u32, on_trial: bool, reason: Option<&str>) {
        self.pool().set_on_trial(flow, on_trial);
        self.common.turned(&self.common.joint.set_beside(reason));
    }

    /// Waits for a slot. Once a drain has begun, nobody waits for work that stands still.
    pub(super) async fn slot(&self, wish: Wish) -> Result<Permit, CompleteError> {
        let _waiting = Counted::new(&self.levels.waiting);
        let flow = wish.class.flow;
        self.unless_abandoned(flow, self.pool().acquire(wish)).await
    }

    /// What speaks for or against a document that engines die with.
    pub(super) fn others(&self) -> Others {
        let shown = self.endpoints.iter().map(|endpoint| endpoint.shown());
        Others {
            culprits: self.culprits.load(Ordering::Acquire),
            last_answer: shown.map(|shown| shown.last_answer).max().flatten(),
            none_wait: self.pool().nobody_waits(),
        }
    }

    /// Waits, unless a drain has begun: what waits is asked again after the restart.
    pub(super) async fn unless_draining<T>(
        &self,
        wait: impl Future<Output = T>,
    ) -> Result<T, CompleteError> {
        tokio::select! {
            biased;
            done = wait => Ok(done),
            () = self.draining.cancelled() => Err(CompleteError::Abandoned),
        }
    }

    /// Waits, unless a drain has begun and the work of that flow stands still.
    pub(super) async fn unless_abandoned<T>(
        &self,
        flow: u32,
        wait: impl Future<Output = T>,
    ) -> Result<T, CompleteError> {
        let abandoned = async {
            self.draining.cancelled().await;
            self.pool().standing_still(flow).await;
        };
        tokio::select! {
            biased;
            done = wait => Ok(done),
            () = abandoned => Err(CompleteError::Abandoned),
        }
    }

    /// The model's context in tokens: what the settings say, or the least that a server tells, as a document may go to any.
    pub(super) fn context(&self) -> Option<u64> {
        let told = self
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.context());
        self.long.context_tokens.or(told.min())
    }

    /// At the start, waits until a server has told the context, or all were asked: two seconds at most.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing.
    pub(super) async fn context_looked_for(&self) {
        self.common.looked_at(|| self.context().is_some()).await;
    }

    /// The same; `surely` asks the servers where nobody has told yet.
    pub(super) async fn context_tokens(&self, surely: bool) -> Option<u64> {
        if surely && self.context().is_none() {
            for endpoint in &self.endpoints {
                endpoint.learn_context().await;
            }
        }
        self.context()
    }

    /// Tokens of these messages as a server counts them; `None` when none can tell.
    pub(super) async fn count_tokens(&self, messages: &[Message]) -> Option<u64> {
        let lanes = self.pool().lanes();
        let open = self
            .endpoints
            .iter()
            .zip(lanes)
            .filter(|(_, lane)| !lane.is_closed);
        let (endpoint, _) = open.min_by_key(|(_, lane)| lane.tokens)?;
        endpoint.count_tokens(messages).await
    }

    /// Calls that may run at once, over all servers.
    pub(super) fn limit(&self) -> usize {
        self.pool().lanes().iter().map(|lane| lane.limit).sum()
    }

    /// Learns what prompts and answers come to.
    pub(super) fn learn(&self, messages: &[Message], answer: &Answer) {
        if let Some(budget) = &self.budget {
            self.metrics().budget_left(budget.left());
        }
        self.tokens.learn(messages, answer.prompt_tokens);
        if answer.tokens() == 0 {
            return;
        }
        self.completion_estimate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .observe(answer.completion_tokens);
    }

    /// Tokens that an answer of at most `max_tokens` is expected to have.
    pub(super) fn completion_tokens(&self, max_tokens: u32) -> u64 {
        self.completion_estimate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .tokens()
            .min(u64::from(max_tokens))
    }

    /// Waits for a part of the budget, and shows that it does.
    pub(super) async fn reserve(
        &self,
        budget: &Budget,
        tokens: u64,
    ) -> Result<Reservation, CompleteError> {
        let _waiting = self.waits();
        let _for_budget = Counted::new(&self.levels.for_budget);
        let _shown = BudgetShown {
            gate: &self.budget_gate,
            budget,
        };
        let reserve = async {
            let reserve = budget.reserve(tokens);
            tokio::pin!(reserve);
            loop {
                tokio::select! {
                    biased;
                    reservation = &mut reserve => break reservation,
                    () = sleep(BUDGET_SHOWN_EVERY) => self.show_budget(budget),
                }
            }
        };
        // It may be midnight until there is some.
        self.unless_draining(reserve).await
    }

    fn show_budget(&self, budget: &Budget) {
        let Some(wait) = budget.waiting() else {
            return;
        };
        let until = wait.until.round(jiff::Unit::Second).unwrap_or(wait.until);
        let reason = format!(
            "{} is used up: {} documents wait, the first until {until}; nothing is lost",
            wait.which, wait.waiters
        );
        if self.budget_gate.hold(&reason) {
            tracing::warn!(reason, "over budget");
        } else {
            self.budget_gate.explain(&reason);
        }
    }

    /// Tells when documents begin to wait for a budget, and when none does any more.
    #[must_use]
    pub fn budget_waits(&self) -> watch::Receiver<Option<Hold>> {
        self.budget_gate.subscribe()
    }

    /// A document waits for what holds it.
    pub(super) fn waits(&self) -> Counted<'_> {
        Counted::new(&self.levels.waiting)
    }

    /// A call runs.
    pub(super) fn runs(&self) -> Running<'_> {
        Running::new(&self.levels.running, self.metrics())
    }

    /// Waits before the next attempt. A server that has too much to do may have for ever: a drain does not wait for that.
    pub(super) async fn wait_for_retry(
        &self,
        delay: Duration,
        fault: Fault,
    ) -> Result<(), CompleteError> {
        if delay.is_zero() {
            return Ok(());
        }
        let _retrying = Counted::new(&self.levels.retrying);
        if matches!(fault, Fault::Capacity { .. }) {
            let _throttled = Counted::new(&self.levels.throttled);
            return self.unless_draining(sleep(delay)).await;
        }
        sleep(delay).await;
        Ok(())
    }
}

/// Shows no more that documents wait for a budget once none does, however the waiting ends.
struct BudgetShown<'a> {
    gate: &'a Gate,
    budget: &'a Budget,
}

impl Drop for BudgetShown<'_> {
    fn drop(&mut self) {
        if self.budget.waiting().is_none() {
            drop(self.gate.release());
        }
    }
}

pub(super) struct Endpoints {
    common: Arc<Common>,
    pub(super) all: Vec<Arc<Endpoint>>,
}

pub(super) fn endpoints(
    config: &LlmConfig,
    schema: Option<Arc<AnswerSchema>>,
    transport: Arc<dyn Transport>,
    metrics: LlmMetrics,
) -> Result<Endpoints, LlmError> {
    let urls = config.base_urls().map_err(LlmError::Setting)?;
    let common = Arc::new(Common::new(config, schema, urls.len(), transport, metrics)?);
    let endpoint = |(index, url)| Arc::new(Endpoint::new(config, Arc::clone(&common), index, url));
    let all = urls.into_iter().enumerate().map(endpoint).collect();
    Ok(Endpoints { common, all })
}

#[async_trait]
impl Complete for VllmClient {
    async fn admit(&self, class: Class) -> Slot {
        let _waiting = Counted::new(&self.levels.waiting);
        let wish = Wish {
            class,
            ..Wish::default()
        };
        Slot::of_lane(self.pool().acquire(wish).await)
    }

    async fn complete(
        &self,
        request: CompletionRequest,
        slot: Slot,
    ) -> Result<Completion, CompleteError> {
        self.expect(&request.prompt);
        let _parts = self.parts.of(&request.position);
        document::answer(self, &request, slot.into_permit()).await
    }

    fn begin_drain(&self) {
        self.draining.cancel();
    }
}

#[cfg(test)]
mod tests;
