use super::*;
use crate::telemetry::registry::{Metrics, new_registry};
use crate::types::Offset;

fn board() -> (StatusBoard, Metrics) {
    let mut registry = new_registry();
    let board = StatusBoard::new(&mut registry);
    (board, Metrics::new(registry))
}

fn partition(partition: i32) -> PartitionStatus {
    PartitionStatus {
        topic: "docs".to_owned(),
        partition,
        owner_epoch: 2,
        next_fetch_offset: Offset::new(90),
        commit_offset: Offset::new(40),
        high_watermark: Offset::new(100),
        open: 50,
        queued: 37,
        in_flight: 8,
        waiting_for_turn: 3,
        appending: 6,
        unacknowledged: 4,
        append_ms: Some(7),
        head: Some(Head {
            offset: Offset::new(40),
            stage: Stage::Appending,
        }),
        oldest_open_ms: Some(1200),
        commit_bytes: 230,
        waits_for_room: false,
        read_ahead_waits: None,
    }
}

fn result(ms: u64) -> ResultCount {
    ResultCount {
        truncated: false,
        prompt_tokens: 100,
        completion_tokens: 20,
        llm: Duration::from_millis(ms),
        total: Duration::from_millis(ms * 2),
    }
}

#[test]
fn running_with_a_hold_is_holding() {
    let (board, _) = board();
    assert_eq!(board.snapshot().state, RunState::Starting);
    board.set_state(RunState::Running);
    board.set_hold("llm", "401 (llm.api_key)");
    assert_eq!(board.snapshot().state, RunState::Holding);
    board.clear_hold("llm");
    assert_eq!(board.snapshot().state, RunState::Running);
    board.set_hold("kafka", "unreachable");
    board.set_state(RunState::Draining);
    assert_eq!(board.snapshot().state, RunState::Draining);
}

#[test]
fn a_hold_keeps_its_time_when_its_reason_changes() {
    let (board, _) = board();
    assert!(board.set_hold("llm", "401"));
    assert!(
        !board.set_hold("llm", "401"),
        "the same reason is not a new one"
    );
    let since = board.holds()[0].since;
    assert!(board.set_hold("llm", "503"));
    let holds = board.holds();
    assert_eq!(
        (
            holds.len(),
            holds[0].reason.as_str(),
            holds[0].since == since
        ),
        (1, "503", true)
    );
    assert_eq!(board.clear_hold("llm").map(|hold| hold.since), Some(since));
    assert_eq!(board.clear_hold("llm"), None);
}

#[test]
fn partitions_are_sorted_and_can_be_forgotten() {
    let (board, _) = board();
    board.set_partition(partition(10));
    board.set_partition(partition(2));
    let order: Vec<i32> = board
        .snapshot()
        .partitions
        .iter()
        .map(|p| p.partition)
        .collect();
    assert_eq!(order, [2, 10]);
    board.remove_partition(&TopicPartition::new("docs", 2));
    assert_eq!(board.snapshot().partitions, [partition(10)]);
}

