//! Being a member: taking the assignment, heartbeats, commits, and leaving.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::SyncGroupResponse;
use tokio::time::Instant;

use super::Limits;
use super::member::{Waiter, refused_join, refused_sync};
use super::membership::{GroupState, Membership};

/// Who asks: member id, instance id and generation as the request has them.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Caller<'a> {
    pub member_id: &'a str,
    pub instance: Option<&'a str>,
    pub generation: i32,
}

/// What a member sends in `SyncGroup`; assignments by member id come from the leader.
#[derive(Debug)]
pub(in super::super) struct Assigning<'a> {
    pub protocol_type: Option<&'a str>,
    pub protocol: Option<&'a str>,
    pub assignments: BTreeMap<String, Bytes>,
}

impl Membership {
    fn check_caller(&self, caller: Caller<'_>) -> Result<(), ResponseError> {
        self.check_member(caller.member_id, caller.instance)?;
        if caller.generation == self.generation {
            Ok(())
        } else {
            Err(ResponseError::IllegalGeneration)
        }
    }

    /// Takes a `SyncGroup`; the answer comes with the leader's assignment, or at once.
    pub(in super::super) fn sync(
        &mut self,
        caller: Caller<'_>,
        assigning: Assigning<'_>,
        reply: Waiter<SyncGroupResponse>,
        now: Instant,
    ) {
        if let Err(code) = self.check_sync(caller, &assigning) {
            return reply.answer(refused_sync(code));
        }
        let Some(member) = self.members.get_mut(caller.member_id) else {
            return reply.answer(refused_sync(ResponseError::UnknownMemberId));
        };
        member.owes_sync = false;
        if self.state == GroupState::Stable {
            member.renew_session(now);
            let assignment = member.assignment.clone();
            reply.answer(self.synced(assignment));
        } else {
            member.awaits_sync = Some(reply);
            if self.leader.as_deref() == Some(caller.member_id) {
                self.assign(assigning.assignments, now);
            }
        }
        if self.members.values().all(|member| !member.owes_sync) {
            self.sync_end = None;
        }
    }

    fn check_sync(
        &self,
        caller: Caller<'_>,
        assigning: &Assigning<'_>,
    ) -> Result<(), ResponseError> {
        self.check_caller(caller)?;
        let differs =
            |said: Option<&str>, is: &Option<String>| said.is_some() && said != is.as_deref();
        if differs(assigning.protocol_type, &self.protocol_type)
            || differs(assigning.protocol, &self.protocol)
        {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        match self.state {
            GroupState::Empty | GroupState::Dead => Err(ResponseError::UnknownMemberId),
            GroupState::PreparingRebalance => Err(ResponseError::RebalanceInProgress),
            GroupState::CompletingRebalance | GroupState::Stable => Ok(()),
        }
    }

    /// The leader has assigned: everybody who waits is told. Who is not named gets nothing.
    fn assign(&mut self, mut assignments: BTreeMap<String, Bytes>, now: Instant) {
        self.state = GroupState::Stable;
        let ids: Vec<_> = self.members.keys().cloned().collect();
        for id in ids {
            let assignment = assignments.remove(&id).unwrap_or_default();
            let response = self.synced(assignment.clone());
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = assignment;
                if member.answer_sync(response) {
                    member.renew_session(now);
                }
            }
        }
    }

    /// Takes a `Heartbeat`. One during the join phase keeps the session and tells the member to join.
    pub(in super::super) fn heartbeat(
        &mut self,
        caller: Caller<'_>,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.check_caller(caller)?;
        let member = self.members.get_mut(caller.member_id);
        let member = member.ok_or(ResponseError::UnknownMemberId)?;
        member.renew_session(now);
        if self.state == GroupState::PreparingRebalance {
            Err(ResponseError::RebalanceInProgress)
        } else {
            Ok(())
        }
    }

    /// Whether a commit of this caller is taken; one of a member keeps its session. A commit within a transaction may leave out who
    /// it is for.
    pub(in super::super) fn check_commit(
        &mut self,
        caller: Caller<'_>,
        is_transactional: bool,
        now: Instant,
    ) -> Result<(), ResponseError> {
        if caller.generation < 0 && self.state == GroupState::Empty {
            return Ok(());
        }
        let is_named =
            caller.generation >= 0 || !caller.member_id.is_empty() || caller.instance.is_some();
        if is_named {
            self.check_caller(caller)?;
        } else if !is_transactional {
            return Err(ResponseError::UnknownMemberId);
        }
        if !is_transactional && self.state == GroupState::CompletingRebalance {
            return Err(ResponseError::RebalanceInProgress);
        }
        if let Some(member) = self.members.get_mut(caller.member_id) {
            member.renew_session(now);
        }
        Ok(())
    }

    /// Takes a `LeaveGroup`: each entry is a member id, empty for one that is named by its instance id only, and an instance id.
    pub(in super::super) fn leave(
        &mut self,
        leaving: &[(&str, Option<&str>)],
        limits: &Limits,
        now: Instant,
    ) -> Vec<Result<(), ResponseError>> {
        let mut member_left = false;
        let results = leaving.iter().map(|(member_id, instance)| {
            let id = self.leaving_id(member_id, *instance)?;
            if let Some(mut member) = self.remove(&id) {
                member_left = true;
                member.answer_join(refused_join(ResponseError::UnknownMemberId, ""));
                member.answer_sync(refused_sync(ResponseError::UnknownMemberId));
            }
            Ok(())
        });
        let results = results.collect();
        if member_left {
            self.after_removal(limits, now);
        } else {
            self.after_pending_removal(limits, now);
        }
        results
    }

    fn leaving_id(&self, member_id: &str, instance: Option<&str>) -> Result<String, ResponseError> {
        if member_id.is_empty() {
            let found = instance.and_then(|instance| self.static_member(instance));
            return found
                .map(str::to_owned)
                .ok_or(ResponseError::UnknownMemberId);
        }
        if !self.pending.contains_key(member_id) {
            self.check_member(member_id, instance)?;
        }
        Ok(member_id.to_owned())
    }
}
