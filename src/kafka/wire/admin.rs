//! Topics and their configurations, and what the cluster tells about itself.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    MetadataResponse,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::api::{check_code, only, server_error};
use super::cluster::{Cluster, Target, check_topic, metadata_request, topic_name};
use super::connection::Deadline;
use crate::kafka::KafkaError;
use crate::retry::Backoff;

/// `ConfigResource.Type.TOPIC`.
const RESOURCE_TOPIC: i8 = 2;

/// `ConfigSource.DYNAMIC_TOPIC_CONFIG`: set on the topic itself.
const SOURCE_TOPIC: i8 = 1;

/// A topic as the brokers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// Its id, another one after the topic was deleted and made anew; nil before Kafka 2.8.
    pub id: Uuid,
    /// How many partitions it has.
    pub partitions: i32,
    /// How many replicas its partition 0 has.
    pub replication_factor: i16,
    /// How many of its partitions have no leader right now.
    pub leaders_missing: i32,
}

/// A topic to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions; −1 takes the broker's `num.partitions`.
    pub partitions: i32,
    /// How many replicas; −1 takes the broker's `default.replication.factor`.
    pub replication_factor: i16,
    /// Configurations that differ from the broker's defaults, such as `cleanup.policy`.
    pub configs: BTreeMap<String, String>,
}

/// What creating a topic came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// It is there now.
    Created,
    /// It was there before, with whatever partitions and configurations it has.
    AlreadyExists,
}

/// A topic's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigValue {
    /// The value in force; `None` where Kafka's is null.
    pub value: Option<String>,
    /// Whether it comes from the broker and not from the topic itself.
    pub is_default: bool,
}

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BrokerDescription {
    /// Its `node.id`.
    pub id: i32,
    /// The host that it advertises.
    pub host: String,
    /// The port that it advertises.
    pub port: i32,
    /// Its `broker.rack`.
    pub rack: Option<String>,
}

/// What a cluster tells about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDescription {
    /// Its id.
    pub cluster_id: Option<String>,
    /// The node that takes administrative requests.
    pub controller_id: Option<i32>,
    /// The brokers that are alive, by id.
    pub brokers: Vec<BrokerDescription>,
    /// The level of the feature `metadata.version`; `None` with ZooKeeper.
    pub metadata_version: Option<i16>,
    /// Lowest and highest version of each API key that a broker speaks, both inclusive.
    pub api_versions: BTreeMap<i16, (i16, i16)>,
}

impl Cluster {
    /// Describes topics; `None` for each that does not exist.
    ///
    /// # Errors
    /// When no broker answers in time, or a topic may not be described.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn describe_topics(
        &self,
        names: &[&str],
    ) -> Result<BTreeMap<String, Option<TopicDescription>>, KafkaError> {
        self.ask(
            Target::Any,
            Duration::ZERO,
            |_| metadata_request(Some(names)),
            |response| check_descriptions(names, response),
        )
        .await
    }

    /// The names of all topics that we may see, internal ones left out.
    ///
    /// # Errors
    /// When no broker answers in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn list_topics(&self) -> Result<Vec<String>, KafkaError> {
        self.ask(
            Target::Any,
            Duration::ZERO,
            |_| metadata_request(None),
            |response| Ok(topic_names(response)),
        )
        .await
    }

    /// Creates a topic and waits until brokers know it, with a leader for each partition.
    ///
    /// # Errors
    /// When no broker answers in time, the broker refuses the topic, or it has no leaders in time.
    ///
    /// # Cancel safety
    /// Safe; the topic may have been created.
    pub async fn create_topic(&self, topic: &NewTopic) -> Result<Creation, KafkaError> {
        let timeout = self.config().request_timeout;
        let creation = self
            .ask(
                Target::Controller,
                Duration::ZERO,
                |_| create_request(topic, timeout),
                |response| check_creation(&topic.name, response),
            )
            .await?;
        self.wait_for_topic(&topic.name, creation).await?;
        Ok(creation)
    }

    /// Brokers hear of a new topic some time after the controller. Of a topic that somebody else made we only wait to hear: it may
    /// lack leaders for reasons of its own.
    async fn wait_for_topic(&self, name: &str, creation: Creation) -> Result<(), KafkaError> {
        let deadline = Deadline::within(self.config().request_timeout).at;
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
        loop {
            let found = self.describe_topics(&[name]).await?.remove(name).flatten();
            let is_ready = match (&found, creation) {
                (None, _) => false,
                (Some(_), Creation::AlreadyExists) => true,
                (Some(topic), Creation::Created) => topic.leaders_missing == 0,
            };
            if is_ready {
                return Ok(());
            }
            let delay = backoff.next_delay();
            if Instant::now() + delay >= deadline {
                return Err(server_error(
                    format!("waiting for the new topic {name}"),
                    ResponseError::LeaderNotAvailable,
                    ResponseError::LeaderNotAvailable.code(),
                    found.map(|topic| {
                        let (missing, all) = (topic.leaders_missing, topic.partitions);
                        format!("{missing} of {all} partitions have no leader")
                    }),
                ));
            }
            sleep(delay).await;
        }
    }

    /// Those of a topic's configurations that `keys` names; a key that the broker does not know is left out.
    ///
    /// # Errors
    /// [`KafkaError::UnknownTopic`], or when no broker answers in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn topic_configs(
        &self,
        name: &str,
        keys: &[&str],
    ) -> Result<BTreeMap<String, ConfigValue>, KafkaError> {
        self.ask(
            Target::Any,
            Duration::ZERO,
            |_| configs_request(name, keys),
            |response| check_configs(name, response),
        )
        .await
    }

    /// Describes the cluster.
    ///
    /// # Errors
    /// When no broker answers in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn cluster_description(&self) -> Result<ClusterDescription, KafkaError> {
        let metadata = self
            .ask(
                Target::Any,
                Duration::ZERO,
                |_| metadata_request(Some(&[])),
                Ok,
            )
            .await?;
        let versions = self.versions().await?;
        let mut brokers: Vec<_> = metadata
            .brokers
            .iter()
            .map(|broker| BrokerDescription {
                id: broker.node_id.0,
                host: broker.host.to_string(),
                port: broker.port,
                rack: broker.rack.as_ref().map(StrBytes::to_string),
            })
            .collect();
        brokers.sort_unstable();
        Ok(ClusterDescription {
            cluster_id: metadata.cluster_id.as_ref().map(StrBytes::to_string),
            controller_id: Some(metadata.controller_id.0).filter(|id| *id >= 0),
            brokers,
            metadata_version: versions.metadata_version,
            api_versions: versions.ranges.clone(),
        })
    }
}

