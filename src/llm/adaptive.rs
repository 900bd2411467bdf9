//! How many calls to one endpoint may run at once, found out by watching it. Pure: time comes in as an argument, and whoever makes the
//! calls tells what became of them.
//!
//! Answers are looked at in windows. A window ends with a verdict, the limit changes, and the next window begins when the change shows.
//!
//! - *The queue is told* (`num_requests_waiting` comes with the answers): the limit is held where a tenth of it waits. More than a fifth
//!   waiting cuts it by what waits too much; next to nothing waiting lets it grow.
//! - *The queue is not told*: two limits a quarter apart are tried in turns, and what the server does at each is compared. By Little's law
//!   its rate is the calls in flight over the time that one unit of work takes, which is far steadier than tokens counted by the clock,
//!   as the time of a call follows its length. When a quarter more in flight brings next to nothing, the server is saturated.
//! - *A refusal* (429, 503) cuts at once.
//!
//! Growth starts with doubling (quick start) and ends it at the first sign of saturation; from then on it starts anew with small steps
//! that double while nothing objects. So `n` times the first limit is reached in log2(`n`) windows, rounded up, and one or two more show
//! that it is enough. Where the queue is told and answers come often enough, a window takes under a second. Otherwise it takes one and a
//! half round trips, or as long as [`ANSWERS_STEADY`] answers take, a round trip being the time of a call, the longer ones weighing
//! more. From 64 to 1,000 that is ten round trips at most, whatever a call takes. Calls of 20 s that all start at once show nothing for
//! 20 s, to anybody: seconds can be promised for calls of a few seconds only.
//!
//! What it does not do: tell our share of a queue from that of others. Clients that all do as this one does end up with similar shares;
//! one that floods the server drives this one to its lower bound.
//!
//! # Invariants
//! 1. The limit stays within its bounds, whatever is told.
//! 2. Apart from refusals, only calls that ran while the limit was reached change it: a small intake neither raises nor lowers it.
//! 3. Time is measured per unit of work, never per call: longer answers alone do not shrink the limit.
//! 4. Refusals of calls that were sent before a cut do not cut again.
//! 5. Without the queue told, doubt is settled upwards: too many in flight cost waiting, too few cost throughput.

use std::time::Duration;

use tokio::time::Instant;

/// Work of one call beside its answer's tokens, in tokens: connection, scheduling, the first step. Keeps an answer of no or of few tokens
/// from looking slow.
const CALL_WORK: f64 = 8.0;
/// Work of one token of the prompt, in tokens of the answer: prompts are read in chunks of thousands, answers written token by token.
const PROMPT_TOKEN_WORK: f64 = 1.0 / 32.0;
/// The limit counts as reached when on average this share of it was in flight.
const REACHED: f64 = 0.9;
/// More than one failed call for so many answers: the window shows nothing.
const ANSWERS_PER_FAILURE: usize = 10;

/// Waiting below this share of the limit (and half a call) lets it grow: next to nothing waits.
const WAITING_LOW: f64 = 0.05;
/// What should wait after a cut, as a share of the limit, and one call more: the surplus that vLLM wants to be kept busy.
const WAITING_GOAL: f64 = 0.1;
/// Waiting above this share of the limit, and one call more, cuts it.
const WAITING_HIGH: f64 = 0.15;
/// What a queue leaves of the limit at least. Others may share the server and cut at the same moment, for the same queue.
const QUEUE_CUT: f64 = 0.6;
/// How long a change of the limit takes to show in the queue: some steps of the engine, and the prompts of those who came at once.
const QUEUE_SETTLES: Duration = Duration::from_millis(500);
/// Readings of the queue in one window: an eighth of the limit, within these.
const READINGS: (usize, usize) = (4, 32);

/// Answers in one window where the queue is not told: half the limit, and at least this many; the fewer during quick start, as its
/// question (does twice as much bring more?) is the easier one.
const ANSWERS_QUICK: usize = 12;
/// See [`ANSWERS_QUICK`].
const ANSWERS_STEADY: usize = 40;
/// The shortest window: below it the clock and the scheduler of this machine are measured.
const WINDOW_MIN: Duration = Duration::from_millis(100);
/// A raise of the limit pays when the rate rises by at least this power of it: 1 is in full, 0 not at all.
const PAYS: f64 = 0.25;
/// Below this power a raise brought nothing: the limit is well above what the server can use.
const FLAT: f64 = 0.05;
/// Two windows are compared when their calls in flight differ by at least this factor.
const COMPARABLE: f64 = 1.1;
/// The limit over what the server could use: with a quarter between the two limits tried, the lower costs less than a twentieth.
const SURPLUS: f64 = 1.2;
/// How far one comparison may lower what the server is believed to use.
const KNEE_FALL: f64 = 0.75;
/// Windows spent at the upper limit before the lower one is tried again.
const DWELL: u32 = 2;
/// The same while there is no room above and all of it pays.
const DWELL_AT_BOUND: u32 = 10;

