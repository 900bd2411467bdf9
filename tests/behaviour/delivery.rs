//! Every document has a result that says where it came from; the commit offset never passes an unfinished record.

use std::time::Duration;

use kafka_llm_processor::app::RunEnd;
use kafka_llm_processor::records::result::ResultStatus;
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, VllmConfig};

use kafka_llm_processor::types::{Header, Record};

use crate::harness::{Flavour, GROUP, INPUT, World, eventually, json, plain};

/// rskafka has a connection for each.
#[tokio::test]
async fn many_partitions_are_not_left_to_rskafka() {
    if Flavour::current() != Flavour::Rskafka {
        return;
    }
    for (partitions, expected) in [(256, "rskafka"), (257, "wire")] {
        let world = World::new(partitions).await;
        world.produce(0..20, plain);
        let running = world.start(&["kafka.driver=auto"]);
        eventually("everything is committed", || world.is_all_committed()).await;
        let status = running.board.snapshot();
        running.drain().await;
        assert_eq!(status.info["driver"], expected);
        // The pool of our own connections keeps within 96 to a broker.
        let connections = world.broker.traffic().connections_opened;
        let is_one_for_each = connections > u64::try_from(partitions).unwrap();
        assert_eq!(is_one_for_each, expected == "rskafka", "{connections}");
    }
}

#[tokio::test]
async fn every_document_has_one_result_with_its_source() {
    let world = World::new(4).await;
    world.produce(0..200, plain);
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    let (end, summary) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    assert_eq!(summary.totals.processed, 200);

    let results = world.results();
    assert_eq!(results.len(), 200);
    for ((partition, offset), results) in &results {
        let [result] = results.as_slice() else {
            panic!("{} results", results.len())
        };
        let number = offset * 4 + i64::from(*partition);
        assert_eq!(result.document_id, format!("d{number}"));
        assert_eq!(result.status, ResultStatus::Ok);
        assert_eq!(result.source.topic, INPUT);
        assert_eq!(result.attempts, 1);
        assert!(result.usage.total_tokens > 0);
        let request = world.vllm.requests().into_iter().any(|request| {
            request.request_id.as_deref() == Some(&result.request_id)
                && request.prompt.contains(&format!("Document {number} "))
        });
        assert!(
            request,
            "request {} is in the server's log",
            result.request_id
        );
    }
}

#[tokio::test]
async fn the_bound_on_calls_in_flight_is_shared_by_all_partitions() {
    let latency = Latency::fixed(Duration::from_millis(20));
    let world = World::with_vllm(
        4,
        VllmConfig {
            latency,
            ..VllmConfig::default()
        },
    )
    .await;
    world.produce(0..120, plain);
    let running = world.start(&["llm.concurrency=7"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.vllm.peak_running(), 7);
}

/// One document that is never answered: the others go on, in any number, and only it is open.
#[tokio::test]
async fn the_commit_offset_stops_at_an_unfinished_record_and_its_ranges_tell_the_rest() {
    let world = World::new(1).await;
    world.produce(0..40, plain);
    world
        .vllm
        .faults()
        .push(Fault::new(Action::HangForEver).on_prompt("Document 7 "));
    let running = world.start(&["pipeline.order=completion"]);
    eventually("all but one are committed", || {
        world
            .commits(0)
            .last()
            .is_some_and(|commit| commit["done"] == serde_json::json!([[8, 40]]))
    })
    .await;
    assert_eq!(world.commit_offset(0), Some(7));
    running.kill().await;

    // The next run asks for that one alone.
    let calls = world.vllm.calls();
    let running = world.start(&["pipeline.order=completion"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    // The preflight of a run lists models; documents are calls.
    assert_eq!(world.vllm.calls() - calls, 1);
    assert!(world.results().values().all(|results| results.len() == 1));
}

#[tokio::test]
async fn a_result_is_durable_before_its_offset_is_committed() {
    let world = World::new(2).await;
    world.produce(0..60, plain);
    let held = world
        .broker
        .faults()
        .on(kafka_protocol::messages::ApiKey::Produce)
        .topic("results")
        .keep()
        .hold();
    let running = world.start(&[]);
    held.wait_for_hits(2).await;
    // Both partitions wait for their results to be acknowledged: nothing is claimed beyond the take-over.
    for partition in 0..2 {
        assert_eq!(world.commits(partition).len(), 1);
        assert_eq!(world.commit_offset(partition), Some(0));
    }
    held.release();
    held.remove();
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 60);
}

#[tokio::test]
async fn the_commit_offsets_are_mirrored_for_lag_tools() {
    let world = World::new(2).await;
    world.produce(0..10, plain);
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    for partition in 0..2 {
        assert_eq!(
            world.broker.committed_offset(GROUP, INPUT, partition),
            Some(5)
        );
    }
}

/// Compaction takes whole batches, and records out of batches: of the last one the end is told by its header alone, which rskafka drops.
#[tokio::test]
async fn gaps_that_compaction_left_are_stepped_over() {
    let world = World::new(1).await;
    world.produce(0..20, plain);
    let batch = (20..30).map(|number| Record {
        value: Some(plain(number).into()),
        timestamp_ms: 1_700_000_000_000,
        ..Record::default()
    });
    world.broker.append(INPUT, 0, batch.collect()).unwrap();
    for gap in [3..9, 24..30] {
        world.broker.punch_gap(INPUT, 0, gap).unwrap();
    }
    let running = world.start(&[]);
    eventually("lag reaches zero", || world.commit_offset(0) == Some(30)).await;
    running.drain().await;
    let offsets: Vec<_> = world
        .results()
        .into_keys()
        .map(|(_, offset)| offset)
        .collect();
    assert_eq!(offsets, (0..3).chain(9..24).collect::<Vec<_>>());
}

#[tokio::test]
async fn key_headers_and_trace_context_reach_the_result() {
    let world = World::new(1).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let record = Record {
        key: Some("the-key".into()),
        value: Some(json(1, "A report.").into()),
        headers: vec![Header::new("traceparent", traceparent)],
        timestamp_ms: 1_700_000_000_000,
    };
    world.broker.append(INPUT, 0, vec![record]).unwrap();
    let running = world.start(&[]);
    eventually("it is committed", || world.is_all_committed()).await;
    running.drain().await;
    let (_, _, written) = world.broker.records("results").remove(0);
    assert_eq!(written.key.as_deref(), Some(b"the-key".as_slice()));
    assert_eq!(written.header("traceparent").unwrap(), traceparent);
    let seen = world.vllm.requests();
    assert!(
        seen.iter()
            .any(|request| request.traceparent.as_deref() == Some(traceparent))
    );
}
