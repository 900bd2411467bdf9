//! How to reach Kafka, and what to do there.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::security::{EndpointIdentification, SaslMechanism, SecurityProtocol};
use crate::types::Secret;

/// `kafka.driver`: which client reads the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum DriverSetting {
    /// `rskafka`, unless a setting or the number of partitions speaks against it.
    #[default]
    Auto,
    /// Fetch loops on rskafka's partition clients.
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
    /// Which client reads the input.
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
    /// File with the SASL password, read at each new connection.
    pub sasl_password_file: Option<PathBuf>,
    /// `sasl.oauthbearer.token.endpoint.url`: where tokens are asked for.
    pub sasl_oauthbearer_token_endpoint_url: String,
    /// File with a token that somebody else keeps fresh, read at each authentication.
    pub sasl_oauthbearer_token_file: Option<PathBuf>,
    /// `sasl.oauthbearer.client.credentials.client.id`: who asks for tokens.
    pub sasl_oauthbearer_client_credentials_client_id: String,
    /// `sasl.oauthbearer.client.credentials.client.secret`.
    pub sasl_oauthbearer_client_credentials_client_secret: Option<Secret>,
    /// File with the client's secret, read whenever a token is asked for.
    pub sasl_oauthbearer_client_credentials_client_secret_file: Option<PathBuf>,
    /// `sasl.oauthbearer.scope`: what the token is asked for.
    pub sasl_oauthbearer_scope: String,
    /// `name=value`, comma separated: what goes to the broker beside the token (KIP-342).
    pub sasl_oauthbearer_extensions: String,
    /// `ssl.truststore.location`, PEM: the authorities that brokers' certificates may come from; without it, the system's.
    pub ssl_truststore_location: Option<PathBuf>,
    /// `ssl.keystore.location`, PEM: the certificate that says who we are with its chain, and the key unless that has a file of its own.
    pub ssl_keystore_location: Option<PathBuf>,
    /// `ssl.key.location`, PEM: the key of that certificate.
    pub ssl_key_location: Option<PathBuf>,
    /// `ssl.endpoint.identification.algorithm`: whether a certificate has to name the broker's host.
    pub ssl_endpoint_identification_algorithm: EndpointIdentification,
    /// `request.timeout.ms`: the longest that any request may take, beyond what it waits on purpose.
    #[serde(with = "crate::types::duration")]
    pub request_timeout: Duration,
    /// `socket.connection.setup.timeout.ms`: the longest that dialling, the TLS handshake and authenticating may take.
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
            sasl_password_file: None,
            sasl_oauthbearer_token_endpoint_url: String::new(),
            sasl_oauthbearer_token_file: None,
            sasl_oauthbearer_client_credentials_client_id: String::new(),
            sasl_oauthbearer_client_credentials_client_secret: None,
            sasl_oauthbearer_client_credentials_client_secret_file: None,
            sasl_oauthbearer_scope: String::new(),
            sasl_oauthbearer_extensions: String::new(),
            ssl_truststore_location: None,
            ssl_keystore_location: None,
            ssl_key_location: None,
            ssl_endpoint_identification_algorithm: EndpointIdentification::default(),
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
