//! All partitions of a process: starts the work on those that are ours, watches over their ownership, ends them together.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use super::claims::{ClaimWatch, Look};
use super::ownership::Ownership;
use super::partition::{PartitionEnd, Place, Stop, work_on};
use super::take_over::{Claim, Claimant, TakeOverError};
use super::{Services, reading, ready, writing};
use crate::kafka::Assigned;
use crate::telemetry::Latch;
use crate::telemetry::status::RunState;
use crate::types::{TopicPartition, error_chain};

/// How often the commit topic is looked at for claims of others, and the topics for their ids.
const LOOK: Duration = Duration::from_secs(5);
/// Pause before a partition is taken over anew: what made that necessary may do so again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Claims that wait for the supervisor; a partition's task waits while they are that many.
const CLAIMS_WAITING: usize = 64;

/// How a run of the pipeline ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PipelineEnd {
    /// Everything that was in flight is finished and committed.
    Drained,
    /// The drain deadline passed; what was not committed is done again after the restart.
    DeadlinePassed {
        /// Partitions that were not through.
        partitions: usize,
    },
    /// Another instance owns a partition that should be ours.
    Fenced {
        /// Which, and by whom.
        detail: String,
    },
    /// An invariant is broken.
    Broken {
        /// What.
        detail: String,
    },
}

/// Works on the partitions that `ownership` gives to this process, until `drain` is cancelled and everything in flight is through, or until it
/// cannot go on. `partitions` are those that may become ours, with the ids of their topics: all that are assigned where the settings decide,
/// all of the input topics in a group. `owned` is released once every partition that is ours at first is taken over.
///
/// # Cancel safety
/// Dropping it drops all work; what was not committed is done again.
pub async fn run(
    services: Arc<Services>,
    ownership: Ownership,
    partitions: Vec<(TopicPartition, Uuid)>,
    owned: Latch,
    drain: CancellationToken,
    drain_timeout: Duration,
) -> PipelineEnd {
    let claimant = tokio::select! {
        biased;
        () = drain.cancelled() => return PipelineEnd::Drained,
        claimant = Claimant::new(Arc::clone(&services), ownership, &partitions) => match claimant {
            Ok(claimant) => claimant,
            Err(error @ TakeOverError::Lost(_)) => return PipelineEnd::Fenced { detail: Ownership::All.collision(&error_chain(&error)) },
            Err(error @ TakeOverError::Flush(_)) => return PipelineEnd::Broken { detail: error_chain(&error) },
        },
    };
    let supervisor = Supervisor::new(claimant, partitions, owned, drain, drain_timeout);
    supervisor.run().await
}

/// Work on a partition that is on its way.
struct Share {
    drain: CancellationToken,
    stop: Option<oneshot::Sender<Stop>>,
    /// When what was told to finish is stopped.
    stop_at: Option<Instant>,
}

struct Supervisor {
    claimant: Arc<Claimant>,
    places: BTreeMap<TopicPartition, Place>,
    /// What is ours, as the settings or the group say.
    ours: BTreeSet<TopicPartition>,
    assigned: Option<watch::Receiver<Assigned>>,
    /// The membership that `ours` belongs to; that of settings never ends.
    session: u64,
    shares: BTreeMap<TopicPartition, Share>,
    running: JoinSet<(TopicPartition, PartitionEnd)>,
    claims: ClaimWatch,
    taken: mpsc::Receiver<Claim>,
    claim_sender: mpsc::Sender<Claim>,
    looking: Option<BoxFuture<'static, Look>>,
    /// Released once all that is ours at first is taken over.
    owned: Option<Latch>,
    /// What was said last: that this member stands by, or that documents flow.
    said_to_stand_by: Option<bool>,
    drain: CancellationToken,
    drain_timeout: Duration,
    drain_deadline: Option<Instant>,
}

