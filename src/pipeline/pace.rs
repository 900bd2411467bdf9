//! How soon a flush follows the last one.

use std::time::Duration;

/// Commit records that one partition writes, in bytes per second: a record at its bound of 512 KiB goes out twice a second, so that the commit
/// topic never takes more of a broker than the results do. One of less than a kilobyte, which is what most are, waits for nothing.
const COMMIT_BYTES_PER_SECOND: usize = 1024 * 1024;

/// The least time between two flushes: the configured one, or longer after a large commit record.
pub(super) fn between_flushes(least: Duration, commit_bytes: usize) -> Duration {
    let for_bytes_ms = commit_bytes.saturating_mul(1_000) / COMMIT_BYTES_PER_SECOND;
    least.max(Duration::from_millis(
        u64::try_from(for_bytes_ms).unwrap_or(u64::MAX),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_commit_record_waits_for_nothing_and_a_large_one_for_its_bytes() {
        let interval = Duration::from_millis(50);
        assert_eq!(between_flushes(Duration::ZERO, 400), Duration::ZERO);
        assert_eq!(between_flushes(interval, 40_000), interval);
        assert_eq!(
            between_flushes(interval, 512 * 1024),
            Duration::from_millis(500)
        );
    }
}
