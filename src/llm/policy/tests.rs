use super::*;

const DEADLINE: Duration = Duration::from_secs(60);

fn history() -> History {
    History::new(Policy::new(&LlmConfig {
        attempts: 3,
        deadline: DEADLINE,
        timeout: Duration::from_secs(10),
        retry_backoff_initial: Duration::from_millis(100),
        retry_backoff_max: Duration::from_secs(1),
        retry_after_max: Duration::from_secs(20),
        ..LlmConfig::default()
    }))
}

fn failure(fault: Fault) -> Failure {
    Failure {
        fault,
        detail: "it failed".to_owned(),
        status: None,
    }
}

/// A moment, in seconds after the start.
fn at(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

fn succeeded(moment: Instant) -> View {
    View {
        last_success: Some(moment),
        ..View::default()
    }
}

/// Fails `history` once; the call took a second.
fn fail(history: &mut History, fault: Fault, view: View) -> Decision {
    history.decide(&failure(fault), Duration::from_secs(1), view)
}

fn is_retry(decision: &Decision, costs: bool) -> bool {
    matches!(decision, Decision::Retry { costs_attempt, .. } if *costs_attempt == costs)
}

#[tokio::test(start_paused = true)]
async fn spent_attempts_give_a_document_up_only_while_others_succeed() {
    let start = Instant::now();
    for (view, expected) in [
        (
            succeeded(at(start, 5)),
            Decision::DeadLetter(DeadLetterReason::AttemptsExhausted),
        ),
        // Before this document's first attempt: says nothing about now.
        (succeeded(at(start, 1)), Decision::Hold),
        (View::default(), Decision::Hold),
        (
            View {
                held: true,
                ..succeeded(at(start, 5))
            },
            Decision::Hold,
        ),
    ] {
        let mut history = history();
        history.begin(at(start, 2), View::default());
        for _ in 0..2 {
            let decision = fail(&mut history, Fault::Transient, View::default());
            assert!(is_retry(&decision, true), "{decision:?}");
        }
        assert_eq!(fail(&mut history, Fault::Transient, view), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_spent_document_is_judged_again_when_the_probe_has_succeeded() {
    let start = Instant::now();
    let mut history = history();
    history.begin(start, View::default());
    for _ in 0..2 {
        fail(&mut history, Fault::Unreadable, View::default());
    }
    let view = View::default();
    assert_eq!(fail(&mut history, Fault::Unreadable, view), Decision::Hold);
    assert_eq!(
        history.resume(succeeded(at(start, 9))),
        Decision::DeadLetter(DeadLetterReason::InvalidResponse)
    );
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_outage_gives_the_attempts_back() {
    let start = Instant::now();
    let mut history = history();
    history.begin(start, View::default());
    for _ in 0..3 {
        fail(&mut history, Fault::Transient, View::default());
    }
    let after = View {
        outages: 1,
        ..succeeded(at(start, 9))
    };
    assert!(is_retry(&history.resume(after), false));
    history.begin(at(start, 10), after);
    for _ in 0..2 {
        assert!(is_retry(&fail(&mut history, Fault::Transient, after), true));
    }
    // The probe that ended the outage says nothing about what came after it.
    assert_eq!(fail(&mut history, Fault::Transient, after), Decision::Hold);
}

#[tokio::test(start_paused = true)]
async fn an_outage_during_a_retry_wait_gives_the_attempts_back_too() {
    let start = Instant::now();
    let mut history = history();
    history.begin(start, View::default());
    for _ in 0..2 {
        fail(&mut history, Fault::Transient, View::default());
    }
    let after = View {
        outages: 1,
        ..succeeded(at(start, 9))
    };
    history.begin(at(start, 10), after);
    assert!(is_retry(&fail(&mut history, Fault::Transient, after), true));
}

#[tokio::test(start_paused = true)]
async fn capacity_costs_neither_attempt_nor_deadline_however_often() {
    let mut history = history();
    let start = Instant::now();
    history.begin(start, View::default());
    let busy = Fault::Capacity { retry_after: None };
    for _ in 0..500 {
        let decision = fail(&mut history, busy, succeeded(at(start, 1)));
        assert!(is_retry(&decision, false), "{decision:?}");
    }
    assert_eq!(history.timeout(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_followed_capped_and_jittered() {
    for (asked, least) in [(5, 5), (3_600, 20)] {
        let mut history = history();
        history.begin(Instant::now(), View::default());
        let busy = Fault::Capacity {
            retry_after: Some(Duration::from_secs(asked)),
        };
        let Decision::Retry { delay, .. } = fail(&mut history, busy, View::default()) else {
            panic!("not retried")
        };
        let least = Duration::from_secs(least);
        assert!(
            delay > least && delay <= least + Duration::from_secs(1),
            "{delay:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_while_the_work_is_held_costs_nothing() {
    let held = View {
        held: true,
        ..View::default()
    };
    for fault in [
        Fault::Transient,
        Fault::TimedOut,
        Fault::Aborted,
        Fault::Disconnected,
        Fault::Unreadable,
        Fault::Endpoint,
    ] {
        let mut history = history();
        let start = Instant::now();
        history.begin(start, View::default());
        for _ in 0..10 {
            assert_eq!(fail(&mut history, fault, held), Decision::Hold);
            assert!(matches!(
                history.resume(succeeded(at(start, 3))),
                Decision::Retry { .. }
            ));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_fault_never_gives_a_document_up_and_does_not_spin() {
    let start = Instant::now();
    let fine = succeeded(at(start, 1));
    let mut history = history();
    history.begin(start, View::default());
    let mut waited = Duration::ZERO;
    for _ in 0..100 {
        assert_eq!(fail(&mut history, Fault::Endpoint, fine), Decision::Hold);
        let Decision::Retry { delay, .. } = history.resume(fine) else {
            panic!("given up")
        };
        waited += delay;
    }
    assert!(waited > Duration::from_secs(10), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_is_the_documents_fault_only_while_others_are_accepted() {
    let start = Instant::now();
    let mut history = history();
    history.begin(at(start, 2), View::default());
    assert_eq!(
        fail(&mut history, Fault::Request, succeeded(at(start, 1))),
        Decision::Hold
    );
    assert_eq!(
        history.resume(succeeded(at(start, 3))),
        Decision::DeadLetter(DeadLetterReason::RequestRejected)
    );
    let mut other = self::history();
    other.begin(at(start, 2), View::default());
    assert_eq!(
        fail(&mut other, Fault::Request, succeeded(at(start, 3))),
        Decision::DeadLetter(DeadLetterReason::RequestRejected)
    );
    // What succeeded while its own call ran says nothing about an engine that may have died since.
    let mut beside = self::history();
    beside.begin(at(start, 2), View::default());
    assert_eq!(
        fail(&mut beside, Fault::Request, succeeded(at(start, 2))),
        Decision::Hold
    );
    // The probe was refused as well, until the settings were changed: the document is asked about again.
    let mut held = self::history();
    held.begin(at(start, 2), View::default());
    assert_eq!(
        fail(&mut held, Fault::Request, View::default()),
        Decision::Hold
    );
    let after = View {
        outages: 1,
        ..succeeded(at(start, 3))
    };
    assert!(is_retry(&held.resume(after), false));
}

#[tokio::test(start_paused = true)]
async fn the_documents_own_faults_give_it_up_at_once() {
    for (fault, reason) in [
        (Fault::TooLong, DeadLetterReason::ContextLengthExceeded),
        (
            Fault::Document(DeadLetterReason::RequestRejected),
            DeadLetterReason::RequestRejected,
        ),
    ] {
        let mut history = history();
        history.begin(Instant::now(), View::default());
        assert_eq!(
            fail(&mut history, fault, View::default()),
            Decision::DeadLetter(reason)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn one_closed_connection_is_free_and_the_next_is_not() {
    let mut history = history();
    history.begin(Instant::now(), View::default());
    let view = View::default();
    assert_eq!(
        fail(&mut history, Fault::Disconnected, view),
        Decision::Retry {
            delay: Duration::ZERO,
            costs_attempt: false
        }
    );
    assert!(is_retry(
        &fail(&mut history, Fault::Disconnected, view),
        true
    ));
    assert!(is_retry(
        &fail(&mut history, Fault::Disconnected, view),
        true
    ));
    assert_eq!(
        fail(&mut history, Fault::Disconnected, view),
        Decision::Hold
    );
}

#[tokio::test(start_paused = true)]
async fn the_timeout_grows_by_half_up_to_four_times_and_ends_at_the_deadline() {
    let mut history = History::new(Policy::new(&LlmConfig {
        attempts: 100,
        deadline: Duration::from_secs(100_000),
        timeout: Duration::from_secs(8),
        ..LlmConfig::default()
    }));
    history.begin(Instant::now(), View::default());
    let mut timeouts = Vec::new();
    for _ in 0..6 {
        timeouts.push(history.timeout().as_secs());
        fail(&mut history, Fault::TimedOut, View::default());
    }
    assert_eq!(timeouts, [8, 12, 18, 27, 32, 32]);

    let mut short = self::history();
    short.begin(Instant::now(), View::default());
    short.decide(
        &failure(Fault::Transient),
        DEADLINE - Duration::from_secs(3),
        View::default(),
    );
    assert!(short.timeout() <= Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_passed_deadline_gives_a_document_up_only_while_others_succeed() {
    let start = Instant::now();
    for (view, expected) in [
        (
            succeeded(start + DEADLINE),
            Decision::DeadLetter(DeadLetterReason::DeadlineExceeded),
        ),
        (View::default(), Decision::Hold),
    ] {
        let mut history = history();
        history.begin(start, View::default());
        assert_eq!(
            history.decide(&failure(Fault::TimedOut), DEADLINE, view),
            expected
        );
    }
}
