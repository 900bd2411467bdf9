//! What went wrong, from what was seen: status, headers, body, transport error. Pure and total; what to do about it is
//! `policy.rs`'s business.
//!
//! Decisions rest on the status and on the `param` field, never on wording, with one exception that is marked. Sentences are for
//! operators: they name the setting to change and hold no text of the document, which vLLM's own 400 messages may echo.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::api::{self, Answer, ErrorBody};
use super::transport::{ConnectFault, TransportError};
use crate::types::DeadLetterReason;

/// The longest piece of a server's sentence that is repeated, in characters.
const QUOTED_CHARS_MAX: usize = 160;

/// The kind of a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server has too much to do; not a failure.
    Capacity {
        /// How long it asks to wait, unbounded as it came.
        retry_after: Option<Duration>,
    },
    /// It may go well the next time.
    Transient,
    /// The connection ended before a byte of the answer: often a kept-alive connection that the server had closed.
    Disconnected,
    /// No answer in the attempt's time.
    TimedOut,
    /// The server cannot be reached or used as it is set up; nothing is wrong with the document.
    Endpoint,
    /// The server refuses the request; whether the document or our settings are at fault shows in what it does with others.
    Request,
    /// The server refuses this document.
    Document(DeadLetterReason),
    /// The prompt is longer than the context.
    TooLong,
    /// 200, but the engine gave up in the middle.
    Aborted,
    /// 200, but not an answer.
    Unreadable,
    /// 200 and an answer, but without text.
    Empty,
}

impl Fault {
    /// The stable name, in snake case: a metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Capacity { .. } => "capacity",
            Self::Transient => "transient",
            Self::Disconnected => "disconnected",
            Self::TimedOut => "timed_out",
            Self::Endpoint => "endpoint",
            Self::Request => "request",
            Self::Document(_) => "document",
            Self::TooLong => "too_long",
            Self::Aborted => "aborted",
            Self::Unreadable => "unreadable",
            Self::Empty => "empty",
        }
    }
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub fault: Fault,
    /// One sentence for the operator, without document text.
    pub detail: String,
    /// Status of the answer, when there was one.
    pub status: Option<u16>,
}

/// Who was asked, for the sentences.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Base URL.
    pub url: &'a str,
    /// Served model name.
    pub model: &'a str,
}

/// Judges an answer to a chat completion. `now` is needed for a `Retry-After` that is a date; `redact` takes out of the server's words what
/// must not be repeated, before they are cut: of a secret across the cut the beginning would stay.
///
/// # Errors
/// The failure, when it is not an answer with text. One that was cut (`length`) is an answer here.
pub fn reply(
    target: Target<'_>,
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
    redact: impl FnOnce(String) -> String,
) -> Result<Answer, Failure> {
    if status != 200 {
        let mut error = api::read_error(body);
        error.message = error.message.map(redact);
        let (fault, detail) = refusal(target, status, headers, &error, now);
        return Err(Failure {
            fault,
            detail,
            status: Some(status),
        });
    }
    let failure = |fault, detail: String| Failure {
        fault,
        detail,
        status: Some(status),
    };
    let answer = api::read_answer(body).map_err(|problem| {
        failure(
            Fault::Unreadable,
            format!("the server's answer cannot be read: {problem}"),
        )
    })?;
    match answer.finish_reason.as_str() {
        "abort" | "error" => Err(failure(
            Fault::Aborted,
            "the engine ended the answer before it was complete".to_owned(),
        )),
        "length" if answer.content.is_none() => Err(failure(
            Fault::Empty,
            "all tokens went into reasoning and none into the answer: raise llm.max_tokens or switch the model's reasoning off"
                .to_owned(),
        )),
        _ if answer.content.is_none() => Err(failure(
            Fault::Empty,
            "the server's answer has no text".to_owned(),
        )),
        _ => Ok(answer),
    }
}

/// Judges an exchange that brought no complete answer.
#[must_use]
pub fn transport(target: Target<'_>, error: &TransportError) -> Failure {
    let url = target.url;
    let (fault, detail) = match error {
        TransportError::Connect { fault, detail } => (
            Fault::Endpoint,
            match fault {
                ConnectFault::Refused => format!(
                    "nothing listens at {url} (LLM_URL): start vLLM, wait until it has loaded its model, or correct LLM_URL"
                ),
                ConnectFault::Dns => {
                    format!("the host of {url} (LLM_URL) cannot be resolved: correct LLM_URL")
                }
                ConnectFault::Tls => format!(
                    "TLS with {url} (LLM_URL) failed ({detail}): correct LLM_URL or name the server's CA in llm.ca_file"
                ),
                ConnectFault::TimedOut => {
                    format!("{url} (LLM_URL) does not answer connection attempts")
                }
                ConnectFault::Other => format!("no connection to {url} (LLM_URL): {detail}"),
            },
        ),
        TransportError::Disconnected => (
            Fault::Disconnected,
            format!("{url} (LLM_URL) closed the connection before an answer"),
        ),
        TransportError::Broken => (
            Fault::Transient,
            "the connection closed in the middle of the answer".to_owned(),
        ),
        TransportError::TimedOut => (
            Fault::TimedOut,
            format!("{url} (LLM_URL) does not answer in time (LLM_TIMEOUT)"),
        ),
        TransportError::TooLarge(limit) => (
            Fault::Unreadable,
            format!("the answer is larger than llm.response_bytes_max = {limit} bytes"),
        ),
    };
    Failure {
        fault,
        detail,
        status: None,
    }
}

