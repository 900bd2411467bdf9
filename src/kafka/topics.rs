//! The topics of a run: what must be there, what may be created, and what is refused.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::KafkaError;
use super::wire::{Cluster, NewTopic, TopicDescription};

/// Recovery reads the commit topic from its start, so it must stay short. The cleaner never touches the last segment of a partition: up to
/// so much is left there, whatever is superseded. 1 MiB is the least that Kafka 4 accepts, and twice the largest commit.
const COMMIT_TOPIC_CONFIGS: [(&str, &str); 3] = [
    ("cleanup.policy", "compact"),
    ("segment.bytes", "1048576"),
    ("min.cleanable.dirty.ratio", "0.1"),
];
/// A dead letter has the time stamp of its document, which may be old: the broker's usual week would delete it within minutes, and with it
/// all that is left of the document.
const DEAD_LETTER_TOPIC_CONFIGS: [(&str, &str); 1] = [("retention.ms", "-1")];
/// What the audit trail proves it proves for as long as it is there: how long that is to be nobody but the operator can say.
const AUDIT_TOPIC_CONFIGS: [(&str, &str); 2] =
    [("cleanup.policy", "delete"), ("retention.ms", "-1")];
/// Partitions of the commit topic, where there are more to read: each is read from its start, so that 32 MiB at most are left uncleaned. Each
/// is read once for all whose commits are in it, and an open transaction of one hides nothing of another.
const COMMIT_PARTITIONS_MAX: i32 = 32;
/// Partitions or replicas as the broker's own defaults say.
const BROKER_DEFAULT: i32 = -1;

/// What a run needs.
#[derive(Debug, Clone)]
pub struct WantedTopics {
    /// Topics to read.
    pub inputs: Vec<String>,
    /// Topic of the results.
    pub output: String,
    /// Topic of the dead letters.
    pub dead_letters: String,
    /// Topic of the commits.
    pub commits: String,
    /// Topic of the audit trail, where one is kept.
    pub audit: Option<String>,
    /// Whether missing ones are created.
    pub create: bool,
    /// Replication factor of created ones; −1 takes the broker's default.
    pub replication_factor: i16,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Input topics with id and number of partitions.
    pub inputs: Vec<(String, Uuid, i32)>,
    /// Partitions of the output topic.
    pub output_partitions: i32,
    /// Partitions of the dead-letter topic.
    pub dead_letter_partitions: i32,
    /// Partitions of the commit topic.
    pub commit_partitions: i32,
    /// Partitions of the audit topic, where one is kept.
    pub audit_partitions: Option<i32>,
}

/// Why the topics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopicsError {
    /// Kafka cannot be asked, or not now: worth another try.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// Somebody has to create it.
    #[error(
        "{key}: topic `{topic}` does not exist and kafka.create_topics = false: create it, or allow its creation"
    )]
    Missing {
        /// The setting that names the topic.
        key: &'static str,
        /// The topic.
        topic: String,
    },
    /// Commits would be deleted by age, and finished work would be repeated.
    #[error(
        "kafka.commit_topic: topic `{topic}` has cleanup.policy = {policy} and must have `compact`, or commits are deleted by age; change it with kafka-configs --alter --topic {topic} --add-config cleanup.policy=compact, or name another topic"
    )]
    NotCompacted {
        /// The topic.
        topic: String,
        /// Its policy.
        policy: String,
    },
    /// Compaction keeps one record of a chain, and takes the others away.
    #[error(
        "audit.topic: topic `{topic}` has cleanup.policy = {policy} and must have `delete`, or its records are taken away; change it with kafka-configs --alter --topic {topic} --add-config cleanup.policy=delete, or name another topic"
    )]
    Compacted {
        /// The topic.
        topic: String,
        /// Its policy.
        policy: String,
    },
}

impl TopicsError {
    /// Whether only a person can heal it.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::NotCompacted { .. } | Self::Compacted { .. } => true,
            Self::Kafka(_) => false,
        }
    }
}

