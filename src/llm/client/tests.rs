//! Timing, on a paused clock and without sockets.

use std::io::Write;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use reqwest::header::HeaderMap;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::*;
use crate::llm::{
    Call, Concurrency, ConnectFault, GiveUp, Prompt, PromptConfig, Reply, Scope, TransportError,
};
use crate::types::{DeadLetterReason, Offset, SourcePosition, TopicPartition};

/// What the fake server does with one call.
#[derive(Debug, Clone, Copy)]
enum Does {
    Answer,
    Status(u16),
    /// The same after a while.
    Late(u16, Duration),
    Refuse,
    Hang,
    /// Answers after a while.
    Wait(Duration),
    /// Ends the connection in the middle of the answer.
    Disconnect,
}

type Rule = Box<dyn FnMut(&Call, &serde_json::Value) -> Does + Send>;

/// Servers that do what a rule says; the rule sees the call and its JSON body.
struct Fake {
    rule: Mutex<Rule>,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

impl Fake {
    /// One server; the rule sees the path.
    fn serving(
        mut rule: impl FnMut(&str, &serde_json::Value) -> Does + Send + 'static,
    ) -> Arc<dyn Transport> {
        Self::serving_all(move |call, body| rule(call.path, body))
    }

    fn serving_all(
        rule: impl FnMut(&Call, &serde_json::Value) -> Does + Send + 'static,
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
            (*rule)(&call, &body)
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
            Does::Late(status, time) => {
                tokio::time::sleep(time).await;
                Ok(reply(status, "{}"))
            }
            Does::Refuse => Err(TransportError::Connect {
                fault: ConnectFault::Refused,
                detail: String::new(),
            }),
            Does::Hang => std::future::pending().await,
            Does::Wait(time) => {
                tokio::time::sleep(time).await;
                Ok(reply(
                    200,
                    r#"{"choices":[{"message":{"content":"text"},"finish_reason":"stop"}]}"#,
                ))
            }
            Does::Disconnect => Err(TransportError::Broken),
        }
    }
}

fn is_probe(body: &serde_json::Value) -> bool {
    body["max_tokens"] == 1
}

fn request() -> CompletionRequest {
    document(1, "x")
}

/// The text of the document and nothing else.
fn bare_prompt() -> Arc<Prompt> {
    let config = PromptConfig {
        user: Some("{{ content }}".to_owned()),
        ..PromptConfig::default()
    };
    Arc::new(Prompt::new(&config, None).unwrap())
}

fn document(offset: i64, text: &str) -> CompletionRequest {
    CompletionRequest {
        class: Class::ONLY,
        document_id: "d".to_owned(),
        position: SourcePosition {
            topic_partition: TopicPartition::new("t", 0),
            offset: Offset::new(offset),
        },
        prompt: bare_prompt(),
        scope: Scope::default(),
        content: text.to_owned(),
        trace: Default::default(),
    }
}

fn client(config: &LlmConfig, transport: Arc<dyn Transport>) -> VllmClient {
    let metrics = LlmMetrics::new(&mut Registry::default());
    VllmClient::new(config, transport, metrics, &CancellationToken::new()).unwrap()
}

async fn ask(client: &VllmClient) -> Result<Completion, CompleteError> {
    let slot = client.admit(Class::ONLY).await;
    client.complete(request(), slot).await
}

/// Asks about documents side by side; what came of each, by its place.
async fn ask_all(
    client: &Arc<VllmClient>,
    texts: impl IntoIterator<Item = String>,
) -> Vec<Result<Completion, CompleteError>> {
    let asked = (0..).zip(texts).map(|(offset, text)| {
        let client = Arc::clone(client);
        async move {
            let slot = client.admit(Class::ONLY).await;
            client.complete(document(offset, &text), slot).await
        }
    });
    futures::future::join_all(asked).await
}

fn reason(outcome: &Result<Completion, CompleteError>) -> Option<DeadLetterReason> {
    match outcome {
        Err(CompleteError::DeadLetter(given_up)) => Some(given_up.reason),
        _ => None,
    }
}

fn text_of(body: &serde_json::Value) -> &str {
    body["messages"][0]["content"].as_str().unwrap_or_default()
}

/// An engine that dies whenever it is asked about `poison`: everything in flight fails, nothing listens for ten seconds, then it is back.
#[derive(Debug, Default)]
struct Engine {
    deaths: u64,
    dead_until: Option<Instant>,
}

