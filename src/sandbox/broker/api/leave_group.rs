//! LeaveGroup, versions 1 to 5.
//!
//! One member by its id up to version 2; several from version 3 on, each by its member id, or by its instance id alone.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{LeaveGroupRequest, LeaveGroupResponse};

use super::super::connection::Context;
use super::{Api, Reply};

/// From this version on the request names several members, and each has its own code.
const MEMBERS_FROM: i16 = 3;

impl Api for LeaveGroupRequest {
    const SERVED: (i16, i16) = (1, 5);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=2 => "S S",
            3..=4 => "S {S S}",
            _ => "S {S S S}",
        }
    }

    fn refuse(&self, code: ResponseError) -> LeaveGroupResponse {
        LeaveGroupResponse::default().with_error_code(code.code())
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<LeaveGroupResponse> {
        if self.group_id.is_empty() {
            return Reply::Answer(self.refuse(ResponseError::InvalidGroupId));
        }
        let named = if version < MEMBERS_FROM {
            let one = MemberIdentity::default().with_member_id(self.member_id.clone());
            vec![one.with_group_instance_id(None)]
        } else {
            self.members.clone()
        };
        let leaving: Vec<_> = named
            .iter()
            .map(|one| (one.member_id.as_str(), one.group_instance_id.as_deref()))
            .collect();
        let results =
            context
                .shared
                .change_groups(|groups, now| match groups.members(&self.group_id) {
                    Some((members, limits)) => members.leave(&leaving, limits, now),
                    None => vec![Err(ResponseError::UnknownMemberId); leaving.len()],
                });
        if version < MEMBERS_FROM {
            let refused = results.into_iter().find_map(Result::err);
            return Reply::Answer(match refused {
                Some(code) => self.refuse(code),
                None => LeaveGroupResponse::default(),
            });
        }
        let members = named.into_iter().zip(results).map(|(member, result)| {
            MemberResponse::default()
                .with_member_id(member.member_id)
                .with_group_instance_id(member.group_instance_id)
                .with_error_code(result.map_or_else(|code| code.code(), |()| 0))
        });
        Reply::Answer(LeaveGroupResponse::default().with_members(members.collect()))
    }
}
