//! What looks after an endpoint while documents do not: the look at the start, its health now and then, and the probe while it is held.
//!
//! # Invariants
//! 1. A hold ends by a probe that went well: a chat completion of one token with the parameters that documents use. It is tried at
//!    once and then at least every second or so.
//! 2. `/health` is asked every [`HEALTH_EVERY`] while it is not held and nobody calls: an engine that died meanwhile is known before the
//!    next document. What it says is not believed while the probe says otherwise.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Endpoint, Shape, short_random};
use crate::llm::api::HEALTH_PATH;
use crate::llm::breaker::Change;
use crate::llm::classify::{Failure, Fault};
use crate::llm::{Message, ServedModel};
use crate::retry::Backoff;

/// Ceilings of the waits between two probes.
const PROBE_WAIT_INITIAL: Duration = Duration::from_millis(250);
/// See [`PROBE_WAIT_INITIAL`]; with the probe itself it must stay below the two seconds in which work resumes.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(1);
/// A hold whose first probe neither succeeds nor fails is reported after this.
const FIRST_REPORT_AFTER: Duration = Duration::from_secs(1);
/// How often a hold is reported.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// How often `/health` is asked while the endpoint is not held.
const HEALTH_EVERY: Duration = Duration::from_secs(5);
/// The longest that an answer of `/health` may take; it decides nothing when it takes longer.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

impl Endpoint {
    /// Finds out whether a document that is asked about in that shape would be answered now.
    ///
    /// # Errors
    /// The failure, with the setting to change in its sentence.
    pub(in crate::llm) async fn probe(&self, shape: Shape) -> Result<Option<ServedModel>, Failure> {
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
        let result = match self.probe_chat(shape).await {
            Err(failure) if failure.fault == Fault::Disconnected => self.probe_chat(shape).await,
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

    /// Probes on behalf of a document that waits for a verdict, without holding anybody up. A refusal of a shape that other documents do not
    /// have says nothing of the server.
    ///
    /// # Errors
    /// That refusal.
    pub(in crate::llm) async fn ask_probe(&self, shape: Shape) -> Result<(), Failure> {
        let sent = Instant::now();
        let probed = self.probe(shape).await;
        let probed = match probed {
            Err(failure) if failure.fault == Fault::Request && shape != self.common.plainest() => {
                Err(failure)
            }
            Err(failure) => {
                self.hold(&failure.detail);
                Ok(())
            }
            Ok(_served) => {
                self.note_probe(sent, shape);
                Ok(())
            }
        };
        self.common.news.notify_waiters();
        probed
    }

    async fn probe_chat(&self, shape: Shape) -> Result<(), Failure> {
        let message = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let mut messages = Vec::with_capacity(2);
        if shape == Shape::WithSystem {
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
    pub(in crate::llm) async fn keep(&self, shutdown: CancellationToken) {
        let work = async {
            self.look_at_start().await;
            self.common.note_look();
            loop {
                self.watch_health().await;
                self.keep_one_hold().await;
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => self.common.note_look(),
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
            if self.context().is_none()
                && let Ok(Some(models)) = self.models().await
                && let Some(objection) = self.objection(&models)
            {
                self.hold(&objection);
                continue;
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
        let (sent, shape) = loop {
            let sent = Instant::now();
            let shape = self.common.plainest();
            if !self.record().breaker.begin_probe(sent) {
                // Nobody else probes, and the wait is over: it can only be closed.
                return;
            }
            // A probe may hang as long as a call: the hold is told of all the same.
            let outcome = self.telling(&mut next_report, self.probe(shape)).await;
            let Err(failure) = outcome else {
                break (sent, shape);
            };
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
            if is_news {
                self.report();
                next_report = Instant::now() + REPORT_EVERY;
            }
            has_failed = true;
            self.telling(&mut next_report, sleep(wait)).await;
            self.common.authorization.reload();
        };
        let Some(hold) = self.release(sent, shape) else {
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

    /// What `work` comes to; the hold is told of whenever that is due meanwhile.
    async fn telling<T>(&self, next_report: &mut Instant, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep_until(*next_report) => {
                    self.report();
                    // A minute after it was due, unless the process was asleep for longer.
                    let now = Instant::now();
                    let next = *next_report + REPORT_EVERY;
                    *next_report = if next > now { next } else { now + REPORT_EVERY };
                }
            }
        }
    }

    /// Tells of the hold: when the first probe has failed or takes long, when the reason changes, and each minute.
    fn report(&self) {
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
