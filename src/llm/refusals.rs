//! Requests that are refused document after document: then it is not the documents, it is what we ask.
//!
//! While that is so the work is *on trial*: one document at a time is tried, and waits for its turn again when it is refused, until the
//! server takes one. The probe cannot tell, as it asks about no document.
//!
//! A refusal comes within milliseconds, an answer takes seconds: so a row of refusals says nothing while calls still run that began before it.
//!
//! All of it is kept by flow, as each input topic may have a prompt of its own: what becomes of documents that are asked about otherwise
//! says nothing.

use std::collections::{BTreeMap, BTreeSet};
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

/// What was refused and answered, by flow: as many as there are input topics.
#[derive(Debug)]
pub(super) struct Refusals {
    /// Different documents in a row that begin a trial; 0 never does.
    limit: usize,
    flows: Mutex<BTreeMap<u32, Flow>>,
}

/// The refusals of one flow since a document of it was answered.
#[derive(Debug)]
struct Flow {
    /// The number of the next call.
    next_call: u64,
    /// The calls that run.
    running: BTreeSet<u64>,
    /// Different documents that were refused since the last answer; never more than the limit.
    positions: Vec<SourcePosition>,
    /// The first call that began after the first of these refusals.
    row_began: u64,
    /// When the call began that began last among those that were answered.
    last_answer: Option<Instant>,
    /// Why it is on trial, while it is.
    trial: Option<String>,
    pace: Backoff,
    next_report: Instant,
}

impl Flow {
    fn new() -> Self {
        Self {
            next_call: 0,
            running: BTreeSet::new(),
            positions: Vec::new(),
            row_began: 0,
            last_answer: None,
            trial: None,
            pace: Backoff::new(PACE_INITIAL, PACE_MAX),
            next_report: Instant::now(),
        }
    }

    fn put_on_trial(&mut self, reason: String) {
        self.trial = Some(reason);
        self.pace.reset();
        self.next_report = Instant::now() + REPORT_EVERY;
    }
}

/// Why work is on trial, over all flows.
fn reasons(flows: &BTreeMap<u32, Flow>) -> Option<String> {
    let reasons = flows.values().filter_map(|flow| flow.trial.as_deref());
    let reasons: Vec<_> = reasons.collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

impl Refusals {
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            limit,
            flows: Mutex::new(BTreeMap::new()),
        }
    }

    fn flows(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Flow>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins; it ends with what is returned.
    pub(super) fn begin(&self, flow: u32) -> RunningCall<'_> {
        let mut flows = self.flows();
        let known = flows.entry(flow).or_insert_with(Flow::new);
        let number = known.next_call;
        known.next_call += 1;
        known.running.insert(number);
        RunningCall {
            refusals: self,
            flow,
            number,
        }
    }

    /// A document's request was refused, by a call that has ended. `begin` puts the flow on trial for `reason` when that begins one, and is told
    /// of all that is; under the lock, so that nobody ends a trial before it has begun.
    pub(super) fn note(
        &self,
        flow: u32,
        position: &SourcePosition,
        reason: impl FnOnce() -> String,
        begin: impl FnOnce(Option<&str>),
    ) -> Refused {
        let mut flows = self.flows();
        let known = flows.entry(flow).or_insert_with(Flow::new);
        if known.trial.is_some() {
            return Refused::OnTrial;
        }
        if self.limit == 0 {
            return Refused::Alone;
        }
        if known.positions.is_empty() {
            known.row_began = known.next_call;
        }
        if known.positions.len() < self.limit && !known.positions.contains(position) {
            known.positions.push(position.clone());
        }
        let earlier = known.running.first();
        let may_be_answered = earlier.is_some_and(|earlier| *earlier < known.row_began);
        if known.positions.len() < self.limit || may_be_answered {
            return Refused::Alone;
        }
        known.put_on_trial(reason());
        begin(reasons(&flows).as_deref());
        Refused::Begins
    }

    /// Puts a flow on trial that is refused even without a document; false when it is already.
    pub(super) fn put_on_trial(
        &self,
        flow: u32,
        reason: String,
        begin: impl FnOnce(Option<&str>),
    ) -> bool {
        let mut flows = self.flows();
        let known = flows.entry(flow).or_insert_with(Flow::new);
        if known.trial.is_some() {
            return false;
        }
        known.put_on_trial(reason);
        begin(reasons(&flows).as_deref());
        true
    }

    /// A document was answered by a call that was sent at `sent`. `end` lets the flow go on when that ends a trial, and is told of those that
    /// last.
    pub(super) fn answered(&self, flow: u32, sent: Instant, end: impl FnOnce(Option<&str>)) {
        let mut flows = self.flows();
        let known = flows.entry(flow).or_insert_with(Flow::new);
        known.positions.clear();
        known.last_answer = known.last_answer.max(Some(sent));
        if known.trial.take().is_some() {
            end(reasons(&flows).as_deref());
        }
    }

    /// When the call began that began last among those of a flow that were answered.
    pub(super) fn last_answer(&self, flow: u32) -> Option<Instant> {
        self.flows().get(&flow).and_then(|flow| flow.last_answer)
    }

    pub(super) fn is_on_trial(&self, flow: u32) -> bool {
        let flows = self.flows();
        flows.get(&flow).is_some_and(|flow| flow.trial.is_some())
    }

    /// How long to wait before the next document of a flow is tried, and whether it is time to tell of the trial again.
    pub(super) fn pace(&self, flow: u32) -> (Duration, bool) {
        let mut flows = self.flows();
        let known = flows.entry(flow).or_insert_with(Flow::new);
        let now = Instant::now();
        let is_time = now >= known.next_report;
        if is_time {
            known.next_report = now + REPORT_EVERY;
        }
        (known.pace.next_delay(), is_time)
    }
}

