//! Answers with a schema: they conform, a wrong one is mended once, and a server that takes no such request is waited for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::llm::{
    AnswerSchema, Complete as _, CompletionRequest, LlmConfig, OnTruncated, Prompt, PromptConfig,
};
use kafka_llm_processor::sandbox::vllm::{Action, Fault, SIMULATED, Vllm, VllmConfig};
use kafka_llm_processor::types::DeadLetterReason;
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{
    Outcome, about_documents, all_answered, complete, config, flows, given_up, held_because,
    is_probe, outcomes, quick, request_with, schema_client, serve, text, until,
};

const SUMMARY: &str = r#"{
    "type": "object",
    "properties": { "summary": { "type": "string", "minLength": 1 } },
    "required": ["summary"],
    "additionalProperties": false
}"#;

fn schema_file() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SUMMARY).unwrap();
    file
}

fn with_schema(config: LlmConfig, path: impl Into<PathBuf>) -> LlmConfig {
    LlmConfig {
        schema_file: Some(path.into()),
        ..config
    }
}

/// A document with the templates that are the default beside a schema.
fn request(schema: &AnswerSchema, offset: i64) -> CompletionRequest {
    let prompt = Prompt::new(&PromptConfig::default(), Some(schema.text())).unwrap();
    request_with(Arc::new(prompt), offset, &text(offset))
}

/// One document of a client with the schema [`SUMMARY`].
async fn ask(server: &Vllm, change: impl FnOnce(&mut LlmConfig)) -> Outcome {
    let file = schema_file();
    let mut config = with_schema(config(server), file.path());
    change(&mut config);
    let (client, schema) = schema_client(&config);
    complete(client, request(&schema, 1)).await
}

#[tokio::test]
async fn answers_conform_to_a_schema_of_a_file() {
    let server = serve(quick()).await;
    let answer = ask(&server, |_config| {}).await.unwrap();
    let data = answer.data.unwrap();
    assert_eq!(
        data,
        serde_json::from_str::<serde_json::Value>(&answer.text).unwrap()
    );
    assert!(data["summary"].as_str().unwrap().contains(SIMULATED));
    assert_eq!(data.as_object().unwrap().len(), 1);
    let seen = about_documents(&server);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].response_format.as_deref(), Some("json_schema"));
    assert!(
        seen[0].prompt.contains(r#""summary""#),
        "the schema is in the prompt"
    );
}

/// With the chat template that takes no system message.
#[tokio::test]
async fn the_schema_that_ships_works_with_the_defaults() {
    let server = serve(VllmConfig {
        accepts_system_role: false,
        ..quick()
    })
    .await;
    let (client, schema) = schema_client(&with_schema(config(&server), "builtin:financial"));
    let mut documents = JoinSet::new();
    for offset in 0..20 {
        documents.spawn(complete(Arc::clone(&client), request(&schema, offset)));
    }
    for answer in all_answered(documents).await {
        let data = answer.data.unwrap();
        for name in [
            "company",
            "document_type",
            "period",
            "figures",
            "sentiment",
            "risks",
            "summary",
        ] {
            assert!(data.get(name).is_some(), "{name} is missing in {data}");
        }
    }
    for seen in about_documents(&server) {
        assert_eq!(seen.response_format.as_deref(), Some("json_schema"));
        assert_eq!(seen.roles, ["user"]);
    }
}

/// A server that refuses the schema must not be found to work.
#[tokio::test]
async fn the_probe_asks_with_the_schema() {
    let server = serve(quick()).await;
    let file = schema_file();
    let (client, schema) = schema_client(&with_schema(config(&server), file.path()));
    server.stop_listener().await;
    let waiting = tokio::spawn(complete(Arc::clone(&client), request(&schema, 1)));
    held_because(&client, "LLM_URL").await;
    server.start_listener().await.unwrap();
    flows(&client).await;
    let probes: Vec<_> = server.requests().into_iter().filter(is_probe).collect();
    assert!(!probes.is_empty());
    for probe in probes {
        assert_eq!(probe.response_format.as_deref(), Some("json_schema"));
        assert_eq!(probe.max_tokens, Some(1));
    }
    assert!(waiting.await.unwrap().unwrap().data.is_some());
}

#[tokio::test]
async fn a_wrong_answer_is_mended_once() {
    for wrong in [
        r#"{"summary": 3}"#,
        "no JSON",
        r#"{"summary": "a"} and more"#,
        "[]",
        "",
    ] {
        let server = serve(quick()).await;
        server.faults().push(Action::Content(wrong.to_owned()));
        let answer = ask(&server, |_config| {}).await.unwrap();
        assert!(answer.data.unwrap()["summary"].is_string(), "{wrong}");
        assert_eq!((answer.attempts, answer.usage.calls), (2, 2), "{wrong}");
        let seen = about_documents(&server);
        assert_eq!(seen.len(), 2, "{wrong}");
        assert_eq!(seen[1].roles, ["user", "assistant", "user"], "{wrong}");
        assert_eq!(seen[1].response_format.as_deref(), Some("json_schema"));
        assert_eq!(
            seen[1].request_id.as_deref(),
            Some(answer.request_id.as_str())
        );
        let usage = answer.usage;
        assert_eq!(
            usage.total_tokens,
            usage.prompt_tokens + usage.completion_tokens
        );
        // The second prompt holds the first.
        let server_told = server_tokens(&server).await;
        assert_eq!(
            (usage.prompt_tokens, usage.completion_tokens),
            server_told,
            "{wrong}"
        );
    }
}