impl Supervisor {
    fn new(
        claimant: Claimant,
        partitions: Vec<(TopicPartition, Uuid)>,
        owned: Latch,
        drain: CancellationToken,
        drain_timeout: Duration,
    ) -> Self {
        let (claim_sender, taken) = mpsc::channel(CLAIMS_WAITING);
        let places: BTreeMap<_, _> = partitions
            .into_iter()
            .enumerate()
            .map(|(index, (partition, topic_id))| {
                let place = Place {
                    partition: partition.clone(),
                    index,
                    topic_id,
                    lost: None,
                };
                (partition, place)
            })
            .collect();
        let (ours, assigned) = match &claimant.ownership {
            Ownership::All | Ownership::Static => (places.keys().cloned().collect(), None),
            Ownership::Group(member) => (BTreeSet::new(), Some(member.assigned())),
        };
        let services = Arc::clone(&claimant.services);
        Self {
            claims: ClaimWatch::new(services, claimant.group.clone()),
            claimant: Arc::new(claimant),
            places,
            ours,
            assigned,
            session: 0,
            shares: BTreeMap::new(),
            running: JoinSet::new(),
            taken,
            claim_sender,
            looking: None,
            owned: Some(owned),
            said_to_stand_by: None,
            drain,
            drain_timeout,
            drain_deadline: None,
        }
    }