/// Looks the topics up, and creates what is missing where that is allowed. Refuses before anything is created.
///
/// # Errors
/// As [`TopicsError`] says.
///
/// # Cancel safety
/// Safe; some topics may have been created.
pub async fn ensure(cluster: &Cluster, wanted: &WantedTopics) -> Result<Topics, TopicsError> {
    let mut found = describe(cluster, wanted).await?;
    if found.contains_key(&wanted.commits) {
        check_compacted(cluster, &wanted.commits).await?;
    }
    if let Some(audit) = wanted
        .audit
        .as_ref()
        .filter(|topic| found.contains_key(*topic))
    {
        check_not_compacted(cluster, audit).await?;
    }
    if !wanted.create {
        refuse_missing(wanted, &found)?;
    }
    for input in &wanted.inputs {
        if !found.contains_key(input) {
            create(cluster, wanted, input, BROKER_DEFAULT, &[]).await?;
        }
    }
    if wanted.inputs.iter().any(|input| !found.contains_key(input)) {
        found = describe(cluster, wanted).await?;
    }
    let mut partitions = wanted
        .inputs
        .iter()
        .filter_map(|input| found.get(input))
        .map(|topic| topic.partitions)
        .max()
        .unwrap_or(1);
    partitions = partitions.max(1);
    let mut created = false;
    let commit_partitions = partitions.min(COMMIT_PARTITIONS_MAX);
    let audit = wanted.audit.iter();
    let audit = audit.map(|topic| (topic, partitions, &AUDIT_TOPIC_CONFIGS[..]));
    let others = [
        (&wanted.output, partitions, &[][..]),
        (
            &wanted.dead_letters,
            partitions,
            &DEAD_LETTER_TOPIC_CONFIGS[..],
        ),
        (
            &wanted.commits,
            commit_partitions,
            &COMMIT_TOPIC_CONFIGS[..],
        ),
    ];
    for (topic, partitions, configs) in others.into_iter().chain(audit) {
        if !found.contains_key(topic) {
            create(cluster, wanted, topic, partitions, configs).await?;
            created = true;
        }
    }
    if created {
        found = describe(cluster, wanted).await?;
    }
    let get = |topic: &String| {
        found.get(topic).ok_or_else(|| KafkaError::UnknownTopic {
            topic: topic.clone(),
        })
    };
    Ok(Topics {
        inputs: wanted
            .inputs
            .iter()
            .map(|input| get(input).map(|topic| (input.clone(), topic.id, topic.partitions)))
            .collect::<Result<_, _>>()?,
        output_partitions: get(&wanted.output)?.partitions,
        dead_letter_partitions: get(&wanted.dead_letters)?.partitions,
        commit_partitions: get(&wanted.commits)?.partitions,
        audit_partitions: match &wanted.audit {
            Some(audit) => Some(get(audit)?.partitions),
            None => None,
        },
    })
}

async fn describe(
    cluster: &Cluster,
    wanted: &WantedTopics,
) -> Result<BTreeMap<String, TopicDescription>, KafkaError> {
    let mut names: Vec<&str> = wanted.inputs.iter().map(String::as_str).collect();
    names.extend([
        wanted.output.as_str(),
        &wanted.dead_letters,
        &wanted.commits,
    ]);
    names.extend(wanted.audit.as_deref());
    let found = cluster.describe_topics(&names).await?;
    Ok(found
        .into_iter()
        .filter_map(|(name, topic)| topic.map(|topic| (name, topic)))
        .collect())
}

fn refuse_missing(
    wanted: &WantedTopics,
    found: &BTreeMap<String, TopicDescription>,
) -> Result<(), TopicsError> {
    let ours = [
        ("output.topic (OUTPUT_TOPIC)", &wanted.output),
        ("dead_letters.topic", &wanted.dead_letters),
        ("kafka.commit_topic", &wanted.commits),
    ];
    let inputs = wanted
        .inputs
        .iter()
        .map(|topic| ("input.topics (INPUT_TOPIC)", topic));
    let audit = wanted.audit.iter();
    let audit = audit.map(|topic| ("audit.topic", topic));
    match inputs
        .chain(ours)
        .chain(audit)
        .find(|(_, topic)| !found.contains_key(*topic))
    {
        Some((key, topic)) => Err(TopicsError::Missing {
            key,
            topic: topic.clone(),
        }),
        None => Ok(()),
    }
}

/// `compact` must be the whole policy: with `compact,delete` commits of quiet partitions would be deleted by age.
async fn check_compacted(cluster: &Cluster, topic: &str) -> Result<(), TopicsError> {
    let policy = cleanup_policy(cluster, topic).await?;
    if policy == "compact" {
        return Ok(());
    }
    Err(TopicsError::NotCompacted {
        topic: topic.to_owned(),
        policy,
    })
}

async fn check_not_compacted(cluster: &Cluster, topic: &str) -> Result<(), TopicsError> {
    let policy = cleanup_policy(cluster, topic).await?;
    if !policy.contains("compact") {
        return Ok(());
    }
    Err(TopicsError::Compacted {
        topic: topic.to_owned(),
        policy,
    })
}

async fn cleanup_policy(cluster: &Cluster, topic: &str) -> Result<String, KafkaError> {
    let configs = cluster.topic_configs(topic, &["cleanup.policy"]).await?;
    let policy = configs
        .get("cleanup.policy")
        .and_then(|config| config.value.clone());
    Ok(policy.unwrap_or_else(|| "unknown".to_owned()))
}

async fn create(
    cluster: &Cluster,
    wanted: &WantedTopics,
    name: &str,
    partitions: i32,
    configs: &[(&str, &str)],
) -> Result<(), KafkaError> {
    let topic = NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor: wanted.replication_factor,
        configs: configs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    };
    cluster.create_topic(&topic).await?;
    if partitions == BROKER_DEFAULT {
        tracing::info!(
            topic = name,
            "topic created, with as many partitions as the broker's num.partitions says"
        );
    } else {
        tracing::info!(topic = name, partitions, "topic created");
    }
    Ok(())
}