/// First growth after a sign of saturation, as a share of the limit, where the queue is told.
const STEP_QUEUE: f64 = 1.0 / 16.0;
/// The same where it is not: smaller differences drown in the noise.
const STEP_RATE: f64 = 0.25;
/// The widest step down to the lower of two limits.
const STEP_DOWN_MAX: f64 = 0.5;
/// Quick start: doubling.
const STEP_QUICK: f64 = 1.0;

/// What a refusal leaves of a limit that had been good before: the server takes less now.
const REFUSED_CUT: f64 = 0.8;
/// What a refusal leaves of the last good limit when growth went beyond it.
const REFUSED_BACK: f64 = 0.95;
/// A refused limit within this factor of the last good one bounds it closely enough.
const CEILING_NEAR: f64 = 1.05;
/// How long a refused limit is remembered, or [`CEILING_ROUND_TRIPS`], whichever is longer.
const CEILING_HOLDS: Duration = Duration::from_secs(5);
/// See [`CEILING_HOLDS`].
const CEILING_ROUND_TRIPS: u32 = 4;
/// The shortest time between two cuts by refusals of what was good before; growth beyond that is taken back without delay.
const CUT_EVERY: Duration = Duration::from_millis(100);

/// Where the limit starts and what it stays within, all inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) initial: usize,
    pub(super) min: usize,
    pub(super) max: usize,
}

/// What one answered call shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// From the first byte out to the last byte in.
    pub(super) elapsed: Duration,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    /// `num_requests_waiting` that the server told with the answer, if it did.
    pub(super) waiting: Option<f64>,
    /// Permits that were out when this call ended, its own included. With documents enough that is the limit; a place that is free for
    /// the moment until the next document takes it must count as taken, or the limit seems not to be reached.
    pub(super) running: usize,
}

/// The limit and what it is derived from.
#[derive(Debug)]
pub(super) struct Controller {
    bounds: Bounds,
    limit: usize,
    /// The next growth, as a share of the limit, above 0 and at most 1.
    step: f64,
    /// The time of a call, the longer ones weighing more; zero until known.
    round_trip: Duration,
    window: Window,
    /// The lower of two limits compared: what the server did there.
    base: Option<Level>,
    /// The upper of two limits compared, while the lower is being tried.
    upper: Option<usize>,
    /// Windows left before the lower limit is tried.
    dwell: u32,
    /// The highest limit that was reached for a window without a refusal.
    good: usize,
    /// Whether growth is tried in place of looking for the lower end, where the queue is not told.
    climbing: bool,
    /// A limit that was refused, and until when that is remembered.
    ceiling: Option<(usize, Instant)>,
    /// When a refusal last cut.
    cut: Option<Instant>,
}

/// What the server did at one limit.
#[derive(Debug, Clone, Copy)]
struct Level {
    /// Calls in flight.
    running: f64,
    /// Units of work a second.
    rate: f64,
}

/// What was seen since the limit last changed or a verdict was last given.
#[derive(Debug)]
struct Window {
    /// From when on the queue shows the limit.
    queue_from: Instant,
    /// From when on the times of calls show the limit.
    rate_from: Instant,
    /// Answers that are yet to come before: as many as the limit take one round trip, however long that has become.
    unsettled: usize,
    answers: usize,
    /// Answers with which the queue was told.
    told: usize,
    failures: usize,
    /// Sums over all answers: work, and work times the time of its call.
    work_all: f64,
    work_time: f64,
    /// Readings of the queue, their sum, and the calls in flight at each.
    readings: usize,
    waiting: f64,
    readings_running: f64,
    /// Answers that count for the rate, their times, work, and the calls in flight at each.
    calls: usize,
    seconds: f64,
    work: f64,
    calls_running: f64,
}

impl Controller {
    /// Starts at `initial`, with quick start ahead.
    pub(super) fn new(bounds: Bounds, now: Instant) -> Self {
        let min = bounds.min.max(1);
        let bounds = Bounds {
            min,
            max: bounds.max.max(min),
            initial: bounds.initial.clamp(min, bounds.max.max(min)),
        };
        Self {
            bounds,
            limit: bounds.initial,
            step: STEP_QUICK,
            round_trip: Duration::ZERO,
            window: Window::new(now, now),
            base: None,
            upper: None,
            dwell: 0,
            good: bounds.min,
            climbing: true,
            ceiling: None,
            cut: None,
        }
    }

