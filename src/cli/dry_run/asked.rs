//! `--ask`: what the model really takes for some of the documents. The answers are thrown away.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::DryRunError;
use crate::llm::{Complete as _, CompletionRequest, HttpTransport, LlmMetrics, Setup, VllmClient};
use crate::pipeline::document_span;
use crate::telemetry::registry::new_registry;

/// What the answers took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Asked {
    /// Documents that were asked about.
    pub(super) documents: u64,
    /// Those of them that were answered.
    pub(super) answered: u64,
    /// Calls of these.
    pub(super) calls: u64,
    /// Tokens of their answers, notes of parts included.
    pub(super) completion_tokens: u64,
    /// From the first call to the last answer.
    pub(super) seconds: f64,
    /// Calls that could run at a time.
    pub(super) at_a_time: u64,
}

/// Asks about all of them, as `run` would, within `deadline`.
pub(super) async fn ask(
    setup: Setup,
    requests: Vec<CompletionRequest>,
    deadline: Duration,
) -> Result<Asked, DryRunError> {
    let transport = HttpTransport::new(&setup.llm).map_err(DryRunError::Llm)?;
    let metrics = LlmMetrics::new(&mut new_registry());
    let shutdown = CancellationToken::new();
    let client = VllmClient::new(setup, Arc::new(transport), metrics, &shutdown);
    let client = client.map_err(DryRunError::Llm)?;
    let documents = requests.len();
    let began = Instant::now();
    let answers = requests.into_iter().map(async |request| {
        let span = document_span(&request.position);
        span.record("document_id", request.document_id.as_str());
        let slot = client.admit(request.class).await;
        client.complete(request, slot).instrument(span).await
    });
    let Ok(answers) = timeout(deadline, join_all(answers)).await else {
        let held = client.state().held;
        return Err(DryRunError::Unanswered {
            asked: documents,
            within: deadline,
            why: held.map_or_else(|| "it is busy or stuck".to_owned(), |hold| hold.reason),
        });
    };
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let mut asked = Asked {
        documents: count(documents),
        answered: 0,
        calls: 0,
        completion_tokens: 0,
        seconds: began.elapsed().as_secs_f64(),
        at_a_time: count(client.state().limit),
    };
    for answer in answers.into_iter().flatten() {
        asked.answered += 1;
        asked.calls += u64::from(answer.usage.calls);
        asked.completion_tokens += answer.usage.completion_tokens;
    }
    Ok(asked)
}
