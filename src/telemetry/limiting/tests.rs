use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::super::status::{Head, Stage};
use super::*;

/// A server with room for eight calls, of which `in_flight` run.
fn endpoint(in_flight: u64) -> EndpointStatus {
    EndpointStatus {
        url: "http://a:1".to_owned(),
        breaker: "closed",
        held: None,
        limit: 8,
        in_flight,
        queued_there: None,
        outstanding_tokens: 0,
    }
}

fn model(in_flight: u64) -> ModelStatus {
    ModelStatus {
        endpoints: vec![endpoint(in_flight)],
        ..ModelStatus::default()
    }
}

/// A partition that is read to its end and has nothing to do.
fn idle(partition: i32) -> PartitionStatus {
    PartitionStatus {
        topic: "docs".to_owned(),
        partition,
        owner_epoch: 1,
        next_fetch_offset: Offset::new(100),
        commit_offset: Offset::new(100),
        high_watermark: Offset::new(100),
        open: 0,
        queued: 0,
        in_flight: 0,
        waiting_for_turn: 0,
        appending: 0,
        unacknowledged: 0,
        append_ms: None,
        head: None,
        oldest_open_ms: None,
        commit_bytes: 0,
        waits_for_room: false,
        read_ahead_waits: None,
    }
}

/// The same with a document at offset 17 that is with the model, and others.
fn busy(in_flight: u64, queued: u64, waiting_for_turn: u64) -> PartitionStatus {
    PartitionStatus {
        commit_offset: Offset::new(17),
        open: in_flight + queued + waiting_for_turn,
        queued,
        in_flight,
        waiting_for_turn,
        head: Some(Head {
            offset: Offset::new(17),
            stage: Stage::WithModel,
        }),
        oldest_open_ms: Some(12_000),
        ..idle(0)
    }
}

fn unread(partition: PartitionStatus) -> PartitionStatus {
    PartitionStatus {
        high_watermark: Offset::new(1_000),
        ..partition
    }
}

fn full(partition: PartitionStatus) -> PartitionStatus {
    PartitionStatus {
        waits_for_room: true,
        ..unread(partition)
    }
}

const fn snapshot<'a>(model: &'a ModelStatus, partitions: &'a [PartitionStatus]) -> Snapshot<'a> {
    Snapshot {
        state: RunState::Running,
        holds: &[],
        model,
        read_ahead: ReadAheadStatus {
            records: 64,
            records_max: 64,
            bytes: 70_000,
            bytes_max: 1_000_000,
        },
        partitions,
    }
}

fn judged(model: &ModelStatus, partition: PartitionStatus) -> Verdict {
    judge(&snapshot(model, &[partition]))
}

#[track_caller]
fn told(verdict: &Verdict, factor: Factor, words: &[&str]) {
    assert_eq!(verdict.factor, factor, "{verdict:?}");
    for word in words {
        assert!(verdict.detail.contains(word), "{word}: {verdict:?}");
    }
}

fn offset(verdict: &Verdict) -> Option<i64> {
    let blocker = verdict.blocker.as_ref();
    blocker.map(|blocker| blocker.offset.value())
}

#[test]
fn before_it_runs_and_after_it_is_told_to_end_nothing_else_limits() {
    let model = model(8);
    let partitions = [busy(8, 40, 0)];
    let holds = [Hold {
        what: "kafka".to_owned(),
        reason: "no broker answers".to_owned(),
        since: Timestamp::UNIX_EPOCH,
    }];
    let at = |state| {
        judge(&Snapshot {
            state,
            holds: &holds,
            ..snapshot(&model, &partitions)
        })
    };
    told(&at(RunState::Starting), Factor::Starting, &["no broker"]);
    told(&at(RunState::Draining), Factor::Draining, &["8 documents"]);
}

#[test]
fn the_model_server_limits_while_its_slots_are_taken_and_somebody_waits() {
    let mut model = ModelStatus {
        waiting_for_slot: 40,
        limited_by: Some("llm.concurrency"),
        endpoints: vec![EndpointStatus {
            queued_there: Some(3),
            ..endpoint(8)
        }],
        ..ModelStatus::default()
    };
    let words = [
        "8 of 8 calls",
        "40 documents wait for a slot",
        "3 requests wait in the server",
        "llm.concurrency allows no more",
    ];
    let verdict = judged(&model, full(busy(8, 40, 0)));
    told(&verdict, Factor::ModelServer, &words);
    // One of two that is held gives no slots, and is told.
    model.endpoints.push(EndpointStatus {
        held: Some("down".to_owned()),
        ..endpoint(0)
    });
    let verdict = judged(&model, full(busy(8, 40, 0)));
    told(&verdict, Factor::ModelServer, &["1 of 2 servers are held"]);
    // A server with a limit of one is full with one call.
    model.endpoints = vec![EndpointStatus {
        limit: 1,
        ..endpoint(1)
    }];
    let verdict = judged(&model, busy(1, 40, 0));
    told(&verdict, Factor::ModelServer, &["1 of 1 calls"]);
}

