//! The model client against a server on loopback: what it does when the server misbehaves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod llm_stub;

use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::llm::{
    Class, Complete, CompleteError, Completion, CompletionRequest, Concurrency, HttpTransport,
    LlmConfig, LlmError, LlmMetrics, LongDocumentsConfig, LongPolicy, OnTruncated, Prompt,
    PromptConfig, Scope, Setup, VllmClient,
};
use kafka_llm_processor::spans::{Trace, TraceHeaders};
use kafka_llm_processor::types::{
    DeadLetterReason, Offset, Secret, SourcePosition, TopicPartition,
};
use llm_stub::{Answer, Stub, tls_server};
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
        Self::set_up(Setup::from(config))
    }

    fn set_up(setup: Setup) -> Self {
        let shutdown = CancellationToken::new();
        let mut registry = Registry::default();
        let metrics = LlmMetrics::new(&mut registry);
        let transport = Arc::new(HttpTransport::new(&setup.llm).unwrap());
        let client = Arc::new(VllmClient::new(setup, transport, metrics, &shutdown).unwrap());
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
    let slot = client.admit(Class::ONLY).await;
    client.complete(request(offset, &text), slot).await
}

/// The text of the document and nothing else, behind a system message where one is given.
fn prompt(system: Option<&str>) -> Arc<Prompt> {
    let config = PromptConfig {
        system: system.map(str::to_owned),
        user: Some("{{ content }}".to_owned()),
        ..PromptConfig::default()
    };
    Arc::new(Prompt::new(&config, None).unwrap())
}

