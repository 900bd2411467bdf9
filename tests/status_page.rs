//! The status page in a real Chromium, on a processor that works on a sandbox.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

#[allow(dead_code, reason = "what makes the pictures uses all of it")]
#[path = "status_page/browser.rs"]
mod browser;
#[allow(dead_code, reason = "the suite of behaviours uses all of it")]
#[path = "behaviour/harness.rs"]
mod harness;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use kafka_llm_processor::app::{App, RunEnd};
use kafka_llm_processor::sandbox::vllm::{Latency, VllmConfig};
use kafka_llm_processor::telemetry::StatusBoard;
use kafka_llm_processor::telemetry::status::Summary;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use browser::Browser;
use harness::{World, eventually, plain};

/// A processor with an admin server.
struct Service {
    board: StatusBoard,
    admin: SocketAddr,
    drain: CancellationToken,
    task: JoinHandle<(RunEnd, Summary)>,
}

impl Service {
    fn start(world: &World, listen: &str, set: &[&str]) -> Self {
        let listen = format!("admin.listen={listen}");
        let set: Vec<_> = set.iter().copied().chain([listen.as_str()]).collect();
        let app = App::build(world.settings(&set)).unwrap();
        let (board, admin) = (app.board(), app.admin_addr().unwrap());
        let drain = CancellationToken::new();
        let task = tokio::spawn(app.run(drain.clone(), false));
        Self {
            board,
            admin,
            drain,
            task,
        }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.admin)
    }

    async fn until_ended(&self, documents: u64) {
        eventually("the documents have ended", || {
            let totals = self.board.snapshot().totals;
            totals.processed + totals.failed() == documents
        })
        .await;
    }

    async fn stop(self) {
        self.drain.cancel();
        let (end, _) = self.task.await.unwrap();
        assert!(matches!(end, RunEnd::Drained), "{end:?}");
    }
}

async fn world() -> World {
    let latency = Latency {
        base: Duration::from_millis(20),
        ..Latency::ZERO
    };
    let config = VllmConfig {
        latency,
        ..VllmConfig::default()
    };
    World::with_vllm(3, config).await
}

/// A document whose id would be markup.
const MARKUP: &str = "<img src=x onerror=alert(1)><b>bold</b>";