#[test]
fn a_server_that_has_no_room_for_those_who_try_again_limits() {
    let model = ModelStatus {
        retrying: 6,
        throttled: 5,
        ..model(1)
    };
    let verdict = judged(&model, busy(7, 0, 2));
    told(&verdict, Factor::ModelServer, &["6 documents", "5 of them"]);
    // One that tries again and keeps a hundred from their turn is a matter of order.
    let model = ModelStatus {
        retrying: 1,
        throttled: 1,
        ..ModelStatus {
            endpoints: vec![endpoint(0)],
            ..ModelStatus::default()
        }
    };
    told(
        &judged(&model, busy(1, 0, 100)),
        Factor::Order,
        &["docs/0@17"],
    );
}

#[test]
fn a_budget_limits_whatever_else_waits_for_slots() {
    let model = ModelStatus {
        waiting_for_budget: 12,
        waiting_for_slot: 3,
        over_budget: Some("llm.tokens_per_minute is used up: 12 documents wait".to_owned()),
        ..model(0)
    };
    let verdict = judged(&model, busy(12, 3, 0));
    told(&verdict, Factor::Budget, &["llm.tokens_per_minute"]);
}

#[test]
fn the_breaker_limits_while_no_server_can_be_used() {
    let mut model = ModelStatus {
        held: Some("http://a:1: 401 (llm.api_key)".to_owned()),
        waiting_for_slot: 40,
        endpoints: vec![EndpointStatus {
            breaker: "open",
            held: Some("401".to_owned()),
            ..endpoint(8)
        }],
        ..ModelStatus::default()
    };
    let verdict = judged(&model, busy(8, 40, 0));
    told(&verdict, Factor::Breaker, &["48 documents", "llm.api_key"]);
    // With nothing to ask about it is not what is waited for.
    model.waiting_for_slot = 0;
    told(&judged(&model, idle(0)), Factor::InputEmpty, &[]);
    // A prompt that is refused holds the work while the server can be used.
    model.endpoints = vec![endpoint(1)];
    model.held = Some("document after document is refused".to_owned());
    told(
        &judged(&model, busy(1, 40, 0)),
        Factor::Breaker,
        &["refused"],
    );
}

#[test]
fn order_limits_while_answers_take_up_the_room_and_the_oldest_is_named() {
    let verdict = judged(&model(1), full(busy(1, 0, 63)));
    let words = [
        "63 answered documents",
        "docs/0@17",
        "is with the model",
        "12 s ago",
    ];
    told(&verdict, Factor::Order, &words);
    assert_eq!(offset(&verdict), Some(17));
    // Also at the end of the input, where room is left.
    told(
        &judged(&model(1), busy(1, 0, 9)),
        Factor::Order,
        &["docs/0@17"],
    );
    // Most is with the model: it is no matter of order that some have to wait.
    told(
        &judged(&model(3), busy(3, 0, 2)),
        Factor::InputEmpty,
        &["3 documents"],
    );
}

#[test]
fn the_commit_record_limits_where_it_stops_reading_ahead() {
    let partition = PartitionStatus {
        read_ahead_waits: Some("the commit record could come to 524289 bytes".to_owned()),
        ..unread(busy(1, 0, 0))
    };
    let verdict = judged(&model(1), partition);
    told(&verdict, Factor::CommitRecord, &["524289 bytes"]);
    assert_eq!(offset(&verdict), Some(17));
}

#[test]
fn appends_limit_where_outcomes_take_up_the_room_or_one_hangs() {
    let appending = |ms| PartitionStatus {
        appending: 30,
        unacknowledged: 20,
        append_ms: Some(ms),
        ..busy(1, 0, 0)
    };
    let verdict = judged(&model(1), full(appending(300)));
    told(
        &verdict,
        Factor::Appends,
        &["30 outcomes", "docs/0", "300 ms"],
    );
    assert_eq!(offset(&verdict), Some(17));
    // With room left, appends that come and go are no matter.
    told(
        &judged(&model(1), unread(appending(300))),
        Factor::Reading,
        &[],
    );
    told(&judged(&model(1), appending(300)), Factor::InputEmpty, &[]);
    let holds = [Hold {
        what: "results of docs/0".to_owned(),
        reason: "no broker answers".to_owned(),
        since: Timestamp::UNIX_EPOCH,
    }];
    let model = model(1);
    let partitions = [unread(appending(5_000))];
    let verdict = judge(&Snapshot {
        holds: &holds,
        ..snapshot(&model, &partitions)
    });
    told(&verdict, Factor::Appends, &["5000 ms", "no broker answers"]);
}

