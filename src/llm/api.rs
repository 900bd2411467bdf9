//! The OpenAI-compatible requests and answers as vLLM serves them, read leniently: beyond `choices` and `finish_reason` nothing is
//! relied on, and an error body may have any shape.

use std::fmt;
use std::marker::PhantomData;

use reqwest::header::HeaderMap;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::Message;

/// The most tokens that are believed of one call: sums of them over the calls of a document never overflow.
const TOKENS_MAX: u64 = 1 << 40;
/// Where chat completions are asked for.
pub(super) const CHAT_PATH: &str = "/v1/chat/completions";
/// Where the served models are listed; unlike `/health` it needs the key.
pub(super) const MODELS_PATH: &str = "/v1/models";

/// Whether the engine lives; without a body, and without the key.
pub(super) const HEALTH_PATH: &str = "/health";

/// Where tokens are counted; without the key.
pub(super) const TOKENIZE_PATH: &str = "/tokenize";

/// Body of a count of tokens, the chat template's own included.
#[derive(Debug, Serialize)]
pub(super) struct TokenizeRequest<'a> {
    pub(super) model: &'a str,
    pub(super) messages: &'a [Message],
}

/// Reads a count of tokens; `None` when the body is none.
pub(super) fn read_count(body: &[u8]) -> Option<u64> {
    /// The tokens themselves are skipped: there may be a million.
    #[derive(Deserialize)]
    struct Counted {
        count: u64,
    }
    let Object(counted) = serde_json::from_slice::<Object<Counted>>(body).ok()?;
    Some(counted.count.min(TOKENS_MAX))
}

/// Requests that wait in the server, of the header that it adds when it is asked for its load: `JSON` and an object behind it.
/// `vllm/entrypoints/serve/utils/orca_metrics.py` of vLLM 0.32.
pub(super) fn read_waiting(headers: &HeaderMap) -> Option<f64> {
    let text = headers.get("endpoint-load-metrics")?.to_str().ok()?;
    let metrics: Value = serde_json::from_str(text.trim().strip_prefix("JSON")?).ok()?;
    metrics
        .pointer("/named_metrics/num_requests_waiting")?
        .as_f64()
}

/// Body of a chat completion. What is not named here is left to the server; `temperature` and `max_tokens` never are, as a model's
/// own `generation_config.json` would fill them in.
#[derive(Debug, Serialize)]
pub(super) struct ChatRequest<'a> {
    pub(super) model: &'a str,
    pub(super) messages: &'a [Message],
    pub(super) temperature: f64,
    pub(super) max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response_format: Option<&'a RawValue>,
}

/// A chat completion as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Text of the first choice; `None` when it is null, absent or no text.
    pub content: Option<String>,
    /// Its finish reason.
    pub finish_reason: String,
    /// The model that the server names.
    pub model: Option<String>,
    /// The server's build.
    pub system_fingerprint: Option<String>,
    /// Tokens of the prompt; 0 when not told.
    pub prompt_tokens: u64,
    /// Tokens of the answer; 0 when not told.
    pub completion_tokens: u64,
}

impl Answer {
    /// Tokens of prompt and answer; 0 when the server tells neither.
    pub(super) const fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// Reads a chat completion.
///
/// # Errors
/// What is missing, without a word of the body.
pub(super) fn read_answer(body: &[u8]) -> Result<Answer, &'static str> {
    // Five times as quick as by way of a tree of values, and nearly every answer can be read so.
    serde_json::from_slice::<Object<Completion>>(body)
        .ok()
        .and_then(|Object(completion)| completion.into_answer())
        .map_or_else(|| read_leniently(body), Ok)
}

/// A JSON object and nothing else: what is derived would take an array as well, field by field.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfMap<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(OfMap(PhantomData))
    }
}

/// A chat completion as vLLM writes it.
#[derive(Deserialize)]
struct Completion {
    choices: Vec<Object<Choice>>,
    model: Option<String>,
    system_fingerprint: Option<String>,
    usage: Option<Object<Usage>>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<Object<Content>>,
    finish_reason: String,
}

