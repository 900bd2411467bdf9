//! Over real sockets: the page, its policy, and its events.

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::events::LISTENERS_MAX;
use super::*;
use crate::telemetry::endings::{Cost, Ending};
use crate::telemetry::limiting::Factor;
use crate::telemetry::registry::new_registry;
use crate::telemetry::server::{AdminConfig, AdminServer, AdminSources};
use crate::telemetry::status::{PartitionStatus, RunState, Totals};
use crate::telemetry::{Metrics, PauseSwitch};
use crate::types::{Offset, SourcePosition, TopicPartition};

const DEADLINE: Duration = Duration::from_secs(10);

struct Fixture {
    server: AdminServer,
    board: StatusBoard,
}

fn fixture() -> Fixture {
    let mut registry = new_registry();
    let board = StatusBoard::new(&mut registry);
    let sources = AdminSources {
        metrics: Metrics::new(registry),
        health: Health::new(),
        pause: PauseSwitch::new(board.clone(), |_| {}),
        status: board.clone(),
    };
    let config = AdminConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        ..AdminConfig::default()
    };
    let server = AdminServer::start(&config, sources, CancellationToken::new());
    Fixture {
        server: server.unwrap().unwrap(),
        board,
    }
}

/// A connection to `/events`.
struct Listener {
    head: String,
    stream: BufReader<TcpStream>,
}

impl Fixture {
    async fn ask(&self, path: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.server.local_addr()).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    async fn get(&self, path: &str) -> (String, String) {
        let mut answer = String::new();
        let mut stream = self.ask(path).await;
        let reading = stream.read_to_string(&mut answer);
        let read = timeout(DEADLINE, reading).await.expect("it ends");
        read.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    async fn listen(&self) -> Listener {
        let mut stream = self.ask("/events").await;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut head).await.unwrap(), 0, "{head}");
        }
        Listener { head, stream }
    }

    /// A hundred seconds of ten results each.
    fn with_history(&self) {
        let (began, wall) = (Instant::now(), crate::clock::now());
        for second in 0..=100_u32 {
            let totals = Totals {
                processed: u64::from(second) * 10,
                ..Totals::default()
            };
            let now = began + Duration::from_secs(1) * second;
            let history = self.board.history();
            history.note(now, wall, &totals, Factor::ModelServer);
        }
    }

    fn end_a_document(&self, name: &str) {
        let source = SourcePosition {
            topic_partition: TopicPartition::new("docs", 0),
            offset: Offset::new(1),
        };
        let ending = Ending::result(name, &source, Duration::ZERO);
        self.board.endings().note(ending, Cost::default());
    }
}

impl Listener {
    /// Name and data of the next event.
    async fn event(&mut self) -> (String, serde_json::Value) {
        timeout(DEADLINE, async {
            let (mut name, mut data) = (String::new(), String::new());
            loop {
                let mut line = String::new();
                let read = self.stream.read_line(&mut line).await.unwrap();
                assert_ne!(read, 0, "it ended");
                let line = line.trim_end();
                if let Some(text) = line.strip_prefix("event: ") {
                    text.clone_into(&mut name);
                } else if let Some(text) = line.strip_prefix("data: ") {
                    text.clone_into(&mut data);
                } else if line.is_empty() && !data.is_empty() {
                    return (name, serde_json::from_str(&data).unwrap());
                }
            }
        })
        .await
        .expect("an event in time")
    }
}

#[tokio::test]
async fn the_page_is_one_file_that_runs_nothing_but_its_own() {
    let (head, body) = fixture().get("/").await;
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("content-type: text/html; charset=utf-8"));
    assert!(head.contains("x-content-type-options: nosniff"));
    assert_eq!(body, HTML);
    let policy = head
        .lines()
        .find_map(|line| line.strip_prefix("content-security-policy: "));
    let policy = policy.unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"));
    assert!(policy.contains("frame-ancestors 'none'"));
    assert!(!policy.contains("unsafe"), "{policy}");
    // Nothing is fetched from elsewhere, and there is one script and one style for the policy to name.
    for (foreign, count) in [
        ("src=", 0),
        ("@import", 0),
        ("url(", 0),
        ("<script", 1),
        ("<style", 1),
        ("style=\"", 0),
    ] {
        assert_eq!(HTML.matches(foreign).count(), count, "{foreign}");
    }
    let outside = HTML.matches("//").count() - HTML.matches("\n// ").count();
    let namespaces = HTML.matches("http://www.w3.org/2000/svg").count();
    assert_eq!(outside - HTML.matches("  // ").count(), namespaces);
}

#[test]
fn the_policy_names_what_stands_in_the_file() {
    let whole = |element: &str| {
        let begin = HTML.find(&format!("<{element}>")).unwrap() + element.len() + 2;
        let end = HTML.find(&format!("</{element}>")).unwrap();
        Sha256::digest(&HTML.as_bytes()[begin..end])
    };
    for element in ["script", "style"] {
        let hash = STANDARD.encode(whole(element));
        assert!(POLICY.contains(&format!("{element}-src 'sha256-{hash}'")));
        assert_ne!(whole(element), Sha256::digest(""), "it is not empty");
    }
}

/// Everything that comes from outside is set as text.
#[test]
fn the_page_makes_no_markup_of_what_it_is_told() {
    for markup in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "srcdoc",
        "setHTML",
    ] {
        assert!(!HTML.contains(markup), "{markup}");
    }
}