/// Prompt and answer tokens of all calls, as the server's own counters say.
async fn server_tokens(server: &Vllm) -> (u64, u64) {
    let url = format!("{}/metrics", server.url());
    // The client is built with TLS, so that it wants a provider even for plain HTTP. A second installation is refused, harmlessly.
    drop(rustls_graviola::default_provider().install_default());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let total = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        format!("{value:.0}").parse().unwrap()
    };
    (
        total("vllm:prompt_tokens_total{"),
        total("vllm:generation_tokens_total{"),
    )
}

#[tokio::test]
async fn what_is_wrong_twice_is_given_up_with_its_answer() {
    let server = serve(quick()).await;
    server
        .faults()
        .push(Action::Content(r#"{"summary": 1}"#.to_owned()));
    server
        .faults()
        .push(Action::Content(r#"{"summary": 2}"#.to_owned()));
    let give_up = given_up(ask(&server, |_config| {}).await);
    assert_eq!(give_up.reason, DeadLetterReason::SchemaViolation);
    assert_eq!(give_up.answer.as_deref(), Some(r#"{"summary": 2}"#));
    assert_eq!(give_up.attempts, 2);
    assert_eq!(give_up.http_status, Some(200));
    assert!(
        give_up.detail.contains("/properties/summary"),
        "{}",
        give_up.detail
    );
    assert_eq!(server.calls(), 2);
    // The next document is another matter.
    assert!(ask(&server, |_config| {}).await.is_ok());
}

#[tokio::test]
async fn an_answer_that_was_cut_once_is_mended_whatever_the_policy() {
    for on_truncated in [
        OnTruncated::Accept,
        OnTruncated::RetryLonger,
        OnTruncated::DeadLetter,
    ] {
        let server = serve(quick()).await;
        server.faults().push(Action::Truncated);
        let answer = ask(&server, |config| config.on_truncated = on_truncated).await;
        let answer = answer.unwrap_or_else(|error| panic!("{on_truncated:?}: {error}"));
        assert!(answer.data.is_some());
        assert_eq!(answer.finish_reason, "stop");
        assert_eq!(server.calls(), 2, "{on_truncated:?}");
    }
}

/// 16 tokens are too few, 64 are enough.
#[tokio::test]
async fn an_answer_that_is_always_cut_is_given_up_unless_more_may_be_asked_for() {
    for on_truncated in [OnTruncated::Accept, OnTruncated::DeadLetter] {
        let server = serve(quick()).await;
        let outcome = ask(&server, |config| {
            config.on_truncated = on_truncated;
            config.max_tokens = 16;
        });
        let give_up = given_up(outcome.await);
        assert_eq!(give_up.reason, DeadLetterReason::SchemaViolation);
        assert!(
            give_up.detail.contains("llm.max_tokens = 16"),
            "{}",
            give_up.detail
        );
        assert!(
            give_up
                .answer
                .unwrap()
                .starts_with(r#"{"summary":"[simulated"#)
        );
        assert_eq!(server.calls(), 2);
    }
    let server = serve(quick()).await;
    let outcome = ask(&server, |config| {
        config.on_truncated = OnTruncated::RetryLonger;
        config.max_tokens = 16;
    });
    let answer = outcome.await.unwrap();
    assert!(answer.data.is_some());
    let asked: Vec<_> = about_documents(&server)
        .iter()
        .map(|seen| seen.max_tokens.unwrap())
        .collect();
    assert_eq!(asked, [16, 32, 64]);
    assert_eq!(answer.usage.calls, 3);
}

#[tokio::test]
async fn a_server_that_refuses_the_schema_holds_and_says_why() {
    let server = serve(quick()).await;
    let refusal = json!({"error": {"message": "Grammar error: Failed to convert json to grammar",
        "type": "BadRequestError", "param": null, "code": 400}});
    server
        .faults()
        .push(Fault::new(Action::answer(400, refusal.to_string())).kept());
    let file = schema_file();
    let (client, schema) = schema_client(&with_schema(config(&server), file.path()));
    let mut documents = JoinSet::new();
    for offset in 0..12 {
        documents.spawn(complete(Arc::clone(&client), request(&schema, offset)));
    }
    held_because(&client, "Grammar error").await;
    // Each is tried and none is given up.
    until(&server, "a try while it is held", |server| {
        server.calls() > 13
    })
    .await;
    assert!(documents.try_join_next().is_none());
    server.faults().clear();
    let began = Instant::now();
    for answer in all_answered(documents).await {
        assert!(answer.data.is_some());
    }
    assert_eq!(client.state().held, None);
    // Those that were on their way when the trial began did not slow it down.
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
}

/// Too few to conclude from: the probe decides, which asks with the schema too.
#[tokio::test]
async fn a_server_that_refuses_the_schema_holds_a_single_document_as_well() {
    let server = serve(quick()).await;
    let refusal = json!({"error": {"message": "Grammar error: Failed to convert json to grammar",
        "type": "BadRequestError", "param": null, "code": 400}});
    server
        .faults()
        .push(Fault::new(Action::answer(400, refusal.to_string())).kept());
    let file = schema_file();
    let (client, schema) = schema_client(&with_schema(config(&server), file.path()));
    let mut documents = JoinSet::new();
    documents.spawn(complete(Arc::clone(&client), request(&schema, 1)));
    held_because(&client, "Grammar error").await;
    tokio::time::timeout(Duration::from_millis(500), documents.join_next())
        .await
        .expect_err("it waits");
    client.begin_drain();
    let outcome = outcomes(documents).await.pop().unwrap();
    assert!(
        matches!(
            outcome,
            Err(kafka_llm_processor::llm::CompleteError::Abandoned)
        ),
        "{outcome:?}"
    );
}
