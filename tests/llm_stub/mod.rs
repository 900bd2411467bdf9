//! A model server in a few lines, on raw TCP: answers are scripted byte by byte, so that it can misbehave in every way.

pub(crate) mod tls_server;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What the stub does with one chat completion.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// A good answer.
    Ok,
    /// A good answer with this finish reason and `usage.completion_tokens`.
    Finished(&'static str, u64),
    /// A status and a body.
    Status(u16, &'static str),
    /// A status with one more header.
    WithHeader(u16, &'static str),
    /// 200 and this body.
    Body(&'static str),
    /// Closes the connection before a byte.
    HangUp,
    /// Half of a good answer, then closes.
    Cut,
    /// A body that never ends.
    Endless,
    /// Says nothing until the client leaves.
    Silence,
    /// A good answer once [`Stub::let_go`] is called.
    WhenLetGo,
    /// A good answer, then closes the connection without having announced it.
    OkThenClose,
}

/// A chat completion that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    head: String,
    pub(crate) body: Value,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.head
            .lines()
            .find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found.eq_ignore_ascii_case(name).then(|| value.trim())
            })
            .unwrap_or_default()
    }

    pub(crate) fn text(&self) -> &str {
        self.body["messages"]
            .as_array()
            .and_then(|messages| messages.last())
            .and_then(|message| message["content"].as_str())
            .unwrap_or_default()
    }

    fn is_probe(&self) -> bool {
        self.header("x-request-id").starts_with("klp-probe-")
    }
}

type Rule = Box<dyn Fn(&Seen) -> Option<Answer> + Send>;

#[derive(Default)]
struct State {
    script: VecDeque<Answer>,
    rule: Option<Rule>,
    models: Option<(u16, String)>,
    chats: Vec<Seen>,
    probes: usize,
    connections: usize,
}

/// The server; dropping it closes every connection.
pub(crate) struct Stub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    let_go: Arc<Notify>,
    server: Option<JoinHandle<()>>,
}

#[allow(dead_code, reason = "not every test binary uses all of it")]
impl Stub {
    pub(crate) async fn start() -> Self {
        let mut stub = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            state: Arc::default(),
            let_go: Arc::new(Notify::new()),
            server: None,
        };
        stub.listen().await;
        stub
    }

    /// Listens (again) on the same address.
    pub(crate) async fn listen(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let state = Arc::clone(&self.state);
        let let_go = Arc::clone(&self.let_go);
        self.server = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                state.lock().unwrap().connections += 1;
                connections.spawn(serve(stream, Arc::clone(&state), Arc::clone(&let_go)));
            }
        }));
    }

    /// Closes everything, as a killed process does.
    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            assert!(server.await.unwrap_err().is_cancelled());
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers for the next chat completions of documents, in order; after them all is well.
    pub(crate) fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state.lock().unwrap().script.extend(answers);
    }

    /// Answers by rule, probes included; where it says nothing the script goes on.
    pub(crate) fn rule(&self, rule: impl Fn(&Seen) -> Option<Answer> + Send + 'static) {
        self.state.lock().unwrap().rule = Some(Box::new(rule));
    }

    pub(crate) fn no_rule(&self) {
        self.state.lock().unwrap().rule = None;
    }

    /// What `/v1/models` answers.
    pub(crate) fn models(&self, status: u16, body: &str) {
        self.state.lock().unwrap().models = Some((status, body.to_owned()));
    }

    /// Chat completions of documents so far.
    pub(crate) fn chats(&self) -> Vec<Seen> {
        self.state.lock().unwrap().chats.clone()
    }

    pub(crate) fn probes(&self) -> usize {
        self.state.lock().unwrap().probes
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    /// Lets one [`Answer::WhenLetGo`] go on.
    pub(crate) fn let_go(&self) {
        self.let_go.notify_one();
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>, let_go: Arc<Notify>) {
    while let Some((head, body)) = read_request(&mut stream).await {
        let answer = if head.starts_with("GET /v1/models ") {
            let (status, body) = state.lock().unwrap().models.clone().unwrap_or_else(|| {
                let model = json!({"id": "stub", "object": "model", "max_model_len": 4096});
                (200, json!({"object": "list", "data": [model]}).to_string())
            });
            if stream.write_all(&http(status, "", &body)).await.is_err() {
                return;
            }
            continue;
        } else if head.starts_with("POST /v1/chat/completions ") {
            choose(&state, &head, &body)
        } else {
            (
                Answer::Status(404, r#"{"detail":"Not Found"}"#),
                String::new(),
            )
        };
        if !respond(&mut stream, answer, &let_go).await {
            return;
        }
    }
}

fn choose(state: &Mutex<State>, head: &str, body: &[u8]) -> (Answer, String) {
    let seen = Seen {
        head: head.to_owned(),
        body: serde_json::from_slice(body).unwrap_or_default(),
    };
    let text = seen.text().to_owned();
    let mut state = state.lock().unwrap();
    let ruled = state.rule.as_ref().and_then(|rule| rule(&seen));
    let answer = if seen.is_probe() {
        state.probes += 1;
        ruled.unwrap_or(Answer::Ok)
    } else {
        state.chats.push(seen);
        ruled.unwrap_or_else(|| state.script.pop_front().unwrap_or(Answer::Ok))
    };
    (answer, text)
}

/// Whether the connection goes on.
async fn respond(
    stream: &mut TcpStream,
    (answer, text): (Answer, String),
    let_go: &Notify,
) -> bool {
    let good = |finish_reason: &str, tokens: u64| {
        json!({
            "id": "chatcmpl-x", "object": "chat.completion", "model": "stub",
            "choices": [{"index": 0, "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": format!("answer to {text}")}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens},
        })
        .to_string()
    };
    let (bytes, keep) = match answer {
        Answer::Ok => (http(200, "", &good("stop", 3)), true),
        Answer::OkThenClose => (http(200, "", &good("stop", 3)), false),
        Answer::Finished(reason, tokens) => (http(200, "", &good(reason, tokens)), true),
        Answer::Status(status, body) => (http(status, "", body), true),
        Answer::WithHeader(status, header) => (http(status, header, "{}"), true),
        Answer::Body(body) => (http(200, "", body), true),
        Answer::HangUp => return false,
        Answer::Cut => {
            let mut bytes = http(200, "", &good("stop", 3));
            bytes.truncate(bytes.len() - 20);
            (bytes, false)
        }
        Answer::Endless => {
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let mut fine = stream.write_all(head).await.is_ok();
            while fine {
                let mut chunk = b"1000\r\n".to_vec();
                chunk.resize(6 + 0x1000, b' ');
                chunk.extend_from_slice(b"\r\n");
                fine = stream.write_all(&chunk).await.is_ok();
            }
            return false;
        }
        Answer::Silence => {
            let mut byte = [0];
            drop(tokio::time::timeout(Duration::from_secs(60), stream.read(&mut byte)).await);
            return false;
        }
        Answer::WhenLetGo => {
            let_go.notified().await;
            (http(200, "", &good("stop", 3)), true)
        }
    };
    stream.write_all(&bytes).await.is_ok() && keep
}

fn http(status: u16, header: &str, body: &str) -> Vec<u8> {
    let header = if header.is_empty() {
        String::new()
    } else {
        format!("{header}\r\n")
    };
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{header}content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Head and body of the next request; none when the client left.
async fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length: usize = head
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse().ok())?
        })
        .unwrap_or(0);
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, bytes[end..end + length].to_vec()))
}
