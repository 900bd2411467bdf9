//! ListGroups, versions 0 to 4.
//!
//! Every group is one that only commits: state `Empty`, no protocol type.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{GroupId, ListGroupsRequest, ListGroupsResponse};

use super::super::connection::Context;
use super::{Api, Reply, text};

pub(super) const EMPTY: &str = "Empty";

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
        let wants_empty = self.states_filter.is_empty()
            || self
                .states_filter
                .iter()
                .any(|state| state.eq_ignore_ascii_case(EMPTY));
        let state = context.shared.state();
        let groups = state.groups.ids().filter(|_| wants_empty).map(|id| {
            ListedGroup::default()
                .with_group_id(GroupId(text(id)))
                .with_group_state(text(EMPTY))
        });
        Reply::Answer(ListGroupsResponse::default().with_groups(groups.collect()))
    }
}
