//! ListGroups, versions 0 to 4.
//!
//! A group that only commits is `Empty`, without a protocol type.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{GroupId, ListGroupsRequest, ListGroupsResponse};

use super::super::connection::Context;
use super::{Api, Reply, text};

impl Api for ListGroupsRequest {
    const SERVED: (i16, i16) = (0, 4);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=3 => "",
            _ => "[S]",
        }
    }

    fn refuse(&self, code: ResponseError) -> ListGroupsResponse {
        ListGroupsResponse::default().with_error_code(code.code())
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<ListGroupsResponse> {
        let wanted = |state: &str| {
            let filter = &self.states_filter;
            filter.is_empty() || filter.iter().any(|one| one.eq_ignore_ascii_case(state))
        };
        let state = context.shared.state();
        let groups = state.groups.all().filter_map(|(id, group)| {
            let members = &group.membership;
            let listed = ListedGroup::default()
                .with_group_id(GroupId(text(id)))
                .with_protocol_type(text(members.protocol_type().unwrap_or_default()))
                .with_group_state(text(members.state().name()));
            wanted(&listed.group_state).then_some(listed)
        });
        Reply::Answer(ListGroupsResponse::default().with_groups(groups.collect()))
    }
}
