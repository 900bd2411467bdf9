//! The body of a chat completion: read, checked in vLLM's order, rendered with the model's template.

use serde_json::{Map, Value};

use super::fields::{FieldError, Fields, refuse};
use super::reply::Reply;

/// At most so many stop strings (`VLLM_MAX_STOP_STRINGS`).
const STOP_STRINGS_MAX: usize = 4;
/// At most so many answers to one request (`VLLM_MAX_N_SEQUENCES`).
const SEQUENCES_MAX: i64 = 16384;
/// Below this temperature vLLM samples greedily.
const GREEDY_BELOW: f64 = 1e-5;

/// One message, its parts joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChatMessage {
    pub(super) role: String,
    pub(super) content: String,
}

/// A request whose fields have the right types; what they say is checked later, as vLLM does.
#[derive(Debug)]
pub(super) struct ChatRequest {
    pub(super) model: Option<String>,
    /// `None` for a `messages` of null, which vLLM notices only when it renders.
    pub(super) messages: Option<Vec<ChatMessage>>,
    pub(super) max_tokens: Option<i64>,
    /// The field that `max_tokens` came from.
    pub(super) max_tokens_field: &'static str,
    /// As sent; 1 when absent.
    pub(super) n: i64,
    pub(super) stop: Vec<String>,
    pub(super) stream: bool,
    pub(super) request_id: Option<String>,
    pub(super) format: Format,
    /// A content part that is no text.
    pub(super) has_media: bool,
    pub(super) has_chat_template: bool,
    sampling: Sampling,
}

/// What the answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Format {
    Text,
    Json,
    Schema(Value),
    /// The first of the choices of `structured_outputs`.
    Choice(String),
}

#[derive(Debug)]
struct Sampling {
    presence_penalty: f64,
    frequency_penalty: f64,
    temperature: f64,
    top_p: f64,
    top_k: i64,
}

impl ChatRequest {
    /// Reads the fields.
    pub(super) fn read(object: &Map<String, Value>) -> Result<Self, Reply> {
        check_before_fields(object)?;
        let mut fields = Fields::new(object);
        let mut has_media = false;
        let messages = read_messages(object, &mut fields, &mut has_media);
        let model = fields.text("model").map(str::to_owned);
        let frequency_penalty = fields.float("frequency_penalty").unwrap_or(0.0);
        let max_tokens = fields.integer("max_tokens");
        let max_completion_tokens = fields.integer("max_completion_tokens");
        let n = fields.integer("n").unwrap_or(1);
        let presence_penalty = fields.float("presence_penalty").unwrap_or(0.0);
        let format = read_format(&mut fields);
        let structured = read_structured_outputs(object);
        fields.integer_64("seed");
        let stop = read_stop(&mut fields);
        let stream = fields.flag("stream");
        let temperature = fields.float("temperature").unwrap_or(1.0);
        let top_p = fields.float("top_p").unwrap_or(1.0);
        let top_k = fields.integer("top_k").unwrap_or(0);
        fields.integer_64("priority");
        let request_id = fields.text("request_id").map(str::to_owned);
        if !fields.errors.is_empty() {
            return Err(refuse(&fields.errors));
        }
        let format = match (structured?, format) {
            (Some(constraint), _) => constraint,
            (None, Format::Schema(schema)) => checked_schema(schema)?,
            (None, format) => format,
        };
        Ok(Self {
            model,
            messages,
            max_tokens: max_completion_tokens.or(max_tokens),
            max_tokens_field: if max_completion_tokens.is_some() {
                "max_completion_tokens"
            } else {
                "max_tokens"
            },
            n,
            stop,
            stream,
            request_id,
            format,
            has_media,
            has_chat_template: object
                .get("chat_template")
                .is_some_and(|value| !value.is_null()),
            sampling: Sampling {
                presence_penalty,
                frequency_penalty,
                temperature,
                top_p,
                top_k,
            },
        })
    }

