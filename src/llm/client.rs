//! The client: its endpoints, what they share, and the way of a document into them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::attempts::{Attempts, Question};
use super::classify::Fault;
use super::endpoint::{Common, Endpoint};
use super::gate::Hold;
use super::metrics::LlmMetrics;
use super::policy::{Policy, View};
use super::pool::{Permit, Pool, Wish};
use super::refusals::Refusals;
use super::transport::Transport;
use super::{
    Complete, CompleteError, Completion, CompletionRequest, LlmConfig, LlmError, OnTruncated,
    ServedModel, Slot,
};

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
pub(super) struct Levels {
    running: AtomicUsize,
    waiting: AtomicUsize,
    retrying: AtomicUsize,
    throttled: AtomicUsize,
}

/// Counts one up while it lives.
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a AtomicUsize);

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
pub(super) struct Running<'a> {
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

/// Asks one vLLM server, or several that serve the same model.
#[derive(Debug)]
pub struct VllmClient {
    pub(super) common: Arc<Common>,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    pub(super) policy: Policy,
    pub(super) on_truncated: OnTruncated,
    pub(super) max_tokens: u32,
    pub(super) refusals: Refusals,
    /// Documents that were found to kill the engine.
    pub(super) culprits: AtomicU64,
    /// Told of each success, for those who wait for a verdict.
    pub(super) succeeded: Notify,
    draining: CancellationToken,
    levels: Levels,
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
        config: &LlmConfig,
        transport: Arc<dyn Transport>,
        metrics: LlmMetrics,
        shutdown: &CancellationToken,
    ) -> Result<Self, LlmError> {
        let endpoints = endpoints(config, transport, metrics)?;
        let common = endpoints.common;
        let endpoints = endpoints.all;
        let limits = common.pool.lanes().into_iter().map(|lane| lane.limit);
        common.metrics.limited(limits.sum());
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
            refusals: Refusals::new(config.refusals_to_hold),
            culprits: AtomicU64::new(0),
            succeeded: Notify::new(),
            draining: shutdown.child_token(),
            levels: Levels::default(),
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
        let mut served = None;
        for endpoint in endpoints(config, transport, metrics)?.all {
            let probed = endpoint.probe().await;
            served = probed.map_err(|failure| LlmError::Unusable(failure.detail))?;
        }
        Ok(served)
    }

    /// How things stand now.
    #[must_use]
    pub fn state(&self) -> LlmState {
        let limits = self.pool().lanes().into_iter().map(|lane| lane.limit);
        LlmState {
            held: self.common.joint.gate().current(),
            limit: limits.sum(),
            running: self.levels.running.load(Ordering::Relaxed),
            waiting: self.levels.waiting.load(Ordering::Relaxed),
            retrying: self.levels.retrying.load(Ordering::Relaxed),
            throttled: self.levels.throttled.load(Ordering::Relaxed),
        }
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

    /// Waits for a slot. Once a drain has begun, nobody waits for work that stands still.
    pub(super) async fn slot(&self, wish: Wish) -> Result<Permit, CompleteError> {
        let _waiting = Counted::new(&self.levels.waiting);
        self.unless_abandoned(self.pool().acquire(wish)).await
    }

    /// Waits, unless a drain has begun and the work stands still.
    pub(super) async fn unless_abandoned<T>(
        &self,
        wait: impl Future<Output = T>,
    ) -> Result<T, CompleteError> {
        let abandoned = async {
            self.draining.cancelled().await;
            self.pool().standing_still().await;
        };
        tokio::select! {
            biased;
            done = wait => Ok(done),
            () = abandoned => Err(CompleteError::Abandoned),
        }
    }

    /// A document waits for what holds it.
    pub(super) fn waits(&self) -> Counted<'_> {
        Counted::new(&self.levels.waiting)
    }

    /// A call runs.
    pub(super) fn runs(&self) -> Running<'_> {
        Running::new(&self.levels.running, self.metrics())
    }

    pub(super) async fn wait_for_retry(&self, delay: Duration, fault: Fault) {
        if !delay.is_zero() {
            let _retrying = Counted::new(&self.levels.retrying);
            let _throttled = matches!(fault, Fault::Capacity { .. })
                .then(|| Counted::new(&self.levels.throttled));
            sleep(delay).await;
        }
    }
}

struct Endpoints {
    common: Arc<Common>,
    all: Vec<Arc<Endpoint>>,
}

fn endpoints(
    config: &LlmConfig,
    transport: Arc<dyn Transport>,
    metrics: LlmMetrics,
) -> Result<Endpoints, LlmError> {
    let urls = config.base_urls().map_err(LlmError::Setting)?;
    let common = Arc::new(Common::new(config, urls.len(), transport, metrics)?);
    let endpoint = |(index, url)| Arc::new(Endpoint::new(Arc::clone(&common), index, url));
    let all = urls.into_iter().enumerate().map(endpoint).collect();
    Ok(Endpoints { common, all })
}

#[async_trait]
impl Complete for VllmClient {
    async fn admit(&self) -> Slot {
        let _waiting = Counted::new(&self.levels.waiting);
        Slot::of_lane(self.pool().acquire(Wish::default()).await)
    }

    async fn complete(
        &self,
        request: CompletionRequest,
        slot: Slot,
    ) -> Result<Completion, CompleteError> {
        self.common.note_messages(&request.messages);
        let question = Question {
            document_id: &request.document_id,
            position: &request.position,
            traceparent: request.traceparent.as_deref(),
            messages: &request.messages,
            max_tokens: self.max_tokens,
        };
        Attempts::new(self, question).run(slot.into_permit()).await
    }

    fn begin_drain(&self) {
        self.draining.cancel();
    }
}

#[cfg(test)]
mod tests;
