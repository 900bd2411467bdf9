//! Whether calls may flow to a model server. Pure: time comes in as an argument, and probing is the caller's business.
//!
//! The states have the electrical sense: `Closed` passes traffic, `Open` stops it, `HalfOpen` passes the probe alone.
//!
//! | state    | endpoint fault | other failure     | success    | `begin_probe`         | `probe_failed`  | `probe_succeeded` |
//! |----------|----------------|-------------------|------------|-----------------------|-----------------|-------------------|
//! | Closed   | Open           | the tenth: Open   | row ends   | refused               | -               | -                 |
//! | Open     | -              | -                 | -          | HalfOpen, when due    | -               | -                 |
//! | HalfOpen | -              | -                 | -          | refused               | Open            | Closed            |
//!
//! # Invariants
//! 1. A fault of the endpoint opens at once, [`FAILURES_TO_OPEN`] failures without a success in between do too; what a document or its
//!    size is at fault for, and a server that has too much to do, never opens and ends no row either.
//! 2. Only a probe that went well closes. What becomes of a call that was sent before the breaker last closed changes nothing: such a
//!    call says what the server was like, not what it is like.
//! 3. The first probe is due at once, each later one when the wait after the last has passed; one probe runs at a time.
//! 4. The moment of opening stays until it closes; the reason is the newest that a probe found, before that the one that opened.

use std::time::Duration;

use tokio::time::Instant;

use super::classify::Fault;

/// Failures in a row, over all documents, that open. At a steady failure rate of three in ten a row of ten comes once in a hundred
/// thousand calls, and costs one probe.
pub(super) const FAILURES_TO_OPEN: u32 = 10;

/// See the module's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls flow.
    Closed,
    /// Nothing is sent.
    Open,
    /// The probe is on its way, nothing else is sent.
    HalfOpen,
}

/// What an event has changed, for whoever tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing that anyone waits for.
    Nothing,
    /// Calls must not flow any more: [`Breaker::reason`] says why.
    Opened,
    /// A probe failed.
    StaysOpen {
        /// The first of this opening: the server is known not to work.
        confirmed: bool,
        /// For another reason than before.
        explained: bool,
    },
    /// Calls may flow again.
    Closed {
        /// How long it was open.
        after: Duration,
        /// Whether a probe had failed: without, the server may never have been gone.
        confirmed: bool,
    },
}

/// One server's breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    /// Who is judged, as reasons name it: `http://host:8000 (LLM_URL)`.
    subject: String,
    /// Failures since the last success or closing.
    failures_in_row: u32,
    /// When it last closed; calls sent before that moment are not judged.
    closed_at: Option<Instant>,
    opening: Option<Opening>,
    outages: u64,
}

/// From opening to closing.
#[derive(Debug)]
struct Opening {
    at: Instant,
    reason: String,
    probe: Probe,
    confirmed: bool,
}

#[derive(Debug)]
enum Probe {
    /// It may begin from this moment on.
    Due(Instant),
    Running,
}

impl Breaker {
    /// Closed.
    pub(super) fn new(subject: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            failures_in_row: 0,
            closed_at: None,
            opening: None,
            outages: 0,
        }
    }

    pub(super) const fn state(&self) -> State {
        match &self.opening {
            None => State::Closed,
            Some(Opening {
                probe: Probe::Due(_),
                ..
            }) => State::Open,
            Some(Opening {
                probe: Probe::Running,
                ..
            }) => State::HalfOpen,
        }
    }

    /// Whether documents may be sent.
    pub(super) const fn passes(&self) -> bool {
        self.opening.is_none()
    }

    /// Why it is not closed: one sentence for the operator.
    pub(super) fn reason(&self) -> Option<&str> {
        self.opening.as_ref().map(|opening| opening.reason.as_str())
    }

    /// When the next probe may begin; none while closed and while one runs.
    pub(super) fn probe_due(&self) -> Option<Instant> {
        match self.opening.as_ref()?.probe {
            Probe::Due(at) => Some(at),
            Probe::Running => None,
        }
    }

    /// Openings in which a probe failed, since the start.
    pub(super) const fn outages(&self) -> u64 {
        self.outages
    }

    /// A call that was sent at `sent` was answered.
    pub(super) fn on_success(&mut self, sent: Instant) {
        if self.judges(sent) {
            self.failures_in_row = 0;
        }
    }

    /// A call that was sent at `sent` failed; `detail` says how, for the operator.
    pub(super) fn on_failure(
        &mut self,
        now: Instant,
        sent: Instant,
        fault: Fault,
        detail: &str,
    ) -> Change {
        if !self.judges(sent) {
            return Change::Nothing;
        }
        match fault {
            Fault::Endpoint => self.open(now, detail),
            Fault::Transient
            | Fault::Disconnected
            | Fault::TimedOut
            | Fault::Aborted
            | Fault::Unreadable
            | Fault::Empty => {
                self.failures_in_row = self.failures_in_row.saturating_add(1);
                if self.failures_in_row < FAILURES_TO_OPEN {
                    return Change::Nothing;
                }
                let reason = format!(
                    "{} failed {} times in a row, the last time: {detail}",
                    self.subject, self.failures_in_row
                );
                self.open(now, &reason)
            }
            Fault::Capacity { .. } | Fault::Request | Fault::Document(_) | Fault::TooLong => {
                Change::Nothing
            }
        }
    }

    /// Opens for what was found otherwise than by a call, such as a model that is not in the list; changes nothing when it is open.
    pub(super) fn open(&mut self, now: Instant, reason: &str) -> Change {
        if self.opening.is_some() {
            return Change::Nothing;
        }
        self.opening = Some(Opening {
            at: now,
            reason: reason.to_owned(),
            probe: Probe::Due(now),
            confirmed: false,
        });
        Change::Opened
    }

    /// The probe begins. False when it must not: none is due, or one runs.
    #[must_use = "a probe that may not begin must not be sent"]
    pub(super) fn begin_probe(&mut self, now: Instant) -> bool {
        if self.probe_due().is_none_or(|due| due > now) {
            return false;
        }
        if let Some(opening) = &mut self.opening {
            opening.probe = Probe::Running;
        }
        true
    }

    /// The probe failed for `reason`; the next is due after `wait`.
    pub(super) fn probe_failed(&mut self, now: Instant, reason: &str, wait: Duration) -> Change {
        let Some(opening) = &mut self.opening else {
            return Change::Nothing;
        };
        if matches!(opening.probe, Probe::Due(_)) {
            return Change::Nothing;
        }
        opening.probe = Probe::Due(now + wait);
        let explained = opening.reason != reason;
        if explained {
            reason.clone_into(&mut opening.reason);
        }
        let confirmed = !opening.confirmed;
        if confirmed {
            opening.confirmed = true;
            self.outages = self.outages.saturating_add(1);
        }
        Change::StaysOpen {
            confirmed,
            explained,
        }
    }

    /// The probe went well.
    pub(super) fn probe_succeeded(&mut self, now: Instant) -> Change {
        let Some(opening) = self
            .opening
            .take_if(|opening| matches!(opening.probe, Probe::Running))
        else {
            return Change::Nothing;
        };
        self.failures_in_row = 0;
        self.closed_at = Some(now);
        Change::Closed {
            after: now.saturating_duration_since(opening.at),
            confirmed: opening.confirmed,
        }
    }

    /// Whether what becomes of a call that was sent at `sent` says anything.
    fn judges(&self, sent: Instant) -> bool {
        self.passes() && self.closed_at.is_none_or(|closed| sent >= closed)
    }
}

#[cfg(test)]
mod tests;
