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

/// So many documents, the one at `poison` kills.
fn start_with_poison(client: &Arc<VllmClient>, count: i64, poison: i64) -> JoinSet<Outcome> {
    let mut documents = JoinSet::new();
    for offset in 0..count {
        let content = if offset == poison {
            "A poison document.".to_owned()
        } else {
            text(offset)
        };
        documents.spawn(ask(Arc::clone(client), offset, content));
    }
    documents
}

/// Exactly the poison is given up.
fn check(outcomes: &[Outcome], count: usize) {
    let given_up: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Ok(_) => None,
            Err(CompleteError::DeadLetter(give_up)) => Some(give_up.reason),
            Err(CompleteError::Abandoned) => panic!("abandoned"),
        })
        .collect();
    assert_eq!(given_up, [DeadLetterReason::EngineKilled]);
    assert_eq!(outcomes.len(), count);
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
        check(&outcomes(start_with_poison(&client, 40, 12)).await, 40);
        assert_eq!(server.engine_deaths(), 4, "{calls} at once");
    };
    tokio::join!(case(4), case(64));
}

/// Of four it is the last to be tried alone in one case of four: nobody is left then that could be answered after it.
#[tokio::test]
async fn also_when_it_is_the_last_of_those_that_died_with_it() {
    let case = || async {
        let server = serve(taking(10)).await;
        kill_on_poison(&server);
        let client = client(&LlmConfig {
            attempts: 2,
            ..fixed(config(&server), 4)
        });
        check(&outcomes(start_with_poison(&client, 4, 3)).await, 4);
        assert_eq!(server.engine_deaths(), 4);
    };
    futures::future::join_all((0..8).map(|_| case())).await;
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
    check(&outcomes(start_with_poison(&client, 40, 12)).await, 40);
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
