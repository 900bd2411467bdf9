//! The wall clock of the sandbox, which imports nothing of ours but the shared words.

use jiff::Timestamp;

/// Milliseconds since the Unix epoch.
#[allow(
    clippy::disallowed_methods,
    reason = "the sandbox stands beside the import ladder, so this is its one place that reads the wall clock"
)]
pub(super) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}
