//! `produce`, `results` and `check` against the sandbox's servers, as a person at a terminal meets them. They are called in this process; the
//! program as a process is in `program`.
#![cfg(feature = "sandbox")]
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test binary: it has no outside, and a test fails by panicking"
)]

mod check;
mod produce;
mod results;
mod servers;
mod together;
