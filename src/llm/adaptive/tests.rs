//! The controller against simulated servers whose limit it is not told, and its promises one by one.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "small numbers of a simulation"
)]

mod simulation;

use proptest::prelude::*;

use super::*;
use simulation::{Client, Server, Trace, run};

const SLOTS: &[usize] = &[4, 16, 64, 256, 1000];
/// Without the one that takes longest to simulate.
const FEWER_SLOTS: &[usize] = &[4, 16, 64, 256];
const BOUNDS: Bounds = Bounds {
    initial: 64,
    min: 1,
    max: 4096,
};
/// One second a call.
const EVEN: Server = Server {
    slots: 0,
    rise: 0.0,
    call_ms: 20.0,
    token_ms: 2.0,
    tokens: (400, 600),
    told: false,
    bound: None,
    intake: None,
};
/// From 30 ms to two seconds a call.
const MIXED: Server = Server {
    token_ms: 1.0,
    tokens: (10, 2000),
    ..EVEN
};
/// Tokens take up to twice as long when the batch is full.
const BATCHING: Server = Server {
    rise: 1.0,
    token_ms: 0.5,
    ..MIXED
};
/// 20 ms a call, some without a token.
const QUICK: Server = Server {
    call_ms: 10.0,
    token_ms: 1.0,
    tokens: (0, 20),
    ..EVEN
};
const NO_TOKENS: Server = Server {
    call_ms: 1000.0,
    tokens: (0, 0),
    ..EVEN
};

const fn told(server: Server) -> Server {
    Server {
        told: true,
        ..server
    }
}

/// With so many slots, and where it refuses a bound of `bound` times the slots.
fn sized(server: Server, slots: usize, bound: Option<f64>) -> Server {
    Server {
        slots,
        bound: bound.map(|factor| (slots as f64 * factor) as usize),
        ..server
    }
}

/// What the best fixed setting does, from one second to another, for each of `spans`.
fn best<const N: usize>(
    stages: &[(u64, Server)],
    slots: usize,
    seed: u64,
    spans: [(usize, usize); N],
) -> [f64; N] {
    let mut most = [0.0_f64; N];
    for factor in [1.0, 1.2, 1.5] {
        // Beyond the bound there is nothing but refusals.
        let bound = stages[0].1.bound.unwrap_or(usize::MAX);
        let limit = ((slots as f64 * factor).round() as usize).min(bound);
        let trace = run(stages, &[Client::Fixed(limit)], seed);
        for (most, (from, to)) in most.iter_mut().zip(spans) {
            *most = most.max(trace.work(from, to));
        }
    }
    most
}

struct Expected {
    slots: &'static [usize],
    /// Whether the limit follows capacity down within seconds.
    falls: bool,
    /// The average limit over the slots, at most, for 16 slots and more.
    overshoot: f64,
}

