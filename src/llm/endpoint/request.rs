//! What is sent to a server: the shape of a request, and its body.

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::llm::api::ChatRequest;
use crate::llm::{LlmConfig, Message};

/// What a request is made of, as far as a chat template may refuse it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::llm) enum Shape {
    /// A user message.
    Plain,
    /// A system message and a user message.
    WithSystem,
}

impl Shape {
    pub(in crate::llm) const fn new(has_system: bool) -> Self {
        if has_system {
            Self::WithSystem
        } else {
            Self::Plain
        }
    }

    /// That of these messages.
    pub(in crate::llm) fn of(messages: &[Message]) -> Self {
        Self::new(messages.iter().any(|message| message.role == "system"))
    }
}

/// Something of each shape.
#[derive(Debug, Default)]
pub(super) struct ByShape<T> {
    pub(super) plain: T,
    pub(super) with_system: T,
}

impl<T> ByShape<T> {
    pub(super) const fn of(&self, shape: Shape) -> &T {
        match shape {
            Shape::Plain => &self.plain,
            Shape::WithSystem => &self.with_system,
        }
    }

    pub(super) const fn of_mut(&mut self, shape: Shape) -> &mut T {
        match shape {
            Shape::Plain => &mut self.plain,
            Shape::WithSystem => &mut self.with_system,
        }
    }
}

/// The request parameters that every document shares.
#[derive(Debug, Clone)]
pub(in crate::llm) struct Parameters {
    pub(in crate::llm) model: String,
    pub(in crate::llm) temperature: f64,
    pub(in crate::llm) top_p: Option<f64>,
    pub(in crate::llm) seed: Option<i64>,
    pub(in crate::llm) max_tokens: u32,
}

impl Parameters {
    pub(in crate::llm) fn new(config: &LlmConfig) -> Self {
        Self {
            model: config.model.clone(),
            temperature: config.temperature,
            top_p: config.top_p,
            seed: config.seed,
            max_tokens: config.max_tokens,
        }
    }

    /// A request body. Messages are text and numbers are finite, so writing it cannot fail; an empty body would be refused.
    pub(in crate::llm) fn body(
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
