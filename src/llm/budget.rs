//! How much may be asked of the model: requests per minute, tokens per minute, tokens per day. Over budget means wait, visibly; nothing
//! is ever dropped for it.
//!
//! A call reserves what it is expected to use and settles when its use is known. What the server would allow at the very most
//! (`max_tokens`) is not reserved: answers are shorter as a rule, and most of the budget would lie idle. What the estimates are wrong
//! by is bounded by the calls in flight, and the balance pays for it later.
//!
//! # Invariants
//! 1. In any 60 s no more is reserved than a minute's worth and a burst: 10 s' worth, or the largest reservation where that is more.
//!    So at most 7/6 of the limit for reservations up to 10 s' worth, and one request more than the limit below six a minute.
//! 2. Nothing waits for ever: a reservation above the burst is made when the burst is full, and one above the day's limit when nothing
//!    of the day is used. The balance goes below zero, and those who come later wait for it.
//! 3. The order of asking is the order of getting, also for small after large; a waiter that is dropped holds nobody up.
//! 4. What a settled call leaves in the balance is what it used, whatever was reserved.
//!
//! Why not a full minute's burst: a bucket that holds a minute's worth lets that go at once and as much again during the minute after,
//! twice the limit in the 60 s that a gateway with a sliding window looks at.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

use super::LlmConfig;
use super::classify::Fault;
use super::state::BudgetState;
use crate::clock;

/// The configuration keys.
const REQUESTS: &str = "llm.requests_per_minute";
/// See [`REQUESTS`].
const TOKENS: &str = "llm.tokens_per_minute";
/// See [`REQUESTS`].
const DAY: &str = "llm.tokens_per_day";
/// One request or token in the units in which a bucket counts: a rate of one per minute brings one unit each nanosecond, so that
/// refilling is exact in whole numbers.
const UNITS: i128 = 60_000_000_000;
/// A bucket holds what comes in this many nanoseconds: 10 s, see invariant 1.
const BURST_NANOSECONDS: i128 = 10_000_000_000;
/// Seconds of a day in UTC; leap seconds do not show in time stamps.
const DAY_SECONDS: i64 = 86_400;
/// A wait for the next day looks at the wall clock this often: it may be set, and a machine that slept wakes late.
const DAY_LOOK_EVERY: Duration = Duration::from_mins(1);
/// An observation moves a mean by one part in this many: some fifty calls to follow a change of the documents, which a few odd ones do
/// not disturb.
const MEAN_PARTS: u64 = 16;
/// What means are counted in, per token: fine enough that rounding never holds a mean away from what it follows by a whole token.
const MEAN_UNITS: u64 = 1_024;

/// Both clocks at one moment: the minute is measured, the day is read off the wall.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) instant: Instant,
    pub(super) wall: Timestamp,
}

/// A budget that is used up for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shortage {
    /// The configuration key of the budget that is waited for longest.
    pub(super) which: &'static str,
    /// How long until all budgets allow it, if nothing is given back before.
    pub(super) wait: Duration,
}

/// What a reservation took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Charge {
    tokens: u64,
    /// The day in UTC it counts to, in days since 1970-01-01.
    day: i64,
}

/// What may be taken at once, rounded down and below zero while a balance is paid back; none where there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Left {
    pub(super) requests: Option<i64>,
    pub(super) tokens: Option<i64>,
    /// Tokens of the day.
    pub(super) day: Option<i64>,
}

/// Work that waits for the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BudgetWait {
    /// The configuration key of the budget that is waited for.
    pub(super) which: &'static str,
    /// When the first in the row goes on, if nothing is given back before.
    pub(super) until: Timestamp,
    /// How many wait; at least 1.
    pub(super) waiters: usize,
}

/// A balance that refills continuously.
#[derive(Debug)]
struct Bucket {
    /// Per minute; at least 1.
    rate: i128,
    /// In [`UNITS`], as all that follows.
    capacity: i128,
    balance: i128,
    at: Instant,
}

/// Tokens of one day in UTC.
#[derive(Debug)]
struct Day {
    limit: u64,
    day: i64,
    used: i128,
}

/// The balances. Pure: time comes in as an argument.
#[derive(Debug)]
pub(super) struct Buckets {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    day: Option<Day>,
}

/// The budgets of one server, shared by all who ask it; clones share the balances.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    shared: Arc<Shared>,
}

/// A call's part of the budgets. Dropping it keeps the charge: what is not known to be unused counts as used.
#[derive(Debug)]
#[must_use = "dropping it keeps the whole charge"]
pub(super) struct Reservation {
    shared: Arc<Shared>,
    charge: Charge,
}

