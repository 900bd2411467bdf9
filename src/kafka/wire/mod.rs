//! Our own connections on the `kafka-protocol` codecs: all that is written, and what `rskafka` cannot read.
//!
//! It creates and describes topics with their configurations, is a member of a group and commits its offsets, reads our own topics, which
//! may hold transaction markers, streams input partitions, at `read_committed` too, and appends, idempotently or in transactions. Each call
//! is a pure request builder, one exchange, and a pure response checker; the one retry loop lies in [`Cluster`], that of the streams,
//! which share their requests, in `source`.
//!
//! # Invariants
//! 1. Every call ends within `kafka.request_timeout` plus what it waits on purpose.
//! 2. An answer that is not about what was asked is an error, never taken for an empty one.
//! 3. No length of a frame, and no length or count in an answer or a record batch, is trusted before it was compared with the bytes
//!    that are there.
//!
//! # Not here
//! Which step follows which when results are written: the commit protocol, in `offsets`.

mod access;
mod admin;
mod api;
mod batch;
mod bounds;
mod cluster;
mod codec;
mod connection;
mod encode;
#[cfg(test)]
mod fake;
mod fetcher;
pub(crate) mod fuzzing;
mod group;
mod guard;
mod known;
mod look;
mod membership;
mod pool;
mod produce;
mod reader;
mod rights;
mod sasl;
mod scan;
mod sink;
mod source;
mod spoken;
mod stream;
mod tls;
mod token;
mod transaction;

pub use admin::{
    BrokerDescription, ClusterDescription, ConfigValue, Creation, NewTopic, TopicDescription,
};
pub use cluster::Cluster;
pub use encode::Compression;
pub use group::{MemberIdentity, RefusedCommit};
pub use membership::{GroupMember, MembershipConfig, MembershipError};
pub use reader::{Isolation, OffsetAt};
pub use rights::{Operation, Operations, TopicRights};
pub use sink::WireSink;
pub use source::WireSource;
pub use spoken::{ApiGap, BrokerSpeech};