#[tokio::test]
async fn the_first_event_has_the_whole_hour_and_each_one_after_what_is_new() {
    let fixture = fixture();
    fixture.board.set_state(RunState::Running);
    fixture.with_history();
    fixture.end_a_document("one");
    let mut listener = fixture.listen().await;
    let head = listener.head.to_ascii_lowercase();
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    let (name, first) = listener.event().await;
    assert_eq!(name, "state");
    assert_eq!(first["status"]["state"], "running");
    assert_eq!(first["status"]["alive"], true);
    let samples = first["history"]["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 10);
    assert_eq!(
        (&samples[9]["results"], &samples[9]["ms"]),
        (&100.into(), &10_000.into())
    );
    assert_eq!(first["latest"]["results"][0]["document_id"], "one");

    let (_, second) = listener.event().await;
    assert_eq!(second["history"]["samples"], serde_json::json!([]));
    assert_eq!(second.get("latest"), None, "nothing has ended since");
    fixture.end_a_document("two");
    fixture.board.set_hold("kafka", "no broker answers");
    let (_, third) = listener.event().await;
    assert_eq!(third["latest"]["results"][0]["document_id"], "two");
    assert_eq!(third["status"]["state"], "holding");
    assert_eq!(third["status"]["holds"][0]["reason"], "no broker answers");
}

#[tokio::test]
async fn listeners_are_bounded_and_one_more_is_told_so() {
    let fixture = fixture();
    let mut listeners = Vec::new();
    for _ in 0..LISTENERS_MAX {
        let listener = fixture.listen().await;
        assert!(listener.head.starts_with("HTTP/1.1 200"));
        listeners.push(listener);
    }
    let (head, body) = fixture.get("/events").await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert!(
        body.starts_with("16 pages listen to /events already"),
        "{body}"
    );
    let (head, _) = fixture.get("/livez").await;
    assert!(head.starts_with("HTTP/1.1 200"), "probes are answered");

    listeners.pop();
    let deadline = Instant::now() + DEADLINE;
    while !fixture.listen().await.head.starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < deadline, "its place is free again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn events_end_with_the_server_and_say_so() {
    let Fixture { server, board } = fixture();
    let fixture = Fixture { server, board };
    let mut listener = fixture.listen().await;
    assert_eq!(listener.event().await.0, "state");
    let began = Instant::now();
    fixture.server.stop().await;
    assert!(
        began.elapsed() < Duration::from_millis(1_500),
        "a listener does not hold the server up"
    );
    while listener.event().await.0 != "end" {}
    let mut rest = Vec::new();
    timeout(DEADLINE, listener.stream.read_to_end(&mut rest))
        .await
        .expect("the connection is closed")
        .unwrap();
}

/// An event is made only when the one before is gone: what a listener does not read is not gathered for it.
#[tokio::test(start_paused = true)]
async fn a_listener_that_does_not_read_costs_one_event() {
    let board = StatusBoard::new(&mut new_registry());
    let counted = |samples: usize| {
        let (began, wall) = (Instant::now(), crate::clock::now());
        for second in 0..=10 * u32::try_from(samples).unwrap() {
            let now = began + Duration::from_secs(1) * second;
            board
                .history()
                .note(now, wall, &Totals::default(), Factor::Order);
        }
    };
    let events = Events::new(Health::new(), board.clone(), CancellationToken::new());
    let mut views = Box::pin(events.views().unwrap());
    let first = serde_json::to_value(views.next().await.unwrap()).unwrap();
    assert_eq!(first["history"]["samples"], serde_json::json!([]));
    counted(3);
    // A minute in which nobody reads.
    tokio::time::advance(Duration::from_secs(60)).await;
    let second = serde_json::to_value(views.next().await.unwrap()).unwrap();
    let missed = second["history"]["samples"].as_array().unwrap();
    assert_eq!(missed.len(), 3, "what was missed is told");
    let third = views.next().now_or_never();
    assert!(third.is_none(), "missed events do not come in a burst");
}

#[tokio::test]
async fn thousands_of_partitions_and_holds_are_cut_to_those_that_are_furthest_behind() {
    let fixture = fixture();
    fixture.board.set_state(RunState::Running);
    for partition in 0..3_000_i32 {
        fixture.board.set_partition(PartitionStatus {
            topic: "docs".to_owned(),
            partition,
            owner_epoch: 1,
            next_fetch_offset: Offset::ZERO,
            commit_offset: Offset::ZERO,
            high_watermark: Offset::new(i64::from(partition)),
            open: 0,
            queued: 0,
            in_flight: 0,
            waiting_for_turn: 0,
            appending: 0,
            unacknowledged: 0,
            append_ms: None,
            head: None,
            oldest_open_ms: (partition == 5).then_some(1),
            commit_bytes: 0,
            waits_for_room: false,
            read_ahead_waits: None,
        });
        fixture
            .board
            .set_hold(format!("partition docs/{partition}"), "away");
    }
    let (_, event) = fixture.listen().await.event().await;
    let partitions = event["status"]["partitions"].as_array().unwrap();
    let numbers: Vec<_> = partitions.iter().map(|each| &each["partition"]).collect();
    assert_eq!(numbers.len(), 100);
    assert_eq!(
        numbers[..2],
        [5, 2_901],
        "the one with work first to be kept"
    );
    assert_eq!(numbers[99], 2_999);
    assert_eq!(event["status"]["holds"].as_array().unwrap().len(), 20);
    assert_eq!(event["sums"]["partitions"], 3_000);
    assert_eq!(event["sums"]["holds"], 3_000);
    assert_eq!(event["sums"]["lag"], 2_999 * 3_000 / 2);
    assert_eq!(event["sums"]["oldest_ms"], 1);
    assert!(event.to_string().len() < 128 * 1024);
}
