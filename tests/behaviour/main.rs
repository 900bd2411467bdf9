//! What the README promises, over the sandbox: one module per promise.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

mod audit;
mod commits;
mod data_loss;
mod dead_letters;
mod delivery;
mod drain;
mod drift;
mod fencing;
mod flavours;
mod group;
mod harness;
mod health;
mod limiting;
mod ordering;
mod outage;
mod ownership;
mod pause;
mod recovery;
mod reloads;
mod resets;
mod several_topics;
mod topics;
mod traces;
