//! The way of one question through its attempts: slot, call, judgement, wait, and again.

mod chat_span;
mod trial;

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;

use super::adaptive::Sample;
use super::api::Answer;
use super::budget::Reservation;
use super::classify::{Failure, Fault};
use super::client::VllmClient;
use super::endpoint::{Answered, Shape, short_random};
use super::long::Step;
use super::policy::{Decision, History};
use super::pool::{Lanes, Permit, Wish};
use super::refusals::Refused;
use super::suspicion::{Company, Suspicion};
use super::turns::Kind;
use super::{Class, CompleteError, Completion, GiveUp, Message, OnTruncated, Usage};
use crate::spans::{Span, Trace};
use crate::types::{DeadLetterReason, SourcePosition};

/// How often a truncated answer is asked for again, with twice the tokens each time.
const LONGER_TRIES_MAX: u32 = 2;
/// How long a document that was refused waits for what becomes of others, before the probe decides.
const LOOK_AROUND: Duration = Duration::from_secs(5);

/// One question to the model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    /// Where it came from.
    pub(super) position: &'a SourcePosition,
    /// Whose turns its calls take.
    pub(super) class: Class,
    /// Where in a trace its calls stand.
    pub(super) trace: &'a Trace,
    /// What it is for, as a document may take hundreds of calls.
    pub(super) step: Step,
    pub(super) messages: &'a [Message],
    /// The most tokens of the answer.
    pub(super) max_tokens: u32,
    /// `response_format` of the request.
    pub(super) response_format: Option<&'a RawValue>,
    /// What becomes of an answer that was cut.
    pub(super) on_truncated: OnTruncated,
    /// The endpoint to prefer while it is not the busier one.
    pub(super) affinity: Option<usize>,
}

/// The attempts of one question.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    client: &'a VllmClient,
    question: Question<'a>,
    history: History,
    suspicion: Suspicion,
    max_tokens: u32,
    longer_tries: u32,
    usage: Usage,
    request_id: Option<String>,
    /// The endpoints that failed it.
    failed_at: Lanes,
    /// When its request was refused for the first time.
    refused_at: Option<Instant>,
    /// A cut answer, for when asking for a longer one comes to nothing.
    kept: Option<Box<Completion>>,
    /// What the prompt is expected to have.
    prompt_tokens: u64,
}

/// A part of the budget for a call that is not made yet: dropping it gives it back.
struct Unused(Option<Reservation>);

impl Unused {
    /// The call is made.
    fn into_used(mut self) -> Option<Reservation> {
        self.0.take()
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        if let Some(reservation) = self.0.take() {
            reservation.refund();
        }
    }
}

/// What follows a call.
enum Next {
    Done(Box<Completion>),
    /// Ask again at once with more tokens.
    Longer,
    GiveUp(DeadLetterReason, Failure),
    /// Too many documents are refused: wait for another turn.
    Refused(Failure),
    Failed(Failure, Decision),
}

impl<'a> Attempts<'a> {
    pub(super) fn new(client: &'a VllmClient, question: Question<'a>) -> Self {
        Self {
            client,
            question,
            history: History::new(client.policy),
            suspicion: Suspicion::default(),
            max_tokens: question.max_tokens,
            longer_tries: 0,
            usage: Usage::default(),
            request_id: None,
            failed_at: Lanes::default(),
            refused_at: None,
            kept: None,
            prompt_tokens: client.tokens.estimate_messages(question.messages),
        }
    }

    /// Asks until there is an answer or none will come. `permit` serves the first attempt, where it still can.
    pub(super) async fn run(mut self, permit: Option<Permit>) -> Result<Completion, CompleteError> {
        let client = self.client;
        let mut permit = permit;
        loop {
            let (permit, reservation) = match self.leave(permit.take()).await {
                Ok(leave) => leave,
                Err(error) => return self.end(error),
            };
            let lane = permit.lane();
            let next = self.attempt(&permit, reservation).await;
            let failure = match next {
                Next::Done(completion) => return Ok(*completion),
                Next::Longer => {
                    client.metrics().retried("truncated");
                    continue;
                }
                Next::GiveUp(reason, failure) => {
                    let given_up = self.give_up(reason, failure);
                    return self.end(given_up);
                }
                Next::Refused(failure) => {
                    self.wait_on_trial(permit, &failure).await?;
                    failure
                }
                Next::Failed(failure, decision) => {
                    drop(permit);
                    // First, so that what asks elsewhere knows where it was.
                    self.failed_at.insert(lane);
                    match self.follow(lane, &failure, decision).await? {
                        None => failure,
                        Some(reason) => {
                            let given_up = self.give_up(reason, failure);
                            return self.end(given_up);
                        }
                    }
                }
            };
            self.failed_at.insert(lane);
            client.metrics().retried(failure.fault.as_str());
        }
    }

