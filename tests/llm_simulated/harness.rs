//! Servers, clients and documents for the tests, and what is asked of their outcomes.

use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::llm::{
    AnswerSchema, Class, Complete, CompleteError, Completion, CompletionRequest, Concurrency,
    GiveUp, HttpTransport, KafkaContext, LlmConfig, LlmMetrics, LongDocumentsConfig, LongPolicy,
    Prompt, PromptConfig, Setup, VllmClient,
};
use kafka_llm_processor::sandbox::vllm::{Latency, SeenRequest, Vllm, VllmConfig};
use kafka_llm_processor::types::{DeadLetterReason, Offset, SourcePosition, TopicPartition};
use prometheus_client::registry::Registry;
use serde_json::Map;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Longer than any wait that is meant to end; a test that meets it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Outcome = Result<Completion, CompleteError>;

pub(crate) async fn serve(config: VllmConfig) -> Vllm {
    Vllm::start(config).await.unwrap()
}

/// A server whose calls take no time.
pub(crate) fn quick() -> VllmConfig {
    taking(0)
}

/// A server whose calls take so many milliseconds each.
pub(crate) fn taking(ms: u64) -> VllmConfig {
    VllmConfig {
        latency: Latency::fixed(Duration::from_millis(ms)),
        ..VllmConfig::default()
    }
}

pub(crate) fn config(server: &Vllm) -> LlmConfig {
    config_of(&[server])
}

pub(crate) fn config_of(servers: &[&Vllm]) -> LlmConfig {
    let urls: Vec<_> = servers.iter().map(|server| server.url()).collect();
    LlmConfig {
        url: urls.join(","),
        timeout: Duration::from_secs(2),
        retry_backoff_initial: Duration::from_millis(10),
        retry_backoff_max: Duration::from_millis(100),
        ..LlmConfig::default()
    }
}

/// The same with a number of calls at once.
pub(crate) fn fixed(config: LlmConfig, calls: usize) -> LlmConfig {
    LlmConfig {
        concurrency: Concurrency::Fixed(calls),
        ..config
    }
}

pub(crate) fn client(config: &LlmConfig) -> Arc<VllmClient> {
    set_up(Setup::from(config))
}

pub(crate) fn set_up(setup: Setup) -> Arc<VllmClient> {
    let metrics = LlmMetrics::new(&mut Registry::default());
    let transport = Arc::new(HttpTransport::new(&setup.llm).unwrap());
    Arc::new(VllmClient::new(setup, transport, metrics, &CancellationToken::new()).unwrap())
}

/// A client that does as `long` says with what is longer than the context.
pub(crate) fn long_client(config: &LlmConfig, long: LongDocumentsConfig) -> Arc<VllmClient> {
    set_up(Setup {
        long,
        ..Setup::from(config)
    })
}

/// A client that gives up what is longer than the context.
pub(crate) fn short_client(config: &LlmConfig) -> Arc<VllmClient> {
    let long = LongDocumentsConfig {
        policy: LongPolicy::DeadLetter,
        ..LongDocumentsConfig::default()
    };
    long_client(config, long)
}

/// A client with the schema that `config` names, and that schema.
pub(crate) fn schema_client(config: &LlmConfig) -> (Arc<VllmClient>, Arc<AnswerSchema>) {
    let schema = Arc::new(AnswerSchema::load(config).unwrap().unwrap());
    let setup = Setup {
        schema: Some(Arc::clone(&schema)),
        ..Setup::from(config)
    };
    (set_up(setup), schema)
}

pub(crate) fn request(offset: i64, content: &str) -> CompletionRequest {
    let prompt = Prompt::new(&PromptConfig::default(), None).unwrap();
    request_with(Arc::new(prompt), offset, content)
}

pub(crate) fn request_with(prompt: Arc<Prompt>, offset: i64, content: &str) -> CompletionRequest {
    let context = Prompt::context(Map::new(), "d", KafkaContext::default());
    CompletionRequest {
        class: Class::ONLY,
        document_id: format!("doc-{offset}"),
        position: SourcePosition {
            topic_partition: TopicPartition::new("documents", 0),
            offset: Offset::new(offset),
        },
        scope: prompt.scope(&context),
        prompt,
        content: content.to_owned(),
        trace: Default::default(),
    }
}

