//! What becomes of a document after a failed attempt. Pure: time comes in as an argument, the endpoint's memory as a [`View`].
//!
//! # Invariants
//! 1. A document is given up for spent attempts, a passed deadline or a refused request only while an endpoint has succeeded for
//!    another document, or for the probe, with a call that began since this document's last attempt failed; otherwise it is held. What
//!    succeeded before says nothing about an engine that may have died then.
//! 2. Capacity, and whatever is wrong with the endpoint, costs no attempt; capacity costs no time of the deadline either.
//! 3. What a document had spent before an outage that the probe confirmed is given back to it.
//! 4. The number of attempts between two outages is bounded by the configuration, but for those at no cost: capacity (paced by
//!    back-off), endpoint faults (each waits for the probe) and one repeat for each connection that closed before an answer.

use std::time::Duration;

use tokio::time::Instant;

use super::LlmConfig;
use super::classify::{Failure, Fault};
use crate::retry::Backoff;
use crate::types::DeadLetterReason;

/// How often a timeout may have grown by half: 1.5³ is below four times, the fourth is cut to it.
const TIMEOUT_GROWTHS_MAX: u32 = 4;

/// The settings that policy follows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    attempts: u32,
    deadline: Duration,
    timeout: Duration,
    backoff_initial: Duration,
    backoff_max: Duration,
    retry_after_max: Duration,
}

impl Policy {
    /// Takes what it needs of the settings.
    #[must_use]
    pub(super) const fn new(config: &LlmConfig) -> Self {
        Self {
            attempts: config.attempts,
            deadline: config.deadline,
            timeout: config.timeout,
            backoff_initial: config.retry_backoff_initial,
            backoff_max: config.retry_backoff_max,
            retry_after_max: config.retry_after_max,
        }
    }
}

/// What the endpoints remember, at the moment of a decision.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct View {
    /// Whether the work is held.
    pub held: bool,
    /// When the last of the calls that succeeded, for a document or for the probe, began.
    pub last_success: Option<Instant>,
    /// Holds in which a probe failed, since the start.
    pub outages: u64,
}

/// What to do with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Ask again after `delay`.
    Retry {
        /// How long to wait; holds no slot.
        delay: Duration,
        /// Whether the failed attempt counts.
        costs_attempt: bool,
    },
    /// Keep it until the endpoint is known to work, then ask [`History::resume`].
    Hold,
    /// Give it up.
    DeadLetter(DeadLetterReason),
}

/// One document's memory.
#[derive(Debug)]
pub(super) struct History {
    policy: Policy,
    backoff: Backoff,
    first_attempt: Option<Instant>,
    last_began: Option<Instant>,
    last_failed: Option<Instant>,
    /// Outages that were known when the counting began.
    outages: u64,
    calls: u32,
    spent: u32,
    elapsed: Duration,
    timeouts: u32,
    reconnected: bool,
    pending: Option<DeadLetterReason>,
    endpoint_faults: u32,
}

