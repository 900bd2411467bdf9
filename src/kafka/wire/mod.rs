//! Our own connections on the `kafka-protocol` codecs: what `rskafka` cannot do, and nothing else.
//!
//! It creates and describes topics with their configurations, commits and reads the offsets of a group, and reads our own topics,
//! which may hold transaction markers. Each call is a pure request builder, one exchange, and a pure response checker; the one retry
//! loop lies in [`Cluster`].
//!
//! # Invariants
//! 1. Every call ends within `kafka.request_timeout` plus what it waits on purpose.
//! 2. An answer that is not about what was asked is an error, never taken for an empty one.
//! 3. No length of a frame, and no length or count in a record batch, is trusted before it was compared with the bytes that are
//!    there. (The counts in other answers are `kafka-protocol`'s to check, and it trusts them.)
//!
//! # Not here
//! Appends, transactions, group membership, and TLS.

mod admin;
mod api;
mod batch;
mod cluster;
mod codec;
mod connection;
#[cfg(test)]
mod fake;
mod fetcher;
mod group;
mod pool;
mod reader;
mod sasl;
mod scan;
mod source;

pub use admin::{
    BrokerDescription, ClusterDescription, ConfigValue, Creation, NewTopic, TopicDescription,
};
pub use cluster::Cluster;
pub use group::RefusedCommit;
pub use reader::{Isolation, OffsetAt};
pub use source::WireSource;
