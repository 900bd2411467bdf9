//! Signals, the drain and its deadline, and what is told at the end.

use std::time::Duration;

use kafka_llm_processor::sandbox::vllm::{Action, Fault};
use tokio::time::Instant;

use crate::metrics;
use crate::process::{processor, sandbox_model};

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
