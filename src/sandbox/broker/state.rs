//! What the broker knows: topics, partitions, committed offsets, transactions. One mutex owns it; nobody holds it across an await.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use uuid::Uuid;

use super::batch::Batch;
use super::config::BrokerConfig;
use super::election::Election;
use super::groups::Groups;
use super::log::PartitionLog;
use super::topic_config::TopicConfig;
use super::transactions::Transactions;

/// Kafka's own longest topic name: a file name with room for the partition.
const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Partitions in one `CreateTopics` request, as Kafka limits them.
const PARTITIONS_MAX: usize = 10_000;
/// Partitions of all topics together.
const PARTITIONS_HELD_MAX: usize = 20_000;

/// Why the broker refuses: the code that goes to the client and the sentence beside it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Refusal {
    /// Kafka's error code.
    pub code: ResponseError,
    /// Kafka's sentence, or ours where the sandbox is stricter.
    pub message: String,
}

impl Refusal {
    pub(super) fn new(code: ResponseError, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(super) fn unknown_partition() -> Self {
        Self::new(
            ResponseError::UnknownTopicOrPartition,
            "This server does not host this topic-partition.",
        )
    }
}

/// One partition.
#[derive(Debug, Default)]
pub(super) struct Partition {
    pub log: PartitionLog,
    pub leader_epoch: i32,
    pub election: Election,
}

impl Partition {
    /// Checks the epoch that a client believes in; −1 is no belief.
    pub(super) fn check_epoch(&self, believed: i32) -> Result<(), ResponseError> {
        if believed == -1 || believed == self.leader_epoch {
            Ok(())
        } else if believed < self.leader_epoch {
            Err(ResponseError::FencedLeaderEpoch)
        } else {
            Err(ResponseError::UnknownLeaderEpoch)
        }
    }
}

/// One topic.
#[derive(Debug)]
pub(super) struct Topic {
    pub id: Uuid,
    pub partitions: Vec<Partition>,
    pub config: TopicConfig,
}

impl Topic {
    pub(super) fn partition(&self, index: i32) -> Option<&Partition> {
        self.partitions.get(usize::try_from(index).ok()?)
    }
}

/// What a topic is to be created with.
#[derive(Debug)]
pub(super) struct NewTopic<'a> {
    pub name: &'a str,
    pub partitions: usize,
    pub configs: Vec<(&'a str, Option<&'a str>)>,
}

/// Everything that outlives a connection and a listener.
#[derive(Debug)]
pub(super) struct State {
    pub cluster_id: String,
    pub topics: BTreeMap<String, Topic>,
    pub groups: Groups,
    pub transactions: Transactions,
    log_bytes_max: usize,
    message_max_bytes: i32,
}

impl State {
    pub(super) fn new(config: &BrokerConfig) -> Self {
        Self {
            cluster_id: format!("sandbox-{}", Uuid::new_v4().simple()),
            topics: BTreeMap::new(),
            groups: Groups::new(config),
            transactions: Transactions::default(),
            log_bytes_max: config.log_bytes_max,
            message_max_bytes: config.message_max_bytes,
        }
    }

    pub(super) fn partition(&self, topic: &str, index: i32) -> Option<&Partition> {
        self.topics.get(topic)?.partition(index)
    }

    pub(super) fn partition_mut(&mut self, topic: &str, index: i32) -> Option<&mut Partition> {
        let partitions = &mut self.topics.get_mut(topic)?.partitions;
        partitions.get_mut(usize::try_from(index).ok()?)
    }

