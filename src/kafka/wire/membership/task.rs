//! The one task that speaks for a member: it alone joins, and only what it publishes is ours.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest};
use tokio::time::{Instant, sleep_until};

use super::assignor::{Candidate, assign};
use super::calls::{
    Joined, Membership, Verdict, check_join, check_leave, check_sync, join_request, leave_request,
    names, sync_request, verdict,
};
use super::protocol::{Assignment, Note, ProtocolError, Subscription, Topics};
use super::{GroupMember, MembershipError};
use crate::kafka::wire::cluster::Target;
use crate::kafka::wire::connection::Deadline;
use crate::kafka::wire::pool::lock;
use crate::kafka::{KafkaError, Membership as _};
use crate::retry::Backoff;
use crate::types::TopicPartition;

/// First and longest ceiling of the waits after a failure. Each wait is drawn, so that members do not come back in step.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How often an outage is reported while it lasts.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// A process that ends does not wait longer for the coordinator: it counts out whoever is silent.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);

/// Why a step did not succeed.
#[derive(Debug)]
enum Trouble {
    /// No heartbeat was answered for a whole session.
    Expired,
    Kafka(KafkaError),
}

impl From<KafkaError> for Trouble {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error)
    }
}

/// The member's view of its group.
pub(super) struct Task {
    member: Arc<GroupMember>,
    /// Empty before the first join, and when the coordinator has forgotten it.
    member_id: String,
    /// The generation that we joined, −1 while we are no member.
    generation: i32,
    is_leader: bool,
    /// The topics of the last join.
    joined_for: Topics,
    /// The topics as they were dealt, when the leader told.
    dealt_for: Option<Topics>,
    /// What the group waits for us to let go of.
    give_up: BTreeSet<TopicPartition>,
    /// The group is being dealt anew.
    is_rebalancing: bool,
    next_beat: Instant,
    reported: Option<Instant>,
}

impl Task {
    pub(super) fn new(member: Arc<GroupMember>) -> Self {
        Self {
            member,
            member_id: String::new(),
            generation: -1,
            is_leader: false,
            joined_for: Topics::new(),
            dealt_for: None,
            give_up: BTreeSet::new(),
            is_rebalancing: false,
            next_beat: Instant::now(),
            reported: None,
        }
    }

