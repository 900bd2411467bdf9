//! Consumer groups: what they have committed, and their members by the classic protocol.
//!
//! `membership.rs` is the state machine of one group, with `join.rs` and `stay.rs` for what a member asks of it; `clock.rs` ends
//! sessions and join phases; `view.rs` is what a test sees.
//!
//! # Where it departs from Kafka
//! A request that waits and is overtaken by another one of the same member ends with its connection; Kafka leaves it open without an
//! answer. A member has at most 1 MiB of subscriptions, and as much of assignment.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use tokio::time::{Duration, Instant};

use super::config::BrokerConfig;

pub(super) mod clock;
mod join;
mod member;
mod membership;
mod stay;
#[cfg(test)]
mod tests;
mod view;

pub(super) use member::{Joiner, Waiter, refused_join, refused_sync};
pub use membership::GroupState;
pub(super) use membership::Membership;
pub(super) use stay::{Assigning, Caller};
pub use view::{GroupMember, GroupView};

/// Groups that are remembered; an offset each for some partitions, so a few MiB at most.
const GROUPS_MAX: usize = 10_000;

/// Subscriptions or assignment of one member, in bytes; Kafka's bound is the largest record of its internal topic.
pub(super) const MEMBER_BYTES_MAX: usize = 1024 * 1024;

/// What groups are held to.
#[derive(Debug)]
pub(super) struct Limits {
    pub initial_rebalance_delay: Duration,
    pub members_max: usize,
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Committed {
    pub offset: i64,
    pub leader_epoch: i32,
    pub metadata: String,
}

/// One group: what it has committed, by topic and partition, and its members.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub offsets: BTreeMap<String, BTreeMap<i32, Committed>>,
    pub membership: Membership,
}

impl Group {
    pub(super) fn committed(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.offsets.get(topic)?.get(&partition)
    }

    /// It holds nothing that anybody could miss.
    fn is_void(&self) -> bool {
        self.offsets.is_empty() && self.membership.is_idle()
    }
}

/// All groups by their id.
#[derive(Debug)]
pub(super) struct Groups {
    groups: BTreeMap<String, Group>,
    limits: Limits,
}

impl Groups {
    pub(super) fn new(config: &BrokerConfig) -> Self {
        Self {
            groups: BTreeMap::new(),
            limits: Limits {
                initial_rebalance_delay: config.group_initial_rebalance_delay,
                members_max: config.group_members_max,
            },
        }
    }

    pub(super) fn find(&self, id: &str) -> Option<&Group> {
        self.groups.get(id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Group)> {
        self.groups.iter().map(|(id, group)| (id.as_str(), group))
    }

    /// The members of a group, with what they are held to.
    pub(super) fn members(&mut self, id: &str) -> Option<(&mut Membership, &Limits)> {
        let group = self.groups.get_mut(id)?;
        Some((&mut group.membership, &self.limits))
    }

    /// Makes a group be there; false when there is no room for one more.
    pub(super) fn create(&mut self, id: &str) -> bool {
        if self.groups.contains_key(id) {
            return true;
        }
        if self.groups.len() >= GROUPS_MAX {
            self.groups.retain(|_, group| !group.is_void());
        }
        if self.groups.len() >= GROUPS_MAX {
            return false;
        }
        self.groups.insert(id.to_owned(), Group::default());
        true
    }

    /// Whether a commit of this caller to a group is taken, as Kafka decides. An unknown group takes commits without a generation.
    pub(super) fn check_commit(
        &mut self,
        group: &str,
        caller: Caller<'_>,
        is_transactional: bool,
        now: Instant,
    ) -> Result<(), ResponseError> {
        match self.groups.get_mut(group) {
            Some(group) => group.membership.check_commit(caller, is_transactional, now),
            None if caller.generation < 0 => Ok(()),
            None => Err(ResponseError::IllegalGeneration),
        }
    }

    /// Records a commit; the group comes to be with its first one. False when there is no room for one more group.
    pub(super) fn commit(
        &mut self,
        group: &str,
        topic: &str,
        partition: i32,
        what: Committed,
    ) -> bool {
        if !self.create(group) {
            return false;
        }
        let group = self.groups.entry(group.to_owned()).or_default();
        let partitions = group.offsets.entry(topic.to_owned()).or_default();
        partitions.insert(partition, what);
        true
    }

    /// Forgets a group without members.
    pub(super) fn delete(&mut self, id: &str) -> Result<(), ResponseError> {
        let group = self.groups.get(id).ok_or(ResponseError::GroupIdNotFound)?;
        if group.membership.state() != GroupState::Empty {
            return Err(ResponseError::NonEmptyGroup);
        }
        self.groups.remove(id);
        Ok(())
    }

    /// Forgets what was committed for a topic; a group that has nothing left is gone.
    pub(super) fn forget_topic(&mut self, topic: &str) {
        self.groups
            .retain(|_, group| group.offsets.remove(topic).is_none() || !group.is_void());
    }

    /// The next moment at which a session or a phase ends.
    fn next_deadline(&self) -> Option<Instant> {
        let groups = self.groups.values();
        groups
            .filter_map(|group| group.membership.next_deadline())
            .min()
    }

    fn expire(&mut self, now: Instant) {
        for group in self.groups.values_mut() {
            group.membership.expire(&self.limits, now);
        }
    }

    /// A listener that starts again gives every member a fresh session, as a coordinator does.
    fn renew_sessions(&mut self, now: Instant) {
        for group in self.groups.values_mut() {
            group.membership.renew_sessions(now);
        }
    }
}
