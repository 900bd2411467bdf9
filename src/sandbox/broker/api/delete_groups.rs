//! DeleteGroups, versions 0 to 2.
//!
//! Forgets what a group has committed. No group has members yet, so none is refused for that.

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
                let code = if state.groups.delete(&id) {
                    0
                } else {
                    ResponseError::GroupIdNotFound.code()
                };
                DeletableGroupResult::default()
                    .with_group_id(id)
                    .with_error_code(code)
            };
            self.groups_names.into_iter().map(delete_one).collect()
        });
        Reply::Answer(DeleteGroupsResponse::default().with_results(results))
    }
}
