//! Whether a document kills the engine that is asked about it. Pure: what endpoints have shown comes in as arguments.
//!
//! An engine that dies takes every call in flight with it, so one document that kills it each time would cost its neighbours their work
//! for ever. Which of them it was shows when each is tried alone. One at a time, not in halves: a restart of an engine takes minutes,
//! a call takes seconds, and this way costs the fewest restarts.
//!
//! # Invariants
//! 1. Only a death that the probe confirmed counts, and only for a document whose call reached that engine and got no answer.
//! 2. A document is tried alone after [`DEATHS_IN_COMPANY`] deaths, and is the culprit after [`DEATHS_ALONE`] while it was alone.
//! 3. It is the culprit only when another document was answered by a call that began after its first death alone: an engine that dies
//!    of every document is not any document's fault. Where nobody else is left to be asked about, one that was answered after its last
//!    death in company will do; one that nobody can be compared with is the culprit after [`DEATHS_UNPROVEN`].
//! 4. Once a culprit is found, the deaths that others were in count no more: it explains them.

use tokio::time::Instant;

use super::classify::Fault;

/// Deaths in company before a document is tried alone: one may be a restart that has nothing to do with it.
const DEATHS_IN_COMPANY: u32 = 2;
/// Deaths while it was alone before a document is given up; the first may still be a restart.
const DEATHS_ALONE: u32 = 2;

/// Deaths while it was alone before a document is given up when there is no other that could be answered or not.
const DEATHS_UNPROVEN: u32 = 5;

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
    /// When the last of the documents' calls that were answered began.
    pub(super) last_answer: Option<Instant>,
}

