//! The committed offsets of a consumer group, as lag tools read them. We are no member: generation −1, empty member id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::{
    GroupId, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::api::{check_code, only};
use super::cluster::{Cluster, Target, topic_name};
use crate::kafka::KafkaError;
use crate::types::{Offset, TopicPartition};

/// A partition whose offset the coordinator did not take.
#[derive(Debug)]
pub struct RefusedCommit {
    /// The partition.
    pub partition: TopicPartition,
    /// What the coordinator said.
    pub error: KafkaError,
}

impl Cluster {
    /// Commits offsets (each the next one to read) for a group that has no members, or is ours alone. Answers with the partitions
    /// that the coordinator refused; one that says it does not coordinate is asked for the right one, and then that.
    ///
    /// # Errors
    /// When the coordinator cannot be found or does not answer in time.
    ///
    /// # Cancel safety
    /// Safe; the offsets may have been committed.
    pub async fn commit_group_offsets(
        &self,
        group: &str,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<Vec<RefusedCommit>, KafkaError> {
        if offsets.is_empty() {
            return Ok(Vec::new());
        }
        self.ask(
            Target::Coordinator(group),
            Duration::ZERO,
            |_| commit_request(group, offsets),
            |response| check_commit(group, offsets, &response),
        )
        .await
    }

    /// All offsets that a group has committed; empty for a group that nobody knows.
    ///
    /// # Errors
    /// When the coordinator cannot be found or does not answer in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn fetch_group_offsets(
        &self,
        group: &str,
    ) -> Result<BTreeMap<TopicPartition, Offset>, KafkaError> {
        self.ask(
            Target::Coordinator(group),
            Duration::ZERO,
            |way| fetch_request(group, way.version),
            |response| check_fetch(group, response),
        )
        .await
    }
}

fn group_id(group: &str) -> GroupId {
    GroupId(StrBytes::from_string(group.to_owned()))
}

fn commit_request(group: &str, offsets: &[(TopicPartition, Offset)]) -> OffsetCommitRequest {
    let mut topics: BTreeMap<&str, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
    for (partition, offset) in offsets {
        topics.entry(&partition.topic).or_default().push(
            OffsetCommitRequestPartition::default()
                .with_partition_index(partition.partition)
                .with_committed_offset(offset.value())
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(StrBytes::default())),
        );
    }
    let topics = topics
        .into_iter()
        .map(|(name, partitions)| {
            OffsetCommitRequestTopic::default()
                .with_name(topic_name(name))
                .with_partitions(partitions)
        })
        .collect();
    OffsetCommitRequest::default()
        .with_group_id(group_id(group))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(topics)
}

fn check_commit(
    group: &str,
    offsets: &[(TopicPartition, Offset)],
    response: &OffsetCommitResponse,
) -> Result<Vec<RefusedCommit>, KafkaError> {
    let mut codes = BTreeMap::new();
    for topic in &response.topics {
        let name: Arc<str> = topic.name.as_str().into();
        for partition in &topic.partitions {
            let key = TopicPartition::new(Arc::clone(&name), partition.partition_index);
            codes.insert(key, partition.error_code);
        }
    }
    let mut refused = Vec::new();
    for (partition, _) in offsets {
        let code = codes.get(partition).ok_or_else(|| KafkaError::Protocol {
            operation: "OffsetCommit",
            detail: format!("it says nothing about {partition}"),
        })?;
        let operation = format!("OffsetCommit of {partition} for group {group}");
        match check_code(operation, *code, None) {
            Ok(()) => {}
            // The coordinator is loading, moving or unknown: that holds for all partitions of the group.
            Err(error) if matches!(code, 14..=16) => return Err(error),
            Err(error) => refused.push(RefusedCommit {
                partition: partition.clone(),
                error,
            }),
        }
    }
    Ok(refused)
}

fn fetch_request(group: &str, version: i16) -> OffsetFetchRequest {
    // No list of topics stands for all of them.
    if version >= 8 {
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(group_id(group))
            .with_topics(None);
        OffsetFetchRequest::default().with_groups(vec![group])
    } else {
        OffsetFetchRequest::default()
            .with_group_id(group_id(group))
            .with_topics(None)
    }
}

fn check_fetch(
    group: &str,
    response: OffsetFetchResponse,
) -> Result<BTreeMap<TopicPartition, Offset>, KafkaError> {
    let operation = || format!("OffsetFetch of group {group}");
    check_code(operation(), response.error_code, None)?;
    let mut found: Vec<(TopicPartition, i16, i64)> = Vec::new();
    for topic in &response.topics {
        let name: Arc<str> = topic.name.as_str().into();
        found.extend(topic.partitions.iter().map(|partition| {
            let key = TopicPartition::new(Arc::clone(&name), partition.partition_index);
            (key, partition.error_code, partition.committed_offset)
        }));
    }
    // From version 8 on the answer is a list of groups.
    if !response.groups.is_empty() {
        let answer = only("OffsetFetch", group, response.groups, |answer| {
            answer.group_id.as_str() == group
        })?;
        check_code(operation(), answer.error_code, None)?;
        for topic in &answer.topics {
            let name: Arc<str> = topic.name.as_str().into();
            found.extend(topic.partitions.iter().map(|partition| {
                let key = TopicPartition::new(Arc::clone(&name), partition.partition_index);
                (key, partition.error_code, partition.committed_offset)
            }));
        }
    }
    let mut offsets = BTreeMap::new();
    for (partition, code, offset) in found {
        check_code(operation(), code, None)?;
        // −1: nothing committed.
        if offset >= 0 {
            offsets.insert(partition, Offset::new(offset));
        }
    }
    Ok(offsets)
}
