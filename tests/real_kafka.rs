//! The processor's promises on the real Apache Kafka: the binary as it is shipped, one broker shared by all tests, and the simulated vLLM
//! (50 ms per call) as the model.
//!
//! `REAL_KAFKA_TOOLS` names the folder of `serve-secure.sh` and `tool.sh`, as an absolute path. Without it, or without Java, each test says
//! so and passes; with `REAL_KAFKA_REQUIRED=1` that is a failure. The tests take turns. `KLP_TEST_BINARY` names another build of the
//! processor than the one beside the tests.
//!
//! What speed and memory are is printed, and held to the bars of `docs/performance.md` only on request, as a debug build or a busy machine
//! says nothing about either:
//!
//! ```text
//! REAL_KAFKA_TOOLS=… cargo test --test real_kafka -- --nocapture
//! REAL_KAFKA_TOOLS=… REAL_KAFKA_BARS=1 cargo test --release --test real_kafka -- --nocapture
//! ```
//!
//! `REAL_KAFKA_SEED` repeats the random moments of a run; the seed is printed. `REAL_KAFKA_PORT` moves the broker to other ports.
#![cfg(feature = "sandbox")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "these are tests; clippy knows only functions marked as tests"
)]

mod support;

#[path = "real_kafka/acls.rs"]
mod acls;
#[path = "real_kafka/codecs.rs"]
mod codecs;
#[path = "real_kafka/crash.rs"]
mod crash;
#[path = "real_kafka/foreign_tools.rs"]
mod foreign_tools;
#[path = "real_kafka/group.rs"]
mod group;
#[path = "real_kafka/harness.rs"]
mod harness;
#[path = "real_kafka/main_job.rs"]
mod main_job;
#[path = "real_kafka/markers.rs"]
mod markers;
#[path = "real_kafka/outage.rs"]
mod outage;
#[path = "real_kafka/sasl.rs"]
mod sasl;
#[path = "real_kafka/stop.rs"]
mod stop;
#[path = "real_kafka/tls.rs"]
mod tls;
#[path = "real_kafka/topic_log.rs"]
mod topic_log;
