//! Shows the results that are in the output topic: `cargo run --release --example test_consumer`.
//!
//! Kafka is where `KAFKA_BROKERS` says, `localhost:9092` by default; `--follow` waits for more.

use std::process::ExitCode;

fn main() -> ExitCode {
    kafka_llm_processor::cli::main_as("results")
}
