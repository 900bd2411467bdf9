//! What a test can make the server do wrong.

use std::time::Duration;

use kafka_llm_processor::sandbox::vllm::{
    Action, EngineState, Fault, Latency, SeenEnd, VllmConfig,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{
    CHAT, DEADLINE, answer, chat, chat_body, client, get, post, quick, server, server_with, value,
};

pub(crate) const ENGINE_DEAD: &str = r#"{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.","type":"InternalServerError","param":null,"code":500}}"#;

#[tokio::test]
async fn a_hook_answers_one_request_and_the_next_is_served() {
    let server = server().await;
    server
        .faults()
        .push(Action::too_many_requests(Some(Duration::from_secs(7))));
    let response = post(&server, CHAT)
        .json(&chat_body("Hi.", &json!({})))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "7");
    assert_eq!(chat(&server, &chat_body("Hi.", &json!({}))).await.0, 200);
    let statuses: Vec<_> = server.requests().iter().map(|seen| seen.end).collect();
    assert_eq!(statuses, [SeenEnd::Answered(429), SeenEnd::Answered(200)]);
}

#[tokio::test]
async fn a_marker_chooses_its_document() {
    let server = server().await;
    server.faults().push(
        Fault::new(Action::answer(500, "{}"))
            .on_prompt("poison")
            .kept(),
    );
    assert_eq!(chat(&server, &chat_body("Good.", &json!({}))).await.0, 200);
    for _ in 0..2 {
        assert_eq!(
            chat(&server, &chat_body("A poison.", &json!({}))).await.0,
            500
        );
    }
    assert_eq!(server.requests()[1].prompt, "A poison.");
}

#[tokio::test]
async fn connections_break_before_and_within_an_answer() {
    let server = server().await;
    server.faults().push(Action::HangUp);
    let body = chat_body("Hi.", &json!({}));
    let sent = post(&server, CHAT).json(&body).send().await;
    assert!(sent.is_err(), "{sent:?}");
    server.faults().push(Action::CutMidBody);
    let response = post(&server, CHAT).json(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.content_length().is_some());
    let text = response.text().await;
    assert!(text.is_err(), "{text:?}");
    assert_eq!(server.faults().pending(), 0);
}

#[tokio::test]
async fn a_hung_request_ends_when_its_client_leaves() {
    let server = server().await;
    server.faults().push(Action::HangForEver);
    let body = chat_body("Hi.", &json!({}));
    let impatient = post(&server, CHAT)
        .json(&body)
        .timeout(Duration::from_millis(50));
    assert!(impatient.send().await.unwrap_err().is_timeout());
    let ended = server
        .wait_until(DEADLINE, |server| {
            server.requests().first().map(|seen| seen.end) == Some(SeenEnd::Unanswered)
        })
        .await;
    assert!(ended);
}

#[tokio::test]
async fn bad_answers_come_with_status_200() {
    let server = server().await;
    let body = chat_body("One two three. Four 5.", &json!({}));
    server.faults().push(Action::Garbage);
    let (status, text) = chat(&server, &body).await;
    assert_eq!(status, 200);
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_err());
    server.faults().push(Action::NullContent);
    let (status, text) = chat(&server, &body).await;
    let choice = &value(&text)["choices"][0];
    assert_eq!((status, &choice["message"]["content"]), (200, &json!(null)));
    server.faults().push(Action::Abort);
    let (status, text) = chat(&server, &body).await;
    let choice = &value(&text)["choices"][0];
    assert_eq!((status, &choice["finish_reason"]), (200, &json!("abort")));
    let partial = choice["message"]["content"].as_str().unwrap();
    assert!(
        "[simulated answer, no model was run]".starts_with(partial.trim()),
        "{partial}"
    );
}

#[tokio::test]
async fn a_delay_comes_before_what_follows() {
    let server = server().await;
    let delay = Duration::from_millis(60);
    server.faults().push(Action::Delay(delay));
    server.faults().push(Action::answer(503, "{}"));
    let start = tokio::time::Instant::now();
    assert_eq!(chat(&server, &chat_body("Hi.", &json!({}))).await.0, 503);
    assert!(start.elapsed() >= delay);
}

/// A server whose calls take longer than any test.
pub(crate) fn slow() -> VllmConfig {
    VllmConfig {
        latency: Latency::fixed(DEADLINE * 3),
        ..quick()
    }
}

