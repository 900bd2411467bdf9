//! What this user may do, as far as brokers tell it, and otherwise found out by requests that change nothing.
//!
//! Brokers tell the operations on topics (`Metadata` from version 8 on) and on groups (`DescribeGroups`, KIP-430). The others are asked for in
//! vain: a producer id with a transaction timeout of 0, which brokers look at only after the authorizer, and a topic that is to be
//! validated only.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::messages::{
    DescribeGroupsRequest, DescribeGroupsResponse, InitProducerIdRequest, InitProducerIdResponse,
    MetadataResponse, ProducerId, TransactionalId,
};
use kafka_protocol::protocol::StrBytes;

use super::admin::{NewTopic, TopicDescription, check_creation, create_request, describe};
use super::api::{check_code, only};
use super::cluster::{Cluster, Target, check_topic, metadata_request};
use super::group::group_id;
use crate::kafka::KafkaError;

/// The version of `Metadata` that tells operations.
const TELLS_OPERATIONS_FROM: i16 = 8;
/// What stands where nothing is told (KIP-430).
const NOT_TOLD: i32 = i32::MIN;

const TOPIC_AUTHORIZATION_FAILED: i16 = 29;
const GROUP_AUTHORIZATION_FAILED: i16 = 30;
const CLUSTER_AUTHORIZATION_FAILED: i16 = 31;
const INVALID_TRANSACTION_TIMEOUT: i16 = 50;
const TRANSACTIONAL_ID_AUTHORIZATION_FAILED: i16 = 53;

/// What an ACL allows; the numbers are those of `AclOperation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// To fetch, or to commit offsets.
    Read = 3,
    /// To append, or to be a transactional writer.
    Write = 4,
    /// To create a topic.
    Create = 5,
    /// To see it.
    Describe = 8,
    /// To see its configuration.
    DescribeConfigs = 10,
    /// To be given a producer id.
    IdempotentWrite = 12,
}

impl Operation {
    /// Kafka's name of it, as `kafka-acls` takes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
            Self::Create => "Create",
            Self::Describe => "Describe",
            Self::DescribeConfigs => "DescribeConfigs",
            Self::IdempotentWrite => "IdempotentWrite",
        }
    }
}

/// A set of operations that are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations(i32);

impl Operations {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// From the bits that a broker sends; `None` where it does not tell.
    #[must_use]
    pub const fn told(bits: i32) -> Option<Self> {
        if bits == NOT_TOLD {
            None
        } else {
            Some(Self(bits))
        }
    }

    /// Whether it is one of them.
    #[must_use]
    pub const fn allow(self, operation: Operation) -> bool {
        self.0 & (1 << operation as i32) != 0
    }
}

/// A topic, and what may be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRights {
    /// The topic; `None` when it does not exist, or may not be seen.
    pub topic: Option<TopicDescription>,
    /// What is allowed; `None` where the broker does not tell.
    pub operations: Option<Operations>,
}