#[derive(Deserialize)]
struct Content {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl Completion {
    fn into_answer(self) -> Option<Answer> {
        let Object(choice) = self.choices.into_iter().next()?;
        let count = |count: fn(&Usage) -> Option<u64>| {
            let told = self.usage.as_ref().and_then(|Object(usage)| count(usage));
            told.unwrap_or(0).min(TOKENS_MAX)
        };
        Some(Answer {
            content: choice.message.and_then(|Object(message)| message.content),
            finish_reason: choice.finish_reason,
            prompt_tokens: count(|usage| usage.prompt_tokens),
            completion_tokens: count(|usage| usage.completion_tokens),
            model: self.model,
            system_fingerprint: self.system_fingerprint,
        })
    }
}

/// Reads whatever has a choice with a finish reason: what is not as it should be beside them counts as absent.
fn read_leniently(body: &[u8]) -> Result<Answer, &'static str> {
    let body: Value = serde_json::from_slice(body).map_err(|_error| {
        // The parser's message could quote the answer.
        "it is not JSON"
    })?;
    let choice = body
        .get("choices")
        .and_then(Value::as_array)
        .ok_or("it has no `choices`")?
        .first()
        .ok_or("its `choices` are empty")?;
    let finish_reason = choice
        .get("finish_reason")
        .and_then(Value::as_str)
        .ok_or("it has no `finish_reason`")?;
    let count = |name: &str| {
        body.pointer("/usage")
            .and_then(|usage| usage.get(name))
            .and_then(Value::as_u64)
            .unwrap_or(0)
            .min(TOKENS_MAX)
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    Ok(Answer {
        content: text(choice.pointer("/message/content")),
        finish_reason: finish_reason.to_owned(),
        model: text(body.get("model")),
        system_fingerprint: text(body.get("system_fingerprint")),
        prompt_tokens: count("prompt_tokens"),
        completion_tokens: count("completion_tokens"),
    })
}

/// What an error body says, whatever its shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ErrorBody {
    /// The sentence; may quote the request.
    pub(super) message: Option<String>,
    /// Such as `BadRequestError`.
    pub(super) kind: Option<String>,
    /// The request field that is at fault.
    pub(super) param: Option<String>,
}

/// Reads an error body: vLLM's own shape, `{"error":"…"}`, `{"detail":…}`, a bare `{"message":…}`, or text.
pub(super) fn read_error(body: &[u8]) -> ErrorBody {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        // Whole, as what is cut could hold the beginning of a secret; who repeats it cuts it.
        let text = String::from_utf8_lossy(body);
        let text = text.trim();
        return ErrorBody {
            // A page of HTML says nothing in its first line.
            message: (!text.is_empty() && !text.starts_with('<')).then(|| text.to_owned()),
            ..ErrorBody::default()
        };
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let inner = match value.get("error") {
        Some(Value::String(message)) => {
            return ErrorBody {
                message: Some(message.clone()),
                ..ErrorBody::default()
            };
        }
        Some(inner @ Value::Object(_)) => inner,
        _ => &value,
    };
    ErrorBody {
        message: text(inner.get("message")).or_else(|| text(value.get("detail"))),
        kind: text(inner.get("type")),
        param: text(inner.get("param")),
    }
}

/// A model that the server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedModel {
    /// Its name.
    pub id: String,
    /// Its context length in tokens, when told.
    pub max_model_len: Option<u64>,
}