#[derive(Debug)]
struct Shared {
    /// Whoever holds it is the first in the row and looks at the balances; all others wait for it, in the order they came.
    turn: Semaphore,
    state: Mutex<State>,
    /// From settlements to the first in the row: something may have been given back.
    given_back: Notify,
    wall: fn() -> Timestamp,
}

#[derive(Debug)]
struct State {
    buckets: Buckets,
    waiters: usize,
    /// What the first in the row last asked for; of no meaning while nobody waits.
    asked: u64,
}

/// Counts a waiter for as long as it waits.
struct Waiting<'a>(&'a Shared);

/// What an answer is expected to use, from what the last ones used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CompletionEstimate {
    mean: u64,
}

impl Bucket {
    /// Full: 10 s' worth, and room for one at least.
    fn new(rate: u64, now: Instant) -> Self {
        let rate = i128::from(rate.max(1));
        let capacity = rate.saturating_mul(BURST_NANOSECONDS).max(UNITS);
        Self {
            rate,
            capacity,
            balance: capacity,
            at: now,
        }
    }

    /// Another rate from now on. What is left stays, as far as it fits.
    fn set_rate(&mut self, rate: u64, now: Instant) {
        self.refill(now);
        let Self { rate, capacity, .. } = Self::new(rate, now);
        (self.rate, self.capacity) = (rate, capacity);
        self.change(0);
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        let come = self
            .rate
            .saturating_mul(i128::try_from(elapsed).unwrap_or(i128::MAX));
        self.at = self.at.max(now);
        self.change(come);
    }

    /// What does not fit any more is lost.
    fn change(&mut self, units: i128) {
        self.balance = self.balance.saturating_add(units).min(self.capacity);
    }

    /// How long until `amount` may be taken; zero means now.
    fn wait(&self, amount: u64) -> Duration {
        let short = units(amount)
            .min(self.capacity)
            .saturating_sub(self.balance)
            .max(0);
        // Rounded up: a nanosecond early would be too early.
        let nanoseconds = short.saturating_add(self.rate - 1) / self.rate;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn left(&self) -> i64 {
        i64::try_from(self.balance.div_euclid(UNITS)).unwrap_or(i64::MAX)
    }
}

impl Day {
    fn new(limit: u64, now: Timestamp) -> Self {
        Self {
            limit,
            day: day_of(now),
            used: 0,
        }
    }

    /// A new day begins with nothing used. A clock that was set back over midnight keeps the day's count, or the same hour would be
    /// granted twice; one that was days ahead must not keep it until then.
    fn turn(&mut self, now: Timestamp) {
        let today = day_of(now);
        if today != self.day && today != self.day.saturating_sub(1) {
            self.day = today;
            self.used = 0;
        }
    }

    fn left(&self) -> i128 {
        i128::from(self.limit).saturating_sub(self.used)
    }

    /// How long until `amount` may be taken: zero or until midnight, UTC.
    fn wait(&self, amount: u64, now: Timestamp) -> Duration {
        if self.left() >= i128::from(amount.min(self.limit)) {
            return Duration::ZERO;
        }
        let midnight = self.day.saturating_add(1).saturating_mul(DAY_SECONDS);
        let midnight = Timestamp::from_second(midnight).unwrap_or(Timestamp::MAX);
        // A clock that stands at midnight sharp has turned the day already, so this is never zero.
        Duration::try_from(midnight.duration_since(now)).unwrap_or(DAY_LOOK_EVERY)
    }
}

impl Buckets {
    pub(super) fn new(config: &LlmConfig, now: Now) -> Self {
        Self {
            requests: config
                .requests_per_minute
                .map(|rate| Bucket::new(rate, now.instant)),
            tokens: config
                .tokens_per_minute
                .map(|rate| Bucket::new(rate, now.instant)),
            day: config.tokens_per_day.map(|limit| Day::new(limit, now.wall)),
        }
    }

    fn advance(&mut self, now: Now) {
        if let Some(bucket) = &mut self.requests {
            bucket.refill(now.instant);
        }
        if let Some(bucket) = &mut self.tokens {
            bucket.refill(now.instant);
        }
        if let Some(day) = &mut self.day {
            day.turn(now.wall);
        }
    }

    /// What a call with `tokens` has to wait for; none means that it may go.
    pub(super) fn shortage(&mut self, tokens: u64, now: Now) -> Option<Shortage> {
        self.advance(now);
        [
            (REQUESTS, wait_of(self.requests.as_ref(), 1)),
            (TOKENS, wait_of(self.tokens.as_ref(), tokens)),
            (
                DAY,
                self.day
                    .as_ref()
                    .map_or(Duration::ZERO, |day| day.wait(tokens, now.wall)),
            ),
        ]
        .into_iter()
        .filter(|(_, wait)| !wait.is_zero())
        .max_by_key(|(_, wait)| *wait)
        .map(|(which, wait)| Shortage { which, wait })
    }

