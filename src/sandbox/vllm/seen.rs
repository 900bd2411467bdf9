//! The log of chat completions that the server has seen, bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};
use tokio::sync::watch;

/// Roles of one request that are remembered; a longer conversation is counted all the same.
const ROLES_MAX: usize = 64;

/// A chat completion that arrived. What it asked for is as it was sent, also when it was refused.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenRequest {
    /// From 1, in the order of arrival.
    pub number: u64,
    /// `X-Request-Id`, when it was sent.
    pub request_id: Option<String>,
    /// `traceparent`, when it was sent.
    pub traceparent: Option<String>,
    /// The first characters of the messages' text, or of the body when it has no messages.
    pub prompt: String,
    /// The `type` of its `response_format`, when one was sent.
    pub response_format: Option<String>,
    /// `max_completion_tokens`, else `max_tokens`, when it was sent as a whole number.
    pub max_tokens: Option<i64>,
    /// `temperature`, when it was sent as a number.
    pub temperature: Option<f64>,
    /// How many messages it has.
    pub messages: usize,
    /// The roles of the first 64 of them; empty for a message without one.
    pub roles: Vec<String>,
    /// How it ended.
    pub end: SeenEnd,
}

impl SeenRequest {
    /// The status that it was answered with.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self.end {
            SeenEnd::Answered(status) => Some(status),
            SeenEnd::Open | SeenEnd::Unanswered => None,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeenEnd {
    /// Not yet.
    Open,
    /// With this status.
    Answered(u16),
    /// The client left, a hook hung up, or the server was stopped.
    Unanswered,
}

#[derive(Debug)]
struct Entries {
    kept: VecDeque<SeenRequest>,
    calls: u64,
}

/// Keeps the newest requests.
#[derive(Debug)]
pub(super) struct RequestLog {
    entries: Mutex<Entries>,
    requests_max: usize,
    prompt_chars_max: usize,
    /// Bumped at each change, for those who wait for one.
    changed: watch::Sender<u64>,
}

impl RequestLog {
    pub(super) fn new(
        requests_max: usize,
        prompt_chars_max: usize,
        changed: watch::Sender<u64>,
    ) -> Self {
        Self {
            entries: Mutex::new(Entries {
                kept: VecDeque::new(),
                calls: 0,
            }),
            requests_max,
            prompt_chars_max,
            changed,
        }
    }

    pub(super) fn open(
        self: &Arc<Self>,
        request_id: Option<String>,
        traceparent: Option<String>,
        prompt: &str,
        body: Option<&Map<String, Value>>,
    ) -> OpenRequest {
        let field = |name: &str| body.and_then(|body| body.get(name));
        let messages = field("messages")
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        let role = |message: &Value| {
            let role = message.get("role").and_then(Value::as_str);
            role.unwrap_or_default().to_owned()
        };
        let response_format = field("response_format").filter(|format| !format.is_null());
        let number = self.change(|entries| {
            entries.calls = entries.calls.saturating_add(1);
            entries.kept.push_back(SeenRequest {
                number: entries.calls,
                request_id,
                traceparent,
                prompt: prompt.chars().take(self.prompt_chars_max).collect(),
                response_format: response_format.map(|format| {
                    let kind = format.get("type").and_then(Value::as_str);
                    kind.unwrap_or_default().to_owned()
                }),
                max_tokens: ["max_completion_tokens", "max_tokens"]
                    .iter()
                    .find_map(|name| field(name)?.as_i64()),
                temperature: field("temperature").and_then(Value::as_f64),
                messages: messages.len(),
                roles: messages.iter().take(ROLES_MAX).map(role).collect(),
                end: SeenEnd::Open,
            });
            if entries.kept.len() > self.requests_max {
                entries.kept.pop_front();
            }
            entries.calls
        });
        OpenRequest {
            log: Arc::clone(self),
            number,
            end: SeenEnd::Unanswered,
        }
    }

    pub(super) fn calls(&self) -> u64 {
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .calls
    }

    pub(super) fn requests(&self) -> Vec<SeenRequest> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.kept.iter().cloned().collect()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Entries) -> T) -> T {
        let result = change(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed
            .send_modify(|version| *version = version.wrapping_add(1));
        result
    }
}

/// A request that is being worked on; dropped without an answer it ends as [`SeenEnd::Unanswered`].
#[derive(Debug)]
pub(super) struct OpenRequest {
    log: Arc<RequestLog>,
    number: u64,
    end: SeenEnd,
}

impl OpenRequest {
    pub(super) fn answered(mut self, status: u16) {
        self.end = SeenEnd::Answered(status);
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let (number, end) = (self.number, self.end);
        self.log.change(|entries| {
            // Newest last, and most requests end soon: the search is short.
            if let Some(entry) = entries
                .kept
                .iter_mut()
                .rev()
                .find(|entry| entry.number == number)
            {
                entry.end = end;
            }
        });
    }
}