    /// The text of all messages: what markers of fault hooks are looked for in, and what the request log keeps.
    pub(super) fn text(&self) -> String {
        let contents: Vec<&str> = self
            .messages
            .iter()
            .flatten()
            .map(|message| message.content.as_str())
            .collect();
        contents.join("\n")
    }

    /// Checks the sampling parameters, which vLLM does last. `max_tokens` is what is left of the context.
    pub(super) fn check_sampling(&self, max_tokens: i64) -> Result<(), Reply> {
        let sampling = &self.sampling;
        let penalty = |name: &str, value: f64| {
            if (-2.0..=2.0).contains(&value) {
                return Ok(());
            }
            Err(Reply::bad_request(&format!(
                "{name} must be in [-2, 2], got {value:?}."
            )))
        };
        if self.n < 1 {
            return Err(Reply::bad_request(&format!(
                "n must be at least 1, got {}.",
                self.n
            )));
        }
        if self.n > SEQUENCES_MAX {
            return Err(Reply::bad_request(&format!(
                "n must be at most {SEQUENCES_MAX}, got {}. To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable.",
                self.n
            )));
        }
        penalty("presence_penalty", sampling.presence_penalty)?;
        penalty("frequency_penalty", sampling.frequency_penalty)?;
        check_temperature(sampling.temperature)?;
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            let message = format!("top_p must be in (0, 1], got {:?}.", sampling.top_p);
            return Err(Reply::bad_field(
                &message,
                "top_p",
                Some(&format!("{:?}", sampling.top_p)),
            ));
        }
        if sampling.top_k < -1 {
            return Err(Reply::bad_request(&format!(
                "top_k must be 0 (disable), or at least 1, got {}.",
                sampling.top_k
            )));
        }
        if max_tokens < 1 {
            let message = format!("max_tokens must be at least 1, got {max_tokens}.");
            return Err(Reply::bad_field(
                &message,
                "max_tokens",
                Some(&max_tokens.to_string()),
            ));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Reply::bad_request("stop cannot contain an empty string."));
        }
        if sampling.temperature < GREEDY_BELOW && self.n > 1 {
            return Err(Reply::bad_request(&format!(
                "n must be 1 when using greedy sampling, got {}.",
                self.n
            )));
        }
        Ok(())
    }
}

fn check_temperature(temperature: f64) -> Result<(), Reply> {
    let refuse = |words: &str| {
        let value = format!("{temperature:?}");
        let message = format!("temperature must be {words}, got {value}.");
        Err(Reply::bad_field(&message, "temperature", Some(&value)))
    };
    if !temperature.is_finite() {
        return refuse("a finite number");
    }
    if temperature < 0.0 {
        return refuse("non-negative");
    }
    if temperature > 2.0 {
        return refuse("in [0, 2]");
    }
    Ok(())
}

/// What vLLM checks on the raw body, before the types of its fields.
fn check_before_fields(object: &Map<String, Value>) -> Result<(), Reply> {
    let truthy = |name: &str| match object.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    };
    if object
        .get("tools")
        .and_then(Value::as_array)
        .is_some_and(Vec::is_empty)
    {
        return Err(Reply::bad_field(
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.",
            "tools",
            None,
        ));
    }
    let top_logprobs = object.get("top_logprobs").and_then(Value::as_i64);
    if top_logprobs.is_some_and(|top| top == -1 || top > 0) && !truthy("logprobs") {
        return Err(Reply::bad_field(
            "when using `top_logprobs`, `logprobs` must be set to true.",
            "top_logprobs",
            None,
        ));
    }
    if truthy("stream_options") && !truthy("stream") {
        return Err(Reply::bad_field(
            "Stream options can only be defined when `stream=True`.",
            "stream_options",
            None,
        ));
    }
    let format = object.get("response_format");
    let kind = format
        .and_then(|format| format.get("type"))
        .and_then(Value::as_str);
    let schema = format.and_then(|format| format.get("json_schema"));
    if kind == Some("json_schema") && schema.is_none_or(Value::is_null) {
        return Err(Reply::bad_field(
            "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
            "response_format",
            None,
        ));
    }
    Ok(())
}

