//! Who gets which partition: computed by the member that the coordinator elected, a pure function of what all members told.
//!
//! # Invariants
//! 1. No partition is dealt to two members, and none to a member while another one still works on it: it is left out until that member
//!    has let go of it and joined again (KIP-429).
//! 2. Members with the same topics get the same number of partitions, plus or minus one, once nothing is left out.
//! 3. No balanced assignment moves fewer partitions, and the same input gives the same assignment, whoever computes it.
//!
//! Topics are balanced together when the same members want them; topics that different members want, as during a change of the setting,
//! are balanced each for itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::protocol::{Subscription, Topics};
use crate::types::TopicPartition;

/// A member as the leader sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct Candidate {
    /// Orders members alike in every generation: the instance id of a static member, otherwise the member id.
    pub(super) rank: String,
    /// What it told.
    pub(super) subscription: Subscription,
}

/// What a member gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) partitions: BTreeSet<TopicPartition>,
    /// What it still works on and another member is to get.
    pub(super) give_up: BTreeSet<TopicPartition>,
}

/// Who works on what: where two claim the same partition, the one with the newer generation; the other one is late to hear of it.
type Owners<'a> = BTreeMap<&'a TopicPartition, &'a str>;

/// Deals the partitions of `topics` to `members`, which are named by their member ids. The answer has an entry for each of them.
pub(super) fn assign(
    topics: &Topics,
    members: &BTreeMap<String, Candidate>,
) -> BTreeMap<String, Share> {
    let mut ranked: Vec<(&str, &Candidate)> = members
        .iter()
        .map(|(id, candidate)| (id.as_str(), candidate))
        .collect();
    ranked.sort_by_key(|(id, candidate)| (candidate.rank.as_str(), *id));
    let owners = owners(&ranked);
    let mut shares: BTreeMap<String, Share> = members
        .keys()
        .map(|id| (id.clone(), Share::default()))
        .collect();
    for (wanted_by, pool) in pools(topics, &ranked) {
        for (partition, member) in balance(pool, &wanted_by, &owners) {
            match owners.get(&partition) {
                Some(owner) if *owner != member => {
                    let share = shares.get_mut(*owner);
                    share.map(|share| share.give_up.insert(partition));
                }
                _ => {
                    let share = shares.get_mut(member);
                    share.map(|share| share.partitions.insert(partition));
                }
            }
        }
    }
    // How many partitions a topic has that is new to the leader is for the next leader to know: until then all stays where it is.
    for (partition, owner) in &owners {
        let wants = |member: &Candidate| member.subscription.topics.contains(&partition.topic);
        if !topics.contains_key(&partition.topic) && members.get(*owner).is_some_and(wants) {
            let share = shares.get_mut(*owner);
            share.map(|share| share.partitions.insert((*partition).clone()));
        }
    }
    shares
}

fn owners<'a>(ranked: &[(&'a str, &'a Candidate)]) -> Owners<'a> {
    let mut found: BTreeMap<&TopicPartition, (i32, &str)> = BTreeMap::new();
    for (id, candidate) in ranked {
        let generation = candidate.subscription.generation;
        for partition in &candidate.subscription.owned {
            let entry = found.entry(partition).or_insert((generation, id));
            if generation > entry.0 {
                *entry = (generation, id);
            }
        }
    }
    found
        .into_iter()
        .map(|(partition, (_, id))| (partition, id))
        .collect()
}

/// The partitions by the members that want their topics, which are in the order of their ranks.
fn pools<'a>(
    topics: &Topics,
    ranked: &[(&'a str, &'a Candidate)],
) -> BTreeMap<Vec<&'a str>, Vec<TopicPartition>> {
    let mut pools: BTreeMap<Vec<&str>, Vec<TopicPartition>> = BTreeMap::new();
    for (topic, partitions) in topics {
        let wanted_by = ranked
            .iter()
            .filter(|(_, candidate)| candidate.subscription.topics.contains(topic))
            .map(|(id, _)| *id)
            .collect();
        let pool = pools.entry(wanted_by).or_default();
        pool.extend((0..*partitions).map(|index| TopicPartition::new(Arc::clone(topic), index)));
    }
    pools
}

/// A member, what it keeps and gets, and how much that is to be.
struct Seat<'a> {
    member: &'a str,
    partitions: Vec<TopicPartition>,
    quota: usize,
}

/// Deals a pool evenly. Whoever owns more than the even part may be one above it, so that as little as possible moves.
fn balance<'a>(
    pool: Vec<TopicPartition>,
    members: &[&'a str],
    owners: &Owners<'_>,
) -> Vec<(TopicPartition, &'a str)> {
    let (Some(even), Some(above)) = (
        pool.len().checked_div(members.len()),
        pool.len().checked_rem(members.len()),
    ) else {
        return Vec::new();
    };
    let mut seats: Vec<Seat<'a>> = members
        .iter()
        .map(|member| Seat {
            member,
            partitions: Vec::new(),
            quota: even,
        })
        .collect();
    let mut rest = Vec::new();
    for partition in pool {
        let owner = owners.get(&partition);
        let seat = seats.iter_mut().find(|seat| owner == Some(&seat.member));
        match seat {
            Some(seat) => seat.partitions.push(partition),
            None => rest.push(partition),
        }
    }
    seats.sort_by_key(|seat| Reverse(seat.partitions.len()));
    for seat in seats.iter_mut().take(above) {
        seat.quota = even + 1;
    }
    for seat in &mut seats {
        let kept = seat.quota.min(seat.partitions.len());
        rest.extend(seat.partitions.split_off(kept));
    }
    rest.sort_unstable();
    for partition in rest {
        let emptiest = seats
            .iter_mut()
            .min_by_key(|seat| Reverse(seat.quota.saturating_sub(seat.partitions.len())));
        if let Some(seat) = emptiest {
            seat.partitions.push(partition);
        }
    }
    seats
        .into_iter()
        .flat_map(|seat| {
            let member = seat.member;
            seat.partitions
                .into_iter()
                .map(move |found| (found, member))
        })
        .collect()
}

#[cfg(test)]
mod tests;
