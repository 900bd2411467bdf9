//! The span `chat {model}` of each attempt, as the GenAI conventions have it: what was asked for, what came back, and nothing of the text.

use opentelemetry::{Array, StringValue, Value};
use reqwest::Url;

use super::Attempts;
use crate::llm::classify::Failure;
use crate::llm::endpoint::{Answered, Endpoint};
use crate::llm::long::Step;
use crate::spans::{Attribute, Span, SpanKind};

impl Attempts<'_> {
    /// Begins it; `None` where the document is not traced.
    pub(super) fn chat_span(
        &self,
        endpoint: &Endpoint,
        attempt: u32,
        request_id: &str,
    ) -> Option<Span> {
        let parameters = &self.client.common.parameters;
        let name = || format!("chat {}", parameters.model);
        let attributes = || {
            let step = match self.question.step {
                Step::Answer => "answer",
                Step::Map { .. } => "map",
                Step::Reduce { .. } => "reduce",
            };
            let output_type = match self.question.response_format {
                Some(_) => "json",
                None => "text",
            };
            let mut attributes = vec![
                Attribute::new("gen_ai.operation.name", "chat"),
                Attribute::new("gen_ai.provider.name", "vllm"),
                Attribute::new("gen_ai.request.model", parameters.model.clone()),
                Attribute::new("gen_ai.request.max_tokens", i64::from(self.max_tokens)),
                Attribute::new("gen_ai.request.temperature", parameters.temperature),
                Attribute::new("gen_ai.output.type", output_type),
                Attribute::new("klp.attempt", i64::from(attempt)),
                Attribute::new("klp.step", step),
                Attribute::new("klp.request_id", request_id.to_owned()),
            ];
            if let Some(top_p) = parameters.top_p {
                attributes.push(Attribute::new("gen_ai.request.top_p", top_p));
            }
            if let Some(seed) = parameters.seed {
                attributes.push(Attribute::new("gen_ai.request.seed", seed));
            }
            attributes.extend(server(endpoint.url()));
            attributes
        };
        self.question
            .trace
            .child(SpanKind::Client, name, attributes)
    }
}

fn server(url: &str) -> Vec<Attribute> {
    let Ok(url) = Url::parse(url) else {
        return Vec::new();
    };
    let host = url.host_str().map(str::to_owned);
    let host = host.map(|host| Attribute::new("server.address", host));
    let port = url.port_or_known_default();
    let port = port.map(|port| Attribute::new("server.port", i64::from(port)));
    host.into_iter().chain(port).collect()
}

/// Ends it with what became of the call.
pub(super) fn end(span: Option<Span>, outcome: &Result<Answered, Failure>) {
    let Some(mut span) = span else { return };
    match outcome {
        Ok(Answered { answer, .. }) => {
            let reason = StringValue::from(answer.finish_reason.clone());
            let reasons = Value::Array(Array::String(vec![reason]));
            span.set("gen_ai.response.finish_reasons", reasons);
            if let Some(model) = &answer.model {
                span.set("gen_ai.response.model", model.clone());
            }
            // A server that does not tell leaves them out.
            if answer.tokens() > 0 {
                span.set("gen_ai.usage.input_tokens", tokens(answer.prompt_tokens));
                span.set(
                    "gen_ai.usage.output_tokens",
                    tokens(answer.completion_tokens),
                );
            }
            span.set("http.response.status_code", 200);
        }
        Err(failure) => {
            if let Some(status) = failure.status {
                span.set("http.response.status_code", i64::from(status));
            }
            span.fail(failure.fault.as_str(), failure.detail.clone());
        }
    }
}

fn tokens(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
