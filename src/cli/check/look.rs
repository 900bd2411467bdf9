//! What Kafka tells, each part with an error of its own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;

use super::judge::Role;
use super::{PROBE_WITHIN, within};
use crate::config::Settings;
use crate::kafka::wire::{
    BrokerSpeech, Cluster, ClusterDescription, NewTopic, Operations, TopicRights,
};
use crate::kafka::{KafkaError, LogReader};
use crate::offsets::{CommitRecord, Guarantee};
use crate::types::{Offset, TopicPartition, error_chain};

/// The newest commit lies at the end of its partition; a few markers may follow it, and those before tell since when nothing moves.
const COMMIT_TAIL: i64 = 64;

/// Commit partitions that are read side by side.
const READS_MAX: usize = 8;

/// The configurations of a topic that are looked at.
const CONFIGS: [&str; 2] = ["cleanup.policy", "max.message.bytes"];

/// What was asked for and told, not told, or not to be found out, with the reason.
pub(super) type Told<T> = Result<Option<T>, String>;

/// What Kafka told.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) cluster: ClusterDescription,
    /// What each broker speaks.
    pub(super) brokers: Vec<BrokerSpeech>,
    /// In the order in which they are shown.
    pub(super) topics: Vec<TopicFound>,
    pub(super) group: Told<Operations>,
    /// Whether our transactional ids may be written with, where that is needed.
    pub(super) transactions: Option<Told<bool>>,
    /// Whether appends may be idempotent, where they are.
    pub(super) idempotence: Option<Told<bool>>,
    /// The commits at the end of the commit topic, the youngest first, or why it cannot be read.
    pub(super) commits: Result<Vec<(Option<Bytes>, CommitRecord)>, String>,
}

/// One topic.
#[derive(Debug)]
pub(super) struct TopicFound {
    pub(super) role: Role,
    pub(super) name: String,
    pub(super) rights: Result<TopicRights, String>,
    /// Those of [`CONFIGS`] that are told.
    pub(super) configs: Result<BTreeMap<String, String>, String>,
    /// Whether it may be created, where it is missing and `run` would.
    pub(super) creation: Option<Result<bool, String>>,
}

impl TopicFound {
    /// Whether nothing at all is allowed on it, not even to see it.
    pub(super) fn is_hidden(&self) -> bool {
        let rights = self.rights.as_ref();
        rights.is_ok_and(|rights| {
            rights.topic.is_none() && rights.operations == Some(Operations::NONE)
        })
    }

    /// How many partitions it has, when it is there.
    pub(super) fn partitions(&self) -> Option<i32> {
        let rights = self.rights.as_ref().ok()?;
        rights.topic.as_ref().map(|topic| topic.partitions)
    }
}

/// The transactional id that is asked about: with the prefix of all of ours, and none of them, as no topic has such a name.
pub(super) fn probed_id(group: &str) -> String {
    format!("{group}/(check)/0")
}

pub(super) async fn look(
    cluster: &Cluster,
    settings: &Settings,
    description: ClusterDescription,
) -> Found {
    let exactly_once = settings.processing.guarantee == Guarantee::ExactlyOnce;
    let group = &settings.kafka.group_id;
    let id = probed_id(group);
    let transactions = async {
        let asked = within("InitProducerId", cluster.may_use_transactional_id(&id)).await;
        asked.map_err(|error| error_chain(&error))
    };
    let idempotence = async {
        let asked = within("InitProducerId", cluster.may_append_idempotently()).await;
        asked.map_err(|error| error_chain(&error))
    };
    let (brokers, (topics, commits), group, transactions, idempotence) = tokio::join!(
        cluster.speech_of(description.brokers.clone(), PROBE_WITHIN),
        topics_and_commits(cluster, settings),
        within("DescribeGroups", cluster.group_rights(group)),
        when(exactly_once, transactions),
        when(!exactly_once, idempotence),
    );
    Found {
        cluster: description,
        brokers,
        topics,
        group: group.map_err(|error| error_chain(&error)),
        transactions,
        idempotence,
        commits,
    }
}

async fn when<T>(needed: bool, probe: impl Future<Output = T>) -> Option<T> {
    if needed { Some(probe.await) } else { None }
}

type Commits = Result<Vec<(Option<Bytes>, CommitRecord)>, String>;

