//! What the README promises, over the sandbox: one module per promise.

#![allow(missing_docs, clippy::indexing_slicing, reason = "a test binary")]

mod dead_letters;
mod delivery;
mod drain;
mod harness;
mod ordering;
mod outage;
mod ownership;
mod recovery;
mod topics;
