//! Reads documents from Kafka, asks vLLM about each, and writes the answers back to Kafka.
//!
//! # Guarantees
//! 1. A document that Kafka accepted ends as a result in the output topic or as a record in the dead-letter topic,
//!    at least once. Nothing else ends it: not a crash, not an outage, not a bad answer.
//! 2. With `processing.guarantee = exactly_once` it ends so once, for readers with `isolation.level = read_committed`: results, dead letters
//!    and the commit are one transaction, and the broker refuses what a former owner of the partition still writes. The model may be asked
//!    twice for one document: it is no part of the transaction.
//! 3. An outage holds the work; only what is wrong with the document itself spends its attempts.
//! 4. Memory is bounded by the configuration. Compressed input counts once it is inflated: a batch that inflates to more than the bound passes
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
//! kafka  llm  drift  telemetry  records
//! retry  tls
//! types  clock  spans
//! ```
//!
//! `sandbox` stands beside the ladder: it imports `types` and `clock` alone and is used by `cli`, tests, examples and benches.
//!
//! # Not goals
//! Not one call of the model per document, not exactly once beyond one Kafka cluster, and not where the driver `rskafka` reads, which is the
//! one that at least once takes; no general stream processing, no model serving.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod drift;
#[doc(hidden)]
pub mod fuzzing;
pub mod kafka;
pub mod llm;
pub mod offsets;
pub mod pipeline;
pub mod records;
pub mod retry;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub mod spans;
pub mod telemetry;
pub mod tls;
pub mod types;
