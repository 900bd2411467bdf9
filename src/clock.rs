//! The wall clock and randomness: the only file that asks the system for either.
//!
//! Durations are measured with [`tokio::time::Instant`], which a test can pause; the wall clock is for time stamps only. Randomness is for
//! jitter only: nothing that has to be secret or unique is drawn here.

use std::cell::RefCell;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

thread_local! {
    /// Seeded by the system, unless a simulation seeds it.
    static RANDOM: RefCell<StdRng> = RefCell::new(StdRng::from_os_rng());
}

/// The time of day, for time stamps in records and logs.
#[must_use]
#[allow(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the wall clock"
)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// A number drawn evenly from 0 (inclusive) to 1 (exclusive).
#[must_use]
pub fn random() -> f64 {
    RANDOM.with_borrow_mut(|random| random.random())
}

/// Makes [`random`] repeatable on this thread: the same numbers follow upon the same seed. A simulation, which runs on one thread, calls it
/// before it begins.
pub fn seed_random(seed: u64) {
    RANDOM.set(StdRng::seed_from_u64(seed));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_numbers() {
        let draw = || [random(), random(), random()];
        seed_random(7);
        let first = draw();
        seed_random(7);
        assert_eq!(draw(), first);
        seed_random(8);
        assert_ne!(draw(), first);
        assert!(first.iter().all(|number| (0.0..1.0).contains(number)));
    }
}
