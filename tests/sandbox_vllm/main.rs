//! The simulated vLLM answers as vLLM 0.32 does. What is expected here was read from a running vLLM 0.32.0.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failure in what the tests are set up with is a failure of the test"
)]

mod answers;
mod client;
mod faults;
mod load;
mod process;
mod shapes;
