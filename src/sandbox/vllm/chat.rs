//! `POST /v1/chat/completions`: hooks, checks in vLLM's order, the engine, the answer.

use axum::http::HeaderMap;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::answer::{extract, extract_json};
use super::engine::{Ran, Refused};
use super::faults::Action;
use super::fields;
use super::reply::Reply;
use super::request::{ChatRequest, Format, render};
use super::server::{Outcome, Shared, header_text, is_json, unix_seconds};
use super::{Answers, CHAT_PATH, metrics, tokenizer};

/// Build that answers claim to come from, as vLLM writes it; the last part says what it is.
const FINGERPRINT: &str = "vllm-0.32.0-simulated";
/// Words of an aborted answer that are sent when a hook asks for one.
const ABORTED_SHARE: f64 = 0.3;

/// Answers one request, or does what the hooks say.
pub(super) async fn chat(shared: &Shared, headers: &HeaderMap, body: &[u8]) -> Outcome {
    let object = is_json(headers).and_then(|()| fields::object(body));
    let parsed = object
        .as_ref()
        .map_err(Clone::clone)
        .and_then(ChatRequest::read);
    let prompt = match &parsed {
        Ok(request) if request.messages.is_some() => request.text(),
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    let seen = shared.log.open(
        header_text(headers, "x-request-id"),
        header_text(headers, "traceparent"),
        &prompt,
        object.as_ref().ok(),
    );
    let mut change = None;
    for action in shared.faults.take(CHAT_PATH, &prompt) {
        match action {
            Action::Delay(time) => tokio::time::sleep(time).await,
            Action::HangUp => return Outcome::HangUp,
            Action::HangForEver => std::future::pending().await,
            Action::EndlessBody => {
                seen.answered(200);
                return Outcome::EndlessBody;
            }
            Action::Answer {
                status,
                headers,
                body,
            } => {
                seen.answered(status);
                let mut reply = Reply::json_text(status, body);
                reply.headers.extend(headers);
                return Outcome::Reply(reply);
            }
            other => change = Some(other),
        }
    }
    let mut answer = match parsed {
        Ok(request) => complete(shared, headers, &request, change.as_ref()).await,
        Err(reply) => reply,
    };
    seen.answered(answer.status);
    match change {
        Some(Action::CutMidBody) => Outcome::CutMidBody(answer),
        Some(Action::Garbage) if answer.status == 200 => {
            Outcome::Reply(Reply::json_text(200, "<html>this is no JSON"))
        }
        Some(Action::HugeHeader { bytes }) => {
            answer.pad(bytes);
            Outcome::Reply(answer)
        }
        _ => Outcome::Reply(answer),
    }
}

async fn complete(
    shared: &Shared,
    headers: &HeaderMap,
    request: &ChatRequest,
    change: Option<&Action>,
) -> Reply {
    match try_complete(shared, headers, request, change).await {
        Ok(reply) | Err(reply) => reply,
    }
}

async fn try_complete(
    shared: &Shared,
    headers: &HeaderMap,
    request: &ChatRequest,
    change: Option<&Action>,
) -> Result<Reply, Reply> {
    let arrived = Instant::now();
    shared.check_model(request.model.as_deref())?;
    let sequences = usize::try_from(request.n.max(1)).unwrap_or(usize::MAX);
    let refused = |refused| match refused {
        Refused::Busy => {
            shared.metrics.rejected_by_reqs();
            Reply::busy()
        }
        Refused::Backlog => {
            shared.metrics.rejected_by_tokens();
            Reply::backlog()
        }
        Refused::Draining => Reply::draining(),
        Refused::Dead => Reply::engine_dead(),
    };
    let taken = shared.engine.admit(sequences).map_err(refused)?;
    let (prompt_tokens, max_tokens) = fit(shared, request)?;
    let mut generated = match change {
        Some(Action::Content(content)) => generate(content, usize::MAX, &[]),
        _ => generate(&said(shared, request), max_tokens, &request.stop),
    };
    if change == Some(&Action::Truncated) {
        generated.truncate();
    }
    let begins = || {
        if let Some(Action::KillEngine { restart_after }) = change {
            shared.kill_engine(*restart_after);
        }
    };
    let ran = taken
        .run(prompt_tokens, generated.tokens, begins)
        .await
        .map_err(refused)?;
    match (ran, change) {
        (Ran::Aborted(share), _) => generated.abort(share),
        (Ran::Done, Some(Action::Abort)) => generated.abort(ABORTED_SHARE),
        (Ran::Done, _) => {}
    }
    let completion_tokens = generated.tokens.saturating_mul(sequences);
    shared.metrics.finished(
        generated.finish_reason,
        prompt_tokens,
        completion_tokens,
        arrived.elapsed(),
    );
    let content = (change != Some(&Action::NullContent)).then_some(generated.text.as_str());
    let id = header_text(headers, "x-request-id")
        .or_else(|| request.request_id.clone())
        .unwrap_or_else(|| shared.next_id());
    let mut reply = Reply::json(&Completion {
        id: format!("chatcmpl-{id}"),
        object: "chat.completion",
        created: unix_seconds(),
        model: shared.model(),
        choices: (0..sequences)
            .map(|index| Choice::new(index, content, &generated))
            .collect(),
        service_tier: None,
        system_fingerprint: FINGERPRINT,
        usage: Usage {
            prompt_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            completion_tokens,
            prompt_tokens_details: None,
            completion_tokens_details: None,
        },
        prompt_logprobs: None,
        prompt_token_ids: None,
        prompt_text: None,
        kv_transfer_params: None,
        ec_transfer_params: None,
        metrics: None,
    });
    reply.headers.extend(load_header(shared, headers));
    Ok(reply)
}

/// The load, for a request that asks for it.
fn load_header(shared: &Shared, headers: &HeaderMap) -> Option<(String, String)> {
    let format = header_text(headers, "endpoint-load-metrics-format")
        .filter(|_| shared.config.reports_load)?;
    let load = metrics::load_header(&format, shared.engine.load())?;
    Some(("endpoint-load-metrics".to_owned(), load))
}

/// What the model says when nothing cuts it.
fn said(shared: &Shared, request: &ChatRequest) -> String {
    if let Answers::Fixed(text) = &shared.config.answers {
        return text.clone();
    }
    match &request.format {
        Format::Text => extract(&question(request)),
        Format::Json => extract_json(&question(request), None),
        Format::Schema(schema) => extract_json(&question(request), Some(schema)),
        Format::Choice(choice) => choice.clone(),
    }
}

/// Checks that the request fits the context; tells its prompt tokens and the tokens that its answer may have.
fn fit(shared: &Shared, request: &ChatRequest) -> Result<(usize, usize), Reply> {
    let context = shared.config.max_model_len;
    let asked = request.max_tokens;
    if let Some(asked) = asked
        && usize::try_from(asked).is_ok_and(|asked| asked > context)
    {
        let field = request.max_tokens_field;
        let message = format!(
            "{field}={asked} cannot be greater than max_model_len={context}. Please request fewer output tokens."
        );
        return Err(Reply::bad_field(&message, field, Some(&asked.to_string())));
    }
    if request.stream {
        // The one field that vLLM serves and this server does not: it says so and does not answer with something else.
        return Err(Reply::error(
            501,
            "NotImplementedError",
            "The simulated vLLM does not stream: send `stream: false`.",
            Some("stream"),
        ));
    }
    if request.has_chat_template {
        return Err(Reply::bad_request(
            "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request with untrusted chat template.",
        ));
    }
    if request.has_media {
        let message = format!("{} is not a multimodal model", shared.model());
        return Err(Reply::bad_request(&message));
    }
    let Some(messages) = &request.messages else {
        return Err(Reply::bad_request("'NoneType' object is not iterable"));
    };
    let prompt = render(messages, shared.config.accepts_system_role)?;
    let prompt_tokens = count_within(&prompt, context)?;
    let left = context.saturating_sub(prompt_tokens);
    let left = i64::try_from(left).unwrap_or(i64::MAX);
    let max_tokens = asked.map_or(left, |asked| asked.min(left));
    request.check_sampling(max_tokens)?;
    Ok((prompt_tokens, usize::try_from(max_tokens).unwrap_or(1)))
}

/// Counts a prompt's tokens; refuses it by its characters where that suffices, as vLLM does, so that a huge one costs nothing.
fn count_within(prompt: &str, context: usize) -> Result<usize, Reply> {
    let characters = prompt.chars().count();
    let characters_max = context.saturating_mul(tokenizer::TOKEN_CHARS_MAX);
    if characters > characters_max {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, your prompt contains {characters} characters (more than {characters_max} characters, which is the upper bound for {context} input tokens). Please reduce the length of the input prompt."
        );
        return Err(Reply::bad_field(
            &message,
            "input_text",
            Some(&characters.to_string()),
        ));
    }
    let tokens = tokenizer::count(prompt);
    if tokens > context {
        // vLLM stops counting one beyond the context.
        let seen = context.saturating_add(1);
        let message = format!(
            "This model's maximum context length is {context} tokens. However, your prompt contains at least {seen} input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
        );
        return Err(Reply::bad_field(
            &message,
            "input_tokens",
            Some(&seen.to_string()),
        ));
    }
    Ok(tokens)
}

