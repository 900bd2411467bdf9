//! One document that kills the engine each time: it is found, and costs nobody else an answer.

use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::llm::{CompleteError, LlmConfig, VllmClient};
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Vllm};
use kafka_llm_processor::types::DeadLetterReason;
use tokio::task::JoinSet;

use crate::harness::{
    Outcome, PATIENCE, all_answered, ask, client, config, config_of, eventually, fixed, outcomes,
    serve, start, taking, text,
};

fn kill_on_poison(server: &Vllm) {
    let restart_after = Some(Duration::from_millis(400));
    server.faults().push(
        Fault::new(Action::KillEngine { restart_after })
            .on_prompt("poison")
            .kept(),
    );
}

/// 40 documents, the 13th of them poison.
fn start_with_poison(client: &Arc<VllmClient>) -> JoinSet<Outcome> {
    let mut documents = JoinSet::new();
    for offset in 0..40 {
        let content = if offset == 12 {
            "A poison document.".to_owned()
        } else {
            text(offset)
        };
        documents.spawn(ask(Arc::clone(client), offset, content));
    }
    documents
}

/// Exactly the poison is given up.
fn check(outcomes: &[Outcome]) {
    let given_up: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Ok(_) => None,
            Err(CompleteError::DeadLetter(give_up)) => Some(give_up.reason),
            Err(CompleteError::Abandoned) => panic!("abandoned"),
        })
        .collect();
    assert_eq!(given_up, [DeadLetterReason::EngineKilled]);
    assert_eq!(outcomes.len(), 40);
}

#[tokio::test]
async fn the_document_that_kills_the_engine_is_found_with_four_deaths() {
    let case = async |calls: usize| {
        let server = serve(taking(30)).await;
        kill_on_poison(&server);
        let client = client(&LlmConfig {
            attempts: 2,
            ..fixed(config(&server), calls)
        });
        check(&outcomes(start_with_poison(&client)).await);
        assert_eq!(server.engine_deaths(), 4, "{calls} at once");
    };
    tokio::join!(case(4), case(64));
}

#[tokio::test]
async fn with_another_server_the_work_goes_on_meanwhile() {
    let (first, second) = (serve(taking(30)).await, serve(taking(30)).await);
    kill_on_poison(&first);
    kill_on_poison(&second);
    let client = client(&LlmConfig {
        attempts: 2,
        ..fixed(config_of(&[&first, &second]), 8)
    });
    check(&outcomes(start_with_poison(&client)).await);
    assert_eq!(first.engine_deaths() + second.engine_deaths(), 4);
    eventually("both are open", PATIENCE, || {
        let endpoints = client.state().endpoints;
        endpoints.iter().all(|endpoint| endpoint.held.is_none())
    })
    .await;
    let calls = first.calls();
    all_answered(start(&client, 40)).await;
    assert!(first.calls() > calls && first.calls() < calls + 40);
}
