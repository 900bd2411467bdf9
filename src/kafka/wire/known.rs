//! What brokers told us about the cluster: addresses, leaders, coordinators. Pure.
//!
//! # Invariants
//! 1. What an answer contradicts is forgotten.
//! 2. Of two leaders of a partition the one with the newer epoch counts, whoever was asked last. A broker that was cut off, or slept, tells
//!    of leaders that are none any more; such a leader, when it slept too, would call offsets that were read from its successor out of range.

use std::collections::HashMap;
use std::sync::Arc;

use kafka_protocol::messages::MetadataResponse;
use kafka_protocol::messages::metadata_response::{
    MetadataResponsePartition, MetadataResponseTopic,
};
use uuid::Uuid;

use super::cluster::{Route, Target};
use super::connection::join_address;
use crate::kafka::KafkaConfig;
use crate::types::TopicPartition;

/// UnknownTopicOrPartition.
const UNKNOWN_TOPIC: i16 = 3;

/// What brokers told us; each entry goes when an answer contradicts it.
#[derive(Debug, Default)]
pub(super) struct Known {
    brokers: HashMap<i32, Arc<str>>,
    controller: Option<i32>,
    leaders: HashMap<TopicPartition, Leader>,
    /// By the type of the key and the key.
    coordinators: HashMap<i8, HashMap<String, Arc<str>>>,
    /// The broker that answered last: asked first.
    last_good: Option<Arc<str>>,
    /// How many of the brokers known are asked last: one more each time that one told of what was over.
    passed_over: usize,
}

/// Who leads a partition.
#[derive(Debug, Clone, Copy)]
struct Leader {
    /// −1 when there is none.
    broker: i32,
    /// −1 when brokers are too old to tell.
    epoch: i32,
    /// Epochs begin anew with each topic of a name.
    topic_id: Uuid,
    /// The way there failed: only the epoch still counts.
    is_forgotten: bool,
}

impl Known {
    pub(super) fn route(&self, target: Target<'_>) -> Option<Route> {
        let (address, leader_epoch) = match target {
            Target::Any => return None,
            Target::Controller => (self.brokers.get(&self.controller?)?, -1),
            Target::Leader(partition) => {
                let leader = self.leaders.get(partition)?;
                if leader.is_forgotten {
                    return None;
                }
                (self.brokers.get(&leader.broker)?, leader.epoch)
            }
            Target::Coordinator(key) | Target::TransactionCoordinator(key) => {
                let coordinators = self.coordinators.get(&target.key_type())?;
                (coordinators.get(key)?, -1)
            }
        };
        Some(Route {
            address: Arc::clone(address),
            leader_epoch,
        })
    }

    pub(super) fn is_leaderless(&self, partition: &TopicPartition) -> bool {
        let leader = self.leaders.get(partition);
        leader.is_some_and(|leader| leader.broker < 0)
    }

    pub(super) fn forget(&mut self, target: Target<'_>) {
        match target {
            Target::Any => {}
            Target::Controller => self.controller = None,
            Target::Leader(partition) => {
                if let Some(leader) = self.leaders.get_mut(partition) {
                    leader.is_forgotten = true;
                }
            }
            Target::Coordinator(key) | Target::TransactionCoordinator(key) => {
                if let Some(coordinators) = self.coordinators.get_mut(&target.key_type()) {
                    coordinators.remove(key);
                }
            }
        }
    }

    pub(super) fn learn(&mut self, response: &MetadataResponse) {
        self.brokers = response
            .brokers
            .iter()
            .map(|broker| (broker.node_id.0, join_address(&broker.host, broker.port)))
            .collect();
        self.controller = Some(response.controller_id.0).filter(|id| *id >= 0);
        let mut is_over = false;
        for topic in &response.topics {
            is_over |= !self.learn_topic(topic);
        }
        if is_over {
            self.last_good = None;
            self.passed_over = self.passed_over.wrapping_add(1);
        }
    }

    /// Whether it tells of nothing that is over.
    fn learn_topic(&mut self, topic: &MetadataResponseTopic) -> bool {
        let Some(name) = &topic.name else {
            return true;
        };
        let name: Arc<str> = name.as_str().into();
        if topic.error_code == UNKNOWN_TOPIC {
            self.leaders.retain(|partition, _| partition.topic != name);
            return true;
        }
        let mut is_current = true;
        for partition in &topic.partitions {
            let key = TopicPartition::new(Arc::clone(&name), partition.partition_index);
            is_current &= self.learn_leader(key, topic.topic_id, partition);
        }
        is_current
    }

