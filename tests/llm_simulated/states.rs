//! What a server goes through in its life: drained, scaled, paused, dead while nobody calls. No document is given up for it.

use std::time::Duration;

use kafka_llm_processor::llm::{Complete as _, LlmConfig};
use kafka_llm_processor::sandbox::vllm::EngineState;
use tokio::time::Instant;

use crate::harness::{
    PATIENCE, all_answered, ask_now, client, config, eventually, fixed, flows, held_because, serve,
    start, taking, until,
};

#[tokio::test]
async fn a_server_that_drains_and_comes_back_costs_no_document() {
    let server = serve(taking(100)).await;
    let client = client(&LlmConfig {
        attempts: 2,
        ..fixed(config(&server), 8)
    });
    let documents = start(&client, 100);
    until(&server, "it works", |server| server.calls() > 20).await;
    server.drain();
    held_because(&client, "500").await;
    until(&server, "the last calls end", |server| {
        server.running() == 0
    })
    .await;
    server.stop_listener().await;
    held_because(&client, "nothing listens").await;
    server.start_listener().await.unwrap();
    all_answered(documents).await;
}

#[tokio::test]
async fn scaling_is_waited_for_and_costs_no_attempt() {
    let server = serve(taking(20)).await;
    let client = client(&LlmConfig {
        attempts: 1,
        ..fixed(config(&server), 8)
    });
    let documents = start(&client, 100);
    until(&server, "it works", |server| server.calls() > 20).await;
    server.faults().set_engine(EngineState::Scaling);
    eventually("it shows", Duration::from_secs(5), || {
        client.state().throttled > 0
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.faults().set_engine(EngineState::Serving);
    all_answered(documents).await;
}

/// What ran is answered with `abort`, what is new hangs: longer than a call may take.
#[tokio::test]
async fn a_pause_costs_no_document() {
    let server = serve(taking(50)).await;
    let client = client(&LlmConfig {
        attempts: 2,
        timeout: Duration::from_millis(300),
        ..fixed(config(&server), 8)
    });
    let documents = start(&client, 60);
    until(&server, "it works", |server| server.calls() > 20).await;
    server.faults().set_engine(EngineState::Paused);
    held_because(&client, "does not answer in time").await;
    server.faults().set_engine(EngineState::Serving);
    all_answered(documents).await;
}

#[tokio::test]
async fn a_short_pause_is_not_noticed() {
    let server = serve(taking(50)).await;
    let client = client(&LlmConfig {
        attempts: 2,
        // Hardly a machine is so busy that a pause of 300 ms becomes one of this.
        timeout: PATIENCE,
        ..fixed(config(&server), 4)
    });
    let holds = client.holds();
    let documents = start(&client, 60);
    until(&server, "all run", |server| server.running() == 4).await;
    server.faults().set_engine(EngineState::Paused);
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.faults().set_engine(EngineState::Serving);
    all_answered(documents).await;
    assert!(!holds.has_changed().unwrap());
}

#[tokio::test]
async fn a_death_while_nobody_calls_is_known_within_ten_seconds() {
    let server = serve(taking(5)).await;
    let client = client(&config(&server));
    ask_now(&client, 1, "Revenue rose.").await.unwrap();
    server.faults().set_engine(EngineState::Dead);
    let began = Instant::now();
    held_because(&client, "/health").await;
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(server.calls(), 1 + probes(&server), "nobody called");
    server.faults().set_engine(EngineState::Serving);
    flows(&client).await;
    ask_now(&client, 2, "Revenue rose.").await.unwrap();
}

fn probes(server: &kafka_llm_processor::sandbox::vllm::Vllm) -> u64 {
    let requests = server.requests();
    u64::try_from(
        requests
            .iter()
            .filter(|seen| crate::harness::is_probe(seen))
            .count(),
    )
    .unwrap()
}

#[tokio::test]
async fn a_drain_of_ours_finishes_what_runs_and_gives_back_what_is_held() {
    let server = serve(taking(200)).await;
    let client = client(&fixed(config(&server), 4));
    let running = start(&client, 4);
    until(&server, "all run", |server| server.running() == 4).await;
    client.begin_drain();
    all_answered(running).await;
    server.stop_listener().await;
    let documents = start(&client, 4);
    for outcome in crate::harness::outcomes(documents).await {
        assert!(
            matches!(
                outcome,
                Err(kafka_llm_processor::llm::CompleteError::Abandoned)
            ),
            "{outcome:?}"
        );
    }
}
