//! Whether calls may flow, or are held and why: to one endpoint, and as a whole. Anyone may look; whoever holds decides.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;

/// Why the work is held, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// One sentence for the operator, with the setting to change.
    pub reason: String,
    /// Since when, on the wall clock.
    pub since: Timestamp,
    /// The same moment for measuring.
    pub began: Instant,
}

/// Flowing or held.
#[derive(Debug)]
pub(super) struct Gate {
    hold: watch::Sender<Option<Hold>>,
}

impl Gate {
    /// Flowing.
    pub(super) fn new() -> Self {
        Self {
            hold: watch::Sender::new(None),
        }
    }

    /// Holds the work; while it is held already the first reason stays. True when this call began it.
    pub(super) fn hold(&self, reason: &str) -> bool {
        self.hold.send_if_modified(|hold| {
            let begins = hold.is_none();
            if begins {
                *hold = Some(Hold {
                    reason: reason.to_owned(),
                    since: clock::now(),
                    began: Instant::now(),
                });
            }
            begins
        })
    }

    /// Replaces the reason of a hold. True when it differs.
    pub(super) fn explain(&self, reason: &str) -> bool {
        self.hold.send_if_modified(|hold| match hold {
            Some(hold) if hold.reason != reason => {
                reason.clone_into(&mut hold.reason);
                true
            }
            _ => false,
        })
    }

    /// Lets the work flow again; what was held, when it was.
    pub(super) fn release(&self) -> Option<Hold> {
        let mut ended = None;
        self.hold.send_if_modified(|hold| {
            ended = hold.take();
            ended.is_some()
        });
        ended
    }

    pub(super) fn is_held(&self) -> bool {
        self.hold.borrow().is_some()
    }

    pub(super) fn current(&self) -> Option<Hold> {
        self.hold.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Hold>> {
        self.hold.subscribe()
    }

    /// Waits until something holds the work.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn held(&self) {
        drop(self.hold.subscribe().wait_for(Option::is_some).await);
    }
}

/// Whether the work as a whole stands still: while every endpoint is held, or something holds the work beside them.
#[derive(Debug)]
pub(super) struct JointGate {
    reasons: Mutex<Reasons>,
    gate: Gate,
}

#[derive(Debug)]
struct Reasons {
    endpoints: Vec<Option<String>>,
    beside: Option<String>,
}

impl Reasons {
    /// Why the work stands still; `None` while it does not.
    fn whole(&self) -> Option<String> {
        let mut held: Vec<_> = self
            .endpoints
            .iter()
            .flatten()
            .map(String::as_str)
            .collect();
        if held.is_empty() || held.len() < self.endpoints.len() {
            return self.beside.clone();
        }
        held.dedup();
        Some(held.join("; "))
    }
}

impl JointGate {
    /// Flowing.
    pub(super) fn new(endpoints: usize) -> Self {
        Self {
            reasons: Mutex::new(Reasons {
                endpoints: vec![None; endpoints],
                beside: None,
            }),
            gate: Gate::new(),
        }
    }

    /// What is seen from outside.
    pub(super) const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// An endpoint is held, for another reason, or no more.
    pub(super) fn set_endpoint(&self, index: usize, reason: Option<&str>) -> Turn {
        self.set(|reasons| {
            if let Some(slot) = reasons.endpoints.get_mut(index) {
                *slot = reason.map(str::to_owned);
            }
        })
    }

    /// Something beside the endpoints holds the work, or no more.
    pub(super) fn set_beside(&self, reason: Option<&str>) -> Turn {
        self.set(|reasons| reasons.beside = reason.map(str::to_owned))
    }

    fn set(&self, change: impl FnOnce(&mut Reasons)) -> Turn {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut reasons);
        // Under the lock, so that two changes cannot overtake each other.
        match reasons.whole() {
            Some(reason) => {
                let begins = self.gate.hold(&reason);
                if !begins {
                    self.gate.explain(&reason);
                }
                if begins { Turn::Began } else { Turn::None }
            }
            None => self.gate.release().map_or(Turn::None, Turn::Ended),
        }
    }
}

/// What a change of a [`JointGate`] brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    /// The work began to stand still.
    Began,
    /// It flows again.
    Ended(Hold),
    /// Neither.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_stands_still_while_every_endpoint_is_held() {
        let joint = JointGate::new(2);
        let reason = || joint.gate().current().map(|hold| hold.reason);
        assert_eq!(joint.set_endpoint(0, Some("one is down")), Turn::None);
        assert_eq!(reason(), None);
        assert_eq!(joint.set_endpoint(1, Some("two is down")), Turn::Began);
        assert_eq!(reason().as_deref(), Some("one is down; two is down"));
        assert_eq!(joint.set_endpoint(1, Some("two is gone")), Turn::None);
        assert_eq!(reason().as_deref(), Some("one is down; two is gone"));
        assert!(matches!(joint.set_endpoint(0, None), Turn::Ended(_)));
        assert_eq!(reason(), None);
    }

    #[test]
    fn what_lies_beside_the_endpoints_holds_as_well_and_gives_way_to_them() {
        let joint = JointGate::new(1);
        let reason = || joint.gate().current().map(|hold| hold.reason);
        assert_eq!(joint.set_beside(Some("refused")), Turn::Began);
        assert_eq!(joint.set_endpoint(0, Some("down")), Turn::None);
        assert_eq!(reason().as_deref(), Some("down"));
        assert_eq!(joint.set_endpoint(0, None), Turn::None);
        assert_eq!(reason().as_deref(), Some("refused"));
        assert!(matches!(joint.set_beside(None), Turn::Ended(_)));
    }
}