    /// The end without an answer; unless there is a cut one.
    fn end(self, error: CompleteError) -> Result<Completion, CompleteError> {
        match (error, self.kept) {
            (CompleteError::DeadLetter(_), Some(kept)) => Ok(Completion {
                attempts: self.history.calls(),
                ..*kept
            }),
            (error, _) => Err(error),
        }
    }

    /// Waits as a decision says; answers why the document is given up, when it is.
    async fn follow(
        &mut self,
        lane: usize,
        failure: &Failure,
        mut decision: Decision,
    ) -> Result<Option<DeadLetterReason>, CompleteError> {
        let client = self.client;
        let endpoint = client.endpoint(lane);
        let is_request = matches!(failure.fault, Fault::Request);
        let flow = self.flow();
        let look_until = Instant::now() + LOOK_AROUND;
        loop {
            if is_request && client.refusals.is_on_trial(flow) {
                // It was refused before it was known that all are.
                return Ok(None);
            }
            match decision {
                Decision::Retry { delay, .. } => {
                    client.wait_for_retry(delay, failure.fault).await?;
                    return Ok(None);
                }
                Decision::DeadLetter(reason) if self.may_ask_elsewhere(reason) => return Ok(None),
                Decision::DeadLetter(reason) => return Ok(Some(reason)),
                Decision::Hold => {}
            }
            let _waiting = client.waits();
            // Before the look at what the endpoints show, so that no news between the two is missed.
            let news = client.common.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            decision = self.history.resume(self.view(failure));
            if decision != Decision::Hold {
                continue;
            }
            // What becomes of others says more than the probe, which asks about no document.
            let is_over = endpoint.gate().is_held() || look_until <= Instant::now();
            let wait = async {
                tokio::select! {
                    () = &mut news => {}
                    () = client.pool().on_trial(flow), if is_request => {}
                    () = sleep_until(look_until), if !is_over => {}
                }
            };
            if is_over && !endpoint.gate().is_held() {
                let shape = Shape::of(self.question.messages);
                let probed = client.unless_draining(endpoint.ask_probe(shape)).await?;
                if let Err(refusal) = probed {
                    self.put_on_trial(&refusal);
                }
            } else {
                client.unless_draining(wait).await?;
            }
            decision = self.history.resume(self.view(failure));
        }
    }

    const fn flow(&self) -> u32 {
        self.question.class.flow
    }

    /// Whether another endpoint, which has not failed it, may know better.
    fn may_ask_elsewhere(&self, reason: DeadLetterReason) -> bool {
        let is_asked_again = matches!(
            reason,
            DeadLetterReason::RequestRejected
                | DeadLetterReason::AttemptsExhausted
                | DeadLetterReason::InvalidResponse
        );
        let lanes = self.client.pool().lanes();
        let mut others = lanes.iter().enumerate();
        is_asked_again
            && others.any(|(index, lane)| !lane.is_closed && !self.failed_at.contains(index))
    }

    /// A slot and a part of the budget for the next attempt.
    async fn leave(
        &mut self,
        permit: Option<Permit>,
    ) -> Result<(Permit, Option<Unused>), CompleteError> {
        let client = self.client;
        let tokens = self
            .prompt_tokens
            .saturating_add(client.completion_tokens(self.max_tokens));
        let mut permit = self.permit(permit).await?;
        let reservation = match &client.budget {
            None => None,
            Some(budget) => Some(match budget.try_reserve(tokens) {
                Some(reservation) => Unused(Some(reservation)),
                None => {
                    // What waits for the budget holds no slot.
                    drop(permit);
                    let reservation = Unused(Some(client.reserve(budget, tokens).await?));
                    permit = self.permit(None).await?;
                    reservation
                }
            }),
        };
        if self.failed_at == Lanes::default()
            && let Some(lane) = self.question.affinity
        {
            permit.prefer(lane);
        }
        permit.charge(tokens);
        Ok((permit, reservation))
    }

