//! The way of one document through the model's side: answered before? in one call or in parts? asked, checked, and mended once.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use serde_json::value::RawValue;

use super::attempts::{Attempts, Question};
use super::cache::{Cache, CacheKey, Look};
use super::client::VllmClient;
use super::long::{self, Ask, AskError, Document, Step};
use super::pool::Permit;
use super::prompt::{Place, Question as Template};
use super::schema::{AnswerSchema, Violation, repair_messages};
use super::{CompleteError, Completion, CompletionRequest, GiveUp, Message, OnTruncated, Usage};
use crate::types::DeadLetterReason;

/// What an answer weighs in the cache beside its text, in bytes: names, counts, and the text as JSON where there is a schema.
const ANSWER_BYTES: usize = 512;

/// Answers a document. `permit` serves the first call.
///
/// # Errors
/// As [`CompleteError`] says.
///
/// # Cancel safety
/// Dropping it ends its calls on the server and loses their work, nothing else.
pub(super) async fn answer(
    client: &VllmClient,
    request: &CompletionRequest,
    permit: Option<Permit>,
) -> Result<Completion, CompleteError> {
    match &client.cache {
        Some(cache) => through_cache(cache, client, request, permit).await,
        None => ask(client, request, permit).await,
    }
}

async fn through_cache(
    cache: &Cache<Arc<Completion>>,
    client: &VllmClient,
    request: &CompletionRequest,
    permit: Option<Permit>,
) -> Result<Completion, CompleteError> {
    let key = key(client, request);
    let mut permit = permit;
    let mut look = cache.look(key);
    loop {
        match look {
            Look::Hit(answer) => {
                client.metrics().cache_hit();
                // Nothing was spent on this one.
                return Ok(Completion {
                    cached: true,
                    usage: Usage::default(),
                    attempts: 0,
                    llm_time: Duration::ZERO,
                    ..(*answer).clone()
                });
            }
            Look::Begin(flight) => {
                // An answer that ends in a dead letter is no answer: the flight ends without one, and the next in the row asks.
                let completion = ask(client, request, permit).await?;
                let bytes = completion.text.len() * if completion.data.is_some() { 3 } else { 1 };
                let weight = u64::try_from(bytes + ANSWER_BYTES).unwrap_or(u64::MAX);
                flight.land(Arc::new(completion.clone()), weight);
                client.metrics().cached(cache.level());
                return Ok(completion);
            }
            Look::Wait(waiter) => {
                // What waits for another document's call needs no slot.
                permit = None;
                let _waiting = client.waits();
                look = client
                    .unless_abandoned(request.class.flow, waiter.wait())
                    .await?;
            }
        }
    }
}

/// Everything that shapes the answer. The templates for parts are rendered too, as they may use fields that the other does not; where one
/// cannot be rendered, that is what it comes to.
fn key(client: &VllmClient, request: &CompletionRequest) -> CacheKey {
    let place = Place {
        part: 1,
        parts: 1,
        words: 1,
    };
    let rendered = [
        (Template::Answer, request.content.as_str()),
        (Template::Notes(place), ""),
        (Template::Merge(place), ""),
    ];
    let rendered = rendered.map(|(template, content)| {
        let messages = request
            .prompt
            .render_with(template, &request.scope, content);
        format!("{messages:?}")
    });
    let parameters = format!(
        "{:?} {:?} {:?} {:?}",
        client.common.parameters,
        client.on_truncated,
        client.long,
        request.prompt.template_hash()
    );
    let schema = client.schema.as_deref().map(AnswerSchema::schema_hash);
    let fixed = [parameters.as_bytes(), schema.unwrap_or_default().as_bytes()];
    CacheKey::new(
        fixed
            .into_iter()
            .chain(rendered.iter().map(String::as_bytes)),
    )
}

async fn ask(
    client: &VllmClient,
    request: &CompletionRequest,
    permit: Option<Permit>,
) -> Result<Completion, CompleteError> {
    let document = Document {
        prompt: &request.prompt,
        scope: &request.scope,
        content: &request.content,
    };
    client.context_looked_for().await;
    let asked = Asked {
        client,
        request,
        affinity: client.affinity.then(|| affinity(client, &request.prompt)),
        permit: Mutex::new(permit),
    };
    let answer = long::answer(
        &asked,
        &document,
        client.max_tokens,
        &client.tokens,
        &client.long,
    )
    .await?;
    if let Some(summary) = &answer.summary {
        client.metrics().long_document(summary);
    }
    Ok(Completion {
        long: answer.summary,
        ..answer.completion
    })
}

/// The lane that prompts of these templates prefer, as their beginning is in its prefix cache.
fn affinity(client: &VllmClient, prompt: &super::Prompt) -> usize {
    let mut hasher = DefaultHasher::new();
    prompt.template_hash().hash(&mut hasher);
    let lanes = u64::try_from(client.endpoints.len()).unwrap_or(1).max(1);
    usize::try_from(hasher.finish() % lanes).unwrap_or(0)
}

/// One document's calls.
struct Asked<'a> {
    client: &'a VllmClient,
    request: &'a CompletionRequest,
    affinity: Option<usize>,
    /// For the first call.
    permit: Mutex<Option<Permit>>,
}

