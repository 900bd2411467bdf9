//! A plain HTTP client for the tests, and servers set up for them.

use std::time::Duration;

use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

/// No test waits longer for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const MODEL: &str = "mistralai/Mistral-7B-Instruct-v0.2";
pub(crate) const CHAT: &str = "/v1/chat/completions";

/// A server without latency and with a small context.
pub(crate) async fn server() -> Vllm {
    server_with(quick()).await
}

pub(crate) async fn server_with(config: VllmConfig) -> Vllm {
    Vllm::start(config).await.unwrap()
}

/// No latency, and the context of the vLLM that the expectations were read from.
pub(crate) fn quick() -> VllmConfig {
    VllmConfig {
        max_model_len: 2048,
        latency: Latency::ZERO,
        ..VllmConfig::default()
    }
}

pub(crate) fn client() -> reqwest::Client {
    // The client is built with TLS, so that it wants a provider even for plain HTTP. A second installation is refused, harmlessly.
    drop(rustls_graviola::default_provider().install_default());
    reqwest::Client::builder()
        .timeout(DEADLINE)
        .build()
        .unwrap()
}

pub(crate) fn get(server: &Vllm, path: &str) -> RequestBuilder {
    client().get(format!("{}{path}", server.url()))
}

pub(crate) fn post(server: &Vllm, path: &str) -> RequestBuilder {
    client().post(format!("{}{path}", server.url()))
}

/// A chat completion of one user message, with these fields added or put in place of the usual ones; null leaves one out.
pub(crate) fn chat_body(prompt: &str, fields: &Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64, "temperature": 0});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub(crate) async fn chat(server: &Vllm, body: &Value) -> (u16, String) {
    answer(post(server, CHAT).json(body).send().await.unwrap()).await
}

pub(crate) async fn answer(response: Response) -> (u16, String) {
    (response.status().as_u16(), response.text().await.unwrap())
}

pub(crate) fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}
