//! The sandbox's broker, seen through clients that others wrote, through raw bytes, and beside a real Kafka.
//!
//! Tests that need a tool which is not installed print why and pass. `REAL_KAFKA=host:port` runs the table of refusals against a real
//! broker too; `REAL_KAFKA_TOOLS=folder` says where `tool.sh` of the Java tools lies.
#![cfg(feature = "sandbox")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::too_many_lines,
    reason = "a test fails by panicking, says on standard output what it skips, and may be a long table"
)]

#[path = "sandbox_broker/exactly_once.rs"]
mod exactly_once;
#[path = "sandbox_broker/faults.rs"]
mod faults;
#[path = "sandbox_broker/foreign.rs"]
mod foreign;
#[path = "sandbox_broker/foreign_groups.rs"]
mod foreign_groups;
#[path = "sandbox_broker/group_refusals.rs"]
mod group_refusals;
#[path = "sandbox_broker/groups.rs"]
mod groups;
#[path = "sandbox_broker/hostile.rs"]
mod hostile;
#[path = "sandbox_broker/refusals.rs"]
mod refusals;
#[path = "sandbox_broker/rskafka.rs"]
mod rskafka_client;
#[path = "sandbox_broker/sasl.rs"]
mod sasl;
#[path = "sandbox_broker/traffic.rs"]
mod traffic;
#[path = "sandbox_broker/transactions.rs"]
mod transactions;
#[path = "sandbox_broker/versions.rs"]
mod versions;
#[path = "sandbox_broker/wire.rs"]
mod wire;
#[path = "sandbox_broker/wire_source.rs"]
mod wire_source;
