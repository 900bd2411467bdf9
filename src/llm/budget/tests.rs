use std::cell::Cell;
use std::collections::VecDeque;

use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{advance, sleep};

use super::*;
use crate::types::DeadLetterReason;

const MINUTE: Duration = Duration::from_mins(1);

thread_local! {
    /// When the test began, on both clocks: the wall then follows the paused clock.
    static BEGAN: Cell<Option<(Instant, Timestamp)>> = const { Cell::new(None) };
}

fn wall() -> Timestamp {
    let (instant, wall) = BEGAN.get().unwrap();
    wall + (Instant::now() - instant)
}

fn limits(requests: Option<u64>, tokens: Option<u64>, day: Option<u64>) -> LlmConfig {
    LlmConfig {
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        tokens_per_day: day,
        ..LlmConfig::default()
    }
}

/// A budget whose wall stands at `time` now.
fn budget_at(time: &str, config: &LlmConfig) -> Budget {
    BEGAN.set(Some((Instant::now(), time.parse().unwrap())));
    Budget::with_wall(config, wall)
}

fn budget(config: &LlmConfig) -> Budget {
    budget_at("2026-05-04T12:00:00Z", config)
}

/// The most that is taken in any 60 s, both ends included, of takings in the order of time.
fn most_in_a_minute(taken: &[(Instant, u64)]) -> u64 {
    let mut window = VecDeque::new();
    let (mut sum, mut most) = (0, 0);
    for &(at, amount) in taken {
        window.push_back((at, amount));
        sum += amount;
        while let Some(&(first, amount)) = window.front()
            && at - first > MINUTE
        {
            sum -= amount;
            window.pop_front();
        }
        most = most.max(sum);
    }
    most
}

/// Twelve callers ask for random sizes without a pause for ten minutes; what each gets, and when.
async fn ten_busy_minutes(config: &LlmConfig, seed: u64, size_max: u64) -> Vec<(Instant, u64)> {
    let budget = budget(config);
    let began = Instant::now();
    let mut random = StdRng::seed_from_u64(seed);
    let mut taken = Vec::new();
    let ask = |tokens: u64| {
        let budget = budget.clone();
        async move {
            let reservation = budget.reserve(tokens).await;
            let at = Instant::now();
            // What is reserved is used.
            reservation.settle(tokens);
            (at, tokens)
        }
    };
    let mut callers: FuturesUnordered<_> = (0..12)
        .map(|_| ask(random.random_range(1..=size_max)))
        .collect();
    while let Some((at, tokens)) = callers.next().await {
        if at - began > 10 * MINUTE {
            break;
        }
        taken.push((at, tokens));
        callers.push(ask(random.random_range(1..=size_max)));
    }
    taken
}

/// Invariant 1, with the counterpart that the budget is also used: no reservation is larger than 10 s' worth.
#[tokio::test(start_paused = true)]
async fn tokens_stay_within_seven_sixths_in_any_minute_and_reach_the_rate() {
    for seed in 0..4 {
        let taken = ten_busy_minutes(&limits(None, Some(60_000), None), seed, 10_000).await;
        let most = most_in_a_minute(&taken);
        assert!(most <= 70_000, "seed {seed}: {most}");
        let all: u64 = taken.iter().map(|(_, tokens)| tokens).sum();
        assert!((600_000..=610_000).contains(&all), "seed {seed}: {all}");
    }
}