    /// Checks everything that Kafka checks before a topic comes to be.
    pub(super) fn check_new_topic(&self, topic: &NewTopic<'_>) -> Result<TopicConfig, Refusal> {
        check_topic_name(topic.name)?;
        if self.topics.contains_key(topic.name) {
            return Err(Refusal::new(
                ResponseError::TopicAlreadyExists,
                format!("Topic '{}' already exists.", topic.name),
            ));
        }
        // Metric names replace dots, so Kafka keeps apart what would look alike there.
        let alike = topic.name.replace('.', "_");
        let twin = self
            .topics
            .keys()
            .find(|name| name.replace('.', "_") == alike);
        if let Some(twin) = twin {
            return Err(Refusal::new(
                ResponseError::InvalidTopicException,
                format!(
                    "Topic '{}' collides with existing topic: {twin}",
                    topic.name
                ),
            ));
        }
        if topic.partitions == 0 {
            return Err(Refusal::new(
                ResponseError::InvalidPartitions,
                "Number of partitions was set to an invalid non-positive value.",
            ));
        }
        if topic.partitions > PARTITIONS_MAX {
            return Err(Refusal::new(
                ResponseError::PolicyViolation,
                "Excessively large number of partitions per request.",
            ));
        }
        let held: usize = self.topics.values().map(|one| one.partitions.len()).sum();
        if held + topic.partitions > PARTITIONS_HELD_MAX {
            return Err(Refusal::new(
                ResponseError::PolicyViolation,
                format!(
                    "the sandbox holds at most {PARTITIONS_HELD_MAX} partitions; delete topics"
                ),
            ));
        }
        let mut config = TopicConfig::new(self.message_max_bytes);
        for (name, value) in &topic.configs {
            config
                .set(name, *value)
                .map_err(|message| Refusal::new(ResponseError::InvalidConfig, message))?;
        }
        Ok(config)
    }

    /// Creates a topic; answers its id.
    pub(super) fn create_topic(&mut self, topic: &NewTopic<'_>) -> Result<Uuid, Refusal> {
        let config = self.check_new_topic(topic)?;
        let id = Uuid::new_v4();
        let partitions = (0..topic.partitions)
            .map(|_| Partition::default())
            .collect();
        self.topics.insert(
            topic.name.to_owned(),
            Topic {
                id,
                partitions,
                config,
            },
        );
        Ok(id)
    }

    /// Deletes a topic and, as Kafka does, the offsets that groups have committed for it.
    pub(super) fn delete_topic(&mut self, name: &str) -> Result<Uuid, Refusal> {
        let topic = self
            .topics
            .remove(name)
            .ok_or_else(Refusal::unknown_partition)?;
        self.groups.forget_topic(name);
        Ok(topic.id)
    }

    pub(super) fn topic_name(&self, id: Uuid) -> Option<&str> {
        let found = self.topics.iter().find(|(_, topic)| topic.id == id);
        found.map(|(name, _)| name.as_str())
    }

    /// Appends a checked batch; answers its first offset and the start of the log.
    pub(super) fn append(
        &mut self,
        topic: &str,
        partition: i32,
        batch: Batch,
    ) -> Result<(i64, i64), Refusal> {
        let held: usize = self
            .topics
            .values()
            .flat_map(|topic| &topic.partitions)
            .map(|partition| partition.log.bytes())
            .sum();
        if held.saturating_add(batch.size()) > self.log_bytes_max {
            return Err(Refusal::new(
                ResponseError::KafkaStorageError,
                "the sandbox holds as many bytes as `log_bytes_max` allows; delete records or topics",
            ));
        }
        let partition = self
            .partition_mut(topic, partition)
            .ok_or_else(Refusal::unknown_partition)?;
        let epoch = partition.leader_epoch;
        let base = partition.log.append(batch, epoch);
        Ok((base, partition.log.start()))
    }
}

/// Kafka's rule for topic names.
pub(super) fn check_topic_name(name: &str) -> Result<(), Refusal> {
    let refuse = |why: String| {
        Err(Refusal::new(
            ResponseError::InvalidTopicException,
            format!("Topic name is invalid: {why}"),
        ))
    };
    if name.is_empty() {
        return refuse("the empty string is not allowed".to_owned());
    }
    if name == "." || name == ".." {
        return refuse(format!("'{name}' is not allowed"));
    }
    if name.len() > TOPIC_NAME_BYTES_MAX {
        return refuse(format!(
            "the length of '{name}' is longer than the max allowed length {TOPIC_NAME_BYTES_MAX}"
        ));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.chars().all(legal) {
        return refuse(format!(
            "'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"
        ));
    }
    Ok(())
}