/// A server in which each call takes a second and whose engine one document kills.
#[derive(Debug, Clone, Default)]
struct Mortal {
    engine: Arc<Mutex<Engine>>,
    /// Told of each death.
    died: Arc<Notify>,
    /// Whether the whole process dies: the connection closes before a byte of the answer.
    dies_whole: bool,
    /// Whether every document kills it.
    dies_of_all: bool,
}

impl Mortal {
    fn broken(&self) -> TransportError {
        if self.dies_whole {
            TransportError::Disconnected
        } else {
            TransportError::Broken
        }
    }
}

#[async_trait]
impl Transport for Mortal {
    async fn exchange(&self, call: Call) -> Result<Reply, TransportError> {
        let body: serde_json::Value = call
            .body
            .as_deref()
            .map(|body| serde_json::from_slice(body).unwrap())
            .unwrap_or_default();
        let died = self.died.notified();
        tokio::pin!(died);
        died.as_mut().enable();
        {
            let mut engine = self.engine.lock().unwrap();
            if engine
                .dead_until
                .is_some_and(|until| Instant::now() < until)
            {
                return Err(TransportError::Connect {
                    fault: ConnectFault::Refused,
                    detail: String::new(),
                });
            }
            engine.dead_until = None;
        }
        let is_document = call.path == "/v1/chat/completions" && !is_probe(&body);
        let is_poison = is_document && (self.dies_of_all || text_of(&body).contains("poison"));
        let time = if is_poison { 500 } else { 1_000 };
        tokio::select! {
            biased;
            () = &mut died => return Err(self.broken()),
            () = tokio::time::sleep(Duration::from_millis(time)) => {}
        }
        if is_poison {
            let mut engine = self.engine.lock().unwrap();
            engine.deaths += 1;
            engine.dead_until = Some(Instant::now() + Duration::from_secs(10));
            drop(engine);
            self.died.notify_waiters();
            return Err(self.broken());
        }
        let (status, body) = if call.path == "/v1/models" {
            (404, "{}")
        } else {
            let answer = r#"{"choices":[{"message":{"content":"text"},"finish_reason":"stop"}]}"#;
            (200, answer)
        };
        Ok(Reply {
            status,
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
        })
    }
}

/// One document kills the engine each time: it is found by trying those who were there alone, and given up; everybody else is answered.
#[tokio::test(start_paused = true)]
async fn a_document_that_kills_the_engine_is_given_up_and_its_neighbours_are_answered() {
    for (dies_whole, poison, count, deaths) in [
        // Twice in company, twice alone.
        (false, 20, 64, 4..=4),
        // A closed connection may have been closed before, and is tried again at once: to no avail.
        (true, 20, 64, 4..=6),
        (true, 0, 64, 4..=6),
        (true, 63, 64, 4..=6),
        (true, 0, 1, 7..=9),
    ] {
        let server = Mortal {
            dies_whole,
            ..Mortal::default()
        };
        let engine = Arc::clone(&server.engine);
        let config = LlmConfig {
            concurrency: Concurrency::Fixed(16),
            attempts: 3,
            ..LlmConfig::default()
        };
        let client = Arc::new(client(&config, Arc::new(server)));
        let texts = (0..count).map(|number| {
            if number == poison {
                "poison".to_owned()
            } else {
                format!("plain {number}")
            }
        });
        let outcomes = ask_all(&client, texts).await;
        for (number, outcome) in outcomes.iter().enumerate() {
            let expected = (number == poison).then_some(DeadLetterReason::EngineKilled);
            assert_eq!(reason(outcome), expected, "{number} of {count}");
            assert!(outcome.is_ok() || number == poison);
        }
        let died = engine.lock().unwrap().deaths;
        assert!(deaths.contains(&died), "{died} deaths, {poison} of {count}");
    }
}

/// An engine that dies of whatever it is asked is no document's fault.
#[tokio::test(start_paused = true)]
async fn an_engine_that_dies_of_every_document_costs_none() {
    let server = Mortal {
        dies_of_all: true,
        ..Mortal::default()
    };
    let client = Arc::new(client(&LlmConfig::default(), Arc::new(server)));
    let asked = ask_all(&client, (0..20).map(|number| format!("plain {number}")));
    let day = tokio::time::timeout(Duration::from_hours(24), asked).await;
    assert!(
        day.is_err(),
        "{:?}",
        day.map(|outcomes| outcomes.iter().map(reason).collect::<Vec<_>>())
    );
}

