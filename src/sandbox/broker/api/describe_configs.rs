//! DescribeConfigs, versions 1 to 4.
//!
//! Topics (type 2) with all of Kafka's names, and the broker (type 4) with the few that the sandbox has. Documentation is never sent.
//! Synonyms are the topic's own value and the broker's default.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};

use super::super::config::BrokerConfig;
use super::super::connection::Context;
use super::super::shared::NODE_ID;
use super::super::state::{Refusal, State, check_topic_name};
use super::super::topic_config::{DEFINITIONS, Definition, TopicConfig};
use super::create_topics::{SOURCE_DEFAULT, SOURCE_TOPIC};
use super::{Api, Reply, text};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// `config_source` of what a broker was started with.
const SOURCE_STATIC: i8 = 4;

impl Api for DescribeConfigsRequest {
    const SERVED: (i16, i16) = (1, 4);

    fn layout(_: i16) -> &'static str {
        "{b S [S]} b"
    }

    fn topics(&self) -> Vec<String> {
        let topics = self
            .resources
            .iter()
            .filter(|one| one.resource_type == TOPIC);
        topics.map(|one| one.resource_name.to_string()).collect()
    }

    fn refuse(&self, code: ResponseError) -> DescribeConfigsResponse {
        let refusal = Refusal::new(code, code.to_string());
        let results = self.resources.iter().map(|one| failed(one, &refusal));
        DescribeConfigsResponse::default().with_results(results.collect())
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<DescribeConfigsResponse> {
        let state = context.shared.state();
        let results = self.resources.iter().map(|resource| {
            let described = match resource.resource_type {
                TOPIC => describe_topic(&state, resource, self.include_synonyms),
                BROKER => describe_broker(&context.shared.config, resource),
                other => Err(Refusal::new(
                    ResponseError::InvalidRequest,
                    format!("Unsupported resource type: {other}"),
                )),
            };
            match described {
                Ok(configs) => result(resource).with_configs(configs),
                Err(refusal) => failed(resource, &refusal),
            }
        });
        Reply::Answer(DescribeConfigsResponse::default().with_results(results.collect()))
    }
}

fn result(resource: &DescribeConfigsResource) -> DescribeConfigsResult {
    DescribeConfigsResult::default()
        .with_resource_type(resource.resource_type)
        .with_resource_name(resource.resource_name.clone())
}

fn failed(resource: &DescribeConfigsResource, refusal: &Refusal) -> DescribeConfigsResult {
    result(resource)
        .with_error_code(refusal.code.code())
        .with_error_message(Some(text(refusal.message.as_str())))
}

/// No list of keys asks for all of them.
fn is_wanted(resource: &DescribeConfigsResource, name: &str) -> bool {
    let keys = resource.configuration_keys.as_ref();
    keys.is_none_or(|keys| keys.iter().any(|key| key.as_str() == name))
}

fn describe_topic(
    state: &State,
    resource: &DescribeConfigsResource,
    synonyms: bool,
) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    check_topic_name(&resource.resource_name)?;
    let topic = state
        .topics
        .get(resource.resource_name.as_str())
        .ok_or_else(|| Refusal::new(ResponseError::UnknownTopicOrPartition, ""))?;
    Ok(DEFINITIONS
        .iter()
        .filter(|definition| is_wanted(resource, definition.name))
        .filter_map(|definition| describe(&topic.config, definition, synonyms))
        .collect())
}

fn describe(
    config: &TopicConfig,
    definition: &Definition,
    synonyms: bool,
) -> Option<DescribeConfigsResourceResult> {
    let (value, is_set) = config.lookup(definition.name)?;
    let mut chain = Vec::new();
    if synonyms && is_set {
        chain.push(synonym(definition.name, value, SOURCE_TOPIC));
    }
    if let Some(name) = definition.synonym.filter(|_| synonyms) {
        chain.push(synonym(name, config.default_of(definition), SOURCE_DEFAULT));
    }
    let described = DescribeConfigsResourceResult::default()
        .with_name(text(definition.name))
        .with_value(Some(text(value)))
        .with_config_source(if is_set { SOURCE_TOPIC } else { SOURCE_DEFAULT })
        .with_synonyms(chain)
        .with_config_type(definition.kind.wire_type())
        .with_documentation(None);
    Some(described)
}

fn synonym(name: &str, value: &str, source: i8) -> DescribeConfigsSynonym {
    DescribeConfigsSynonym::default()
        .with_name(text(name))
        .with_value(Some(text(value)))
        .with_source(source)
}

fn describe_broker(
    config: &BrokerConfig,
    resource: &DescribeConfigsResource,
) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    let name = resource.resource_name.as_str();
    if !name.is_empty() && name != NODE_ID.to_string() {
        return Err(Refusal::new(
            ResponseError::InvalidRequest,
            format!(
                "Unexpected broker id, expected {NODE_ID} or empty string, but received {name}"
            ),
        ));
    }
    let values = [
        (
            "auto.create.topics.enable",
            config.auto_create_topics.to_string(),
        ),
        ("default.replication.factor", "1".to_owned()),
        ("max.connections", config.connections_max.to_string()),
        ("message.max.bytes", config.message_max_bytes.to_string()),
        ("min.insync.replicas", "1".to_owned()),
        ("num.partitions", config.num_partitions.to_string()),
    ];
    Ok(values
        .into_iter()
        .filter(|(name, _)| is_wanted(resource, name))
        .map(|(name, value)| {
            DescribeConfigsResourceResult::default()
                .with_name(text(name))
                .with_value(Some(text(value)))
                .with_config_source(SOURCE_STATIC)
                .with_read_only(true)
                .with_documentation(None)
        })
        .collect())
}
