//! Everything at once, on a machine with nothing but Rust: `cargo run --release --example quickstart`.
//!
//! Starts an in-memory Kafka and a simulated vLLM, sends six sample documents, processes them and shows the results. With `KAFKA_BROKERS`
//! or `LLM_URL` set it uses those instead.

use std::process::ExitCode;

fn main() -> ExitCode {
    kafka_llm_processor::cli::main_as("quickstart")
}
