//! The switch by which an operator has the work pause: no new call is begun, what runs is finished and committed.
//!
//! It is part of the process and of nothing else: a restart begins to work. Partitions, membership and claims stay as they are, so that nobody
//! else takes the work over meanwhile.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::sleep;

use crate::telemetry::StatusBoard;

/// How often a pause that lasts is told again: nobody else does, as nothing is wrong.
const REPEAT: Duration = Duration::from_secs(60);

/// What turning the switch has come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Turned {
    /// Whether the work is paused now.
    pub paused: bool,
    /// Since when.
    pub since: Option<Timestamp>,
    /// Whether that is news.
    pub changed: bool,
    /// Documents that are with the model, or between two calls; up to a second old.
    pub in_flight: u64,
}

/// The switch; cheap to clone.
#[derive(Clone)]
pub struct PauseSwitch {
    board: StatusBoard,
    turn: Arc<Mutex<dyn Fn(bool) + Send>>,
}

impl fmt::Debug for PauseSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PauseSwitch").finish_non_exhaustive()
    }
}

impl PauseSwitch {
    /// A switch that shows on `board` how it stands; `turn` is what it turns, and returns once that is so.
    pub fn new(board: StatusBoard, turn: impl Fn(bool) + Send + 'static) -> Self {
        Self {
            board,
            turn: Arc::new(Mutex::new(turn)),
        }
    }

    /// Pauses, or goes on. Whoever calls it again is told how it stands.
    pub fn set(&self, paused: bool) -> Turned {
        // Held until it shows: two who turn it at once must not leave it otherwise than it is shown.
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        turn(paused);
        let changed = self.board.set_paused(paused);
        drop(turn);
        let status = self.board.snapshot();
        let in_flight = status
            .partitions
            .iter()
            .map(|status| status.in_flight)
            .sum();
        if changed && paused {
            tracing::warn!(
                in_flight,
                "paused by an operator: no new call is begun, what runs is finished and committed; /resume, or a restart, ends it"
            );
        } else if changed {
            tracing::info!("resumed by an operator: calls are begun again");
        }
        Turned {
            paused,
            since: status.paused_since,
            changed,
            in_flight,
        }
    }

    /// Tells each minute of a pause that lasts, for as long as it is polled.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn remind(self) {
        loop {
            sleep(REPEAT).await;
            if let Some(since) = self.board.paused_since() {
                tracing::warn!(%since, "still paused by an operator");
            }
        }
    }
}
