//! How things stand on the model's side, for whoever shows it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::BreakerState;
use super::gate::Hold;
use super::metrics::LlmMetrics;
use crate::types::SourcePosition;

/// A snapshot of the model's side, for the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlmState {
    /// Why and since when the work is held; `None` while it flows.
    pub held: Option<Hold>,
    /// What documents wait for while a budget is used up.
    pub over_budget: Option<Hold>,
    /// The servers, in the order of `llm.url`.
    pub endpoints: Vec<EndpointState>,
    /// Calls that may run at once, over all servers.
    pub limit: usize,
    /// Calls that run.
    pub running: usize,
    /// Documents and admissions that wait for a slot or for a hold to end.
    pub waiting: usize,
    /// Those of them that wait for a budget.
    pub waiting_for_budget: usize,
    /// The setting that keeps every limit from growing, where one does.
    pub limited_by: Option<&'static str>,
    /// Documents that wait before their next attempt.
    pub retrying: usize,
    /// Those of them that wait because the server has too much to do.
    pub throttled: usize,
    /// The budgets that are set.
    pub budgets: Vec<BudgetState>,
}

/// What a budget allows at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetState {
    /// Its configuration key.
    pub key: &'static str,
    /// Requests or tokens, below zero while a balance is paid back.
    pub left: i64,
}

/// A snapshot of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointState {
    /// Base URL.
    pub url: String,
    /// Whether calls flow to it.
    pub breaker: BreakerState,
    /// Why not, and since when.
    pub held: Option<Hold>,
    /// Calls that may run at once.
    pub limit: usize,
    /// Calls that run, or have their slot.
    pub running: usize,
    /// Requests that wait in the server, as it told last; nothing where it does not tell.
    pub queued_there: Option<u64>,
    /// Prompt and expected answer tokens of these.
    pub outstanding_tokens: u64,
}

#[derive(Debug, Default)]
pub(super) struct Levels {
    pub(super) running: AtomicUsize,
    pub(super) waiting: AtomicUsize,
    pub(super) for_budget: AtomicUsize,
    pub(super) retrying: AtomicUsize,
    pub(super) throttled: AtomicUsize,
}

/// Counts one up while it lives.
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    pub(super) fn new(level: &'a AtomicUsize) -> Self {
        level.fetch_add(1, Ordering::Relaxed);
        Self(level)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a running call while it lives, also when it is dropped.
#[derive(Debug)]
pub(super) struct Running<'a> {
    _level: Counted<'a>,
    metrics: &'a LlmMetrics,
}

impl<'a> Running<'a> {
    pub(super) fn new(level: &'a AtomicUsize, metrics: &'a LlmMetrics) -> Self {
        metrics.call_began();
        Self {
            _level: Counted::new(level),
            metrics,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.metrics.call_ended();
    }
}

/// How many calls for a part of it were answered, of each document that takes many. Bounded by the documents that are with the model.
#[derive(Debug, Default)]
pub(super) struct Parts(Mutex<HashMap<SourcePosition, u64>>);

impl Parts {
    /// One more was answered.
    pub(super) fn note(&self, position: &SourcePosition) {
        *self.lock().entry(position.clone()).or_default() += 1;
    }

    /// How many were.
    pub(super) fn answered(&self, position: &SourcePosition) -> u64 {
        self.lock().get(position).copied().unwrap_or(0)
    }

    /// Forgets the document when the answer is dropped.
    pub(super) const fn of<'a>(&'a self, position: &'a SourcePosition) -> PartsOf<'a> {
        PartsOf {
            parts: self,
            position,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SourcePosition, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Parts::of`].
#[derive(Debug)]
pub(super) struct PartsOf<'a> {
    parts: &'a Parts,
    position: &'a SourcePosition,
}

impl Drop for PartsOf<'_> {
    fn drop(&mut self) {
        let mut parts = self.parts.lock();
        // Most documents take one call and are not in it.
        if !parts.is_empty() {
            parts.remove(self.position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Offset, TopicPartition};

    #[test]
    fn parts_are_counted_by_document_until_it_ends() {
        let parts = Parts::default();
        let position = |offset| SourcePosition {
            topic_partition: TopicPartition::new("docs", 0),
            offset: Offset::new(offset),
        };
        let (one, other) = (position(1), position(2));
        let ends = parts.of(&one);
        parts.note(&one);
        parts.note(&one);
        parts.note(&other);
        assert_eq!((parts.answered(&one), parts.answered(&other)), (2, 1));
        drop(ends);
        assert_eq!((parts.answered(&one), parts.answered(&other)), (0, 1));
    }
}
