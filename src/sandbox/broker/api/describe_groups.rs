//! DescribeGroups, versions 0 to 5.
//!
//! A group that has commits is `Empty`, any other is `Dead` without error, as in Kafka up to version 5. There are no members yet.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::{DescribeGroupsRequest, DescribeGroupsResponse};

use super::super::connection::Context;
use super::list_groups::EMPTY;
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
        let state = context.shared.state();
        let groups = self.groups.into_iter().map(|id| {
            let known = state.groups.find(&id).is_some();
            DescribedGroup::default()
                .with_group_id(id)
                .with_group_state(text(if known { EMPTY } else { "Dead" }))
        });
        Reply::Answer(DescribeGroupsResponse::default().with_groups(groups.collect()))
    }
}
