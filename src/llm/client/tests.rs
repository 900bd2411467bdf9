//! Timing, on a paused clock and without sockets.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use reqwest::header::HeaderMap;

use super::*;
use crate::llm::{Call, ConnectFault, Message, Reply, TransportError};
use crate::types::{Offset, SourcePosition, TopicPartition};

/// What the fake server does with one call.
#[derive(Debug, Clone, Copy)]
enum Does {
    Answer,
    Status(u16),
    Refuse,
    Hang,
}

type Rule = Box<dyn FnMut(&str, &serde_json::Value) -> Does + Send>;

/// A server that does what a rule says; the rule sees the path and the JSON body.
struct Fake {
    rule: Mutex<Rule>,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

impl Fake {
    fn serving(
        rule: impl FnMut(&str, &serde_json::Value) -> Does + Send + 'static,
    ) -> Arc<dyn Transport> {
        Arc::new(Self {
            rule: Mutex::new(Box::new(rule)),
        })
    }
}

#[async_trait]
impl Transport for Fake {
    async fn exchange(&self, call: Call) -> Result<Reply, TransportError> {
        let body = call
            .body
            .as_deref()
            .map(|body| serde_json::from_slice(body).unwrap())
            .unwrap_or_default();
        let does = {
            let mut rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
            (*rule)(call.path, &body)
        };
        let reply = |status, body: &'static str| Reply {
            status,
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
        };
        match does {
            Does::Answer if call.path == "/v1/models" => Ok(reply(404, "{}")),
            Does::Answer => Ok(reply(
                200,
                r#"{"choices":[{"message":{"content":"text"},"finish_reason":"stop"}]}"#,
            )),
            Does::Status(status) => Ok(reply(status, "{}")),
            Does::Refuse => Err(TransportError::Connect {
                fault: ConnectFault::Refused,
                detail: String::new(),
            }),
            Does::Hang => std::future::pending().await,
        }
    }
}

fn is_probe(body: &serde_json::Value) -> bool {
    body["max_tokens"] == 1
}

fn request() -> CompletionRequest {
    CompletionRequest {
        document_id: "d".to_owned(),
        position: SourcePosition {
            topic_partition: TopicPartition::new("t", 0),
            offset: Offset::new(1),
        },
        messages: vec![Message {
            role: "user".to_owned(),
            content: "x".to_owned(),
        }],
        traceparent: None,
    }
}

fn client(config: &LlmConfig, transport: Arc<dyn Transport>) -> VllmClient {
    let metrics = LlmMetrics::new(&mut Registry::default());
    VllmClient::new(config, transport, metrics, &CancellationToken::new()).unwrap()
}

