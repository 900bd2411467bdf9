//! JoinGroup, versions 2 to 9.
//!
//! The answer comes when the join phase ends, and meanwhile the connection does nothing else, as in Kafka.

use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse};

use super::super::connection::Context;
use super::super::groups::{Joiner, MEMBER_BYTES_MAX, Waiter, refused_join};
use super::{Api, Reply, text};

/// From this version on a dynamic member joins a second time with the id that it was given.
const KNOWN_ID_FROM: i16 = 4;
/// From this version on the protocol's name may be null.
const NULL_NAME_FROM: i16 = 7;
/// From this version on a leader may be told that the assignment stands.
const SKIP_ASSIGNMENT_FROM: i16 = 9;

impl Api for JoinGroupRequest {
    const SERVED: (i16, i16) = (2, 9);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=4 => "S i i S S {S B}",
            _ => "S i i S S S {S B}",
        }
    }

    fn refuse(&self, code: ResponseError) -> JoinGroupResponse {
        // Null is not for every version, and nobody reads it beside an error.
        refused_join(code, &self.member_id).with_protocol_name(Some(text("")))
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<JoinGroupResponse> {
        if let Err(code) = check(&self, context) {
            return Reply::Answer(self.refuse(code));
        }
        let group = self.group_id.to_string();
        let is_new = self.member_id.is_empty();
        let refusal = refused_join(ResponseError::UnknownMemberId, &self.member_id);
        let joiner = joiner(self, context, version);
        let (waiter, answer) = Waiter::new();
        let refused = context.shared.change_groups(|groups, now| {
            // Only a consumer without an id makes a group.
            if is_new && !groups.create(&group) {
                return Some(refused_join(ResponseError::CoordinatorNotAvailable, ""));
            }
            let Some((members, limits)) = groups.members(&group) else {
                return Some(refusal);
            };
            members.join(joiner, waiter, limits, now);
            None
        });
        let response = match refused {
            Some(response) => response,
            None => match answer.await {
                Ok(response) => response,
                // Another request of the same member has overtaken this one.
                Err(_) => return Reply::Close,
            },
        };
        Reply::Answer(
            if version < NULL_NAME_FROM && response.protocol_name.is_none() {
                response.with_protocol_name(Some(text("")))
            } else {
                response
            },
        )
    }
}

fn check(request: &JoinGroupRequest, context: &Context) -> Result<(), ResponseError> {
    if request.group_id.is_empty() {
        return Err(ResponseError::InvalidGroupId);
    }
    let config = &context.shared.config;
    let allowed = config.group_session_timeout_min..=config.group_session_timeout_max;
    let session_timeout = duration(request.session_timeout_ms);
    if request.session_timeout_ms < 0 || !allowed.contains(&session_timeout) {
        return Err(ResponseError::InvalidSessionTimeout);
    }
    let bytes: usize = request
        .protocols
        .iter()
        .map(|protocol| protocol.name.len() + protocol.metadata.len())
        .sum();
    if bytes > MEMBER_BYTES_MAX {
        return Err(ResponseError::UnknownServerError);
    }
    Ok(())
}

/// A negative time is none.
fn duration(ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

fn joiner(request: JoinGroupRequest, context: &Context, version: i16) -> Joiner {
    let protocols = request.protocols.into_iter();
    Joiner {
        member_id: request.member_id.to_string(),
        instance: request.group_instance_id.map(|id| id.to_string()),
        client_id: context.client_id.clone().unwrap_or_default(),
        // Kafka's tools expect Java's way to write an address.
        client_host: format!("/{}", context.peer),
        session_timeout: duration(request.session_timeout_ms),
        rebalance_timeout: duration(request.rebalance_timeout_ms),
        protocol_type: request.protocol_type.to_string(),
        protocols: protocols
            .map(|protocol| (protocol.name.to_string(), protocol.metadata))
            .collect(),
        must_know_id: version >= KNOWN_ID_FROM,
        can_skip_assignment: version >= SKIP_ASSIGNMENT_FROM,
    }
}
