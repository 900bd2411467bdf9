//! One member of a group, and what a consumer says when it joins.

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

/// Where the answer to a waiting request goes. A request whose connection has ended is answered into the void.
#[derive(Debug)]
pub(in super::super) struct Waiter<R>(oneshot::Sender<R>);

impl<R> Waiter<R> {
    pub(in super::super) fn new() -> (Self, oneshot::Receiver<R>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }

    pub(super) fn answer(self, response: R) {
        if self.0.send(response).is_err() {
            tracing::trace!("a group's answer came after its connection had ended");
        }
    }
}

/// What a consumer says in `JoinGroup`, and what the broker knows of its connection.
#[derive(Debug)]
pub(in super::super) struct Joiner {
    /// Empty for one that has no id yet.
    pub member_id: String,
    pub instance: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout: Duration,
    pub rebalance_timeout: Duration,
    pub protocol_type: String,
    /// The assignors it knows, in its order of preference, with its subscription.
    pub protocols: Vec<(String, Bytes)>,
    /// From version 4 on, a dynamic member must join a second time, with the id that it was given.
    pub must_know_id: bool,
    /// From version 9 on, a leader can be told that the assignment stands.
    pub can_skip_assignment: bool,
}

impl Joiner {
    pub(super) fn new_member_id(&self) -> String {
        let prefix = self.instance.as_ref().unwrap_or(&self.client_id);
        format!("{prefix}-{}", uuid::Uuid::new_v4())
    }
}

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    pub instance: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout: Duration,
    pub rebalance_timeout: Duration,
    pub protocols: Vec<(String, Bytes)>,
    pub assignment: Bytes,
    pub awaits_join: Option<Waiter<JoinGroupResponse>>,
    pub awaits_sync: Option<Waiter<SyncGroupResponse>>,
    /// It has never been answered, so it cannot send heartbeats.
    pub is_new: bool,
    /// It was told of the generation and has not asked for its assignment.
    pub owes_sync: bool,
    /// When its session ends; `None` while a rebalance holds its request.
    pub session_end: Option<Instant>,
}

impl Member {
    pub(super) fn new(joiner: Joiner, session_end: Instant) -> Self {
        Self {
            instance: joiner.instance,
            client_id: joiner.client_id,
            client_host: joiner.client_host,
            session_timeout: joiner.session_timeout,
            rebalance_timeout: joiner.rebalance_timeout,
            protocols: joiner.protocols,
            assignment: Bytes::new(),
            awaits_join: None,
            awaits_sync: None,
            is_new: true,
            owes_sync: false,
            session_end: Some(session_end),
        }
    }

    /// Takes over what a rejoining consumer says.
    pub(super) fn update(&mut self, joiner: Joiner) {
        self.client_id = joiner.client_id;
        self.client_host = joiner.client_host;
        self.session_timeout = joiner.session_timeout;
        self.rebalance_timeout = joiner.rebalance_timeout;
        self.protocols = joiner.protocols;
    }

    pub(super) fn renew_session(&mut self, now: Instant) {
        self.session_end = Some(now + self.session_timeout);
    }

    pub(super) fn supports(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|(name, _)| name == protocol)
    }

    /// What it said under this protocol.
    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| name == protocol);
        found
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default()
    }

    pub(super) fn answer_join(&mut self, response: JoinGroupResponse) {
        if let Some(waiter) = self.awaits_join.take() {
            waiter.answer(response);
        }
    }

    /// Answers a waiting `SyncGroup`; whether there was one.
    pub(super) fn answer_sync(&mut self, response: SyncGroupResponse) -> bool {
        let waiter = self.awaits_sync.take();
        waiter.map(|waiter| waiter.answer(response)).is_some()
    }

    pub(super) fn as_joined(&self, id: &str, protocol: &str) -> JoinGroupResponseMember {
        JoinGroupResponseMember::default()
            .with_member_id(word(id))
            .with_group_instance_id(self.instance.as_deref().map(word))
            .with_metadata(self.metadata(protocol))
    }
}

pub(super) fn word(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A `JoinGroup` that is refused.
pub(in super::super) fn refused_join(code: ResponseError, member_id: &str) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(code.code())
        .with_protocol_name(None)
        .with_member_id(word(member_id))
}

/// A `SyncGroup` that is refused.
pub(in super::super) fn refused_sync(code: ResponseError) -> SyncGroupResponse {
    SyncGroupResponse::default().with_error_code(code.code())
}
