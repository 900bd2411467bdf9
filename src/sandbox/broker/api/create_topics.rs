//! CreateTopics, versions 2 to 7.
//!
//! Checks names, partitions, replication (one broker), assignments and configurations in Kafka's order and with its codes; a message
//! goes with every error. The creation is done when the answer leaves.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult,
};
use kafka_protocol::messages::{CreateTopicsRequest, CreateTopicsResponse};
use uuid::Uuid;

use super::super::connection::Context;
use super::super::shared::NODE_ID;
use super::super::state::{NewTopic, Refusal, State};
use super::super::topic_config::{DEFINITIONS, TopicConfig};
use super::{Api, Reply, text};

/// `config_source` of a configuration set on the topic.
pub(super) const SOURCE_TOPIC: i8 = 1;
/// `config_source` of a default.
pub(super) const SOURCE_DEFAULT: i8 = 5;

impl Api for CreateTopicsRequest {
    const SERVED: (i16, i16) = (2, 7);

    fn layout(_: i16) -> &'static str {
        "{S i s {i [i]} {S S}} i b"
    }

    fn topics(&self) -> Vec<String> {
        self.topics
            .iter()
            .map(|topic| topic.name.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> CreateTopicsResponse {
        let refusal = Refusal::new(code, code.to_string());
        let topics = self.topics.iter().map(|topic| failed(topic, &refusal));
        CreateTopicsResponse::default().with_topics(topics.collect())
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<CreateTopicsResponse> {
        let default_partitions = context.shared.config.num_partitions;
        let mut times = BTreeMap::<_, usize>::new();
        for topic in &self.topics {
            *times.entry(topic.name.as_str()).or_default() += 1;
        }
        let results = context.shared.change(|state| {
            // A name that occurs twice is refused once.
            let mut results = Vec::with_capacity(times.len());
            for (name, times) in &times {
                let Some(topic) = self
                    .topics
                    .iter()
                    .find(|topic| topic.name.as_str() == *name)
                else {
                    continue;
                };
                let created = if *times > 1 {
                    let message = "Duplicate topic name.";
                    Err(Refusal::new(ResponseError::InvalidRequest, message))
                } else {
                    create(state, topic, default_partitions, self.validate_only)
                };
                results.push(created.unwrap_or_else(|refusal| failed(topic, &refusal)));
            }
            results
        });
        Reply::Answer(CreateTopicsResponse::default().with_topics(results))
    }
}

fn create(
    state: &mut State,
    topic: &CreatableTopic,
    default_partitions: i32,
    validate_only: bool,
) -> Result<CreatableTopicResult, Refusal> {
    let mut new = NewTopic {
        name: &topic.name,
        // One stands in while name and configurations are checked, which Kafka does first.
        partitions: 1,
        configs: topic
            .configs
            .iter()
            .map(|config| (config.name.as_str(), config.value.as_deref()))
            .collect(),
    };
    let config = state.check_new_topic(&new)?;
    new.partitions = partitions(topic, default_partitions)?;
    let id = if validate_only {
        state.check_new_topic(&new)?;
        // Kafka answers the id that it would have given.
        Uuid::new_v4()
    } else {
        state.create_topic(&new)?
    };
    Ok(CreatableTopicResult::default()
        .with_name(topic.name.clone())
        .with_topic_id(id)
        .with_error_message(None)
        .with_num_partitions(i32::try_from(new.partitions).unwrap_or(i32::MAX))
        .with_replication_factor(1)
        .with_configs(Some(describe(&config))))
}

/// How many partitions the topic gets.
fn partitions(topic: &CreatableTopic, default: i32) -> Result<usize, Refusal> {
    if !topic.assignments.is_empty() {
        return assigned_partitions(topic);
    }
    let factor = topic.replication_factor;
    if factor == 0 || factor < -1 {
        return Err(Refusal::new(
            ResponseError::InvalidReplicationFactor,
            "Replication factor must be larger than 0, or -1 to use the default value.",
        ));
    }
    let count = match topic.num_partitions {
        -1 => default,
        count => count,
    };
    let invalid = || {
        Refusal::new(
            ResponseError::InvalidPartitions,
            "Number of partitions was set to an invalid non-positive value.",
        )
    };
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(invalid)?;
    if factor > 1 {
        return Err(Refusal::new(
            ResponseError::InvalidReplicationFactor,
            format!(
                "Unable to replicate the partition {factor} time(s): The target replication factor of {factor} cannot be reached because only 1 broker(s) are registered."
            ),
        ));
    }
    Ok(count)
}

fn assigned_partitions(topic: &CreatableTopic) -> Result<usize, Refusal> {
    if topic.replication_factor != -1 {
        return Err(Refusal::new(
            ResponseError::InvalidRequest,
            "A manual partition assignment was specified, but replication factor was not set to -1.",
        ));
    }
    if topic.num_partitions != -1 {
        return Err(Refusal::new(
            ResponseError::InvalidRequest,
            "A manual partition assignment was specified, but numPartitions was not set to -1.",
        ));
    }
    let invalid = |message: &str| Refusal::new(ResponseError::InvalidReplicaAssignment, message);
    let mut indexes: Vec<_> = topic
        .assignments
        .iter()
        .map(|assignment| assignment.partition_index)
        .collect();
    indexes.sort_unstable();
    if !(0..)
        .zip(&indexes)
        .all(|(expected, index)| expected == *index)
    {
        return Err(invalid(
            "partitions should be a consecutive 0-based integer sequence",
        ));
    }
    let is_here = |brokers: &[_]| matches!(brokers, [only] if *only == NODE_ID);
    if topic
        .assignments
        .iter()
        .all(|assignment| is_here(&assignment.broker_ids))
    {
        Ok(indexes.len())
    } else {
        Err(invalid(
            "The manual partition assignment names a broker that is not registered",
        ))
    }
}

fn describe(config: &TopicConfig) -> Vec<CreatableTopicConfigs> {
    DEFINITIONS
        .iter()
        .filter_map(|definition| {
            let (value, is_set) = config.lookup(definition.name)?;
            let source = if is_set { SOURCE_TOPIC } else { SOURCE_DEFAULT };
            Some(
                CreatableTopicConfigs::default()
                    .with_name(text(definition.name))
                    .with_value(Some(text(value)))
                    .with_config_source(source),
            )
        })
        .collect()
}

fn failed(topic: &CreatableTopic, refusal: &Refusal) -> CreatableTopicResult {
    CreatableTopicResult::default()
        .with_name(topic.name.clone())
        .with_error_code(refusal.code.code())
        .with_error_message(Some(text(refusal.message.as_str())))
        .with_num_partitions(-1)
        .with_replication_factor(-1)
        .with_configs(Some(Vec::new()))
}