/// One of two servers fails whatever it is asked, and fast: the other, which is slower, answers everything.
#[tokio::test(start_paused = true)]
async fn a_server_that_fails_fast_takes_no_document_with_it() {
    for status in [400, 413, 422, 500] {
        let transport = Fake::serving_all(move |call, body| {
            if call.path != "/v1/chat/completions" || is_probe(body) {
                return Does::Answer;
            }
            if &*call.base == "http://one:1" {
                Does::Status(status)
            } else {
                Does::Wait(Duration::from_secs(1))
            }
        });
        let config = LlmConfig {
            url: "http://one:1,http://two:2".to_owned(),
            concurrency: Concurrency::Fixed(8),
            ..LlmConfig::default()
        };
        let client = Arc::new(client(&config, transport));
        let outcomes = ask_all(&client, (0..200).map(|number| format!("plain {number}"))).await;
        let lost = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert_eq!(
            lost,
            0,
            "status {status}: {:?}",
            outcomes.iter().find_map(reason)
        );
    }
}

/// Bad documents among good ones are given up, and nobody else is. The first calls have more refusals among them than `refusals_to_hold`, before
/// any is answered: where a trial begins by then, it holds the others for a moment.
#[tokio::test(start_paused = true)]
async fn refused_documents_among_others_are_given_up_alone() {
    let transport = Fake::serving(|path, body| {
        if path == "/v1/chat/completions" && text_of(body).ends_with('7') {
            Does::Status(400)
        } else {
            Does::Wait(Duration::from_secs(1))
        }
    });
    let client = Arc::new(client(&LlmConfig::default(), transport));
    let holds = client.holds();
    let outcomes = ask_all(&client, (0..500).map(|number| format!("plain {number}"))).await;
    for (number, outcome) in outcomes.iter().enumerate() {
        let expected = (number % 10 == 7).then_some(DeadLetterReason::RequestRejected);
        assert_eq!(reason(outcome), expected, "{number}");
    }
    assert!(holds.borrow().is_none(), "held to the end");
}

/// A trial may begin while calls run that are going to be answered: whether or not it does, everybody has a right outcome.
#[tokio::test(start_paused = true)]
async fn refusals_beside_calls_that_are_answered_later_cost_nobody_an_answer() {
    let transport = Fake::serving(|path, body| {
        if path != "/v1/chat/completions" || is_probe(body) {
            return Does::Answer;
        }
        let number: usize = text_of(body)
            .rsplit(' ')
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        match number {
            0..4 => Does::Status(400),
            number if number % 10 == 4 => Does::Late(400, Duration::from_millis(500)),
            _ => Does::Wait(Duration::from_secs(1)),
        }
    });
    let client = Arc::new(client(&LlmConfig::default(), transport));
    let asked = ask_all(&client, (0..300).map(|number| format!("plain {number}")));
    // Where only refused documents are left, nothing could show that it is them.
    let more = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let slot = client.admit(Class::ONLY).await;
            drop(client.complete(document(999, "plain 999"), slot).await);
        }
    };
    let outcomes = tokio::select! {
        outcomes = asked => outcomes,
        () = more => unreachable!("it has no end"),
    };
    for (number, outcome) in outcomes.iter().enumerate() {
        let is_bad = number < 4 || number % 10 == 4;
        let expected = is_bad.then_some(DeadLetterReason::RequestRejected);
        assert_eq!(reason(outcome), expected, "{number}");
    }
}

/// A document waits for a verdict on one server while that dies: it goes to the other.
#[tokio::test(start_paused = true)]
async fn a_document_does_not_wait_for_a_dead_server_beside_a_living_one() {
    let transport = Fake::serving_all(move |call, body| {
        let at_first = &*call.base == "http://one:1";
        match (call.path, at_first) {
            ("/v1/chat/completions", true) if is_probe(body) => Does::Refuse,
            ("/v1/chat/completions", true) => Does::Status(500),
            _ => Does::Answer,
        }
    });
    let config = LlmConfig {
        url: "http://one:1,http://two:2".to_owned(),
        attempts: 1,
        ..LlmConfig::default()
    };
    let client = client(&config, transport);
    let began = Instant::now();
    ask(&client).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_throttling_server() {
    let client = client(
        &LlmConfig::default(),
        Fake::serving(|_, _| Does::Status(503)),
    );
    let (outcome, ()) = tokio::join!(ask(&client), async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        client.begin_drain();
    });
    assert!(matches!(outcome, Err(CompleteError::Abandoned)));
}