    /// Calls that may run at once.
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// A call was answered with a result.
    pub(super) fn answered(&mut self, now: Instant, sample: Sample) {
        if sample.running > self.limit {
            // The limit fell and calls that were let in before still run.
            self.window.rate_from = now + self.round_trip;
            self.window.unsettled = self.limit;
            return;
        }
        self.window.add(now, &sample);
        let window = &self.window;
        let told = window.told * 2 > window.answers;
        let readings = (self.limit / 8).clamp(READINGS.0, READINGS.1);
        if window.readings >= readings && now >= window.queue_from + WINDOW_MIN {
            self.judge(now, Self::follow_queue);
        } else if !told
            && window.calls >= self.answers_wanted()
            && now >= window.rate_from + WINDOW_MIN.max(self.round_trip / 2)
        {
            self.judge(now, Self::follow_rate);
        }
    }

    /// A call that took `elapsed` was refused for want of capacity: 429 or 503.
    pub(super) fn refused(&mut self, now: Instant, elapsed: Duration) {
        // Beyond what was good a cut may not suffice, and until the next each place that is given back is refused anew.
        let pace = if self.limit > self.good {
            Duration::ZERO
        } else {
            CUT_EVERY
        };
        if let Some(cut) = self.cut
            && now < cut + elapsed.max(pace)
        {
            return;
        }
        self.cut = Some(now);
        let holds = CEILING_HOLDS.max(self.round_trip * CEILING_ROUND_TRIPS);
        self.ceiling = Some((self.limit, now + holds));
        let (limit, good) = (number(self.limit), number(self.good));
        let beyond = self.limit > self.good;
        let left = if !beyond {
            limit * REFUSED_CUT
        } else if limit > good * CEILING_NEAR {
            f64::midpoint(good, limit)
        } else {
            good * REFUSED_BACK
        };
        self.forget(STEP_QUEUE);
        self.change(now, left.min(limit - 1.0).floor());
        if !beyond {
            self.good = self.limit;
        }
    }

    /// A call failed in a way that may pass: it shows nothing, and where many fail nothing is concluded.
    pub(super) const fn failed(&mut self) {
        self.window.failures = self.window.failures.saturating_add(1);
    }

    /// The endpoint is back after an outage. What its times were is void: it may be another machine, and its caches are cold. The limit
    /// is halved, as all that was held comes at once and load may be what felled it; quick start wins it back in one window.
    pub(super) fn reset(&mut self, now: Instant) {
        self.round_trip = Duration::ZERO;
        self.forget(STEP_QUICK);
        self.ceiling = None;
        self.cut = None;
        self.change(now, number(self.limit) / 2.0);
        self.good = self.bounds.min;
    }

    /// How far growth may go.
    fn growth_end(&self) -> f64 {
        let good = number(self.good);
        match self.ceiling {
            // Half way between what was good and what was refused, until that is near enough.
            Some((ceiling, _)) if number(ceiling) > good * CEILING_NEAR => {
                f64::midpoint(good, number(ceiling)).floor()
            }
            Some(_) => good,
            None => number(self.bounds.max),
        }
    }

    fn answers_wanted(&self) -> usize {
        let least = if self.step >= STEP_QUICK {
            ANSWERS_QUICK
        } else {
            ANSWERS_STEADY
        };
        (self.limit / 2).max(least)
    }

    /// Ends the window: with a verdict when it shows something.
    fn judge(&mut self, now: Instant, verdict: fn(&mut Self, Instant)) {
        self.round_trip = self.window.round_trip();
        let reached = self.window.running() >= REACHED * number(self.limit);
        let sound = self.window.failures * ANSWERS_PER_FAILURE <= self.window.answers;
        if reached && sound {
            if self.ceiling.is_some_and(|(_, until)| now >= until) {
                self.ceiling = None;
                self.forget(STEP_QUEUE);
            }
            self.good = self.good.max(self.limit);
            verdict(self, now);
        } else {
            self.base = None;
            self.window = Window::new(now, now);
        }
    }

    fn follow_queue(&mut self, now: Instant) {
        (self.base, self.upper) = (None, None);
        let limit = number(self.limit);
        let waiting = self.window.waiting / number(self.window.readings);
        if waiting > WAITING_HIGH * limit + 1.0 {
            self.step = STEP_QUEUE;
            let left = limit - waiting + WAITING_GOAL * limit + 1.0;
            self.change(now, left.max(limit * QUEUE_CUT).floor());
            self.good = self.good.min(self.limit);
        } else if waiting < WAITING_LOW * limit + 0.5 {
            self.grow(now);
        } else {
            self.step = STEP_QUEUE;
            self.window = Window::new(now, now);
        }
    }

