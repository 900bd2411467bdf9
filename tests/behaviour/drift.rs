//! Answers that are not like those before are told of: in the log, in the status, in the metrics, and by `drift report`.

use std::time::Duration;

use clap::Parser as _;
use kafka_llm_processor::app::App;
use kafka_llm_processor::cli::args::{Cli, Command};
use kafka_llm_processor::cli::drift::{self, End};
use kafka_llm_processor::cli::output::Terminal;
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, VllmConfig};
use kafka_llm_processor::telemetry::status::{DriftAlarm, DriftState, DriftStatus};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::harness::{OUTPUT, World, eventually};

/// A window of 20 documents, a reference of 20 windows; nine statistics have 45,000 chances in 100,000 documents, and C(24, 4) is 10,626: four
/// windows in a row keep false alarms to 4.2, where five are allowed.
const WATCHES: [&str; 3] = [
    "drift.window_documents=20",
    "drift.reference_documents=400",
    "drift.sensitivity=5",
];
/// Four windows, and the one that had begun. What is in flight meanwhile has its own part in it.
const TOLD_WITHIN: usize = 100;

const REFUSAL: &str = "I'm sorry, but I can't help with that document.";

async fn world() -> World {
    let config = VllmConfig {
        latency: Latency::fixed(Duration::from_millis(2)),
        ..VllmConfig::default()
    };
    World::with_vllm(2, config).await
}

/// A document whose extract is of a length that varies.
fn varied(number: usize) -> String {
    let words = 3 + number * 7 % 23;
    format!("Document {number} reports {}.", "revenue ".repeat(words))
}

fn drift_of(status: Option<DriftStatus>) -> DriftStatus {
    status.expect("drift is watched by default")
}

#[tokio::test]
async fn a_model_that_begins_to_refuse_is_told_within_the_stated_number_of_documents() {
    let world = world().await;
    world.produce(0..500, varied);
    let running = world.start(&WATCHES);
    eventually("everything is committed", || world.is_all_committed()).await;
    let drift = || drift_of(running.board.snapshot().drift);
    eventually("the reference is complete", || {
        drift().state != DriftState::Collecting
    })
    .await;
    assert_eq!(
        (drift().reference_documents, drift().window_documents),
        (400, 20)
    );
    // How long calls take is a matter of the machine here.
    let others = |it: &DriftAlarm| it.signal != "latency_per_token";
    assert!(!drift().alarms.iter().any(others), "{:?}", drift().alarms);
    let has_shifted = |name: &str| {
        let signals = drift().signals;
        signals
            .iter()
            .any(|it| it.name == name && it.state == "shifted")
    };

    let refuses = Fault::new(Action::Content(REFUSAL.to_owned())).kept();
    world.vllm.faults().push(refuses);
    world.produce(500..500 + TOLD_WITHIN, varied);
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("the shift is told", || has_shifted("refusal")).await;
    let shown = drift();
    let alarmed: Vec<_> = shown.alarms.iter().map(|it| it.signal.as_str()).collect();
    assert!(alarmed.contains(&"refusal"), "{shown:?}");
    assert!(alarmed.contains(&"answer_characters"), "{shown:?}");
    let refusal = shown
        .alarms
        .iter()
        .find(|it| it.signal == "refusal")
        .unwrap();
    assert!(refusal.detail.contains("0.0 % → 100.0 %"), "{refusal:?}");
    // As the status page reads it.
    let page = serde_json::to_value(&shown).unwrap();
    assert_eq!(page["state"], "shifted");
    let signals = page["signals"].as_array().unwrap();
    let refusal = signals.iter().find(|it| it["name"] == "refusal").unwrap();
    assert_eq!(
        (&refusal["statistic"], &refusal["state"]),
        (&"psi".into(), &"shifted".into())
    );
    assert!(refusal["value"].as_f64() > refusal["threshold"].as_f64());

    // And back.
    world.vllm.faults().clear();
    world.produce(600..750, varied);
    let watched = ["refusal", "answer_characters"];
    eventually("it is back", || {
        !watched.iter().any(|name| has_shifted(name))
    })
    .await;
    running.drain().await;
    world.assert_all_have_results(750);
}