/// A server that is restarted again and again answers what it has begun and fails what is new, as vLLM does while it drains.
#[tokio::test(start_paused = true)]
async fn planned_restarts_give_no_document_up() {
    let back = Instant::now() + Duration::from_mins(5);
    let transport = Fake::serving(move |path, body| {
        let since = Instant::now();
        // Every other ten seconds it is away.
        let is_away = since < back && (back - since).as_secs() % 20 < 10;
        if is_away {
            return if path == "/v1/chat/completions" && !is_probe(body) {
                Does::Disconnect
            } else {
                Does::Refuse
            };
        }
        Does::Wait(Duration::from_secs(3))
    });
    let config = LlmConfig {
        concurrency: Concurrency::Fixed(8),
        attempts: 2,
        ..LlmConfig::default()
    };
    let client = Arc::new(client(&config, transport));
    let outcomes = ask_all(&client, (0..200).map(|number| format!("plain {number}"))).await;
    assert!(outcomes.iter().all(Result::is_ok));
}

/// Every document is refused and the probe is not: nothing is given up, one document at a time is tried, and work goes on by itself.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_refused_for_different_documents_holds() {
    let mended = Instant::now() + Duration::from_mins(10);
    let chats = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&chats);
    let transport = Fake::serving(move |path, body| {
        if path == "/v1/chat/completions" && !is_probe(body) {
            if Instant::now() < mended {
                seen.fetch_add(1, Ordering::Relaxed);
                return Does::Status(400);
            }
            // One of them is really at fault.
            if text_of(body) == "plain 7" {
                return Does::Status(400);
            }
        }
        Does::Answer
    });
    let config = LlmConfig {
        concurrency: Concurrency::Fixed(32),
        ..LlmConfig::default()
    };
    let client = Arc::new(client(&config, transport));
    let asked = ask_all(&client, (0..64).map(|number| format!("plain {number}")));
    let look = async {
        let mut holds = client.holds();
        let tells = |hold: &Option<Hold>| {
            hold.as_ref()
                .is_some_and(|hold| hold.reason.contains("document after document"))
        };
        drop(holds.wait_for(tells).await.unwrap());
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert!(
            client.holds().borrow().is_some(),
            "the probe does not end it"
        );
    };
    let (outcomes, ()) = tokio::join!(asked, look);
    for (number, outcome) in outcomes.iter().enumerate() {
        let expected = (number == 7).then_some(DeadLetterReason::RequestRejected);
        assert_eq!(reason(outcome), expected, "{number}");
    }
    assert!(client.holds().borrow().is_none());
    // The first calls side by side, then one every five seconds or so.
    let chats = chats.load(Ordering::Relaxed);
    assert!((32..32 + 250).contains(&chats), "{chats}");
}

/// Asks about a document of another input topic.
async fn ask_of(
    client: &VllmClient,
    flow: u32,
    offset: i64,
    text: &str,
    prompt: &Arc<Prompt>,
) -> Result<Completion, CompleteError> {
    let class = Class {
        flow,
        ..Class::ONLY
    };
    let asked = CompletionRequest {
        class,
        prompt: Arc::clone(prompt),
        ..document(offset, text)
    };
    client.complete(asked, client.admit(class).await).await
}

