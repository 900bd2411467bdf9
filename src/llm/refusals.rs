//! Requests that are refused document after document: then it is not the documents, it is what we ask.
//!
//! While that is so the work is *on trial*: one document at a time is tried, and waits for its turn again when it is refused, until the
//! server takes one. The probe cannot tell, as it asks about no document.

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
    /// Never more than the limit.
    positions: Vec<SourcePosition>,
    on_trial: bool,
    pace: Backoff,
    next_report: Instant,
}

impl Refusals {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            inner: Mutex::new(Inner {
                positions: Vec::new(),
                on_trial: false,
                pace: Backoff::new(PACE_INITIAL, PACE_MAX),
                next_report: Instant::now(),
            }),
        }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A document's request was refused.
    pub(super) fn note(&self, position: &SourcePosition) -> Refused {
        let mut inner = self.inner();
        if inner.on_trial {
            return Refused::OnTrial;
        }
        if self.limit == 0 || inner.positions.contains(position) {
            return Refused::Alone;
        }
        inner.positions.push(position.clone());
        if inner.positions.len() < self.limit {
            return Refused::Alone;
        }
        inner.on_trial = true;
        inner.pace.reset();
        inner.next_report = Instant::now() + REPORT_EVERY;
        Refused::Begins
    }

    /// A document was answered; true when that ends a trial.
    pub(super) fn answered(&self) -> bool {
        let mut inner = self.inner();
        inner.positions.clear();
        std::mem::take(&mut inner.on_trial)
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
        for offset in [1, 1, 1, 2, 2] {
            assert_eq!(refusals.note(&position(offset)), Refused::Alone);
        }
        assert!(!refusals.answered(), "in a row");
        for offset in [1, 2] {
            assert_eq!(refusals.note(&position(offset)), Refused::Alone);
        }
        assert_eq!(refusals.note(&position(3)), Refused::Begins);
        assert_eq!(refusals.note(&position(3)), Refused::OnTrial);
        assert!(refusals.is_on_trial());
        assert!(refusals.answered());
        assert!(!refusals.is_on_trial());
        assert_eq!(refusals.note(&position(3)), Refused::Alone);
    }

    #[tokio::test]
    async fn a_limit_of_zero_never_begins_one() {
        let refusals = Refusals::new(0);
        for offset in 0..100 {
            assert_eq!(refusals.note(&position(offset)), Refused::Alone);
        }
    }
}