fn put_markup(world: &World) {
    let value =
        serde_json::json!({"id": MARKUP, "content": "It reports revenue of 5 million dollars."});
    world.put(0, Some("markup"), Some(&value.to_string()));
    world.put(
        1,
        Some("<script>tell('ran')</script>"),
        Some("{\"id\": broken"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_what_is_done_what_failed_and_what_limits() {
    let Some(mut browser) = Browser::start().await else {
        return;
    };
    let world = world().await;
    world.produce(0..120, plain);
    let service = Service::start(
        &world,
        "127.0.0.1:0",
        &["llm.tokens_per_day=1000000", "llm.concurrency=64"],
    );
    browser.resize(1280, 900, false).await;
    browser.open(&service.url()).await;
    // While documents end there is a rate, and an hour's chart that begins.
    browser
        .until("parseFloat(document.querySelector('#rate')?.textContent) > 0")
        .await;
    service.until_ended(120).await;
    put_markup(&world);
    service.until_ended(122).await;
    browser.until_text("#results", "121").await;
    browser.until_text("#failures", "1 dead letter").await;
    assert_eq!(browser.text("#state").await, "Running");
    assert_eq!(browser.text("#link").await, "live");
    browser.until_text("#factor", "Nothing to read").await;
    browser.until_text("#shares", "%").await;
    browser
        .until("document.querySelectorAll('.chart polyline, .chart circle').length >= 4")
        .await;

    let rows = browser
        .value("[...document.querySelectorAll('#partitions tbody tr')].map((row) => row.innerText)")
        .await;
    let rows: Vec<String> = serde_json::from_value(rows).unwrap();
    assert_eq!(rows.len(), 3, "{rows:?}");
    for (partition, row) in rows.iter().enumerate() {
        assert!(
            row.starts_with(&format!("docs/{partition}\t0\t0\t0")),
            "{row}"
        );
        assert!(row.contains("up to date"), "{row}");
    }
    let endpoint = browser.text("#endpoints tbody").await;
    assert!(endpoint.contains(&world.vllm.url()), "{endpoint}");
    assert!(
        endpoint.contains("closed") && endpoint.contains("64"),
        "{endpoint}"
    );
    let budgets = browser.text("#budgets tbody").await;
    assert!(budgets.contains("llm.tokens_per_day\t"), "{budgets}");

    let failure = browser.text("#latest-failures tbody tr").await;
    assert!(
        failure.contains("invalid_json") && failure.contains("docs/1@"),
        "{failure}"
    );
    assert!(
        failure.contains("<script>tell('ran')</script>"),
        "{failure}"
    );
    let results = browser.text("#latest-results tbody").await;
    assert!(results.contains(MARKUP), "{results}");
    assert_eq!(
        browser
            .value("document.images.length + document.scripts.length")
            .await,
        1
    );
    let all = browser.text("body").await;
    assert!(!all.contains("5 million dollars"), "answers are hidden");
    assert_eq!(browser.complaints().await, [""; 0]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_fits_a_phone_and_both_themes() {
    let Some(mut browser) = Browser::start().await else {
        return;
    };
    let world = world().await;
    let long = "x".repeat(400);
    let value = serde_json::json!({"id": long, "content": "It reports revenue."});
    world.put(0, Some("long"), Some(&value.to_string()));
    put_markup(&world);
    let service = Service::start(&world, "127.0.0.1:0", &["admin.show_payloads=true"]);
    service.until_ended(3).await;
    service.board.set_hold("kafka", "y".repeat(400));
    let mut backgrounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme).await;
        for (width, is_phone) in [(390, true), (768, true), (1280, false)] {
            browser.resize(width, 844, is_phone).await;
            browser.open(&service.url()).await;
            browser.until_text("#latest-failures", "invalid_json").await;
            browser.until_text("#notes", "On hold: kafka").await;
            let widths = browser
                .value("[document.documentElement.scrollWidth, innerWidth]")
                .await;
            assert_eq!(widths, serde_json::json!([width, width]), "{scheme}");
            // Nothing hangs out of its card either.
            let cut = browser.value(
                "[...document.querySelectorAll('main *')].filter((each) => !each.closest('thead') && each.getBoundingClientRect().right > innerWidth + 0.5).map((each) => each.outerHTML.slice(0, 80))",
            );
            assert_eq!(cut.await, serde_json::json!([]), "{width}");
            // Where the head is out of sight each cell tells its name.
            let name = browser.value(
                "getComputedStyle(document.querySelector('#partitions td.n'), '::before').content",
            );
            let expected = if width < 700 {
                "attr(data-name)"
            } else {
                "none"
            };
            let name = name.await;
            assert!(
                name == expected || name == "\"Lag\"" && width < 700,
                "{name}"
            );
        }
        let background = browser
            .value("getComputedStyle(document.body).backgroundColor")
            .await;
        backgrounds.push(background);
        assert_eq!(browser.complaints().await, [""; 0]);
    }
    assert_ne!(backgrounds[0], backgrounds[1], "dark is dark");
    let results = browser.text("#latest-results tbody").await;
    assert!(
        results.contains("revenue of 5 million dollars"),
        "payloads are shown: {results}"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_of_holds_pauses_and_drift_as_they_come() {
    let Some(mut browser) = Browser::start().await else {
        return;
    };
    let world = world().await;
    let service = Service::start(&world, "127.0.0.1:0", &[]);
    browser.open(&service.url()).await;
    browser.until_text("#state", "Running").await;
    world.vllm.stop_listener().await;
    world.produce(0..3, plain);
    browser.until_text("#state", "On hold").await;
    browser.until_text("#notes", "LLM_URL").await;
    browser.until_text("#endpoints", "open").await;
    browser
        .until_text("#factor", "No model server can be used")
        .await;
    browser.until_text("#partitions", "offset 0").await;
    world.vllm.start_listener().await.unwrap();
    browser.until_text("#state", "Running").await;
    browser.until_text("#results", "3").await;
    service.board.set_paused(true);
    browser.until_text("#state", "Paused").await;
    browser
        .until_text("#notes", "kafka-llm-processor resume")
        .await;
    service.board.set_paused(false);
    browser
        .until("document.querySelectorAll('#notes > *').length === 0")
        .await;

    let drift = serde_json::json!({
        "state": "shifted", "generation": "31e754e2a1e9b082", "reference_documents": 1000, "window_documents": 200,
        "signals": [{"name": "answer_characters", "statistic": "psi", "value": 0.31, "threshold": 0.2, "state": "shifted"}],
        "alarms": [{"at": "2026-11-23T12:45:29Z", "signal": "answer_characters", "detail": "<i>longer</i>"}],
    });
    let seen = browser
        .value(&format!(
            "drift({drift}), document.querySelector('#drift').innerText"
        ))
        .await;
    let seen = seen.as_str().unwrap();
    for words in [
        "shifted",
        "1,000 documents as reference",
        "answer characters\tpsi\t0.310\t0.200",
        "<i>longer</i>",
    ] {
        assert!(seen.contains(words), "{words}: {seen}");
    }
    let without = "drift(undefined), document.querySelector('#drift').hidden";
    assert_eq!(browser.value(without).await, true);
    assert_eq!(browser.complaints().await, [""; 0]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_when_the_process_is_gone_and_comes_back_with_it() {
    let Some(mut browser) = Browser::start().await else {
        return;
    };
    let world = world().await;
    let service = Service::start(&world, "127.0.0.1:0", &[]);
    let admin = service.admin.to_string();
    browser.open(&service.url()).await;
    browser.until_text("#link", "live").await;
    service.stop().await;
    browser
        .until_text("#notes", "What stands here is from")
        .await;
    assert_eq!(browser.text("#state").await, "Not connected");
    browser
        .until("document.body.classList.contains('stale')")
        .await;
    let service = Service::start(&world, &admin, &[]);
    browser.until_text("#link", "live").await;
    browser.until_text("#state", "Running").await;
    browser
        .until("!document.body.classList.contains('stale')")
        .await;
    assert_eq!(browser.text("#errors").await, "");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_page_too_many_is_told_so_and_gets_its_turn() {
    let Some(mut browser) = Browser::start().await else {
        return;
    };
    let world = world().await;
    let service = Service::start(&world, "127.0.0.1:0", &[]);
    let mut others = Vec::new();
    for _ in 0..16 {
        let mut other = TcpStream::connect(service.admin).await.unwrap();
        other
            .write_all(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 12];
        other.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        others.push(other);
    }
    browser.open(&service.url()).await;
    browser
        .until_text("#notes", "16 pages listen to /events already")
        .await;
    drop(others);
    browser.until_text("#link", "live").await;
    service.stop().await;
}
