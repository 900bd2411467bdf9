//! Every route but chat completions.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use serde::Serialize;
use serde_json::{Map, Value};

use super::faults::EngineState;
use super::fields::{self, FieldError, Fields, refuse, whole_number};
use super::reply::Reply;
use super::request::{read_messages, render};
use super::server::{Shared, is_json, read, unix_seconds};
use super::{CHAT_PATH, tokenizer};

/// The methods of a path; `None` for a path that is not served.
fn allowed(shared: &Shared, path: &str) -> Option<&'static str> {
    match path {
        "/tokenize" | "/detokenize" if !shared.config.serves_tokenize => None,
        "/health" | "/v1/models" | "/version" | "/load" | "/metrics" => Some("GET"),
        "/ping" => Some("GET, POST"),
        CHAT_PATH | "/tokenize" | "/detokenize" => Some("POST"),
        _ => None,
    }
}

pub(super) async fn route(shared: &Shared, parts: &Parts, body: Body) -> Reply {
    let path = parts.uri.path();
    let Some(allow) = allowed(shared, path) else {
        return not_found(shared, parts);
    };
    let method = &parts.method;
    if !allow.split(", ").any(|allowed| allowed == method.as_str()) {
        return Reply::method_not_allowed(allow);
    }
    match (method, path) {
        (_, "/health" | "/ping") => {
            let dead = shared.faults.engine() == EngineState::Dead;
            Reply::empty(if dead { 503 } else { 200 })
        }
        (_, "/version") => Reply::json_text(200, r#"{"version":"0.32.0"}"#),
        (_, "/load") => Reply::json_text(200, r#"{"server_load":0}"#),
        (_, "/metrics") => metrics(shared),
        (_, "/v1/models") => models(shared),
        (&Method::POST, _) => match read(body).await {
            Ok(body) => tokenization(shared, path, &parts.headers, &body),
            Err(reply) => reply,
        },
        _ => Reply::method_not_allowed(allow),
    }
}

/// 404, or the redirect of a path that only has a slash too many.
fn not_found(shared: &Shared, parts: &Parts) -> Reply {
    let path = parts.uri.path();
    let host = parts
        .headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if let (Some(shorter), Some(host)) = (path.strip_suffix('/'), host)
        && allowed(shared, shorter).is_some()
    {
        let mut reply = Reply::empty(307);
        reply
            .headers
            .push(("location".to_owned(), format!("http://{host}{shorter}")));
        return reply;
    }
    Reply::detail(404, "Not Found")
}

fn metrics(shared: &Shared) -> Reply {
    let load = shared.config.reports_load.then(|| shared.engine.load());
    let body = shared.metrics.text(shared.model(), load);
    Reply {
        status: 200,
        headers: vec![(
            "content-type".to_owned(),
            "text/plain; version=1.0.0; charset=utf-8".to_owned(),
        )],
        body,
    }
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<ModelCard<'a>>,
}

#[derive(Serialize)]
struct ModelCard<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
    root: &'a str,
    parent: Option<&'a str>,
    max_model_len: usize,
    permission: [ModelPermission; 1],
}

#[derive(Serialize)]
struct ModelPermission {
    id: String,
    object: &'static str,
    created: i64,
    allow_create_engine: bool,
    allow_sampling: bool,
    allow_logprobs: bool,
    allow_search_indices: bool,
    allow_view: bool,
    allow_fine_tuning: bool,
    organization: &'static str,
    group: Option<&'static str>,
    is_blocking: bool,
}

fn models(shared: &Shared) -> Reply {
    let created = unix_seconds();
    let card = |id| ModelCard {
        id,
        object: "model",
        created,
        owned_by: "vllm",
        root: shared.model(),
        parent: None,
        max_model_len: shared.config.max_model_len,
        permission: [ModelPermission {
            id: format!("modelperm-{}", shared.next_id()),
            object: "model_permission",
            created,
            allow_create_engine: false,
            allow_sampling: true,
            allow_logprobs: true,
            allow_search_indices: false,
            allow_view: true,
            allow_fine_tuning: false,
            organization: "*",
            group: None,
            is_blocking: false,
        }],
    };
    Reply::json(&ModelList {
        object: "list",
        data: shared
            .config
            .models
            .iter()
            .map(|id| card(id.as_str()))
            .collect(),
    })
}

#[derive(Serialize)]
struct Tokenized<'a> {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u64>,
    token_strs: Option<Vec<&'a str>>,
}

fn tokenization(shared: &Shared, path: &str, headers: &HeaderMap, body: &[u8]) -> Reply {
    let answer = is_json(headers)
        .and_then(|()| fields::object(body))
        .and_then(|object| match path {
            "/tokenize" => tokenize(shared, &object),
            _ => detokenize(shared, &object),
        });
    match answer {
        Ok(reply) | Err(reply) => reply,
    }
}

fn tokenize(shared: &Shared, object: &Map<String, Value>) -> Result<Reply, Reply> {
    let mut fields = Fields::new(object);
    let model = fields.text("model");
    let with_text = fields.flag("return_token_strs");
    let prompt = fields.text("prompt").map(str::to_owned);
    let messages = if object.contains_key("messages") {
        read_messages(object, &mut fields, &mut false)
    } else {
        if prompt.is_none() {
            fields.missing("prompt");
            fields.missing("messages");
        }
        None
    };
    if !fields.errors.is_empty() {
        return Err(refuse(&fields.errors));
    }
    shared.check_model(model)?;
    let text = match (prompt, messages) {
        (Some(prompt), _) => prompt,
        (None, messages) => render(
            &messages.unwrap_or_default(),
            shared.config.accepts_system_role,
        )?,
    };
    let tokens = tokenizer::encode(&text);
    Ok(Reply::json(&Tokenized {
        count: tokens.len(),
        max_model_len: shared.config.max_model_len,
        tokens,
        token_strs: with_text.then(|| tokenizer::tokens(&text).collect()),
    }))
}

fn detokenize(shared: &Shared, object: &Map<String, Value>) -> Result<Reply, Reply> {
    let mut fields = Fields::new(object);
    let model = fields.text("model");
    let mut ids = Vec::new();
    match object.get("tokens") {
        None => fields.missing("tokens"),
        Some(Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                match whole_number(item) {
                    Ok(id) => ids.push(u64::try_from(id).unwrap_or(0)),
                    Err((kind, message)) => fields.errors.push(FieldError::new(
                        kind,
                        format!("body.tokens.{index}"),
                        message,
                        item,
                    )),
                }
            }
        }
        Some(other) => fields.refuse("list_type", "tokens", "Input should be a valid list", other),
    }
    if !fields.errors.is_empty() {
        return Err(refuse(&fields.errors));
    }
    shared.check_model(model)?;
    // vLLM decodes ids beyond the vocabulary to nothing.
    let prompt: String = ids
        .iter()
        .filter_map(|id| tokenizer::decode(&[*id]))
        .collect();
    Ok(Reply::json(&serde_json::json!({ "prompt": prompt })))
}
