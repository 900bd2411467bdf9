//! What holds the work, told once when it begins, once a minute while it lasts, and once when it ends.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::status::StatusBoard;

/// How often a hold that lasts is told again.
const REPEAT: Duration = Duration::from_secs(60);

/// How soon another reason is told: failures that take turns must not flood the log.
const CHANGED: Duration = Duration::from_secs(5);

/// Keeps log and status board in step about holds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Holds {
    board: StatusBoard,
    active: Arc<Mutex<HashMap<String, Active>>>,
}

#[derive(Debug)]
struct Active {
    since: Instant,
    told: Instant,
    reason: String,
}

impl Holds {
    /// Holds shown on `board`.
    #[must_use]
    pub fn new(board: StatusBoard) -> Self {
        Self {
            board,
            active: Arc::default(),
        }
    }

    /// Something holds the work. `what` names it (`kafka`, `llm`, `partition docs/3`); `reason` says what happened and what to do.
    pub fn hold(&self, what: &str, reason: &str) {
        let now = Instant::now();
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        match active.get_mut(what) {
            Some(hold) => {
                let changed = hold.reason != reason;
                let pause = if changed { CHANGED } else { REPEAT };
                if now.duration_since(hold.told) >= pause {
                    hold.told = now;
                    let held_seconds = now.duration_since(hold.since).as_secs();
                    tracing::warn!(what, held_seconds, "still waiting: {reason}");
                }
                reason.clone_into(&mut hold.reason);
            }
            None => {
                tracing::warn!(what, "waiting: {reason}");
                let reason = reason.to_owned();
                active.insert(
                    what.to_owned(),
                    Active {
                        since: now,
                        told: now,
                        reason,
                    },
                );
            }
        }
        self.board.set_hold(what, reason);
    }

    /// Waits for `step`. One that takes longer than `patience` is told as a hold, unless something holds `what` already: it may end well,
    /// and its own deadline is further away than an operator should have to wait for a reason. The second answer says whether it was told;
    /// the hold is the caller's to release, who knows whether the step has succeeded.
    ///
    /// # Cancel safety
    /// That of `step`; what was told stays.
    pub async fn patiently<T>(
        &self,
        what: &str,
        reason: &str,
        patience: Duration,
        step: impl Future<Output = T>,
    ) -> (T, bool) {
        let mut step = pin!(step);
        if let Ok(answer) = timeout(patience, &mut step).await {
            return (answer, false);
        }
        let told = !self.is_held(what);
        if told {
            self.hold(what, reason);
        }
        (step.await, told)
    }

    fn is_held(&self, what: &str) -> bool {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.contains_key(what)
    }

    /// Nobody waits for it any more: it ends without a word, as nothing was healed.
    pub fn forget(&self, what: &str) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if active.remove(what).is_some() {
            self.board.clear_hold(what);
        }
    }

    /// It no longer does.
    pub fn release(&self, what: &str) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hold) = active.remove(what) {
            tracing::info!(
                what,
                held_seconds = hold.since.elapsed().as_secs(),
                "goes on"
            );
            self.board.clear_hold(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn holds() -> Holds {
        let mut registry = prometheus_client::registry::Registry::default();
        Holds::new(StatusBoard::new(&mut registry))
    }

    fn told(holds: &Holds) -> Vec<String> {
        let holds = holds.board.holds();
        holds.into_iter().map(|hold| hold.reason).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_within_patience_is_not_told() {
        let holds = holds();
        let step = sleep(PATIENCE / 2);
        let ((), was_told) = holds.patiently("kafka", "slow", PATIENCE, step).await;
        assert!(!was_told && told(&holds).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_step_is_told_before_it_ends_and_stays_told() {
        let holds = holds();
        let step = async {
            sleep(PATIENCE * 2).await;
            told(&holds)
        };
        let (meanwhile, was_told) = holds.patiently("kafka", "slow", PATIENCE, step).await;
        assert_eq!((meanwhile, was_told), (vec!["slow".to_owned()], true));
        assert_eq!(told(&holds), ["slow"], "the caller releases it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_known_reason_is_not_replaced() {
        let holds = holds();
        holds.hold("kafka", "known");
        let step = sleep(PATIENCE * 2);
        let ((), was_told) = holds.patiently("kafka", "slow", PATIENCE, step).await;
        assert!(!was_told);
        assert_eq!(told(&holds), ["known"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_stands_on_the_board_until_it_is_released() {
        let holds = holds();
        holds.hold("kafka", "refused");
        holds.hold("kafka", "no answer");
        assert_eq!(told(&holds), ["no answer"]);
        holds.release("llm");
        assert_eq!(told(&holds).len(), 1, "another's release changes nothing");
        holds.release("kafka");
        assert_eq!(told(&holds), [""; 0]);
    }
}
