//! Tells what would become of documents, for a dry run: prompts are rendered and counted, and the model is asked nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use prometheus_client::registry::Registry;

use super::client::{Setup, endpoints};
use super::endpoint::Endpoint;
use super::long::{self, Ask, AskError, Document, Forecast, Step, TokenEstimate};
use super::transport::Transport;
use super::{
    CompleteError, Completion, CompletionRequest, LlmError, LlmMetrics, LongDocumentsConfig,
    Message,
};

/// Counts prompts and plans documents.
#[derive(Debug)]
pub struct Forecaster {
    /// None where nothing is to be asked.
    endpoints: Vec<Arc<Endpoint>>,
    /// Whose turn it is to count.
    turn: AtomicUsize,
    /// Cleared by the first count that a server does not give, as it may take its time to.
    counts: AtomicBool,
    tokens: TokenEstimate,
    long: LongDocumentsConfig,
    max_tokens: u32,
}

impl Forecaster {
    /// Has the servers count. Nothing is asked before [`Forecaster::look`].
    ///
    /// # Errors
    /// When a setting or a file that it names is of no use.
    pub fn new(setup: Setup, transport: Arc<dyn Transport>) -> Result<Self, LlmError> {
        let metrics = LlmMetrics::new(&mut Registry::default());
        let endpoints = endpoints(&setup.llm, setup.schema.clone(), transport, metrics)?;
        Ok(Self {
            endpoints: endpoints.all,
            ..Self::offline(setup)
        })
    }

    /// Estimates, and asks nobody.
    #[must_use]
    pub fn offline(setup: Setup) -> Self {
        Self {
            endpoints: Vec::new(),
            turn: AtomicUsize::new(0),
            counts: AtomicBool::new(true),
            tokens: TokenEstimate::default(),
            long: setup.long,
            max_tokens: setup.llm.max_tokens,
        }
    }

    /// Has each server list its models: reachable, right key, right model, and the context that it tells.
    ///
    /// # Errors
    /// [`LlmError::Unusable`] with what to change.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn look(&self) -> Result<(), LlmError> {
        for endpoint in &self.endpoints {
            let models = endpoint.models().await;
            let models = models.map_err(|failure| LlmError::Unusable(failure.detail))?;
            if let Some(objection) = models.and_then(|models| endpoint.objection(&models)) {
                return Err(LlmError::Unusable(objection));
            }
        }
        Ok(())
    }

    /// The model's context in tokens: what the settings say, or the least that a server has told.
    #[must_use]
    pub fn context(&self) -> Option<u64> {
        let told = self.endpoints.iter().filter_map(|each| each.context());
        self.long.context_tokens.or(told.min())
    }

    /// Tells what would become of a document.
    ///
    /// # Errors
    /// When its prompt cannot be rendered.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn forecast(&self, request: &CompletionRequest) -> Result<Forecast, CompleteError> {
        let document = Document {
            prompt: &request.prompt,
            scope: &request.scope,
            content: &request.content,
        };
        long::forecast(self, &document, self.max_tokens, &self.tokens, &self.long).await
    }
}

#[async_trait]
impl Ask for Forecaster {
    /// Nobody is: a forecast asks nothing.
    async fn ask(
        &self,
        _messages: Vec<Message>,
        _answer_tokens: u32,
        _step: Step,
    ) -> Result<Completion, AskError> {
        Err(AskError::Failed(CompleteError::Abandoned))
    }

    async fn count(&self, messages: &[Message]) -> Option<u64> {
        if !self.counts.load(Ordering::Relaxed) {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let turn = turn.checked_rem(self.endpoints.len())?;
        let counted = self.endpoints.get(turn)?.count_tokens(messages).await;
        if counted.is_none() {
            self.counts.store(false, Ordering::Relaxed);
        }
        counted
    }

    async fn context(&self, _surely: bool) -> Option<u64> {
        Self::context(self)
    }

    fn width(&self) -> usize {
        self.endpoints.len()
    }
}
