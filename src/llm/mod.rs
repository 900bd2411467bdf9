//! The model's side: one trait that the pipeline calls, and behind it everything that can go wrong with a model server.
//!
//! The pipeline asks for a slot with [`Complete::admit`] and hands it back in with the first attempt. Retries, holds, deadlines
//! and the bound on calls in flight are this side's business alone.

mod adaptive;
mod api;
mod attempts;
mod auth;
mod breaker;
mod budget;
mod cache;
mod classify;
mod client;
mod config;
mod document;
mod endpoint;
mod error;
mod forecaster;
pub(crate) mod fuzzing;
mod gate;
mod long;
mod metrics;
mod policy;
mod pool;
mod prompt;
mod refusals;
mod schema;
mod state;
mod suspicion;
mod tls;
mod transport;
mod turns;

pub use api::{Answer, ServedModel};
pub use breaker::State as BreakerState;
pub use classify::{
    Failure, Fault, Target, reply as classify_reply, transport as classify_transport,
};
pub use client::{Setup, VllmClient};
pub use config::{Concurrency, LlmConfig, OnTruncated, PromptConfig};
pub use error::LlmError;
pub use forecaster::Forecaster;
pub use gate::Hold;
pub use long::{
    Forecast, Load, LongDocumentsConfig, LongPolicy, LongSummary, Plan, Treatment, TruncateKeep,
};
pub use metrics::LlmMetrics;
pub use prompt::{KafkaContext, Place, Prompt, PromptError, PromptSetupError, Question, Scope};
pub use schema::AnswerSchema;
pub use state::{BudgetState, EndpointState, LlmState};
pub use transport::{Call, ConnectFault, HttpTransport, Reply, Transport, TransportError};
pub use turns::Class;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spans::Trace;
use crate::types::{DeadLetterReason, SourcePosition};

/// One chat message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// What the model is asked about one document.
#[derive(Debug, Clone)]
pub struct CompletionRequest {
    /// The document's name, for logs.
    pub document_id: String,
    /// Where it came from: part of each attempt's request id.
    pub position: SourcePosition,
    /// Whose turns its calls take.
    pub class: Class,
    /// The templates that ask about it.
    pub prompt: Arc<Prompt>,
    /// What they see beside the text, of [`Prompt::scope`].
    pub scope: Scope,
    /// The document's text.
    pub content: String,
    /// Where in a trace its calls stand.
    pub trace: Trace,
}

/// Tokens of one document, over all its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Tokens of the answers.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// Calls that were answered with a result.
    pub calls: u32,
}

impl Usage {
    /// Adds another call's.
    pub(crate) const fn add(&mut self, other: Self) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self
            .completion_tokens
            .saturating_add(other.completion_tokens);
        self.total_tokens = self.total_tokens.saturating_add(other.total_tokens);
        self.calls = self.calls.saturating_add(other.calls);
    }
}

/// A usable answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The answer's text.
    pub text: String,
    /// The same as JSON, when a schema was asked for: it is valid under it.
    pub data: Option<Value>,
    /// As vLLM names it: `stop`, `length`, …
    pub finish_reason: String,
    /// The model that the server says answered.
    pub model: String,
    /// The server's build, when told.
    pub system_fingerprint: Option<String>,
    /// Base URL of the server that answered.
    pub endpoint: String,
    /// Tokens.
    pub usage: Usage,
    /// What was done to a document that is longer than the context; `None` when it was read whole in one call.
    pub long: Option<LongSummary>,
    /// Whether this is the answer to an identical document, without a call.
    pub cached: bool,
    /// Attempts that were made, over all calls; 0 for a cached answer.
    pub attempts: u32,
    /// `X-Request-Id` of the attempt that succeeded.
    pub request_id: String,
    /// Time of the successful call, first byte out to last byte in.
    pub llm_time: Duration,
}

/// Why a document has no answer and never will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GiveUp {
    /// The closed reason.
    pub reason: DeadLetterReason,
    /// One sentence for the operator; holds none of the document's text.
    pub detail: String,
    /// Attempts that were made.
    pub attempts: u32,
    /// Status of the last answer, when there was one.
    pub http_status: Option<u16>,
    /// `X-Request-Id` of the last attempt, when one was made.
    pub request_id: Option<String>,
    /// The last answer as it came, when the answers are what was wrong.
    pub answer: Option<String>,
}

/// How a completion can fail for good.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// The document is at fault: it goes to the dead letters.
    #[error("{}: {}", .0.reason, .0.detail)]
    DeadLetter(GiveUp),
    /// The process is stopping and the document was waiting: it will be asked again after the restart.
    #[error("given back: the process is stopping")]
    Abandoned,
}

/// The right to make one call; dropping it gives it back.
#[derive(Debug)]
pub struct Slot(Held);

#[derive(Debug)]
enum Held {
    Nothing,
    Semaphore(#[allow(dead_code, reason = "held for its drop")] tokio::sync::OwnedSemaphorePermit),
    Lane(pool::Permit),
}

impl Slot {
    /// A slot that gives `permit` back when it is dropped.
    #[must_use]
    pub const fn new(permit: tokio::sync::OwnedSemaphorePermit) -> Self {
        Self(Held::Semaphore(permit))
    }

    /// A slot that bounds nothing, for implementors without a limit.
    #[must_use]
    pub const fn unbounded() -> Self {
        Self(Held::Nothing)
    }

    const fn of_lane(permit: pool::Permit) -> Self {
        Self(Held::Lane(permit))
    }

    fn into_permit(self) -> Option<pool::Permit> {
        match self.0 {
            Held::Lane(permit) => Some(permit),
            Held::Semaphore(_) | Held::Nothing => None,
        }
    }
}

/// Asks a model. The one trait between the pipeline and the model's side.
#[async_trait]
pub trait Complete: Send + Sync + std::fmt::Debug {
    /// Waits until one more document may be sent: a slot is free and nothing holds the work.
    ///
    /// # Cancel safety
    /// Safe: a waiter that is dropped loses its place and nothing else. Waiters of one class are served in the order they came; who has one
    /// waiter for each document that it could send gets its share also where many slots become free at once.
    async fn admit(&self, class: Class) -> Slot;

    /// Answers one document, over as many attempts as policy allows. `slot` serves the first attempt; later attempts wait for their
    /// own, and no slot is held while a retry or a hold is waited for.
    ///
    /// # Errors
    /// As [`CompleteError`] says; an outage is not an error, it is waited for.
    ///
    /// # Cancel safety
    /// Dropping it ends the call on the server and loses its work, nothing else.
    async fn complete(
        &self,
        request: CompletionRequest,
        slot: Slot,
    ) -> Result<Completion, CompleteError>;

    /// From now on waiting documents are given back as [`CompleteError::Abandoned`]: those that wait for a hold at once; calls that
    /// run are finished.
    fn begin_drain(&self);
}
