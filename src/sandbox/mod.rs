//! A Kafka and a vLLM that live in this process, for `quickstart`, examples and tests on a machine with nothing but Rust.
//!
//! It stands beside the rest: it shares no code with our clients but the `kafka-protocol` codecs, so that a misreading of the
//! protocol cannot hide on both sides. It refuses what the real ones refuse. Production code never uses it.

pub mod broker;
pub mod vllm;
