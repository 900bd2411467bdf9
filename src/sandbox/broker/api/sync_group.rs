//! SyncGroup, versions 1 to 5.
//!
//! The answer comes with the leader's assignment, and meanwhile the connection does nothing else, as in Kafka.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{SyncGroupRequest, SyncGroupResponse};

use super::super::connection::Context;
use super::super::groups::{Assigning, Caller, MEMBER_BYTES_MAX, Waiter, refused_sync};
use super::{Api, Reply};

/// From this version on the protocol's type and name are mandatory.
const PROTOCOL_FROM: i16 = 5;

impl Api for SyncGroupRequest {
    const SERVED: (i16, i16) = (1, 5);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=2 => "S i S {S B}",
            3..=4 => "S i S S {S B}",
            _ => "S i S S S S {S B}",
        }
    }

    fn refuse(&self, code: ResponseError) -> SyncGroupResponse {
        refused_sync(code)
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<SyncGroupResponse> {
        if let Err(code) = check(&self, version) {
            return Reply::Answer(refused_sync(code));
        }
        let (waiter, answer) = Waiter::new();
        let is_known = context.shared.change_groups(|groups, now| {
            let Some((members, _)) = groups.members(&self.group_id) else {
                return false;
            };
            let caller = Caller {
                member_id: &self.member_id,
                instance: self.group_instance_id.as_deref(),
                generation: self.generation_id,
            };
            let assignments = self.assignments.iter();
            let assigning = Assigning {
                protocol_type: self.protocol_type.as_deref(),
                protocol: self.protocol_name.as_deref(),
                assignments: assignments
                    .map(|one| (one.member_id.to_string(), one.assignment.clone()))
                    .collect(),
            };
            members.sync(caller, assigning, waiter, now);
            true
        });
        if !is_known {
            return Reply::Answer(refused_sync(ResponseError::UnknownMemberId));
        }
        // Without an answer, another request of the same member has overtaken this one.
        answer.await.map_or(Reply::Close, Reply::Answer)
    }
}

fn check(request: &SyncGroupRequest, version: i16) -> Result<(), ResponseError> {
    let names_protocol = request.protocol_type.is_some() && request.protocol_name.is_some();
    if version >= PROTOCOL_FROM && !names_protocol {
        return Err(ResponseError::InconsistentGroupProtocol);
    }
    if request.group_id.is_empty() {
        return Err(ResponseError::InvalidGroupId);
    }
    let is_large = |bytes: usize| bytes > MEMBER_BYTES_MAX;
    if request
        .assignments
        .iter()
        .any(|one| is_large(one.assignment.len()))
    {
        return Err(ResponseError::UnknownServerError);
    }
    Ok(())
}
