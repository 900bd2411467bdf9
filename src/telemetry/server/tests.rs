//! Over real sockets and without a client library: what is asked and answered is written out.

use axum::serve::Listener;
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::telemetry::registry::{CONTENT_TYPE, new_registry};
use crate::telemetry::status::RunState;

struct Fixture {
    server: AdminServer,
    health: Health,
    status: StatusBoard,
}

fn config(listen: &str) -> AdminConfig {
    AdminConfig {
        listen: listen.parse().unwrap(),
    }
}

fn sources() -> AdminSources {
    let mut registry = new_registry();
    let status = StatusBoard::new(&mut registry);
    AdminSources {
        metrics: Metrics::new(registry),
        health: Health::new(),
        status,
    }
}

fn fixture() -> Fixture {
    let sources = sources();
    let (health, status) = (sources.health.clone(), sources.status.clone());
    let server = AdminServer::start(&config("127.0.0.1:0"), sources, CancellationToken::new())
        .unwrap()
        .unwrap();
    Fixture {
        server,
        health,
        status,
    }
}

impl Fixture {
    async fn send(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.server.local_addr()).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A server that cuts the connection may reset it; what came before counts.
        drop(stream.read_to_end(&mut answer).await);
        String::from_utf8(answer).unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = self.send(request.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }
}

#[tokio::test]
async fn metrics_are_openmetrics_for_who_asks_for_it_and_classic_text_for_others() {
    let fixture = fixture();
    let sample = "klp_documents_total{status=\"ok\"} 0\n";
    let asked = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2\r\n\r\n";
    let answer = fixture.send(asked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(CONTENT_TYPE));
    assert!(answer.contains(sample) && answer.ends_with("# EOF\n"));
    let (status, head, body) = fixture.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"));
    assert!(body.contains(sample) && !body.contains("# EOF"), "{body}");
    assert!(body.contains("# TYPE klp_documents_total counter\n"));
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let fixture = fixture();
    let topics = fixture.health.latch("topics");
    fixture
        .status
        .set_hold("llm", "401 Unauthorized (llm.api_key)");
    let (status, _, body) = fixture.get("/readyz").await;
    assert_eq!(status, 503);
    assert_eq!(
        body,
        "not done yet: topics\non hold: llm: 401 Unauthorized (llm.api_key)\n"
    );
    topics.release();
    assert_eq!(fixture.get("/readyz").await.0, 503);
    fixture.status.clear_hold("llm");
    let (status, _, body) = fixture.get("/readyz").await;
    assert_eq!((status, body.as_str()), (200, "ready\n"));
}

#[tokio::test]
async fn status_is_json() {
    let fixture = fixture();
    fixture.status.set_state(RunState::Running);
    fixture.status.set_hold("kafka", "unreachable");
    let (status, head, body) = fixture.get("/status").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/json"));
    let page: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(page["state"], "holding");
    assert_eq!(page["ready"], false);
    assert_eq!(page["holds"][0]["what"], "kafka");
}

#[tokio::test]
async fn an_outage_leaves_the_process_alive() {
    let fixture = fixture();
    fixture.status.set_hold("kafka", "unreachable");
    assert_eq!(fixture.get("/livez").await.0, 200);
}

#[tokio::test]
async fn the_index_names_the_paths_and_others_are_not_found() {
    let fixture = fixture();
    let (status, _, body) = fixture.get("/").await;
    assert_eq!(status, 200);
    for path in ["/status", "/metrics", "/livez", "/readyz"] {
        assert!(body.contains(path));
    }
    assert_eq!(fixture.get("/other").await.0, 404);
}

#[tokio::test]
async fn it_answers_while_the_callers_event_loop_is_busy() {
    let fixture = fixture();
    let address = fixture.server.local_addr();
    // A blocking client on this thread: the event loop of the test does not turn meanwhile.
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_request_that_is_too_large_is_cut() {
    let fixture = fixture();
    let mut request = b"POST /status HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n".to_vec();
    for index in 0..90 {
        request.extend_from_slice(format!("x-{index}: {}\r\n", "a".repeat(1000)).as_bytes());
    }
    let answer = fixture.send(&request).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(fixture.get("/livez").await.0, 200, "others are served");
}

#[tokio::test]
async fn connections_are_bounded_and_freed() {
    let inner = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = inner.local_addr().unwrap();
    let mut listener = BoundedListener::new(inner);
    let mut accepted = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..connection::CONNECTIONS_MAX {
        clients.push(TcpStream::connect(address).await.unwrap());
        accepted.push(listener.accept().await);
    }
    clients.push(TcpStream::connect(address).await.unwrap());
    let mut waiting = std::pin::pin!(listener.accept());
    assert!(
        waiting.as_mut().now_or_never().is_none(),
        "one more than the bound"
    );
    accepted.pop();
    waiting.await;
}

#[tokio::test]
async fn a_port_in_use_names_the_setting() {
    let fixture = fixture();
    let taken = fixture.server.local_addr().to_string();
    let error =
        AdminServer::start(&config(&taken), sources(), CancellationToken::new()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("admin.listen") && message.contains(&taken),
        "{message}"
    );
}

#[tokio::test]
async fn an_address_of_another_machine_names_the_setting() {
    // 192.0.2.0/24 is kept for documentation (RFC 5737) and belongs to no machine.
    let error = AdminServer::start(&config("192.0.2.1:0"), sources(), CancellationToken::new())
        .unwrap_err();
    assert!(error.to_string().contains("admin.listen"), "{error}");
}

#[tokio::test]
async fn off_starts_nothing() {
    let server = AdminServer::start(&config("off"), sources(), CancellationToken::new()).unwrap();
    assert!(server.is_none());
}

#[tokio::test]
async fn it_ends_when_told_and_frees_the_port() {
    let shutdown = CancellationToken::new();
    let server = AdminServer::start(&config("127.0.0.1:0"), sources(), shutdown.clone())
        .unwrap()
        .unwrap();
    let address = server.local_addr();
    // An idle connection does not keep it.
    let _idle = TcpStream::connect(address).await.unwrap();
    server.stop().await;
    assert!(shutdown.is_cancelled());
    assert!(std::net::TcpListener::bind(address).is_ok());
}