pub(crate) async fn complete(client: Arc<VllmClient>, request: CompletionRequest) -> Outcome {
    let slot = client.admit(Class::ONLY).await;
    client.complete(request, slot).await
}

pub(crate) async fn ask(client: Arc<VllmClient>, offset: i64, content: String) -> Outcome {
    complete(client, request(offset, &content)).await
}

/// As [`ask`], within the tests' patience.
pub(crate) async fn ask_now(client: &Arc<VllmClient>, offset: i64, content: &str) -> Outcome {
    tokio::time::timeout(
        PATIENCE,
        ask(Arc::clone(client), offset, content.to_owned()),
    )
    .await
    .expect("the document waits for ever")
}

/// The text of one document among many.
pub(crate) fn text(offset: i64) -> String {
    format!("Document {offset}: revenue rose 12 % to 4.3 billion euro.")
}

/// Asks about `count` documents at once.
pub(crate) fn start(client: &Arc<VllmClient>, count: i64) -> JoinSet<Outcome> {
    start_from(client, 0, count)
}

/// The same, of the offsets from `first` on.
pub(crate) fn start_from(client: &Arc<VllmClient>, first: i64, count: i64) -> JoinSet<Outcome> {
    let mut tasks = JoinSet::new();
    for offset in first..first + count {
        tasks.spawn(ask(Arc::clone(client), offset, text(offset)));
    }
    tasks
}

pub(crate) async fn outcomes(tasks: JoinSet<Outcome>) -> Vec<Outcome> {
    tokio::time::timeout(PATIENCE, tasks.join_all())
        .await
        .expect("a document waits for ever")
}

pub(crate) async fn all_answered(tasks: JoinSet<Outcome>) -> Vec<Completion> {
    let outcomes = outcomes(tasks).await;
    outcomes.into_iter().map(Result::unwrap).collect()
}

pub(crate) fn given_up(outcome: Outcome) -> GiveUp {
    match outcome {
        Err(CompleteError::DeadLetter(give_up)) => give_up,
        other => panic!("not given up: {other:?}"),
    }
}

pub(crate) fn reason(outcome: Outcome) -> DeadLetterReason {
    given_up(outcome).reason
}

pub(crate) async fn held_because(client: &VllmClient, part: &str) {
    let mut holds = client.holds();
    let held = holds.wait_for(|hold| hold.as_ref().is_some_and(|hold| hold.reason.contains(part)));
    let held = tokio::time::timeout(PATIENCE, held)
        .await
        .map(|hold| hold.is_ok());
    assert!(
        held.is_ok_and(|held| held),
        "`{part}` is not in {:?}",
        client.state().held
    );
}

/// Waits until the work flows.
pub(crate) async fn flows(client: &VllmClient) {
    let mut holds = client.holds();
    let flows = holds.wait_for(Option::is_none);
    assert!(
        tokio::time::timeout(PATIENCE, flows).await.is_ok(),
        "{:?}",
        client.state().held
    );
}

/// Whether a request was the client's own.
pub(crate) fn is_probe(request: &SeenRequest) -> bool {
    let id = request.request_id.as_deref();
    id.is_some_and(|id| id.starts_with("klp-probe"))
}

/// The requests about documents, in the order in which they came.
pub(crate) fn about_documents(server: &Vllm) -> Vec<SeenRequest> {
    let mut requests = server.requests();
    requests.retain(|request| !is_probe(request));
    requests
}

/// Waits until a condition on the server holds.
pub(crate) async fn until(server: &Vllm, what: &str, condition: impl Fn(&Vllm) -> bool) {
    assert!(
        server.wait_until(PATIENCE, condition).await,
        "never: {what}"
    );
}

/// Waits until a condition on the client's state holds; there is nothing to subscribe to for most of it.
pub(crate) async fn eventually(what: &str, within: Duration, condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(within, reached).await.is_ok(),
        "never: {what}"
    );
}
