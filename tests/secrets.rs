//! Nothing that the program is told in confidence is in anything that it says: output, logs, pages, records, errors.

#![cfg(feature = "sandbox")]
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kafka_llm_processor::config::Settings;
use kafka_llm_processor::kafka::KafkaConfig;
use kafka_llm_processor::llm::LlmConfig;
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Vllm, VllmConfig};
use kafka_llm_processor::types::{Record, Secret};

use support::eventually;
use support::metrics::admin_address;
use support::processor::Processor;

const KEY: &str = "hush-llm-api-key-5f2a";
const PASSWORD: &str = "hush-sasl-password-77";
const TOKEN: &str = "hush-admin-token-abcdef";
const WRONG: &str = "hush-wrong-9c3e-value";
/// What no line may hold. A secret in base64 is one too: SASL PLAIN of user and password, and the password by itself.
const NEVER: [&str; 5] = ["hush-", "aHVzaC", "h1c2gt", "odXNoL", "hush%2D"];
const SOON: Duration = Duration::from_secs(60);
/// Everything that any library says.
const TRACE: &str = "trace,rskafka=trace,hyper=trace,hyper_util=trace,reqwest=trace,rustls=trace";

fn assert_silent(what: &str, said: &str) {
    assert!(!said.is_empty(), "{what} says nothing: it proves nothing");
    for secret in NEVER {
        let line = said.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{what} tells a secret: {line:?}");
    }
}