/// The three readers of the board must agree.
#[test]
fn status_metrics_and_summary_tell_the_same() {
    let (board, metrics) = board();
    board.count_result(result(50));
    board.count_result(ResultCount {
        truncated: true,
        ..result(100)
    });
    board.count_of_topic("docs", true);
    board.count_of_topic("docs", true);
    board.count_dead_letter(DeadLetterReason::InvalidJson);
    board.count_of_topic("docs", false);
    board.count_skipped();
    board.count_retries(3);
    board.set_partition(partition(0));
    board.set_hold("llm", "503");

    let status = board.snapshot();
    assert_eq!(status.totals, board.summary().totals);
    assert_eq!(
        (
            status.totals.processed,
            status.totals.truncated,
            status.totals.failed()
        ),
        (2, 1, 1)
    );
    let text = metrics.encode().unwrap();
    for line in [
        r#"klp_documents_total{status="ok"} 1"#,
        r#"klp_documents_total{status="truncated"} 1"#,
        r#"klp_topic_documents_total{topic="docs",end="result"} 2"#,
        r#"klp_topic_documents_total{topic="docs",end="dead_letter"} 1"#,
        r#"klp_dead_letters_total{reason="invalid_json"} 1"#,
        r#"klp_dead_letters_total{reason="result_too_large"} 0"#,
        "klp_records_skipped_total 1",
        "klp_document_duration_seconds_count 2",
        r#"klp_partition_lag_records{topic="docs",partition="0"} 60"#,
        r#"klp_partition_commit_offset{topic="docs",partition="0"} 40"#,
        r#"klp_partition_open_documents{topic="docs",partition="0"} 50"#,
        r#"klp_partition_unfinished_records{topic="docs",partition="0"} 64"#,
        r#"klp_partition_appending_documents{topic="docs",partition="0"} 6"#,
        r#"klp_partition_stalled{topic="docs",partition="0"} 0"#,
        r#"klp_partition_in_flight_documents{topic="docs",partition="0"} 8"#,
        r#"klp_partition_oldest_open_seconds{topic="docs",partition="0"} 1.2"#,
        r#"klp_hold{what="llm"} 1"#,
        r#"klp_state{state="starting"} 1"#,
        r#"klp_state{state="running"} 0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn status_is_json_with_plain_offsets() {
    let (board, _) = board();
    board.set_info("driver", "rskafka");
    board.set_partition(partition(0));
    let json = serde_json::to_value(board.snapshot()).unwrap();
    assert_eq!(json["state"], "starting");
    assert_eq!(json["info"]["driver"], "rskafka");
    assert_eq!(json["partitions"][0]["commit_offset"], 40);
    assert_eq!(json["latency"]["llm"]["p95_ms"], 0);
}

#[tokio::test(start_paused = true)]
async fn the_summary_tells_rate_tokens_and_latency() {
    let (board, _) = board();
    tokio::time::advance(Duration::from_secs(60)).await;
    board.set_state(RunState::Running);
    tokio::time::advance(Duration::from_secs(2)).await;
    for _ in 0..6 {
        board.count_result(result(50));
    }
    board.count_dead_letter(DeadLetterReason::EmptyDocument);
    board.count_dead_letter(DeadLetterReason::InvalidJson);
    for _ in 0..3 {
        board.count_flush(400);
    }
    assert_eq!(
        board.summary().to_string(),
        "processed   6 documents in 2.0 s, 4.0 per second (0 truncated)\n\
         failed      2 dead letters: empty_document 1, invalid_json 1\n\
         skipped     0 records without content\n\
         retries     0\n\
         tokens      600 prompt, 120 completion\n\
         commits     3, 1.5 per second, 150 bytes per document\n\
         latency     model p50 50 ms, p95 50 ms, max 50 ms; document p50 100 ms, p95 100 ms, max 100 ms"
    );
}

#[test]
fn a_run_without_time_has_no_rate() {
    let summary = Summary {
        totals: Totals {
            processed: 5,
            ..Totals::default()
        },
        latency: Latency::default(),
        elapsed: Duration::ZERO,
    };
    assert_eq!(summary.documents_per_second_tenths(), 0);
}

/// What limits is looked at once a second; a pause, and its end, show before the next look.
#[test]
fn a_pause_is_what_limits_at_once() {
    let board = StatusBoard::new(&mut new_registry());
    board.set_state(RunState::Running);
    let limiting = |factor| crate::telemetry::limiting::Limiting {
        factor,
        detail: String::new(),
        blocker: None,
        since: Timestamp::UNIX_EPOCH,
        last_minute_percent: BTreeMap::new(),
        last_minute_documents: 0,
    };
    let shown = || board.snapshot().limiting.map(|limiting| limiting.factor);
    board.set_limiting(limiting(Factor::InputEmpty), Duration::ZERO);
    board.set_paused(true);
    assert_eq!(shown(), Some(Factor::Paused));
    board.set_limiting(limiting(Factor::Paused), Duration::ZERO);
    board.set_paused(false);
    assert_eq!(shown(), None, "not known before the next look");
}
