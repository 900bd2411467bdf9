//! The pictures in `docs/`: the status page in a real Chromium, and what `check` and `results` print. All of it is real output, of a processor
//! that works on a sandbox under a load that comes in waves.
//!
//! `just screenshots`; `SCREENSHOTS_SECONDS=60` does with a shorter load, and then the charts have less in them.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench: what is not as expected ends it"
)]

#[allow(dead_code, reason = "the test of the page uses all of it")]
#[path = "../../tests/status_page/browser.rs"]
mod browser;
#[path = "../../tests/support/mod.rs"]
mod support;
mod terminal;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use kafka_llm_processor::app::App;
use kafka_llm_processor::config::{Override, Settings};
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::Record;
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use browser::Browser;

const INPUT: &str = "financial-documents";
/// Documents per second of each wave, and how long a wave is.
const WAVES: [u32; 8] = [6, 11, 18, 26, 20, 12, 7, 15];
const WAVE: Duration = Duration::from_secs(20);
/// The last wave brings more than the servers can take, so that something waits.
const RUSH: u32 = 60;
const RUSH_SECONDS: u32 = 15;

struct World {
    broker: Broker,
    vllms: [Vllm; 2],
}

impl World {
    async fn start() -> Self {
        let latency = Latency {
            base: Duration::from_millis(120),
            per_output_token: Duration::from_millis(8),
            per_output_token_running: Duration::from_micros(100),
            ..Latency::ZERO
        };
        let config = || VllmConfig {
            latency,
            ..VllmConfig::default()
        };
        let broker = Broker::start(BrokerConfig::default()).await.unwrap();
        broker.create_topic(INPUT, 4, &[]).unwrap();
        Self {
            broker,
            vllms: [
                Vllm::start(config()).await.unwrap(),
                Vllm::start(config()).await.unwrap(),
            ],
        }
    }

    fn variables(&self) -> [(&'static str, String); 3] {
        let urls = self.vllms.each_ref().map(Vllm::url);
        [
            ("KAFKA_BROKERS", self.broker.bootstrap()),
            ("LLM_URL", urls.join(",")),
            ("KLP_LOG__FILE", "off".to_owned()),
        ]
    }

    fn settings(&self) -> Settings {
        let set = [
            ("llm.concurrency", "12"),
            ("llm.tokens_per_day", "50000000"),
            ("admin.listen", "127.0.0.1:0"),
        ];
        let overrides: Vec<_> = set
            .map(|(key, value)| Override {
                key: key.into(),
                value: value.into(),
                flag: "screenshots".into(),
            })
            .into();
        let variables = self.variables();
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        Settings::load(None, variables, &overrides).unwrap()
    }

    /// What the command prints, with its colours.
    async fn command(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_kafka-llm-processor"))
            .args(arguments)
            .envs(self.variables())
            .env("CLICOLOR_FORCE", "1")
            .output()
            .await
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn produce(&self, rate: u32, seconds: u32) {
        let (count, rate) = ((rate * seconds).to_string(), rate.to_string());
        self.command(&["produce", "--count", &count, "--rate", &rate])
            .await;
    }

    /// What cannot be read ends in the dead letters.
    fn put_broken(&self, key: &str) {
        let record = Record {
            key: Some(Bytes::from(key.to_owned())),
            value: Some(Bytes::from_static(b"{\"id\": \"filing\", \"content\": ")),
            headers: Vec::new(),
            timestamp_ms: 1_700_000_000_000,
        };
        self.broker.append(INPUT, 1, vec![record]).unwrap();
    }
}

#[tokio::main]
async fn main() {
    // `cargo test --benches` runs it too, and is not meant to make pictures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let seconds = std::env::var("SCREENSHOTS_SECONDS").map_or(280, |text| text.parse().unwrap());
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let mut browser = Browser::start().await.expect("a Chromium is installed");
    let world = World::start().await;
    let app = App::build(world.settings()).unwrap();
    let url = format!("http://{}/", app.admin_addr().unwrap());
    println!("the page: {url}");
    let drain = CancellationToken::new();
    let running = tokio::spawn(app.run(drain.clone(), false));

    let until = Instant::now() + Duration::from_secs(seconds);
    world.produce(6, 1).await;
    // In quiet moments, as a person would.
    sleep(Duration::from_secs(3)).await;
    let check = world.command(&["check"]).await;
    let results = world.command(&["results", "--count", "2"]).await;
    std::fs::write(docs.join("check.svg"), terminal::picture("check", &check)).unwrap();
    let results = terminal::picture("results --count 2", &results);
    std::fs::write(docs.join("results.svg"), results).unwrap();

    for (number, rate) in WAVES.into_iter().cycle().enumerate() {
        if Instant::now() + WAVE > until {
            break;
        }
        if number % 5 == 2 {
            world.put_broken(&format!("10-Q-{number:04}"));
        }
        world
            .produce(rate, u32::try_from(WAVE.as_secs()).unwrap())
            .await;
    }
    world.produce(RUSH, RUSH_SECONDS).await;

    for (name, width, height, scheme) in [
        ("status-page.png", 1280, 1460, "light"),
        ("status-page-dark.png", 1280, 800, "dark"),
        ("status-page-phone.png", 390, 1320, "light"),
    ] {
        browser.prefer(scheme).await;
        browser.resize(width, height, false).await;
        browser.open(&url).await;
        browser.until_text("#link", "live").await;
        let picture = browser.picture().await;
        println!("{name}: {} bytes", picture.len());
        std::fs::write(docs.join(name), picture).unwrap();
    }
    drain.cancel();
    drop(running.await);
}