/// The prompt of one topic is refused for every document: none of them is given up, the other topic loses nothing to it, and once the
/// server takes the prompt all are answered.
#[tokio::test(start_paused = true)]
async fn a_refused_prompt_of_one_topic_spends_nothing_and_holds_no_other() {
    for calls in [1, 4] {
        let mended = Instant::now() + Duration::from_mins(10);
        let transport = Fake::serving(move |path, body| {
            if path != "/v1/chat/completions" || is_probe(body) {
                return Does::Answer;
            }
            if Instant::now() < mended && text_of(body).starts_with("wrong") {
                return Does::Status(400);
            }
            Does::Wait(Duration::from_secs(1))
        });
        let config = LlmConfig {
            concurrency: Concurrency::Fixed(calls),
            ..LlmConfig::default()
        };
        let client = Arc::new(client(&config, transport));
        let prompt = bare_prompt();
        let answered = AtomicUsize::new(0);
        let others = futures::future::join_all((0..calls).map(|_| async {
            while Instant::now() < mended {
                let outcome = ask_of(&client, 1, 0, "plain", &prompt).await;
                assert_eq!(reason(&outcome), None);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
        let wrong = futures::future::join_all((0..40).map(|offset| {
            let (client, prompt) = (&client, &prompt);
            async move {
                let text = format!("wrong {offset}");
                ask_of(client, 2, offset, &text, prompt).await
            }
        }));
        let look = async {
            tokio::time::sleep(Duration::from_mins(5)).await;
            let held = client.state().held.map(|hold| hold.reason);
            assert!(held.is_some_and(|reason| reason.contains("document after document")));
        };
        let (outcomes, _, ()) = tokio::join!(wrong, others, look);
        let lost = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert_eq!(lost, 0, "{:?}", outcomes.iter().find_map(reason));
        let answered = answered.into_inner();
        assert!(answered >= 590 * calls, "{answered} of {}", 600 * calls);
        assert_eq!(client.state().held, None);
    }
}

/// One topic has a system message, which the chat template refuses: that holds its documents and no server.
#[tokio::test(start_paused = true)]
async fn a_system_message_of_one_topic_that_is_refused_holds_no_other() {
    let mended = Instant::now() + Duration::from_mins(10);
    let transport = Fake::serving(move |path, body| {
        if path != "/v1/chat/completions" {
            return Does::Answer;
        }
        if body["messages"][0]["role"] == "system" && Instant::now() < mended {
            return Does::Status(400);
        }
        Does::Wait(Duration::from_millis(500))
    });
    let client = Arc::new(client(&LlmConfig::default(), transport));
    let plain = bare_prompt();
    let with_system = PromptConfig {
        user: Some("{{ content }}".to_owned()),
        system: Some("Be brief.".to_owned()),
        ..PromptConfig::default()
    };
    let with_system = Arc::new(Prompt::new(&with_system, None).unwrap());
    client.expect(&with_system);
    client.expect(&plain);
    let wrong = async {
        // One document alone, and then two more.
        let first = ask_of(&client, 2, 0, "x", &with_system);
        let later = async {
            tokio::time::sleep(Duration::from_mins(1)).await;
            tokio::join!(
                ask_of(&client, 2, 1, "y", &with_system),
                ask_of(&client, 2, 2, "z", &with_system)
            )
        };
        let (first, (second, third)) = tokio::join!(first, later);
        [first, second, third]
    };
    let others = async {
        while Instant::now() < mended {
            let began = Instant::now();
            let outcome = ask_of(&client, 1, 0, "plain", &plain).await;
            assert_eq!(reason(&outcome), None);
            assert!(began.elapsed() < Duration::from_secs(1));
            assert!(client.state().endpoints[0].held.is_none());
        }
    };
    let (wrong, ()) = tokio::join!(wrong, others);
    assert!(wrong.iter().all(Result::is_ok), "{wrong:?}");
}

/// One of two servers dies: its documents go to the other, nothing is held, and it is used again once it is back.
#[tokio::test(start_paused = true)]
async fn a_dead_server_costs_nothing_while_another_lives() {
    let start = Instant::now();
    let dead = start + Duration::from_secs(10)..start + Duration::from_secs(60);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    let transport = Fake::serving_all(move |call, body| {
        let at_first = &*call.base == "http://one:1";
        if at_first && dead.contains(&Instant::now()) {
            return Does::Refuse;
        }
        if call.path == "/v1/chat/completions" && !is_probe(body) {
            seen.lock().unwrap().push((Instant::now(), at_first));
        }
        Does::Wait(Duration::from_secs(1))
    });
    let config = LlmConfig {
        url: "http://one:1,http://two:2".to_owned(),
        concurrency: Concurrency::Fixed(4),
        attempts: 1,
        ..LlmConfig::default()
    };
    let client = Arc::new(client(&config, transport));
    let holds = client.holds();
    let outcomes = ask_all(&client, (0..600).map(|number| format!("plain {number}"))).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert!(!holds.has_changed().unwrap(), "the work never stood still");
    let calls = calls.lock().unwrap();
    let count = |from: u64, to: u64, first: bool| {
        let time = start + Duration::from_secs(from)..start + Duration::from_secs(to);
        let calls = calls
            .iter()
            .filter(|(at, at_first)| time.contains(at) && *at_first == first);
        calls.count()
    };
    assert_eq!(count(0, 9, true), count(0, 9, false), "evenly");
    assert_eq!(count(11, 60, true), 0);
    assert!(count(11, 60, false) >= 4 * 48);
    assert!(count(63, 70, true) >= 4 * 6, "used again");
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
        began.elapsed() <= Duration::from_secs(27),
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
    // The last report is due half a second before.
    let back = Instant::now() + Duration::from_millis(600_500);
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
    assert_eq!(count("held_for=10m "), 1, "{text}");
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
        concurrency: Concurrency::Fixed(1),
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
            let slot = client.admit(Class::ONLY).await;
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