fn check_descriptions(
    names: &[&str],
    response: MetadataResponse,
) -> Result<BTreeMap<String, Option<TopicDescription>>, KafkaError> {
    let mut found = BTreeMap::new();
    for topic in response.topics {
        let Some(name) = topic.name.as_ref().map(|name| name.to_string()) else {
            continue;
        };
        let description = match check_topic(&name, topic.error_code) {
            Ok(()) => Some(describe(name.clone(), &topic)?),
            Err(KafkaError::UnknownTopic { .. }) => None,
            Err(error) => return Err(error),
        };
        found.insert(name, description);
    }
    if names.iter().any(|name| !found.contains_key(*name)) {
        return Err(KafkaError::Protocol {
            operation: "Metadata",
            detail: format!("asked for {}, it leaves some out", names.join(", ")),
        });
    }
    Ok(found)
}

pub(super) fn describe(
    name: String,
    topic: &MetadataResponseTopic,
) -> Result<TopicDescription, KafkaError> {
    let count = |count: usize| {
        i32::try_from(count).map_err(|error| KafkaError::Protocol {
            operation: "Metadata",
            detail: format!("{name} has {count} partitions: {error}"),
        })
    };
    let first = topic
        .partitions
        .iter()
        .find(|partition| partition.partition_index == 0);
    let leaderless = topic
        .partitions
        .iter()
        .filter(|partition| partition.leader_id.0 < 0);
    Ok(TopicDescription {
        id: topic.topic_id,
        partitions: count(topic.partitions.len())?,
        replication_factor: first
            .and_then(|partition| i16::try_from(partition.replica_nodes.len()).ok())
            .unwrap_or(-1),
        leaders_missing: count(leaderless.count())?,
        name,
    })
}

fn topic_names(response: MetadataResponse) -> Vec<String> {
    let mut names: Vec<_> = response
        .topics
        .into_iter()
        .filter(|topic| !topic.is_internal)
        .filter_map(|topic| topic.name.map(|name| name.to_string()))
        .collect();
    names.sort_unstable();
    names
}

pub(super) fn create_request(topic: &NewTopic, timeout: Duration) -> CreateTopicsRequest {
    let configs = topic
        .configs
        .iter()
        .map(|(name, value)| {
            CreatableTopicConfig::default()
                .with_name(StrBytes::from_string(name.clone()))
                .with_value(Some(StrBytes::from_string(value.clone())))
        })
        .collect();
    let topic = CreatableTopic::default()
        .with_name(topic_name(&topic.name))
        .with_num_partitions(topic.partitions)
        .with_replication_factor(topic.replication_factor)
        .with_configs(configs);
    CreateTopicsRequest::default()
        .with_topics(vec![topic])
        .with_timeout_ms(i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX))
}

pub(super) fn check_creation(
    name: &str,
    response: CreateTopicsResponse,
) -> Result<Creation, KafkaError> {
    let result = only("CreateTopics", name, response.topics, |topic| {
        topic.name.as_str() == name
    })?;
    match ResponseError::try_from_code(result.error_code) {
        None => Ok(Creation::Created),
        Some(ResponseError::TopicAlreadyExists) => Ok(Creation::AlreadyExists),
        Some(_) => check_code(
            format!("CreateTopics of {name}"),
            result.error_code,
            result.error_message.as_ref(),
        )
        .map(|()| Creation::Created),
    }
}

