use proptest::prelude::*;

use super::*;
use crate::types::DeadLetterReason;

impl Breaker {
    /// When it opened, while it is not closed.
    fn opened_at(&self) -> Option<Instant> {
        self.opening.as_ref().map(|opening| opening.at)
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// Faults that count as one of a row.
const TRANSIENT: [Fault; 6] = [
    Fault::Transient,
    Fault::Disconnected,
    Fault::TimedOut,
    Fault::Aborted,
    Fault::Unreadable,
    Fault::Empty,
];
/// Faults that say nothing about the server.
const HARMLESS: [Fault; 4] = [
    Fault::Capacity { retry_after: None },
    Fault::Request,
    Fault::Document(DeadLetterReason::RequestRejected),
    Fault::TooLong,
];

fn breaker() -> Breaker {
    Breaker::new("http://h:1 (LLM_URL)")
}

/// A breaker in `state`, with one failure short of a row when it is closed.
fn breaker_in(state: State, now: Instant) -> Breaker {
    let mut breaker = breaker();
    match state {
        State::Closed => {
            for _ in 1..FAILURES_TO_OPEN {
                let change = breaker.on_failure(now, now, Fault::Transient, "500");
                assert_eq!(change, Change::Nothing);
            }
        }
        State::Open => assert_eq!(breaker.open(now, "first"), Change::Opened),
        State::HalfOpen => {
            assert_eq!(breaker.open(now, "first"), Change::Opened);
            assert!(breaker.begin_probe(now));
        }
    }
    assert_eq!(breaker.state(), state);
    breaker
}

type Push = fn(&mut Breaker, Instant) -> Change;
/// The state after an event, and what it changed.
type Outcome = (State, Change);

/// The table on the module's page: an event, a second after the state began, and its outcome from each state.
fn table() -> [(Push, [(State, Outcome); 3]); 7] {
    use State::{Closed, HalfOpen, Open};
    let nothing = Change::Nothing;
    let stays = Change::StaysOpen {
        confirmed: true,
        explained: true,
    };
    let closed = Change::Closed {
        after: SECOND,
        confirmed: false,
    };
    let endpoint: Push = |b, now| b.on_failure(now, now, Fault::Endpoint, "refused");
    let tenth: Push = |b, now| b.on_failure(now, now, Fault::Transient, "500");
    let success: Push = |b, now| {
        b.on_success(now);
        Change::Nothing
    };
    let found: Push = |b, now| b.open(now, "found");
    let begin: Push = |b, now| {
        let due = b.probe_due();
        assert_eq!(b.begin_probe(now), due.is_some());
        Change::Nothing
    };
    let failed: Push = |b, now| b.probe_failed(now, "worse", SECOND);
    let went_well: Push = |b, now| b.probe_succeeded(now);
    let row = |closed, open, half_open| [(Closed, closed), (Open, open), (HalfOpen, half_open)];
    let opens = row((Open, Change::Opened), (Open, nothing), (HalfOpen, nothing));
    [
        (endpoint, opens),
        (tenth, opens),
        (found, opens),
        (
            success,
            row((Closed, nothing), (Open, nothing), (HalfOpen, nothing)),
        ),
        (
            begin,
            row((Closed, nothing), (HalfOpen, nothing), (HalfOpen, nothing)),
        ),
        (
            failed,
            row((Closed, nothing), (Open, nothing), (Open, stays)),
        ),
        (
            went_well,
            row((Closed, nothing), (Open, nothing), (Closed, closed)),
        ),
    ]
}

#[test]
fn every_state_answers_every_event_as_the_table_says() {
    for (event, outcomes) in table() {
        for (from, (to, change)) in outcomes {
            let began = Instant::now();
            let mut breaker = breaker_in(from, began);
            assert_eq!(event(&mut breaker, began + SECOND), change, "from {from:?}");
            assert_eq!(breaker.state(), to, "from {from:?}");
            assert_eq!(breaker.passes(), to == State::Closed);
            assert_eq!(breaker.reason().is_some(), to != State::Closed);
            assert_eq!(breaker.probe_due().is_some(), to == State::Open);
            let opened_at = match (from, to) {
                (_, State::Closed) => None,
                (State::Closed, _) => Some(began + SECOND),
                _ => Some(began),
            };
            assert_eq!(breaker.opened_at(), opened_at);
        }
    }
}

/// Invariant 1.
#[test]
fn each_transient_fault_counts_and_the_reason_names_the_row() {
    for fault in TRANSIENT {
        let now = Instant::now();
        let mut breaker = breaker_in(State::Closed, now);
        assert_eq!(
            breaker.on_failure(now, now, fault, "no answer"),
            Change::Opened
        );
        assert_eq!(
            breaker.reason(),
            Some("http://h:1 (LLM_URL) failed 10 times in a row, the last time: no answer")
        );
    }
}

/// Invariant 1.
#[test]
fn a_success_ends_the_row_and_a_harmless_fault_neither_counts_nor_ends_it() {
    let now = Instant::now();
    let mut breaker = breaker_in(State::Closed, now);
    breaker.on_success(now);
    for _ in 1..FAILURES_TO_OPEN {
        assert_eq!(
            breaker.on_failure(now, now, Fault::Empty, "empty"),
            Change::Nothing
        );
        for fault in HARMLESS {
            assert_eq!(breaker.on_failure(now, now, fault, "no"), Change::Nothing);
        }
    }
    assert_eq!(
        breaker.on_failure(now, now, Fault::Empty, "empty"),
        Change::Opened
    );
}

/// Invariant 2.
#[test]
fn calls_sent_before_it_closed_change_nothing_after_it() {
    let began = Instant::now();
    let mut breaker = breaker_in(State::HalfOpen, began);
    let closed = began + SECOND;
    assert_eq!(
        breaker.probe_succeeded(closed),
        Change::Closed {
            after: SECOND,
            confirmed: false
        }
    );
    let later = closed + SECOND;
    for fault in TRANSIENT.into_iter().cycle().take(50) {
        assert_eq!(
            breaker.on_failure(later, began, fault, "late"),
            Change::Nothing
        );
    }
    assert_eq!(
        breaker.on_failure(later, began, Fault::Endpoint, "late"),
        Change::Nothing
    );
    // A late success does not end a row of failures that are newer than it.
    for _ in 1..FAILURES_TO_OPEN {
        assert_eq!(
            breaker.on_failure(later, closed, Fault::Transient, "500"),
            Change::Nothing
        );
        breaker.on_success(began);
    }
    assert_eq!(
        breaker.on_failure(later, closed, Fault::Transient, "500"),
        Change::Opened
    );
}

/// Invariants 3 and 4.
#[test]
fn a_failed_probe_waits_and_keeps_the_moment_of_opening() {
    let began = Instant::now();
    let mut breaker = breaker_in(State::HalfOpen, began);
    let failed = began + SECOND;
    assert_eq!(
        breaker.probe_failed(failed, "first", 2 * SECOND),
        Change::StaysOpen {
            confirmed: true,
            explained: false
        }
    );
    assert_eq!(breaker.outages(), 1);
    assert_eq!(breaker.probe_due(), Some(failed + 2 * SECOND));
    assert!(!breaker.begin_probe(failed + SECOND));
    assert!(breaker.begin_probe(failed + 2 * SECOND));
    assert_eq!(
        breaker.probe_failed(failed + 3 * SECOND, "second", SECOND),
        Change::StaysOpen {
            confirmed: false,
            explained: true
        }
    );
    assert_eq!(breaker.outages(), 1, "one outage, however many probes");
    assert_eq!(breaker.reason(), Some("second"));
    assert_eq!(breaker.opened_at(), Some(began));
    assert!(breaker.begin_probe(failed + 4 * SECOND));
    assert_eq!(
        breaker.probe_succeeded(failed + 4 * SECOND),
        Change::Closed {
            after: 5 * SECOND,
            confirmed: true
        }
    );
}

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Success { late: bool },
    Failure { late: bool, fault: Fault },
    BeginProbe,
    ProbeFailed { wait: u64 },
    ProbeSucceeded,
}

fn event() -> impl Strategy<Value = Event> {
    let fault = prop_oneof![
        12 => proptest::sample::select(TRANSIENT.to_vec()),
        4 => proptest::sample::select(HARMLESS.to_vec()),
        1 => Just(Fault::Endpoint),
    ];
    prop_oneof![
        4 => (0_u64..4).prop_map(Event::Pass),
        1 => any::<bool>().prop_map(|late| Event::Success { late }),
        20 => (any::<bool>(), fault).prop_map(|(late, fault)| Event::Failure { late, fault }),
        4 => Just(Event::BeginProbe),
        2 => (0_u64..4).prop_map(|wait| Event::ProbeFailed { wait }),
        2 => Just(Event::ProbeSucceeded),
    ]
}

proptest! {
    /// Invariants 1 to 4 over any order of events, against what the events alone say.
    #[test]
    fn it_opens_and_closes_for_the_named_reasons_only(
        events in proptest::collection::vec(event(), 1..200),
    ) {
        let began = Instant::now();
        let mut now = began + SECOND;
        let mut breaker = breaker();
        // What was seen since it last closed, which `since` is.
        let (mut since, mut row, mut outages) = (began + SECOND, 0, 0);
        let (mut due, mut running) = (None, false);
        for event in events {
            let before = breaker.state();
            let opened_before = breaker.opened_at();
            // A late call was sent before the breaker closed, or before the test began.
            let sent = |late: bool| if late && breaker.closed_at.is_some() { began } else { now };
            match event {
                Event::Pass(seconds) => now += Duration::from_secs(seconds),
                Event::Success { late } => {
                    let sent = sent(late);
                    breaker.on_success(sent);
                    if before == State::Closed && sent >= since {
                        row = 0;
                    }
                    prop_assert_eq!(breaker.state(), before);
                }
                Event::Failure { late, fault } => {
                    let sent = sent(late);
                    let change = breaker.on_failure(now, sent, fault, "failed");
                    let judged = before == State::Closed && sent >= since;
                    if judged && TRANSIENT.contains(&fault) {
                        row += 1;
                    }
                    let opens = judged && (fault == Fault::Endpoint || row == FAILURES_TO_OPEN);
                    prop_assert_eq!(change == Change::Opened, opens);
                    if opens {
                        due = Some(now);
                        row = 0;
                    }
                }
                Event::BeginProbe => {
                    let may = !running && due.is_some_and(|due| due <= now);
                    prop_assert_eq!(breaker.begin_probe(now), may);
                    if may {
                        (due, running) = (None, true);
                    }
                }
                Event::ProbeFailed { wait } => {
                    let wait = Duration::from_secs(wait);
                    let change = breaker.probe_failed(now, "probe", wait);
                    prop_assert_eq!(change != Change::Nothing, running);
                    if running {
                        (due, running) = (Some(now + wait), false);
                    }
                    if matches!(change, Change::StaysOpen { confirmed: true, .. }) {
                        outages += 1;
                    }
                }
                Event::ProbeSucceeded => {
                    let change = breaker.probe_succeeded(now);
                    prop_assert_eq!(matches!(change, Change::Closed { .. }), running);
                    if running {
                        (since, row, running) = (now, 0, false);
                    }
                }
            }
            let expected = match (due, running) {
                (None, false) => State::Closed,
                (Some(_), _) => State::Open,
                (None, true) => State::HalfOpen,
            };
            prop_assert_eq!(breaker.state(), expected);
            prop_assert_eq!(breaker.probe_due(), due);
            prop_assert_eq!(breaker.outages(), outages);
            if opened_before.is_some() && breaker.opened_at().is_some() {
                prop_assert_eq!(breaker.opened_at(), opened_before);
            }
        }
    }
}
