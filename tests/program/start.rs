//! What a start meets: a server that is away, a port that is taken; and the sandbox alone.

use std::net::TcpListener;
use std::time::Duration;

use tokio::time::Instant;

use crate::process::{Processor, program, refused, run, sandbox_model, text};

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