/// Thirty seconds to find the limit, thirty at it, sixty with half the slots, sixty with all of them again.
fn find_fall_and_recover(name: &str, server: Server, bound: Option<f64>, expected: &Expected) {
    for &slots in expected.slots {
        let whole = sized(server, slots, bound);
        let half = sized(server, slots / 2, bound);
        let stages = [(60, whole), (120, half), (180, whole)];
        let (mut found, mut recovered) = ((0.0, 0.0), (0.0, 0.0));
        // Few slots do little in half a minute, and luck weighs more.
        let seeds = if slots < 64 { 1..=4 } else { 1..=1 };
        for seed in seeds {
            let trace = run(&stages, &[Client::Adaptive(BOUNDS)], seed);
            found.0 += trace.work(30, 60);
            let [rate, later] = if slots < 64 {
                best(&stages, slots, seed, [(30, 60), (150, 180)])
            } else {
                // Many calls differ little from one half minute to the other.
                let [rate] = best(&stages[..1], slots, seed, [(30, 60)]);
                [rate, rate]
            };
            found.1 += rate;
            recovered.0 += trace.work(150, 180);
            recovered.1 += later;
            let overshoot = trace.limit(30, 60) / slots as f64;
            let capacity = (slots / 2) as f64 * bound.unwrap_or(1.0);
            // Two calls beside the slots are not too many, however few the slots.
            let fall = trace.falls_within(60, (capacity * 1.3).max(capacity + 2.0));
            println!(
                "{name}, {slots} slots, seed {seed}: within 5 % after {:?} s, limit {overshoot:.2} of the slots, fell in {fall:?} s",
                settled(&trace, rate / 30.0)
            );
            assert!(
                slots < 16 || overshoot <= expected.overshoot,
                "{name}, {slots} slots, seed {seed}: the limit is {overshoot} times the slots"
            );
            assert!(
                !expected.falls || fall.is_some_and(|seconds| seconds <= 5),
                "{name}, {slots} slots, seed {seed}: half the server was noticed after {fall:?} s"
            );
        }
        let (found, recovered) = (found.0 / found.1, recovered.0 / recovered.1);
        println!("{name}, {slots} slots: {found:.3} of the best, {recovered:.3} after recovery");
        assert!(found >= 0.95, "{name}, {slots} slots: {found} of the best");
        assert!(
            recovered >= 0.95,
            "{name}, {slots} slots: {recovered} of the best after recovery"
        );
    }
}

/// The first second from which five in a row did 95 % of `rate`.
fn settled(trace: &Trace, rate: f64) -> Option<usize> {
    (0..55).find(|second| trace.work(*second, second + 5) >= 0.95 * 5.0 * rate)
}

#[test]
fn the_best_is_found_where_the_queue_is_told() {
    let all = Expected {
        slots: SLOTS,
        falls: true,
        overshoot: 1.25,
    };
    let fewer = Expected {
        slots: FEWER_SLOTS,
        ..all
    };
    find_fall_and_recover("told, even", told(EVEN), None, &fewer);
    find_fall_and_recover("told, mixed", told(MIXED), None, &all);
    find_fall_and_recover("told, batching", told(BATCHING), None, &fewer);
    find_fall_and_recover("told, refusing", told(MIXED), Some(1.0), &fewer);
}

#[test]
fn the_best_is_found_by_refusals() {
    let all = Expected {
        slots: SLOTS,
        falls: true,
        overshoot: 1.5,
    };
    let fewer = Expected {
        slots: FEWER_SLOTS,
        ..all
    };
    find_fall_and_recover("refusing at the slots", MIXED, Some(1.0), &all);
    find_fall_and_recover("refusing half beyond", MIXED, Some(1.5), &fewer);
}

/// Invariant 5. Nothing is told and nothing is refused: the rate alone shows it. Too many in flight cost no throughput, so how far is bounded loosely;
/// a server of few slots that gets many calls answers so slowly that little is learnt in a minute.
#[test]
fn the_best_is_found_by_the_rate_alone() {
    let all = Expected {
        slots: SLOTS,
        falls: false,
        overshoot: 4.5,
    };
    let fewer = Expected {
        slots: FEWER_SLOTS,
        ..all
    };
    find_fall_and_recover("even", EVEN, None, &fewer);
    find_fall_and_recover("mixed", MIXED, None, &all);
    find_fall_and_recover("batching", BATCHING, None, &fewer);
    find_fall_and_recover("no tokens", NO_TOKENS, None, &fewer);
}

#[test]
fn the_best_is_found_for_calls_of_milliseconds() {
    for server in [QUICK, told(QUICK)] {
        for slots in [4, 16, 64] {
            let stages = [(30, sized(server, slots, None))];
            let trace = run(&stages, &[Client::Adaptive(BOUNDS)], 1);
            let [most] = best(&stages, slots, 1, [(10, 30)]);
            let share = trace.work(10, 30) / most;
            assert!(share >= 0.95, "{slots} slots: {share} of the best");
        }
    }
}