/// What the model is asked: the last message of the user.
fn question(request: &ChatRequest) -> String {
    request
        .messages
        .iter()
        .flatten()
        .rev()
        .find(|message| message.role == "user")
        .map_or_else(String::new, |message| message.content.clone())
}

/// The part of an answer that is sent, and why it ends there.
struct Generated {
    text: String,
    tokens: usize,
    finish_reason: &'static str,
    stop_reason: Option<String>,
}

impl Generated {
    /// Keeps the first half of the tokens.
    fn truncate(&mut self) {
        self.tokens = tokenizer::count(&self.text) / 2;
        self.text = tokenizer::tokens(&self.text).take(self.tokens).collect();
        self.finish_reason = "length";
        self.stop_reason = None;
    }

    /// Keeps this share of the answer's words.
    fn abort(&mut self, share: f64) {
        let words: Vec<&str> = self.text.split_inclusive(' ').collect();
        let per_word = 1.0 / f64::from(u32::try_from(words.len().max(1)).unwrap_or(u32::MAX));
        let kept: String = words
            .iter()
            .scan(0.0, |done, word| {
                *done += per_word;
                (*done <= share).then_some(*word)
            })
            .collect();
        self.tokens = tokenizer::count(&kept);
        self.text = kept;
        self.finish_reason = "abort";
        self.stop_reason = None;
    }
}