impl Cluster {
    /// Describes topics with what may be done with them. A topic that may not be seen is one on which nothing is allowed; it is not
    /// told whether it exists. Each topic has an error of its own.
    ///
    /// # Errors
    /// When no broker answers in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn topic_rights(
        &self,
        names: &[&str],
    ) -> Result<BTreeMap<String, Result<TopicRights, KafkaError>>, KafkaError> {
        self.ask(
            Target::Any,
            Duration::ZERO,
            |way| {
                metadata_request(Some(names))
                    .with_include_topic_authorized_operations(way.version >= TELLS_OPERATIONS_FROM)
            },
            |response| Ok(check_topic_rights(names, response)),
        )
        .await
    }

    /// What is allowed on a group; `None` where the broker does not tell.
    ///
    /// # Errors
    /// When the coordinator cannot be found or does not answer in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn group_rights(&self, group: &str) -> Result<Option<Operations>, KafkaError> {
        let asked = self
            .ask(
                Target::Coordinator(group),
                Duration::ZERO,
                |_| {
                    DescribeGroupsRequest::default()
                        .with_groups(vec![group_id(group)])
                        .with_include_authorized_operations(true)
                },
                |response| check_group(group, response),
            )
            .await;
        match asked {
            Err(error) if error.server_code() == Some(GROUP_AUTHORIZATION_FAILED) => {
                Ok(Some(Operations::NONE))
            }
            asked => asked,
        }
    }

    /// Whether that transactional id may be written with (`Write`); `None` where the answer tells nothing. The id is given to nobody.
    ///
    /// # Errors
    /// When no broker answers in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn may_use_transactional_id(&self, id: &str) -> Result<Option<bool>, KafkaError> {
        let id = TransactionalId(StrBytes::from_string(id.to_owned()));
        let asked = self.ask(
            Target::Any,
            Duration::ZERO,
            |_| init_request(Some(id.clone())),
            |response| check_init(&response),
        );
        Ok(
            match asked.await.map_err(|error| (error.server_code(), error)) {
                Err((Some(TRANSACTIONAL_ID_AUTHORIZATION_FAILED), _)) => Some(false),
                Err((Some(INVALID_TRANSACTION_TIMEOUT), _)) => Some(true),
                Err((Some(_), _)) | Ok(()) => None,
                Err((None, error)) => return Err(error),
            },
        )
    }

    /// Whether idempotent appends are allowed: `IdempotentWrite` on the cluster, or since Kafka 2.8 `Write` on any topic. `None` where the
    /// answer tells nothing. Takes a producer id, of which there are 2⁶³.
    ///
    /// # Errors
    /// When no broker answers in time.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn may_append_idempotently(&self) -> Result<Option<bool>, KafkaError> {
        let asked = self.ask(
            Target::Any,
            Duration::ZERO,
            |_| init_request(None),
            |response| check_init(&response),
        );
        Ok(
            match asked.await.map_err(|error| (error.server_code(), error)) {
                Ok(()) => Some(true),
                Err((Some(CLUSTER_AUTHORIZATION_FAILED), _)) => Some(false),
                Err((Some(_), _)) => None,
                Err((None, error)) => return Err(error),
            },
        )
    }

    /// Whether that topic may be created (`Create` on it or on the cluster). It is not created.
    ///
    /// # Errors
    /// When the controller does not answer in time, or would refuse the topic for another reason.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn may_create_topic(&self, topic: &NewTopic) -> Result<bool, KafkaError> {
        let timeout = self.config().request_timeout;
        let asked = self.ask(
            Target::Controller,
            Duration::ZERO,
            |_| create_request(topic, timeout).with_validate_only(true),
            |response| check_creation(&topic.name, response),
        );
        match asked.await {
            Ok(_would_be) => Ok(true),
            Err(error)
                if matches!(
                    error.server_code(),
                    Some(TOPIC_AUTHORIZATION_FAILED | CLUSTER_AUTHORIZATION_FAILED)
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

fn check_topic_rights(
    names: &[&str],
    response: MetadataResponse,
) -> BTreeMap<String, Result<TopicRights, KafkaError>> {
    let mut found = BTreeMap::new();
    for topic in response.topics {
        let Some(name) = topic.name.as_ref().map(|name| name.to_string()) else {
            continue;
        };
        let operations = Operations::told(topic.topic_authorized_operations);
        let rights = match check_topic(&name, topic.error_code) {
            Ok(()) => describe(name.clone(), &topic).map(|topic| TopicRights {
                topic: Some(topic),
                operations,
            }),
            Err(KafkaError::UnknownTopic { .. }) => Ok(TopicRights {
                topic: None,
                operations,
            }),
            Err(error) if error.server_code() == Some(TOPIC_AUTHORIZATION_FAILED) => {
                Ok(TopicRights {
                    topic: None,
                    operations: Some(Operations::NONE),
                })
            }
            Err(error) => Err(error),
        };
        found.insert(name, rights);
    }
    for name in names {
        found.entry((*name).to_owned()).or_insert_with(|| {
            Err(KafkaError::Protocol {
                operation: "Metadata",
                detail: format!("asked for {name}, it leaves it out"),
            })
        });
    }
    found
}

fn check_group(
    group: &str,
    response: DescribeGroupsResponse,
) -> Result<Option<Operations>, KafkaError> {
    let found = only("DescribeGroups", group, response.groups, |found| {
        found.group_id.as_str() == group
    })?;
    check_code(format!("DescribeGroups of {group}"), found.error_code, None)?;
    Ok(Operations::told(found.authorized_operations))
}

/// A timeout that no broker accepts, so that nothing comes of it where a transactional id is named.
fn init_request(transactional_id: Option<TransactionalId>) -> InitProducerIdRequest {
    InitProducerIdRequest::default()
        .with_transactional_id(transactional_id)
        .with_transaction_timeout_ms(0)
        .with_producer_id(ProducerId(-1))
        .with_producer_epoch(-1)
}

fn check_init(response: &InitProducerIdResponse) -> Result<(), KafkaError> {
    check_code("InitProducerId", response.error_code, None)
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::describe_groups_response::DescribedGroup;
    use kafka_protocol::messages::metadata_response::MetadataResponseTopic;

    use super::super::cluster::topic_name;
    use super::*;

    fn told(name: &str, code: i16, bits: i32) -> MetadataResponseTopic {
        MetadataResponseTopic::default()
            .with_name(Some(topic_name(name)))
            .with_error_code(code)
            .with_topic_authorized_operations(bits)
    }

    #[test]
    fn operations_are_bits_and_the_least_number_tells_nothing() {
        assert_eq!(Operations::told(i32::MIN), None);
        let read_and_configs = Operations::told((1 << 3) | (1 << 10)).unwrap();
        assert!(read_and_configs.allow(Operation::Read));
        assert!(read_and_configs.allow(Operation::DescribeConfigs));
        assert!(!read_and_configs.allow(Operation::Write));
        assert!(!Operations::NONE.allow(Operation::Describe));
    }

    #[test]
    fn each_topic_has_an_answer_of_its_own() {
        let topics = vec![
            told("seen", 0, 1 << 3),
            told("missing", 3, 1 << 5),
            told("hidden", TOPIC_AUTHORIZATION_FAILED, i32::MIN),
            told("broken", 17, 0),
        ];
        let response = MetadataResponse::default().with_topics(topics);
        let names = ["seen", "missing", "hidden", "broken", "left-out"];
        let found = check_topic_rights(&names, response);
        let rights = |name: &str| found[name].as_ref().unwrap();
        assert!(rights("seen").topic.is_some());
        assert_eq!(rights("missing").topic, None);
        assert!(
            rights("missing")
                .operations
                .unwrap()
                .allow(Operation::Create)
        );
        assert_eq!(rights("hidden").operations, Some(Operations::NONE));
        assert_eq!(
            found["broken"].as_ref().unwrap_err().server_code(),
            Some(17)
        );
        assert!(found["left-out"].is_err());
    }

    #[test]
    fn a_group_is_the_one_that_was_asked_for() {
        let group = |bits| {
            let group = DescribedGroup::default()
                .with_group_id(group_id("ours"))
                .with_authorized_operations(bits);
            DescribeGroupsResponse::default().with_groups(vec![group])
        };
        let operations = check_group("ours", group(1 << 3)).unwrap();
        assert!(operations.unwrap().allow(Operation::Read));
        assert_eq!(check_group("ours", group(i32::MIN)).unwrap(), None);
        assert!(check_group("other", group(0)).is_err());
    }
}