/// Invariant 1 with reservations of up to a minute's worth, six times the burst: the largest takes the burst's place.
#[tokio::test(start_paused = true)]
async fn large_reservations_exceed_a_minute_by_no_more_than_one_of_them() {
    for seed in 0..4 {
        let taken = ten_busy_minutes(&limits(None, Some(6_000), None), seed, 6_000).await;
        let largest = taken.iter().map(|(_, tokens)| *tokens).max().unwrap();
        let most = most_in_a_minute(&taken);
        assert!(most <= 6_000 + largest.max(1_000), "seed {seed}: {most}");
        let all: u64 = taken.iter().map(|(_, tokens)| tokens).sum();
        assert!((60_000..=67_000).contains(&all), "seed {seed}: {all}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_stay_within_seven_sixths_in_any_minute_and_reach_the_rate() {
    for (rate, most_expected) in [(60, 70), (600, 700), (1, 2), (5, 6)] {
        let taken = ten_busy_minutes(&limits(Some(rate), None, None), 1, 9).await;
        let calls: Vec<_> = taken.iter().map(|(at, _)| (*at, 1)).collect();
        assert_eq!(most_in_a_minute(&calls), most_expected, "rate {rate}");
        let burst = most_expected - rate;
        assert_eq!(u64::try_from(calls.len()).unwrap(), 10 * rate + burst);
    }
}

#[tokio::test(start_paused = true)]
async fn without_limits_nothing_waits() {
    let budget = budget(&limits(None, None, None));
    for _ in 0..1_000 {
        assert!(budget.reserve(u64::MAX).now_or_never().is_some());
    }
    assert_eq!(budget.waiting(), None);
    assert_eq!(budget.left(), Left::default());
}

/// Invariant 2.
#[tokio::test(start_paused = true)]
async fn what_is_larger_than_the_burst_goes_when_it_is_full_and_is_paid_for_later() {
    let budget = budget(&limits(None, Some(600), None));
    let began = Instant::now();
    drop(budget.reserve(1).await);
    drop(budget.reserve(1_000).await);
    // One token comes in 100 ms: then the 100 of the burst are complete again.
    assert_eq!(began.elapsed(), Duration::from_millis(100));
    assert_eq!(budget.left().tokens, Some(-900));
    drop(budget.reserve(1).await);
    assert_eq!(began.elapsed(), Duration::from_millis(100 + 90_100));
}

/// Invariant 2.
#[tokio::test(start_paused = true)]
async fn what_is_larger_than_a_day_goes_on_a_fresh_day() {
    let budget = budget_at("2026-05-04T23:00:00Z", &limits(None, None, Some(100)));
    drop(budget.reserve(1).await);
    assert!(budget.try_reserve(500).is_none());
    let began = Instant::now();
    drop(budget.reserve(500).await);
    assert_eq!(began.elapsed(), Duration::from_hours(1));
    assert_eq!(budget.left().day, Some(-400));
}

#[tokio::test(start_paused = true)]
async fn a_day_ends_at_midnight_utc_and_the_wait_for_it_is_told() {
    let budget = budget_at("2026-05-04T21:30:00Z", &limits(None, None, Some(100)));
    drop(budget.reserve(60).await);
    let mut waiter = Box::pin(budget.reserve(60));
    assert!((&mut waiter).now_or_never().is_none());
    let midnight = "2026-05-05T00:00:00Z".parse().unwrap();
    let told = BudgetWait {
        which: "llm.tokens_per_day",
        until: midnight,
        waiters: 1,
    };
    assert_eq!(budget.waiting(), Some(told));
    drop(waiter.await);
    assert_eq!(wall(), midnight);
    assert_eq!(budget.waiting(), None);
    assert_eq!(budget.left().day, Some(40));
}

#[test]
fn only_a_clock_set_back_by_more_than_a_day_turns_the_day_backwards() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let mut day = Day::new(100, at("2026-05-05T00:00:01Z"));
    day.used = 70;
    day.turn(at("2026-05-04T23:59:59Z"));
    assert_eq!((day.used, day.left()), (70, 30));
    let wait = day.wait(40, at("2026-05-04T23:59:59Z"));
    assert_eq!(wait, Duration::from_secs(86_401));
    day.turn(at("2026-05-03T23:59:59Z"));
    assert_eq!((day.used, day.left()), (0, 100));
}

/// A wall clock that was wrong when the wait began and is set right meanwhile is noticed within a minute.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_during_the_wait_for_midnight_is_noticed() {
    let budget = budget_at("2026-05-04T02:00:00Z", &limits(None, None, Some(100)));
    drop(budget.reserve(100).await);
    let began = Instant::now();
    let set_right = async {
        sleep(Duration::from_secs(90)).await;
        BEGAN.set(Some((
            Instant::now(),
            "2026-05-05T01:00:00Z".parse().unwrap(),
        )));
    };
    let (_reservation, ()) = tokio::join!(budget.reserve(1), set_right);
    assert_eq!(began.elapsed(), Duration::from_secs(120));
}

