//! How often drift is told of where there is none, and how soon where there is: seeded streams of documents through what the monitor asks.
#![allow(unreachable_pub, reason = "a test binary has no outside")]
//!
//! `DRIFT_SEEDS` says how many streams of 100,000 documents are tried; `docs/drift.md` has the figures of many.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    reason = "a test binary: what is not as expected ends the test, and what it draws are numbers"
)]

mod cost;
mod false_alarms;
mod generations;
mod power;
mod stream;
