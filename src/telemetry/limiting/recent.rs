//! From looks to what is shown: the last seconds decide, the last minute is told beside them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::{Blocker, Factor, Verdict};

/// What is shown is what most looks of so long came to.
const NOW: Duration = Duration::from_secs(10);
/// What the shares are of.
const MINUTE: Duration = Duration::from_secs(60);
/// More looks than come in a minute, a second apart.
const LOOKS_MAX: usize = 128;

/// What limits the work, as `/status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limiting {
    /// The factor.
    pub factor: Factor,
    /// One sentence with the numbers behind it.
    pub detail: String,
    /// The record that blocks, where one does.
    pub blocker: Option<Blocker>,
    /// Since when it is this one.
    pub since: Timestamp,
    /// Of the last minute, in percent, by factor.
    pub last_minute_percent: BTreeMap<&'static str, u64>,
    /// Documents that ended in the last minute, with a result or as dead letters.
    pub last_minute_documents: u64,
}

impl Limiting {
    /// The last minute as one reads it: `model_server 92 %, order 8 %`, the largest first.
    #[must_use]
    pub fn shares(&self) -> String {
        let mut shares: Vec<_> = self.last_minute_percent.iter().collect();
        shares.sort_by_key(|(name, percent)| (std::cmp::Reverse(**percent), **name));
        let shares = shares
            .into_iter()
            .map(|(name, percent)| format!("{name} {percent} %"));
        shares.collect::<Vec<_>>().join(", ")
    }
}

#[derive(Debug)]
struct Look {
    at: Instant,
    verdict: Verdict,
    /// Documents that had ended by then.
    ended: u64,
}

/// The looks of the last minute.
#[derive(Debug, Default)]
pub struct Recent {
    looks: VecDeque<Look>,
    shown: Option<(Factor, Timestamp)>,
}

impl Recent {
    /// No look yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a look, with the documents that have ended since the start; answers what is shown from now on.
    pub fn note(
        &mut self,
        now: Instant,
        wall: Timestamp,
        verdict: Verdict,
        ended: u64,
    ) -> Limiting {
        let newest = verdict.factor;
        self.looks.push_back(Look {
            at: now,
            verdict,
            ended,
        });
        // The one before the minute stays: documents are counted from it on.
        while self.looks.len() > LOOKS_MAX
            || self
                .looks
                .get(1)
                .is_some_and(|second| now.duration_since(second.at) >= MINUTE)
        {
            self.looks.pop_front();
        }
        let factor = self.of_now(now, newest);
        let since = match self.shown {
            Some((shown, since)) if shown == factor => since,
            _ => wall,
        };
        self.shown = Some((factor, since));
        let mut newest_first = self.looks.iter().rev();
        let told = newest_first.find(|look| look.verdict.factor == factor);
        let (detail, blocker) = told.map_or_else(Default::default, |look| {
            let Verdict {
                detail, blocker, ..
            } = look.verdict.clone();
            (detail, blocker)
        });
        let before = self.looks.front().map_or(ended, |look| look.ended);
        Limiting {
            factor,
            detail,
            blocker,
            since,
            last_minute_percent: self.shares(now),
            last_minute_documents: ended.saturating_sub(before),
        }
    }

    /// What most of the last looks came to, the newest of equals. What one look is enough for is shown at once, and counts for nothing once
    /// it is over.
    fn of_now(&self, now: Instant, newest: Factor) -> Factor {
        if newest.is_certain() {
            return newest;
        }
        let mut counts: BTreeMap<Factor, usize> = BTreeMap::new();
        let looks = self.looks.iter();
        for look in looks.filter(|look| now.duration_since(look.at) < NOW) {
            if !look.verdict.factor.is_certain() {
                *counts.entry(look.verdict.factor).or_default() += 1;
            }
        }
        let most = counts.iter().max_by_key(|(factor, count)| {
            let is_newest = **factor == newest;
            (**count, is_newest)
        });
        most.map_or(newest, |(factor, _)| *factor)
    }

    fn shares(&self, now: Instant) -> BTreeMap<&'static str, u64> {
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut all = 0;
        let looks = self.looks.iter();
        for look in looks.filter(|look| now.duration_since(look.at) < MINUTE) {
            *counts.entry(look.verdict.factor.as_str()).or_default() += 1;
            all += 1;
        }
        for count in counts.values_mut() {
            *count = (*count * 100 + all / 2) / all;
        }
        counts
    }
}
