//! Reads documents from Kafka, asks vLLM about each, and writes the answers back to Kafka.
//!
//! # Guarantees
//! 1. A document that Kafka accepted ends as a result in the output topic or as a record in the dead-letter topic,
//!    at least once. Nothing else ends it: not a crash, not an outage, not a bad answer.
//! 2. An outage holds the work; only what is wrong with the document itself spends its attempts.
//! 3. Memory is bounded by the configuration. Compressed input counts once it is inflated: a batch that inflates to more than the bound passes
//!    it for as long as it is read.
//!
//! # Map
//! One direction only: each line may import what stands below it, never above, and the names on one line do not
//! import each other.
//!
//! ```text
//! cli
//! app
//! config
//! pipeline
//! offsets
//! kafka  llm  telemetry  records
//! retry
//! types  clock
//! ```
//!
//! `sandbox` stands beside the ladder: it imports `types` and `clock` alone and is used by `cli`, tests, examples and benches.
//!
//! # Not goals
//! No exactly-once on the default driver, no general stream processing, no model serving.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod kafka;
pub mod llm;
pub mod offsets;
pub mod pipeline;
pub mod records;
pub mod retry;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub mod telemetry;
pub mod types;
