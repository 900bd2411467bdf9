//! The committed offsets of a consumer group, as lag tools read them.

use std::collections::BTreeMap;
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

impl RefusedCommit {
    /// Whether a member was refused only because its group is being dealt anew (ILLEGAL_GENERATION, REBALANCE_IN_PROGRESS).
    #[must_use]
    pub const fn is_between_generations(&self) -> bool {
        matches!(self.error, KafkaError::Server { code: 22 | 27, .. })
    }
}

/// A member of a group as its coordinator knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberIdentity {
    /// The name that the coordinator gave it.
    pub member_id: String,
    /// The generation of the group in which it holds its partitions.
    pub generation: i32,
    /// Kafka's `group.instance.id`, of a static member.
    pub instance_id: Option<String>,
}

impl Cluster {
    /// Commits offsets (each the next one to read), as that member of the group; without one, for a group that has no members. Answers
    /// with the partitions that the coordinator refused; one that says it does not coordinate is asked for the right one, and then that.
    ///
    /// # Errors
    /// When the coordinator cannot be found or does not answer in time.
    ///
    /// # Cancel safety
    /// Safe; the offsets may have been committed.
    pub async fn commit_group_offsets(
        &self,
        group: &str,
        identity: Option<&MemberIdentity>,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<Vec<RefusedCommit>, KafkaError> {
        if offsets.is_empty() {
            return Ok(Vec::new());
        }
        self.ask(
            Target::Coordinator(group),
            Duration::ZERO,
            |way| commit_request(group, identity, offsets, way.version),
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

pub(super) fn group_id(group: &str) -> GroupId {
    GroupId(StrBytes::from_string(group.to_owned()))
}

fn commit_request(
    group: &str,
    identity: Option<&MemberIdentity>,
    offsets: &[(TopicPartition, Offset)],
    version: i16,
) -> OffsetCommitRequest {
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
    let request = OffsetCommitRequest::default()
        .with_group_id(group_id(group))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(topics);
    let Some(member) = identity else {
        return request;
    };
    let request = request
        .with_generation_id_or_member_epoch(member.generation)
        .with_member_id(StrBytes::from_string(member.member_id.clone()));
    match &member.instance_id {
        // The field came with version 7.
        Some(instance_id) if version >= 7 => {
            request.with_group_instance_id(Some(StrBytes::from_string(instance_id.clone())))
        }
        _ => request,
    }
}

fn check_commit(
    group: &str,
    offsets: &[(TopicPartition, Offset)],
    response: &OffsetCommitResponse,
) -> Result<Vec<RefusedCommit>, KafkaError> {
    let mut codes = BTreeMap::new();
    for topic in &response.topics {
        for partition in &topic.partitions {
            let key = TopicPartition::new(topic.name.as_str(), partition.partition_index);
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
    // Up to version 7 the one group's topics stand in the answer itself, from 8 on in a list of groups.
    let mut found: Vec<(TopicPartition, i16, i64)> = Vec::new();
    for topic in &response.topics {
        for partition in &topic.partitions {
            let key = TopicPartition::new(topic.name.as_str(), partition.partition_index);
            found.push((key, partition.error_code, partition.committed_offset));
        }
    }
    if !response.groups.is_empty() {
        let answer = only("OffsetFetch", group, response.groups, |answer| {
            answer.group_id.as_str() == group
        })?;
        check_code(operation(), answer.error_code, None)?;
        for topic in &answer.topics {
            for partition in &topic.partitions {
                let key = TopicPartition::new(topic.name.as_str(), partition.partition_index);
                found.push((key, partition.error_code, partition.committed_offset));
            }
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

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::offset_commit_response::{
        OffsetCommitResponsePartition, OffsetCommitResponseTopic,
    };
    use kafka_protocol::messages::offset_fetch_response::{
        OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
        OffsetFetchResponseTopic, OffsetFetchResponseTopics,
    };

    use super::*;

    fn partition(name: &str, index: i32) -> TopicPartition {
        TopicPartition::new(name, index)
    }

    fn answer(codes: &[(&str, i32, i16)]) -> OffsetCommitResponse {
        let topics = codes.iter().map(|(name, index, code)| {
            let partition = OffsetCommitResponsePartition::default()
                .with_partition_index(*index)
                .with_error_code(*code);
            OffsetCommitResponseTopic::default()
                .with_name(topic_name(name))
                .with_partitions(vec![partition])
        });
        OffsetCommitResponse::default().with_topics(topics.collect())
    }

    #[test]
    fn partitions_of_one_topic_are_committed_together() {
        let offsets = [
            (partition("b", 0), Offset::new(1)),
            (partition("a", 0), Offset::new(2)),
            (partition("b", 1), Offset::new(3)),
        ];
        let request = commit_request("mirror", None, &offsets, 8);
        assert_eq!(request.generation_id_or_member_epoch, -1);
        assert!(request.member_id.is_empty());
        let sizes: Vec<_> = request
            .topics
            .iter()
            .map(|topic| (topic.name.as_str(), topic.partitions.len()))
            .collect();
        assert_eq!(sizes, [("a", 1), ("b", 2)]);
    }

    #[test]
    fn a_member_commits_in_its_own_name() {
        let offsets = [(partition("a", 0), Offset::new(1))];
        let member = MemberIdentity {
            member_id: "one".to_owned(),
            generation: 4,
            instance_id: Some("pod-1".to_owned()),
        };
        for version in [6, 7] {
            let request = commit_request("mirror", Some(&member), &offsets, version);
            assert_eq!(request.generation_id_or_member_epoch, 4);
            assert_eq!(request.member_id.as_str(), "one");
            assert_eq!(request.group_instance_id.is_some(), version == 7);
        }
    }

    #[test]
    fn refusals_are_told_by_partition_whatever_their_order() {
        let offsets = [
            (partition("a", 0), Offset::new(1)),
            (partition("b", 0), Offset::new(2)),
        ];
        let refused = check_commit("mirror", &offsets, &answer(&[("b", 0, 25), ("a", 0, 0)]));
        let refused = refused.unwrap();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].partition, partition("b", 0));
        assert!(!refused[0].is_between_generations());
        let dealt_anew = answer(&[("b", 0, 27), ("a", 0, 22)]);
        let passing = check_commit("mirror", &offsets, &dealt_anew).unwrap();
        assert!(passing.iter().all(RefusedCommit::is_between_generations));
        let text = refused[0].error.to_string();
        assert!(
            text.contains("UnknownMemberId") && text.contains("b/0") && text.contains("mirror")
        );
    }

    #[test]
    fn a_coordinator_that_moved_fails_the_whole_commit() {
        let offsets = [(partition("a", 0), Offset::new(1))];
        for code in [14, 15, 16] {
            let error = check_commit("mirror", &offsets, &answer(&[("a", 0, code)])).unwrap_err();
            assert!(error.is_transient(), "{error:?}");
        }
    }

    #[test]
    fn a_partition_left_out_is_not_taken_for_committed() {
        let offsets = [(partition("a", 0), Offset::new(1))];
        let error = check_commit("mirror", &offsets, &answer(&[("a", 1, 0)])).unwrap_err();
        assert!(matches!(error, KafkaError::Protocol { .. }), "{error:?}");
    }

    #[test]
    fn offsets_are_read_from_both_shapes_of_the_answer() {
        let old = OffsetFetchResponseTopic::default()
            .with_name(topic_name("a"))
            .with_partitions(vec![
                OffsetFetchResponsePartition::default().with_committed_offset(5),
                OffsetFetchResponsePartition::default()
                    .with_partition_index(1)
                    .with_committed_offset(-1),
            ]);
        let new = OffsetFetchResponseTopics::default()
            .with_name(topic_name("a"))
            .with_partitions(vec![
                OffsetFetchResponsePartitions::default().with_committed_offset(5),
            ]);
        let group = OffsetFetchResponseGroup::default()
            .with_group_id(group_id("mirror"))
            .with_topics(vec![new]);
        let expected = BTreeMap::from([(partition("a", 0), Offset::new(5))]);
        let response = OffsetFetchResponse::default().with_topics(vec![old]);
        assert_eq!(check_fetch("mirror", response).unwrap(), expected);
        let response = OffsetFetchResponse::default().with_groups(vec![group]);
        assert_eq!(check_fetch("mirror", response.clone()).unwrap(), expected);
        let error = check_fetch("other", response).unwrap_err();
        assert!(matches!(error, KafkaError::Protocol { .. }), "{error:?}");
    }
}
