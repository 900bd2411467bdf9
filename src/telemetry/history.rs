//! The last hour in memory: documents and tokens, for the charts of the status page. Who looks once a second notes; the page reads.
//!
//! Bounded: one sample each ten seconds, 360 of them, and the looks of the last ten seconds.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::limiting::Factor;
use super::status::Totals;

/// What a sample covers; more where the process stood still.
const SAMPLE: Duration = Duration::from_secs(10);
/// An hour of samples.
const SAMPLES_MAX: usize = 360;
/// What the rates of now are of.
const NOW: Duration = Duration::from_secs(10);
/// More looks than come in that time, a second apart.
const LOOKS_MAX: usize = 32;

/// Counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    results: u64,
    failures: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl From<&Totals> for Counts {
    fn from(totals: &Totals) -> Self {
        Self {
            results: totals.processed,
            failures: totals.failed(),
            prompt_tokens: totals.prompt_tokens,
            completion_tokens: totals.completion_tokens,
        }
    }
}

impl Counts {
    const fn since(self, before: Self) -> Self {
        Self {
            results: self.results.saturating_sub(before.results),
            failures: self.failures.saturating_sub(before.failures),
            prompt_tokens: self.prompt_tokens.saturating_sub(before.prompt_tokens),
            completion_tokens: self
                .completion_tokens
                .saturating_sub(before.completion_tokens),
        }
    }
}

/// What happened in a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// Its end, in milliseconds since 1970.
    pub at_ms: i64,
    /// Its length.
    pub ms: u64,
    /// Results that were written.
    pub results: u64,
    /// Documents that were given up.
    pub failures: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// What limited the work at its end.
    pub factor: Factor,
}

impl Sample {
    fn new(at: Timestamp, took: Duration, counts: Counts, factor: Factor) -> Self {
        Self {
            at_ms: at.as_millisecond(),
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            results: counts.results,
            failures: counts.failures,
            prompt_tokens: counts.prompt_tokens,
            completion_tokens: counts.completion_tokens,
            factor,
        }
    }
}

/// What a reader has not seen yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct News {
    /// Samples, oldest first.
    pub samples: Vec<Sample>,
    /// The last ten seconds, or as many as there were.
    pub now: Option<Sample>,
    /// What to ask with the next time.
    #[serde(skip)]
    pub seen: u64,
}

#[derive(Debug, Default)]
struct Ring {
    samples: VecDeque<Sample>,
    /// Samples that there ever were.
    count: u64,
    /// Where the sample that is being gathered began.
    began: Option<(Instant, Counts)>,
    looks: VecDeque<(Instant, Counts)>,
    now: Option<Sample>,
}

/// The hour; cheap to clone.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Ring>>);

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").finish_non_exhaustive()
    }
}

impl History {
    /// Notes how far the counts have come, and what limits the work.
    pub fn note(&self, now: Instant, wall: Timestamp, totals: &Totals, factor: Factor) {
        self.lock().note(now, wall, Counts::from(totals), factor);
    }

