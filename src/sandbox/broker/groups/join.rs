//! Joining a group.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::JoinGroupResponse;
use tokio::time::{Duration, Instant};

use super::Limits;
use super::member::{Joiner, Member, Waiter, refused_join, refused_sync, word};
use super::membership::{GroupState, Membership};

/// How long a member that was never answered may wait: it cannot send heartbeats, and its connection is not looked at meanwhile.
const NEW_MEMBER_WAIT_MAX: Duration = Duration::from_secs(300);

type Reply = Waiter<JoinGroupResponse>;

impl Membership {
    /// Takes a `JoinGroup`; the answer comes when the join phase ends, or at once.
    pub(in super::super) fn join(
        &mut self,
        joiner: Joiner,
        reply: Reply,
        limits: &Limits,
        now: Instant,
    ) {
        let id = joiner.member_id.clone();
        if !self.has_room_for(&id, limits) {
            self.remove(&id);
            return reply.answer(refused_join(ResponseError::GroupMaxSizeReached, ""));
        }
        if !self.supports(&joiner) {
            let code = ResponseError::InconsistentGroupProtocol;
            return reply.answer(refused_join(code, &id));
        }
        if id.is_empty() {
            self.join_new(joiner, reply, limits, now);
        } else if self.pending.contains_key(&id) {
            if joiner.instance.is_some() {
                // Only dynamic members are asked to come back; Kafka trips over the contradiction.
                let code = ResponseError::UnknownServerError;
                return reply.answer(refused_join(code, &id));
            }
            self.add(id, joiner, reply, limits, now);
        } else if let Err(code) = self.check_member(&id, joiner.instance.as_deref()) {
            reply.answer(refused_join(code, &id));
        } else {
            self.rejoin(&id, joiner, reply, limits, now);
        }
    }

    fn has_room_for(&self, member_id: &str, limits: &Limits) -> bool {
        let held = self.members.len() + self.pending.len();
        let is_known = self.members.contains_key(member_id) || self.pending.contains_key(member_id);
        is_known || held < limits.members_max
    }

    /// Whether the consumer knows a protocol that all members know.
    fn supports(&self, joiner: &Joiner) -> bool {
        if self.state == GroupState::Empty {
            return !joiner.protocol_type.is_empty() && !joiner.protocols.is_empty();
        }
        let same_type = self.protocol_type.as_ref() == Some(&joiner.protocol_type);
        let known_by_all = |name: &str| self.members.values().all(|one| one.supports(name));
        same_type && joiner.protocols.iter().any(|(name, _)| known_by_all(name))
    }

    fn join_new(&mut self, joiner: Joiner, reply: Reply, limits: &Limits, now: Instant) {
        let new_id = joiner.new_member_id();
        let current = joiner.instance.as_deref();
        let current = current.and_then(|instance| self.static_member(instance));
        if let Some(current) = current.map(str::to_owned) {
            self.replace(&current, new_id, joiner, reply, limits, now);
        } else if joiner.instance.is_none() && joiner.must_know_id {
            let code = ResponseError::MemberIdRequired;
            let response = refused_join(code, &new_id);
            self.pending.insert(new_id, now + joiner.session_timeout);
            reply.answer(response);
        } else {
            self.add(new_id, joiner, reply, limits, now);
        }
    }

    fn add(&mut self, id: String, joiner: Joiner, reply: Reply, limits: &Limits, now: Instant) {
        if let Some(initial) = &mut self.initial {
            initial.member_added = true;
        }
        if self.members.is_empty() {
            self.protocol_type = Some(joiner.protocol_type.clone());
        }
        self.pending.remove(&id);
        self.leader.get_or_insert_with(|| id.clone());
        let mut member = Member::new(joiner, now + NEW_MEMBER_WAIT_MAX);
        member.awaits_join = Some(reply);
        self.members.insert(id, member);
        self.rebalance_or_complete(limits, now);
    }

    fn rejoin(&mut self, id: &str, joiner: Joiner, reply: Reply, limits: &Limits, now: Instant) {
        let is_leader = self.leader.as_deref() == Some(id);
        let says_the_same = self
            .members
            .get(id)
            .is_some_and(|member| member.protocols == joiner.protocols);
        match self.state {
            GroupState::Empty | GroupState::Dead => {
                reply.answer(refused_join(ResponseError::UnknownMemberId, id));
            }
            // It did not get the first answer.
            GroupState::CompletingRebalance if says_the_same => {
                reply.answer(self.joined(id, is_leader));
            }
            // A leader that joins again wants a rebalance, a follower that has nothing new to say wants its assignment.
            GroupState::Stable if says_the_same && !is_leader => {
                reply.answer(self.joined(id, false));
            }
            _ => {
                self.update(id, joiner, reply);
                self.rebalance_or_complete(limits, now);
            }
        }
    }

    fn update(&mut self, id: &str, joiner: Joiner, reply: Reply) {
        if let Some(member) = self.members.get_mut(id) {
            member.update(joiner);
            // A request that waited before is given up: its connection ends.
            member.awaits_join = Some(reply);
        }
    }

    /// A static member is back under a new id, and whoever still uses the old one is fenced.
    fn replace(
        &mut self,
        old_id: &str,
        new_id: String,
        joiner: Joiner,
        reply: Reply,
        limits: &Limits,
        now: Instant,
    ) {
        let Some(mut member) = self.members.remove(old_id) else {
            return;
        };
        member.answer_join(refused_join(ResponseError::FencedInstanceId, old_id));
        member.answer_sync(refused_sync(ResponseError::FencedInstanceId));
        let old_leader = self.leader.clone();
        let was_leader = old_leader.as_deref() == Some(old_id);
        if was_leader {
            self.leader = Some(new_id.clone());
        }
        member.renew_session(now);
        self.members.insert(new_id.clone(), member);
        let can_skip_assignment = joiner.can_skip_assignment;
        self.update(&new_id, joiner, reply);
        let keeps_protocol = self.protocol.as_ref() == Some(&self.select_protocol());
        match self.state {
            GroupState::Stable if keeps_protocol => {
                let mut response = self.joined(&new_id, was_leader && can_skip_assignment);
                if can_skip_assignment {
                    response.skip_assignment = was_leader;
                } else {
                    // A leader that cannot skip the assignment must not take itself for the leader.
                    response.leader = word(old_leader.as_deref().unwrap_or_default());
                }
                if let Some(member) = self.members.get_mut(&new_id) {
                    member.answer_join(response);
                }
            }
            // In the middle of an assignment, the leader would assign to the old id.
            _ => self.rebalance_or_complete(limits, now),
        }
    }
}