    async fn run(mut self) -> PipelineEnd {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.follow_assignment();
        self.begin_missing(Duration::ZERO);
        // Where nothing is ours there is nothing to wait for.
        self.release_when_owned();
        loop {
            if self.drain_deadline.is_some() && self.running.is_empty() {
                return PipelineEnd::Drained;
            }
            let stops = self.shares.values().filter_map(|share| share.stop_at);
            let stop_at = stops.chain(self.drain_deadline).min();
            tokio::select! {
                biased;
                Some(ended) = self.running.join_next() => {
                    let end = match ended {
                        Ok((partition, end)) => self.ended(&partition, end),
                        Err(error) => Some(PipelineEnd::Broken {
                            detail: format!("the task of a partition ended: {error}"),
                        }),
                    };
                    if let Some(end) = end {
                        return end;
                    }
                }
                Some(claim) = self.taken.recv() => self.take(claim),
                () = self.drain.cancelled(), if self.drain_deadline.is_none() => self.begin_drain(),
                () = changed(&mut self.assigned) => {
                    self.follow_assignment();
                    self.begin_missing(Duration::ZERO);
                }
                look = ready(&mut self.looking) => if let Some(end) = self.overrule(look) {
                    return end;
                },
                () = sleep_until(stop_at.unwrap_or_else(Instant::now)), if stop_at.is_some() => {
                    if self.drain_deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                        return PipelineEnd::DeadlinePassed { partitions: self.running.len() };
                    }
                    self.stop_late();
                }
                _ = look.tick(), if self.looking.is_none() => self.looking = Some(self.claims.look()),
            }
        }
    }

    fn services(&self) -> &Services {
        &self.claimant.services
    }

    /// Takes the newest assignment: what is not ours any more is told to finish, or to stop when the whole membership was lost.
    fn follow_assignment(&mut self) {
        let Some(receiver) = &mut self.assigned else {
            return;
        };
        let assigned = receiver.borrow_and_update().clone();
        self.learn(&assigned.partitions);
        let known = |partition: &&TopicPartition| self.places.contains_key(*partition);
        self.ours = assigned.partitions.iter().filter(known).cloned().collect();
        if assigned.session != self.session {
            self.session = assigned.session;
            if !self.shares.is_empty() {
                self.claimant.services.metrics.membership_lost();
                tracing::warn!(
                    partitions = self.shares.len(),
                    "the membership in the group was lost: what is in flight is given up, its owners do it again"
                );
            }
            for share in self.shares.values_mut() {
                share.stop(Stop::Drop);
            }
        }
        let stop_at = Instant::now() + self.drain_timeout;
        for (partition, share) in &mut self.shares {
            // One that was told to stop finishes nothing.
            let is_finishing = share.drain.is_cancelled() || share.stop.is_none();
            if !self.ours.contains(partition) && !is_finishing {
                tracing::info!(topic = %partition.topic, partition = partition.partition, "the group gives it to another member: what is in flight is finished first");
                share.finish_by(stop_at);
            }
        }
        self.tell_assigned(&assigned);
        self.release_when_owned();
    }

    /// Begins the work on what is ours and not being worked on.
    fn begin_missing(&mut self, after: Duration) {
        if self.drain_deadline.is_some() {
            return;
        }
        let is_missing = |partition: &&TopicPartition| !self.shares.contains_key(*partition);
        let missing: Vec<_> = self.ours.iter().filter(is_missing).cloned().collect();
        // The group may have changed its mind since we heard of it: then there is news of that on its way.
        let refused = self.hold(&missing);
        for partition in missing {
            if refused.contains(&partition) {
                continue;
            }
            let Some(place) = self.places.get(&partition).cloned() else {
                continue;
            };
            let span = tracing::error_span!("partition", topic = %partition.topic, partition = partition.partition);
            // Not a child of the whole process's drain: it is told when its own time to finish begins.
            let drain = CancellationToken::new();
            let (stop, stopped) = oneshot::channel();
            let work = work_on(
                Arc::clone(&self.claimant),
                place,
                self.claim_sender.clone(),
                drain.clone(),
                stopped,
            );
            let key = partition.clone();
            let work = async move {
                sleep(after).await;
                (key, work.await)
            };
            self.running.spawn(work.instrument(span));
            let share = Share {
                drain,
                stop: Some(stop),
                stop_at: None,
            };
            self.shares.insert(partition, share);
        }
    }

    fn tell_assigned(&self, assigned: &Assigned) {
        // Between two memberships nothing is assigned, and whoever lost the last has said so.
        if assigned.generation < 0 {
            return;
        }
        self.services().metrics.assigned();
        tracing::info!(
            generation = assigned.generation,
            member = assigned.member_id,
            partitions = list(&self.ours),
            "assigned by the group"
        );
    }

    /// A member that started later may know, and deal, partitions that were added to a topic since.
    fn learn(&mut self, assigned: &BTreeSet<TopicPartition>) {
        for partition in assigned {
            if self.places.contains_key(partition) {
                continue;
            }
            if let Some(place) = place_of_added(&self.places, partition) {
                tracing::info!(topic = %partition.topic, partition = partition.partition, "added to its topic since the start");
                self.places.insert(partition.clone(), place);
            } else {
                tracing::error!(topic = %partition.topic, partition = partition.partition, "the group gives it to this instance, whose input.topics does not name its topic: nobody works on it; set the same input.topics for all instances of the group");
            }
        }
    }

    fn take(&mut self, claim: Claim) {
        if self.shares.contains_key(&claim.partition) {
            if let Some(place) = self.places.get_mut(&claim.partition) {
                place.topic_id = claim.topic_id;
                place.lost = None;
            }
            self.claims.insert(claim);
            self.release_when_owned();
        }
    }

    fn release_when_owned(&mut self) {
        let is_assigned = self
            .assigned
            .as_ref()
            .is_none_or(|assigned| !assigned.borrow().member_id.is_empty());
        if !is_assigned || !self.ours.iter().all(|ours| self.claims.contains(ours)) {
            return;
        }
        if let Some(owned) = self.owned.take() {
            owned.release();
            self.services().board.set_state(RunState::Running);
        }
        let stands_by = self.ours.is_empty();
        if self.said_to_stand_by.replace(stands_by) == Some(stands_by) {
            return;
        }
        if stands_by {
            tracing::info!(
                "the group has no partition for this member now: it stands by, and takes over when another member goes"
            );
        } else {
            let partitions = self.ours.len();
            tracing::info!(partitions, "all partitions are taken over: documents flow");
        }
    }

    /// A partition's task is through; answers how the run ends, when that ends it.
    fn ended(&mut self, partition: &TopicPartition, end: PartitionEnd) -> Option<PipelineEnd> {
        // A claim that it has told of just before must not be taken for one of its successor.
        while let Ok(claim) = self.taken.try_recv() {
            self.take(claim);
        }
        self.shares.remove(partition);
        self.claims.remove(partition);
        let mut after = Duration::ZERO;
        match end {
            PartitionEnd::Drained | PartitionEnd::Dropped => {}
            PartitionEnd::Again(reason) => {
                tracing::warn!(topic = %partition.topic, partition = partition.partition, reason, "the partition is taken over anew");
                after = AGAIN_AFTER;
            }
            PartitionEnd::InputLost(lost) => {
                tracing::error!(topic = %partition.topic, partition = partition.partition, "{}; the partition is taken over anew", lost.reason);
                if let Some(place) = self.places.get_mut(partition) {
                    place.lost = Some(lost);
                }
            }
            PartitionEnd::GivenUp(detail) => {
                tracing::warn!(topic = %partition.topic, partition = partition.partition, detail, "the group has given the partition to another member");
            }
            PartitionEnd::Fenced(detail) => return Some(self.fenced(&detail)),
            PartitionEnd::Broken(detail) => return Some(PipelineEnd::Broken { detail }),
        }
        self.forget(partition);
        // Told before it is begun anew, so that the group can refuse that.
        self.hold(&[]);
        self.begin_missing(after);
        None
    }

    /// What is shown of a partition goes with the work on it: its next owner shows it.
    fn forget(&self, partition: &TopicPartition) {
        if self.ours.contains(partition) {
            return;
        }
        let services = self.services();
        services.board.remove_partition(partition);
        services.commit_offsets.remove(partition);
        services.holds.forget(&reading(partition));
        services.holds.forget(&writing(partition));
    }

    /// Tells the group what is worked on, with what is about to be; answers what it refuses of that.
    fn hold(&self, beginning: &[TopicPartition]) -> BTreeSet<TopicPartition> {
        let Ownership::Group(member) = &self.claimant.ownership else {
            return BTreeSet::new();
        };
        let working = self.shares.keys().chain(beginning);
        member.set_held(working.cloned().collect())
    }

    fn overrule(&mut self, look: Look) -> Option<PipelineEnd> {
        for overruling in self.claims.note(look) {
            let detail = overruling.detail;
            let Some(partition) = overruling.partition else {
                return Some(self.fenced(&detail));
            };
            if let Some(share) = self.shares.get_mut(&partition) {
                share.stop(Stop::Overruled(detail));
            }
        }
        None
    }

    fn fenced(&self, detail: &str) -> PipelineEnd {
        PipelineEnd::Fenced {
            detail: self.claimant.ownership.collision(detail),
        }
    }

    fn begin_drain(&mut self) {
        let deadline = Instant::now() + self.drain_timeout;
        self.drain_deadline = Some(deadline);
        let services = self.services();
        services.board.set_state(RunState::Draining);
        tracing::info!(
            drain_timeout = ?self.drain_timeout,
            "draining: no new documents; those in flight are finished"
        );
        services.complete.begin_drain();
        for share in self.shares.values_mut() {
            share.finish_by(deadline);
        }
    }

    /// Partitions that were to be given up and are not through in time are stopped: the group must not wait for them for ever.
    fn stop_late(&mut self) {
        let now = Instant::now();
        for (partition, share) in &mut self.shares {
            if share.stop_at.is_some_and(|at| at <= now) {
                tracing::warn!(topic = %partition.topic, partition = partition.partition, "not through before pipeline.drain_timeout: what is in flight is given up, its next owner does it again");
                share.stop(Stop::Drop);
            }
        }
    }
}