fn read_format(fields: &mut Fields<'_>) -> Format {
    let Some(format) = fields.value("response_format") else {
        return Format::Text;
    };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Format::Text,
        Some("json_object") => Format::Json,
        Some("json_schema") => {
            if format
                .pointer("/json_schema/name")
                .is_none_or(Value::is_null)
            {
                let schema = format.get("json_schema").unwrap_or(&Value::Null);
                let place = "response_format.json_schema.name";
                fields.refuse("missing", place, "Field required", schema);
            }
            let schema = format.pointer("/json_schema/schema").cloned();
            schema.map_or(Format::Json, Format::Schema)
        }
        _ if format.is_object() => {
            let kind = format.get("type").unwrap_or(&Value::Null);
            let expected = "'text', 'json_object' or 'json_schema'";
            fields.errors.push(
                FieldError::new(
                    "literal_error",
                    "body.response_format.type",
                    format!("Input should be {expected}"),
                    kind,
                )
                .context(format!("{{'expected': \"{expected}\"}}")),
            );
            Format::Text
        }
        _ => {
            fields.refuse(
                "model_attributes_type",
                "response_format",
                "Input should be a valid dictionary or object to extract fields from",
                format,
            );
            Format::Text
        }
    }
}

/// The one constraint of `structured_outputs`. A regular expression, grammar or structural tag is taken and not obeyed.
fn read_structured_outputs(object: &Map<String, Value>) -> Result<Option<Format>, Reply> {
    const KINDS: [&str; 6] = [
        "json",
        "regex",
        "choice",
        "grammar",
        "json_object",
        "structural_tag",
    ];
    let Some(outputs) = object.get("structured_outputs").and_then(Value::as_object) else {
        return Ok(None);
    };
    let told = |kind: &&&str| outputs.get(**kind).is_some_and(|value| !value.is_null());
    if KINDS.iter().take(3).filter(told).count() > 1 {
        return Err(Reply::bad_request(
            "You can only use one kind of constraints for structured outputs ('json', 'regex' or 'choice').",
        ));
    }
    match KINDS.iter().filter(told).count() {
        0 => Err(Reply::bad_request(
            "You must use one kind of structured outputs constraint but none are specified",
        )),
        1 => match (outputs.get("json"), outputs.get("choice")) {
            (Some(Value::String(text)), _) => serde_json::from_str(text)
                .map_err(|error| Reply::bad_request(&format!("Grammar error: {error}")))
                .and_then(checked_schema)
                .map(Some),
            (Some(schema), _) if !schema.is_null() => checked_schema(schema.clone()).map(Some),
            (_, Some(Value::Array(choices))) => {
                let first = choices.first().and_then(Value::as_str).unwrap_or_default();
                Ok(Some(Format::Choice(first.to_owned())))
            }
            _ if outputs.get("json_object") == Some(&Value::Bool(true)) => Ok(Some(Format::Json)),
            _ => Ok(Some(Format::Text)),
        },
        _ => Err(Reply::bad_request(
            "You can only use one kind of structured outputs constraint but multiple are specified",
        )),
    }
}

/// A schema whose outermost type exists; vLLM's grammar compiler finds more.
fn checked_schema(schema: Value) -> Result<Format, Reply> {
    const TYPES: [&str; 7] = [
        "object", "array", "string", "number", "integer", "boolean", "null",
    ];
    match schema.get("type").and_then(Value::as_str) {
        Some(unknown) if !TYPES.contains(&unknown) => Err(Reply::bad_request(&format!(
            "Grammar error: Invalid type: {unknown}"
        ))),
        _ => Ok(Format::Schema(schema)),
    }
}

