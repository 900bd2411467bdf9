//! Where logs begin and end: asked of each broker for all partitions that wait for it.
//!
//! # Invariants
//! 1. Bounds were asked for after the call: whatever was written before it lies below the end.
//! 2. What is wrong with one partition keeps no other from its bounds: it is asked for again by itself, as if there were no others.
//! 3. A leader that has told nothing of a partition is forgotten, and there is time left to find the next one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{BrokerId, ListOffsetsRequest, ListOffsetsResponse};
use tokio::time::timeout_at;

use super::cluster::{Cluster, Route, Target, topic_name};
use super::connection::Deadline;
use super::pool::Lane;
use super::reader::{Isolation, OffsetAt, check_list, list_request};
use crate::kafka::KafkaError;
use crate::types::{Offset, TopicPartition};

/// What part of the time all who ask together wait for a leader: as much as each of the two questions by itself has after that.
const TOGETHER_PART: u32 = 3;

pub(super) async fn log_bounds(
    cluster: &Cluster,
    partition: &TopicPartition,
) -> Result<(Offset, Offset), KafkaError> {
    let deadline = cluster.deadline();
    let target = Target::Leader(partition);
    // What keeps it from being found is told by asking for it alone.
    if let Ok(Some(route)) = cluster.route(target, deadline).await {
        let looks = cluster.looks().bounds_at(&route.address);
        let part = deadline.after / TOGETHER_PART;
        let setting = "the part of kafka.request_timeout for all partitions of a broker";
        let look = async |partitions| {
            // Not what is left to whoever asks first: the others may have more.
            let deadline = cluster.deadline().at_most(part, setting);
            at_broker(cluster, &route.address, partitions, deadline).await
        };
        let deadline = deadline.at_most(part, setting);
        let asked = timeout_at(deadline.at, looks.ask(partition.clone(), look)).await;
        if let Ok(Some(bounds)) = asked {
            return Ok(bounds);
        }
        // It hangs, or leads no more. Nobody else may be asking for this partition, so nobody else would find that out.
        cluster.forget(target);
    }
    let start = alone(cluster, partition, OffsetAt::Earliest, deadline).await?;
    let end = alone(cluster, partition, OffsetAt::Latest, deadline).await?;
    Ok((start, end))
}

async fn alone(
    cluster: &Cluster,
    partition: &TopicPartition,
    at: OffsetAt,
    deadline: Deadline,
) -> Result<Offset, KafkaError> {
    let (target, isolation) = (Target::Leader(partition), Isolation::ReadUncommitted);
    let found = cluster.ask_until(
        deadline,
        target,
        Duration::ZERO,
        |way| list_request(partition, at, isolation, way),
        |response| check_list(partition, response),
    );
    found.await?.ok_or_else(|| KafkaError::Protocol {
        operation: "ListOffsets",
        detail: format!("{partition} has neither start nor end"),
    })
}

/// The bounds of all of them that this broker leads and tells.
async fn at_broker(
    cluster: &Cluster,
    address: &Arc<str>,
    partitions: Vec<TopicPartition>,
    deadline: Deadline,
) -> HashMap<TopicPartition, (Offset, Offset)> {
    let route_of = |partition: TopicPartition| {
        let route = cluster.known_route(Target::Leader(&partition))?;
        (route.address == *address).then_some((partition, route))
    };
    let asked: Vec<_> = partitions.into_iter().filter_map(route_of).collect();
    // The start first: an end that was asked for before could lie below it.
    let starts = offsets(cluster, address, &asked, OffsetAt::Earliest, deadline).await;
    let Some(mut starts) = starts else {
        return HashMap::new();
    };
    let ends = offsets(cluster, address, &asked, OffsetAt::Latest, deadline).await;
    let both = |(partition, end)| {
        let start = starts.remove(&partition)?;
        Some((partition, (start, end)))
    };
    ends.into_iter().flatten().filter_map(both).collect()
}

/// `None` when no answer came.
async fn offsets(
    cluster: &Cluster,
    address: &Arc<str>,
    asked: &[(TopicPartition, Route)],
    at: OffsetAt,
    deadline: Deadline,
) -> Option<HashMap<TopicPartition, Offset>> {
    let build = |_version| request(asked, at);
    let answer = cluster
        .ask_at(address, Lane::Request, deadline, build)
        .await;
    answer.map(|answer| found(asked, answer)).ok()
}

fn request(asked: &[(TopicPartition, Route)], at: OffsetAt) -> ListOffsetsRequest {
    let mut topics: BTreeMap<&str, Vec<ListOffsetsPartition>> = BTreeMap::new();
    for (partition, route) in asked {
        let asked = ListOffsetsPartition::default()
            .with_partition_index(partition.partition)
            .with_current_leader_epoch(route.leader_epoch)
            .with_timestamp(at.timestamp());
        topics.entry(&partition.topic).or_default().push(asked);
    }
    let topics = topics.into_iter().map(|(name, partitions)| {
        ListOffsetsTopic::default()
            .with_name(topic_name(name))
            .with_partitions(partitions)
    });
    ListOffsetsRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_isolation_level(Isolation::ReadUncommitted.level())
        .with_topics(topics.collect())
}

/// What the answer tells of partitions that were asked for, and tells once and without an error.
fn found(
    asked: &[(TopicPartition, Route)],
    answer: ListOffsetsResponse,
) -> HashMap<TopicPartition, Offset> {
    let mut told: HashMap<TopicPartition, Option<Offset>> = HashMap::new();
    for topic in answer.topics {
        let name: Arc<str> = topic.name.as_str().into();
        for partition in topic.partitions {
            let place = TopicPartition::new(Arc::clone(&name), partition.partition_index);
            let is_told = partition.error_code == 0 && partition.offset >= 0;
            let offset = is_told.then_some(Offset::new(partition.offset));
            told.entry(place)
                .and_modify(|told| *told = None)
                .or_insert(offset);
        }
    }
    let of = |(partition, _): &(TopicPartition, Route)| {
        let offset = told.get(partition).copied().flatten()?;
        Some((partition.clone(), offset))
    };
    asked.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests;
