//! Heartbeat, versions 1 to 4.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{HeartbeatRequest, HeartbeatResponse};

use super::super::connection::Context;
use super::super::groups::Caller;
use super::{Api, Reply};

impl Api for HeartbeatRequest {
    const SERVED: (i16, i16) = (1, 4);

    fn layout(_: i16) -> &'static str {
        ""
    }

    fn refuse(&self, code: ResponseError) -> HeartbeatResponse {
        HeartbeatResponse::default().with_error_code(code.code())
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<HeartbeatResponse> {
        if self.group_id.is_empty() {
            return Reply::Answer(self.refuse(ResponseError::InvalidGroupId));
        }
        let caller = Caller {
            member_id: &self.member_id,
            instance: self.group_instance_id.as_deref(),
            generation: self.generation_id,
        };
        // The clock need not be woken: a heartbeat only moves an end away.
        let mut state = context.shared.state();
        let result = match state.groups.members(&self.group_id) {
            Some((members, _)) => members.heartbeat(caller, tokio::time::Instant::now()),
            None => Err(ResponseError::UnknownMemberId),
        };
        Reply::Answer(match result {
            Ok(()) => HeartbeatResponse::default(),
            Err(code) => self.refuse(code),
        })
    }
}
