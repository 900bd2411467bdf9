//! OffsetFetch, versions 1 to 8.
//!
//! One group up to version 7, several in version 8; null topics ask for everything that the group has. What was never committed is
//! offset −1 without error, as in Kafka. Who asks for stable offsets gets 88 where an open transaction holds one.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopics;
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{OffsetFetchRequest, OffsetFetchResponse, TopicName};

use super::super::connection::Context;
use super::super::groups::Group;
use super::super::state::State;
use super::{Api, Reply, text};

/// From this version on the request names several groups.
const GROUPS_FROM: i16 = 8;

impl Api for OffsetFetchRequest {
    const SERVED: (i16, i16) = (1, 8);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=7 => "S {S [i]}",
            _ => "{S {S [i]}} b",
        }
    }

    fn topics(&self) -> Vec<String> {
        let one = self.topics.iter().flatten().map(|topic| &topic.name);
        let several = self.groups.iter().flat_map(|group| &group.topics).flatten();
        one.chain(several.map(|topic| &topic.name))
            .map(|name| name.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> OffsetFetchResponse {
        if self.groups.is_empty() {
            return OffsetFetchResponse::default().with_error_code(code.code());
        }
        let groups = self.groups.iter().map(|group| {
            OffsetFetchResponseGroup::default()
                .with_group_id(group.group_id.clone())
                .with_error_code(code.code())
        });
        OffsetFetchResponse::default().with_groups(groups.collect())
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<OffsetFetchResponse> {
        let state = context.shared.state();
        if version >= GROUPS_FROM {
            let groups = self.groups.iter().map(|asked| {
                let group = state.groups.find(&asked.group_id);
                let mut topics = look(group, asked.topics.as_deref());
                if self.require_stable {
                    refuse_unstable(&state, &asked.group_id, &mut topics);
                }
                OffsetFetchResponseGroup::default()
                    .with_group_id(asked.group_id.clone())
                    .with_topics(topics)
            });
            let response = OffsetFetchResponse::default().with_groups(groups.collect());
            return Reply::Answer(response);
        }
        let group = state.groups.find(&self.group_id);
        let asked: Option<Vec<_>> = self.topics.map(|topics| {
            let as_several = topics.into_iter().map(|topic| {
                OffsetFetchRequestTopics::default()
                    .with_name(topic.name)
                    .with_partition_indexes(topic.partition_indexes)
            });
            as_several.collect()
        });
        let mut topics = look(group, asked.as_deref());
        if self.require_stable {
            refuse_unstable(&state, &self.group_id, &mut topics);
        }
        let topics = topics.into_iter().map(single);
        Reply::Answer(OffsetFetchResponse::default().with_topics(topics.collect()))
    }
}

fn look(
    group: Option<&Group>,
    asked: Option<&[OffsetFetchRequestTopics]>,
) -> Vec<OffsetFetchResponseTopics> {
    let topic = |name: TopicName, indexes: &mut dyn Iterator<Item = i32>| {
        let partitions = indexes
            .map(|index| partition(group, &name, index))
            .collect();
        OffsetFetchResponseTopics::default()
            .with_name(name)
            .with_partitions(partitions)
    };
    match (asked, group) {
        (Some(asked), _) => asked
            .iter()
            .map(|one| topic(one.name.clone(), &mut one.partition_indexes.iter().copied()))
            .collect(),
        (None, Some(group)) => group
            .offsets
            .iter()
            .map(|(name, partitions)| {
                let name = TopicName(text(name.as_str()));
                topic(name, &mut partitions.keys().copied())
            })
            .collect(),
        (None, None) => Vec::new(),
    }
}

fn partition(group: Option<&Group>, topic: &str, index: i32) -> OffsetFetchResponsePartitions {
    let response = OffsetFetchResponsePartitions::default().with_partition_index(index);
    match group.and_then(|group| group.committed(topic, index)) {
        Some(committed) => response
            .with_committed_offset(committed.offset)
            .with_committed_leader_epoch(committed.leader_epoch)
            .with_metadata(Some(text(committed.metadata.as_str()))),
        None => response
            .with_committed_offset(-1)
            .with_committed_leader_epoch(-1)
            .with_metadata(Some(text(""))),
    }
}

/// Takes back what an open transaction is about to change.
fn refuse_unstable(state: &State, group: &str, topics: &mut [OffsetFetchResponseTopics]) {
    for topic in topics {
        for partition in &mut topic.partitions {
            let transactions = &state.transactions;
            if transactions.has_pending_offset(group, &topic.name, partition.partition_index) {
                partition.committed_offset = -1;
                partition.committed_leader_epoch = -1;
                partition.metadata = Some(text(""));
                partition.error_code = ResponseError::UnstableOffsetCommit.code();
            }
        }
    }
}

/// The older form of the same answer.
fn single(topic: OffsetFetchResponseTopics) -> OffsetFetchResponseTopic {
    let partitions = topic.partitions.into_iter().map(|partition| {
        OffsetFetchResponsePartition::default()
            .with_partition_index(partition.partition_index)
            .with_committed_offset(partition.committed_offset)
            .with_committed_leader_epoch(partition.committed_leader_epoch)
            .with_metadata(partition.metadata)
            .with_error_code(partition.error_code)
    });
    OffsetFetchResponseTopic::default()
        .with_name(topic.name)
        .with_partitions(partitions.collect())
}
