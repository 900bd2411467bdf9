//! TLS and SASL to Kafka as an operator meets them: the binary, the sandbox's broker behind TLS, and what is said of each mistake.
//!
//! Everything that the program prints is looked through for the secrets that it was given.
#![cfg(feature = "sandbox")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test binary: what is not as expected ends the test"
)]

#[path = "kafka_tls/front.rs"]
mod front;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use front::{Listener, Port, file};
use kafka_llm_processor::config::Settings;
use kafka_llm_processor::kafka::Driver;
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::Secret;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// The promise to operators.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// The longest that anything else may take: a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Lines of a program that wait to be looked at.
const LINES_MAX: usize = 1024;

const PASSWORD: &str = "klp-test-password";
const CLIENT_SECRET: &str = "klp-test-client-secret";
const TOKEN: &str = "klp-test-token";
const WRONG: &str = "klp-test-wrong";

/// No part of a secret that is given to the program is in what it prints.
fn assert_nothing_is_told(text: &str) {
    let key = std::fs::read_to_string(file("client.key")).expect("a key");
    let of_the_key = key.lines().nth(1).expect("a line of it");
    for secret in [PASSWORD, CLIENT_SECRET, TOKEN, WRONG, of_the_key] {
        assert!(!text.contains(secret), "`{secret}` is told: {text}");
    }
}

/// A broker behind TLS, and a model.
struct World {
    broker: Broker,
    front: Listener,
    vllm: Vllm,
}

impl World {
    /// With a `password` it asks for that of `alice`.
    async fn start(certificate: &str, wants_client: bool, password: Option<&str>) -> Self {
        let port = Port::free().await;
        let alice = |password| BTreeMap::from([("alice".to_owned(), Secret::new(password))]);
        let broker = Broker::start(BrokerConfig {
            advertised_port: Some(port.number()),
            sasl: password.map(alice),
            ..BrokerConfig::default()
        });
        let broker = broker.await.expect("the sandbox's broker");
        let behind = broker.address().to_string();
        let front = port.front(certificate, wants_client, &behind);
        let vllm = Vllm::start(VllmConfig {
            latency: Latency::ZERO,
            ..VllmConfig::default()
        });
        Self {
            broker,
            front,
            vllm: vllm.await.expect("the simulated vLLM"),
        }
    }

    /// Waits for so many results.
    async fn results(&self, count: usize) {
        let deadline = Instant::now() + SOON;
        while self.broker.records("llm-results").len() < count {
            assert!(Instant::now() < deadline, "{count} results");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The program with these settings, each `key=value`, in front of the command.
    fn program(&self, settings: &[String], variables: &[(&str, &str)]) -> Program {
        let mut all = vec![
            format!("kafka.brokers={}", self.front.address),
            "kafka.security_protocol=SSL".to_owned(),
            format!("kafka.ssl_truststore_location={}", file("ca.pem").display()),
            format!("llm.url={}", self.vllm.url()),
            "admin.listen=127.0.0.1:0".to_owned(),
            "log.file=off".to_owned(),
        ];
        all.extend_from_slice(settings);
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Program {
            settings: all.iter().map(|set| format!("--set={set}")).collect(),
            variables: variables.collect(),
        }
    }
}

struct Program {
    settings: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Program {
    fn start(&self, command: &[&str]) -> Running {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kafka-llm-processor"))
            .args(&self.settings)
            .args(command)
            .env_clear()
            .envs(self.variables.iter().cloned())
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let (told, lines) = mpsc::channel(LINES_MAX);
        tokio::spawn(tell(child.stdout.take().expect("piped"), told.clone()));
        tokio::spawn(tell(child.stderr.take().expect("piped"), told));
        Running {
            child,
            lines,
            all: String::new(),
            began: Instant::now(),
        }
    }
}

async fn tell(from: impl AsyncRead + Unpin, to: mpsc::Sender<String>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if to.send(line).await.is_err() {
            return;
        }
    }
}

struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    all: String,
    began: Instant,
}

impl Running {
    /// Reads on to a line with all the words.
    async fn line(&mut self, words: &[&str]) -> String {
        let found = timeout(SOON, async {
            while let Some(line) = self.lines.recv().await {
                self.all.push_str(&line);
                self.all.push('\n');
                if words.iter().all(|word| line.contains(word)) {
                    return line;
                }
            }
            panic!("it ended without a line with {words:?}: {}", self.all)
        });
        let found = found.await;
        found.unwrap_or_else(|_| panic!("no line with {words:?}: {}", self.all))
    }

    /// Reads to the end; the exit code and everything that was printed.
    async fn end(mut self) -> (Option<i32>, String, Duration) {
        let code = timeout(SOON, async {
            while let Some(line) = self.lines.recv().await {
                self.all.push_str(&line);
                self.all.push('\n');
            }
            self.child.wait().await.expect("it ends").code()
        });
        let code = code
            .await
            .unwrap_or_else(|_| panic!("it does not end: {}", self.all));
        assert_nothing_is_told(&self.all);
        (code, self.all, self.began.elapsed())
    }