fn read_stop(fields: &mut Fields<'_>) -> Vec<String> {
    let Some(stop) = fields.value("stop") else {
        return Vec::new();
    };
    match stop {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) if items.len() <= STOP_STRINGS_MAX => items
            .iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect(),
        _ => {
            fields.refuse(
                "string_type",
                "stop",
                "Input should be a valid string",
                stop,
            );
            match stop {
                Value::Array(items) => fields.errors.push(
                    FieldError::new(
                        "too_long",
                        "body.stop",
                        format!(
                            "List should have at most {STOP_STRINGS_MAX} items after validation, not {}",
                            items.len()
                        ),
                        stop,
                    )
                    .context(format!(
                        "{{'field_type': 'List', 'max_length': {STOP_STRINGS_MAX}, 'actual_length': {}}}",
                        items.len()
                    )),
                ),
                _ => fields.refuse("list_type", "stop", "Input should be a valid list", stop),
            }
            Vec::new()
        }
    }
}

/// Reads `messages`, of a chat completion or of `/tokenize`.
pub(super) fn read_messages(
    object: &Map<String, Value>,
    fields: &mut Fields<'_>,
    has_media: &mut bool,
) -> Option<Vec<ChatMessage>> {
    match object.get("messages") {
        None => {
            fields.missing("messages");
            None
        }
        Some(Value::Null) => None,
        Some(Value::Array(items)) => Some(
            items
                .iter()
                .enumerate()
                .filter_map(|(index, item)| read_message(index, item, fields, has_media))
                .collect(),
        ),
        Some(other) => {
            fields.refuse(
                "list_type",
                "messages",
                "Input should be a valid list",
                other,
            );
            None
        }
    }
}

fn read_message(
    index: usize,
    item: &Value,
    fields: &mut Fields<'_>,
    has_media: &mut bool,
) -> Option<ChatMessage> {
    // vLLM tries eight kinds of messages and lists the errors of all; the first is told here.
    let place = format!("messages.{index}.ChatCompletionDeveloperMessageParam");
    let Some(message) = item.as_object() else {
        fields.refuse(
            "dict_type",
            &place,
            "Input should be a valid dictionary",
            item,
        );
        return None;
    };
    let Some(role) = message.get("role").and_then(Value::as_str) else {
        fields.refuse("missing", &format!("{place}.role"), "Field required", item);
        return None;
    };
    let content = match message.get("content") {
        None => String::new(),
        Some(Value::Null) if role == "assistant" => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts: Vec<&str> = parts
                .iter()
                .filter_map(|part| {
                    let text = part.as_str().or_else(|| part.get("text")?.as_str());
                    *has_media |= text.is_none();
                    text
                })
                .collect();
            texts.join("\n")
        }
        Some(other) => {
            let place = format!("{place}.content");
            fields.refuse(
                "string_type",
                &place,
                "Input should be a valid string",
                other,
            );
            return None;
        }
    };
    Some(ChatMessage {
        role: role.to_owned(),
        content,
    })
}

/// Renders messages as the template of Mistral-7B-Instruct-v0.2 does. Its first revisions refuse a system message, later ones put
/// it before the first user message.
pub(super) fn render(messages: &[ChatMessage], accepts_system_role: bool) -> Result<String, Reply> {
    const ALTERNATE: &str = "Conversation roles must alternate user/assistant/user/assistant/...";
    if messages.is_empty() {
        return Err(Reply::bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        ));
    }
    let mut prompt = String::from("<s>");
    let mut system = None;
    let mut turns = messages;
    if accepts_system_role
        && let Some((first, rest)) = messages.split_first()
        && first.role == "system"
    {
        system = Some(first.content.as_str());
        turns = rest;
    }
    for (index, message) in turns.iter().enumerate() {
        let users_turn = index % 2 == 0;
        if (message.role == "user") != users_turn {
            return Err(Reply::bad_request(ALTERNATE));
        }
        match message.role.as_str() {
            "user" => {
                let system = system
                    .take()
                    .map_or_else(String::new, |text| format!("{text}\n\n"));
                prompt.push_str(&format!("[INST] {system}{} [/INST]", message.content));
            }
            "assistant" => prompt.push_str(&format!("{}</s>", message.content)),
            _ => {
                return Err(Reply::bad_request(
                    "Only user and assistant roles are supported!",
                ));
            }
        }
    }
    Ok(prompt)
}
