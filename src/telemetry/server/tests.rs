//! Over real sockets and without a client library: what is asked and answered is written out.

use std::sync::{Arc, Mutex};

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
    /// How the switch was turned, time after time.
    turns: Arc<Mutex<Vec<bool>>>,
}

fn config(listen: &str) -> AdminConfig {
    AdminConfig {
        listen: listen.parse().unwrap(),
        ..AdminConfig::default()
    }
}

fn sources() -> AdminSources {
    let mut registry = new_registry();
    let status = StatusBoard::new(&mut registry);
    AdminSources {
        metrics: Metrics::new(registry),
        health: Health::new(),
        pause: PauseSwitch::new(status.clone(), |_| {}),
        status,
    }
}

fn fixture() -> Fixture {
    fixture_with(&config("127.0.0.1:0"))
}

fn fixture_with(config: &AdminConfig) -> Fixture {
    let mut sources = sources();
    let turns = Arc::<Mutex<Vec<bool>>>::default();
    sources.pause = PauseSwitch::new(sources.status.clone(), {
        let turns = Arc::clone(&turns);
        move |paused| turns.lock().unwrap().push(paused)
    });
    let (health, status) = (sources.health.clone(), sources.status.clone());
    let server = AdminServer::start(config, sources, CancellationToken::new())
        .unwrap()
        .unwrap();
    Fixture {
        server,
        health,
        status,
        turns,
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
        self.ask("GET", path, "").await
    }

    /// `headers` are lines.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String, String) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n"
        );
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
    let asked = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAccept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2\r\n\r\n";
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
        .write_all(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_request_that_is_too_large_is_cut() {
    let fixture = fixture();
    let mut request =
        b"POST /status HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999\r\n".to_vec();
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

/// Such as one of `/events`.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_cut_off() {
    let inner = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = inner.local_addr().unwrap();
    let mut listener = BoundedListener::new(inner);
    let _client = TcpStream::connect(address).await.unwrap();
    let (mut stream, _) = listener.accept().await;
    // More than the buffers of two sockets take.
    let answer = vec![b'a'; 64 * 1024 * 1024];
    let writing = tokio::time::timeout(connection::IDLE_MAX * 2, stream.write_all(&answer));
    let written = writing.await.expect("in time").unwrap_err();
    assert_eq!(written.kind(), io::ErrorKind::TimedOut);
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

const JSON: &str = "Content-Type: application/json\r\nContent-Length: 0\r\n";

#[tokio::test]
async fn a_pause_shows_until_it_is_ended() {
    let fixture = fixture();
    fixture.status.set_state(RunState::Running);
    fixture.status.set_hold("llm", "busy");
    let (status, _, body) = fixture.ask("POST", "/pause", JSON).await;
    assert_eq!(status, 200);
    let turned: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&turned["paused"], &turned["changed"]),
        (&true.into(), &true.into())
    );
    let (_, _, again) = fixture.ask("POST", "/pause", JSON).await;
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(
        (&again["changed"], &again["since"]),
        (&false.into(), &turned["since"])
    );
    let page = fixture.get("/status").await.2;
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["state"], "paused");
    assert_eq!(
        (&page["ready"], &page["paused_since"]),
        (&false.into(), &turned["since"])
    );
    let (status, _, body) = fixture.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(
        body.starts_with("paused: since ") && body.contains("/resume"),
        "{body}"
    );
    assert_eq!(fixture.get("/livez").await.0, 200);
    let metrics = fixture.get("/metrics").await.2;
    assert!(metrics.contains("klp_paused 1\n"), "{metrics}");
    assert!(
        metrics.contains("klp_state{state=\"paused\"} 1\n"),
        "{metrics}"
    );

    assert_eq!(fixture.ask("POST", "/resume", JSON).await.0, 200);
    fixture.status.clear_hold("llm");
    assert_eq!(fixture.get("/readyz").await.0, 200);
    assert!(fixture.get("/metrics").await.2.contains("klp_paused 0\n"));
    assert_eq!(*fixture.turns.lock().unwrap(), [true, true, false]);
}

