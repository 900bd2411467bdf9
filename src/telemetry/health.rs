//! Whether the process is alive and whether it is ready.
//!
//! *Alive*: the event loop of the workers turns. It beats once a second; when the beat stops for [`BEAT_LATE_AFTER`], a restart is
//! the cure. An outage of Kafka or of the model never makes the process dead.
//!
//! *Ready*: every latch is released (topics verified, partitions owned, recovery done); the server adds that nothing holds the work.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

const BEAT_EVERY: Duration = Duration::from_secs(1);

/// A loop that has not turned for so long is stuck: 30 beats missed.
pub const BEAT_LATE_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct State {
    set: BTreeSet<&'static str>,
    last_beat: Option<Instant>,
}

/// The latches and the beat; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

/// One thing to be done before the process is ready. A latch that is dropped without [`release`](Latch::release) stays set: what
/// failed to start is not ready.
#[derive(Debug)]
#[must_use = "a latch that is never released keeps the process unready"]
pub struct Latch {
    health: Health,
    name: &'static str,
}

impl Health {
    /// Nothing set, no beat yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a latch; of equal names there is one.
    pub fn latch(&self, name: &'static str) -> Latch {
        self.state().set.insert(name);
        Latch {
            health: self.clone(),
            name,
        }
    }

    /// The names of the latches that are still set, sorted.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<&'static str> {
        self.state().set.iter().copied().collect()
    }

    /// Whether the event loop turns. Before its first beat it is taken to.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let last_beat = self.state().last_beat;
        last_beat.is_none_or(|at| at.elapsed() < BEAT_LATE_AFTER)
    }

    /// Beats until cancelled. Runs on the event loop that it speaks for. A loop that ended on purpose is not stuck.
    ///
    /// # Cancel safety
    /// Dropping it stops the beat: the process is then taken for dead after [`BEAT_LATE_AFTER`].
    pub async fn beat(&self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(BEAT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            self.state().last_beat = Some(Instant::now());
        }
        self.state().last_beat = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Latch {
    /// It is done.
    pub fn release(self) {
        self.health.state().set.remove(self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_all_latches_are_released() {
        let health = Health::new();
        let topics = health.latch("topics");
        let recovery = health.latch("recovery");
        assert_eq!(health.waiting_for(), ["recovery", "topics"]);
        topics.release();
        assert_eq!(health.waiting_for(), ["recovery"]);
        recovery.release();
        assert!(health.waiting_for().is_empty());
    }

    #[test]
    fn a_latch_that_is_dropped_stays_set() {
        let health = Health::new();
        drop(health.latch("topics"));
        assert_eq!(health.waiting_for(), ["topics"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_stops_turning_is_dead() {
        let health = Health::new();
        assert!(health.is_alive(), "before the first beat");
        let beating = health.clone();
        let beat = tokio::spawn(async move { beating.beat(CancellationToken::new()).await });
        tokio::time::sleep(BEAT_LATE_AFTER * 2).await;
        assert!(health.is_alive(), "while it beats");
        beat.abort();
        assert!(beat.await.is_err());
        tokio::time::sleep(BEAT_LATE_AFTER).await;
        assert!(!health.is_alive(), "after the beat stopped");
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_ended_on_purpose_is_not_dead() {
        let health = Health::new();
        let shutdown = CancellationToken::new();
        let (beating, stop) = (health.clone(), shutdown.clone());
        let beat = tokio::spawn(async move { beating.beat(stop).await });
        tokio::time::sleep(BEAT_EVERY * 2).await;
        shutdown.cancel();
        beat.await.unwrap();
        tokio::time::sleep(BEAT_LATE_AFTER * 2).await;
        assert!(health.is_alive());
    }
}
