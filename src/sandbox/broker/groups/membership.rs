//! The members of one group and its state machine: how generations come and go.
//!
//! `Empty` → `PreparingRebalance` (members join) → `CompletingRebalance` (the leader assigns) → `Stable`, and from each of the last
//! two back to `PreparingRebalance` when a member comes, changes, leaves or is lost. Time is passed in; the clock of the broker calls
//! [`expire`](Membership::expire).

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use tokio::time::{Duration, Instant};

use super::Limits;
use super::member::{Member, refused_join, refused_sync, word};

const REBALANCE_TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// The state of a consumer group, in Kafka's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupState {
    /// No members; perhaps committed offsets.
    #[default]
    Empty,
    /// Members are joining.
    PreparingRebalance,
    /// All have joined; the leader's assignment is awaited.
    CompletingRebalance,
    /// Every member has its assignment.
    Stable,
    /// There is no such group.
    Dead,
}

impl GroupState {
    pub(in super::super) const fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
            Self::Dead => "Dead",
        }
    }
}

impl fmt::Display for GroupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first rebalance of an empty group, which waits for more members to come.
#[derive(Debug)]
pub(super) struct InitialRebalance {
    /// The wait that is running.
    pub delay: Duration,
    /// How much longer it may be extended.
    pub remaining: Duration,
    /// A member came during the wait, so it is extended.
    pub member_added: bool,
}

/// The members of one group.
#[derive(Debug, Default)]
pub(in super::super) struct Membership {
    pub(super) state: GroupState,
    pub(super) generation: i32,
    pub(super) protocol_type: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) leader: Option<String>,
    pub(super) members: BTreeMap<String, Member>,
    /// Ids that were given out and have not joined yet, with the end of their session.
    pub(super) pending: BTreeMap<String, Instant>,
    pub(super) initial: Option<InitialRebalance>,
    /// When the join phase ends whoever is missing.
    pub(super) join_end: Option<Instant>,
    /// When those who have not asked for their assignment are removed.
    pub(super) sync_end: Option<Instant>,
}

impl Membership {
    pub(super) fn is_idle(&self) -> bool {
        self.members.is_empty() && self.pending.is_empty()
    }

    pub(super) fn static_member(&self, instance: &str) -> Option<&str> {
        let is_it = |member: &Member| member.instance.as_deref() == Some(instance);
        let found = self.members.iter().find(|(_, member)| is_it(member));
        found.map(|(id, _)| id.as_str())
    }

