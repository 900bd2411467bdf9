//! Requests that are refused document after document: then it is not the documents, it is what we ask.
//!
//! While that is so the work is *on trial*: one document at a time is tried, and waits for its turn again when it is refused, until the
//! server takes one. The probe cannot tell, as it asks about no document.
//!
//! A refusal comes within milliseconds, an answer takes seconds: so a row of refusals says nothing while calls still run that began before it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::retry::Backoff;
use crate::types::SourcePosition;

/// Ceiling of the first pause after a refusal on trial.
const PACE_INITIAL: Duration = Duration::from_millis(500);
/// Where that ceiling stops growing: as long as a corrected server may wait for the next try.
const PACE_MAX: Duration = Duration::from_secs(10);
/// How often a trial is reported.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// What a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// One of few so far.
    Alone,
    /// One of too many different documents in a row: the trial begins with it.
    Begins,
    /// On trial.
    OnTrial,
}

/// The refusals since a document was answered.
#[derive(Debug)]
pub(super) struct Refusals {
    /// Different documents in a row that begin a trial; 0 never does.
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The number of the next call.
    next_call: u64,
    /// The calls that run.
    running: BTreeSet<u64>,
    /// Different documents that were refused since the last answer; never more than the limit.
    positions: Vec<SourcePosition>,
    /// The first call that began after the first of these refusals.
    row_began: u64,
    on_trial: bool,
    pace: Backoff,
    next_report: Instant,
}

impl Refusals {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            inner: Mutex::new(Inner {
                next_call: 0,
                running: BTreeSet::new(),
                positions: Vec::new(),
                row_began: 0,
                on_trial: false,
                pace: Backoff::new(PACE_INITIAL, PACE_MAX),
                next_report: Instant::now(),
            }),
        }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins; it ends with what is returned.
    pub(super) fn begin(&self) -> RunningCall<'_> {
        let mut inner = self.inner();
        let number = inner.next_call;
        inner.next_call += 1;
        inner.running.insert(number);
        RunningCall {
            refusals: self,
            number,
        }
    }

    /// A document's request was refused, by a call that has ended. `begin` puts the work on trial when that begins one; under the lock, so that nobody ends a trial
    /// before it has begun.
    pub(super) fn note(&self, position: &SourcePosition, begin: impl FnOnce()) -> Refused {
        let mut inner = self.inner();
        if inner.on_trial {
            return Refused::OnTrial;
        }
        if self.limit == 0 {
            return Refused::Alone;
        }
        if inner.positions.is_empty() {
            inner.row_began = inner.next_call;
        }
        if inner.positions.len() < self.limit && !inner.positions.contains(position) {
            inner.positions.push(position.clone());
        }
        let earlier = inner.running.first();
        let may_be_answered = earlier.is_some_and(|earlier| *earlier < inner.row_began);
        if inner.positions.len() < self.limit || may_be_answered {
            return Refused::Alone;
        }
        inner.on_trial = true;
        inner.pace.reset();
        inner.next_report = Instant::now() + REPORT_EVERY;
        begin();
        Refused::Begins
    }

    /// A document was answered. `end` lets the work flow again when that ends a trial.
    pub(super) fn answered(&self, end: impl FnOnce()) {
        let mut inner = self.inner();
        inner.positions.clear();
        if std::mem::take(&mut inner.on_trial) {
            end();
        }
    }

    pub(super) fn is_on_trial(&self) -> bool {
        self.inner().on_trial
    }

    /// How long to wait before the next document is tried, and whether it is time to tell of the trial again.
    pub(super) fn pace(&self) -> (Duration, bool) {
        let mut inner = self.inner();
        let now = Instant::now();
        let is_time = now >= inner.next_report;
        if is_time {
            inner.next_report = now + REPORT_EVERY;
        }
        (inner.pace.next_delay(), is_time)
    }
}

/// A call that runs, until it is dropped.
#[derive(Debug)]
pub(super) struct RunningCall<'a> {
    refusals: &'a Refusals,
    number: u64,
}

impl Drop for RunningCall<'_> {
    fn drop(&mut self) {
        self.refusals.inner().running.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Offset, TopicPartition};

    fn position(offset: i64) -> SourcePosition {
        SourcePosition {
            topic_partition: TopicPartition::new("t", 0),
            offset: Offset::new(offset),
        }
    }

    #[tokio::test]
    async fn different_documents_in_a_row_begin_a_trial_and_an_answer_ends_it() {
        let refusals = Refusals::new(3);
        let turns = std::cell::Cell::new((0, 0));
        let note = |offset| refusals.note(&position(offset), || turns.set((1, 0)));
        for offset in [1, 1, 1, 2, 2] {
            assert_eq!(note(offset), Refused::Alone);
        }
        refusals.answered(|| panic!("in a row"));
        for offset in [1, 2] {
            assert_eq!(note(offset), Refused::Alone);
        }
        assert_eq!(note(3), Refused::Begins);
        assert_eq!(note(3), Refused::OnTrial);
        assert!(refusals.is_on_trial());
        assert_eq!(turns.get(), (1, 0));
        refusals.answered(|| turns.set((1, 1)));
        assert_eq!(turns.get(), (1, 1));
        assert!(!refusals.is_on_trial());
        assert_eq!(note(3), Refused::Alone);
    }

    /// Refusals come at once, answers take their time: those that began before may still be answered.
    #[tokio::test]
    async fn a_row_waits_for_the_calls_that_began_before_it() {
        let refusals = Refusals::new(2);
        let begun = std::cell::Cell::new(false);
        let note = |offset| refusals.note(&position(offset), || begun.set(true));
        let earlier = refusals.begin();
        for offset in 0..10 {
            drop(refusals.begin());
            assert_eq!(note(offset), Refused::Alone);
        }
        let later = refusals.begin();
        drop(earlier);
        assert!(!begun.get());
        assert_eq!(note(10), Refused::Begins);
        drop(later);
    }

    #[tokio::test]
    async fn a_limit_of_zero_never_begins_one() {
        let refusals = Refusals::new(0);
        for offset in 0..100 {
            let refused = refusals.note(&position(offset), || panic!("begun"));
            assert_eq!(refused, Refused::Alone);
        }
    }
}
