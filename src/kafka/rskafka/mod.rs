//! The default reader of the input: fetch loops on rskafka's partition clients, at least once.
//!
//! What rskafka 0.6 leaves open is closed here: every call has a deadline of ours, as it has no request timeout, retries a lost connection
//! without end and backs off up to 500 s; a partition client whose call ran into the deadline is thrown away with its connection, as the
//! peer may be silently dead. Transaction markers, headers without a value and codecs it cannot read: there `wire` reads on. It is built
//! without gzip, which it would inflate without a bound, and so it writes nothing either: see `docs/decisions/0052-rskafka-reads-what-is-plain.md`.

mod error;
mod fetch;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rskafka::BackoffConfig;
use rskafka::client::partition::{PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder, Credentials, SaslConfig};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{KafkaConfig, KafkaError, SaslMechanism, SecurityProtocol};
use crate::types::TopicPartition;

pub use fetch::RskafkaSource;

/// First and last pause of rskafka's own retries: low, as an outage is waited out above.
const BACKOFF_INITIAL: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Largest answer that is read. A fetch asks for 1 MiB at most, yet a single larger batch is always sent whole; Kafka's default
/// `max.message.bytes` is 1 MiB, and few raise it beyond this.
const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One rskafka client, built at the first call that succeeds and shared from then on.
#[derive(Debug)]
struct Connector {
    config: KafkaConfig,
    client: Mutex<Option<Arc<Client>>>,
}

impl Connector {
    fn new(config: KafkaConfig) -> Self {
        Self {
            config,
            client: Mutex::new(None),
        }
    }

    async fn client(&self) -> Result<Arc<Client>, KafkaError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(Arc::clone(client));
        }
        // Never in the clear what is to be encrypted.
        if let Some(setting) = self.config.needs_wire() {
            return Err(cannot(setting));
        }
        let mut builder = ClientBuilder::new(self.config.bootstrap())
            .client_id(self.config.client_id.as_str())
            .max_message_size(FRAME_BYTES_MAX)
            .backoff_config(self.backoff());
        if self.config.security_protocol == SecurityProtocol::SaslPlaintext {
            builder = builder.sasl_config(sasl(&self.config).await?);
        }
        // A wrong password or an absent broker is retried without end in there.
        let built = timeout(self.config.connect_timeout, builder.build());
        let built = built.await.map_err(|_elapsed| KafkaError::Unreachable {
            brokers: self.config.brokers.clone(),
            detail: format!(
                "no connection within {:?} (kafka.connect_timeout)",
                self.config.connect_timeout
            ),
        })?;
        let built = Arc::new(built.map_err(|error| error::translate("connect", None, &error))?);
        *client = Some(Arc::clone(&built));
        Ok(built)
    }

    async fn partition(
        &self,
        partition: &TopicPartition,
    ) -> Result<Arc<PartitionClient>, KafkaError> {
        let client = self.client().await?;
        let opened = client.partition_client(
            &*partition.topic,
            partition.partition,
            UnknownTopicHandling::Error,
        );
        let opened = self
            .within("find the partition's leader", Duration::ZERO, opened)
            .await?;
        opened.map(Arc::new).map_err(|error| {
            error::translate("find the partition's leader", Some(partition), &error)
        })
    }

    /// Waits for a call, and for `extra` on top of the request timeout when the call waits on purpose.
    async fn within<T>(
        &self,
        operation: &'static str,
        extra: Duration,
        call: impl Future<Output = T>,
    ) -> Result<T, KafkaError> {
        let after = self.config.request_timeout + extra;
        timeout(after, call)
            .await
            .map_err(|_elapsed| KafkaError::Timeout { operation, after })
    }

    fn backoff(&self) -> BackoffConfig {
        BackoffConfig {
            init_backoff: BACKOFF_INITIAL,
            max_backoff: BACKOFF_MAX,
            base: 2.0,
            deadline: Some(self.config.request_timeout),
        }
    }
}

async fn sasl(config: &KafkaConfig) -> Result<SaslConfig, KafkaError> {
    let password = config.password().await?;
    let credentials = Credentials::new(config.sasl_username.clone(), password.expose().to_owned());
    match config.sasl_mechanism {
        SaslMechanism::Plain => Ok(SaslConfig::Plain(credentials)),
        SaslMechanism::ScramSha256 => Ok(SaslConfig::ScramSha256(credentials)),
        SaslMechanism::ScramSha512 => Ok(SaslConfig::ScramSha512(credentials)),
        SaslMechanism::Oauthbearer => Err(cannot("kafka.sasl_mechanism = OAUTHBEARER")),
    }
}

fn cannot(setting: &str) -> KafkaError {
    KafkaError::Credentials {
        detail: format!("the driver rskafka cannot do {setting}"),
    }
}