    /// Whether it is not over.
    fn learn_leader(
        &mut self,
        key: TopicPartition,
        topic_id: Uuid,
        told: &MetadataResponsePartition,
    ) -> bool {
        let mut leader = Leader {
            broker: told.leader_id.0,
            epoch: told.leader_epoch,
            topic_id,
            is_forgotten: false,
        };
        // Brokers before Kafka 2.8 do not tell a topic from the next of its name.
        let known = self.leaders.get(&key);
        let known = known.filter(|known| known.topic_id == topic_id && !topic_id.is_nil());
        if let Some(known) = known.filter(|known| known.epoch > leader.epoch) {
            if leader.broker >= 0 {
                return false;
            }
            leader.epoch = known.epoch;
        }
        self.leaders.insert(key, leader);
        true
    }

    /// Keeps the coordinator of a group or transactional id.
    pub(super) fn learn_coordinator(&mut self, target: Target<'_>, address: &Arc<str>) {
        if let Target::Coordinator(key) | Target::TransactionCoordinator(key) = target {
            let coordinators = self.coordinators.entry(target.key_type()).or_default();
            coordinators.insert(key.to_owned(), Arc::clone(address));
        }
    }

    pub(super) fn set_last_good(&mut self, address: Option<Arc<str>>) {
        self.last_good = address;
    }

    /// Whom to ask what any broker answers, one after the other.
    pub(super) fn candidates(&self, config: &KafkaConfig) -> Vec<Arc<str>> {
        let mut known: Vec<_> = self.brokers.values().cloned().collect();
        known.sort_unstable();
        let passed_over = self.passed_over.checked_rem(known.len()).unwrap_or(0);
        known.rotate_left(passed_over);
        let bootstrap = config.bootstrap().into_iter().map(Arc::from);
        let mut candidates: Vec<Arc<str>> = Vec::new();
        for address in self.last_good.iter().cloned().chain(known).chain(bootstrap) {
            if !candidates.contains(&address) {
                candidates.push(address);
            }
        }
        candidates
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::BrokerId;
    use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
    use kafka_protocol::protocol::StrBytes;

    use super::super::cluster::topic_name;
    use super::*;

    const TOPIC: Uuid = Uuid::from_u128(7);

    fn partition() -> TopicPartition {
        TopicPartition::new("orders", 0)
    }

    fn told(topic_id: Uuid, leader: i32, epoch: i32) -> MetadataResponse {
        let brokers = (1..=3_i32).map(|id| {
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_static_str("host"))
                .with_port(id)
        });
        let partition = MetadataResponsePartition::default()
            .with_leader_id(BrokerId(leader))
            .with_leader_epoch(epoch);
        let topic = MetadataResponseTopic::default()
            .with_name(Some(topic_name("orders")))
            .with_topic_id(topic_id)
            .with_partitions(vec![partition]);
        MetadataResponse::default()
            .with_brokers(brokers.collect())
            .with_topics(vec![topic])
    }

    fn leader(known: &Known) -> Option<(String, i32)> {
        let route = known.route(Target::Leader(&partition()))?;
        Some((route.address.to_string(), route.leader_epoch))
    }

    #[test]
    fn a_broker_that_lags_behind_brings_no_old_leader_back() {
        let mut known = Known::default();
        known.learn(&told(TOPIC, 2, 5));
        known.set_last_good(Some("host:1".into()));
        known.learn(&told(TOPIC, 1, 4));
        assert_eq!(leader(&known), Some(("host:2".to_owned(), 5)));
        let next = known.candidates(&KafkaConfig::default());
        assert_eq!(&*next[0], "host:2", "another broker is asked next");

        known.forget(Target::Leader(&partition()));
        known.learn(&told(TOPIC, 1, 4));
        assert_eq!(leader(&known), None, "the epoch outlives the way");
        known.learn(&told(TOPIC, -1, 4));
        assert!(known.is_leaderless(&partition()));
        known.learn(&told(TOPIC, 1, 4));
        assert_eq!(leader(&known), None);
        known.learn(&told(TOPIC, 3, 6));
        assert_eq!(leader(&known), Some(("host:3".to_owned(), 6)));
    }

    #[test]
    fn epochs_begin_anew_with_a_new_topic_and_where_topics_have_no_ids() {
        for next in [Uuid::from_u128(8), Uuid::nil()] {
            let mut known = Known::default();
            known.learn(&told(TOPIC, 2, 5));
            known.learn(&told(next, 1, 0));
            assert_eq!(leader(&known), Some(("host:1".to_owned(), 0)));
        }
        let mut known = Known::default();
        known.learn(&told(Uuid::nil(), 2, 5));
        known.learn(&told(Uuid::nil(), 1, 0));
        assert_eq!(leader(&known), Some(("host:1".to_owned(), 0)));
    }

    #[test]
    fn a_topic_that_is_gone_has_no_leaders() {
        let mut known = Known::default();
        known.learn(&told(TOPIC, 2, 5));
        let mut gone = told(TOPIC, 2, 5);
        for topic in &mut gone.topics {
            topic.error_code = UNKNOWN_TOPIC;
            topic.partitions.clear();
        }
        known.learn(&gone);
        assert_eq!(leader(&known), None);
        assert!(!known.is_leaderless(&partition()));
    }
}