fn configs_request(name: &str, keys: &[&str]) -> DescribeConfigsRequest {
    let keys = keys
        .iter()
        .map(|key| StrBytes::from_string((*key).to_owned()))
        .collect();
    let resource = DescribeConfigsResource::default()
        .with_resource_type(RESOURCE_TOPIC)
        .with_resource_name(StrBytes::from_string(name.to_owned()))
        .with_configuration_keys(Some(keys));
    DescribeConfigsRequest::default().with_resources(vec![resource])
}

fn check_configs(
    name: &str,
    response: DescribeConfigsResponse,
) -> Result<BTreeMap<String, ConfigValue>, KafkaError> {
    let result = only("DescribeConfigs", name, response.results, |result| {
        result.resource_type == RESOURCE_TOPIC && result.resource_name.as_str() == name
    })?;
    if let Some(ResponseError::UnknownTopicOrPartition) =
        ResponseError::try_from_code(result.error_code)
    {
        return Err(KafkaError::UnknownTopic {
            topic: name.to_owned(),
        });
    }
    check_code(
        format!("DescribeConfigs of {name}"),
        result.error_code,
        result.error_message.as_ref(),
    )?;
    Ok(result
        .configs
        .into_iter()
        .map(|config| {
            let value = ConfigValue {
                value: config.value.as_ref().map(StrBytes::to_string),
                is_default: config.config_source != SOURCE_TOPIC,
            };
            (config.name.to_string(), value)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::BrokerId;
    use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
    use kafka_protocol::messages::describe_configs_response::{
        DescribeConfigsResourceResult, DescribeConfigsResult,
    };
    use kafka_protocol::messages::metadata_response::MetadataResponsePartition;

    use super::*;

    fn described(name: &str, code: i16, leaders: &[i32]) -> MetadataResponseTopic {
        let partitions = (0..).zip(leaders).map(|(index, leader)| {
            MetadataResponsePartition::default()
                .with_partition_index(index)
                .with_leader_id(BrokerId(*leader))
                .with_replica_nodes(vec![BrokerId(1), BrokerId(2), BrokerId(3)])
        });
        MetadataResponseTopic::default()
            .with_name(Some(topic_name(name)))
            .with_error_code(code)
            .with_partitions(partitions.collect())
    }

    fn is_protocol<T: std::fmt::Debug>(result: Result<T, KafkaError>) -> bool {
        matches!(result, Err(KafkaError::Protocol { .. }))
    }

    #[test]
    fn topics_are_described_in_any_order_and_missing_ones_are_none() {
        let topics = vec![described("b", 3, &[]), described("a", 0, &[1, -1, 2])];
        let response = MetadataResponse::default().with_topics(topics);
        let found = check_descriptions(&["a", "b"], response.clone()).unwrap();
        assert_eq!(found["b"], None);
        let a = found["a"].as_ref().unwrap();
        assert_eq!((a.partitions, a.leaders_missing), (3, 1));
        assert_eq!(a.replication_factor, 3);
        let asked_more = check_descriptions(&["a", "b", "c"], response);
        assert!(is_protocol(asked_more), "nothing said is not missing");
    }

    #[test]
    fn a_topic_that_may_not_be_described_is_an_error() {
        let topics = vec![described("a", 29, &[])];
        let response = MetadataResponse::default().with_topics(topics);
        let error = check_descriptions(&["a"], response).unwrap_err();
        assert!(error.to_string().contains("TopicAuthorizationFailed"));
        assert!(!error.is_transient());
    }

    #[test]
    fn the_answer_about_creation_must_be_about_the_topic() {
        let answer = |name, code| {
            let result = CreatableTopicResult::default()
                .with_name(topic_name(name))
                .with_error_code(code);
            check_creation(
                "a",
                CreateTopicsResponse::default().with_topics(vec![result]),
            )
        };
        assert_eq!(answer("a", 0).unwrap(), Creation::Created);
        assert_eq!(answer("a", 36).unwrap(), Creation::AlreadyExists);
        assert!(answer("a", 41).unwrap_err().is_transient(), "controller");
        assert!(!answer("a", 38).unwrap_err().is_transient(), "replicas");
        assert!(is_protocol(answer("b", 0)));
        assert!(is_protocol(check_creation(
            "a",
            CreateTopicsResponse::default()
        )));
    }

    #[test]
    fn only_what_the_topic_sets_is_no_default() {
        let config = |name: &'static str, source| {
            DescribeConfigsResourceResult::default()
                .with_name(StrBytes::from_static_str(name))
                .with_value(Some(StrBytes::from_static_str("value")))
                .with_config_source(source)
        };
        let result = DescribeConfigsResult::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(StrBytes::from_static_str("a"))
            .with_configs(vec![
                config("own", 1),
                config("dynamic", 3),
                config("static", 5),
            ]);
        let response = DescribeConfigsResponse::default().with_results(vec![result]);
        let configs = check_configs("a", response.clone()).unwrap();
        assert!(!configs["own"].is_default);
        assert!(configs["dynamic"].is_default && configs["static"].is_default);
        assert!(is_protocol(check_configs("b", response)));
    }
}