/// Runs a command to its end: exit code, and all that it said.
fn said(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kafka-llm-processor"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

fn http(address: &str, request: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

struct Servers {
    broker: Broker,
    llm: Vllm,
}

async fn servers() -> Servers {
    let users = BTreeMap::from([("alice".to_owned(), Secret::new(PASSWORD))]);
    let broker = Broker::start(BrokerConfig {
        sasl: Some(users),
        ..BrokerConfig::default()
    });
    let llm = Vllm::start(VllmConfig {
        api_key: Some(KEY.to_owned()),
        ..VllmConfig::default()
    });
    let (broker, llm) = (broker.await.unwrap(), llm.await.unwrap());
    broker.create_topic("financial-documents", 1, &[]).unwrap();
    let document = |id: &str| Record {
        value: Some(format!(r#"{{"id":"{id}","content":"Revenue rose."}}"#).into()),
        timestamp_ms: 1,
        ..Record::default()
    };
    let documents = vec![document("a"), document("b"), document("c")];
    broker.append("financial-documents", 0, documents).unwrap();
    Servers { broker, llm }
}

impl Servers {
    /// The settings that hold no secret.
    fn variables(&self, mechanism: &str, driver: &str) -> Vec<(String, String)> {
        [
            ("KAFKA_BROKERS", self.broker.bootstrap()),
            ("LLM_URL", self.llm.url()),
            ("KLP_KAFKA__SECURITY_PROTOCOL", "SASL_PLAINTEXT".to_owned()),
            ("KLP_KAFKA__SASL_MECHANISM", mechanism.to_owned()),
            ("KLP_KAFKA__SASL_USERNAME", "alice".to_owned()),
            ("KLP_KAFKA__DRIVER", driver.to_owned()),
            ("KLP_LOG__LEVEL", TRACE.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

fn borrowed(variables: &[(String, String)]) -> Vec<(&str, &str)> {
    let variables = variables.iter();
    variables
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

/// All files of a folder, as one text.
fn files(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        text += &fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    text
}

fn look_at_pages(address: &str) {
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    for (request, headers) in [
        ("GET /", String::new()),
        ("GET /status", String::new()),
        ("GET /metrics", bearer(TOKEN)),
        ("GET /livez", String::new()),
        ("GET /readyz", String::new()),
        ("POST /pause", bearer(WRONG)),
        ("POST /pause", bearer(TOKEN)),
        ("POST /resume", bearer(TOKEN)),
        ("GET /nothing?token=", bearer(TOKEN)),
    ] {
        assert_silent(request, &http(address, request, &headers));
    }
}

fn run_commands(address: &str, variables: &[(&str, &str)]) {
    let status = ["status", "--json", "--admin", address];
    for command in [
        &status[..],
        &["check", "--json"],
        &["check"],
        &["config", "show"],
        &["config", "show", "--json"],
        &["dry-run", "--ask", "1", "--count", "1"],
        &["offsets", "show", "--json"],
        &["results", "--count", "1", "--json"],
        &["produce", "--count", "1"],
    ] {
        let (code, said) = said(command, variables);
        assert_eq!(code, Some(0), "{command:?}: {said}");
        assert_silent(&format!("{command:?}"), &said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_tells_a_secret_while_all_goes_well() {
    for (mechanism, driver, format) in [
        ("PLAIN", "wire", "human"),
        ("SCRAM-SHA-256", "rskafka", "json"),
    ] {
        let servers = servers().await;
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        fs::write(&token, TOKEN).unwrap();
        let logs = folder.path().join("logs");
        let mut variables = servers.variables(mechanism, driver);
        for (name, value) in [
            ("KLP_KAFKA__SASL_PASSWORD", PASSWORD),
            ("KLP_LLM__API_KEY", KEY),
            ("KLP_ADMIN__TOKEN_FILE", token.to_str().unwrap()),
            ("KLP_ADMIN__LISTEN", "127.0.0.1:0"),
            ("KLP_LOG__FORMAT", format),
            ("KLP_LOG__FILE", logs.join("log").to_str().unwrap()),
        ] {
            variables.push((name.to_owned(), value.to_owned()));
        }
        // One failed attempt, whose words repeat the key.
        // Once in the middle, and once where its words are cut.
        let sent = format!("I was sent {KEY} by you");
        let words = format!(r#"{{"error":{{"message":"{sent:<150}{KEY}"}}}}"#);
        servers.llm.faults().push(Action::answer(500, words));
        let variables = borrowed(&variables);
        let mut processor = Processor::start(&["run".to_owned()], &variables);
        let line = processor.line(&["admin", "127.0.0.1:"], SOON).await;
        let address = admin_address(&line);
        eventually("three results", SOON, async || {
            assert!(processor.is_running());
            (servers.broker.records("llm-results").len() == 3).then_some(())
        })
        .await;
        look_at_pages(&address);
        run_commands(&address, &variables);
        processor.signal("-HUP");
        processor
            .line(&["the configuration was read anew"], SOON)
            .await;
        let lines = processor.lines().clone();
        processor.drain(SOON).await;
        let printed = lines.all().join("\n");
        assert!(printed.contains("TRACE"), "all is told");
        let words = "I was sent *** by you";
        assert!(printed.contains(words), "the server's words: {printed}");
        assert_silent("the log", &printed);
        assert_silent("the log file", &files(&logs));
        for topic in servers.broker.topics() {
            for (_, _, record) in servers.broker.records(&topic) {
                assert_silent(&topic, &format!("{record:?}"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_tells_a_secret_that_is_refused() {
    let servers = servers().await;
    let echo = format!(r#"{{"error":{{"message":"the key {KEY} has run out"}}}}"#);
    for (mechanism, driver) in [
        ("PLAIN", "wire"),
        ("SCRAM-SHA-512", "wire"),
        ("PLAIN", "rskafka"),
    ] {
        for (password, key, echoes) in [
            (WRONG, KEY, false),
            (PASSWORD, WRONG, false),
            (WRONG, KEY, true),
        ] {
            servers.llm.faults().clear();
            if echoes {
                let refusal = Fault::new(Action::answer(402, echo.clone()));
                servers.llm.faults().push(refusal.kept());
            }
            let mut variables = servers.variables(mechanism, driver);
            for (name, value) in [
                ("KLP_KAFKA__SASL_PASSWORD", password),
                ("KLP_LLM__API_KEY", key),
                ("KLP_LOG__FILE", "off"),
                ("KLP_KAFKA__CONNECT_TIMEOUT", "1s"),
                ("KLP_ADMIN__LISTEN", "127.0.0.1:0"),
            ] {
                variables.push((name.to_owned(), value.to_owned()));
            }
            let variables = borrowed(&variables);
            for command in [
                &["check"][..],
                &["check", "--json"],
                &["run", "--fail-fast"],
            ] {
                let (code, said) = said(command, &variables);
                assert_eq!(code, Some(1), "{command:?}: {said}");
                assert_silent(&format!("{command:?}"), &said);
            }
        }
    }
}

/// Settings that are refused are told of without what they hold, wherever they were written.
#[test]
fn no_message_about_a_setting_repeats_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("klp.toml");
    for text in [
        "[llm]\napi_key = hush-llm-api-key\n",
        "[llm]\napi_key = \"hush-llm-api-key\n",
        "[llm]\napi_key = [\"hush-llm-api-key\"]\n",
        "[llm]\napi_key = { hush-llm-api-key = 1 }\n",
        "[kafka]\nsasl_password = \"hush-sasl\" \"hush-again\"\n",
        "[kafka]\nsasl_password = \"hush-sasl\"\nsasl_password = \"hush-again\"\n",
        "[llm]\napi_key = \"hush llm\"\n",
        "[llm]\napi_key = \"hush-llm\\u00e9\"\n",
        "[llm]\nurl = \"http://alice:hush-url@localhost:8000\"\n",
        "[kafka]\nbrokers = \"alice:hush-url@localhost:9092\"\n",
        "[kafka]\nbrokers = \"alice:hush-url@localhost\"\n",
    ] {
        fs::write(&file, text).unwrap();
        for command in ["check", "run"] {
            let (code, said) = said(&[command, "--config", file.to_str().unwrap()], &[]);
            assert_eq!(code, Some(64), "{text}: {said}");
            assert_silent(text, &said);
        }
    }
    for (name, value) in [
        ("LLM_URL", "http://alice:hush-url@localhost:8000"),
        ("LLM_URL", "http://a:hush-url@[::1"),
        ("KAFKA_BROKERS", "alice:hush-url@localhost:9092"),
        ("KLP_LLM__API_KEY", "hush llm"),
        ("KLP_LLM__API_KEY__X", "hush-llm"),
        ("KLP_LLM__API_KY", "hush-llm"),
    ] {
        let (code, said) = said(&["check"], &[(name, value)]);
        assert_eq!(code, Some(64), "{name}: {said}");
        assert_silent(name, &said);
    }
}

/// Every user of a machine can read its command lines.
#[test]
fn secrets_are_not_taken_from_the_command_line() {
    for (key, variable) in [
        ("llm.api_key", "KLP_LLM__API_KEY"),
        ("kafka.sasl_password", "KLP_KAFKA__SASL_PASSWORD"),
    ] {
        let set = format!("{key}=hush-it");
        for arguments in [["produce", "--set", &set], ["check", "--set", &set]] {
            let (code, said) = said(&arguments, &[]);
            assert_eq!(code, Some(64), "{said}");
            assert!(said.contains(variable), "{said}");
            assert_silent(key, &said);
        }
    }
}

#[test]
fn debug_and_panics_show_no_secret() {
    let settings = Settings {
        kafka: KafkaConfig {
            sasl_password: Some(Secret::new(PASSWORD)),
            ..KafkaConfig::default()
        },
        llm: LlmConfig {
            api_key: Some(Secret::new(KEY)),
            ..LlmConfig::default()
        },
        ..Settings::default()
    };
    assert_silent("Debug", &format!("{settings:?} {settings:#?}"));
    assert_silent("JSON", &serde_json::to_string(&settings).unwrap());
    let panic = std::panic::catch_unwind(|| panic!("{settings:?}")).unwrap_err();
    assert_silent("a panic", panic.downcast_ref::<String>().unwrap());
}