    /// Kafka's check of who is asking.
    pub(super) fn check_member(
        &self,
        member_id: &str,
        instance: Option<&str>,
    ) -> Result<(), ResponseError> {
        if let Some(instance) = instance {
            match self.static_member(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(current) if current != member_id => {
                    return Err(ResponseError::FencedInstanceId);
                }
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) {
            Ok(())
        } else {
            Err(ResponseError::UnknownMemberId)
        }
    }

    fn rebalance_timeout(&self) -> Duration {
        let timeouts = self.members.values().map(|member| member.rebalance_timeout);
        // A client may say 0; phases that end before they begin would keep the clock spinning.
        timeouts
            .max()
            .unwrap_or_default()
            .max(REBALANCE_TIMEOUT_MIN)
    }

    fn all_joined(&self) -> bool {
        let all_wait = self.members.values().all(|one| one.awaits_join.is_some());
        all_wait && self.pending.is_empty()
    }

    /// What to do when the members or what they say have changed.
    pub(super) fn rebalance_or_complete(&mut self, limits: &Limits, now: Instant) {
        if self.state == GroupState::PreparingRebalance {
            self.complete_or_wait(now);
        } else {
            self.prepare_rebalance(limits, now);
        }
    }

    pub(super) fn prepare_rebalance(&mut self, limits: &Limits, now: Instant) {
        if self.state == GroupState::CompletingRebalance {
            for member in self.members.values_mut() {
                member.assignment = Bytes::new();
                if member.answer_sync(refused_sync(ResponseError::RebalanceInProgress)) {
                    member.renew_session(now);
                }
            }
        }
        self.sync_end = None;
        let is_initial = self.state == GroupState::Empty;
        self.state = GroupState::PreparingRebalance;
        if is_initial {
            let delay = limits.initial_rebalance_delay;
            self.initial = Some(InitialRebalance {
                delay,
                remaining: self.rebalance_timeout().saturating_sub(delay),
                member_added: false,
            });
            self.join_end = Some(now + delay);
        } else {
            self.complete_or_wait(now);
        }
    }

    /// Ends the join phase when nobody is missing; the first rebalance of a group waits out its delay.
    fn complete_or_wait(&mut self, now: Instant) {
        if self.initial.is_some() {
            return;
        }
        if self.all_joined() {
            self.complete_join(now);
        } else {
            self.join_end = Some(now + self.rebalance_timeout());
        }
    }

    /// Goes on with those who have joined: a new generation.
    fn complete_join(&mut self, now: Instant) {
        self.join_end = None;
        self.initial = None;
        // A static member that is missing keeps its place until its session ends.
        self.members
            .retain(|_, member| member.awaits_join.is_some() || member.instance.is_some());
        if !self.elect_leader() && !self.members.is_empty() {
            self.join_end = Some(now + self.rebalance_timeout());
            return;
        }
        self.generation = self.generation.saturating_add(1);
        if self.members.is_empty() {
            self.protocol = None;
            self.state = GroupState::Empty;
            return;
        }
        let protocol = self.select_protocol();
        self.protocol = Some(protocol.clone());
        self.state = GroupState::CompletingRebalance;
        let ids: Vec<_> = self.members.keys().cloned().collect();
        for id in ids {
            let is_leader = self.leader.as_ref() == Some(&id);
            let response = self.joined(&id, is_leader);
            if let Some(member) = self.members.get_mut(&id) {
                member.answer_join(response);
                member.renew_session(now);
                member.is_new = false;
                member.owes_sync = true;
            }
        }
        self.sync_end = Some(now + self.rebalance_timeout());
    }

    /// Makes a member that has joined the leader, unless the leader has; whether there is one.
    fn elect_leader(&mut self) -> bool {
        let has_joined = |member: &Member| member.awaits_join.is_some();
        let current = self.leader.as_ref().and_then(|id| self.members.get(id));
        if current.is_some_and(has_joined) {
            return true;
        }
        let next = self.members.iter().find(|(_, member)| has_joined(member));
        let next = next.map(|(id, _)| id.clone());
        let found = next.is_some();
        if found || self.members.is_empty() {
            self.leader = next;
        }
        found
    }

    /// The protocol that most members like best among those that all know. Of equals, the last in the alphabet.
    pub(super) fn select_protocol(&self) -> String {
        let mut votes = BTreeMap::<&str, usize>::new();
        for member in self.members.values() {
            let known_by_all = |name: &str| self.members.values().all(|one| one.supports(name));
            let mut names = member.protocols.iter().map(|(name, _)| name.as_str());
            if let Some(name) = names.find(|name| known_by_all(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.into_iter().max_by_key(|(_, votes)| *votes);
        most.map(|(name, _)| name.to_owned()).unwrap_or_default()
    }

    /// The current generation as it is told to a member, with all members when it is to assign.
    pub(super) fn joined(&self, member_id: &str, with_members: bool) -> JoinGroupResponse {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let members = if with_members {
            let all = self.members.iter();
            all.map(|(id, member)| member.as_joined(id, protocol))
                .collect()
        } else {
            Vec::new()
        };
        JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_protocol_type(self.protocol_type.as_deref().map(word))
            .with_protocol_name(self.protocol.as_deref().map(word))
            .with_leader(word(self.leader.as_deref().unwrap_or_default()))
            .with_member_id(word(member_id))
            .with_members(members)
    }

    /// The assignment of a member as it is told to it.
    pub(super) fn synced(&self, assignment: Bytes) -> SyncGroupResponse {
        SyncGroupResponse::default()
            .with_protocol_type(self.protocol_type.as_deref().map(word))
            .with_protocol_name(self.protocol.as_deref().map(word))
            .with_assignment(assignment)
    }

    /// Takes a member or a pending id out, without a rebalance.
    pub(super) fn remove(&mut self, member_id: &str) -> Option<Member> {
        self.pending.remove(member_id);
        let removed = self.members.remove(member_id);
        if self.leader.as_deref() == Some(member_id) {
            self.leader = self.members.keys().next().cloned();
        }
        removed
    }

    /// Goes on after members or pending ids were taken out.
    pub(super) fn after_removal(&mut self, limits: &Limits, now: Instant) {
        match self.state {
            GroupState::Stable | GroupState::CompletingRebalance => {
                self.prepare_rebalance(limits, now);
            }
            GroupState::PreparingRebalance if self.initial.is_none() && self.all_joined() => {
                self.complete_join(now);
            }
            _ => {}
        }
    }

    /// Goes on after only pending ids were taken out: members in a generation do not notice.
    pub(super) fn after_pending_removal(&mut self, limits: &Limits, now: Instant) {
        if self.state == GroupState::PreparingRebalance {
            self.after_removal(limits, now);
        }
    }

    /// Removes a member for good: what it waits for is answered, and the others rebalance.
    pub(super) fn evict(&mut self, member_id: &str, limits: &Limits, now: Instant) {
        if let Some(mut member) = self.remove(member_id) {
            member.answer_join(refused_join(ResponseError::UnknownMemberId, ""));
            member.answer_sync(refused_sync(ResponseError::UnknownMemberId));
            self.after_removal(limits, now);
        }
    }

    /// The next moment at which [`expire`](Self::expire) has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let sessions = self.members.values().filter_map(|one| one.session_end);
        sessions
            .chain(self.pending.values().copied())
            .chain(self.join_end)
            .chain(self.sync_end)
            .min()
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, limits: &Limits, now: Instant) {
        self.expire_pending(limits, now);
        self.expire_sessions(limits, now);
        if self.join_end.is_some_and(|end| end <= now) {
            self.end_of_join(limits, now);
        }
        if self.sync_end.is_some_and(|end| end <= now) {
            self.sync_end = None;
            let late: Vec<_> = self.late_for_sync();
            for id in &late {
                self.remove(id);
            }
            if !late.is_empty() {
                self.prepare_rebalance(limits, now);
            }
        }
    }

    fn late_for_sync(&self) -> Vec<String> {
        let late = self.members.iter().filter(|(_, member)| member.owes_sync);
        late.map(|(id, _)| id.clone()).collect()
    }

    fn expire_pending(&mut self, limits: &Limits, now: Instant) {
        let before = self.pending.len();
        self.pending.retain(|_, end| *end > now);
        if self.pending.len() < before {
            self.after_pending_removal(limits, now);
        }
    }

    fn expire_sessions(&mut self, limits: &Limits, now: Instant) {
        let is_due = |member: &Member| member.session_end.is_some_and(|end| end <= now);
        let due = self.members.iter().filter(|(_, member)| is_due(member));
        let due: Vec<_> = due.map(|(id, _)| id.clone()).collect();
        for id in due {
            // An eviction before this one may have answered the member and renewed its session.
            let Some(member) = self.members.get_mut(&id).filter(|member| is_due(member)) else {
                continue;
            };
            let waits = member.awaits_join.is_some() || member.awaits_sync.is_some();
            if waits && !member.is_new {
                member.session_end = None;
            } else {
                self.evict(&id, limits, now);
            }
        }
    }

    fn end_of_join(&mut self, limits: &Limits, now: Instant) {
        match &mut self.initial {
            Some(initial) if initial.member_added && !initial.remaining.is_zero() => {
                initial.member_added = false;
                let delay = limits.initial_rebalance_delay.min(initial.remaining);
                initial.remaining = initial.remaining.saturating_sub(initial.delay);
                initial.delay = delay;
                self.join_end = Some(now + delay);
            }
            _ => self.complete_join(now),
        }
    }

    /// A coordinator that starts again gives every member a fresh session.
    pub(super) fn renew_sessions(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            member.renew_session(now);
        }
    }
}