    /// Takes one request and `tokens`.
    ///
    /// # Errors
    /// What it has to wait for; then nothing was taken.
    pub(super) fn take(&mut self, tokens: u64, now: Now) -> Result<Charge, Shortage> {
        if let Some(shortage) = self.shortage(tokens, now) {
            return Err(shortage);
        }
        if let Some(bucket) = &mut self.requests {
            bucket.change(-UNITS);
        }
        if let Some(bucket) = &mut self.tokens {
            bucket.change(-units(tokens));
        }
        let mut charge = Charge { tokens, day: 0 };
        if let Some(day) = &mut self.day {
            day.used = day.used.saturating_add(i128::from(tokens));
            charge.day = day.day;
        }
        Ok(charge)
    }

    /// Puts `used` in the place of what was reserved. A charge counts to the day it was made on, so after midnight only the minute is
    /// corrected.
    pub(super) fn settle(&mut self, charge: Charge, used: u64, now: Now) {
        self.advance(now);
        if let Some(bucket) = &mut self.tokens {
            bucket.change(units(charge.tokens).saturating_sub(units(used)));
        }
        if let Some(day) = &mut self.day
            && day.day == charge.day
        {
            day.used = day
                .used
                .saturating_sub(i128::from(charge.tokens))
                .saturating_add(i128::from(used));
        }
    }

    /// Takes a charge back, its request too.
    pub(super) fn refund(&mut self, charge: Charge, now: Now) {
        self.settle(charge, 0, now);
        if let Some(bucket) = &mut self.requests {
            bucket.change(UNITS);
        }
    }

    pub(super) fn left(&mut self, now: Now) -> Left {
        self.advance(now);
        Left {
            requests: self.requests.as_ref().map(Bucket::left),
            tokens: self.tokens.as_ref().map(Bucket::left),
            day: self
                .day
                .as_ref()
                .map(|day| i64::try_from(day.left()).unwrap_or(i64::MIN)),
        }
    }
}

fn units(amount: u64) -> i128 {
    i128::from(amount).saturating_mul(UNITS)
}

fn wait_of(bucket: Option<&Bucket>, amount: u64) -> Duration {
    bucket.map_or(Duration::ZERO, |bucket| bucket.wait(amount))
}

fn day_of(time: Timestamp) -> i64 {
    time.as_second().div_euclid(DAY_SECONDS)
}

impl Budget {
    /// Full balances, and a day of which nothing is used: what was used before a restart is not known.
    pub(super) fn new(config: &LlmConfig) -> Self {
        Self::with_wall(config, clock::now)
    }

    fn with_wall(config: &LlmConfig, wall: fn() -> Timestamp) -> Self {
        let now = Now {
            instant: Instant::now(),
            wall: wall(),
        };
        Self {
            shared: Arc::new(Shared {
                turn: Semaphore::new(1),
                state: Mutex::new(State {
                    buckets: Buckets::new(config, now),
                    waiters: 0,
                    asked: 0,
                }),
                given_back: Notify::new(),
                wall,
            }),
        }
    }

    /// Other limits, of the budgets that there are. What is used stays used.
    pub(super) fn set_limits(&self, config: &LlmConfig) {
        let now = self.shared.now();
        let mut state = self.shared.state();
        let Buckets {
            requests,
            tokens,
            day,
        } = &mut state.buckets;
        if let (Some(bucket), Some(rate)) = (requests, config.requests_per_minute) {
            bucket.set_rate(rate, now.instant);
        }
        if let (Some(bucket), Some(rate)) = (tokens, config.tokens_per_minute) {
            bucket.set_rate(rate, now.instant);
        }
        if let (Some(day), Some(limit)) = (day, config.tokens_per_day) {
            day.limit = limit;
        }
        drop(state);
        // Whoever is first in the row may go now, or wait for longer.
        self.shared.given_back.notify_one();
    }