/// What speaks for or against a document beside its own calls.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Others {
    /// Culprits found so far.
    pub(super) culprits: u64,
    /// When the last of the calls that were answered, over all endpoints, began; of documents, not of probes.
    pub(super) last_answer: Option<Instant>,
    /// Whether nobody else waits to be asked about.
    pub(super) none_wait: bool,
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
    /// When it last died in company.
    last_in_company: Option<Instant>,
    /// When it first died alone.
    first_alone: Option<Instant>,
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

    /// A call to `endpoint`, which had seen `outages` when it began, has failed; true when its engine may have died of it.
    pub(super) fn note_failure(
        &mut self,
        fault: Fault,
        endpoint: usize,
        outages: u64,
        alone: bool,
        now: Instant,
    ) -> bool {
        let may_be_death = Self::may_be_death(fault);
        if may_be_death {
            self.unanswered.push(Unanswered {
                endpoint,
                outages,
                failed_at: now,
                alone,
            });
        }
        may_be_death
    }

    /// Judges anew before the next call.
    pub(super) fn judge(&mut self, shown: impl Fn(usize) -> Shown, others: Others) -> Company {
        if others.culprits != self.culprits {
            self.in_company = 0;
            self.alone = 0;
            self.last_in_company = None;
            self.first_alone = None;
            self.culprits = others.culprits;
        }
        let (mut in_company, mut alone) = (0, 0);
        let mut last_in_company = self.last_in_company;
        let mut first_alone = self.first_alone;
        self.unanswered.retain(|call| {
            let shown = shown(call.endpoint);
            if shown.outages > call.outages {
                if call.alone {
                    alone += 1;
                    first_alone = first_alone.or(Some(call.failed_at));
                } else {
                    in_company += 1;
                    last_in_company = last_in_company.max(Some(call.failed_at));
                }
                return false;
            }
            // It answered others since: it had not died.
            shown
                .last_success
                .is_none_or(|success| success <= call.failed_at)
        });
        self.in_company += in_company;
        self.alone += alone;
        self.last_in_company = last_in_company;
        self.first_alone = first_alone;
        let answered_after = |death: Option<Instant>| {
            let answer = others.last_answer;
            death.is_some_and(|death| answer.is_some_and(|answer| answer > death))
        };
        // Tried as the last of those that died together, it would have to kill three engines more for want of somebody who comes after it.
        let is_proven = answered_after(self.first_alone)
            || (others.none_wait && answered_after(self.last_in_company));
        let deaths = match (is_proven, others.none_wait) {
            (true, _) => DEATHS_ALONE,
            (false, true) => DEATHS_UNPROVEN,
            (false, false) => u32::MAX,
        };
        if self.alone >= deaths {
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
            last_answer: last_success,
        }
    }

    fn others(culprits: u64, last_answer: Option<Instant>) -> Others {
        Others {
            culprits,
            last_answer,
            none_wait: false,
        }
    }

    /// What is thought of a document after its engine died each time; others are answered at `answered`.
    fn after_deaths(others: Others, deaths: u64) -> Company {
        let now = Instant::now();
        let mut suspicion = Suspicion::default();
        let mut company = Company::Any;
        for death in 0..deaths {
            let alone = company == Company::Alone;
            suspicion.note_failure(Fault::Disconnected, 0, death, alone, now);
            company = suspicion.judge(shown(death + 1, None), others);
        }
        company
    }

    #[test]
    fn a_document_that_kills_each_time_is_tried_alone_and_then_given_up() {
        let later = Instant::now() + Duration::from_secs(60);
        let proof = others(0, Some(later));
        let expected = [Company::Any, Company::Alone, Company::Alone, Company::None];
        for (deaths, expected) in (1..).zip(expected) {
            assert_eq!(after_deaths(proof, deaths), expected);
        }
    }

    /// Invariant 3.
    #[test]
    fn an_engine_that_dies_of_everybody_is_nobodys_fault() {
        assert_eq!(after_deaths(others(0, None), 100), Company::Alone);
        let only = Others {
            none_wait: true,
            ..Others::default()
        };
        assert_eq!(after_deaths(only, 6), Company::Alone);
        assert_eq!(after_deaths(only, 7), Company::None);
    }

    /// Invariant 3.
    #[test]
    fn the_last_that_is_left_is_compared_with_those_that_were_answered_before_it() {
        let died = Instant::now();
        let second = Duration::from_secs(1);
        let judged = |answered: Instant, none_wait: bool| {
            let mut suspicion = Suspicion::default();
            let others = Others {
                none_wait,
                ..others(0, Some(answered))
            };
            let deaths = [(false, died), (false, died), (true, died + 2 * second)];
            let deaths = deaths.into_iter().chain([(true, died + 3 * second)]);
            let mut company = Company::Any;
            for (before, (alone, at)) in (0..).zip(deaths) {
                suspicion.note_failure(Fault::Transient, 0, before, alone, at);
                company = suspicion.judge(shown(before + 1, None), others);
            }
            company
        };
        assert_eq!(judged(died + second, true), Company::None);
        // An answer from before says nothing, and while others wait they are asked about first.
        assert_eq!(judged(died, true), Company::Alone);
        assert_eq!(judged(died + second, false), Company::Alone);
    }

    /// Invariant 1.
    #[test]
    fn only_a_confirmed_death_counts() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut suspicion = Suspicion::default();
        for _ in 0..10 {
            suspicion.note_failure(Fault::Transient, 0, 3, false, now);
            assert_eq!(
                suspicion.judge(shown(3, Some(later)), others(0, None)),
                Company::Any
            );
        }
        // That it answered before the failure proves nothing; the death is confirmed later, and each call counts once.
        suspicion.note_failure(Fault::Transient, 0, 3, false, later);
        assert_eq!(
            suspicion.judge(shown(3, Some(now)), others(0, None)),
            Company::Any
        );
        suspicion.judge(shown(4, Some(now)), others(0, None));
        assert_eq!(suspicion.in_company, 1);
        suspicion.judge(shown(9, Some(now)), others(0, None));
        assert_eq!(suspicion.in_company, 1);
        for fault in [
            Fault::TimedOut,
            Fault::Endpoint,
            Fault::Request,
            Fault::Capacity { retry_after: None },
        ] {
            suspicion.note_failure(fault, 0, 9, false, later);
            suspicion.judge(shown(10, None), others(0, None));
            assert_eq!(suspicion.in_company, 1);
        }
    }

    /// Invariant 4.
    #[test]
    fn a_culprit_clears_its_neighbours() {
        let now = Instant::now();
        let mut suspicion = Suspicion::default();
        for deaths in 0..2 {
            suspicion.note_failure(Fault::Transient, 0, deaths, false, now);
            suspicion.judge(shown(deaths + 1, None), others(0, None));
        }
        assert_eq!(
            suspicion.judge(shown(2, None), others(0, None)),
            Company::Alone
        );
        assert_eq!(
            suspicion.judge(shown(4, None), others(1, None)),
            Company::Any
        );
    }
}