    /// The samples that came after the first `seen`, as far as they are kept.
    #[must_use]
    pub fn news(&self, seen: u64) -> News {
        let ring = self.lock();
        let fresh = usize::try_from(ring.count.saturating_sub(seen)).unwrap_or(usize::MAX);
        let skipped = ring.samples.len().saturating_sub(fresh);
        News {
            samples: ring.samples.iter().skip(skipped).copied().collect(),
            now: ring.now,
            seen: ring.count,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn note(&mut self, now: Instant, wall: Timestamp, counts: Counts, factor: Factor) {
        let (began, before) = *self.began.get_or_insert((now, counts));
        let took = now.duration_since(began);
        if took >= SAMPLE {
            self.began = Some((now, counts));
            self.count += 1;
            if self.samples.len() == SAMPLES_MAX {
                self.samples.pop_front();
            }
            let sample = Sample::new(wall, took, counts.since(before), factor);
            self.samples.push_back(sample);
        }
        self.looks.push_back((now, counts));
        // The one before the ten seconds stays: what is counted is counted from it on.
        while self.looks.len() > LOOKS_MAX
            || self
                .looks
                .get(1)
                .is_some_and(|(second, _)| now.duration_since(*second) >= NOW)
        {
            self.looks.pop_front();
        }
        self.now = self.looks.front().and_then(|(first, before)| {
            let took = now.duration_since(*first);
            let is_some = took > Duration::ZERO;
            is_some.then(|| Sample::new(wall, took, counts.since(*before), factor))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock {
        began: Instant,
        history: History,
        totals: Totals,
    }

    impl Clock {
        fn new() -> Self {
            Self {
                began: Instant::now(),
                history: History::default(),
                totals: Totals::default(),
            }
        }

        fn look(&self, second: u64) {
            let wall = Timestamp::from_second(i64::try_from(second).unwrap()).unwrap();
            let now = self.began + Duration::from_secs(second);
            self.history
                .note(now, wall, &self.totals, Factor::ModelServer);
        }

        /// Looks each second, with so many results between two looks.
        fn run(&mut self, seconds: std::ops::Range<u64>, results: u64) {
            for second in seconds {
                self.look(second);
                self.totals.processed += results;
            }
        }
    }

    #[test]
    fn a_sample_is_what_happened_in_ten_seconds() {
        let mut clock = Clock::new();
        clock.run(0..10, 3);
        assert!(clock.history.news(0).samples.is_empty());
        *clock
            .totals
            .dead_lettered
            .entry("invalid_json")
            .or_default() += 2;
        clock.totals.prompt_tokens = 700;
        clock.totals.completion_tokens = 80;
        clock.look(10);
        let News { samples, seen, .. } = clock.history.news(0);
        let expected = Sample {
            at_ms: 10_000,
            ms: 10_000,
            results: 30,
            failures: 2,
            prompt_tokens: 700,
            completion_tokens: 80,
            factor: Factor::ModelServer,
        };
        assert_eq!(samples, [expected]);
        assert!(clock.history.news(seen).samples.is_empty(), "it was seen");
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let mut clock = Clock::new();
        clock.run(0..2 * 3_600 + 1, 1);
        let news = clock.history.news(0);
        assert_eq!(news.samples.len(), 360);
        assert_eq!(news.samples.first().unwrap().at_ms, 3_610_000);
        assert_eq!(news.samples.last().unwrap().at_ms, 7_200_000);
        assert_eq!(news.seen, 720);
        assert!(clock.history.lock().looks.len() <= LOOKS_MAX);
    }

    #[test]
    fn a_slow_reader_gets_what_it_missed() {
        let mut clock = Clock::new();
        clock.run(0..11, 1);
        let seen = clock.history.news(0).seen;
        clock.run(11..42, 1);
        let ends: Vec<_> = clock.history.news(seen).samples;
        let ends: Vec<_> = ends.iter().map(|sample| sample.at_ms).collect();
        assert_eq!(ends, [20_000, 30_000, 40_000]);
    }

    #[test]
    fn the_rate_of_now_is_that_of_ten_seconds() {
        let mut clock = Clock::new();
        clock.look(0);
        assert_eq!(clock.history.news(0).now, None, "nothing took no time");
        clock.run(1..5, 10);
        let now = clock.history.news(0).now.unwrap();
        assert_eq!((now.results, now.ms), (30, 4_000), "as far as there is");
        clock.run(5..60, 7);
        let now = clock.history.news(0).now.unwrap();
        assert_eq!((now.results, now.ms), (70, 10_000));
    }

    #[test]
    fn a_process_that_stood_still_has_one_long_sample() {
        let mut clock = Clock::new();
        clock.run(0..5, 1);
        clock.look(100);
        let News { samples, now, .. } = clock.history.news(0);
        assert_eq!(samples.len(), 1);
        assert_eq!((samples[0].ms, samples[0].results), (100_000, 5));
        assert_eq!(now.unwrap().ms, 96_000);
    }
}