impl Share {
    fn finish_by(&mut self, deadline: Instant) {
        self.drain.cancel();
        self.stop_at = Some(self.stop_at.map_or(deadline, |at| at.min(deadline)));
    }

    fn stop(&mut self, stop: Stop) {
        self.stop_at = None;
        // A task that has ended meanwhile needs no telling.
        if let Some(Err(unheard)) = self.stop.take().map(|sender| sender.send(stop)) {
            tracing::debug!(?unheard, "the partition ended before it was told to stop");
        }
    }
}

/// The place of a partition that was added to one of our topics; it shares its place in the bound on open documents with another of its
/// topic.
fn place_of_added(
    places: &BTreeMap<TopicPartition, Place>,
    added: &TopicPartition,
) -> Option<Place> {
    let mut places = places.values();
    let sibling = places.find(|place| place.partition.topic == added.topic)?;
    Some(Place {
        partition: added.clone(),
        index: sibling.index,
        topic_id: sibling.topic_id,
        lost: None,
    })
}

/// The partitions as one reads them in a log: `docs/0 docs/3`.
fn list(partitions: &BTreeSet<TopicPartition>) -> String {
    let names: Vec<_> = partitions.iter().map(ToString::to_string).collect();
    names.join(" ")
}

/// Waits for the next change of the assignment; for ever where there is none, or nobody who could change it.
async fn changed(assigned: &mut Option<watch::Receiver<Assigned>>) {
    if let Some(receiver) = assigned
        && receiver.changed().await.is_ok()
    {
        return;
    }
    pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_was_added_takes_after_one_of_its_topic() {
        let place = |topic: &str, index| Place {
            partition: TopicPartition::new(topic, 0),
            index,
            topic_id: Uuid::from_u128(u128::try_from(index).unwrap()),
            lost: None,
        };
        let places = [place("docs", 4), place("more", 7)];
        let places = places.map(|place| (place.partition.clone(), place)).into();
        let added = TopicPartition::new("more", 1);
        let found = place_of_added(&places, &added).unwrap();
        assert_eq!((found.partition, found.index), (added, 7));
        assert_eq!(found.topic_id, Uuid::from_u128(7));
        assert!(place_of_added(&places, &TopicPartition::new("other", 0)).is_none());
    }
}