    /// Waits until one request and `tokens` may be used.
    ///
    /// # Cancel safety
    /// Safe: a waiter that is dropped loses its place, and has taken nothing.
    pub(super) async fn reserve(&self, tokens: u64) -> Reservation {
        let shared = &self.shared;
        if let Some(reservation) = self.try_reserve(tokens) {
            return reservation;
        }
        let _waiting = Waiting::new(shared);
        let _turn = shared.take_turn().await;
        loop {
            let shortage = match self.take(tokens) {
                Ok(reservation) => return reservation,
                Err(shortage) => shortage,
            };
            let wait = match shortage.which {
                DAY => shortage.wait.min(DAY_LOOK_EVERY),
                _ => shortage.wait,
            };
            // What is given back between the look and the wait is not missed: the notice is kept for the next who waits for it.
            tokio::select! {
                biased;
                () = shared.given_back.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// One request and `tokens`, if they may be used now and nobody waits, or asks at the same instant on another thread.
    pub(super) fn try_reserve(&self, tokens: u64) -> Option<Reservation> {
        // There is no free turn while anyone waits: a turn that is given up goes to the next in the row.
        let _turn = self.shared.turn.try_acquire().ok()?;
        self.take(tokens).ok()
    }

    fn take(&self, tokens: u64) -> Result<Reservation, Shortage> {
        let now = self.shared.now();
        let mut state = self.shared.state();
        state.asked = tokens;
        let charge = state.buckets.take(tokens, now)?;
        drop(state);
        Ok(Reservation {
            shared: Arc::clone(&self.shared),
            charge,
        })
    }

    /// What is waited for; none while nobody waits.
    pub(super) fn waiting(&self) -> Option<BudgetWait> {
        let now = self.shared.now();
        let mut state = self.shared.state();
        let waiters = state.waiters;
        if waiters == 0 {
            return None;
        }
        let asked = state.asked;
        let Shortage { which, wait } = state.buckets.shortage(asked, now)?;
        let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
        Some(BudgetWait {
            which,
            until: now.wall.checked_add(wait).unwrap_or(Timestamp::MAX),
            waiters,
        })
    }

    /// What is left of each budget.
    pub(super) fn left(&self) -> Left {
        let now = self.shared.now();
        self.shared.state().buckets.left(now)
    }

    /// The same by configuration key.
    pub(super) fn states(&self) -> Vec<BudgetState> {
        let left = self.left();
        let all = [
            (REQUESTS, left.requests),
            (TOKENS, left.tokens),
            (DAY, left.day),
        ];
        let set = all.into_iter().filter_map(|(key, left)| Some((key, left?)));
        set.map(|(key, left)| BudgetState { key, left }).collect()
    }
}

impl Reservation {
    /// The call is over and used this many tokens, prompt and answer. More than was reserved is charged, less is given back.
    pub(super) fn settle(self, used: u64) {
        let now = self.shared.now();
        self.shared.state().buckets.settle(self.charge, used, now);
        self.shared.given_back.notify_one();
    }

    /// The call was never made: everything is given back, the request too.
    pub(super) fn refund(self) {
        let now = self.shared.now();
        self.shared.state().buckets.refund(self.charge, now);
        self.shared.given_back.notify_one();
    }

    /// The call failed, and how much it used is not known. It keeps what it may have used: nothing where the server was not reached or
    /// refused before it began, the prompt where it began, everything where it went on to an answer. A refusal counts as a request, as
    /// gateways count it.
    pub(super) fn fail(self, fault: Fault, prompt_tokens: u64) {
        match fault {
            Fault::Endpoint => self.refund(),
            Fault::Capacity { .. } | Fault::Request | Fault::Document(_) | Fault::TooLong => {
                self.settle(0);
            }
            Fault::Transient | Fault::Disconnected => {
                let used = prompt_tokens.min(self.charge.tokens);
                self.settle(used);
            }
            Fault::TimedOut | Fault::Aborted | Fault::Unreadable | Fault::Empty => {}
        }
    }
}

impl Shared {
    fn now(&self) -> Now {
        Now {
            instant: Instant::now(),
            wall: (self.wall)(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None only if the semaphore were closed, which it never is; then the balances alone decide.
    async fn take_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turn.acquire().await.ok()
    }
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        let mut state = shared.state();
        state.waiters = state.waiters.saturating_add(1);
        drop(state);
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.waiters = state.waiters.saturating_sub(1);
    }
}

impl CompletionEstimate {
    /// Begins with a quarter of what an answer may have at most.
    pub(super) fn new(max_tokens: u32) -> Self {
        Self {
            mean: u64::from(max_tokens).saturating_mul(MEAN_UNITS) / 4,
        }
    }

    /// An answer had this many tokens.
    pub(super) fn observe(&mut self, completion_tokens: u64) {
        self.mean = moved(self.mean, completion_tokens.saturating_mul(MEAN_UNITS));
    }

    /// Tokens that an answer is expected to have, rounded up; at least 1.
    pub(super) fn tokens(&self) -> u64 {
        self.mean.div_ceil(MEAN_UNITS).max(1)
    }
}

/// An exponentially weighted mean after one more value. The old part is rounded down, so that a mean comes all the way down to zeros.
fn moved(mean: u64, value: u64) -> u64 {
    (mean - mean.div_ceil(MEAN_PARTS)).saturating_add(value / MEAN_PARTS)
}

#[cfg(test)]
mod tests;
