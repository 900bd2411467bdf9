//! The model client against a server on loopback: what it does when the server misbehaves.

mod llm_stub;

use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::llm::{
    Complete, CompleteError, Completion, CompletionRequest, HttpTransport, LlmConfig, LlmError,
    LlmMetrics, Message, OnTruncated, Slot, VllmClient,
};
use kafka_llm_processor::types::{
    DeadLetterReason, Offset, Secret, SourcePosition, TopicPartition,
};
use llm_stub::{Answer, Stub};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// Longer than any wait that is meant to end; a test that meets it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(url: &str) -> LlmConfig {
    LlmConfig {
        url: url.to_owned(),
        model: "stub".to_owned(),
        timeout: Duration::from_secs(5),
        retry_backoff_initial: Duration::from_millis(10),
        retry_backoff_max: Duration::from_millis(40),
        ..LlmConfig::default()
    }
}

struct Client {
    client: Arc<VllmClient>,
    registry: Registry,
    _shutdown: tokio_util::sync::DropGuard,
}

impl std::ops::Deref for Client {
    type Target = Arc<VllmClient>;
    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl Client {
    fn new(config: &LlmConfig) -> Self {
        let shutdown = CancellationToken::new();
        let mut registry = Registry::default();
        let metrics = LlmMetrics::new(&mut registry);
        let transport = Arc::new(HttpTransport::new(config).unwrap());
        let client = Arc::new(VllmClient::new(config, transport, metrics, &shutdown).unwrap());
        Self {
            client,
            registry,
            _shutdown: shutdown.drop_guard(),
        }
    }

    async fn ask(&self, offset: i64, text: &str) -> Result<Completion, CompleteError> {
        tokio::time::timeout(
            PATIENCE,
            ask(Arc::clone(&self.client), offset, text.to_owned()),
        )
        .await
        .expect("the document waits for ever")
    }

    fn start(
        &self,
        offset: i64,
        text: &str,
    ) -> tokio::task::JoinHandle<Result<Completion, CompleteError>> {
        tokio::spawn(ask(Arc::clone(&self.client), offset, text.to_owned()))
    }

    /// Waits until the work is held, and returns why.
    async fn held(&self) -> String {
        let mut holds = self.client.holds();
        tokio::time::timeout(PATIENCE, holds.wait_for(Option::is_some))
            .await
            .expect("nothing holds the work")
            .unwrap()
            .as_ref()
            .unwrap()
            .reason
            .clone()
    }

    /// Waits until the reason of the hold contains `part`.
    async fn held_because(&self, part: &str) {
        let mut holds = self.client.holds();
        tokio::time::timeout(
            PATIENCE,
            holds.wait_for(|hold| hold.as_ref().is_some_and(|hold| hold.reason.contains(part))),
        )
        .await
        .unwrap_or_else(|_| panic!("`{part}` is not in {:?}", self.client.state().held))
        .unwrap();
    }

    fn metric(&self, line: &str) -> Option<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines()
            .find_map(|found| Some(found.strip_prefix(line)?.trim().to_owned()))
    }
}

async fn ask(
    client: Arc<VllmClient>,
    offset: i64,
    text: String,
) -> Result<Completion, CompleteError> {
    let slot = client.admit().await;
    client.complete(request(offset, &text), slot).await
}

fn request(offset: i64, text: &str) -> CompletionRequest {
    CompletionRequest {
        document_id: format!("doc-{offset}"),
        position: SourcePosition {
            topic_partition: TopicPartition::new("documents", 3),
            offset: Offset::new(offset),
        },
        messages: vec![Message {
            role: "user".to_owned(),
            content: text.to_owned(),
        }],
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
    }
}

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let reached = tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert!(reached.is_ok(), "never: {what}");
}

fn reason(result: Result<Completion, CompleteError>) -> DeadLetterReason {
    match result {
        Err(CompleteError::DeadLetter(give_up)) => give_up.reason,
        other => panic!("not given up: {other:?}"),
    }
}

#[tokio::test]
async fn a_document_is_answered_and_the_request_says_what_it_must() {
    let stub = Stub::start().await;
    let mut config = config(&stub.url());
    config.api_key = Some(Secret::new("key-1"));
    config.seed = Some(7);
    let client = Client::new(&config);
    let completion = client.ask(42, "hello").await.unwrap();
    assert_eq!(completion.text, "answer to hello");
    assert_eq!(completion.finish_reason, "stop");
    assert_eq!(completion.attempts, 1);
    assert_eq!(completion.usage.prompt_tokens, 5);
    assert_eq!(completion.usage.calls, 1);
    let seen = stub.chats();
    assert_eq!(seen.len(), 1);
    let seen = &seen[0];
    assert_eq!(seen.header("authorization"), "Bearer key-1");
    assert_eq!(seen.header("content-type"), "application/json");
    assert!(seen.header("traceparent").starts_with("00-4bf9"));
    let id = seen.header("x-request-id");
    assert!(id.starts_with("klp-documents-3-42-1-"), "{id}");
    assert_eq!(id, completion.request_id);
    assert_eq!(seen.body["model"], "stub");
    assert_eq!(seen.body["temperature"], 0.0);
    assert_eq!(seen.body["max_tokens"], 1024);
    assert_eq!(seen.body["seed"], 7);
    assert!(seen.body.get("top_p").is_none());
    assert_eq!(
        client.metric("llm_calls_total{outcome=\"ok\"}").as_deref(),
        Some("1")
    );
    assert_eq!(client.metric("llm_calls_in_flight").as_deref(), Some("0"));
}

#[tokio::test]
async fn a_server_error_is_retried() {
    let stub = Stub::start().await;
    stub.script([Answer::Status(500, "{}"), Answer::Status(502, "<html>")]);
    let completion = Client::new(&config(&stub.url())).ask(1, "x").await.unwrap();
    assert_eq!(completion.attempts, 3);
    let ids: Vec<_> = stub
        .chats()
        .iter()
        .map(|chat| chat.header("x-request-id").to_owned())
        .collect();
    assert!(ids[2].starts_with("klp-documents-3-1-3-"), "{ids:?}");
}
