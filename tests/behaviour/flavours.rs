//! The whole suite once more, on our own connections, at least once and exactly once: each in a process of its own.

use std::process::Command;

use crate::harness::FLAVOUR;

fn run(flavour: &str) {
    if std::env::var_os(FLAVOUR).is_some() {
        return;
    }
    let suite = std::env::current_exe().unwrap();
    let output = Command::new(suite)
        .env(FLAVOUR, flavour)
        .args(["--skip", "flavours::"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{flavour}:\n{text}");
    let passed = text.matches(" ... ok").count();
    assert!(passed > 40, "{flavour}: {passed} tests have run:\n{text}");
}

#[test]
fn every_behaviour_holds_on_our_own_connections() {
    run("wire");
}

#[test]
fn every_behaviour_holds_exactly_once() {
    run("exactly_once");
}
