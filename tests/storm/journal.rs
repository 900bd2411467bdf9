//! What happened in a storm, with its moments: printed as it happens, counted at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by everything that takes part in a storm.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    began: Instant,
    pages: Arc<Mutex<Pages>>,
}

#[derive(Debug, Default)]
struct Pages {
    counts: BTreeMap<&'static str, usize>,
    restarts: Vec<Instant>,
    failures: Vec<String>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            pages: Arc::default(),
        }
    }

    /// The beginning of the storm: what plans count from.
    pub(crate) const fn began(&self) -> Instant {
        self.began
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that needs no count.
    pub(crate) fn tell(&self, what: &str) {
        eprintln!("{:8.3} {what}", self.began.elapsed().as_secs_f64());
    }

    /// Something that is counted under a name.
    pub(crate) fn count(&self, name: &'static str, what: &str) {
        self.tell(what);
        self.number(name);
    }

    /// The next number of a series, from 1.
    pub(crate) fn number(&self, name: &'static str) -> usize {
        let mut pages = self.pages();
        let number = pages.counts.entry(name).or_default();
        *number += 1;
        *number
    }

    /// A killed instance is started again.
    pub(crate) fn restarted_after_kill(&self) {
        self.pages().restarts.push(Instant::now());
    }

    /// Something that must not happen.
    pub(crate) fn fail(&self, what: String) {
        self.tell(&format!("FAILURE: {what}"));
        self.pages().failures.push(what);
    }

    pub(crate) fn counted(&self, name: &str) -> usize {
        self.pages().counts.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn restarts(&self) -> Vec<Instant> {
        self.pages().restarts.clone()
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.pages().failures.clone()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
