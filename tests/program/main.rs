//! The program as it is run, as a process: arguments, messages, signals and exit codes. What a command does is in `commands`.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test binary: it has no outside, and what is not as expected ends the test"
)]

#[allow(dead_code, reason = "others use the rest of it")]
#[path = "../support/metrics.rs"]
mod metrics;

mod end;
mod process;
mod running;
mod start;
mod usage;