/// Cuts an answer at `max_tokens` and at the first stop string. The end itself is a token, as a model's end marker is.
fn generate(text: &str, max_tokens: usize, stop: &[String]) -> Generated {
    let within: String = tokenizer::tokens(text).take(max_tokens).collect();
    let found = stop
        .iter()
        .filter_map(|stop| within.find(stop.as_str()).map(|place| (place, stop)))
        .min_by_key(|(place, _)| *place);
    if let Some((place, stop)) = found {
        let read = within.get(..place + stop.len()).unwrap_or(&within);
        return Generated {
            text: within.get(..place).unwrap_or_default().to_owned(),
            tokens: tokenizer::count(read),
            finish_reason: "stop",
            stop_reason: Some(stop.clone()),
        };
    }
    let tokens = tokenizer::count(text);
    let ends = tokens < max_tokens;
    Generated {
        text: within,
        tokens: if ends { tokens + 1 } else { max_tokens },
        finish_reason: if ends { "stop" } else { "length" },
        stop_reason: None,
    }
}

/// A field that vLLM sends and that is null here.
type Null = Option<Value>;

#[derive(Serialize)]
struct Completion<'a> {
    id: String,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    service_tier: Null,
    system_fingerprint: &'static str,
    usage: Usage,
    prompt_logprobs: Null,
    prompt_token_ids: Null,
    prompt_text: Null,
    kv_transfer_params: Null,
    ec_transfer_params: Null,
    metrics: Null,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: AnswerMessage<'a>,
    logprobs: Null,
    finish_reason: &'static str,
    stop_reason: Option<&'a str>,
    token_ids: Null,
    routed_experts: Null,
}

impl<'a> Choice<'a> {
    fn new(index: usize, content: Option<&'a str>, generated: &'a Generated) -> Self {
        Self {
            index,
            message: AnswerMessage {
                role: "assistant",
                content,
                refusal: None,
                annotations: None,
                audio: None,
                function_call: None,
                reasoning: None,
            },
            logprobs: None,
            finish_reason: generated.finish_reason,
            stop_reason: generated.stop_reason.as_deref(),
            token_ids: None,
            routed_experts: None,
        }
    }
}

#[derive(Serialize)]
struct AnswerMessage<'a> {
    role: &'static str,
    content: Option<&'a str>,
    refusal: Null,
    annotations: Null,
    audio: Null,
    function_call: Null,
    reasoning: Null,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    prompt_tokens_details: Null,
    completion_tokens_details: Null,
}

#[cfg(test)]
mod tests {
    use super::super::answer::SIMULATED;
    use super::*;

    #[test]
    fn an_answer_ends_at_its_end_at_a_stop_string_or_at_max_tokens() {
        let whole = generate("one two", 10, &[]);
        assert_eq!(
            (whole.text.as_str(), whole.tokens, whole.finish_reason),
            ("one two", 3, "stop")
        );
        let cut = generate("one two", 2, &[]);
        assert_eq!(
            (cut.text.as_str(), cut.tokens, cut.finish_reason),
            ("one two", 2, "length")
        );
        let cut = generate("one two", 1, &[]);
        assert_eq!(
            (cut.text.as_str(), cut.tokens, cut.finish_reason),
            ("one", 1, "length")
        );
        let stopped = generate(
            "one two three",
            10,
            &["three".to_owned(), " two".to_owned()],
        );
        assert_eq!((stopped.text.as_str(), stopped.tokens), ("one", 2));
        assert_eq!(stopped.stop_reason.as_deref(), Some(" two"));
    }

    #[test]
    fn an_aborted_answer_is_the_beginning_of_the_whole() {
        let mut generated = generate("a b c d e f g h i j", 100, &[]);
        generated.abort(0.3);
        assert_eq!(generated.text, "a b ");
        assert_eq!(generated.finish_reason, "abort");
        generated.abort(0.0);
        assert_eq!((generated.text.as_str(), generated.tokens), ("", 0));
    }

    #[test]
    fn the_mark_survives_a_small_token_bound() {
        let bound = tokenizer::count(SIMULATED);
        assert_eq!(
            generate(&extract("A document."), bound, &[]).text,
            SIMULATED
        );
    }
}
