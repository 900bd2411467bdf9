//! The first words with Kafka of a command that a person waits for.

use std::time::Duration;

use crate::kafka::wire::{Cluster, TopicDescription};
use crate::kafka::{KafkaConfig, KafkaError};

/// How long a command waits for the first answer: what is wrong with a setting is told within five seconds.
pub(super) const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// A cluster that gives up soon, for questions that a healthy one answers at once.
pub(super) fn impatient(kafka: &KafkaConfig) -> Cluster {
    Cluster::new(&KafkaConfig {
        request_timeout: kafka.request_timeout.min(FIRST_ANSWER_WITHIN),
        connect_timeout: kafka.connect_timeout.min(FIRST_ANSWER_WITHIN),
        ..kafka.clone()
    })
}

/// Describes a topic; `None` when it does not exist.
pub(super) async fn topic(
    cluster: &Cluster,
    name: &str,
) -> Result<Option<TopicDescription>, KafkaError> {
    Ok(cluster
        .describe_topics(&[name])
        .await?
        .remove(name)
        .flatten())
}
