//! Metadata, versions 0 to 12.
//!
//! One broker that leads everything and is the controller. Authorized operations on topics are told to who asks for them, those on the
//! cluster to nobody. Topics are created by asking only when the broker's configuration says so.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{BrokerId, MetadataRequest, MetadataResponse, TopicName};
use uuid::Uuid;

use super::super::connection::Context;
use super::super::shared::{NODE_ID, Shared};
use super::super::state::{NewTopic, State, Topic, check_topic_name};
use super::{Api, Reply, text};

/// Up to this version an empty list asks for all topics; later, null does.
const EMPTY_IS_ALL_UP_TO: i16 = 0;
/// From this version on the client says whether asking may create.
const SAYS_CREATE_FROM: i16 = 4;

impl Api for MetadataRequest {
    const SERVED: (i16, i16) = (0, 12);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=9 => "{S}",
            _ => "{u S}",
        }
    }

    fn topics(&self) -> Vec<String> {
        let named = self.topics.iter().flatten();
        named
            .filter_map(|topic| topic.name.as_ref())
            .map(|name| name.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> MetadataResponse {
        let refused = self.topics.iter().flatten().map(|topic| {
            MetadataResponseTopic::default()
                .with_name(topic.name.clone().or_else(|| Some(TopicName::default())))
                .with_topic_id(topic.topic_id)
                .with_error_code(code.code())
        });
        MetadataResponse::default().with_topics(refused.collect())
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<MetadataResponse> {
        let shared = &context.shared;
        let may_create = version < SAYS_CREATE_FROM || self.allow_auto_topic_creation;
        let asked = self
            .topics
            .filter(|topics| version > EMPTY_IS_ALL_UP_TO || !topics.is_empty());
        let (mut topics, cluster_id) = look(shared, asked.as_deref());
        if self.include_topic_authorized_operations {
            tell_rights(shared, &mut topics);
        }
        inform(shared, &topics, context.client_id.as_deref());
        if shared.config.auto_create_topics && may_create {
            // After the look: as with Kafka, who asks first is told that there is no such topic, and finds it when asking again.
            create_missing(shared, asked.as_deref().unwrap_or_default());
        }
        let (host, port) = shared.advertised();
        let broker = MetadataResponseBroker::default()
            .with_node_id(BrokerId(NODE_ID))
            .with_host(text(host))
            .with_port(port);
        let response = MetadataResponse::default()
            .with_brokers(vec![broker])
            .with_cluster_id(Some(text(cluster_id)))
            .with_controller_id(BrokerId(NODE_ID))
            .with_topics(topics);
        Reply::Answer(response)
    }
}

/// The topics that were asked for, or all of them, and the id of the cluster.
fn look(
    shared: &Shared,
    asked: Option<&[MetadataRequestTopic]>,
) -> (Vec<MetadataResponseTopic>, String) {
    let state = shared.state();
    let topics = match asked {
        None => state
            .topics
            .iter()
            .map(|(name, topic)| describe(name, topic))
            .collect(),
        Some(asked) => asked.iter().map(|topic| answer(&state, topic)).collect(),
    };
    (topics, state.cluster_id.clone())
}

fn tell_rights(shared: &Shared, topics: &mut [MetadataResponseTopic]) {
    for topic in topics {
        if let Some(name) = &topic.name {
            topic.topic_authorized_operations = shared.config.rights.on_topic(name);
        }
    }
}

/// The client knows the leaders of these topics from now on.
fn inform(shared: &Shared, topics: &[MetadataResponseTopic], client: Option<&str>) {
    let mut state = shared.state();
    for name in topics.iter().filter_map(|topic| topic.name.as_ref()) {
        if let Some(topic) = state.topics.get_mut(name.as_str()) {
            for partition in &mut topic.partitions {
                partition.election.inform(client);
            }
        }
    }
}

fn create_missing(shared: &Shared, asked: &[MetadataRequestTopic]) {
    let partitions = usize::try_from(shared.config.num_partitions).unwrap_or(1);
    for name in asked.iter().filter_map(|topic| topic.name.as_ref()) {
        if shared.state().topics.contains_key(name.as_str()) {
            continue;
        }
        let topic = NewTopic {
            name,
            partitions,
            configs: Vec::new(),
        };
        if let Err(error) = shared.change(|state| state.create_topic(&topic)) {
            tracing::debug!(%error, "the sandbox broker could not create a topic that was asked for");
        }
    }
}

fn answer(state: &State, asked: &MetadataRequestTopic) -> MetadataResponseTopic {
    let unknown = |code: ResponseError| {
        MetadataResponseTopic::default()
            .with_name(asked.name.clone())
            .with_topic_id(asked.topic_id)
            .with_error_code(code.code())
    };
    let name = match &asked.name {
        Some(name) => name.as_str(),
        None if asked.topic_id != Uuid::nil() => match state.topic_name(asked.topic_id) {
            Some(name) => name,
            None => return unknown(ResponseError::UnknownTopicId),
        },
        None => return unknown(ResponseError::InvalidRequest),
    };
    if let Some(topic) = state.topics.get(name) {
        return describe(name, topic);
    }
    match check_topic_name(name) {
        Ok(()) => unknown(ResponseError::UnknownTopicOrPartition),
        Err(refusal) => unknown(refusal.code),
    }
}

fn describe(name: &str, topic: &Topic) -> MetadataResponseTopic {
    let partitions = (0..).zip(&topic.partitions).map(|(index, partition)| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(NODE_ID))
            .with_leader_epoch(partition.leader_epoch)
            .with_replica_nodes(vec![BrokerId(NODE_ID)])
            .with_isr_nodes(vec![BrokerId(NODE_ID)])
    });
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(name))))
        .with_topic_id(topic.id)
        .with_partitions(partitions.collect())
}