/// Reads `/v1/models`; `None` when the body is no such list.
pub(super) fn read_models(body: &[u8]) -> Option<Vec<ServedModel>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let models = value.get("data")?.as_array()?;
    Some(
        models
            .iter()
            .filter_map(|model| {
                Some(ServedModel {
                    id: model.get("id")?.as_str()?.to_owned(),
                    max_model_len: model.get("max_model_len").and_then(Value::as_u64),
                })
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_as_vllm_writes_it_is_read() {
        let body = br#"{"id":"chatcmpl-1","object":"chat.completion","created":1795421451,"model":"m1","choices":[{"index":0,
            "message":{"role":"assistant","content":"Hello","refusal":null,"annotations":null,"reasoning":null},
            "logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}],
            "service_tier":null,"system_fingerprint":"vllm-0.32.0-82e50881",
            "usage":{"prompt_tokens":16,"total_tokens":24,"completion_tokens":8,"prompt_tokens_details":null},
            "prompt_logprobs":null,"metrics":null}"#;
        let answer = read_answer(body).unwrap();
        assert_eq!(answer.content.as_deref(), Some("Hello"));
        assert_eq!(answer.finish_reason, "length");
        assert_eq!(answer.model.as_deref(), Some("m1"));
        assert_eq!(answer.prompt_tokens, 16);
        assert_eq!(answer.completion_tokens, 8);
    }

    /// The quick way and the lenient one say the same, wherever the quick one says anything.
    #[test]
    fn both_ways_of_reading_agree() {
        for body in [
            r#"{"choices":[{"message":{"content":"a\u00e9"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}"#,
            r#"{"choices":[{"message":null,"finish_reason":"stop"}],"usage":null,"model":null}"#,
            r#"{"choices":[{"message":{"content":null},"finish_reason":"length"},{"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"finish_reason":"stop"}],"usage":{"completion_tokens":18446744073709551615}}"#,
        ] {
            let Object(quick) = serde_json::from_str::<Object<Completion>>(body).unwrap();
            let quick = quick.into_answer().unwrap();
            assert_eq!(read_leniently(body.as_bytes()).unwrap(), quick, "{body}");
        }
        for body in [
            r#"{"choices":[{"message":{"content":[1]},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":-1}}"#,
            r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"model":1,"model":"m"}"#,
            r#"{"choices":[{"message":["a"],"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"usage":[3,4]}"#,
            r#"{"choices":[[{"content":"a"},"stop"]]}"#,
            r#"[[{"message":{"content":"a"},"finish_reason":"stop"}],"m",null,null]"#,
        ] {
            let quick = serde_json::from_str::<Object<Completion>>(body);
            assert!(quick.is_err(), "{body}");
            assert_eq!(
                read_answer(body.as_bytes()),
                read_leniently(body.as_bytes())
            );
            // An array is no object, and has neither choices nor a finish reason.
            let has_choice = !body.starts_with('[') && !body.contains("[[");
            assert_eq!(read_answer(body.as_bytes()).is_ok(), has_choice, "{body}");
        }
    }

    #[test]
    fn choices_and_finish_reason_are_all_that_is_needed() {
        let answer =
            read_answer(br#"{"choices":[{"finish_reason":"stop"}],"usage":"none"}"#).unwrap();
        assert_eq!(answer.content, None);
        assert_eq!(answer.prompt_tokens, 0);
        assert!(read_answer(br#"{"choices":[]}"#).is_err());
        assert!(read_answer(br#"{"choices":[{"message":{"content":"x"}}]}"#).is_err());
        assert!(read_answer(b"<html>").is_err());
    }

    #[test]
    fn error_bodies_of_every_shape_are_read() {
        let own = read_error(
            br#"{"error":{"message":"m","type":"NotFoundError","param":"model","code":404}}"#,
        );
        assert_eq!(own.message.as_deref(), Some("m"));
        assert_eq!(own.kind.as_deref(), Some("NotFoundError"));
        assert_eq!(own.param.as_deref(), Some("model"));
        let message = |body: &[u8]| read_error(body).message;
        assert_eq!(
            message(br#"{"error":"Unauthorized"}"#).as_deref(),
            Some("Unauthorized")
        );
        assert_eq!(
            message(br#"{"detail":"Not Found"}"#).as_deref(),
            Some("Not Found")
        );
        assert_eq!(
            message(br#"{"object":"error","message":"old"}"#).as_deref(),
            Some("old")
        );
        assert_eq!(
            message(b"Invalid HTTP request received.").as_deref(),
            Some("Invalid HTTP request received.")
        );
        assert_eq!(message(b"<html>502</html>"), None);
        assert_eq!(message(b""), None);
        assert_eq!(message(br#"{"detail":[{"loc":["body"]}]}"#), None);
        assert_eq!(message(br#"[1]"#), None);
    }

    #[test]
    fn the_load_is_read_as_vllm_tells_it_and_nothing_else() {
        let waiting = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("endpoint-load-metrics", text.parse().unwrap());
            read_waiting(&headers)
        };
        let told =
            r#"JSON {"named_metrics": {"num_requests_waiting": 3.0, "kv_cache_usage_perc": 0.5}}"#;
        assert_eq!(waiting(told), Some(3.0));
        for other in [
            "",
            "JSON",
            "TEXT named_metrics.x=1",
            "JSON {}",
            r#"{"named_metrics":{}}"#,
        ] {
            assert_eq!(waiting(other), None, "{other}");
        }
        assert_eq!(read_waiting(&HeaderMap::new()), None);
    }

    #[test]
    fn a_count_is_read_without_its_tokens() {
        assert_eq!(
            read_count(br#"{"count":3,"max_model_len":9,"tokens":[1,2,3]}"#),
            Some(3)
        );
        assert_eq!(read_count(br#"{"detail":"Not Found"}"#), None);
        assert_eq!(read_count(b"[3]"), None);
    }

    #[test]
    fn models_are_read_and_other_bodies_are_none() {
        let models = read_models(
            br#"{"object":"list","data":[{"id":"m1","max_model_len":512},{"id":"m2"},{"x":1}]}"#,
        )
        .unwrap();
        assert_eq!(models.len(), 2);
        assert_eq!(models[0].max_model_len, Some(512));
        assert_eq!(read_models(b"{}"), None);
    }
}
