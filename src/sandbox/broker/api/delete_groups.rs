//! DeleteGroups, versions 0 to 2.
//!
//! Forgets what a group has committed; one with members is refused with 68.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::{DeleteGroupsRequest, DeleteGroupsResponse, GroupId};

use super::super::connection::Context;
use super::{Api, Reply};

impl Api for DeleteGroupsRequest {
    const SERVED: (i16, i16) = (0, 2);

    fn layout(_: i16) -> &'static str {
        "[S]"
    }

    fn refuse(&self, code: ResponseError) -> DeleteGroupsResponse {
        let results = self.groups_names.iter().map(|id| {
            DeletableGroupResult::default()
                .with_group_id(id.clone())
                .with_error_code(code.code())
        });
        DeleteGroupsResponse::default().with_results(results.collect())
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<DeleteGroupsResponse> {
        let results = context.shared.change(|state| {
            let delete_one = |id: GroupId| {
                let deleted = state.groups.delete(&id);
                let code = deleted.map_or_else(|code| code.code(), |()| 0);
                DeletableGroupResult::default()
                    .with_group_id(id)
                    .with_error_code(code)
            };
            self.groups_names.into_iter().map(delete_one).collect()
        });
        Reply::Answer(DeleteGroupsResponse::default().with_results(results))
    }
}