#[tokio::test]
async fn a_dead_engine_fails_who_runs_and_who_comes() {
    let server = server_with(slow()).await;
    let body = chat_body("Hi.", &json!({}));
    let running = tokio::spawn(post(&server, CHAT).json(&body).send());
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 1)
            .await
    );
    server.faults().set_engine(EngineState::Dead);
    let dead = (500, ENGINE_DEAD.to_owned());
    assert_eq!(answer(running.await.unwrap().unwrap()).await, dead);
    assert_eq!(chat(&server, &body).await, dead);
    assert_eq!(get(&server, "/health").send().await.unwrap().status(), 503);
    assert_eq!(
        get(&server, "/v1/models").send().await.unwrap().status(),
        200
    );
    assert_eq!(server.running(), 0);
    // Unknown models are noticed before the engine is asked.
    assert_eq!(
        chat(&server, &chat_body("Hi.", &json!({"model": "nope"})))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_pause_aborts_who_runs_and_holds_who_comes() {
    let server = server_with(VllmConfig {
        latency: Latency::fixed(Duration::from_secs(5)),
        ..quick()
    })
    .await;
    let body = chat_body("Hi.", &json!({}));
    let running = tokio::spawn(post(&server, CHAT).json(&body).send());
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 1)
            .await
    );
    server.faults().set_engine(EngineState::Paused);
    let (status, text) = answer(running.await.unwrap().unwrap()).await;
    assert_eq!(status, 200);
    assert_eq!(value(&text)["choices"][0]["finish_reason"], "abort");
    assert_eq!(get(&server, "/health").send().await.unwrap().status(), 200);

    let held = tokio::spawn(post(&server, CHAT).json(&body).send());
    assert!(
        server
            .wait_until(DEADLINE, |server| server.calls() == 2)
            .await
    );
    assert_eq!((server.running(), server.waiting()), (0, 0));
    server.faults().set_engine(EngineState::Serving);
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 1)
            .await
    );
    held.abort();
}

#[tokio::test]
async fn an_outage_cuts_and_refuses_and_ends() {
    let server = server_with(slow()).await;
    let body = chat_body("Hi.", &json!({}));
    let running = tokio::spawn(post(&server, CHAT).json(&body).send());
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 1)
            .await
    );
    server.stop_listener().await;
    assert!(running.await.unwrap().is_err());
    assert_eq!(server.running(), 0);
    let refused = get(&server, "/health").send().await.unwrap_err();
    assert!(refused.is_connect(), "{refused:?}");
    server.start_listener().await.unwrap();
    assert_eq!(get(&server, "/health").send().await.unwrap().status(), 200);
    server.shutdown().await;
    assert!(
        get(&server, "/health")
            .send()
            .await
            .unwrap_err()
            .is_connect()
    );
}

#[tokio::test]
async fn the_last_handle_ends_the_server() {
    let server = server().await;
    let (url, another) = (server.url(), server.clone());
    drop(server);
    let health = format!("{url}/health");
    assert_eq!(client().get(&health).send().await.unwrap().status(), 200);
    let mut idle = TcpStream::connect(another.address()).await.unwrap();
    drop(another);
    // The end of the connection tells that its task has ended.
    let read = tokio::time::timeout(DEADLINE, idle.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
}

/// A half-close is a disconnect for uvicorn, and so it is here.
#[tokio::test]
async fn a_half_closed_connection_ends_its_request() {
    let server = server_with(slow()).await;
    let body = chat_body("Hi.", &json!({})).to_string();
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 1)
            .await
    );
    stream.shutdown().await.unwrap();
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 0)
            .await
    );
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"");
}

/// Real time, as sockets need it: the connection must be open shortly before 5 s and closed soon after.
#[tokio::test]
async fn an_idle_connection_closes_after_five_seconds() {
    let server = server().await;
    let mut fresh = TcpStream::connect(server.address()).await.unwrap();
    let mut used = TcpStream::connect(server.address()).await.unwrap();
    used.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 512];
    let read = used.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200 OK"));
    let start = tokio::time::Instant::now();
    let closed = tokio::time::timeout(DEADLINE, used.read(&mut answer)).await;
    assert_eq!(closed.unwrap().unwrap(), 0);
    let idle = start.elapsed();
    assert!(
        idle > Duration::from_millis(4800) && idle < Duration::from_secs(8),
        "{idle:?}"
    );
    // One that never sent anything stays.
    fresh
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(fresh.read(&mut answer).await.unwrap() > 0);
}
