//! The program as it is run: commands, messages and exit codes.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

#[allow(dead_code, reason = "others use the rest of it")]
#[path = "support/metrics.rs"]
mod metrics;

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

use assert_cmd::cargo::CommandCargoExt as _;
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::Record;
use tokio::time::Instant;

/// The program in an empty folder, without any setting from outside.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("kafka-llm-processor").unwrap();
    command
        .env_clear()
        .env("NO_COLOR", "1")
        .args(arguments)
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// An address where nothing listens.
fn refused() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Ends the process with the test.
struct Processor {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Processor {
    fn start(arguments: &[&str]) -> Self {
        let mut command = program(arguments);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// Reads the log up to a line that holds the text; the end of the log is a failure.
    fn wait_for(&mut self, what: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert!(
                self.log.read_line(&mut line).unwrap() > 0,
                "no `{what}` in:\n{seen}"
            );
            if line.contains(what) {
                return line;
            }
            seen.push_str(&line);
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Exit code and standard output.
    fn end(mut self) -> (Option<i32>, String) {
        let mut stdout = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut stdout)
            .unwrap();
        (self.child.wait().unwrap().code(), stdout)
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn quickstart_does_everything_and_ends_with_0() {
    let output = run(&["quickstart"]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert_eq!(
        out.matches("[simulated answer, no model was run]").count(),
        6,
        "{out}"
    );
    assert_eq!(out.matches("tokens used").count(), 6, "{out}");
    assert!(out.contains("processed   6 documents"), "{out}");
    assert_eq!(err, "", "nothing to worry about");
}

#[test]
fn help_and_version_are_answers() {
    for (flag, expected) in [
        ("--help", "quickstart"),
        ("--version", env!("CARGO_PKG_VERSION")),
    ] {
        let output = run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains(expected));
    }
    assert!(text(&run(&["--help"]).stdout).contains("64  usage or configuration"));
}

#[test]
fn usage_and_configuration_end_with_64_and_one_clear_message() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("klp.toml");
    std::fs::write(&file, "[pipeline]\nordr = \"key\"\n").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, expected) in [
        (&["--config", file][..], "did you mean `pipeline.order`?"),
        (&["--config", "no-such-file.toml"], "no-such-file.toml"),
        (&["--set", "llm.concurrency=0"], "llm.concurrency = 0"),
        (&["--set", "llm.concurrency=many"], "llm.concurrency"),
        (&["--set", "llm.timeout=soon"], "llm.timeout"),
        (&["--set", "prompt.user={{ broken"], "prompt.user"),
        (&["--set", "prompt.user_file=no-such.j2"], "no-such.j2"),
        (
            &["--set", "prompt.system_file=no-such.j2"],
            "prompt.system_file",
        ),
        (&["--set", "log.level=loud"], "log.level"),
        (&["--order", "sideways"], "pipeline.order"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["no-such-command"], "no-such-command"),
    ] {
        let output = run(arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {message}");
        assert!(message.contains(expected), "{arguments:?}: {message}");
        assert_eq!(text(&output.stdout), "");
    }
}

/// The program tells of itself also where its settings are wrong, and of the settings when they are right; nothing is asked of anybody.
#[test]
fn what_can_be_set_is_told_also_where_it_is_set_wrong() {
    let wrong = ["--set", "llm.concurrency=0"];
    for (command, expected) in [
        (&["config", "reference"][..], "pipeline.order"),
        (&["completions", "bash"], "complete -F"),
        (&["man"], ".TH"),
        (&["man", "config", "show"], ".TH"),
    ] {
        let arguments: Vec<_> = command.iter().chain(&wrong).copied().collect();
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(text(&output.stdout).contains(expected), "{command:?}");
        assert_eq!(text(&output.stderr), "");
    }
    for command in [&["config", "show"][..], &["man", "nothing"]] {
        let arguments: Vec<_> = command.iter().chain(&wrong).copied().collect();
        assert_eq!(run(&arguments).status.code(), Some(64), "{command:?}");
    }
    let mut command = program(&["config", "show", "--model", "tiny"]);
    command.envs([("LLM_URL", "http://gpu:8000"), ("KLP_LLM__API_KEY", "hush")]);
    let output = command.output().unwrap();
    let out = text(&output.stdout);
    let line = |key: &str| {
        let line = out.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("llm.url"), "llm.url http://gpu:8000 LLM_URL");
    assert_eq!(line("llm.model"), "llm.model tiny --model");
    assert_eq!(line("llm.api_key "), "llm.api_key *** KLP_LLM__API_KEY");
    assert_eq!(line("llm.seed"), "llm.seed none default");
}

/// A weight that is none, and a template of a topic that cannot be used: one message each, with the setting.
#[test]
fn a_bad_input_topic_ends_with_64_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("klp.toml");
    let range = "input.topics.0.weight: ";
    for (line, expected) in [
        (
            "weight = 0",
            [range, "0: must be a whole number from 1 to 1000"],
        ),
        (
            "weight = -3",
            [range, "-3: must be a whole number from 1 to 1000"],
        ),
        (
            "weight = 1001",
            [range, "1001: must be a whole number from 1 to 1000"],
        ),
        ("weight = 1.5", [range, "is not a whole number"]),
        ("weight = \"3\"", [range, "is not a whole number"]),
        ("wieght = 3", ["input.topics.0", "wieght"]),
        (
            "prompt = { user = \"{{ broken\" }",
            ["input.topics `news`: prompt.user, line 1", "(from file "],
        ),
        (
            "prompt = { system_file = \"no-such.j2\" }",
            ["input.topics `news`: prompt.system_file", "no-such.j2"],
        ),
    ] {
        std::fs::write(
            &config,
            format!("[[input.topics]]\nname = \"news\"\n{line}\n"),
        )
        .unwrap();
        let output = run(&[
            "--config",
            config.to_str().unwrap(),
            "--set",
            "log.file=off",
        ]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{line}: {message}");
        for expected in expected {
            assert!(message.contains(expected), "{line}: {message}");
        }
    }
}

/// A schema that cannot be used ends the start before anything is asked of Kafka, with one message that names the setting, the file, what is
/// wrong with it and the layer that set it.
#[test]
fn a_schema_that_cannot_be_used_ends_with_64_before_a_record_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.json");
    std::fs::write(&broken, "{\"type\": \"object\",\n\"properties\" {}}").unwrap();
    let invalid = folder.path().join("invalid.json");
    std::fs::write(&invalid, r#"{"type": "object", "required": "company"}"#).unwrap();
    let remote = folder.path().join("remote.json");
    std::fs::write(
        &remote,
        r#"{"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/a.json"}}}"#,
    )
    .unwrap();
    let config = folder.path().join("klp.toml");
    let brokers = refused();
    for (schema, expected) in [
        ("no-such.json", "cannot be read"),
        (
            broken.to_str().unwrap(),
            "is not JSON: expected `:` at line 2",
        ),
        (invalid.to_str().unwrap(), "at `/required`"),
        (remote.to_str().unwrap(), "nothing is fetched"),
        ("builtin:none", "use builtin:financial"),
    ] {
        let set = format!("llm.schema_file={schema}");
        std::fs::write(&config, format!("[llm]\nschema_file = '{schema}'\n")).unwrap();
        let config = config.to_str().unwrap();
        for (arguments, environment, layer) in [
            (&["--set", &set][..], None, "(from the command line)"),
            (&[], Some(schema), "(from the environment)"),
            (&["--config", config], None, "(from file "),
        ] {
            let mut command = program(arguments);
            command
                .args(["--brokers", &brokers, "--set", "log.file=off"])
                .envs(environment.map(|schema| ("KLP_LLM__SCHEMA_FILE", schema)));
            let output = command.output().unwrap();
            let message = text(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{schema}: {message}");
            let named = format!("llm.schema_file = `{schema}`");
            for expected in [&named, expected, layer] {
                assert!(message.contains(expected), "no {expected} in: {message}");
            }
            assert_eq!(message.lines().count(), 1, "{message}");
            assert!(!message.contains(&brokers), "{message}");
            assert_eq!(text(&output.stdout), "");
        }
    }
}

/// What `run` waits for, commands for people and `--fail-fast` end on, within five seconds and with the setting's name.
#[test]
fn an_unreachable_kafka_ends_commands_with_1() {
    let brokers = refused();
    for command in [
        &[
            "run",
            "--fail-fast",
            "--set",
            "admin.listen=off",
            "--set",
            "log.file=off",
        ][..],
        &["produce"],
        &["results"],
        &["dead-letters", "list"],
        &["check"],
        &["dry-run"],
        &["offsets", "show"],
        &["offsets", "reset", "--to", "earliest"],
    ] {
        let began = Instant::now();
        let arguments: Vec<_> = command
            .iter()
            .copied()
            .chain(["--brokers", &brokers])
            .collect();
        let mut sandboxed = program(&arguments);
        let vllm = sandbox_model();
        let output = sandboxed.env("LLM_URL", vllm.url()).output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(
            said.contains("kafka.brokers") && said.contains(&brokers),
            "{command:?}: {said}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{command:?}: {:?}",
            began.elapsed()
        );
        vllm.end();
    }
}

/// A simulated model on a runtime of its own, for tests that block on processes.
struct Model {
    runtime: tokio::runtime::Runtime,
    vllm: Vllm,
}

fn sandbox_model() -> Model {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let config = VllmConfig {
        latency: Latency::ZERO,
        ..VllmConfig::default()
    };
    let vllm = runtime.block_on(Vllm::start(config)).unwrap();
    Model { runtime, vllm }
}

impl Model {
    fn url(&self) -> String {
        self.vllm.url()
    }

    fn broker(&self, documents: i64) -> Broker {
        let broker = self
            .runtime
            .block_on(Broker::start(BrokerConfig::default()))
            .unwrap();
        broker.create_topic("financial-documents", 1, &[]).unwrap();
        let records = (0..documents).map(|number| Record {
            value: Some(format!("Document {number} is here.").into()),
            timestamp_ms: 1_700_000_000_000,
            ..Record::default()
        });
        broker
            .append("financial-documents", 0, records.collect())
            .unwrap();
        broker
    }

    fn end(self) {
        self.runtime.block_on(self.vllm.shutdown());
    }
}

fn processor(model: &Model, broker: &Broker, more: &[&str]) -> Processor {
    let (brokers, url) = (broker.bootstrap(), model.url());
    let arguments = [
        "--brokers",
        &brokers,
        "--llm-url",
        &url,
        "--set",
        "log.file=off",
    ];
    let listen = ["--set", "admin.listen=127.0.0.1:0"];
    let all: Vec<_> = arguments
        .iter()
        .chain(&listen)
        .chain(more)
        .copied()
        .collect();
    Processor::start(&all)
}

#[test]
fn sigterm_drains_prints_the_summary_and_ends_with_0() {
    let model = sandbox_model();
    let broker = model.broker(20);
    let mut processor = processor(&model, &broker, &[]);
    processor.wait_for("documents flow");
    while broker.records("llm-results").len() < 20 {
        std::thread::yield_now();
    }
    processor.signal("-TERM");
    let (code, out) = processor.end();
    assert_eq!(code, Some(0), "{out}");
    for expected in [
        "processed   20 documents",
        "failed      0",
        "retries",
        "tokens",
        "latency",
    ] {
        assert!(out.contains(expected), "{expected} in:\n{out}");
    }
}

/// Flushes and the bytes of their commit records, as an operator sees them, against the commit records that are in the topic. Claims, of
/// the group and of the partition, are no flushes.
#[test]
fn metrics_count_flushes_and_the_bytes_of_their_commit_records() {
    for guarantee in ["at_least_once", "exactly_once"] {
        let model = sandbox_model();
        let broker = model.broker(20);
        let guarantee = format!("processing.guarantee={guarantee}");
        let mut processor = processor(&model, &broker, &["--set", &guarantee]);
        let address = metrics::admin_address(&processor.wait_for("admin server listens"));
        processor.wait_for("documents flow");
        while broker.records("llm-results").len() < 20 {
            std::thread::yield_now();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let names = ["klp_flushes_total", "klp_commit_records_bytes_total"];
            let counted = metrics::counters(&address, names);
            let records = broker.records("kafka-llm-processor-commits");
            let sizes = records.into_iter().filter_map(|(_, _, record)| {
                let value = record.value?;
                let commit: serde_json::Value = serde_json::from_slice(&value).unwrap();
                let is_claim =
                    commit["next_offset"] == 0 && commit["done"] == serde_json::json!([]);
                (!is_claim).then(|| u64::try_from(value.len()).unwrap())
            });
            let written = sizes.fold([0, 0], |[count, bytes], size| [count + 1, bytes + size]);
            // One more flush may lie between the two looks.
            if counted == written && counted[0] >= 1 {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{counted:?}, written {written:?}"
            );
            std::thread::yield_now();
        }
        processor.signal("-TERM");
        assert_eq!(processor.end().0, Some(0));
    }
}

#[test]
fn a_second_signal_ends_at_once_with_2() {
    let model = sandbox_model();
    model.vllm.faults().push(Fault::new(Action::HangForEver));
    let broker = model.broker(1);
    let mut processor = processor(&model, &broker, &[]);
    processor.wait_for("documents flow");
    while model.vllm.running() + model.vllm.waiting() == 0 && model.vllm.calls() == 0 {
        std::thread::yield_now();
    }
    processor.signal("-INT");
    processor.wait_for("draining");
    let began = Instant::now();
    processor.signal("-INT");
    let (code, out) = processor.end();
    assert_eq!(code, Some(2), "{out}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn the_drain_deadline_ends_with_2() {
    let model = sandbox_model();
    model.vllm.faults().push(Fault::new(Action::HangForEver));
    let broker = model.broker(1);
    let mut processor = processor(&model, &broker, &["--set", "pipeline.drain_timeout=200ms"]);
    processor.wait_for("documents flow");
    while model.vllm.calls() == 0 {
        std::thread::yield_now();
    }
    processor.signal("-TERM");
    processor.wait_for("pipeline.drain_timeout");
    assert_eq!(processor.end().0, Some(2));
}

#[test]
fn run_waits_for_kafka_and_says_so_within_five_seconds() {
    let model = sandbox_model();
    let brokers = refused();
    let began = Instant::now();
    let arguments = [
        "--brokers",
        &brokers,
        "--llm-url",
        &model.url(),
        "--set",
        "log.file=off",
        "--set",
        "admin.listen=off",
    ];
    let mut processor = Processor::start(&arguments);
    let line = processor.wait_for("waiting");
    assert!(
        line.contains("kafka.brokers") && line.contains("WARN"),
        "{line}"
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    processor.signal("-TERM");
    assert_eq!(processor.end().0, Some(0));
}

#[test]
fn a_port_in_use_ends_with_1_and_names_the_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let admin = format!("admin.listen={address}");
    for (arguments, setting) in [
        (
            &["--set", &admin, "--set", "log.file=off"][..],
            "admin.listen",
        ),
        (
            &[
                "sandbox",
                "--kafka-listen",
                &address,
                "--llm-listen",
                "127.0.0.1:0",
            ],
            "--kafka-listen",
        ),
        (
            &[
                "sandbox",
                "--kafka-listen",
                "127.0.0.1:0",
                "--llm-listen",
                &address,
            ],
            "--llm-listen",
        ),
    ] {
        let output = run(arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(
            message.contains(setting) && message.contains(&address),
            "{message}"
        );
    }
}

/// One of the two servers alone, as beside a Kafka that is there already, and what a health check of it says.
#[test]
fn the_sandbox_starts_one_part_and_its_probe_tells_whether_it_listens() {
    let address = refused();
    let alone = ["sandbox", "--only", "llm", "--llm-listen", &address];
    let probe = |address| {
        let arguments = ["sandbox", "--only", "llm", "--llm-listen", address];
        let output = run(&[&arguments[..], &["--probe"]].concat());
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = probe(&address);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&address), "{said}");

    // Kafka's port is taken, which is nothing to a sandbox without it.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let kafka = taken.local_addr().unwrap().to_string();
    let sandbox = Processor::start(&[&alone[..], &["--kafka-listen", &kafka]].concat());
    let deadline = Instant::now() + Duration::from_secs(20);
    while probe(&address).0 != Some(0) {
        assert!(Instant::now() < deadline, "nobody listens on {address}");
    }
    sandbox.signal("-TERM");
    let (code, told) = sandbox.end();
    assert_eq!(code, Some(0));
    assert!(
        told.contains("SIMULATED vLLM") && !told.contains("Kafka"),
        "{told}"
    );
}

/// What health checks of containers ask: the exit code is the answer, and the engine keeps the output.
fn probed(address: &str, probe: &str) -> (Option<i32>, String) {
    let output = run(&["status", probe, "--admin", address]);
    (output.status.code(), text(&output.stdout))
}

/// The status of a running processor as text, as JSON and as an exit code; and what is said where none runs.
#[test]
fn status_tells_what_a_running_processor_does_and_whether_it_works() {
    let model = sandbox_model();
    let broker = model.broker(20);
    let mut processor = processor(&model, &broker, &[]);
    let address = metrics::admin_address(&processor.wait_for("admin server listens"));
    processor.wait_for("documents flow");
    let asked = ["status", "--admin", &address];
    let works = || {
        let output = run(&asked);
        (output.status.code() == Some(0)).then(|| text(&output.stdout))
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let shown = loop {
        if let Some(shown) = works().filter(|shown| shown.contains("20 results")) {
            break shown;
        }
        assert!(Instant::now() < deadline, "{:?}", run(&asked));
    };
    for expected in [
        "running",
        "limited by",
        "model server",
        &model.url(),
        "financial-documents/0",
    ] {
        assert!(shown.contains(expected), "{expected} in:\n{shown}");
    }
    // The address may also be that of the settings.
    let listen = format!("admin.listen={address}");
    let output = run(&["status", "--json", "--set", &listen]);
    let page: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(page["state"], "running");
    assert!(page["limiting"]["factor"].is_string());
    assert_eq!(probed(&address, "--ready"), (Some(0), "ready\n".to_owned()));
    assert_eq!(probed(&address, "--live"), (Some(0), "alive\n".to_owned()));

    model.runtime.block_on(model.vllm.stop_listener());
    let record = Record {
        value: Some("One more document.".into()),
        ..Record::default()
    };
    broker
        .append("financial-documents", 0, vec![record])
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let held = loop {
        let output = run(&asked);
        if output.status.code() == Some(1) {
            break text(&output.stdout);
        }
        assert!(Instant::now() < deadline, "{output:?}");
    };
    assert!(
        held.contains("holding") && held.contains("LLM_URL"),
        "{held}"
    );
    // An outage is no reason for a restart.
    let (code, said) = probed(&address, "--ready");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("on hold"), "{said}");
    assert_eq!(probed(&address, "--live"), (Some(0), "alive\n".to_owned()));
    drop(processor);
    assert_eq!(probed(&address, "--live").0, Some(1));

    let output = run(&asked);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("no processor answers at") && message.contains("--admin HOST:PORT"),
        "{message}"
    );
    let output = run(&["status", "--set", "admin.listen=off"]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    // What serves something else is no processor.
    let server = model.url();
    let other = model.runtime.block_on(async {
        model.vllm.start_listener().await.unwrap();
        run(&["status", "--admin", &server])
    });
    let message = text(&other.stderr);
    assert!(
        message.contains("is no processor's admin server"),
        "{message}"
    );
    model.end();
}

/// Who has nothing to ask, or asks in vain, is told which setting or flag says where.
#[test]
fn a_processor_that_is_not_there_cannot_be_paused() {
    let nobody = refused();
    for (arguments, code, expected) in [
        (&["pause", "--admin", &nobody][..], 1, nobody.as_str()),
        (&["resume", "--admin", &nobody], 1, "admin.listen"),
        (&["pause", "--set", "admin.listen=off"], 64, "--admin"),
        (
            &["pause", "--set", "admin.token_file=no-such-file"],
            64,
            "admin.token_file no-such-file",
        ),
    ] {
        let output = run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

#[test]
fn what_is_no_target_or_no_partition_is_usage() {
    for arguments in [
        &["offsets", "reset"][..],
        &["offsets", "reset", "--to", "yesterday"],
        &["offsets", "reset", "--to", "0", "--partition", "docs"],
        &["offsets", "show", "--partition", "docs/-1"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
    }
}

/// As operators do: by command, and by signal.
#[test]
fn a_running_processor_is_paused_resumed_and_reads_its_configuration_anew() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("klp.toml");
    std::fs::write(&config, "[prompt]\nuser = 'First: {{ content }}'\n").unwrap();
    let model = sandbox_model();
    let broker = model.broker(3);
    let path = config.to_str().unwrap();
    let mut processor = processor(&model, &broker, &["--config", path]);
    let address = metrics::admin_address(&processor.wait_for("admin server listens"));
    processor.wait_for("documents flow");
    while broker.records("llm-results").len() < 3 {
        std::thread::yield_now();
    }
    for (command, said, logged) in [
        (
            "pause",
            "paused: no new call is begun",
            "paused by an operator",
        ),
        ("resume", "resumed", "resumed by an operator"),
    ] {
        let output = run(&[command, "--admin", &address]);
        let out = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{out}");
        assert!(out.contains(said), "{out}");
        processor.wait_for(logged);
    }
    std::fs::write(
        &config,
        "[prompt]\nuser = 'Second: {{ content }}'\n[log]\nlevel = 'debug'\n",
    )
    .unwrap();
    processor.signal("-HUP");
    let line = processor.wait_for("nothing of it takes effect");
    assert!(line.contains("only a restart changes log.level"), "{line}");
    std::fs::write(&config, "[prompt]\nuser = 'Second: {{ content }}'\n").unwrap();
    processor.signal("-HUP");
    let line = processor.wait_for("is in force");
    assert!(
        line.contains("prompt.user") && line.contains("config_generation=2"),
        "{line}"
    );
    assert_eq!(metrics::sample(&address, "klp_config_generation"), 2);
    processor.signal("-TERM");
    assert_eq!(processor.end().0, Some(0));
}
