//! The cache: what is the same in all that shapes an answer is asked once, anything else is not.

use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::llm::{LlmConfig, Prompt, PromptConfig, VllmClient};
use kafka_llm_processor::sandbox::vllm::Action;
use kafka_llm_processor::types::DeadLetterReason;
use tokio::task::JoinSet;

use crate::harness::{
    PATIENCE, all_answered, ask, ask_now, client, complete, config, fixed, quick, reason,
    request_with, serve, taking, text, until,
};

fn caching(config: LlmConfig) -> Arc<VllmClient> {
    client(&LlmConfig {
        cache_bytes_max: 1 << 20,
        ..config
    })
}

#[tokio::test]
async fn an_identical_document_is_answered_without_a_call() {
    let server = serve(quick()).await;
    let client = caching(config(&server));
    let first = ask_now(&client, 1, &text(1)).await.unwrap();
    let second = ask_now(&client, 2, &text(1)).await.unwrap();
    assert_eq!((first.cached, second.cached), (false, true));
    assert_eq!(first.text, second.text);
    assert_eq!(server.calls(), 1);
    assert!(!ask_now(&client, 3, &text(3)).await.unwrap().cached);
    assert_eq!(server.calls(), 2);
}

/// Two slots: those who wait for the one call must not take them.
#[tokio::test]
async fn identical_documents_at_once_are_asked_once_and_hold_no_slot() {
    let server = serve(taking(300)).await;
    let client = caching(fixed(config(&server), 2));
    let mut documents = JoinSet::new();
    for offset in 0..20 {
        documents.spawn(ask(Arc::clone(&client), offset, text(1)));
    }
    until(&server, "the one call", |server| server.running() == 1).await;
    let other = ask_now(&client, 50, &text(50)).await.unwrap();
    assert!(!other.cached);
    let answers = all_answered(documents).await;
    assert_eq!(answers.iter().filter(|answer| answer.cached).count(), 19);
    assert!(answers.iter().all(|answer| answer.text == answers[0].text));
    assert_eq!(server.calls(), 2);
}

#[tokio::test]
async fn another_template_is_another_question() {
    let server = serve(quick()).await;
    let client = caching(config(&server));
    let prompts = [
        PromptConfig::default(),
        PromptConfig {
            user: Some("Summarise.\n\n{{ content }}".to_owned()),
            ..PromptConfig::default()
        },
        PromptConfig {
            system: Some("You are brief.".to_owned()),
            ..PromptConfig::default()
        },
        PromptConfig {
            map: Some("Notes of {{ content }}".to_owned()),
            ..PromptConfig::default()
        },
    ];
    for prompt in &prompts {
        let prompt = Arc::new(Prompt::new(prompt, None).unwrap());
        for is_second in [false, true] {
            let request = request_with(Arc::clone(&prompt), 1, &text(1));
            let answer = complete(Arc::clone(&client), request).await.unwrap();
            assert_eq!(answer.cached, is_second);
        }
    }
    assert_eq!(server.calls(), 4);
}

#[tokio::test]
async fn a_failure_is_not_remembered() {
    let server = serve(quick()).await;
    let client = caching(config(&server));
    server.faults().push(Action::answer(413, "{}"));
    let outcome = ask_now(&client, 1, &text(1)).await;
    assert_eq!(reason(outcome), DeadLetterReason::RequestRejected);
    assert!(!ask_now(&client, 2, &text(1)).await.unwrap().cached);
    assert!(ask_now(&client, 3, &text(1)).await.unwrap().cached);
    assert_eq!(server.calls(), 2);
}

#[tokio::test]
async fn when_the_document_that_asks_is_dropped_the_next_one_asks() {
    let server = serve(taking(200)).await;
    let client = caching(config(&server));
    let first = tokio::spawn(ask(Arc::clone(&client), 1, text(1)));
    until(&server, "it runs", |server| server.running() == 1).await;
    let mut others = JoinSet::new();
    for offset in 2..6 {
        others.spawn(ask(Arc::clone(&client), offset, text(1)));
    }
    tokio::task::yield_now().await;
    first.abort();
    let answers = tokio::time::timeout(PATIENCE, all_answered(others))
        .await
        .unwrap();
    assert_eq!(answers.iter().filter(|answer| !answer.cached).count(), 1);
    assert_eq!(server.calls(), 2);
}

/// It is the document's own failure, not that of those who wait beside it.
#[tokio::test]
async fn those_who_wait_for_a_call_that_fails_are_asked_about_themselves() {
    let server = serve(quick()).await;
    let client = caching(config(&server));
    server
        .faults()
        .push(Action::Delay(Duration::from_millis(200)));
    server.faults().push(Action::answer(413, "{}"));
    let mut documents = JoinSet::new();
    for offset in 0..5 {
        documents.spawn(ask(Arc::clone(&client), offset, text(1)));
    }
    let outcomes = crate::harness::outcomes(documents).await;
    assert_eq!(
        outcomes.iter().filter(|outcome| outcome.is_err()).count(),
        1
    );
    assert_eq!(server.calls(), 2);
}

#[tokio::test]
async fn unless_it_is_asked_for_nothing_is_remembered() {
    let server = serve(quick()).await;
    let client = client(&config(&server));
    for offset in 1..4 {
        assert!(!ask_now(&client, offset, &text(1)).await.unwrap().cached);
    }
    assert_eq!(server.calls(), 3);
}
