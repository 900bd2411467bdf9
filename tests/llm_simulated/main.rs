//! The model client against the simulated vLLM, one module per promise.
#![cfg(feature = "sandbox")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod adaptive;
mod answers;
mod budgets;
mod endpoints;
mod harness;
mod hostile;
mod long;
mod outcomes;
mod poison;
mod raw;
mod repeats;
mod states;