async fn topics_and_commits(cluster: &Cluster, settings: &Settings) -> (Vec<TopicFound>, Commits) {
    let commits = settings.kafka.commit_topic();
    let inputs = settings.input.topics.iter();
    let inputs = inputs.map(|topic| (Role::Input, topic.name.clone()));
    let ours = [
        (Role::Output, settings.output.topic.clone()),
        (Role::DeadLetters, settings.dead_letters.topic.clone()),
        (Role::Commits, commits.clone()),
    ];
    let audit = settings.audit.enabled.then(|| settings.audit.topic.clone());
    let audit = audit.map(|topic| (Role::Audit, topic));
    let names: Vec<_> = inputs.chain(ours).chain(audit).collect();
    let asked: Vec<&str> = names.iter().map(|(_, name)| name.as_str()).collect();
    let rights = within("Metadata", cluster.topic_rights(&asked)).await;
    let looks = names.iter().map(|(role, name)| {
        let rights = match &rights {
            Ok(rights) => match rights.get(name) {
                Some(Ok(rights)) => Ok(rights.clone()),
                Some(Err(error)) => Err(error_chain(error)),
                None => Err("the broker says nothing about it".to_owned()),
            },
            Err(error) => Err(error_chain(error)),
        };
        look_at(cluster, settings, *role, name, rights)
    });
    let topics: Vec<_> = stream::iter(looks).buffered(READS_MAX).collect().await;
    let found = topics.iter().find(|topic| topic.role == Role::Commits);
    let tails = match found.and_then(TopicFound::partitions) {
        None => Ok(Vec::new()),
        Some(partitions) => {
            let newest = within("Fetch", tails(cluster, &commits, partitions)).await;
            newest.map_err(|error| error_chain(&error))
        }
    };
    (topics, tails)
}

async fn look_at(
    cluster: &Cluster,
    settings: &Settings,
    role: Role,
    name: &str,
    rights: Result<TopicRights, String>,
) -> TopicFound {
    let is_there = rights.as_ref().is_ok_and(|rights| rights.topic.is_some());
    let is_hidden = rights
        .as_ref()
        .is_ok_and(|rights| rights.operations == Some(Operations::NONE));
    let configs = if is_there {
        let configs = within("DescribeConfigs", cluster.topic_configs(name, &CONFIGS)).await;
        configs
            .map(|configs| {
                let told = configs.into_iter();
                told.filter_map(|(key, config)| Some((key, config.value?)))
                    .collect()
            })
            .map_err(|error| error_chain(&error))
    } else {
        Ok(BTreeMap::new())
    };
    let is_created = rights.is_ok() && !is_there && settings.kafka.create_topics;
    let creation = async {
        let topic = NewTopic {
            name: name.to_owned(),
            partitions: -1,
            replication_factor: settings.kafka.replication_factor,
            configs: BTreeMap::new(),
        };
        let asked = within("CreateTopics", cluster.may_create_topic(&topic)).await;
        asked.map_err(|error| error_chain(&error))
    };
    // What may not be seen may be there: asking to create it tells nothing then.
    let creation = when(is_created && !is_hidden, Box::pin(creation)).await;
    TopicFound {
        role,
        name: name.to_owned(),
        rights,
        configs,
        creation,
    }
}

/// The last commits of all partitions, the youngest first.
async fn tails(
    reader: &dyn LogReader,
    topic: &str,
    partitions: i32,
) -> Result<Vec<(Option<Bytes>, CommitRecord)>, KafkaError> {
    let tails = (0..partitions).map(|index| tail(reader, TopicPartition::new(topic, index)));
    let tails: Vec<_> = stream::iter(tails)
        .buffer_unordered(READS_MAX)
        .collect()
        .await;
    let mut all = Vec::new();
    for commits in tails {
        all.extend(commits?);
    }
    all.sort_by_key(|(_, commit)| Reverse(commit.at));
    Ok(all)
}

/// The last commits of a partition; what is not one is passed over, as only their age counts here.
async fn tail(
    reader: &dyn LogReader,
    partition: TopicPartition,
) -> Result<Vec<(Option<Bytes>, CommitRecord)>, KafkaError> {
    let (log_start, end) = reader.log_bounds(&partition).await?;
    let mut next = log_start.max(Offset::new(end.value().saturating_sub(COMMIT_TAIL)));
    let mut commits = Vec::new();
    while next < end {
        let fetched = reader.read(&partition, next, Duration::ZERO).await?;
        for (_, record) in &fetched.records {
            let value = record.value.as_ref();
            let commit = value.and_then(|value| CommitRecord::from_value(value).ok());
            commits.extend(commit.map(|commit| (record.key.clone(), commit)));
        }
        if fetched.next_offset <= next {
            break;
        }
        next = fetched.next_offset;
    }
    Ok(commits)
}

/// The newest commit of each owner, the youngest first.
pub(super) fn by_owner(commits: &[(Option<Bytes>, CommitRecord)]) -> Vec<&CommitRecord> {
    let mut owners = BTreeSet::new();
    let commits = commits.iter().map(|(_, commit)| commit);
    commits
        .filter(|commit| owners.insert(commit.owner.as_str()))
        .collect()
}
