//! What probes, metrics and the watchdog say, over the admin server as operators ask it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use kafka_llm_processor::sandbox::vllm::{Action, EngineState, Fault, Latency, VllmConfig};
use kafka_llm_processor::telemetry::status::Stage;
use tokio::time::sleep;

use crate::harness::{Running, World, eventually, plain};

/// Settings with which the admin server listens on a free port.
const LISTENS: &str = "admin.listen=127.0.0.1:0";

async fn world(latency: Duration) -> World {
    let config = VllmConfig {
        latency: Latency::fixed(latency),
        ..VllmConfig::default()
    };
    World::with_vllm(1, config).await
}

/// Status and body of the answer to one question.
pub fn get(running: &Running, path: &str) -> (u16, String) {
    let address = running.board.snapshot().info["admin"].clone();
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

fn listens(running: &Running) -> bool {
    running.board.snapshot().info.contains_key("admin")
}

#[tokio::test]
async fn a_dead_model_server_changes_the_status_and_never_liveness() {
    let world = world(Duration::from_millis(5)).await;
    world.vllm.faults().set_engine(EngineState::Dead);
    world.produce(0..20, plain);
    let running = world.start(&[LISTENS]);
    eventually("the outage is told", || running.hold("llm").is_some()).await;
    assert_eq!(get(&running, "/livez"), (200, "alive\n".to_owned()));
    let (ready, why) = get(&running, "/readyz");
    assert_eq!(ready, 503);
    assert!(why.contains("on hold: llm"), "{why}");
    eventually("what limits is told", || {
        let (_, page) = get(&running, "/status");
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        page["state"] == "holding"
            && page["limiting"]["factor"] == "breaker"
            && page["alive"] == true
    })
    .await;
    let (_, metrics) = get(&running, "/metrics");
    for line in [
        r#"klp_limiting_factor{factor="breaker"} 1"#,
        r#"klp_limiting_factor{factor="order"} 0"#,
        r#"klp_state{state="holding"} 1"#,
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}\n{metrics}"
        );
    }
    world.vllm.faults().set_engine(EngineState::Serving);
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("it is ready", || get(&running, "/readyz").0 == 200).await;
    running.drain().await;
}

fn stalled(running: &Running) -> Vec<(i32, i64, Option<Stage>)> {
    let stalled = running.board.snapshot().stalled.into_iter();
    stalled
        .map(|stall| (stall.partition, stall.offset.value(), stall.stage))
        .collect()
}

#[tokio::test]
async fn a_partition_whose_document_hangs_is_named_with_the_offset_until_it_goes_on() {
    let world = world(Duration::from_millis(5)).await;
    let hangs = Fault::new(Action::HangForEver).on_prompt("Document 7 reports");
    world.vllm.faults().push(hangs);
    world.produce(0..20, plain);
    // The call ends by its own timeout, and the next one is answered.
    let running = world.start(&[LISTENS, "pipeline.stall_after=2s", "llm.timeout=6s"]);
    let named = (0, 7, Some(Stage::WithModel));
    eventually("it is named", || stalled(&running) == [named]).await;
    let line = r#"klp_partition_stalled{topic="docs",partition="0"} 1"#;
    assert!(get(&running, "/metrics").1.contains(line));
    assert_eq!(get(&running, "/livez").0, 200);
    assert_eq!(get(&running, "/readyz").0, 200, "the others are worked on");
    eventually("it goes on", || stalled(&running).is_empty()).await;
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    world.assert_all_have_results(20);
}

#[tokio::test]
async fn neither_a_held_model_server_nor_a_slow_one_is_taken_for_a_stall() {
    let world = world(Duration::from_millis(400)).await;
    world.produce(0..12, plain);
    let running = world.start(&["pipeline.stall_after=2500ms", "llm.concurrency=1"]);
    eventually("some results", || world.results().len() > 1).await;
    world.vllm.stop_listener().await;
    eventually("the outage is told", || running.hold("llm").is_some()).await;
    for _ in 0..50 {
        assert_eq!(stalled(&running), [], "held");
        sleep(Duration::from_millis(100)).await;
    }
    world.vllm.start_listener().await.unwrap();
    while !world.is_all_committed() {
        assert_eq!(stalled(&running), [], "slow but moving");
        sleep(Duration::from_millis(50)).await;
    }
    running.drain().await;
}

#[tokio::test]
async fn promtool_has_nothing_to_say_against_the_metrics() {
    let world = world(Duration::from_millis(5)).await;
    world.produce(0..250, plain);
    world.put(0, Some("broken"), Some("{"));
    let running = world.start(&[
        LISTENS,
        "llm.requests_per_minute=100000",
        "drift.window_documents=20",
        "drift.reference_documents=200",
    ]);
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("it listens", || listens(&running)).await;
    // The last answers are counted once their commit is acknowledged, so after a reader sees it.
    eventually("the metrics are complete", || {
        let page = get(&running, "/metrics").1;
        ["klp_limited_seconds_total", "klp_drift_statistic"]
            .iter()
            .all(|family| page.contains(family))
    })
    .await;
    let (_, page) = get(&running, "/metrics");
    running.drain().await;
    for family in [
        "klp_documents_total",
        "klp_dead_letters_total",
        "klp_partition_high_watermark",
        "klp_partition_commit_offset",
        "klp_partition_unfinished_records",
        "klp_partition_oldest_open_seconds",
        "klp_partition_in_flight_documents",
        "klp_partition_stalled",
        "klp_llm_calls_total",
        "klp_llm_prompt_tokens_total",
        "klp_llm_completion_tokens_total",
        "klp_llm_time_per_output_token_seconds_bucket",
        "klp_llm_concurrency_limit",
        "klp_llm_breaker",
        "klp_llm_budget_left",
        "klp_kafka_step_duration_seconds_bucket",
        "klp_flush_duration_seconds_bucket",
        "klp_read_ahead_bytes",
        "klp_read_ahead_bound_bytes",
        "klp_limiting_factor",
        "klp_drift_reference_documents",
        "klp_drift_generations_total",
        "klp_drift_threshold",
        "klp_drift_shifted",
        "klp_drift_alarms_total",
        "klp_drift_statistic",
    ] {
        let begins = |line: &str| {
            let rest = line.strip_prefix(family);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
        };
        assert!(page.lines().any(begins), "no {family} in:\n{page}");
    }

    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("skipped: promtool is not installed (Debian's package prometheus has it)");
        return;
    };
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(page.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{said}\n{page}"
    );
}
