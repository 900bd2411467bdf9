//! Answers that no vLLM gives: bounded, retried, given up rightly, and no harm to others.

use std::time::Duration;

use kafka_llm_processor::llm::LlmConfig;
use kafka_llm_processor::sandbox::vllm::{Action, Fault};
use kafka_llm_processor::types::DeadLetterReason;
use tokio::time::Instant;

use crate::harness::{
    all_answered, ask_now, client, config, fixed, given_up, outcomes, quick, serve, start,
};

fn hostile() -> Vec<Action> {
    vec![
        Action::EndlessBody,
        Action::HugeHeader {
            bytes: 4 * 1024 * 1024,
        },
        Action::deep_body(100_000),
        Action::Garbage,
        Action::answer(200, r#"{"choices":[]}"#),
        Action::answer(200, r#"{"choices":[{"finish_reason":7,"message":[]}]}"#),
        Action::answer(200, "\u{0}"),
        Action::answer(299, "{}"),
        Action::answer(599, "[".repeat(100_000)),
        Action::Answer {
            status: 503,
            headers: vec![("retry-after".to_owned(), "99999999999999999999".to_owned())],
            body: String::new(),
        },
    ]
}

#[tokio::test]
async fn each_once_and_every_document_is_answered() {
    let server = serve(quick()).await;
    let client = client(&LlmConfig {
        response_bytes_max: 64 * 1024,
        ..fixed(config(&server), 8)
    });
    for action in hostile() {
        server.faults().push(action);
    }
    all_answered(start(&client, 60)).await;
    assert_eq!(server.faults().pending(), 0);
    assert_eq!(client.state().held, None);
}

/// One document whose answers are always so is given up, and the others are answered.
#[tokio::test]
async fn always_for_one_document_and_only_that_is_given_up() {
    for action in [
        Action::EndlessBody,
        Action::deep_body(100_000),
        Action::answer(200, r#"{"choices":[]}"#),
    ] {
        let server = serve(quick()).await;
        let client = client(&LlmConfig {
            response_bytes_max: 64 * 1024,
            attempts: 3,
            ..fixed(config(&server), 8)
        });
        server
            .faults()
            .push(Fault::new(action.clone()).on_prompt("Document 7:").kept());
        let mut failed = Vec::new();
        for outcome in outcomes(start(&client, 40)).await {
            if outcome.is_err() {
                failed.push(given_up(outcome));
            }
        }
        assert_eq!(failed.len(), 1, "{action:?}");
        assert_eq!(failed[0].reason, DeadLetterReason::InvalidResponse);
        assert_eq!(failed[0].attempts, 3);
    }
}

/// What is read of an answer has a bound, and the reading ends there.
#[tokio::test]
async fn an_endless_answer_is_read_to_the_bound() {
    let server = serve(quick()).await;
    let client = client(&LlmConfig {
        response_bytes_max: 1024 * 1024,
        ..config(&server)
    });
    server.faults().push(Action::EndlessBody);
    let began = Instant::now();
    let answer = ask_now(&client, 1, "Revenue rose.").await.unwrap();
    assert_eq!(answer.attempts, 2);
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "the timeout ended it: {:?}",
        began.elapsed()
    );
}