/// The bound of the module's page: calls of 20 s, 1,000 slots, 16 times the first limit. Four doublings and their proof, in windows of at
/// most two round trips.
#[test]
fn the_best_is_found_within_ten_round_trips() {
    for server in [EVEN, told(EVEN), MIXED, told(MIXED)] {
        let slow = Server {
            token_ms: server.token_ms * 20.0,
            ..server
        };
        let stages = [(600, sized(slow, 1000, None))];
        let trace = run(&stages, &[Client::Adaptive(BOUNDS)], 1);
        let [most] = best(&stages, 1000, 1, [(200, 600)]);
        let share = trace.work(200, 600) / most;
        assert!(share >= 0.95, "told {}: {share} of the best", server.told);
    }
}

/// Four clients, none of which knows of the others: together they do what one would, and none is left with little.
#[test]
fn clients_share_a_server() {
    for server in [told(MIXED), sized(MIXED, 0, Some(1.0))] {
        let bound = server.bound.map(|_| 1.0);
        let stages = [(120, sized(server, 256, bound))];
        let trace = run(&stages, &[Client::Adaptive(BOUNDS); 4], 1);
        let [most] = best(&stages, 256, 1, [(30, 120)]);
        let share = trace.work(30, 120) / most;
        assert!(share >= 0.95, "told {}: {share} of the best", server.told);
        let each: Vec<f64> = (0..4)
            .map(|client| trace.0[30..].iter().map(|s| s.each[client]).sum::<f64>())
            .map(|work| work / trace.work(30, 120))
            .collect();
        assert!(
            each.iter().all(|share| *share > 0.1),
            "told {}: {each:?}",
            server.told
        );
    }
}

/// Invariant 2: ten documents a second, a tenth of what the server could do.
#[test]
fn the_limit_stays_when_intake_is_small() {
    for server in [EVEN, told(EVEN)] {
        let server = Server {
            intake: Some(10),
            ..sized(server, 100, None)
        };
        let trace = run(&[(60, server)], &[Client::Adaptive(BOUNDS)], 1);
        assert!(trace.0.iter().all(|second| second.limit_last == 64));
    }
}

/// Invariant 3: answers become ten times longer, and short again; a token takes what it took.
#[test]
fn longer_answers_do_not_shrink_the_limit() {
    for server in [EVEN, told(EVEN)] {
        for slots in [16, 64, 256] {
            let short = Server {
                tokens: (40, 60),
                ..sized(server, slots, None)
            };
            let long = sized(server, slots, None);
            let stages = [(40, short), (100, long), (140, short)];
            let trace = run(&stages, &[Client::Adaptive(BOUNDS)], 1);
            let lowest = trace.0[10..].iter().map(|second| second.limit_min).min();
            // Without the queue told the limit goes a fifth down and up again, to compare.
            let floor = slots * 3 / 4;
            assert!(
                lowest.is_some_and(|limit| limit >= floor),
                "{lowest:?} of {slots}"
            );
            for (from, to) in [(45, 100), (105, 140)] {
                let limit = trace.limit(from, to) / slots as f64;
                assert!(limit >= 1.0, "{limit} of {slots}");
            }
        }
    }
}

fn sample(running: usize) -> Sample {
    Sample {
        elapsed: Duration::from_secs(1),
        prompt_tokens: 100,
        completion_tokens: 100,
        waiting: None,
        running,
    }
}

/// Invariant 4.
#[test]
fn a_burst_of_refusals_cuts_once() {
    let start = Instant::now();
    let mut controller = Controller::new(BOUNDS, start);
    let at = |ms: u64| start + Duration::from_millis(ms);
    let took = Duration::from_millis(500);
    controller.refused(at(500), took);
    let cut = controller.limit();
    assert!(cut < 64);
    for ms in 500..1000 {
        controller.refused(at(ms), took);
        assert_eq!(
            controller.limit(),
            cut,
            "sent before the cut, refused at {ms} ms"
        );
    }
    controller.refused(at(1000), took);
    assert!(controller.limit() < cut, "sent after the cut");
}

