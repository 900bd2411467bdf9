//! The static binary, in a root directory that holds nothing else: no libc, no certificates, no `/etc`, no `/tmp`, no `/dev`.
//!
//! `KLP_STATIC_BINARY` names the binary that `just static` built; without it there is nothing to test, and that is printed. Needs root, or a
//! system where everybody may make a user namespace.

#![cfg(feature = "sandbox")]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "kafka_tls/front.rs"]
mod front;
#[path = "llm_stub/tls_server.rs"]
mod tls_server;

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Vllm, VllmConfig};
use kafka_llm_processor::types::Record;
use tempfile::TempDir;

use support::eventually;
use support::process::{Lines, mortal, signal, spawn};

/// What is promised to who ships it.
const SIZE_MAX: u64 = 20_000_000;
const SOON: Duration = Duration::from_secs(60);
const NAME: &str = "kafka-llm-processor";

/// A directory with the binary and nothing else, to be the root of its processes.
struct EmptyRoot {
    folder: TempDir,
    /// What makes it the root.
    enter: &'static [&'static str],
}

impl EmptyRoot {
    /// `None`, and the reason printed, where there is no binary or where nothing can be run in another root.
    fn new() -> Option<Self> {
        let Some(binary) = std::env::var_os("KLP_STATIC_BINARY") else {
            println!("skipped: KLP_STATIC_BINARY does not name a binary that `just static` built");
            return None;
        };
        let mut reasons = Vec::new();
        for enter in [&["chroot"][..], &["unshare", "--map-root-user", "chroot"]] {
            let root = Self {
                folder: tempfile::tempdir().unwrap(),
                enter,
            };
            fs::copy(&binary, root.path().join(NAME)).unwrap();
            match root.command(&["--version"]).output() {
                Ok(output) if output.status.success() => return Some(root),
                Ok(output) => reasons.push(String::from_utf8_lossy(&output.stderr).into_owned()),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        // Where the reason is the binary, there is none: it is a failure.
        let forbidden = |reason: &String| {
            reason.contains("Operation not permitted") || reason.contains("cannot change root")
        };
        assert!(
            reasons.iter().all(forbidden),
            "it does not run: {reasons:?}"
        );
        println!("skipped: nothing can be run in another root here: {reasons:?}");
        None
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let (program, enter) = self.enter.split_first().unwrap();
        let mut command = mortal(program);
        command
            .args(enter)
            .arg(self.path())
            .arg(format!("/{NAME}"))
            .args(arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end, which has to be a good one.
    fn run(&self, arguments: &[&str]) -> String {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(arguments).output().unwrap();
        let said = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert_eq!(status.code(), Some(0), "{arguments:?}: {said}");
        said
    }
}

/// Ends with the test.
struct Running {
    child: Child,
    lines: Lines,
}

impl Running {
    fn start(root: &EmptyRoot, arguments: &[&str]) -> Self {
        let mut command = root.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command);
        let lines = Lines::new();
        lines.gather(child.stderr.take().unwrap());
        lines.gather(child.stdout.take().unwrap());
        Self { child, lines }
    }

    async fn drain(mut self) {
        assert!(signal("-TERM", &self.child.id().to_string()));
        let ended = eventually("it drains", SOON, async || self.child.try_wait().unwrap());
        let code = ended.await.code();
        assert_eq!(code, Some(0), "{:#?}", self.lines.all());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn broker_with_documents(documents: usize) -> Broker {
    broker_with(documents, BrokerConfig::default()).await
}

async fn broker_with(documents: usize, config: BrokerConfig) -> Broker {
    let broker = Broker::start(config).await.unwrap();
    broker.create_topic("financial-documents", 1, &[]).unwrap();
    let document = |index| Record {
        value: Some(format!(r#"{{"id":"{index}","content":"Revenue rose."}}"#).into()),
        timestamp_ms: 1,
        ..Record::default()
    };
    let documents = (0..documents).map(document).collect();
    broker.append("financial-documents", 0, documents).unwrap();
    broker
}

#[test]
fn it_is_small_and_needs_no_other_file() {
    let Some(root) = EmptyRoot::new() else {
        return;
    };
    let size = fs::metadata(root.path().join(NAME)).unwrap().len();
    assert!(size <= SIZE_MAX, "{size} bytes");
    let version = root.run(&["--version"]);
    assert_eq!(
        version.trim(),
        format!("{NAME} {}", env!("CARGO_PKG_VERSION"))
    );
    assert!(root.run(&["--help"]).contains("quickstart"));
    assert!(root.run(&["config", "reference"]).contains("kafka.brokers"));
    assert!(root.run(&["man"]).contains(".TH"));
}

#[test]
fn quickstart_runs_in_an_empty_root() {
    let Some(root) = EmptyRoot::new() else {
        return;
    };
    let said = root.run(&["quickstart"]);
    assert!(said.contains("processed   6 documents"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_and_run_work_in_an_empty_root() {
    let Some(root) = EmptyRoot::new() else {
        return;
    };
    let broker = broker_with_documents(3).await;
    let llm = Vllm::start(VllmConfig::default()).await.unwrap();
    let (bootstrap, url) = (broker.bootstrap(), llm.url());
    let servers = ["--brokers", &bootstrap, "--llm-url", &url];
    let listen = ["--set", "admin.listen=127.0.0.1:0"];
    let run = Running::start(&root, &[&["run"], &servers[..], &listen[..]].concat());
    let done = eventually("three results", SOON, async || {
        (broker.records("llm-results").len() == 3).then_some(())
    });
    done.await;
    let said = root.run(&[&["check"], &servers[..]].concat());
    assert!(said.contains("answers, context of"), "{said}");
    // Where nothing says otherwise the log goes beside the program, as it does elsewhere.
    assert!(root.path().join("logs").is_dir());
    run.drain().await;
}

/// The ways in which servers can be spoken to with TLS. What the settings need beside the binary is a CA of one's own: those of the world are
/// in the binary.
#[tokio::test(flavor = "multi_thread")]
async fn tls_works_in_an_empty_root() {
    let Some(root) = EmptyRoot::new() else {
        return;
    };
    let port = front::Port::free().await;
    let config = BrokerConfig {
        advertised_port: Some(port.number()),
        ..BrokerConfig::default()
    };
    let broker = broker_with(3, config).await;
    let kafka = port.front("broker.pem", false, &broker.address().to_string());
    fs::copy(front::file("ca.pem"), root.path().join("kafka-ca.pem")).unwrap();
    let url = tls_server::start();
    let servers = [
        "--brokers",
        &kafka.address,
        "--llm-url",
        &url,
        "--set",
        "kafka.security_protocol=SSL",
        "--set",
        "kafka.ssl_truststore_location=/kafka-ca.pem",
    ];

    // No root certificate of the system, and the bundled ones do not know this server.
    let output = root.command(&[&["check"], &servers[..]].concat()).output();
    let said = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(
        said.contains("TLS with") && said.contains("llm.ca_file"),
        "{said}"
    );

    fs::copy(tls_server::CA_FILE, root.path().join("ca.pem")).unwrap();
    let trusting = [
        "--set",
        "llm.ca_file=/ca.pem",
        "--set",
        "admin.listen=127.0.0.1:0",
    ];
    let run = Running::start(&root, &[&["run"], &servers[..], &trusting[..]].concat());
    let done = eventually("three results", SOON, async || {
        (broker.records("llm-results").len() == 3).then_some(())
    });
    done.await;
    run.drain().await;
    for (_, _, record) in broker.records("llm-results") {
        let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
        assert!(value.contains("over TLS"), "{value}");
    }
}
