//! The process ends, drains, scales, and comes back.

use std::time::Duration;

use kafka_llm_processor::sandbox::vllm::{
    Action, EngineState, Fault, Latency, SeenEnd, Vllm, VllmConfig,
};
use reqwest::Response;
use serde_json::json;
use tokio::task::JoinHandle;

use super::client::{
    CHAT, DEADLINE, answer, chat, chat_body, get, post, quick, server, server_with, value,
};
use super::faults::{ENGINE_DEAD, slow};

type Sent = JoinHandle<reqwest::Result<Response>>;

fn send(server: &Vllm, prompt: &str) -> Sent {
    tokio::spawn(
        post(server, CHAT)
            .json(&chat_body(prompt, &json!({})))
            .send(),
    )
}

async fn until(server: &Vllm, condition: impl Fn(&Vllm) -> bool) {
    assert!(
        server.wait_until(DEADLINE, condition).await,
        "{:?}",
        server.requests()
    );
}

/// Until the process that comes after a death serves.
async fn until_back(server: &Vllm) {
    until(server, |server| {
        server.faults().engine() == EngineState::Serving && server.listens()
    })
    .await;
}

async fn refused(server: &Vllm) -> bool {
    let sent = get(server, "/health").send().await;
    sent.is_err_and(|error| error.is_connect())
}

/// A document kills the engine each time that it begins to run: who runs and who waits is failed with it, then the port is closed.
#[tokio::test]
async fn a_document_kills_the_engine_and_it_comes_back() {
    let server = server_with(VllmConfig {
        max_num_seqs: 2,
        ..slow()
    })
    .await;
    let restart_after = Some(Duration::from_millis(1));
    server.faults().push(
        Fault::new(Action::KillEngine { restart_after })
            .on_prompt("poison")
            .kept(),
    );
    for deaths in 1..=2 {
        let running = send(&server, "Good.");
        until(&server, |server| server.running() == 1).await;
        let poison = send(&server, "A poison.");
        for call in [running, poison] {
            let dead = answer(call.await.unwrap().unwrap()).await;
            assert_eq!(dead, (500, ENGINE_DEAD.to_owned()));
        }
        until_back(&server).await;
        assert_eq!(server.engine_deaths(), deaths);
        assert_eq!(get(&server, "/health").send().await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn poison_that_waits_or_is_refused_kills_nothing() {
    let server = server_with(VllmConfig {
        max_num_seqs: 1,
        ..slow()
    })
    .await;
    let kill = Action::KillEngine {
        restart_after: None,
    };
    server
        .faults()
        .push(Fault::new(kill).on_prompt("poison").kept());
    let too_much = chat_body("poison", &json!({"temperature": 9}));
    assert_eq!(chat(&server, &too_much).await.0, 400);
    let running = send(&server, "Good.");
    until(&server, |server| server.running() == 1).await;
    let poison = send(&server, "poison");
    until(&server, |server| server.waiting() == 1).await;
    assert_eq!(server.engine_deaths(), 0);
    running.abort();
    assert_eq!(poison.await.unwrap().unwrap().status(), 500);
    assert_eq!(server.engine_deaths(), 1);
    // Without a restart it stays away until it is started, as a new process with new counters.
    until(&server, |server| !server.listens()).await;
    assert!(refused(&server).await);
    server.start_listener().await.unwrap();
    assert_eq!(server.faults().engine(), EngineState::Serving);
    assert_eq!(get(&server, "/health").send().await.unwrap().status(), 200);
}

/// What hangs outside the engine owes no answer: it is cut, and the death ends.
#[tokio::test]
async fn a_death_cuts_who_is_not_in_the_engine() {
    let server = server().await;
    server.faults().push(Action::HangForEver);
    let hung = send(&server, "Hang.");
    until(&server, |server| server.calls() == 1).await;
    server.kill_engine(None);
    assert!(hung.await.unwrap().is_err());
    until(&server, |server| !server.listens()).await;
    assert_eq!(server.requests()[0].end, SeenEnd::Unanswered);
    // A second death of a dead engine is none.
    server.kill_engine(None);
    assert_eq!(server.engine_deaths(), 1);
}

#[tokio::test]
async fn a_new_process_counts_from_nothing() {
    let server = server().await;
    let requests = |text: String| text.contains("finished_reason=\"stop\"} 1.0");
    let page = |server: &Vllm| get(server, "/metrics").send();
    assert_eq!(chat(&server, &chat_body("Hi.", &json!({}))).await.0, 200);
    assert!(requests(answer(page(&server).await.unwrap()).await.1));
    server.kill_engine(Some(Duration::ZERO));
    until_back(&server).await;
    assert!(!requests(answer(page(&server).await.unwrap()).await.1));
}

#[tokio::test]
async fn a_drain_ends_what_was_taken_and_refuses_the_rest() {
    let server = server_with(VllmConfig {
        latency: Latency::fixed(Duration::from_secs(2)),
        ..quick()
    })
    .await;
    let running = send(&server, "One.");
    until(&server, |server| server.running() == 1).await;
    server.drain();
    let body = chat_body("Three.", &json!({}));
    let refusal = r#"{"error":{"message":"cannot schedule new futures after shutdown","type":"InternalServerError","param":null,"code":500}}"#;
    assert_eq!(chat(&server, &body).await, (500, refusal.to_owned()));
    assert_eq!(get(&server, "/health").send().await.unwrap().status(), 200);
    let (status, text) = answer(running.await.unwrap().unwrap()).await;
    assert_eq!(status, 200);
    assert_eq!(value(&text)["choices"][0]["finish_reason"], "stop");
    server.stop_listener().await;
    assert!(refused(&server).await);
    server.start_listener().await.unwrap();
    assert_eq!(chat(&server, &body).await.0, 200);
}

#[tokio::test]
async fn scaling_refuses_every_path_and_lets_calls_end() {
    let server = server_with(VllmConfig {
        api_key: Some("sekret".to_owned()),
        latency: Latency::fixed(Duration::from_secs(2)),
        ..quick()
    })
    .await;
    let body = chat_body("Hi.", &json!({}));
    let running = tokio::spawn(post(&server, CHAT).bearer_auth("sekret").json(&body).send());
    until(&server, |server| server.running() == 1).await;
    server.faults().set_engine(EngineState::Scaling);
    let scaling = (
        503,
        r#"{"error":"The model is currently scaling. Please try again later."}"#.to_owned(),
    );
    for path in ["/health", "/v1/models", "/metrics", "/nope"] {
        let got = answer(get(&server, path).send().await.unwrap()).await;
        assert_eq!(got, scaling, "{path}");
    }
    assert_eq!(chat(&server, &body).await, scaling);
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    server.faults().set_engine(EngineState::Serving);
    assert_eq!(get(&server, "/health").send().await.unwrap().status(), 200);
}