impl History {
    /// A document that was not asked about yet.
    #[must_use]
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy,
            backoff: Backoff::new(policy.backoff_initial, policy.backoff_max),
            first_attempt: None,
            last_began: None,
            last_failed: None,
            outages: 0,
            calls: 0,
            spent: 0,
            elapsed: Duration::ZERO,
            timeouts: 0,
            reconnected: false,
            pending: None,
            endpoint_faults: 0,
        }
    }

    /// Calls that were begun.
    #[must_use]
    pub(super) const fn calls(&self) -> u32 {
        self.calls
    }

    /// A call begins.
    pub(super) fn begin(&mut self, now: Instant, view: View) {
        self.calls = self.calls.saturating_add(1);
        self.pending = None;
        self.last_began = Some(now);
        if self.first_attempt.is_some() && view.outages != self.outages {
            self.forgive();
        }
        if self.first_attempt.is_none() {
            self.first_attempt = Some(now);
            self.outages = view.outages;
        }
    }

    /// The longest that the next call may take: the configured timeout, half more after each timeout up to four times, never beyond
    /// the deadline. A client timeout throws away what vLLM had done, so the next try must not repeat the same waste.
    #[must_use]
    pub(super) fn timeout(&self) -> Duration {
        let mut timeout = self.policy.timeout;
        for _ in 0..self.timeouts.min(TIMEOUT_GROWTHS_MAX) {
            timeout = timeout.saturating_mul(3) / 2;
        }
        timeout
            .min(self.policy.timeout.saturating_mul(4))
            .min(self.policy.deadline.saturating_sub(self.elapsed))
            .max(Duration::from_millis(1))
    }

    /// A truncated answer is asked for again: that costs the attempt and its time. False when none is left.
    #[must_use]
    pub(super) fn spend_on_longer(&mut self, call_time: Duration) -> bool {
        self.elapsed = self.elapsed.saturating_add(call_time);
        self.spent = self.spent.saturating_add(1);
        self.spent < self.policy.attempts && self.elapsed < self.policy.deadline
    }

    /// Whether a failure is the one that each connection may have for free: the server closes idle connections without a word, so
    /// it says nothing about the server.
    pub(super) const fn is_stale_connection(&self, fault: Fault) -> bool {
        matches!(fault, Fault::Disconnected) && !self.reconnected
    }

    /// Judges a failed call that took `call_time`. `view` is the endpoint's memory with this failure noted.
    pub(super) fn decide(
        &mut self,
        failure: &Failure,
        call_time: Duration,
        view: View,
    ) -> Decision {
        self.last_failed = self.last_began.map(|began| began + call_time);
        let stale_connection = self.is_stale_connection(failure.fault);
        // A refused connection in between says nothing about the next one: an engine that dies of a document each time closes the
        // connection and is then not to be reached.
        self.reconnected = match failure.fault {
            Fault::Disconnected => true,
            Fault::Endpoint => self.reconnected,
            _ => false,
        };
        if !matches!(failure.fault, Fault::Endpoint) {
            self.endpoint_faults = 0;
        }
        match failure.fault {
            Fault::Capacity { retry_after } => {
                let own = self.backoff.next_delay();
                let asked = retry_after
                    .unwrap_or_default()
                    .min(self.policy.retry_after_max);
                Decision::Retry {
                    delay: asked.saturating_add(own),
                    costs_attempt: false,
                }
            }
            Fault::Endpoint => {
                self.endpoint_faults = self.endpoint_faults.saturating_add(1);
                Decision::Hold
            }
            Fault::Document(reason) => Decision::DeadLetter(reason),
            Fault::TooLong => Decision::DeadLetter(DeadLetterReason::ContextLengthExceeded),
            Fault::Request => self.verdict(DeadLetterReason::RequestRejected, view),
            // What fails while the work is held fails for the reason that holds it.
            _ if view.held => Decision::Hold,
            Fault::Disconnected if stale_connection => Decision::Retry {
                delay: Duration::ZERO,
                costs_attempt: false,
            },
            Fault::TimedOut => {
                self.timeouts = self.timeouts.saturating_add(1);
                self.spend(DeadLetterReason::AttemptsExhausted, call_time, view)
            }
            Fault::Transient | Fault::Disconnected | Fault::Aborted => {
                self.spend(DeadLetterReason::AttemptsExhausted, call_time, view)
            }
            Fault::Unreadable | Fault::Empty => {
                self.spend(DeadLetterReason::InvalidResponse, call_time, view)
            }
        }
    }

    /// Judges a document whose hold has ended.
    pub(super) fn resume(&mut self, view: View) -> Decision {
        if view.outages != self.outages {
            self.forgive();
        }
        match self.pending.take() {
            Some(reason) => self.verdict(reason, view),
            None => Decision::Retry {
                // A document that is refused each time although the probe is not must not spin.
                delay: if self.endpoint_faults > 1 {
                    self.backoff.next_delay()
                } else {
                    Duration::ZERO
                },
                costs_attempt: false,
            },
        }
    }

    /// Gives back what was spent before an outage. What comes after it is judged by what the endpoint shows after it.
    fn forgive(&mut self) {
        self.first_attempt = None;
        self.spent = 0;
        self.elapsed = Duration::ZERO;
        self.pending = None;
        self.endpoint_faults = 0;
        self.backoff.reset();
    }

    fn spend(&mut self, reason: DeadLetterReason, call_time: Duration, view: View) -> Decision {
        self.spent = self.spent.saturating_add(1);
        self.elapsed = self.elapsed.saturating_add(call_time);
        if self.spent >= self.policy.attempts {
            return self.verdict(reason, view);
        }
        let delay = self.backoff.next_delay();
        let elapsed = self.elapsed.saturating_add(delay);
        if elapsed >= self.policy.deadline {
            return self.verdict(DeadLetterReason::DeadlineExceeded, view);
        }
        self.elapsed = elapsed;
        Decision::Retry {
            delay,
            costs_attempt: true,
        }
    }

    /// Gives the document up, or keeps it until the endpoint has shown that others fare better.
    fn verdict(&mut self, reason: DeadLetterReason, view: View) -> Decision {
        let others_fare_better = match (view.last_success, self.last_failed) {
            (Some(success), Some(failed)) => success >= failed,
            _ => false,
        };
        if others_fare_better && !view.held {
            Decision::DeadLetter(reason)
        } else {
            self.pending = Some(reason);
            Decision::Hold
        }
    }
}

#[cfg(test)]
mod tests;
