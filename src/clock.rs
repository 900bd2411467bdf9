//! The wall clock: the only file that asks the system for it.
//!
//! Durations are measured with [`tokio::time::Instant`], which a test can pause; this is for time stamps only.

use jiff::Timestamp;

/// The time of day, for time stamps in records and logs.
#[must_use]
#[allow(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the wall clock"
)]
pub fn now() -> Timestamp {
    Timestamp::now()
}
