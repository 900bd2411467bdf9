//! DeleteTopics, versions 1 to 6.
//!
//! By name, and from version 6 by id. The topic is gone when the answer leaves, with what groups have committed for it.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse, TopicName};
use uuid::Uuid;

use super::super::connection::Context;
use super::super::state::{Refusal, State};
use super::{Api, Reply, text};

impl Api for DeleteTopicsRequest {
    const SERVED: (i16, i16) = (1, 6);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=5 => "[S] i",
            _ => "{S u} i",
        }
    }

    fn topics(&self) -> Vec<String> {
        wanted(self)
            .filter_map(|topic| topic.name)
            .map(|name| name.to_string())
            .collect()
    }

    fn refuse(&self, code: ResponseError) -> DeleteTopicsResponse {
        let refusal = Refusal::new(code, code.to_string());
        let results = wanted(self).map(|topic| failed(topic, &refusal));
        DeleteTopicsResponse::default().with_responses(results.collect())
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<DeleteTopicsResponse> {
        let results = context.shared.change(|state| {
            let delete_one = |topic: DeleteTopicState| {
                delete(state, &topic).unwrap_or_else(|refusal| failed(topic, &refusal))
            };
            wanted(&self).map(delete_one).collect()
        });
        Reply::Answer(DeleteTopicsResponse::default().with_responses(results))
    }
}

/// Names of the older versions and states of the newer ones, as states.
fn wanted(request: &DeleteTopicsRequest) -> impl Iterator<Item = DeleteTopicState> {
    let named = request
        .topic_names
        .iter()
        .map(|name| DeleteTopicState::default().with_name(Some(name.clone())));
    named.chain(request.topics.iter().cloned())
}

fn delete(state: &mut State, topic: &DeleteTopicState) -> Result<DeletableTopicResult, Refusal> {
    let name = match &topic.name {
        Some(_) if topic.topic_id != Uuid::nil() => {
            let message = "You may not specify both topic name and topic id.";
            return Err(Refusal::new(ResponseError::InvalidRequest, message));
        }
        Some(name) => name.to_string(),
        None => state
            .topic_name(topic.topic_id)
            .map(str::to_owned)
            .ok_or_else(|| {
                let message = "This server does not host this topic ID.";
                Refusal::new(ResponseError::UnknownTopicId, message)
            })?,
    };
    let id = state.delete_topic(&name)?;
    Ok(DeletableTopicResult::default()
        .with_name(Some(TopicName(text(name))))
        .with_topic_id(id))
}

fn failed(topic: DeleteTopicState, refusal: &Refusal) -> DeletableTopicResult {
    DeletableTopicResult::default()
        .with_name(topic.name)
        .with_topic_id(topic.topic_id)
        .with_error_code(refusal.code.code())
        .with_error_message(Some(text(refusal.message.as_str())))
}