#[tokio::test]
async fn a_page_in_a_browser_cannot_pause_it() {
    let fixture = fixture();
    let with_origin = format!("{JSON}Origin: http://example.org\r\n");
    for (method, headers, expected) in [
        ("GET", JSON, 405),
        ("POST", "Content-Length: 0\r\n", 403),
        (
            "POST",
            "Content-Type: text/plain\r\nContent-Length: 0\r\n",
            403,
        ),
        ("POST", &with_origin, 403),
    ] {
        let (status, head, _) = fixture.ask(method, "/pause", headers).await;
        assert_eq!(status, expected, "{method} {headers}");
        assert!(!head.contains("access-control-allow"), "{head}");
    }
    // What a browser asks before it sends JSON to another site.
    let preflight = "Origin: http://example.org\r\nAccess-Control-Request-Method: POST\r\n";
    let (status, head, _) = fixture.ask("OPTIONS", "/pause", preflight).await;
    assert_eq!(status, 405);
    assert!(!head.contains("access-control-allow"), "{head}");
    assert!(fixture.turns.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_listener_for_others_asks_for_the_token() {
    let open = fixture_with(&config("0.0.0.0:0"));
    let (status, _, body) = open.ask("POST", "/pause", JSON).await;
    assert_eq!(status, 403);
    assert!(body.contains("admin.token_file"), "{body}");

    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, "a-token-of-some-length\n").unwrap();
    let guarded = fixture_with(&AdminConfig {
        token_file: Some(token_file),
        ..config("0.0.0.0:0")
    });
    for (token, expected) in [
        ("a-token-of-another-one", 403),
        ("a-token-of-some-length", 200),
    ] {
        let headers = format!("{JSON}Authorization: Bearer {token}\r\n");
        assert_eq!(guarded.ask("POST", "/pause", &headers).await.0, expected);
    }
    assert_eq!(guarded.ask("POST", "/resume", JSON).await.0, 403);
    assert_eq!(*guarded.turns.lock().unwrap(), [true]);
}

#[tokio::test]
async fn a_token_file_of_no_use_names_the_setting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    for content in [
        None,
        Some(""),
        Some("short"),
        Some("two words that are long"),
    ] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let config = AdminConfig {
            token_file: Some(path.clone()),
            ..config("127.0.0.1:0")
        };
        let error = AdminServer::start(&config, sources(), CancellationToken::new()).unwrap_err();
        assert!(error.is_setting(), "{error}");
        let message = error.to_string();
        assert!(message.contains("admin.token_file"), "{message}");
        assert!(!message.contains("short"), "{message}");
    }
}

/// What a page sends whose name was made to point here.
#[tokio::test]
async fn a_name_that_is_not_known_is_refused_whatever_it_asks_for() {
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        let fixture = fixture_with(&config(listen));
        for request in [
            "GET /",
            "GET /events",
            "GET /status",
            "GET /metrics",
            "GET /readyz",
            "GET /other",
            "POST /pause",
            "POST /resume",
        ] {
            for hosts in [
                "Host: evil.example:9100",
                "Host: 127.0.0.1\r\nHost: evil.example",
            ] {
                let request =
                    format!("{request} HTTP/1.1\r\n{hosts}\r\nConnection: close\r\n{JSON}\r\n");
                let answer = fixture.send(request.as_bytes()).await;
                assert!(
                    answer.starts_with("HTTP/1.1 403") && answer.contains("admin.allowed_hosts"),
                    "{request}: {answer}"
                );
            }
        }
        let in_the_line = "GET http://evil.example/status HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
        assert!(
            fixture
                .send(in_the_line.as_bytes())
                .await
                .starts_with("HTTP/1.1 403")
        );
        let alive = "GET /livez HTTP/1.1\r\nHost: klp.example.org\r\nConnection: close\r\n\r\n";
        assert!(
            fixture
                .send(alive.as_bytes())
                .await
                .starts_with("HTTP/1.1 200"),
            "a refused probe restarts what works"
        );
        assert!(fixture.turns.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn addresses_no_host_and_names_of_the_setting_are_answered() {
    let fixture = fixture_with(&AdminConfig {
        allowed_hosts: "processor".parse().unwrap(),
        ..config("127.0.0.1:0")
    });
    for head in [
        "HTTP/1.0",
        "HTTP/1.1\r\nHost:",
        "HTTP/1.1\r\nHost: 10.1.2.3:9100",
        "HTTP/1.1\r\nHost: [::1]:9100",
        "HTTP/1.1\r\nHost: localhost:9100",
        "HTTP/1.1\r\nHost: processor:9100",
    ] {
        let request = format!("GET /status {head}\r\nConnection: close\r\n\r\n");
        let answer = fixture.send(request.as_bytes()).await;
        assert_eq!(answer.split(' ').nth(1), Some("200"), "{head}: {answer}");
    }
}