/// Any status but 200.
fn refusal(
    target: Target<'_>,
    status: u16,
    headers: &HeaderMap,
    error: &ErrorBody,
    now: Timestamp,
) -> (Fault, String) {
    let url = target.url;
    match status {
        400 => bad_request(error),
        401 | 403 | 407 => (
            Fault::Endpoint,
            format!(
                "{url} refuses the key (status {status}): set llm.api_key or llm.api_key_file to one that vLLM's --api-key names"
            ),
        ),
        404 if error.param.as_deref() == Some("model")
            || error.kind.as_deref() == Some("NotFoundError") =>
        {
            (Fault::Endpoint, unknown_model(target, None))
        }
        404 | 405 | 410 => (
            Fault::Endpoint,
            format!(
                "{url} has no {} (status {status}): LLM_URL must be the base URL of an OpenAI-compatible server",
                api::CHAT_PATH
            ),
        ),
        402 | 426 | 505 | 511 => (
            Fault::Endpoint,
            with_quote(format!("{url} refuses service (status {status})"), error),
        ),
        413 => (
            Fault::Document(DeadLetterReason::RequestRejected),
            "the request is larger than the server accepts (status 413)".to_owned(),
        ),
        429 | 503 | 529 => (
            Fault::Capacity {
                retry_after: retry_after(headers, now),
            },
            format!("the server has too much to do (status {status})"),
        ),
        408 | 425 => (Fault::Transient, format!("status {status}")),
        // Not built into this server: the same for every document until the settings change.
        501 => (
            Fault::Request,
            with_quote(
                "the server does not implement this (status 501)".to_owned(),
                error,
            ),
        ),
        500.. => (
            Fault::Transient,
            with_quote(format!("the server failed (status {status})"), error),
        ),
        300..400 => (
            Fault::Endpoint,
            format!("{url} redirects (status {status}): write the final address into LLM_URL"),
        ),
        402.. => (
            Fault::Request,
            with_quote(
                format!("the server refuses the request (status {status})"),
                error,
            ),
        ),
        _ => (
            Fault::Unreadable,
            format!("the server answers with status {status}, which no completion has"),
        ),
    }
}

/// The sentence for a model that is not served; `served` are the names that are, when known.
pub(super) fn unknown_model(target: Target<'_>, served: Option<&[api::ServedModel]>) -> String {
    let Target { url, model } = target;
    let served = served.map_or_else(String::new, |models| {
        let names: Vec<_> = models
            .iter()
            .take(8)
            .map(|model| model.id.as_str())
            .collect();
        format!("; it serves {}", names.join(", "))
    });
    format!("{url} does not serve the model `{model}`{served}: set MODEL_NAME (llm.model)")
}

fn bad_request(error: &ErrorBody) -> (Fault, String) {
    let too_long = || {
        (
            Fault::TooLong,
            "the prompt is longer than the model's context".to_owned(),
        )
    };
    match error.param.as_deref() {
        Some("input_tokens" | "input_text") => return too_long(),
        // A prompt that fills the context exactly leaves no token for the answer, and vLLM 0.32 words that as if we had asked for
        // none. We never do, so this wording can mean nothing else: the one place where words decide.
        Some("max_tokens") | None
            if error.message.as_deref().is_some_and(|message| {
                message.starts_with("max_tokens must be at least 1, got 0")
            }) =>
        {
            return too_long();
        }
        _ => {}
    }
    (
        Fault::Request,
        with_quote(
            "the server refuses the request (status 400)".to_owned(),
            error,
        ),
    )
}

/// Adds what of the server's sentence can be repeated.
fn with_quote(sentence: String, error: &ErrorBody) -> String {
    let mut sentence = sentence;
    if let Some(param) = error.param.as_deref().filter(|param| is_name(param)) {
        sentence.push_str(", parameter ");
        sentence.push_str(param);
    }
    let quote = error
        .message
        .as_deref()
        .map(|message| quotable(message, error.kind.as_deref()))
        .unwrap_or_default();
    if !quote.is_empty() {
        sentence.push_str(": ");
        sentence.push_str(&quote);
    }
    sentence
}

fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// What can be repeated of a server's sentence: of a validation error (type `Bad Request`, which echoes the input) only where it
/// lies; of any other the first line, without what is in quotes, and short.
fn quotable(message: &str, kind: Option<&str>) -> String {
    if kind == Some("Bad Request") {
        let places: Vec<_> = message
            .match_indices("'loc': '")
            .filter_map(|(at, found)| {
                let rest = message.get(at + found.len()..)?;
                rest.get(..rest.find('\'')?)
            })
            .filter(|place| is_name(place))
            .take(4)
            .collect();
        return places.join(", ");
    }
    let mut quote = String::new();
    let mut until = None;
    let mut before = ' ';
    for char in message
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(QUOTED_CHARS_MAX)
    {
        match until {
            Some(end) if char == end => until = None,
            Some(_) => {}
            // An apostrophe inside a word opens nothing.
            None if matches!(char, '"' | '`') || (char == '\'' && !before.is_alphanumeric()) => {
                until = Some(char);
                quote.push('…');
            }
            None if char.is_control() => {}
            None => quote.push(char),
        }
        before = char;
    }
    quote.trim().to_owned()
}

/// `Retry-After` in seconds or as a date; one that is neither, or lies in the past, is none.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Duration::try_from(date.duration_since(now)).ok()
}

#[cfg(test)]
mod tests;
