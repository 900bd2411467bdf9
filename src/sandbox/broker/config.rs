//! How a broker is started.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::types::Secret;

/// Users and passwords of a SASL listener.
pub type SaslUsers = BTreeMap<String, Secret>;

/// What clients are told that they may do, as the bits of KIP-430; nothing is refused because of it. By default everything, which is what
/// Kafka tells without an authorizer.
#[derive(Debug, Clone, Default)]
pub struct ToldRights {
    /// On topics, by name. All of them on others.
    pub topics: BTreeMap<String, i32>,
    /// On groups.
    pub groups: Option<i32>,
}

/// Read, Write, Create, Delete, Alter, Describe, DescribeConfigs and AlterConfigs: all that there is on a topic.
const TOPIC_OPERATIONS: i32 = 0b1101_1111_1000;
/// Read, Delete, Describe, DescribeConfigs and AlterConfigs: all that there is on a group.
const GROUP_OPERATIONS: i32 = 0b1101_0100_1000;

impl ToldRights {
    /// What is told of a topic.
    pub(super) fn on_topic(&self, name: &str) -> i32 {
        self.topics.get(name).copied().unwrap_or(TOPIC_OPERATIONS)
    }

    /// What is told of any group.
    pub(super) fn on_groups(&self) -> i32 {
        self.groups.unwrap_or(GROUP_OPERATIONS)
    }
}

/// How a broker is started. The defaults are Kafka's, except that topics are not created by asking for them and that a new consumer
/// group does not wait long for its members.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Where to listen. Default: a free port of 127.0.0.1.
    pub listen: SocketAddr,
    /// The host that clients are told to connect to. Default: the address it listens on.
    pub advertised_host: Option<String>,
    /// The port that clients are told to connect to, as behind a proxy. Default: the port it listens on.
    pub advertised_port: Option<u16>,
    /// With users, clients must authenticate with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, or with OAUTHBEARER, where a user's password is
    /// the token. Default: none, an open listener.
    pub sasl: Option<SaslUsers>,
    /// What clients are told that they may do.
    pub rights: ToldRights,
    /// Largest batch of a topic that does not set `max.message.bytes`. Kafka: `message.max.bytes`, 1048588.
    pub message_max_bytes: i32,
    /// Whether asking for a topic creates it. Kafka: `auto.create.topics.enable`, there true. Default: false.
    pub auto_create_topics: bool,
    /// Partitions of a topic whose creator does not say. Kafka: `num.partitions`, 1.
    pub num_partitions: i32,
    /// Bytes that all logs together may hold; beyond, an append is refused as by a full disk. Default: 1 GiB.
    pub log_bytes_max: usize,
    /// Connections at one time; beyond, a new one is closed. Kafka: `max.connections`. Default: 1024.
    pub connections_max: usize,
    /// How long the first rebalance of an empty group waits for more members. Kafka: `group.initial.rebalance.delay.ms`, 3 s.
    /// Default: 50 ms.
    pub group_initial_rebalance_delay: Duration,
    /// Shortest session timeout of a group member (inclusive). Kafka: `group.min.session.timeout.ms`, 6 s.
    pub group_session_timeout_min: Duration,
    /// Longest session timeout of a group member (inclusive). Kafka: `group.max.session.timeout.ms`, 30 min.
    pub group_session_timeout_max: Duration,
    /// Members of one group. Kafka: `group.max.size`, there without end. Default: 1000.
    pub group_members_max: usize,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertised_host: None,
            advertised_port: None,
            sasl: None,
            rights: ToldRights::default(),
            message_max_bytes: 1_048_588,
            auto_create_topics: false,
            num_partitions: 1,
            log_bytes_max: 1024 * 1024 * 1024,
            connections_max: 1024,
            group_initial_rebalance_delay: Duration::from_millis(50),
            group_session_timeout_min: Duration::from_secs(6),
            group_session_timeout_max: Duration::from_secs(1800),
            group_members_max: 1000,
        }
    }
}