fn request(offset: i64, text: &str) -> CompletionRequest {
    CompletionRequest {
        class: Class::ONLY,
        document_id: format!("doc-{offset}"),
        position: SourcePosition {
            topic_partition: TopicPartition::new("documents", 3),
            offset: Offset::new(offset),
        },
        prompt: prompt(None),
        scope: Scope::default(),
        content: text.to_owned(),
        trace: Trace::passed_on(TraceHeaders::parse(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            None,
        )),
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
    let counted = format!(
        "llm_calls_total{{endpoint=\"{}\",outcome=\"ok\"}}",
        stub.url()
    );
    assert_eq!(client.metric(&counted).as_deref(), Some("1"));
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

#[tokio::test]
async fn capacity_is_waited_for_and_costs_no_attempt() {
    let stub = Stub::start().await;
    stub.script([
        Answer::WithHeader(429, "retry-after: 0"),
        Answer::Status(503, r#"{"error":{"message":"busy","code":503}}"#),
        Answer::WithHeader(429, "retry-after: 0"),
    ]);
    let mut config = config(&stub.url());
    config.attempts = 1;
    let client = Client::new(&config);
    let completion = client.ask(1, "x").await.unwrap();
    assert_eq!(completion.attempts, 4);
    assert_eq!(stub.probes(), 0, "capacity opens no hold");
}

#[tokio::test]
async fn retry_after_is_waited_out_without_a_slot() {
    let stub = Stub::start().await;
    stub.rule(|seen| {
        (seen.text() == "throttled").then_some(Answer::WithHeader(429, "retry-after: 60"))
    });
    let mut config = config(&stub.url());
    config.concurrency = Concurrency::Fixed(1);
    let client = Client::new(&config);
    let throttled = client.start(1, "throttled");
    eventually("the document waits", || client.state().throttled == 1).await;
    assert_eq!(client.state().retrying, 1);
    let completion = client.ask(2, "other").await.unwrap();
    assert_eq!(completion.text, "answer to other");
    assert!(!throttled.is_finished());
    assert_eq!(stub.chats().len(), 2);
    throttled.abort();
}

#[tokio::test]
async fn an_unreachable_server_holds_and_work_resumes_within_two_seconds_of_its_return() {
    let mut stub = Stub::start().await;
    stub.stop().await;
    let mut config = config(&stub.url());
    config.attempts = 1;
    let client = Client::new(&config);
    let document = client.start(1, "x");
    let reason = client.held().await;
    assert!(reason.contains("LLM_URL"), "{reason}");
    // Long enough for several probes, so that their waits have grown.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!document.is_finished());
    assert_eq!(client.metric("llm_held").as_deref(), Some("1"));
    let returned = tokio::time::Instant::now();
    stub.listen().await;
    let completion = document.await.unwrap().unwrap();
    assert!(
        returned.elapsed() < Duration::from_secs(2),
        "{:?}",
        returned.elapsed()
    );
    assert!(completion.attempts >= 1);
    assert!(client.state().held.is_none());
    assert_eq!(client.metric("llm_held").as_deref(), Some("0"));
    assert_eq!(client.metric("llm_holds_total").as_deref(), Some("1"));
}

#[tokio::test]
async fn while_held_nothing_is_sent_and_nothing_is_admitted() {
    let stub = Stub::start().await;
    stub.rule(|_| Some(Answer::Status(401, r#"{"error":"Unauthorized"}"#)));
    let client = Client::new(&config(&stub.url()));
    let first = client.start(1, "first");
    client.held_because("llm.api_key").await;
    let others: Vec<_> = (2..10)
        .map(|offset| client.start(offset, "other"))
        .collect();
    let probes = stub.probes();
    eventually("two more probes", || stub.probes() >= probes + 2).await;
    assert_eq!(stub.chats().len(), 1, "only the first was sent");
    assert_eq!(client.state().running, 0);
    assert_eq!(client.state().waiting, 9);
    stub.no_rule();
    assert_eq!(first.await.unwrap().unwrap().attempts, 2);
    for other in others {
        assert_eq!(other.await.unwrap().unwrap().attempts, 1);
    }
}

#[tokio::test]
async fn a_wrong_key_holds_until_the_key_file_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "old").unwrap();
    let stub = Stub::start().await;
    stub.rule(|seen| {
        (seen.header("authorization") != "Bearer new")
            .then_some(Answer::Status(401, r#"{"error":"Unauthorized"}"#))
    });
    let mut config = config(&stub.url());
    config.api_key_file = Some(key.clone());
    let client = Client::new(&config);
    let document = client.start(1, "x");
    client.held_because("llm.api_key").await;
    std::fs::write(&key, "new\n").unwrap();
    document.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_unknown_model_holds_and_the_served_names_are_told() {
    let stub = Stub::start().await;
    stub.models(200, r#"{"data":[{"id":"other-model"}]}"#);
    stub.rule(|_| {
        Some(Answer::Status(
            404,
            r#"{"error":{"message":"The model `stub` does not exist.","type":"NotFoundError","param":"model","code":404}}"#,
        ))
    });
    let client = Client::new(&config(&stub.url()));
    let document = client.start(1, "x");
    client
        .held_because("it serves other-model: set MODEL_NAME")
        .await;
    stub.no_rule();
    document.await.unwrap().unwrap();
}

#[tokio::test]
async fn more_max_tokens_than_context_holds_before_the_first_document() {
    let stub = Stub::start().await;
    stub.models(200, r#"{"data":[{"id":"stub","max_model_len":512}]}"#);
    let client = Client::new(&config(&stub.url()));
    client.held_because("llm.max_tokens = 1024").await;
    assert!(stub.chats().is_empty());
}

#[tokio::test]
async fn an_aborted_answer_is_asked_for_again() {
    let stub = Stub::start().await;
    stub.script([Answer::Finished("abort", 2)]);
    let completion = Client::new(&config(&stub.url())).ask(1, "x").await.unwrap();
    assert_eq!(completion.finish_reason, "stop");
    assert_eq!(completion.attempts, 2);
    assert_eq!(completion.usage.calls, 1);
}

#[tokio::test]
async fn a_document_that_fails_alone_is_given_up_and_its_neighbours_are_answered() {
    let stub = Stub::start().await;
    stub.rule(|seen| (seen.text() == "poison").then_some(Answer::Status(500, "{}")));
    let client = Client::new(&config(&stub.url()));
    let poison = client.start(1, "poison");
    let others: Vec<_> = (2..10).map(|offset| client.start(offset, "fine")).collect();
    for other in others {
        other.await.unwrap().unwrap();
    }
    match poison.await.unwrap() {
        Err(CompleteError::DeadLetter(give_up)) => {
            assert_eq!(give_up.reason, DeadLetterReason::AttemptsExhausted);
            assert_eq!(give_up.attempts, 5);
            assert_eq!(give_up.http_status, Some(500));
            assert!(
                give_up
                    .request_id
                    .unwrap()
                    .starts_with("klp-documents-3-1-5-")
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_document_that_fails_alone_is_given_up_when_the_probe_succeeds() {
    let stub = Stub::start().await;
    stub.rule(|seen| (seen.text() == "poison").then_some(Answer::Status(500, "{}")));
    let client = Client::new(&config(&stub.url()));
    assert_eq!(
        reason(client.ask(1, "poison").await),
        DeadLetterReason::AttemptsExhausted
    );
    assert_eq!(stub.probes(), 1);
}

#[tokio::test]
async fn when_everything_fails_nothing_is_given_up() {
    let stub = Stub::start().await;
    stub.rule(|_| Some(Answer::Status(500, "{}")));
    let client = Client::new(&config(&stub.url()));
    let documents: Vec<_> = (0..20).map(|offset| client.start(offset, "x")).collect();
    client.held().await;
    let probes = stub.probes();
    eventually("the probe fails", || stub.probes() > probes + 1).await;
    let sent = stub.chats().len();
    assert!(documents.iter().all(|document| !document.is_finished()));
    eventually("another probe", || stub.probes() > probes + 2).await;
    assert_eq!(stub.chats().len(), sent, "held");
    stub.no_rule();
    for document in documents {
        document.await.unwrap().unwrap();
    }
}

const REFUSED: Answer = Answer::Status(
    400,
    r#"{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}"#,
);

#[tokio::test]
async fn a_request_that_is_refused_for_one_document_gives_that_one_up() {
    let stub = Stub::start().await;
    stub.rule(|seen| (seen.text() == "bad").then_some(REFUSED));
    let client = Client::new(&config(&stub.url()));
    assert_eq!(
        reason(client.ask(1, "bad").await),
        DeadLetterReason::RequestRejected
    );
    client.ask(2, "good").await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_refused_for_all_holds() {
    let stub = Stub::start().await;
    stub.rule(|_| Some(REFUSED));
    let client = Client::new(&config(&stub.url()));
    let documents: Vec<_> = (0..5).map(|offset| client.start(offset, "x")).collect();
    client.held_because("document after document").await;
    let tried = stub.chats().len();
    eventually("they are tried again", || stub.chats().len() >= tried + 2).await;
    assert!(documents.iter().all(|document| !document.is_finished()));
    stub.no_rule();
    for document in documents {
        document.await.unwrap().unwrap();
    }
}

/// The probe has a system message when documents have one, or it would clear requests that the chat template refuses.
#[tokio::test]
async fn a_chat_template_that_refuses_the_system_role_holds() {
    let stub = Stub::start().await;
    stub.rule(|seen| (seen.body["messages"][0]["role"] == "system").then_some(REFUSED));
    let client = Client::new(&config(&stub.url()));
    let mut with_system = request(1, "x");
    with_system.prompt = prompt(Some("be brief"));
    let document = tokio::spawn({
        let client = Arc::clone(&client.client);
        async move {
            client
                .complete(with_system, client.admit(Class::ONLY).await)
                .await
        }
    });
    client.held_because("status 400").await;
    eventually("two probes", || stub.probes() >= 2).await;
    assert!(!document.is_finished());
    document.abort();
}

#[tokio::test]
async fn a_prompt_that_is_too_long_gives_the_document_up_at_once() {
    let stub = Stub::start().await;
    stub.script([Answer::Status(
        400,
        r#"{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}"#,
    )]);
    let long = LongDocumentsConfig {
        policy: LongPolicy::DeadLetter,
        ..LongDocumentsConfig::default()
    };
    let client = Client::set_up(Setup {
        long,
        ..Setup::from(&config(&stub.url()))
    });
    assert_eq!(
        reason(client.ask(1, "x").await),
        DeadLetterReason::ContextLengthExceeded
    );
    assert_eq!(stub.chats().len(), 1);
}

/// The very first one, too, which comes before the server has told its context.
#[tokio::test]
async fn a_prompt_that_is_too_long_is_read_in_parts() {
    let stub = Stub::start().await;
    stub.script([Answer::Status(
        400,
        r#"{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}"#,
    )]);
    let client = Client::new(&config(&stub.url()));
    assert!(client.ask(1, "x").await.unwrap().long.is_some());
}

#[tokio::test]
async fn a_kept_connection_that_the_server_had_closed_costs_no_attempt() {
    let stub = Stub::start().await;
    stub.script([Answer::OkThenClose]);
    let mut config = config(&stub.url());
    config.attempts = 1;
    config.concurrency = Concurrency::Fixed(1);
    let client = Client::new(&config);
    client.ask(1, "first").await.unwrap();
    // Whether the client sees the end before it writes or after is a race that both sides of must go well.
    assert!(client.ask(2, "second").await.unwrap().attempts <= 2);
    stub.script([Answer::HangUp]);
    assert_eq!(client.ask(3, "third").await.unwrap().attempts, 2);
    assert_eq!(stub.probes(), 0);
}

#[tokio::test]
async fn an_answer_that_is_cut_is_asked_for_again() {
    let stub = Stub::start().await;
    stub.script([
        Answer::Cut,
        Answer::Body("<html>"),
        Answer::Body(r#"{"choices":[]}"#),
    ]);
    let completion = Client::new(&config(&stub.url())).ask(1, "x").await.unwrap();
    assert_eq!(completion.attempts, 4);
}

#[tokio::test]
async fn an_endless_answer_is_read_up_to_the_bound() {
    let stub = Stub::start().await;
    stub.rule(|seen| (seen.text() == "endless").then_some(Answer::Endless));
    let mut config = config(&stub.url());
    config.response_bytes_max = 64 * 1024;
    let client = Client::new(&config);
    match client.ask(1, "endless").await {
        Err(CompleteError::DeadLetter(give_up)) => {
            assert_eq!(give_up.reason, DeadLetterReason::InvalidResponse);
            assert!(
                give_up.detail.contains("llm.response_bytes_max"),
                "{}",
                give_up.detail
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_silent_server_is_left_after_the_timeout() {
    let stub = Stub::start().await;
    stub.script([Answer::Silence]);
    let mut config = config(&stub.url());
    config.timeout = Duration::from_millis(300);
    let completion = Client::new(&config).ask(1, "x").await.unwrap();
    assert_eq!(completion.attempts, 2);
}

#[tokio::test]
async fn a_drain_gives_held_documents_back_and_lets_calls_end() {
    let stub = Stub::start().await;
    stub.script([Answer::WhenLetGo]);
    let client = Client::new(&config(&stub.url()));
    let running = client.start(1, "slow");
    eventually("the call runs", || stub.chats().len() == 1).await;
    stub.rule(|_| Some(Answer::Status(401, "{}")));
    let held = client.start(2, "held");
    client.held_because("llm.api_key").await;
    client.begin_drain();
    let result = tokio::time::timeout(PATIENCE, held).await.unwrap().unwrap();
    assert!(
        matches!(result, Err(CompleteError::Abandoned)),
        "{result:?}"
    );
    assert!(!running.is_finished());
    stub.let_go();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn no_more_calls_run_than_allowed() {
    let stub = Stub::start().await;
    stub.rule(|_| Some(Answer::WhenLetGo));
    let mut config = config(&stub.url());
    config.concurrency = Concurrency::Fixed(3);
    let client = Client::new(&config);
    let documents: Vec<_> = (0..9).map(|offset| client.start(offset, "x")).collect();
    for sent in 3..=9 {
        eventually("the next calls run", || stub.chats().len() == sent).await;
        assert_eq!(client.state().running, 3);
        if sent < 9 {
            stub.let_go();
        }
    }
    stub.no_rule();
    for _ in 0..3 {
        let running = client.state().running;
        stub.let_go();
        eventually("a call ends", || client.state().running < running).await;
    }
    for document in documents {
        document.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_dropped_document_gives_its_slot_back() {
    let stub = Stub::start().await;
    stub.script([Answer::Silence]);
    let mut config = config(&stub.url());
    config.concurrency = Concurrency::Fixed(1);
    let client = Client::new(&config);
    let dropped = client.start(1, "dropped");
    eventually("the call runs", || client.state().running == 1).await;
    dropped.abort();
    client.ask(2, "next").await.unwrap();
    assert_eq!(client.metric("llm_calls_in_flight").as_deref(), Some("0"));
}

#[tokio::test]
async fn a_truncated_answer_follows_the_policy() {
    let stub = Stub::start().await;
    let with = |on_truncated| {
        let mut config = config(&stub.url());
        config.on_truncated = on_truncated;
        config.max_tokens = 100;
        Client::new(&config)
    };
    stub.script([Answer::Finished("length", 100)]);
    let accepted = with(OnTruncated::Accept).ask(1, "x").await.unwrap();
    assert_eq!(accepted.finish_reason, "length");
    assert_eq!(accepted.attempts, 1);

    stub.script([
        Answer::Finished("length", 100),
        Answer::Finished("length", 200),
    ]);
    let longer = with(OnTruncated::RetryLonger).ask(2, "x").await.unwrap();
    assert_eq!(longer.finish_reason, "stop");
    assert_eq!(longer.usage.calls, 3);
    assert_eq!(longer.usage.completion_tokens, 303);
    let asked: Vec<_> = stub.chats()[1..]
        .iter()
        .map(|chat| chat.body["max_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(asked, [100, 200, 400]);

    // Fewer tokens than asked for: the context is full, and asking for more is of no use.
    stub.script([Answer::Finished("length", 60)]);
    let full = with(OnTruncated::RetryLonger).ask(3, "x").await.unwrap();
    assert_eq!(full.usage.calls, 1);

    stub.script([Answer::Finished("length", 100)]);
    let refused = with(OnTruncated::DeadLetter).ask(4, "x").await;
    assert_eq!(reason(refused), DeadLetterReason::InvalidResponse);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let stub = Stub::start().await;
    stub.rule(|_| Some(Answer::WithHeader(307, "location: http://127.0.0.1:1/")));
    let client = Client::new(&config(&stub.url()));
    let document = client.start(1, "x");
    client.held_because("redirects").await;
    document.abort();
}

#[tokio::test]
async fn preflight_says_what_to_change() {
    async fn problem(config: &LlmConfig) -> String {
        let transport = Arc::new(HttpTransport::new(config).unwrap());
        match VllmClient::preflight(config, transport).await {
            Err(LlmError::Unusable(problem)) => problem,
            other => panic!("{other:?}"),
        }
    }
    let mut stub = Stub::start().await;
    let config = config(&stub.url());
    let transport = Arc::new(HttpTransport::new(&config).unwrap());
    let model = VllmClient::preflight(&config, transport)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(model.max_model_len, Some(4096));

    stub.models(401, r#"{"error":"Unauthorized"}"#);
    assert!(problem(&config).await.contains("llm.api_key"));
    stub.models(200, r#"{"data":[{"id":"stub","max_model_len":1000}]}"#);
    assert!(problem(&config).await.contains("llm.max_tokens"));
    stub.stop().await;
    assert!(problem(&config).await.contains("LLM_URL"));
    let unknown = LlmConfig {
        url: "http://no-such-host.invalid:1".to_owned(),
        ..config
    };
    assert!(problem(&unknown).await.contains("no-such-host.invalid"));
}

#[tokio::test]
async fn idle_connections_are_used_again() {
    let stub = Stub::start().await;
    let client = Client::new(&config(&stub.url()));
    client.ask(0, "warm").await.unwrap();
    let connections = stub.connections();
    for offset in 1..20 {
        client.ask(offset, "x").await.unwrap();
    }
    assert_eq!(stub.connections(), connections);
}

#[tokio::test]
async fn clients_are_built_for_http_and_https() {
    for url in ["http://127.0.0.1:1", "https://127.0.0.1:1"] {
        drop(HttpTransport::new(&config(url)).unwrap());
    }
}

/// The test above in a process that finds no root certificate anywhere, as in an empty root file system.
#[test]
fn clients_are_built_without_root_certificates() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "clients_are_built_for_http_and_https"])
        .env("SSL_CERT_FILE", "/nonexistent.pem")
        .env("SSL_CERT_DIR", "/nonexistent")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[tokio::test]
async fn a_server_whose_ca_is_named_is_asked_over_tls() {
    let mut config = config(&tls_server::start());
    config.ca_file = Some(tls_server::CA_FILE.into());
    let completion = Client::new(&config).ask(1, "x").await.unwrap();
    assert_eq!(completion.text, "over TLS");
}

#[tokio::test]
async fn a_server_whose_ca_is_unknown_holds_and_names_the_setting() {
    let client = Client::new(&config(&tls_server::start()));
    let document = client.start(1, "x");
    client.held_because("llm.ca_file").await;
    document.abort();
}