    /// The slot for the next attempt: the one that is there, where its call may be made now, or another.
    async fn permit(&mut self, permit: Option<Permit>) -> Result<Permit, CompleteError> {
        let client = self.client;
        let mut permit = permit;
        loop {
            let shown = |endpoint| client.endpoint(endpoint).shown();
            let alone = match self.suspicion.judge(shown, client.others()) {
                Company::Any => false,
                Company::Alone => true,
                Company::None => {
                    client.culprits.fetch_add(1, Ordering::AcqRel);
                    return Err(self.kills_engines());
                }
            };
            let fits = |permit: &Permit| client.pool().may_go(permit) && permit.is_alone() == alone;
            if let Some(permit) = permit.take().filter(fits) {
                return Ok(permit);
            }
            let avoid = self.failed_at;
            // The first slot of a document came with it.
            let kind = match self.question.step {
                Step::Answer => Kind::Again,
                Step::Map { .. } | Step::Reduce { .. } => Kind::Part,
            };
            let wish = Wish {
                avoid,
                alone,
                kind,
                class: self.question.class,
            };
            permit = Some(client.slot(wish).await?);
        }
    }

    /// One call and its judgement.
    async fn attempt(&mut self, permit: &Permit, reservation: Option<Unused>) -> Next {
        let client = self.client;
        let endpoint = client.endpoint(permit.lane());
        let outages = endpoint.shown().outages;
        self.history.begin(Instant::now(), client.view());
        let attempt = self.history.calls();
        let position = self.question.position;
        let request_id = format!(
            "klp-{}-{}-{}{}-{attempt}-{}",
            position.topic_partition.topic,
            position.topic_partition.partition,
            position.offset,
            step_name(self.question.step),
            short_random()
        );
        // Of a level that every filter lets through, as its fields are those of warnings too. The document's own are around it.
        let span = tracing::error_span!(
            "attempt",
            attempt,
            request_id = %request_id,
            url = endpoint.url(),
        );
        let chat = self.chat_span(endpoint, attempt, &request_id);
        let parameters = &client.common.parameters;
        let body = parameters.body(
            self.question.messages,
            self.max_tokens,
            self.question.response_format,
        );
        // From here on the call may use it, also when nobody waits for its answer any more.
        let reservation = reservation.and_then(Unused::into_used);
        let began = Instant::now();
        let outcome = {
            let _running = client.runs();
            let _begun = client.refusals.begin(self.flow());
            let below = chat.as_ref().map(Span::trace);
            let trace = below.as_ref().unwrap_or(self.question.trace).headers();
            endpoint
                .chat(body, &request_id, trace, self.history.timeout())
                .instrument(span.clone())
                .await
        };
        chat_span::end(chat, &outcome);
        self.request_id = Some(request_id);
        if let Some(reservation) = reservation {
            match &outcome {
                // A server that does not tell leaves it at the estimate.
                Ok(Answered { answer, .. }) if answer.tokens() == 0 => drop(reservation),
                Ok(Answered { answer, .. }) => reservation.settle(answer.tokens()),
                Err(failure) => reservation.fail(failure.fault, self.prompt_tokens),
            }
        }
        span.in_scope(|| match outcome {
            Ok(answer) => self.answered(permit, answer, began),
            Err(failure) => self.failed(permit, outages, failure, began),
        })
    }