    fn follow_rate(&mut self, now: Instant) {
        let level = self.window.level();
        let Some(base) = self.base.take() else {
            self.start_comparison(now, level);
            return;
        };
        let more = level.running / base.running;
        if more < COMPARABLE {
            self.start_comparison(now, level);
            return;
        }
        let gain = level.rate / base.rate;
        let power = gain.ln() / more.ln();
        if power >= PAYS {
            self.climb(now, level);
            return;
        }
        let knee = base.running * gain.clamp(KNEE_FALL, more);
        let flat = power < FLAT && !self.climbing;
        self.climbing = false;
        self.step = if flat {
            (self.step * 2.0).min(STEP_DOWN_MAX)
        } else {
            STEP_RATE
        };
        self.dwell = if flat { 0 } else { DWELL };
        let upper = knee * SURPLUS;
        self.change(now, upper);
    }

    /// The first of two windows: the other is above while growth is to be tried, otherwise this one was the upper already.
    fn start_comparison(&mut self, now: Instant, level: Level) {
        if let Some(upper) = self.upper.take() {
            self.base = Some(level);
            self.change(now, number(upper));
        } else if self.climbing {
            self.climb(now, level);
        } else if self.dwell > 0 {
            self.dwell -= 1;
            self.window = Window::new(now, now);
        } else if self.limit == self.bounds.min {
            self.climb(now, level);
        } else {
            self.upper = Some(self.limit);
            let lower = number(self.limit) / (1.0 + self.step);
            self.change(now, lower.min(number(self.limit) - 1.0));
        }
    }

    /// The next limit up, to be compared with this one; at a bound the limit stays for a while.
    fn climb(&mut self, now: Instant, level: Level) {
        self.climbing = true;
        self.base = Some(level);
        let before = self.limit;
        self.grow(now);
        if self.limit == before {
            self.base = None;
            self.climbing = false;
            self.dwell = DWELL_AT_BOUND;
            self.step = STEP_RATE;
        }
    }

    /// Raises the limit by the step, which doubles.
    fn grow(&mut self, now: Instant) {
        let limit = number(self.limit);
        let raised = limit + (limit * self.step).max(1.0);
        let raised = raised.min(self.growth_end()).max(limit);
        self.step = (self.step * 2.0).min(STEP_QUICK);
        self.change(now, raised);
    }

    /// Sets the limit, within its bounds, and opens the window that will show it.
    fn change(&mut self, now: Instant, limit: f64) {
        let limit = whole(limit).clamp(self.bounds.min, self.bounds.max);
        self.window = if limit == self.limit {
            Window::new(now, now)
        } else {
            let mut window = Window::new(now + QUEUE_SETTLES, now + self.round_trip);
            window.unsettled = limit;
            window
        };
        self.limit = limit;
    }

    /// Starts the search anew.
    const fn forget(&mut self, step: f64) {
        self.step = step;
        self.base = None;
        self.upper = None;
        self.dwell = 0;
        self.climbing = true;
    }
}

impl Window {
    const fn new(queue_from: Instant, rate_from: Instant) -> Self {
        Self {
            queue_from,
            rate_from,
            unsettled: 0,
            answers: 0,
            told: 0,
            failures: 0,
            work_all: 0.0,
            work_time: 0.0,
            readings: 0,
            waiting: 0.0,
            readings_running: 0.0,
            calls: 0,
            seconds: 0.0,
            work: 0.0,
            calls_running: 0.0,
        }
    }

    fn add(&mut self, now: Instant, sample: &Sample) {
        let work = CALL_WORK
            + PROMPT_TOKEN_WORK * tokens(sample.prompt_tokens)
            + tokens(sample.completion_tokens);
        let seconds = sample.elapsed.as_secs_f64();
        let running = number(sample.running);
        self.answers += 1;
        self.told += usize::from(sample.waiting.is_some());
        self.work_all += work;
        self.work_time += work * seconds;
        if let Some(waiting) = sample.waiting
            && waiting.is_finite()
            && now >= self.queue_from
        {
            self.readings += 1;
            self.waiting += waiting.max(0.0);
            self.readings_running += running;
        }
        if self.unsettled > 0 {
            self.unsettled -= 1;
        } else if now >= self.rate_from {
            self.calls += 1;
            self.seconds += seconds;
            self.work += work;
            self.calls_running += running;
        }
    }

    fn round_trip(&self) -> Duration {
        Duration::try_from_secs_f64(self.work_time / self.work_all).unwrap_or_default()
    }

    /// Calls in flight, on average over what the verdict rests on.
    fn running(&self) -> f64 {
        if self.readings > 0 {
            self.readings_running / number(self.readings)
        } else {
            self.calls_running / number(self.calls.max(1))
        }
    }

    fn level(&self) -> Level {
        let running = self.calls_running / number(self.calls.max(1));
        Level {
            running,
            // Little's law. An answer takes some time: a clock that shows none is a coarse one.
            rate: running * self.work / self.seconds.max(1e-6),
        }
    }
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn tokens(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// To the nearest whole number; what is no number is none.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what fits before"
)]
fn whole(value: f64) -> usize {
    value.round().clamp(0.0, f64::from(u32::MAX)) as usize
}

#[cfg(test)]
mod tests;