/// A call that runs, until it is dropped.
#[derive(Debug)]
pub(super) struct RunningCall<'a> {
    refusals: &'a Refusals,
    flow: u32,
    number: u64,
}

impl Drop for RunningCall<'_> {
    fn drop(&mut self) {
        if let Some(flow) = self.refusals.flows().get_mut(&self.flow) {
            flow.running.remove(&self.number);
        }
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

    fn note(refusals: &Refusals, flow: u32, offset: i64) -> Refused {
        let reason = || format!("{flow} is refused");
        refusals.note(flow, &position(offset), reason, |_| {})
    }

    fn answered(refusals: &Refusals, flow: u32) {
        refusals.answered(flow, Instant::now(), |_| {});
    }

    #[tokio::test]
    async fn different_documents_in_a_row_begin_a_trial_and_an_answer_ends_it() {
        let refusals = Refusals::new(3);
        for offset in [1, 1, 1, 2, 2] {
            assert_eq!(note(&refusals, 0, offset), Refused::Alone);
        }
        refusals.answered(0, Instant::now(), |_| panic!("in a row"));
        for offset in [1, 2] {
            assert_eq!(note(&refusals, 0, offset), Refused::Alone);
        }
        assert_eq!(note(&refusals, 0, 3), Refused::Begins);
        assert_eq!(note(&refusals, 0, 3), Refused::OnTrial);
        assert!(refusals.is_on_trial(0));
        let is_over = std::cell::Cell::new(false);
        refusals.answered(0, Instant::now(), |held| is_over.set(held.is_none()));
        assert!(is_over.get());
        assert!(!refusals.is_on_trial(0));
        assert_eq!(note(&refusals, 0, 3), Refused::Alone);
    }

    /// Refusals come at once, answers take their time: those that began before may still be answered.
    #[tokio::test]
    async fn a_row_waits_for_the_calls_that_began_before_it() {
        let refusals = Refusals::new(2);
        let earlier = refusals.begin(0);
        for offset in 0..10 {
            drop(refusals.begin(0));
            assert_eq!(note(&refusals, 0, offset), Refused::Alone);
        }
        let later = refusals.begin(0);
        drop(earlier);
        assert!(!refusals.is_on_trial(0));
        assert_eq!(note(&refusals, 0, 10), Refused::Begins);
        drop(later);
    }

    #[tokio::test]
    async fn a_limit_of_zero_never_begins_one() {
        let refusals = Refusals::new(0);
        for offset in 0..100 {
            assert_eq!(note(&refusals, 0, offset), Refused::Alone);
        }
    }

    #[tokio::test]
    async fn another_flow_speaks_neither_for_nor_against_a_row() {
        let refusals = Refusals::new(2);
        let running = refusals.begin(1);
        assert_eq!(note(&refusals, 0, 1), Refused::Alone);
        answered(&refusals, 1);
        assert_eq!(refusals.last_answer(0), None);
        assert_eq!(note(&refusals, 0, 2), Refused::Begins);
        answered(&refusals, 1);
        assert!(refusals.is_on_trial(0) && !refusals.is_on_trial(1));
        drop(running);

        let held = std::cell::Cell::new(None);
        let show = |reason: Option<&str>| held.set(reason.map(str::to_owned));
        assert!(refusals.put_on_trial(1, "1 is refused".to_owned(), show));
        assert_eq!(held.take().as_deref(), Some("0 is refused; 1 is refused"));
        assert!(!refusals.put_on_trial(1, String::new(), |_| panic!("it is")));
        refusals.answered(0, Instant::now(), show);
        assert_eq!(held.take().as_deref(), Some("1 is refused"));
        refusals.answered(1, Instant::now(), show);
        assert_eq!(held.take(), None);
    }
}