#[test]
fn the_bound_on_reading_ahead_limits_where_it_is_below_what_the_model_takes() {
    let verdict = judged(&model(4), full(busy(4, 0, 0)));
    let words = [
        "64 of 64 records (pipeline.read_ahead_records)",
        "4 of 8 calls",
    ];
    told(&verdict, Factor::ReadAhead, &words);
}

#[test]
fn reading_limits_where_there_is_room_and_more_to_read() {
    let holds = [Hold {
        what: "partition docs/0".to_owned(),
        reason: "snappy cannot be read".to_owned(),
        since: Timestamp::UNIX_EPOCH,
    }];
    let model = model(0);
    let partitions = [unread(idle(0)), unread(idle(10))];
    let verdict = judge(&Snapshot {
        holds: &holds,
        ..snapshot(&model, &partitions)
    });
    told(&verdict, Factor::Reading, &["1800 records"]);
    // What is told of one partition is not taken for what is told of another with a longer number.
    let verdict = judge(&Snapshot {
        holds: &holds,
        ..snapshot(&model, &partitions[..1])
    });
    told(&verdict, Factor::Reading, &["snappy cannot be read"]);
    let verdict = judge(&Snapshot {
        holds: &holds,
        ..snapshot(&model, &partitions[1..])
    });
    assert!(!verdict.detail.contains("snappy"), "{verdict:?}");
}

#[test]
fn an_empty_input_limits_where_everything_is_read_or_nothing_is_ours() {
    told(
        &judged(&model(0), idle(0)),
        Factor::InputEmpty,
        &["nothing is unread"],
    );
    let verdict = judge(&snapshot(&model(0), &[]));
    told(&verdict, Factor::InputEmpty, &["no partition"]);
}

fn look(factor: Factor) -> Verdict {
    verdict(factor, format!("by {factor}"))
}

/// Looks a second apart.
struct Looks {
    recent: Recent,
    begin: Instant,
    seconds: u64,
}

impl Looks {
    fn new() -> Self {
        Self {
            recent: Recent::new(),
            begin: Instant::now(),
            seconds: 0,
        }
    }

    /// Ten documents end each second.
    fn note(&mut self, factor: Factor) -> Limiting {
        self.seconds += 1;
        let now = self.begin + Duration::from_secs(self.seconds);
        let wall =
            Timestamp::UNIX_EPOCH + SignedDuration::from_secs(i64::try_from(self.seconds).unwrap());
        self.recent.note(now, wall, look(factor), self.seconds * 10)
    }
}

#[test]
fn a_moment_changes_nothing_and_some_seconds_do() {
    let mut looks = Looks::new();
    for _ in 0..30 {
        assert_eq!(looks.note(Factor::ModelServer).factor, Factor::ModelServer);
    }
    let shown = looks.note(Factor::InputEmpty);
    assert_eq!(shown.factor, Factor::ModelServer);
    assert_eq!(shown.detail, "by model_server");
    let turned = (0..10).find(|_| looks.note(Factor::InputEmpty).factor == Factor::InputEmpty);
    assert!(turned.is_some_and(|seconds| seconds < 6), "{turned:?}");
    let shown = looks.note(Factor::InputEmpty);
    let since =
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(31 + 1 + i64::from(turned.unwrap()));
    assert_eq!(shown.since, since);
}

#[test]
fn what_one_look_is_enough_for_is_shown_at_once_and_leaves_no_trace() {
    let mut looks = Looks::new();
    for _ in 0..9 {
        looks.note(Factor::ModelServer);
    }
    for _ in 0..9 {
        assert_eq!(looks.note(Factor::Breaker).factor, Factor::Breaker);
    }
    assert_eq!(looks.note(Factor::ModelServer).factor, Factor::ModelServer);
}

#[test]
fn shares_and_documents_are_those_of_the_last_minute() {
    let mut looks = Looks::new();
    for _ in 0..100 {
        looks.note(Factor::Budget);
    }
    for _ in 0..14 {
        looks.note(Factor::Order);
    }
    let shown = looks.note(Factor::Order);
    assert_eq!(shown.shares(), "budget 75 %, order 25 %");
    assert_eq!(shown.last_minute_documents, 600);
}
