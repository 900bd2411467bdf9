//! The sandbox's broker, seen through clients that others wrote.
#![cfg(feature = "sandbox")]

#[path = "sandbox_broker/rskafka.rs"]
mod rskafka_client;
