//! A group coordinator in memory, and membership in it: sessions, generations, and a hand-over that waits for the former owner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kafka_llm_processor::kafka::{Assigned, KafkaError, Membership};
use kafka_llm_processor::types::TopicPartition;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::instance::Instance;
use crate::oracle::INPUT;
use crate::processor::DRAIN_TIMEOUT;
use crate::scenario::Mutant;

const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Until a heartbeat that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Once faults are over nobody waits longer for a partition: its owner may have died, or may have to finish what it works on.
const DEALT_WITHIN: Duration = SESSION_TIMEOUT
    .saturating_add(DRAIN_TIMEOUT)
    .saturating_add(Duration::from_secs(30));

/// What the coordinator knows.
#[derive(Debug)]
pub struct Group {
    partitions: i32,
    mutant: Option<Mutant>,
    generation: i32,
    joined: u64,
    /// When each member was heard of last.
    members: BTreeMap<u64, Instant>,
    /// Whose a partition is until it is released or its owner counted out.
    owners: BTreeMap<i32, u64>,
    /// Since when a partition is not where it is to be.
    waiting: BTreeMap<i32, Instant>,
}

/// What a heartbeat brings: the generation, and what is to be worked on.
type Dealt = (i32, BTreeSet<TopicPartition>);

impl Group {
    pub fn new(partitions: i32, mutant: Option<Mutant>) -> Self {
        Self {
            partitions,
            mutant,
            generation: 0,
            joined: 0,
            members: BTreeMap::new(),
            owners: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    fn join(&mut self) -> u64 {
        self.joined += 1;
        self.generation += 1;
        self.members.insert(self.joined, Instant::now());
        self.joined
    }

    fn leave(&mut self, member: u64) {
        if self.members.remove(&member).is_some() {
            self.generation += 1;
        }
        self.disown();
    }

    fn expire(&mut self) {
        let before = self.members.len();
        self.members
            .retain(|_, heard| heard.elapsed() < SESSION_TIMEOUT);
        if self.members.len() < before {
            self.generation += 1;
        }
        self.disown();
    }

    fn disown(&mut self) {
        let members = &self.members;
        self.owners.retain(|_, owner| members.contains_key(owner));
    }

    /// Whose a partition is to be.
    fn target(&self, partition: i32) -> Option<u64> {
        let turn = usize::try_from(partition).unwrap() % self.members.len().max(1);
        self.members.keys().nth(turn).copied()
    }

    /// A member is alive; `owned` is what it works on or may begin to. Answers nothing when it is no member any more. The second answer tells
    /// whether it has handed something over.
    fn heartbeat(
        &mut self,
        member: u64,
        owned: &BTreeSet<TopicPartition>,
    ) -> (Option<Dealt>, bool) {
        self.expire();
        let Some(heard) = self.members.get_mut(&member) else {
            return (None, false);
        };
        *heard = Instant::now();
        let mut has_released = false;
        let mut dealt = BTreeSet::new();
        for partition in 0..self.partitions {
            let place = TopicPartition::new(INPUT, partition);
            let is_target = self.target(partition) == Some(member);
            let owner = self.owners.get(&partition).copied();
            if owner == Some(member) && !is_target && !owned.contains(&place) {
                self.owners.remove(&partition);
                has_released = true;
            }
            let takes_early = self.mutant == Some(Mutant::HandsOverEarly);
            if is_target && (owner.is_none() || takes_early) {
                self.owners.insert(partition, member);
            }
            let is_ours = is_target && self.owners.get(&partition) == Some(&member);
            if is_ours || self.mutant == Some(Mutant::DealsTwice) {
                dealt.insert(place);
            }
        }
        (Some((self.generation, dealt)), has_released)
    }

    /// Whether the member is one, in this generation; `None` when it is no member any more.
    fn confirm(&mut self, member: u64, generation: i32) -> Option<bool> {
        self.expire();
        let heard = self.members.get_mut(&member)?;
        *heard = Instant::now();
        Some(self.generation == generation)
    }

    /// A partition that has waited for too long to come to the member that is to have it.
    pub fn overdue(&mut self) -> Option<i32> {
        self.expire();
        for partition in 0..self.partitions {
            let target = self.target(partition);
            if target.is_some() && self.owners.get(&partition).copied() == target {
                self.waiting.remove(&partition);
                continue;
            }
            let since = self.waiting.entry(partition).or_insert_with(Instant::now);
            if since.elapsed() > DEALT_WITHIN {
                return Some(partition);
            }
        }
        None
    }
}

/// One instance's membership.
#[derive(Debug)]
pub struct Member {
    instance: Arc<Instance>,
    /// One receiver at most waits for it: a watch wakes several in an order that it draws itself.
    assigned: watch::Sender<Assigned>,
    local: Mutex<Local>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Local {
    member: Option<u64>,
    held: BTreeSet<TopicPartition>,
    /// When the last request was sent that was answered.
    alive_at: Option<Instant>,
}

fn nothing(session: u64) -> Assigned {
    Assigned {
        session,
        member_id: String::new(),
        generation: -1,
        partitions: BTreeSet::new(),
    }
}

impl Member {
    pub fn new(instance: &Arc<Instance>) -> Self {
        Self {
            instance: Arc::clone(instance),
            assigned: watch::Sender::new(nothing(0)),
            local: Mutex::new(Local::default()),
            wake: Notify::new(),
        }
    }

    /// Joins, and stays a member for as long as it is polled.
    pub async fn stay(&self) {
        loop {
            let pause = match self.beat().await {
                Ok(()) => HEARTBEAT_INTERVAL,
                Err(_lost) => RETRY,
            };
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    pub async fn leave(&self) {
        self.instance.gate().await;
        let member = self.local.lock().unwrap().member.take();
        if let Some(member) = member {
            self.instance.note(format_args!("leaves the group"));
            self.instance.world.state().group.leave(member);
        }
    }

    fn may_fail(&self) -> bool {
        self.instance.world.scenario.faults.failing_heartbeats
    }

    async fn beat(&self) -> Result<(), KafkaError> {
        self.instance.gate().await;
        let sent = Instant::now();
        // What is told is what was true when it was sent: what begins later was assigned then, so it is in here too.
        let (member, owned) = {
            let local = self.local.lock().unwrap();
            let assigned = self.assigned.borrow();
            let owned = local.held.union(&assigned.partitions).cloned().collect();
            (local.member, owned)
        };
        self.instance.look(self.may_fail()).await?;
        let member = member.unwrap_or_else(|| self.instance.world.state().group.join());
        let dealt = {
            let state = &mut *self.instance.world.state();
            let (dealt, has_released) = state.group.heartbeat(member, &owned);
            if has_released {
                state.reached.insert("handed over");
            }
            dealt
        };
        // The answer may come late, to a process that was stopped meanwhile.
        self.instance.look(self.may_fail()).await?;
        match dealt {
            Some((generation, partitions)) => self.publish(member, sent, generation, partitions),
            None => self.lose(),
        }
        Ok(())
    }

    fn publish(
        &self,
        member: u64,
        sent: Instant,
        generation: i32,
        partitions: BTreeSet<TopicPartition>,
    ) {
        let mut local = self.local.lock().unwrap();
        local.member = Some(member);
        local.alive_at = local.alive_at.max(Some(sent));
        let is_new = self.assigned.send_if_modified(|assigned| {
            let new = Assigned {
                session: assigned.session,
                member_id: member.to_string(),
                generation,
                partitions,
            };
            std::mem::replace(assigned, new.clone()) != new
        });
        if is_new {
            let assigned = self.assigned.borrow();
            self.instance.note(format_args!("{assigned:?}"));
        }
    }

    fn lose(&self) {
        let mut local = self.local.lock().unwrap();
        (local.member, local.alive_at) = (None, None);
        self.assigned.send_modify(|assigned| {
            *assigned = nothing(assigned.session + 1);
        });
        self.instance.note(format_args!("has lost its membership"));
        self.instance
            .world
            .state()
            .reached
            .insert("membership lost");
        // It joins anew at once.
        self.wake.notify_one();
    }
}

#[async_trait]
impl Membership for Member {
    fn assigned(&self) -> watch::Receiver<Assigned> {
        self.assigned.subscribe()
    }

    fn set_held(&self, partitions: BTreeSet<TopicPartition>) -> BTreeSet<TopicPartition> {
        let mut local = self.local.lock().unwrap();
        let assigned = self.assigned.borrow();
        let (held, refused): (BTreeSet<_>, BTreeSet<_>) = partitions
            .into_iter()
            .partition(|found| local.held.contains(found) || assigned.partitions.contains(found));
        let releases = local.held.iter().any(|before| !held.contains(before));
        local.held = held;
        if releases {
            self.wake.notify_one();
        }
        refused
    }

    fn valid_until(&self) -> Option<Instant> {
        let alive_at = self.local.lock().unwrap().alive_at;
        alive_at.map(|at| at + SESSION_TIMEOUT)
    }

    async fn confirm(&self) -> Result<bool, KafkaError> {
        self.instance.gate().await;
        let sent = Instant::now();
        let seen = self.assigned.borrow().clone();
        let member = self.local.lock().unwrap().member;
        let Some(member) = member else {
            return Ok(false);
        };
        self.instance.look(self.may_fail()).await?;
        let confirmed = {
            let state = &mut *self.instance.world.state();
            state.reached.insert("membership confirmed");
            state.group.confirm(member, seen.generation)
        };
        self.instance.look(self.may_fail()).await?;
        let mut local = self.local.lock().unwrap();
        if confirmed != Some(true) || *self.assigned.borrow() != seen {
            self.wake.notify_one();
            return Ok(false);
        }
        local.alive_at = local.alive_at.max(Some(sent));
        Ok(sent.elapsed() < SESSION_TIMEOUT)
    }
}
