//! How to reach Kafka, and what to do there.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::Secret;

/// `security.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum SecurityProtocol {
    /// Neither encryption nor authentication.
    #[default]
    #[serde(rename = "PLAINTEXT")]
    Plaintext,
    /// SASL without encryption.
    #[serde(rename = "SASL_PLAINTEXT")]
    SaslPlaintext,
}

/// `sasl.mechanism`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum SaslMechanism {
    /// User and password as they are.
    #[default]
    #[serde(rename = "PLAIN")]
    Plain,
    /// RFC 5802 with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// RFC 5802 with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl SaslMechanism {
    /// Kafka's name for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// `kafka.driver`: which client reads the input and writes the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum DriverSetting {
    /// `rskafka`, unless a setting needs what it lacks.
    #[default]
    Auto,
    /// Fetch loops and gzip appends on rskafka's partition clients.
    Rskafka,
    /// Our own client on the `kafka-protocol` codecs.
    Wire,
}

/// Section `[kafka]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// `bootstrap.servers`: host:port, comma separated. Also `KAFKA_BROKERS`.
    pub brokers: String,
    /// Names this group of processors: its commit topic and the group whose offsets lag tools read.
    pub group_id: String,
    /// `group.instance.id`: with `input.assignment = group` a static member, whose restart within the session timeout moves no partition.
    /// Unique among the running instances; empty for a dynamic member.
    pub group_instance_id: String,
    /// `session.timeout.ms`: with `input.assignment = group`, how long a member may be silent before its partitions go to others.
    #[serde(with = "crate::types::duration")]
    pub session_timeout: Duration,
    /// `heartbeat.interval.ms`: how often a member tells that it lives; at most a third of the session timeout.
    #[serde(with = "crate::types::duration")]
    pub heartbeat_interval: Duration,
    /// Which client reads the input and writes the output.
    pub driver: DriverSetting,
    /// `client.id` that brokers show in their logs and quotas.
    pub client_id: String,
    /// Topic of the commit records; `{group_id}-commits` when empty.
    pub commit_topic: String,
    /// Whether missing topics are created.
    pub create_topics: bool,
    /// Replication factor of created topics; −1 takes the broker's default.
    pub replication_factor: i16,
    /// `security.protocol`.
    pub security_protocol: SecurityProtocol,
    /// `sasl.mechanism`.
    pub sasl_mechanism: SaslMechanism,
    /// SASL user name.
    pub sasl_username: String,
    /// SASL password.
    pub sasl_password: Option<Secret>,
    /// `request.timeout.ms`: the longest that any request may take, beyond what it waits on purpose.
    #[serde(with = "crate::types::duration")]
    pub request_timeout: Duration,
    /// `socket.connection.setup.timeout.ms`: the longest that dialling and authenticating may take.
    #[serde(with = "crate::types::duration")]
    pub connect_timeout: Duration,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: "localhost:9092".to_owned(),
            group_id: "kafka-llm-processor".to_owned(),
            group_instance_id: String::new(),
            session_timeout: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(3),
            driver: DriverSetting::default(),
            client_id: "kafka-llm-processor".to_owned(),
            commit_topic: String::new(),
            create_topics: true,
            replication_factor: -1,
            security_protocol: SecurityProtocol::default(),
            sasl_mechanism: SaslMechanism::default(),
            sasl_username: String::new(),
            sasl_password: None,
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(4),
        }
    }
}

impl KafkaConfig {
    /// The bootstrap brokers, one by one.
    #[must_use]
    pub fn bootstrap(&self) -> Vec<String> {
        self.brokers
            .split(',')
            .map(str::trim)
            .filter(|broker| !broker.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// The commit topic's name.
    #[must_use]
    pub fn commit_topic(&self) -> String {
        if self.commit_topic.is_empty() {
            format!("{}-commits", self.group_id)
        } else {
            self.commit_topic.clone()
        }
    }
}
