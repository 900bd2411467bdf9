//! What the suites on real servers share: processes that never outlive the tests, the broker, the vLLM, and the processor's binary.

#![allow(
    dead_code,
    reason = "each test binary compiles this for itself and uses a part of it"
)]

pub(crate) mod kafka;
pub(crate) mod load;
pub(crate) mod metrics;
pub(crate) mod process;
pub(crate) mod processor;
pub(crate) mod vllm;

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often a condition on another process is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Looks until there is an answer; fails the test with `what` when there is none in time.
pub(crate) async fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = look().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(LOOK).await;
    }
}
