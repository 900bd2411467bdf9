//! Back-off with full jitter: the only file that uses the `backoff` crate, so that it can be replaced in one place.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

use crate::clock;

/// Delays between tries: each is drawn evenly from zero to a ceiling that doubles up to a cap. It never ends by itself;
/// deadlines belong to the caller.
#[derive(Debug)]
pub struct Backoff {
    inner: ExponentialBackoff,
    floor: Duration,
}

impl Backoff {
    /// The first ceiling is `initial`, the last `cap`; no delay is below a tenth of `initial`.
    #[must_use]
    pub fn new(initial: Duration, cap: Duration) -> Self {
        // The crate gives the ceilings; the jitter is drawn below, as the crate's own cannot be seeded.
        let inner = ExponentialBackoff {
            current_interval: initial,
            initial_interval: initial,
            max_interval: cap,
            multiplier: 2.0,
            randomization_factor: 0.0,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self {
            inner,
            floor: initial / 10,
        }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.inner.next_backoff().map_or(self.floor, |ceiling| {
            ceiling.mul_f64(clock::random()).max(self.floor)
        })
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_between_floor_and_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let delays: Vec<_> = (0..500).map(|_| backoff.next_delay()).collect();
        assert!(
            delays
                .iter()
                .all(|delay| *delay >= Duration::from_millis(10))
        );
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(1)));
        assert!(
            delays
                .iter()
                .any(|delay| *delay > Duration::from_millis(500)),
            "the ceiling grows to the cap"
        );
        backoff.reset();
        assert!(
            backoff.next_delay() <= Duration::from_millis(100),
            "a reset starts over"
        );
    }
}
