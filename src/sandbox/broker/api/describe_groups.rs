//! DescribeGroups, versions 0 to 5.
//!
//! An unknown group is `Dead` without error, as in Kafka up to version 5. Subscriptions and assignments are told of a stable group
//! only.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::{DescribeGroupsRequest, DescribeGroupsResponse};

use super::super::connection::Context;
use super::super::groups::GroupState;
use super::{Api, Reply, text};

impl Api for DescribeGroupsRequest {
    const SERVED: (i16, i16) = (0, 5);

    fn layout(_: i16) -> &'static str {
        "[S]"
    }

    fn refuse(&self, code: ResponseError) -> DescribeGroupsResponse {
        let groups = self.groups.iter().map(|id| {
            DescribedGroup::default()
                .with_group_id(id.clone())
                .with_error_code(code.code())
        });
        DescribeGroupsResponse::default().with_groups(groups.collect())
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<DescribeGroupsResponse> {
        let shared = &context.shared;
        let operations = if self.include_authorized_operations {
            shared.config.rights.on_groups()
        } else {
            i32::MIN
        };
        let state = shared.state();
        let groups = self.groups.into_iter().map(|id| {
            let described = match state.groups.find(&id) {
                Some(group) => group.membership.describe(),
                None => DescribedGroup::default().with_group_state(text(GroupState::Dead.name())),
            };
            described
                .with_group_id(id)
                .with_authorized_operations(operations)
        });
        Reply::Answer(DescribeGroupsResponse::default().with_groups(groups.collect()))
    }
}
