//! IncrementalAlterConfigs, versions 0 and 1.
//!
//! Topics only, operations set (0) and delete (1). Appending to and subtracting from lists is refused with 40, stricter than Kafka.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::incremental_alter_configs_request::AlterConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::super::connection::Context;
use super::super::state::{Refusal, State};
use super::{Api, Reply, text};

const TOPIC: i8 = 2;
const SET: i8 = 0;
const DELETE: i8 = 1;

impl Api for IncrementalAlterConfigsRequest {
    const SERVED: (i16, i16) = (0, 1);

    fn layout(_: i16) -> &'static str {
        "{b S {S b S}} b"
    }

    fn topics(&self) -> Vec<String> {
        let topics = self
            .resources
            .iter()
            .filter(|one| one.resource_type == TOPIC);
        topics.map(|one| one.resource_name.to_string()).collect()
    }

    fn refuse(&self, code: ResponseError) -> IncrementalAlterConfigsResponse {
        let refusal = Refusal::new(code, code.to_string());
        let results = self
            .resources
            .iter()
            .map(|one| result(one, Err(refusal.clone())));
        IncrementalAlterConfigsResponse::default().with_responses(results.collect())
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<IncrementalAlterConfigsResponse> {
        let results = context.shared.change(|state| {
            let alter_one =
                |one: &AlterConfigsResource| result(one, alter(state, one, self.validate_only));
            self.resources.iter().map(alter_one).collect()
        });
        Reply::Answer(IncrementalAlterConfigsResponse::default().with_responses(results))
    }
}

fn result(
    resource: &AlterConfigsResource,
    altered: Result<(), Refusal>,
) -> AlterConfigsResourceResponse {
    let response = AlterConfigsResourceResponse::default()
        .with_resource_type(resource.resource_type)
        .with_resource_name(resource.resource_name.clone())
        .with_error_message(None);
    match altered {
        Ok(()) => response,
        Err(refusal) => response
            .with_error_code(refusal.code.code())
            .with_error_message(Some(text(refusal.message))),
    }
}

/// All of a resource's changes are done, or none.
fn alter(
    state: &mut State,
    resource: &AlterConfigsResource,
    validate_only: bool,
) -> Result<(), Refusal> {
    if resource.resource_type != TOPIC {
        let message = "the sandbox changes configurations of topics only";
        return Err(Refusal::new(ResponseError::InvalidRequest, message));
    }
    let topic = state
        .topics
        .get_mut(resource.resource_name.as_str())
        .ok_or_else(Refusal::unknown_partition)?;
    let invalid = |message: String| Refusal::new(ResponseError::InvalidConfig, message);
    let mut config = topic.config.clone();
    for change in &resource.configs {
        match change.config_operation {
            SET => config.set(&change.name, change.value.as_deref()),
            DELETE => config.unset(&change.name),
            other => Err(format!(
                "the sandbox does not serve operation {other} on configurations"
            )),
        }
        .map_err(invalid)?;
    }
    if !validate_only {
        topic.config = config;
    }
    Ok(())
}
