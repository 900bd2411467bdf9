//! Membership in a consumer group (Kafka's classic group protocol): which input partitions are this instance's to work on.
//!
//! The coordinator decides who is a member and elects a leader among them; the leader deals the partitions (`assignor`), and a task
//! of its own (`task`) joins, keeps the membership alive and joins again when something changes. However long a document takes, the
//! heartbeats go on.
//!
//! # Invariants
//! 1. A partition is dealt to another member only after its owner has let go of it, or was counted out (KIP-429). Members keep
//!    working on what stays theirs while the group is dealt anew.
//! 2. Work counts as ours no longer than one session timeout after the last heartbeat that was answered: what the coordinator may have
//!    given to others is not ours, even when this process only slept.
//! 3. Whatever begins with [`GroupMember::set_held`] either is told to the group as ours before anybody else may get it, or is refused.
//!
//! # Not here
//! Fencing: a process that slept and wakes up may write before it reads the clock. That is what transactions are for.

mod assignor;
mod calls;
mod protocol;
mod task;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kafka_protocol::messages::HeartbeatRequest;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::calls::{Verdict, check_heartbeat, heartbeat_request, verdict};
use self::protocol::{Subscription, Topics};
use self::task::Task;
use super::cluster::{Cluster, Target};
use super::group::MemberIdentity;
use super::pool::lock;
use crate::kafka::wire::connection::Deadline;
use crate::kafka::{Assigned, KafkaError, Membership};
use crate::types::TopicPartition;

/// Heartbeats that fit into a session: a coordinator that moves gets another try before the session is over.
const HEARTBEATS_PER_SESSION: u32 = 3;

/// How this process is a member of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipConfig {
    /// Kafka's `group.id`.
    pub group_id: String,
    /// Kafka's `group.instance.id`: a member with one keeps its partitions over a restart within the session timeout. No two processes
    /// may use the same.
    pub instance_id: Option<String>,
    /// Kafka's `session.timeout.ms`: without a heartbeat for so long the member is counted out. Default 10 s; brokers take 6 s to 30
    /// minutes unless told otherwise.
    pub session_timeout: Duration,
    /// Kafka's `heartbeat.interval.ms`, at most a third of the session timeout. Default 3 s.
    pub heartbeat_interval: Duration,
    /// Kafka's `max.poll.interval.ms` in its other meaning: how long the coordinator waits for all members to join again. Default 30 s;
    /// members of this program join at once, whatever they work on.
    pub rebalance_timeout: Duration,
}

impl MembershipConfig {
    /// The defaults, without an instance id.
    pub fn new(group_id: impl Into<String>) -> Self {
        Self {
            group_id: group_id.into(),
            instance_id: None,
            session_timeout: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(3),
            rebalance_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a process stops being a member although nobody asked it to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// Two processes use one instance id; the later one has it now.
    #[error(
        "another process has joined group `{group_id}` with kafka.group_instance_id = `{instance_id}`, the name of this one, and has its partitions now; give each process a name of its own"
    )]
    Fenced {
        /// The group.
        group_id: String,
        /// The instance id that both use.
        instance_id: String,
        /// What the coordinator said.
        source: KafkaError,
    },
}

/// A member of a consumer group.
///
/// Shared between its task ([`run`](Self::run), once) and whoever works on the partitions. To begin work on a partition: see it in
/// [`assigned`](Self::assigned), name it in [`set_held`](Self::set_held), and begin unless that refuses it.
#[derive(Debug)]
pub struct GroupMember {
    cluster: Cluster,
    config: MembershipConfig,
    assigned: watch::Sender<Assigned>,
    state: Mutex<State>,
    /// The task is to look at the state.
    wake: Notify,
}

#[derive(Debug)]
struct State {
    topics: Topics,
    held: BTreeSet<TopicPartition>,
    /// When the last request was sent whose answer says that we are a member.
    alive_at: Option<Instant>,
    /// Somebody learned that the membership is in doubt.
    in_doubt: bool,
}

impl GroupMember {
    /// Describes a member that wants the partitions of `topics`, each with the number of its partitions. It joins when it is
    /// [run](Self::run).
    #[must_use]
    pub fn new(cluster: Cluster, config: MembershipConfig, topics: Vec<(String, i32)>) -> Self {
        let nothing = Assigned {
            session: 0,
            member_id: String::new(),
            generation: -1,
            partitions: BTreeSet::new(),
        };
        Self {
            cluster,
            config,
            assigned: watch::Sender::new(nothing),
            state: Mutex::new(State {
                topics: to_topics(topics),
                held: BTreeSet::new(),
                alive_at: None,
                in_doubt: false,
            }),
            wake: Notify::new(),
        }
    }

    /// Replaces the topics and the numbers of their partitions; what changed is dealt as soon as the group has joined anew.
    pub fn set_topics(&self, topics: Vec<(String, i32)>) {
        lock(&self.state).topics = to_topics(topics);
        self.wake.notify_one();
    }

    /// Who we are to the coordinator, for offset commits; `None` while we are no member.
    #[must_use]
    pub fn identity(&self) -> Option<MemberIdentity> {
        let assigned = self.assigned.borrow();
        (assigned.generation >= 0).then(|| MemberIdentity {
            member_id: assigned.member_id.clone(),
            generation: assigned.generation,
            instance_id: self.config.instance_id.clone(),
        })
    }