/// Invariant 4, both directions.
#[tokio::test(start_paused = true)]
async fn settling_leaves_what_was_used() {
    let budget = budget(&limits(Some(60), Some(600), Some(1_000)));
    let [less, more, dropped, refunded] = [40, 10, 7, 5].map(|tokens| {
        budget
            .try_reserve(tokens)
            .expect("100 tokens may go at once")
    });
    assert_eq!(budget.left().tokens, Some(100 - 62));
    less.settle(15);
    assert_eq!(budget.left().tokens, Some(100 - 37));
    more.settle(210);
    assert_eq!(budget.left().tokens, Some(-137));
    drop(dropped);
    refunded.refund();
    let expected = Left {
        requests: Some(7),
        tokens: Some(-132),
        day: Some(1_000 - 232),
    };
    assert_eq!(budget.left(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_settlement_after_midnight_leaves_the_new_day_alone() {
    let budget = budget_at("2026-05-04T23:59:59Z", &limits(None, None, Some(100)));
    let reservation = budget.reserve(80).await;
    advance(Duration::from_secs(2)).await;
    reservation.settle(10);
    assert_eq!(budget.left().day, Some(100));
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_keeps_what_it_may_have_used() {
    let reason = DeadLetterReason::RequestRejected;
    for (fault, requests, tokens) in [
        (Fault::Endpoint, 0, 0),
        (Fault::Capacity { retry_after: None }, 1, 0),
        (Fault::Request, 1, 0),
        (Fault::Document(reason), 1, 0),
        (Fault::TooLong, 1, 0),
        (Fault::Transient, 1, 20),
        (Fault::Disconnected, 1, 20),
        (Fault::TimedOut, 1, 50),
        (Fault::Aborted, 1, 50),
        (Fault::Unreadable, 1, 50),
        (Fault::Empty, 1, 50),
    ] {
        let budget = budget(&limits(Some(60), Some(600), Some(1_000)));
        budget.reserve(50).await.fail(fault, 20);
        let expected = Left {
            requests: Some(10 - requests),
            tokens: Some(100 - tokens),
            day: Some(1_000 - tokens),
        };
        assert_eq!(budget.left(), expected, "{fault:?}");
    }
}

/// What is given back lets the first in the row go at once, also when it was waiting for much longer.
#[tokio::test(start_paused = true)]
async fn what_is_given_back_wakes_the_first_in_the_row() {
    let budget = budget(&limits(None, Some(600), None));
    let held = budget.reserve(100).await;
    let mut waiter = Box::pin(budget.reserve(80));
    assert!((&mut waiter).now_or_never().is_none());
    held.settle(30);
    assert!((&mut waiter).now_or_never().is_none(), "70 are there");
    advance(Duration::from_secs(1)).await;
    assert!((&mut waiter).now_or_never().is_some(), "80 are there");
}

/// Invariant 3.
#[tokio::test(start_paused = true)]
async fn the_small_do_not_overtake_the_large() {
    let budget = budget(&limits(None, Some(600), None));
    drop(budget.reserve(100).await);
    let mut large = Box::pin(budget.reserve(100));
    let mut small = Box::pin(budget.reserve(1));
    assert!((&mut large).now_or_never().is_none());
    assert!((&mut small).now_or_never().is_none());
    assert_eq!(budget.waiting().map(|wait| wait.waiters), Some(2));
    advance(Duration::from_secs(5)).await;
    assert!(budget.try_reserve(1).is_none(), "there is a row");
    assert!((&mut small).now_or_never().is_none());
    advance(Duration::from_secs(5)).await;
    assert!((&mut small).now_or_never().is_none());
    assert!((&mut large).now_or_never().is_some());
    assert!((&mut small).now_or_never().is_none());
    advance(Duration::from_millis(100)).await;
    assert!((&mut small).now_or_never().is_some());
    assert_eq!(budget.waiting(), None);
}

/// Invariant 3: whoever of three waiters is dropped, the others go as if it had never asked.
#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_holds_nobody_up_and_takes_nothing() {
    for dropped in 0..3 {
        let budget = budget(&limits(None, Some(600), None));
        drop(budget.reserve(100).await);
        let mut waiters: Vec<_> = (0..3).map(|_| Box::pin(budget.reserve(50))).collect();
        for waiter in &mut waiters {
            assert!(waiter.now_or_never().is_none());
        }
        drop(waiters.remove(dropped));
        assert_eq!(budget.waiting().map(|wait| wait.waiters), Some(2));
        let began = Instant::now();
        for (waiter, seconds) in waiters.into_iter().zip([5, 10]) {
            drop(waiter.await);
            assert_eq!(began.elapsed(), Duration::from_secs(seconds));
        }
    }
}

/// A row of callers of whom some give up at random moments: all others are served in their order, at the rate.
#[tokio::test(start_paused = true)]
async fn waiters_that_give_up_at_any_moment_leave_the_order_and_the_rate_as_they_are() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let budget = budget(&limits(None, Some(600), None));
        drop(budget.reserve(100).await);
        let began = Instant::now();
        let mut row: FuturesUnordered<_> = (0..30_u64)
            .map(|number| {
                let patience = random
                    .random_bool(0.5)
                    .then(|| Duration::from_millis(random.random_range(0..20_000)));
                let budget = &budget;
                async move {
                    let got = match patience {
                        Some(patience) => tokio::time::timeout(patience, budget.reserve(20))
                            .await
                            .is_ok(),
                        None => {
                            drop(budget.reserve(20).await);
                            true
                        }
                    };
                    (number, patience.is_none(), got)
                }
            })
            .collect();
        let (mut served, mut count, mut last_served) = (Vec::new(), 0, began);
        while let Some((number, patient, got)) = row.next().await {
            assert!(got || !patient);
            if got {
                served.push(number);
                count += 1;
                last_served = Instant::now();
            }
        }
        assert!(served.is_sorted(), "seed {seed}: {served:?}");
        // 20 tokens come in two seconds.
        assert_eq!(last_served - began, Duration::from_secs(2 * count));
        assert_eq!(budget.waiting(), None);
    }
}

proptest! {
    /// Invariants 1, 2 and 4 on the pure core: with any estimates, what was used never exceeds the burst, what has come since the
    /// start, and the one call that was admitted last; and the wait that is told is exact.
    #[test]
    fn what_is_used_follows_the_rate_whatever_was_reserved(
        rate in 1_u64..1_000_000,
        calls in proptest::collection::vec((0_u64..20_000, 0_u64..20_000, 0_u64..3_000), 1..60),
    ) {
        let began = Instant::now();
        let mut now = Now { instant: began, wall: Timestamp::UNIX_EPOCH };
        let mut buckets = Buckets::new(&limits(None, Some(rate), None), now);
        let burst = (i128::from(rate) * BURST_NANOSECONDS).max(UNITS);
        let mut used_units = 0;
        for (reserved, used, pause) in calls {
            now.instant += Duration::from_millis(pause);
            if let Err(Shortage { which, wait }) = buckets.take(reserved, now) {
                prop_assert_eq!(which, TOKENS);
                now.instant += wait.checked_sub(Duration::from_nanos(1)).unwrap();
                prop_assert!(buckets.take(reserved, now).is_err(), "a nanosecond early");
                now.instant += Duration::from_nanos(1);
                prop_assert!(buckets.take(reserved, now).is_ok());
            }
            let come = i128::try_from((now.instant - began).as_nanos()).unwrap() * i128::from(rate);
            prop_assert!(used_units <= burst + come);
            buckets.settle(Charge { tokens: reserved, day: 0 }, used, now);
            used_units += units(used);
        }
    }

    #[test]
    fn an_estimate_comes_to_what_is_steady(start in 1_u32..100_000, steady in 0_u64..100_000) {
        let mut estimate = CompletionEstimate::new(start);
        for _ in 0..400 {
            estimate.observe(steady);
        }
        prop_assert_eq!(estimate.tokens(), steady.max(1));
    }
}

#[test]
fn an_estimate_begins_with_a_quarter_and_is_not_thrown_by_one_answer() {
    let mut estimate = CompletionEstimate::new(1_024);
    assert_eq!(estimate.tokens(), 256);
    estimate.observe(1_024);
    assert_eq!(estimate.tokens(), 256 + 48);
}

/// What is used stays used, and who waits follows the new limit at once.
#[tokio::test(start_paused = true)]
async fn other_limits_hold_at_once() {
    let budget = Budget::new(&limits(None, Some(60), Some(100)));
    let taken = budget.reserve(10).await;
    let mut waiter = Box::pin(budget.reserve(10));
    assert!(futures::poll!(&mut waiter).is_pending());
    budget.set_limits(&limits(None, Some(6_000), Some(15)));
    let began = Instant::now();
    // Of the day 5 are left: that is what is waited for now.
    let waited = tokio::time::timeout(Duration::from_secs(2), &mut waiter);
    assert!(waited.await.is_err());
    budget.set_limits(&limits(None, Some(6_000), Some(100)));
    let more = waiter.await;
    assert!(began.elapsed() < Duration::from_secs(3));
    // One that is not there does not come.
    budget.set_limits(&limits(Some(1), Some(6_000), Some(100)));
    assert!(budget.try_reserve(1).is_some() && budget.try_reserve(1).is_some());
    drop((taken, more));
}
