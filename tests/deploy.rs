//! The files that ship the program: images, Compose, Kubernetes, systemd, dashboards and rules. They name metrics, settings and commands that
//! no compiler checks.
#![cfg(feature = "sandbox")]
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

#[path = "deploy/compose.rs"]
mod compose;
#[path = "deploy/image.rs"]
mod image;
#[path = "deploy/kubernetes.rs"]
mod kubernetes;
#[path = "deploy/metrics.rs"]
mod metrics;
#[path = "deploy/systemd.rs"]
mod systemd;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::cargo::CommandCargoExt as _;
use kafka_llm_processor::config::Settings;
use serde_json::Value;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The documents of a YAML file.
fn yaml(name: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The one document of a YAML file.
fn document(name: &str) -> Value {
    let mut documents = yaml(name);
    assert_eq!(documents.len(), 1, "{name}");
    documents.remove(0)
}

/// All files below a folder whose names end so.
fn files(folder: &str, endings: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{folder}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&name, endings));
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(name);
        }
    }
    found.sort();
    found
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}

fn strings(value: &Value) -> Vec<&str> {
    let list = value
        .as_array()
        .unwrap_or_else(|| panic!("{value} is no list"));
    list.iter().map(text).collect()
}

/// A call is shorter than a drain, and a drain than what the surroundings allow for an end.
fn assert_ends_in_time(settings: &Settings, grace: Duration, of: &str) {
    let (call, drain) = (settings.llm.timeout, settings.pipeline.drain_timeout);
    assert!(
        call < drain,
        "{of}: llm.timeout {call:?}, pipeline.drain_timeout {drain:?}"
    );
    // The program's own end, behind the drain: the last copy of the offsets, and the admin server.
    let own = Duration::from_secs(6);
    assert!(
        drain + own < grace,
        "{of}: pipeline.drain_timeout {drain:?}, and {grace:?} to end"
    );
}

/// The program takes these arguments: it shows its help, and does not complain about one of them.
fn assert_is_a_command(arguments: &[&str]) {
    let mut command = std::process::Command::cargo_bin("kafka-llm-processor").unwrap();
    let output = command
        .env_clear()
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
    assert!(!output.stdout.is_empty());
}