#[async_trait]
impl Ask for Asked<'_> {
    async fn ask(
        &self,
        messages: Vec<Message>,
        answer_tokens: u32,
        step: Step,
    ) -> Result<Completion, AskError> {
        let answered = match (step, &self.client.schema) {
            (Step::Answer, Some(schema)) => self.data(schema, &messages, answer_tokens).await,
            (Step::Answer, None) => {
                let on_truncated = self.client.on_truncated;
                self.call(&messages, answer_tokens, step, None, on_truncated)
                    .await
                    .and_then(|answer| self.with_room(answer))
            }
            // Notes are used as far as they came.
            (Step::Map { .. } | Step::Reduce { .. }, _) => {
                self.call(&messages, answer_tokens, step, None, OnTruncated::Accept)
                    .await
            }
        };
        answered.map_err(|error| match error {
            CompleteError::DeadLetter(given_up)
                if given_up.reason == DeadLetterReason::ContextLengthExceeded =>
            {
                AskError::TooLong(given_up)
            }
            error => AskError::Failed(error),
        })
    }

    async fn count(&self, messages: &[Message]) -> Option<u64> {
        // Counting takes a while, and needs no slot.
        drop(self.permit());
        self.client.count_tokens(messages).await
    }

    async fn context(&self, surely: bool) -> Option<u64> {
        self.client.context_tokens(surely).await
    }

    fn width(&self) -> usize {
        self.client.limit().max(1)
    }
}

impl Asked<'_> {
    /// The slot that the document came with, until somebody has taken it.
    fn permit(&self) -> Option<Permit> {
        self.permit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    async fn call(
        &self,
        messages: &[Message],
        max_tokens: u32,
        step: Step,
        response_format: Option<&RawValue>,
        on_truncated: OnTruncated,
    ) -> Result<Completion, CompleteError> {
        let question = Question {
            position: &self.request.position,
            class: self.request.class,
            trace: &self.request.trace,
            step,
            messages,
            max_tokens,
            response_format,
            on_truncated,
            affinity: self.affinity,
        };
        Attempts::new(self.client, question)
            .run(self.permit())
            .await
    }

    /// An answer, unless it was cut as its prompt is too long.
    fn with_room(&self, answer: Completion) -> Result<Completion, CompleteError> {
        let max_tokens = self.client.max_tokens;
        if !long::is_cut_by_context(&answer, self.client.context(), max_tokens) {
            return Ok(answer);
        }
        Err(CompleteError::DeadLetter(GiveUp {
            reason: DeadLetterReason::ContextLengthExceeded,
            detail: format!(
                "the prompt leaves less than llm.max_tokens = {max_tokens}, and the answer was cut at the end of the context"
            ),
            attempts: answer.attempts,
            http_status: Some(200),
            request_id: Some(answer.request_id),
            answer: None,
        }))
    }

    /// An answer that is valid under the schema, after one attempt to have it mended.
    async fn data(
        &self,
        schema: &AnswerSchema,
        messages: &[Message],
        max_tokens: u32,
    ) -> Result<Completion, CompleteError> {
        let format = Some(&**schema.response_format());
        // Whether a cut answer is longer the next time is a matter of policy; that it is of no use is not.
        let on_truncated = match self.client.on_truncated {
            OnTruncated::RetryLonger => OnTruncated::RetryLonger,
            OnTruncated::Accept | OnTruncated::DeadLetter => OnTruncated::Accept,
        };
        let call = |messages| self.call(messages, max_tokens, Step::Answer, format, on_truncated);
        let mut last = self.with_room(call(messages).await?)?;
        let mut violation = match check(schema, &last, max_tokens) {
            Ok(data) => return Ok(with_data(last, data)),
            Err(violation) => violation,
        };
        tracing::debug!(
            violation = violation.label(),
            "the answer breaks the schema: the model is asked to mend it"
        );
        self.client.metrics().retried("schema");
        match call(&repair_messages(messages, &last.text, &violation)).await {
            Ok(mut mended) => {
                mended.usage.add(last.usage);
                mended.attempts = mended.attempts.saturating_add(last.attempts);
                last = mended;
                violation = match check(schema, &last, max_tokens) {
                    Ok(data) => return Ok(with_data(last, data)),
                    Err(violation) => violation,
                };
            }
            Err(CompleteError::DeadLetter(mut given_up)) => {
                // With the answer to be mended the conversation may be longer than the context.
                if given_up.reason != DeadLetterReason::ContextLengthExceeded {
                    given_up.attempts = given_up.attempts.saturating_add(last.attempts);
                    return Err(CompleteError::DeadLetter(given_up));
                }
            }
            Err(error) => return Err(error),
        }
        Err(CompleteError::DeadLetter(GiveUp {
            reason: DeadLetterReason::SchemaViolation,
            detail: format!(
                "the answer is of no use, also after it was to be mended: {}",
                violation.label()
            ),
            attempts: last.attempts,
            http_status: Some(200),
            request_id: Some(last.request_id),
            answer: Some(last.text),
        }))
    }
}

/// What an answer says, when it is whole and valid.
fn check(schema: &AnswerSchema, answer: &Completion, max_tokens: u32) -> Result<Value, Violation> {
    if answer.finish_reason == "length" {
        return Err(Violation::cut_off(max_tokens));
    }
    schema.read(&answer.text)
}

fn with_data(answer: Completion, data: Value) -> Completion {
    Completion {
        data: Some(data),
        ..answer
    }
}
