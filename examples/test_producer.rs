//! Sends sample documents to the input topic: `cargo run --release --example test_producer -- --count 3`.
//!
//! Kafka is where `KAFKA_BROKERS` says, `localhost:9092` by default; `kafka-llm-processor sandbox` puts one there.

use std::process::ExitCode;

fn main() -> ExitCode {
    kafka_llm_processor::cli::main_as("produce")
}