    /// Is a member for as long as it is polled; ends only when it must not be one.
    pub(super) async fn stay(&mut self) -> MembershipError {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            // Before anything else: after a sleep of the whole process the clock knows more than any answer.
            let outcome = if self.member.is_expired() {
                Err(Trouble::Expired)
            } else if self.must_join() {
                self.join().await
            } else {
                self.beat().await
            };
            match outcome {
                Ok(()) => {
                    backoff.reset();
                    self.reported = None;
                }
                Err(trouble) => {
                    if let Some(end) = self.judge(trouble) {
                        return end;
                    }
                    self.pause(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Tells the coordinator that we go, unless we are to come back under the same name.
    pub(super) async fn leave(&mut self) {
        self.forget();
        if self.member.config.instance_id.is_some() || self.member_id.is_empty() {
            return;
        }
        let config = &self.member.config;
        let asked = self.member.cluster.ask_until::<LeaveGroupRequest, _>(
            Deadline::within(LEAVE_WITHIN),
            Target::Coordinator(&config.group_id),
            Duration::ZERO,
            |way| leave_request(config, &self.member_id, way.version),
            |answer| check_leave(&config.group_id, &answer),
        );
        if let Err(error) = asked.await {
            tracing::debug!(%error, "the group was not told that this member leaves: it notices by itself");
        }
    }

    fn must_join(&self) -> bool {
        if self.generation < 0 || self.is_rebalancing {
            return true;
        }
        let state = lock(&self.member.state);
        // Of any of them: what takes longer must not keep back what is through.
        let has_let_go = !self.give_up.is_subset(&state.held);
        // Only the leader's joining makes the coordinator deal anew when the names are the same, and it deals what it knows.
        let deals_otherwise = self.is_leader
            && self
                .dealt_for
                .as_ref()
                .is_some_and(|dealt| *dealt != state.topics);
        has_let_go || deals_otherwise || !state.topics.keys().eq(self.joined_for.keys())
    }

    /// Waits for the next heartbeat to be due, or for a change to look at.
    async fn beat(&mut self) -> Result<(), Trouble> {
        tokio::select! {
            biased;
            () = self.member.wake.notified() => {}
            () = sleep_until(self.next_beat) => {}
        }
        if self.member.is_expired() {
            return Err(Trouble::Expired);
        }
        let in_doubt = std::mem::take(&mut lock(&self.member.state).in_doubt);
        let sent = Instant::now();
        if sent < self.next_beat && !in_doubt {
            return Ok(());
        }
        // When it fails the next one is due after the pause.
        self.next_beat = sent;
        let answer = self.member.heartbeat(&self.member_id, self.generation);
        match answer.await {
            Ok(()) => {}
            Err(error) if verdict(&error) == Verdict::Rebalance => self.is_rebalancing = true,
            Err(error) => return Err(error.into()),
        }
        self.next_beat = sent + self.member.config.heartbeat_interval;
        self.member.alive(sent);
        Ok(())
    }

    /// Joins with what we hold, deals if we are elected, and publishes what we got.
    async fn join(&mut self) -> Result<(), Trouble> {
        let (subscription, topics) = self.member.subscription();
        let metadata = subscription.encode().map_err(|error| unwritable(&error))?;
        let joined = self.enter(&metadata).await?;
        self.generation = joined.generation;
        self.is_leader = joined.is_leader;
        self.is_rebalancing = false;
        let dealt = if joined.is_leader && !joined.skip_assignment {
            deal(&topics, &joined.members).map_err(|error| unwritable(&error))?
        } else {
            BTreeMap::new()
        };
        let sent = Instant::now();
        let assignment = self.guarded(self.sync(&dealt)).await?;
        let assignment = Assignment::decode(&assignment).map_err(|error| KafkaError::Protocol {
            operation: "SyncGroup",
            detail: format!("the assignment: {error}"),
        })?;
        self.member.alive(sent);
        if self.member.is_expired() {
            return Err(Trouble::Expired);
        }
        let (give_up, dealt_for) = match assignment.note {
            Some(note) => (note.give_up, Some(note.topics)),
            None => {
                self.warn_of_strangers(&assignment.partitions);
                (BTreeSet::new(), None)
            }
        };
        tracing::info!(
            group = self.member.config.group_id,
            member_id = self.member_id,
            generation = self.generation,
            leads = self.is_leader,
            partitions = assignment.partitions.len(),
            to_give_up = give_up.len(),
            "partitions were dealt to this member"
        );
        self.give_up = give_up;
        self.dealt_for = dealt_for;
        self.joined_for = topics;
        self.next_beat = sent + self.member.config.heartbeat_interval;
        self.member
            .publish(&self.member_id, self.generation, assignment.partitions);
        Ok(())
    }

    /// Joins, if need be a second time under the id that the coordinator gives.
    async fn enter(&mut self, metadata: &Bytes) -> Result<Membership, Trouble> {
        for _ in 0..2 {
            match self.guarded(self.ask_to_join(metadata)).await? {
                Joined::IdGiven(member_id) => self.member_id = member_id,
                Joined::Member(membership) => {
                    self.member_id.clone_from(&membership.member_id);
                    return Ok(membership);
                }
            }
        }
        Err(Trouble::Kafka(KafkaError::Protocol {
            operation: "JoinGroup",
            detail: "it asks for a member id that it has given already".to_owned(),
        }))
    }

    /// The coordinator answers when all members have joined, or their time is over.
    async fn ask_to_join(&self, metadata: &Bytes) -> Result<Joined, KafkaError> {
        let config = &self.member.config;
        self.member
            .cluster
            .ask::<JoinGroupRequest, _>(
                Target::Coordinator(&config.group_id),
                config.rebalance_timeout,
                |_| join_request(config, &self.member_id, metadata),
                |answer| check_join(&config.group_id, answer),
            )
            .await
    }

    /// The coordinator answers when the leader has dealt.
    async fn sync(&self, dealt: &BTreeMap<String, Bytes>) -> Result<Bytes, KafkaError> {
        let config = &self.member.config;
        let identity = (self.member_id.as_str(), self.generation);
        self.member
            .cluster
            .ask::<SyncGroupRequest, _>(
                Target::Coordinator(&config.group_id),
                config.rebalance_timeout,
                |way| sync_request(config, identity, dealt, way.version),
                |answer| check_sync(&config.group_id, answer),
            )
            .await
    }

    /// Waits for an answer that may take long, while heartbeats go on: only they tell a group that is waited for from a coordinator
    /// that is gone.
    async fn guarded<T>(
        &self,
        call: impl Future<Output = Result<T, KafkaError>>,
    ) -> Result<T, Trouble> {
        let outcome = tokio::select! {
            biased;
            () = self.expiry() => Err(Trouble::Expired),
            error = self.keep_alive() => Err(Trouble::Kafka(error)),
            answer = call => answer.map_err(Trouble::Kafka),
        };
        if self.member.is_expired() {
            return Err(Trouble::Expired);
        }
        outcome
    }

    /// Ends when the session is over.
    async fn expiry(&self) {
        loop {
            match self.member.valid_until() {
                None => pending::<()>().await,
                Some(until) if Instant::now() >= until => return,
                Some(until) => sleep_until(until).await,
            }
        }
    }

    /// Heartbeats while a join or its partitions are waited for; ends when the coordinator counts us out.
    async fn keep_alive(&self) -> KafkaError {
        if self.generation < 0 {
            pending::<()>().await;
        }
        let mut due = self.next_beat;
        loop {
            sleep_until(due).await;
            let sent = Instant::now();
            due = sent + self.member.config.heartbeat_interval;
            let Err(error) = self
                .member
                .heartbeat(&self.member_id, self.generation)
                .await
            else {
                self.member.alive(sent);
                continue;
            };
            match verdict(&error) {
                Verdict::Rebalance => self.member.alive(sent),
                Verdict::Forgotten | Verdict::Fenced => return error,
                // A new generation has begun, and the answer that takes us into it is on its way; or the coordinator is away.
                Verdict::Lost | Verdict::Unclear => {}
            }
        }
    }

    /// Draws the conclusions from a failure; an answer ends the membership for good.
    fn judge(&mut self, trouble: Trouble) -> Option<MembershipError> {
        let error = match trouble {
            Trouble::Expired => {
                self.lose("no heartbeat was answered for a whole session");
                return None;
            }
            Trouble::Kafka(error) => error,
        };
        match verdict(&error) {
            Verdict::Rebalance => self.is_rebalancing = true,
            Verdict::Lost => self.lose("the group has gone on without it"),
            Verdict::Forgotten => {
                self.lose("the coordinator does not know it any more");
                self.member_id.clear();
            }
            Verdict::Fenced => {
                return Some(MembershipError::Fenced {
                    group_id: self.member.config.group_id.clone(),
                    instance_id: self.member.config.instance_id.clone().unwrap_or_default(),
                    source: error,
                });
            }
            Verdict::Unclear => self.report(&error),
        }
        None
    }

    /// Gives the membership up; answers whether there was one.
    fn forget(&mut self) -> bool {
        self.generation = -1;
        self.is_leader = false;
        self.is_rebalancing = false;
        self.give_up.clear();
        self.dealt_for = None;
        self.member.lose()
    }

    fn lose(&mut self, reason: &'static str) {
        if self.forget() {
            tracing::warn!(
                group = self.member.config.group_id,
                member_id = self.member_id,
                reason,
                "the membership in the group has ended: what was assigned is not ours any more"
            );
        }
    }

    fn report(&mut self, error: &KafkaError) {
        let is_known = self.reported.is_some_and(|at| at.elapsed() < REPORT_EVERY);
        if !is_known {
            self.reported = Some(Instant::now());
            tracing::warn!(
                %error,
                group = self.member.config.group_id,
                topics = names(&lock(&self.member.state).topics),
                "the group cannot be joined or kept alive: trying on"
            );
        }
    }

    /// Our leaders leave a note in all that they deal. Without one the coordinator dealt, as it does in a group that began with consumers of
    /// the newer protocol (KIP-848): what it gave to them, nobody asks the model about.
    fn warn_of_strangers(&self, dealt: &BTreeSet<TopicPartition>) {
        if !dealt.is_empty() {
            tracing::warn!(
                group = self.member.config.group_id,
                "another program is in this group and gets a part of its partitions: give each its own kafka.group_id"
            );
        }
    }

    /// Waits before the next try, not beyond the end of the session.
    async fn pause(&self, delay: Duration) {
        let until = Instant::now() + delay;
        let until = self
            .member
            .valid_until()
            .map_or(until, |end| end.min(until));
        sleep_until(until).await;
    }
}

/// The leader's part: what each member gets, as bytes.
fn deal(
    topics: &Topics,
    members: &[(String, Option<String>, Bytes)],
) -> Result<BTreeMap<String, Bytes>, ProtocolError> {
    let mut candidates = BTreeMap::new();
    for (member_id, instance_id, metadata) in members {
        let subscription = Subscription::decode(metadata).unwrap_or_else(|error| {
            tracing::warn!(%error, member_id, "what a member told cannot be read: it gets nothing");
            Subscription::default()
        });
        let candidate = Candidate {
            rank: instance_id.as_ref().unwrap_or(member_id).clone(),
            subscription,
        };
        candidates.insert(member_id.clone(), candidate);
    }
    assign(topics, &candidates)
        .into_iter()
        .map(|(member_id, share)| {
            let assignment = Assignment {
                partitions: share.partitions,
                note: Some(Note {
                    give_up: share.give_up,
                    topics: topics.clone(),
                }),
            };
            Ok((member_id, assignment.encode()?))
        })
        .collect()
}

fn unwritable(error: &ProtocolError) -> KafkaError {
    KafkaError::Protocol {
        operation: "JoinGroup",
        detail: format!("what is to be told to the group cannot be written: {error}"),
    }
}
