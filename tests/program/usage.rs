//! What is answered, or refused with 64, before anything is asked of a server; and `quickstart`, which needs nothing.

use crate::process::{program, refused, run, text};

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
