//! Whether calls may flow to an endpoint, or are held and why. Anyone may look; the endpoint alone decides.

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

    /// Waits until nothing holds the work.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn flowing(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        drop(self.hold.subscribe().wait_for(Option::is_none).await);
    }

    /// Waits until something holds the work.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn held(&self) {
        drop(self.hold.subscribe().wait_for(Option::is_some).await);
    }
}