    /// SIGTERM, and the end.
    async fn drain(self) {
        let pid = self.child.id().expect("it runs").to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(killed.expect("kill runs").success());
        let (code, all, _) = self.end().await;
        assert_eq!(code, Some(0), "{all}");
    }
}

/// Six documents, produced and processed, and their results read, all over what `program` says.
async fn all_the_way(world: &World, program: &Program) {
    let (code, all, _) = program.start(&["produce"]).end().await;
    assert_eq!(code, Some(0), "{all}");
    let mut running = program.start(&["run"]);
    world.results(6).await;
    let (code, all, _) = program.start(&["results", "--count", "6"]).end().await;
    assert_eq!(code, Some(0), "{all}");
    let listens = running.line(&["admin server listens"]).await;
    let (_, admin) = listens.split_once("address=").expect("an address");
    let started = running.line(&["starting"]).await;
    assert!(started.contains("wire"), "{started}");
    for command in [
        &["check"][..],
        &["status", "--json", "--admin", admin],
        &["config", "show", "--json"],
    ] {
        let (code, all, _) = program.start(command).end().await;
        assert_eq!(code, Some(0), "{command:?}: {all}");
    }
    running.drain().await;
}

fn path(key: &str, name: &str) -> String {
    format!("kafka.{key}={}", file(name).display())
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_go_all_the_way_with_a_password_and_a_certificate() {
    let world = World::start("broker.pem", true, Some(PASSWORD)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, format!("{PASSWORD}\n")).expect("it is written");
    let settings = [
        "kafka.security_protocol=SASL_SSL".to_owned(),
        "kafka.sasl_mechanism=SCRAM-SHA-512".to_owned(),
        "kafka.sasl_username=alice".to_owned(),
        format!("kafka.sasl_password_file={}", password.display()),
        path("ssl_keystore_location", "client.crt"),
        path("ssl_key_location", "client.key"),
        "processing.guarantee=exactly_once".to_owned(),
        "input.assignment=group".to_owned(),
    ];
    all_the_way(&world, &world.program(&settings, &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_go_all_the_way_with_a_token_that_is_asked_for() {
    let world = World::start("broker.pem", false, Some(TOKEN)).await;
    // klp:klp-test-client-secret
    let provider = Port::free()
        .await
        .provider("Basic a2xwOmtscC10ZXN0LWNsaWVudC1zZWNyZXQ=", TOKEN);
    let settings = [
        "kafka.security_protocol=SASL_SSL".to_owned(),
        "kafka.sasl_mechanism=OAUTHBEARER".to_owned(),
        "kafka.sasl_oauthbearer_client_credentials_client_id=klp".to_owned(),
        format!(
            "kafka.sasl_oauthbearer_token_endpoint_url=https://{}/token",
            provider.address
        ),
    ];
    let variable = "KLP_KAFKA__SASL_OAUTHBEARER_CLIENT_CREDENTIALS_CLIENT_SECRET";
    let program = world.program(&settings, &[(variable, CLIENT_SECRET)]);
    all_the_way(&world, &program).await;

    let program = world.program(&settings, &[(variable, WRONG)]);
    let words = ["401", "invalid_client", "kafka.sasl_oauthbearer"];
    is_told(&program, &words).await;
}

/// `check` and `run --fail-fast` end with 1, `run` holds; each says so in time, with these words.
async fn is_told(program: &Program, words: &[&str]) {
    let mut holding = program.start(&["run"]);
    let (check, fail_fast) = tokio::join!(
        program.start(&["check"]).end(),
        program.start(&["run", "--fail-fast"]).end(),
    );
    for (code, all, took) in [check, fail_fast] {
        assert_eq!(code, Some(1), "{words:?}: {all}");
        let told = all.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            words.iter().all(|word| told.contains(word)),
            "{words:?}: {all}"
        );
        assert!(took < TOLD_WITHIN, "{words:?}: {took:?}");
    }
    let words: Vec<_> = ["WARN", "waiting: "].iter().chain(words).copied().collect();
    let line = holding.line(&words).await;
    let took = holding.began.elapsed();
    assert!(took < TOLD_WITHIN, "{took:?}");
    eprintln!("after {took:.2?}: {line}");
    holding.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_is_told_in_time_with_its_setting() {
    let good = World::start("broker.pem", false, None).await;
    let set = |settings: &[String]| good.program(settings, &[]);
    let wrong_authority = [path("ssl_truststore_location", "other-ca.pem")];
    is_told(
        &set(&wrong_authority),
        &["no authority", "kafka.ssl_truststore_location"],
    )
    .await;
    let no_file = ["kafka.ssl_truststore_location=/nonexistent/ca.pem".to_owned()];
    is_told(
        &set(&no_file),
        &["kafka.ssl_truststore_location", "cannot be read"],
    )
    .await;

    // A client without TLS at a listener with TLS, and the other way round.
    let plain = Program {
        settings: vec![
            format!("--set=kafka.brokers={}", good.front.address),
            format!("--set=llm.url={}", good.vllm.url()),
            "--set=admin.listen=127.0.0.1:0".to_owned(),
            "--set=log.file=off".to_owned(),
        ],
        variables: Vec::new(),
    };
    is_told(&plain, &["TLS", "kafka.security_protocol"]).await;
    let at_a_plain_port = [format!("kafka.brokers={}", good.broker.address())];
    is_told(
        &set(&at_a_plain_port),
        &["in the handshake", "kafka.security_protocol"],
    )
    .await;

    for (bytes, words) in [
        (
            &b""[..],
            ["no TLS handshake within", "kafka.security_protocol"],
        ),
        (
            b"220 mail ready\r\n",
            ["is no TLS", "kafka.security_protocol"],
        ),
    ] {
        let mute = Port::free().await.mute(bytes);
        let there = [format!("kafka.brokers={}", mute.address)];
        is_told(&set(&there), &words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_certificate_or_a_password_lacks_is_told_in_time() {
    let expired = World::start("expired.pem", false, None).await;
    is_told(&expired.program(&[], &[]), &["has expired", "renew it"]).await;
    let elsewhere = World::start("elsewhere.pem", false, None).await;
    let words = ["another host", "elsewhere.example", "kafka.brokers"];
    is_told(&elsewhere.program(&[], &[]), &words).await;
    let unnamed = ["kafka.ssl_endpoint_identification_algorithm=none".to_owned()];
    let (code, all, _) = elsewhere
        .program(&unnamed, &[])
        .start(&["produce"])
        .end()
        .await;
    assert_eq!(code, Some(0), "{all}");
    assert!(
        all.contains("kafka.ssl_endpoint_identification_algorithm"),
        "{all}"
    );

    let mutual = World::start("broker.pem", true, None).await;
    let words = ["client certificate", "kafka.ssl_keystore_location"];
    is_told(&mutual.program(&[], &[]), &words).await;

    let world = World::start("broker.pem", false, Some(PASSWORD)).await;
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let settings = [
            "kafka.security_protocol=SASL_SSL".to_owned(),
            format!("kafka.sasl_mechanism={mechanism}"),
            "kafka.sasl_username=alice".to_owned(),
        ];
        let program = world.program(&settings, &[("KLP_KAFKA__SASL_PASSWORD", WRONG)]);
        is_told(&program, &["kafka.sasl_password", mechanism]).await;
    }
}

/// Certificates are renewed by others; nobody has to restart anything.
#[tokio::test(flavor = "multi_thread")]
async fn run_goes_on_when_a_file_is_put_right() {
    let world = World::start("broker.pem", true, None).await;
    let folder = tempfile::tempdir().expect("a folder");
    let keystore = folder.path().join("client.pem");
    let put = |name: &str| {
        std::fs::copy(file(name), &keystore).expect("it is copied");
    };
    put("stranger.pem");
    let settings = [format!(
        "kafka.ssl_keystore_location={}",
        keystore.display()
    )];
    let program = world.program(&settings, &[]);
    let mut running = program.start(&["run"]);
    let words = ["WARN", "waiting: ", "kafka.ssl_keystore_location"];
    running.line(&words).await;
    put("client.pem");
    let (code, all, _) = program.start(&["produce"]).end().await;
    assert_eq!(code, Some(0), "{all}");
    world.results(6).await;
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_on_the_command_line_is_refused_and_not_repeated() {
    let world = World::start("broker.pem", false, None).await;
    let program = world.program(&[format!("kafka.sasl_password={PASSWORD}")], &[]);
    let (code, all, _) = program.start(&["check"]).end().await;
    assert_eq!(code, Some(64), "{all}");
    assert!(all.contains("KLP_KAFKA__SASL_PASSWORD"), "{all}");
    let program = world.program(&[], &[("KLP_KAFKA__SASL_PASSWORD", PASSWORD)]);
    let (code, all, _) = program.start(&["config", "show"]).end().await;
    assert_eq!(code, Some(0), "{all}");
    assert!(all.contains("kafka.sasl_password"), "{all}");
}

/// The README shows what is in the files, and the files can be used.
#[test]
fn the_ready_made_examples_load_and_stand_in_the_readme() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).expect("a README");
    for name in ["confluent-cloud", "scram", "mutual-tls"] {
        let path = root.join(format!("examples/security/{name}.toml"));
        let text = std::fs::read_to_string(&path).expect("an example");
        assert!(readme.contains(&format!("```toml\n{text}```")), "{name}");
        let variable = ("KLP_KAFKA__SASL_PASSWORD".to_owned(), PASSWORD.to_owned());
        let environment = Some(variable).filter(|_| name == "confluent-cloud");
        let settings = Settings::load(Some(&path), environment, &[]).expect(name);
        let choice = settings.driver().expect("a driver");
        assert_eq!(choice.driver, Driver::Wire, "{name}");
    }
}
