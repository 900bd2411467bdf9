//! Whether a document kills the engine that is asked about it. Pure: what endpoints have shown comes in as arguments.
//!
//! An engine that dies takes every call in flight with it, so one document that kills it each time would cost its neighbours their work
//! for ever. Which of them it was shows when each is tried alone. One at a time, not in halves: a restart of an engine takes minutes,
//! a call takes seconds, and this way costs the fewest restarts.
//!
//! # Invariants
//! 1. Only a death that the probe confirmed counts, and only for a document whose call reached that engine and got no answer.
//! 2. A document is tried alone after [`DEATHS_IN_COMPANY`] deaths, and is the culprit after [`DEATHS_ALONE`] while it was alone.
//! 3. Once a culprit is found, the deaths that others were in count no more: it explains them.

use tokio::time::Instant;

use super::classify::Fault;

/// Deaths in company before a document is tried alone: one may be a restart that has nothing to do with it.
const DEATHS_IN_COMPANY: u32 = 2;
/// Deaths while it was alone before a document is given up; the first may still be a restart.
const DEATHS_ALONE: u32 = 2;

/// In which company a document may be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// Beside others.
    Any,
    /// Alone in its endpoint.
    Alone,
    /// In none: it has killed the engine each time that it was alone.
    None,
}

/// What an endpoint has shown since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shown {
    /// Outages that a probe confirmed.
    pub(super) outages: u64,
    /// When the last of the calls that succeeded began.
    pub(super) last_success: Option<Instant>,
}

/// A call that ended without an answer; whether its engine died is not known yet.
#[derive(Debug)]
struct Unanswered {
    endpoint: usize,
    /// Outages when it began.
    outages: u64,
    failed_at: Instant,
    alone: bool,
}

/// One document's part in the deaths of engines.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    unanswered: Vec<Unanswered>,
    in_company: u32,
    alone: u32,
    /// Culprits that were found before its first death.
    culprits: u64,
}

impl Suspicion {
    /// Whether a call that failed like this may have been ended by the death of its engine.
    const fn may_be_death(fault: Fault) -> bool {
        matches!(
            fault,
            Fault::Transient | Fault::Disconnected | Fault::Aborted | Fault::Unreadable
        )
    }

    /// A call to `endpoint`, which had seen `outages` when it began, has failed.
    pub(super) fn note_failure(
        &mut self,
        fault: Fault,
        endpoint: usize,
        outages: u64,
        alone: bool,
        now: Instant,
    ) {
        if Self::may_be_death(fault) {
            self.unanswered.push(Unanswered {
                endpoint,
                outages,
                failed_at: now,
                alone,
            });
        }
    }

    /// Judges anew before the next call. `culprits` are those found so far, over all documents.
    pub(super) fn judge(&mut self, shown: impl Fn(usize) -> Shown, culprits: u64) -> Company {
        if culprits != self.culprits {
            self.in_company = 0;
            self.alone = 0;
            self.culprits = culprits;
        }
        let (mut in_company, mut alone) = (0, 0);
        self.unanswered.retain(|call| {
            let shown = shown(call.endpoint);
            if shown.outages > call.outages {
                *if call.alone {
                    &mut alone
                } else {
                    &mut in_company
                } += 1;
                return false;
            }
            // It answered others since: it had not died.
            shown
                .last_success
                .is_none_or(|success| success <= call.failed_at)
        });
        self.in_company += in_company;
        self.alone += alone;
        if self.alone >= DEATHS_ALONE {
            Company::None
        } else if self.in_company >= DEATHS_IN_COMPANY || self.alone > 0 {
            Company::Alone
        } else {
            Company::Any
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// One endpoint that has died so often, and answered at that time.
    fn shown(outages: u64, last_success: Option<Instant>) -> impl Fn(usize) -> Shown {
        move |_| Shown {
            outages,
            last_success,
        }
    }

    #[test]
    fn a_document_that_kills_each_time_is_tried_alone_and_then_given_up() {
        let now = Instant::now();
        let mut suspicion = Suspicion::default();
        let mut deaths = 0;
        for (alone, expected) in [
            (false, Company::Any),
            (false, Company::Alone),
            (true, Company::Alone),
            (true, Company::None),
        ] {
            suspicion.note_failure(Fault::Disconnected, 0, deaths, alone, now);
            deaths += 1;
            assert_eq!(suspicion.judge(shown(deaths, None), 0), expected);
        }
    }

    /// Invariant 1.
    #[test]
    fn only_a_confirmed_death_counts() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut suspicion = Suspicion::default();
        for _ in 0..10 {
            suspicion.note_failure(Fault::Transient, 0, 3, false, now);
            assert_eq!(suspicion.judge(shown(3, Some(later)), 0), Company::Any);
        }
        // That it answered before the failure proves nothing; the death is confirmed later, and each call counts once.
        suspicion.note_failure(Fault::Transient, 0, 3, false, later);
        assert_eq!(suspicion.judge(shown(3, Some(now)), 0), Company::Any);
        suspicion.judge(shown(4, Some(now)), 0);
        assert_eq!(suspicion.in_company, 1);
        suspicion.judge(shown(9, Some(now)), 0);
        assert_eq!(suspicion.in_company, 1);
        for fault in [
            Fault::TimedOut,
            Fault::Endpoint,
            Fault::Request,
            Fault::Capacity { retry_after: None },
        ] {
            suspicion.note_failure(fault, 0, 9, false, later);
            suspicion.judge(shown(10, None), 0);
            assert_eq!(suspicion.in_company, 1);
        }
    }

    /// Invariant 3.
    #[test]
    fn a_culprit_clears_its_neighbours() {
        let now = Instant::now();
        let mut suspicion = Suspicion::default();
        for deaths in 0..2 {
            suspicion.note_failure(Fault::Transient, 0, deaths, false, now);
            suspicion.judge(shown(deaths + 1, None), 0);
        }
        assert_eq!(suspicion.judge(shown(2, None), 0), Company::Alone);
        assert_eq!(suspicion.judge(shown(4, None), 1), Company::Any);
    }
}