/// A server takes 60: growth went to 63, half way back is 61, and the one call too many must not be refused again and again.
#[test]
fn growth_beyond_a_bound_is_taken_back_at_once() {
    let start = Instant::now();
    let mut controller = Controller {
        limit: 63,
        good: 59,
        ..Controller::new(BOUNDS, start)
    };
    let mut refused = |ms: u64| {
        controller.refused(start + Duration::from_millis(ms), Duration::from_millis(1));
        controller.limit()
    };
    assert_eq!(refused(500), 61);
    assert_eq!(refused(501), 56, "sent after the first cut");
    // What was good is not given up at once: a burst passes.
    assert_eq!(refused(502), 56);
    assert_eq!(refused(600), 56);
    assert_eq!(refused(601), 44);
}

#[test]
fn failures_give_no_growth() {
    let start = Instant::now();
    let grown = |failures: usize| {
        let mut controller = Controller::new(BOUNDS, start);
        for _ in 0..failures {
            controller.failed();
        }
        for number in 0..64 {
            let now = start + Duration::from_millis(1000 + number);
            controller.answered(now, sample(64));
        }
        controller.limit() > 64
    };
    assert!(grown(0));
    assert!(grown(3));
    assert!(!grown(30));
}

#[test]
fn an_outage_halves_the_limit_and_one_window_wins_it_back() {
    let start = Instant::now();
    let mut controller = Controller::new(BOUNDS, start);
    controller.reset(start);
    assert_eq!(controller.limit(), 32);
    for number in 0..100 {
        let now = start + Duration::from_millis(1000 + number);
        controller.answered(now, sample(controller.limit()));
    }
    assert!(controller.limit() >= 64);
}

#[derive(Debug, Clone)]
enum Told {
    Answered(u64, u64, Option<f64>, usize),
    Refused(u64),
    Failed,
    Reset,
}

fn anything() -> impl Strategy<Value = Told> {
    let waiting = prop_oneof![
        Just(None),
        any::<f64>().prop_map(Some),
        (0.0..500.0).prop_map(Some)
    ];
    let time = prop_oneof![0..1000_u64, any::<u32>().prop_map(u64::from)];
    prop_oneof![
        50 => (time, prop_oneof![0..2000_u64, any::<u64>()], waiting, 0..300_usize)
            .prop_map(|(ms, tokens, waiting, running)| Told::Answered(ms, tokens, waiting, running)),
        2 => (0..1000_u64).prop_map(Told::Refused),
        2 => Just(Told::Failed),
        1 => Just(Told::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Invariant 1, also for bounds that make no sense.
    #[test]
    fn the_limit_stays_within_its_bounds(
        initial in 0..300_usize, min in 0..100_usize, max in 0..300_usize,
        // Half of the calls are told as if the limit was reached, or nothing would ever change.
        told in prop::collection::vec((anything(), any::<bool>(), 0..200_u64), 0..2000),
    ) {
        let mut now = Instant::now();
        let mut controller = Controller::new(Bounds { initial, min, max }, now);
        let within = min.max(1)..=max.max(min).max(1);
        prop_assert!(within.contains(&controller.limit()));
        for (told, reached, passes) in told {
            now += Duration::from_millis(passes);
            match told {
                Told::Answered(ms, tokens, waiting, running) => controller.answered(now, Sample {
                    elapsed: Duration::from_millis(ms),
                    prompt_tokens: tokens,
                    completion_tokens: tokens,
                    waiting,
                    running: if reached { controller.limit() } else { running },
                }),
                Told::Refused(ms) => controller.refused(now, Duration::from_millis(ms)),
                Told::Failed => controller.failed(),
                Told::Reset => controller.reset(now),
            }
            prop_assert!(within.contains(&controller.limit()), "{} in {within:?}", controller.limit());
        }
    }
}