    fn answered(&mut self, permit: &Permit, answered: Answered, began: Instant) -> Next {
        let client = self.client;
        let time = began.elapsed();
        let Answered { answer, waiting } = answered;
        client.endpoint(permit.lane()).adapt(|controller| {
            let sample = Sample {
                elapsed: time,
                prompt_tokens: answer.prompt_tokens,
                completion_tokens: answer.completion_tokens,
                waiting,
                running: client.pool().running(permit.lane()),
            };
            controller.answered(Instant::now(), sample);
        });
        let truncated = answer.finish_reason == "length";
        client.endpoint(permit.lane()).note_answer(began);
        // Before the news: who wakes must see it.
        self.end_trial(began);
        client.common.news.notify_waiters();
        client.learn(self.question.messages, &answer);
        if !matches!(self.question.step, Step::Answer) {
            client.parts.note(self.question.position);
        }
        client.metrics().answered(
            client.endpoint(permit.lane()).url(),
            truncated,
            time,
            answer.prompt_tokens,
            answer.completion_tokens,
        );
        self.usage.add(Usage {
            prompt_tokens: answer.prompt_tokens,
            completion_tokens: answer.completion_tokens,
            total_tokens: answer.tokens(),
            calls: 1,
        });
        tracing::debug!(
            finish_reason = %answer.finish_reason,
            prompt_tokens = answer.prompt_tokens,
            completion_tokens = answer.completion_tokens,
            time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            "the model answered"
        );
        if truncated {
            let on_truncated = self.question.on_truncated;
            match on_truncated {
                OnTruncated::Accept => {}
                OnTruncated::RetryLonger if self.may_ask_longer(&answer, time) => {
                    self.kept = Some(Box::new(self.completion(permit, answer, time)));
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
        Next::Done(Box::new(self.completion(permit, answer, time)))
    }

    fn completion(&self, permit: &Permit, answer: Answer, time: Duration) -> Completion {
        Completion {
            text: answer.content.unwrap_or_default(),
            data: None,
            long: None,
            cached: false,
            finish_reason: answer.finish_reason,
            model: answer
                .model
                .unwrap_or_else(|| self.client.common.parameters.model.clone()),
            system_fingerprint: answer.system_fingerprint,
            endpoint: self.client.endpoint(permit.lane()).url().to_owned(),
            usage: self.usage,
            attempts: self.history.calls(),
            request_id: self.request_id.clone().unwrap_or_default(),
            llm_time: time,
        }
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
        // vLLM refuses more than the whole context.
        let context = self.client.context().unwrap_or(u64::MAX);
        let longer = u64::from(self.max_tokens).saturating_mul(2).min(context);
        let longer = u32::try_from(longer).unwrap_or(u32::MAX);
        if longer <= self.max_tokens {
            return false;
        }
        self.longer_tries += 1;
        self.max_tokens = longer;
        true
    }

    fn failed(&mut self, permit: &Permit, outages: u64, failure: Failure, began: Instant) -> Next {
        let client = self.client;
        let endpoint = client.endpoint(permit.lane());
        client.metrics().failed(endpoint.url(), failure.fault);
        endpoint.adapt(|controller| match failure.fault {
            Fault::Capacity { .. } => controller.refused(Instant::now(), began.elapsed()),
            Fault::Document(_) | Fault::TooLong | Fault::Request => {}
            _ => controller.failed(),
        });
        // One connection that the server had closed says nothing about the server. Of a document that ends the process it is all there is
        // to see, and an answer to anybody clears it.
        let (lane, alone) = (permit.lane(), permit.is_alone());
        let suspected =
            self.suspicion
                .note_failure(failure.fault, lane, outages, alone, Instant::now());
        if suspected && alone {
            // Only what the probe confirms counts, and nobody else may call there: without it the next try could cost an engine in vain.
            endpoint.hold(&failure.detail);
        }
        if !self.history.is_stale_connection(failure.fault) {
            endpoint.note_failure(began, &failure);
        }
        if matches!(failure.fault, Fault::Request) {
            // Refused again although another was taken since: or those that a trial leaves behind would begin the next one for ever.
            let refused_at = *self.refused_at.get_or_insert_with(Instant::now);
            let answered = client.refusals.last_answer(self.flow());
            if answered.is_some_and(|answered| answered > refused_at)
                && !client.refusals.is_on_trial(self.flow())
                && !self.may_ask_elsewhere(DeadLetterReason::RequestRejected)
            {
                return Next::GiveUp(DeadLetterReason::RequestRejected, failure);
            }
        }
        let refused = matches!(failure.fault, Fault::Request).then(|| self.note_refusal(&failure));
        if matches!(refused, Some(Refused::Begins | Refused::OnTrial)) {
            return Next::Refused(failure);
        }
        let view = self.view(&failure);
        let decision = self.history.decide(&failure, began.elapsed(), view);
        tracing::debug!(
            error = %failure.detail,
            fault = failure.fault.as_str(),
            status = failure.status,
            decision = ?decision,
            "the attempt failed"
        );
        Next::Failed(failure, decision)
    }

    fn kills_engines(&mut self) -> CompleteError {
        CompleteError::DeadLetter(GiveUp {
            reason: DeadLetterReason::EngineKilled,
            detail: "each time that it was asked about alone the engine died".to_owned(),
            attempts: self.history.calls(),
            http_status: None,
            request_id: self.request_id.take(),
            answer: None,
        })
    }

    fn give_up(&mut self, reason: DeadLetterReason, failure: Failure) -> CompleteError {
        CompleteError::DeadLetter(GiveUp {
            reason,
            detail: failure.detail,
            attempts: self.history.calls(),
            http_status: failure.status,
            request_id: self.request_id.take(),
            answer: None,
        })
    }
}

/// What tells the calls of one document apart in their request ids.
fn step_name(step: Step) -> String {
    match step {
        Step::Answer => String::new(),
        Step::Map { part, .. } => format!("-part{part}"),
        Step::Reduce { level, part, .. } => format!("-notes{level}.{part}"),
    }
}
