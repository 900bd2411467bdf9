//! `status`, `pause` and `resume` of a processor that runs, or does not.

use std::time::Duration;

use kafka_llm_processor::types::Record;
use tokio::time::Instant;

use crate::metrics;
use crate::process::{processor, refused, run, sandbox_model, text};

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