    /// The task of the membership: joins, keeps it alive and joins again, until `shutdown` is cancelled. What is held should be
    /// finished by then. At the end nothing is ours any more; a member without instance id leaves the group, so that others get its
    /// partitions at once. Outages and refusals are reported and waited for.
    ///
    /// # Errors
    /// When another process uses the same instance id.
    ///
    /// # Cancel safety
    /// A dropped future ends the heartbeats: after the session timeout the coordinator counts the member out, and
    /// [`valid_until`](Self::valid_until) tells so.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), MembershipError> {
        let mut task = Task::new(self);
        let outcome = tokio::select! {
            biased;
            () = shutdown.cancelled() => Ok(()),
            error = task.stay() => Err(error),
        };
        task.leave().await;
        outcome
    }

    /// A heartbeat that ends in time for another one within the session.
    async fn heartbeat(&self, member_id: &str, generation: i32) -> Result<(), KafkaError> {
        let group = &self.config.group_id;
        self.cluster
            .ask_until::<HeartbeatRequest, _>(
                Deadline::within(self.config.session_timeout / HEARTBEATS_PER_SESSION),
                Target::Coordinator(group),
                Duration::ZERO,
                |_| heartbeat_request(&self.config, (member_id, generation)),
                |answer| check_heartbeat(group, &answer),
            )
            .await
    }

    /// What the next join tells, and the topics as they are now.
    fn subscription(&self) -> (Subscription, Topics) {
        let state = lock(&self.state);
        let assigned = self.assigned.borrow();
        let subscription = Subscription {
            topics: state.topics.keys().cloned().collect(),
            owned: state.held.union(&assigned.partitions).cloned().collect(),
            generation: assigned.generation,
        };
        (subscription, state.topics.clone())
    }

    fn alive(&self, at: Instant) {
        let mut state = lock(&self.state);
        state.alive_at = state.alive_at.max(Some(at));
    }

    fn is_expired(&self) -> bool {
        self.valid_until()
            .is_some_and(|until| Instant::now() >= until)
    }

    /// Hands out what was dealt. Under the lock, so that [`set_held`](Self::set_held) sees either the old or the new.
    fn publish(&self, member_id: &str, generation: i32, partitions: BTreeSet<TopicPartition>) {
        let _state = lock(&self.state);
        self.assigned.send_modify(|assigned| {
            member_id.clone_into(&mut assigned.member_id);
            assigned.generation = generation;
            assigned.partitions = partitions;
        });
    }

    /// Nothing is ours any more; whether anything was.
    fn lose(&self) -> bool {
        let mut state = lock(&self.state);
        state.alive_at = None;
        state.in_doubt = false;
        self.assigned.send_if_modified(|assigned| {
            if assigned.generation < 0 {
                return false;
            }
            *assigned = Assigned {
                session: assigned.session + 1,
                member_id: String::new(),
                generation: -1,
                partitions: BTreeSet::new(),
            };
            true
        })
    }
}

#[async_trait]
impl Membership for GroupMember {
    fn assigned(&self) -> watch::Receiver<Assigned> {
        self.assigned.subscribe()
    }

    fn set_held(&self, partitions: BTreeSet<TopicPartition>) -> BTreeSet<TopicPartition> {
        let mut partitions = partitions;
        let refused: BTreeSet<TopicPartition>;
        {
            let mut state = lock(&self.state);
            let assigned = self.assigned.borrow();
            refused = partitions
                .iter()
                .filter(|found| !state.held.contains(found) && !assigned.partitions.contains(found))
                .cloned()
                .collect();
            partitions.retain(|found| !refused.contains(found));
            state.held = partitions;
        }
        self.wake.notify_one();
        refused
    }

    fn valid_until(&self) -> Option<Instant> {
        let state = lock(&self.state);
        state.alive_at.map(|at| at + self.config.session_timeout)
    }

    async fn confirm(&self) -> Result<bool, KafkaError> {
        let seen = self.assigned.borrow().clone();
        if seen.generation < 0 {
            return Ok(false);
        }
        let sent = Instant::now();
        match self.heartbeat(&seen.member_id, seen.generation).await {
            Ok(()) => {}
            Err(error) => match verdict(&error) {
                Verdict::Rebalance => {}
                Verdict::Unclear => return Err(error),
                Verdict::Lost | Verdict::Forgotten | Verdict::Fenced => {
                    lock(&self.state).in_doubt = true;
                    self.wake.notify_one();
                    return Ok(false);
                }
            },
        }
        let mut state = lock(&self.state);
        let is_same = {
            let now = self.assigned.borrow();
            (now.session, now.generation) == (seen.session, seen.generation)
        };
        if !is_same {
            return Ok(false);
        }
        state.alive_at = state.alive_at.max(Some(sent));
        Ok(sent.elapsed() < self.config.session_timeout)
    }
}

/// What the crate's `fuzzing` hands to fuzzers.
pub(super) fn fuzzing(bytes: &[u8]) {
    drop(protocol::Assignment::decode(bytes));
    // Two members, the length of the first one's words in front: what the leader deals out is computed from them.
    let (length, words) = bytes.split_first().unwrap_or((&0, &[]));
    let (first, second) = words
        .split_at_checked(usize::from(*length))
        .unwrap_or((words, &[]));
    let told = [("a", first), ("b", second), ("c", bytes)].map(|(member, words)| {
        let subscription = protocol::Subscription::decode(words).unwrap_or_default();
        let rank = member.to_owned();
        (
            member.to_owned(),
            assignor::Candidate { rank, subscription },
        )
    });
    let topics = protocol::Topics::from([("t".into(), 3), ("u".into(), 2)]);
    let shares = assignor::assign(&topics, &told.into());
    let dealt = shares.values().map(|share| share.partitions.len());
    let all: std::collections::BTreeSet<_> = shares
        .values()
        .flat_map(|share| &share.partitions)
        .collect();
    assert!(dealt.sum::<usize>() == all.len(), "one is dealt twice");
}

fn to_topics(topics: Vec<(String, i32)>) -> Topics {
    topics
        .into_iter()
        .map(|(topic, partitions)| (topic.into(), partitions))
        .collect()
}
