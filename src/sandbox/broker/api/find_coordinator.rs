//! FindCoordinator, versions 1 to 4.
//!
//! The one broker coordinates every group and every transactional id. Other kinds of keys are refused with 42, as Kafka refuses those
//! that it does not know.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::{BrokerId, FindCoordinatorRequest, FindCoordinatorResponse};

use super::super::connection::Context;
use super::super::shared::NODE_ID;
use super::{Api, Reply, text};

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;

impl Api for FindCoordinatorRequest {
    const SERVED: (i16, i16) = (1, 4);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=3 => "S b",
            _ => "b [S]",
        }
    }

    fn refuse(&self, code: ResponseError) -> FindCoordinatorResponse {
        // Up to version 3 the request has one key, and no list.
        if self.coordinator_keys.is_empty() {
            return FindCoordinatorResponse::default()
                .with_error_code(code.code())
                .with_error_message(Some(text(code.to_string())))
                .with_node_id(BrokerId(-1))
                .with_port(-1);
        }
        let refused = self.coordinator_keys.iter().map(|key| {
            Coordinator::default()
                .with_key(key.clone())
                .with_node_id(BrokerId(-1))
                .with_port(-1)
                .with_error_code(code.code())
                .with_error_message(Some(text(code.to_string())))
        });
        FindCoordinatorResponse::default().with_coordinators(refused.collect())
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<FindCoordinatorResponse> {
        if ![GROUP, TRANSACTION].contains(&self.key_type) {
            return Reply::Answer(self.refuse(ResponseError::InvalidRequest));
        }
        let (host, port) = context.shared.advertised();
        let response = FindCoordinatorResponse::default();
        Reply::Answer(if version < 4 {
            response
                .with_error_message(Some(text("NONE")))
                .with_node_id(BrokerId(NODE_ID))
                .with_host(text(host))
                .with_port(port)
        } else {
            let coordinators = self.coordinator_keys.into_iter().map(|key| {
                Coordinator::default()
                    .with_key(key)
                    .with_node_id(BrokerId(NODE_ID))
                    .with_host(text(host.as_str()))
                    .with_port(port)
                    .with_error_message(Some(text("")))
            });
            response.with_coordinators(coordinators.collect())
        })
    }
}