async fn ask(client: &VllmClient) -> Result<Completion, CompleteError> {
    let slot = client.admit().await;
    client.complete(request(), slot).await
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_an_hour_costs_nothing_but_the_hour() {
    let back = Instant::now() + Duration::from_hours(1);
    let mut chats = 0;
    let transport = Fake::serving(move |path, body| {
        if Instant::now() < back {
            if path == "/v1/chat/completions" && !is_probe(body) {
                chats += 1;
                assert_eq!(chats, 1, "sent while held");
            }
            Does::Refuse
        } else {
            Does::Answer
        }
    });
    let config = LlmConfig {
        attempts: 1,
        deadline: Duration::from_mins(1),
        ..LlmConfig::default()
    };
    let client = client(&config, transport);
    ask(&client).await.unwrap();
    let late = back.elapsed();
    assert!(late < Duration::from_secs(2), "{late:?}");
}

/// The server hangs for documents and answers the probe: each attempt is given more time, and the end is a dead letter.
#[tokio::test(start_paused = true)]
async fn the_time_of_an_attempt_grows_after_each_timeout() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let transport = Fake::serving(move |path, body| {
        if path == "/v1/chat/completions" && !is_probe(body) {
            seen.lock().unwrap().push(Instant::now());
            Does::Hang
        } else {
            Does::Answer
        }
    });
    let config = LlmConfig {
        timeout: Duration::from_secs(10),
        retry_backoff_initial: Duration::from_millis(1),
        retry_backoff_max: Duration::from_millis(1),
        ..LlmConfig::default()
    };
    let client = client(&config, transport);
    let given_up = ask(&client).await.unwrap_err();
    assert!(matches!(
        given_up,
        CompleteError::DeadLetter(GiveUp {
            reason: DeadLetterReason::AttemptsExhausted,
            attempts: 5,
            ..
        })
    ));
    let calls = calls.lock().unwrap();
    let seconds: Vec<_> = calls
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_secs_f64().round())
        .collect();
    // 10, 15, 22.5 and 33.75 s.
    assert_eq!(seconds, [10.0, 15.0, 23.0, 34.0]);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_a_document_between_its_attempts() {
    let transport = Fake::serving(|path, body| {
        if path == "/v1/chat/completions" && !is_probe(body) {
            Does::Hang
        } else {
            Does::Answer
        }
    });
    let config = LlmConfig {
        timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(20),
        ..LlmConfig::default()
    };
    let client = client(&config, transport);
    let began = Instant::now();
    let given_up = ask(&client).await.unwrap_err();
    assert!(matches!(
        given_up,
        CompleteError::DeadLetter(GiveUp {
            reason: DeadLetterReason::DeadlineExceeded,
            ..
        })
    ));
    assert!(
        began.elapsed() <= Duration::from_secs(21),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_throttled_document_outlives_its_deadline() {
    let free = Instant::now() + Duration::from_hours(1);
    let transport = Fake::serving(move |_, _| {
        if Instant::now() < free {
            Does::Status(503)
        } else {
            Does::Answer
        }
    });
    let config = LlmConfig {
        attempts: 1,
        deadline: Duration::from_secs(30),
        ..LlmConfig::default()
    };
    let client = client(&config, transport);
    ask(&client).await.unwrap();
    assert!(client.state().held.is_none());
}

/// Collects what is logged.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Logs of this thread go here while the guard lives.
    fn begin(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_is_told_when_it_begins_each_minute_and_when_it_ends() {
    let log = Log::default();
    let _guard = log.begin();
    let back = Instant::now() + Duration::from_secs(605);
    let transport = Fake::serving(move |_, _| {
        if Instant::now() < back {
            Does::Refuse
        } else {
            Does::Answer
        }
    });
    let client = client(&LlmConfig::default(), transport);
    ask(&client).await.unwrap();
    let text = log.text();
    let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
    assert_eq!(count("WARN"), 11, "{text}");
    assert_eq!(count("LLM_URL"), 11, "{text}");
    assert_eq!(count("the work goes on"), 1, "{text}");
    assert_eq!(count("held_for=10m 5s"), 1, "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_hold_whose_probe_hangs_is_told_within_five_seconds() {
    let log = Log::default();
    let _guard = log.begin();
    let transport = Fake::serving(|_, body| {
        if is_probe(body) {
            Does::Hang
        } else {
            Does::Status(401)
        }
    });
    let client = client(&LlmConfig::default(), transport);
    drop(tokio::time::timeout(Duration::from_secs(5), ask(&client)).await);
    assert!(log.text().contains("llm.api_key"), "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn waiters_for_admission_keep_their_order_through_a_hold() {
    let back = Instant::now() + Duration::from_secs(30);
    let transport = Fake::serving(move |_, _| {
        if Instant::now() < back {
            Does::Refuse
        } else {
            Does::Answer
        }
    });
    let config = LlmConfig {
        concurrency: 1,
        ..LlmConfig::default()
    };
    let client = Arc::new(client(&config, transport));
    client
        .holds()
        .wait_for(Option::is_some)
        .await
        .map(drop)
        .unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for place in 0..8 {
        let client = Arc::clone(&client);
        let order = Arc::clone(&order);
        tasks.spawn(async move {
            let slot = client.admit().await;
            order.lock().unwrap().push(place);
            client.complete(request(), slot).await.unwrap();
        });
    }
    tasks.join_all().await;
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_gives_held_documents_back() {
    let shutdown = CancellationToken::new();
    let metrics = LlmMetrics::new(&mut Registry::default());
    let transport = Fake::serving(|_, _| Does::Refuse);
    let client = VllmClient::new(&LlmConfig::default(), transport, metrics, &shutdown).unwrap();
    let document = client.complete(request(), Slot::unbounded());
    let (result, ()) = tokio::join!(document, async {
        client
            .holds()
            .wait_for(Option::is_some)
            .await
            .map(drop)
            .unwrap();
        shutdown.cancel();
    });
    assert!(matches!(result, Err(CompleteError::Abandoned)));
}