/// What `drift report` prints for this world.
async fn report(world: &World, more: &[&str]) -> (End, String) {
    let words = ["kafka-llm-processor", "drift", "report"]
        .iter()
        .chain(more);
    let Some(Command::Drift(args)) = Cli::try_parse_from(words).unwrap().command else {
        panic!("another command");
    };
    let mut out = Vec::new();
    let (settings, stop) = (world.settings(&WATCHES), CancellationToken::new());
    let ended = drift::run(&args, &settings, &Terminal::plain(), &mut out, &stop)
        .await
        .unwrap();
    (ended, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn a_result_that_was_too_large_is_no_answer() {
    let world = world().await;
    let small = [("max.message.bytes", "20000")];
    world.broker.create_topic(OUTPUT, 2, &small).unwrap();
    world.produce(0..500, varied);
    let running = world.start(&WATCHES);
    eventually("everything is committed", || world.is_all_committed()).await;
    // What does not compress does not fit.
    let noise: String = (0..8_000_u32)
        .map(|n| format!("{:x} ", n.wrapping_mul(2_654_435_761)))
        .collect();
    world
        .vllm
        .faults()
        .push(Fault::new(Action::Content(noise)).kept());
    world.produce(500..500 + TOLD_WITHIN, varied);
    eventually("everything is committed", || world.is_all_committed()).await;
    let state = |name: &str| {
        let signals = drift_of(running.board.snapshot().drift).signals;
        let mut of_name = signals.into_iter().filter(|it| it.name == name);
        of_name.next().map(|it| it.state)
    };
    eventually("the dead letters are told of", || {
        state("outcome") == Some("shifted")
    })
    .await;
    assert_eq!(state("answer_characters"), Some("ok"), "none was written");
    assert_eq!(world.dead_letters().len(), TOLD_WITHIN);
    running.drain().await;
}

#[tokio::test]
async fn a_change_of_the_prompt_is_an_event_and_the_report_compares_before_with_after() {
    let world = world().await;
    let first = [&WATCHES[..], &["prompt.user=First: {{ content }}"]].concat();
    let second = [&WATCHES[..], &["prompt.user=Second: {{ content }}"]].concat();
    let app = App::build(world.settings(&first)).unwrap();
    let (board, mut reloader) = (app.board(), app.reloader());
    let stop = CancellationToken::new();
    let task = tokio::spawn(app.run(stop.clone(), false));
    world.produce(0..440, varied);
    // Given up: they count with the generation that answered.
    for number in 0..4 {
        world.put(0, Some(&format!("broken{number}")), Some("{"));
    }
    eventually("everything is committed", || world.is_all_committed()).await;
    let drift = || drift_of(board.snapshot().drift);
    eventually("the reference is complete", || {
        drift().state != DriftState::Collecting
    })
    .await;

    reloader.reload(|| Ok(world.settings(&second)));
    let shorter = Fault::new(Action::Content("Short.".to_owned())).kept();
    world.vllm.faults().push(shorter);
    world.produce(440..440 + TOLD_WITHIN, varied);
    eventually("everything is committed", || world.is_all_committed()).await;
    let told = || {
        let alarms = drift().alarms;
        alarms.into_iter().find(|it| it.signal == "generation")
    };
    eventually("the change is told", || told().is_some()).await;
    let (shown, told) = (drift(), told().unwrap());
    assert_eq!(
        shown.state,
        DriftState::Collecting,
        "a new reference is begun"
    );
    let detail = &told.detail;
    assert!(
        detail.starts_with("prompt template, settings changed, and so did answer_characters"),
        "{detail}"
    );
    assert!(!detail.contains("refusal"), "{detail}");
    stop.cancel();
    task.await.unwrap();

    let (ended, text) = report(&world, &[]).await;
    assert_eq!(ended, End::Reported);
    assert_compares(&text);
    let (ended, text) = report(&world, &["--json", "--fail-on-shift"]).await;
    assert_eq!(ended, End::Shifted);
    let page: Value = serde_json::from_str(&text).unwrap();
    let topic = &page["topics"][0];
    assert_eq!(topic["topic"], "docs");
    assert_eq!(topic["generations"][0]["documents"], 444);
    assert_eq!(topic["generations"][1]["documents"], TOLD_WITHIN);
    assert!(topic["generations"][0]["shares"]["outcome"]["invalid_json"].as_f64() > Some(0.0));
    let verdict = |name: &str| {
        let signals = topic["changes"][0]["signals"].as_array().unwrap();
        let found = signals.iter().find(|it| it["signal"] == name).unwrap();
        found["verdict"].as_str().unwrap().to_owned()
    };
    let median = &topic["generations"][1]["medians"]["answer_characters"];
    let short = serde_json::json!({"value": 6, "unit": "characters"});
    assert_eq!(*median, short);
    assert_eq!(verdict("answer_characters"), "shifted");
    assert_eq!(verdict("refusal"), "same");
    // Of the last twenty there is one generation, and nothing to compare it with.
    let (ended, text) = report(&world, &["--json", "--fail-on-shift", "--last", "20"]).await;
    let page: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (ended, page["documents"].as_u64()),
        (End::Reported, Some(20))
    );
    assert_eq!(
        page["topics"][0]["generations"].as_array().unwrap().len(),
        1
    );
    let (_, text) = report(&world, &["--json", "--to", "2020-01-01"]).await;
    assert!(text.contains(r#""topics":[]"#), "{text}");
}

/// What the report says of two generations whose answers differ in length.
fn assert_compares(text: &str) {
    for line in [
        "generation 1",
        "generation 2",
        "prompt template, settings changed",
    ] {
        assert!(text.contains(line), "no {line} in:\n{text}");
    }
    let shifted = |line: &str| line.contains("answer_characters") && line.contains("shifted");
    assert!(text.lines().any(shifted), "{text}");
    let medians: Vec<_> = text.lines().filter(|it| it.contains("medians")).collect();
    assert_eq!(medians.len(), 2, "{text}");
    for unit in [" characters", " tokens", " µs"] {
        assert!(medians.iter().all(|it| it.contains(unit)), "{text}");
    }
}

#[tokio::test]
async fn drift_that_is_off_is_not_watched() {
    let world = world().await;
    world.produce(0..30, varied);
    let running = world.start(&["drift.enabled=false"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("it was looked at", || {
        running.board.snapshot().limiting.is_some()
    })
    .await;
    assert_eq!(running.board.snapshot().drift, None);
    running.drain().await;
}
