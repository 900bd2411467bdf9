//! Becoming the owner of an input partition: fence, find the newest commit, claim, and see that the claim holds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::audit::Auditing;
use super::config::OnDataLoss;
use super::ownership::Ownership;
use super::partition::Place;
use super::{Services, reading, writing};
use crate::clock;
use crate::kafka::{KafkaError, PartitionSink, RecordStream, StepError};
use crate::offsets::{
    ClaimError, CommitPosition, CommitRecord, Committer, Flush, FlushError, FlushObserver,
    LIVE_FOR, Loaded, Owner, Resume, Shrink, Verified, group_claim, recover,
};
use crate::retry::Backoff;
use crate::types::{Offset, TopicPartition, error_chain};

pub(super) const RETRY_INITIAL: Duration = Duration::from_millis(200);
pub(super) const RETRY_CAP: Duration = Duration::from_secs(5);
/// Partitions that look for their place in the log and become its writer at the same time. Most of what they ask for they share; what is left
/// is one or two requests each, so that on the 32 connections to a broker eight wait in line for each: far less than `kafka.request_timeout`,
/// which all of ten thousand at once would wait for, again and again.
const LOOKING_MAX: usize = 256;
/// How long a fenced writer looks for the claim of whoever has fenced it. A new owner claims as soon as it has read the commits.
const JUDGE_FOR: Duration = Duration::from_secs(5);
const JUDGE_EVERY: Duration = Duration::from_millis(200);

/// An input partition that is ours.
pub(super) struct Taken {
    /// Has made the claim; its position is where work goes on.
    pub(super) committer: Committer,
    pub(super) stream: Box<dyn RecordStream>,
    /// Where to look for other claims from.
    pub(super) claim: Claim,
}

/// What the watch over claims needs to know about one partition.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) partition: TopicPartition,
    pub(super) owner: Owner,
    pub(super) claimed_at: Option<Offset>,
    pub(super) from: Offset,
    /// Id of the input topic that was taken over.
    pub(super) topic_id: Uuid,
    /// Cancelled when the topic has another id.
    pub(super) recreated: CancellationToken,
    /// Whether the broker refuses whatever a former owner still writes: then nobody has to look for claims.
    pub(super) is_fenced_by_broker: bool,
}

impl Claim {
    /// Looks whether somebody else has claimed it since the last look.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub(super) async fn verify(&self, services: &Services) -> Result<Verified, ClaimError> {
        services
            .store
            .verify(&self.partition, &self.owner, self.claimed_at, self.from)
            .await
    }

    /// Notes where the next look begins.
    pub(super) fn seen(&mut self, verified: Verified) {
        self.claimed_at = verified.claimed_at;
        self.from = verified.next;
    }
}

/// Why a partition cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeOverError {
    /// Somebody else claimed it at the same moment.
    #[error(transparent)]
    Lost(ClaimError),
    /// The claim could not be written for good.
    #[error(transparent)]
    Flush(#[from] FlushError),
}

/// One try's failure: what is worth another try, and what is not.
enum Failure {
    Again(String),
    End(TakeOverError),
}

/// Takes partitions over for this process.
pub(super) struct Claimant {
    pub(super) services: Arc<Services>,
    pub(super) ownership: Ownership,
    /// The claim on the group as a whole, where all of it is to be ours.
    pub(super) group: Option<Claim>,
    /// Turns for the steps of a take-over that only look. Each request in them ends within `kafka.request_timeout`, so a turn always comes.
    turns: Semaphore,
}

impl Claimant {
    /// A claimant; where all partitions are to be ours it claims the group as a whole, which comes before any partition: of several instances
    /// that start together one wins here, and the others end before they have touched a partition. Otherwise each could win some partitions,
    /// and all would end.
    ///
    /// # Cancel safety
    /// Safe in effect: a claim that was written and is not used is overruled by the next one.
    pub(super) async fn new(
        services: Arc<Services>,
        ownership: Ownership,
        partitions: &[(TopicPartition, Uuid)],
    ) -> Result<Self, TakeOverError> {
        let group = match ownership {
            Ownership::All => {
                // Whoever has claimed the group works on each of its partitions, so one of them tells whether it is alive.
                let sample = partitions.first().map(|(partition, _)| partition);
                let claim = || try_claim_group(&services, sample);
                Some(until_done(&services, "kafka", claim).await?)
            }
            Ownership::Static | Ownership::Group(_) => None,
        };
        Ok(Self {
            services,
            ownership,
            group,
            turns: Semaphore::new(LOOKING_MAX),
        })
    }

    /// Takes a partition over; waits for whatever keeps it from that.
    ///
    /// # Cancel safety
    /// As [`new`](Self::new).
    pub(super) async fn take_over(&self, place: &Place) -> Result<Taken, TakeOverError> {
        let what = reading(&place.partition);
        until_done(&self.services, &what, || try_take_over(self, place)).await
    }

    /// Whether the group is still ours.
    async fn verify_group(&self) -> Result<(), Failure> {
        match &self.group {
            Some(group) => group
                .verify(&self.services)
                .await
                .map(drop)
                .map_err(failure),
            None => Ok(()),
        }
    }
}

/// The broker refuses what the claim's owner writes: finds out who has overruled it. `None` when nobody has, as when the broker itself has
/// ended a transaction that was open for too long.
///
/// # Cancel safety
/// Safe: it only reads.
pub(super) async fn judge(services: &Services, claim: &Claim) -> Option<ClaimError> {
    let what = writing(&claim.partition);
    let until = Instant::now() + JUDGE_FOR;
    loop {
        match claim.verify(services).await {
            Err(lost @ (ClaimError::Lost { .. } | ClaimError::Record { .. })) => return Some(lost),
            Ok(_) if Instant::now() >= until => {
                services.holds.forget(&what);
                return None;
            }
            Ok(_) => {}
            // Without the commit topic nothing can be said.
            Err(error) => services.holds.hold(&what, &error_chain(&error)),
        }
        sleep(JUDGE_EVERY).await;
    }
}

/// Tries until it is done or can never be; tells what it waits for, also of a try that takes long.
async fn until_done<T, F: Future<Output = Result<T, Failure>>>(
    services: &Services,
    what: &str,
    attempt: impl Fn() -> F,
) -> Result<T, TakeOverError> {
    let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_CAP);
    loop {
        let (outcome, _told) = services
            .patiently(what, "taking over", Duration::ZERO, attempt())
            .await;
        match outcome {
            Ok(done) => {
                services.holds.release(what);
                return Ok(done);
            }
            Err(Failure::End(error)) => return Err(error),
            Err(Failure::Again(reason)) => {
                services.holds.hold(what, &reason);
                sleep(backoff.next_delay()).await;
            }
        }
    }
}

fn again(error: &dyn std::error::Error) -> Failure {
    Failure::Again(error_chain(error))
}

async fn try_claim_group(
    services: &Arc<Services>,
    sample: Option<&TopicPartition>,
) -> Result<Claim, Failure> {
    let group = group_claim();
    // Before anything is claimed: the other would end over a claim of ours, and nobody would work until its commits are old enough.
    if let Some(sample) = sample {
        let seen = services.store.load(sample).await;
        refuse_other_guarantee(services, &seen.map_err(|error| again(&error))?)?;
    }
    let sink = sink_of(services, &group).await?;
    let loaded = services
        .store
        .load(&group)
        .await
        .map_err(|error| again(&error))?;
    let position = CommitPosition::default();
    let (_, claim) = claim(services, &group, Uuid::nil(), sink, loaded, position).await?;
    tracing::info!(
        owner_epoch = claim.owner.epoch,
        instance = claim.owner.instance,
        "this instance owns the group"
    );
    Ok(claim)
}

async fn try_take_over(claimant: &Claimant, place: &Place) -> Result<Taken, Failure> {
    let services = &claimant.services;
    let partition = &place.partition;
    let load_error = |error: ClaimError| again(&error);
    // Without a turn: one reading serves all who wait for it, so as many as possible shall wait.
    let seen = services.store.load(partition).await.map_err(load_error)?;
    refuse_other_guarantee(services, &seen)?;
    let turn = claimant
        .turns
        .acquire()
        .await
        .map_err(|closed| again(&closed))?;
    let readable = services.source.bounds(partition).await;
    readable.map_err(|error| again(&error))?;
    if let Some(doubt) = claimant.ownership.doubt() {
        return Err(Failure::Again(doubt.to_owned()));
    }
    // Only now, as it may fence: an instance that cannot read must not put down one that can.
    let sink = sink_of(services, partition).await?;
    // What the former owner wrote until it was fenced.
    let loaded = services.store.load(partition).await;
    let loaded = loaded.map_err(load_error)?;
    // One with another guarantee may have woken up meanwhile: it is not fenced.
    refuse_other_guarantee(services, &loaded)?;
    let newest = loaded.newest.as_ref().map(|(_, record)| record);
    let topic_id = topic_id_of(services, place).await?;
    // Only now: until it was fenced the former owner may have committed beyond what was the end of the log before.
    let bounds = services.source.bounds(partition).await;
    let bounds = bounds.map_err(|error| again(&error))?;
    let position = resume_at(services, place, topic_id, newest, bounds)?;
    let stream = services
        .source
        .open(partition, position.next_offset)
        .await
        .map_err(|error| again(&error))?;
    // After the load: whoever owns the group since has claimed it before any partition that the load could show.
    claimant.verify_group().await?;
    // The claim is tried until it is written, which may be long: it must not keep the others from looking.
    drop(turn);
    let next_offset = position.next_offset;
    match claim(services, partition, topic_id, sink, loaded, position).await {
        Ok((committer, claim)) => {
            tracing::info!(%next_offset, owner_epoch = claim.owner.epoch, "partition taken over");
            Ok(Taken {
                committer,
                stream,
                claim,
            })
        }
        // An instance that was overruled may have claimed the partition late. While the group is ours, we claim again, above it.
        Err(Failure::End(TakeOverError::Lost(lost))) if claimant.group.is_some() => {
            claimant.verify_group().await?;
            Err(again(&lost))
        }
        Err(failure) => Err(failure),
    }
}

async fn sink_of(
    services: &Services,
    partition: &TopicPartition,
) -> Result<Box<dyn PartitionSink>, Failure> {
    services
        .sink
        .take_over(partition)
        .await
        .map_err(|error| match error {
            StepError::Fenced => {
                Failure::Again("another instance is taking the partition over too".to_owned())
            }
            error => again(&error),
        })
}

/// Writes a claim one epoch above the newest, and sees that it holds.
async fn claim(
    services: &Arc<Services>,
    partition: &TopicPartition,
    topic_id: Uuid,
    sink: Box<dyn PartitionSink>,
    loaded: Loaded,
    position: CommitPosition,
) -> Result<(Committer, Claim), Failure> {
    let newest = loaded.newest.map(|(_, record)| record);
    let audit_head = newest.as_ref().and_then(|record| record.audit);
    let newest = newest.map_or(0, |record| record.owner_epoch);
    let mut claim = Claim {
        partition: partition.clone(),
        owner: Owner {
            instance: services.instance.clone(),
            epoch: newest.saturating_add(1),
        },
        claimed_at: None,
        from: loaded.end,
        topic_id,
        recreated: CancellationToken::new(),
        is_fenced_by_broker: sink.is_transactional(),
    };
    let mut committer = Committer::new(
        partition.clone(),
        topic_id,
        claim.owner.clone(),
        sink,
        services.store.clone(),
        Box::new(Observer::new(services, partition)),
        shrink(services, partition),
    )
    .with_audit(audit_head, services.audit.as_ref().map(Auditing::writer));
    let claiming = Flush {
        outputs: Vec::new(),
        audit: Vec::new(),
        position,
    };
    match committer.flush(claiming).await {
        Ok(_) => {}
        Err(error @ FlushError::Expired { .. }) => return Err(again(&error)),
        Err(error @ FlushError::Fenced { .. }) => {
            return Err(match judge(services, &claim).await {
                Some(lost) => failure(lost),
                None => again(&error),
            });
        }
        Err(error @ FlushError::Record { .. }) => return Err(Failure::End(error.into())),
    }
    claim.seen(claim.verify(services).await.map_err(failure)?);
    Ok((committer, claim))
}

/// An instance that was overruled ends; whatever else keeps us from the commit topic is tried again.
fn failure(error: ClaimError) -> Failure {
    match error {
        ClaimError::Lost { .. } => Failure::End(TakeOverError::Lost(error)),
        ClaimError::Kafka(_) | ClaimError::Record { .. } => again(&error),
    }
}

/// An instance with another guarantee is not fenced by ours, nor we by its: the two would write side by side. With the same guarantee a
/// claim never waits.
fn refuse_other_guarantee(services: &Services, seen: &Loaded) -> Result<(), Failure> {
    let Some((_, newest)) = &seen.newest else {
        return Ok(());
    };
    if newest.guarantee == services.guarantee || !newest.is_live(clock::now()) {
        return Ok(());
    }
    Err(Failure::Again(format!(
        "instance `{}` works on it with processing.guarantee = {}, or did until less than {LIVE_FOR:?} ago; stop it: an instance with {} may take over only then",
        newest.owner, newest.guarantee, services.guarantee
    )))
}

/// The id of the topic now: while other members of the group have worked on the partition it may have been created again, and they have
/// committed that.
async fn topic_id_of(services: &Services, place: &Place) -> Result<Uuid, Failure> {
    let found = services.source.topic_id(&place.partition.topic).await;
    let found = found.map_err(|error| again(&error))?;
    Ok(found.unwrap_or(place.topic_id))
}

/// Where work goes on; `bounds` are the log start offset and the high watermark. Lost input holds the partition unless the policy says
/// otherwise.
fn resume_at(
    services: &Services,
    place: &Place,
    topic_id: Uuid,
    newest: Option<&CommitRecord>,
    bounds: (Offset, Offset),
) -> Result<CommitPosition, Failure> {
    let (log_start, high_watermark) = bounds;
    // Where the log was seen to end before the position it has ended, however far it has grown since.
    // Whoever else has worked on the partition since has settled that.
    let is_ours = newest.is_some_and(|record| record.owner == services.instance);
    let lost = place.lost.as_ref().filter(|_| is_ours);
    let seen_end = lost.and_then(|lost| lost.log_end);
    let log_end = seen_end.map_or(high_watermark, |end| end.min(high_watermark));
    let start = services.input.start;
    let loss = match recover(newest, topic_id, log_start, log_end, start) {
        Resume::From(position) => return Ok(position),
        Resume::DataLoss(loss) => loss,
    };
    let position = loss.resume_from();
    let next_offset = position.next_offset;
    if services.input.on_data_loss == OnDataLoss::Hold {
        return Err(Failure::Again(format!(
            "{loss}. Nothing is read until you decide: set input.on_data_loss = \"resume\" to go on at offset {next_offset}, or say where with `kafka-llm-processor offsets reset`"
        )));
    }
    services.metrics.input_lost();
    tracing::error!(%next_offset, "{loss}; going on as input.on_data_loss = resume says");
    Ok(position)
}

fn shrink(services: &Arc<Services>, partition: &TopicPartition) -> Box<Shrink> {
    let services = Arc::clone(services);
    let partition = partition.clone();
    Box::new(move |output| services.destinations.shrink(&partition, output))
}

/// Shows a flush's trouble to the operator.
struct Observer {
    services: Arc<Services>,
    partition: TopicPartition,
    /// The record that cannot be made smaller and was told of: it is tried again and again until its topic takes it.
    told_too_large: Mutex<Option<Offset>>,
}

impl Observer {
    fn new(services: &Arc<Services>, partition: &TopicPartition) -> Self {
        Self {
            services: Arc::clone(services),
            partition: partition.clone(),
            told_too_large: Mutex::new(None),
        }
    }
}

impl FlushObserver for Observer {
    fn step_took(&self, step: &'static str, time: Duration) {
        self.services.metrics.step_took(step, time);
    }

    fn step_failed(&self, step: &'static str, error: &StepError) {
        self.services.metrics.step_failed(step);
        let reason = error
            .kafka()
            .map_or_else(|| error_chain(error), |error| error_chain(error));
        let reason = match error.kafka() {
            Some(KafkaError::UnknownTopic { .. }) => format!(
                "{reason}: it was deleted while we run, so it is not created again, whatever kafka.create_topics says; create it, and the partition goes on without a loss"
            ),
            _ => reason,
        };
        self.services.holds.hold(&writing(&self.partition), &reason);
    }

    fn too_large(&self, source: Offset, replaced: bool) {
        let position = format!("{}@{source}", self.partition);
        if replaced {
            tracing::warn!(
                position,
                "the record is larger than its topic's max.message.bytes: a dead letter that points to the input is written instead"
            );
            return;
        }
        let mut told = self
            .told_too_large
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if told.replace(source) != Some(source) {
            tracing::error!(
                position,
                "a record that cannot be made smaller, such as a dead letter, is larger than its topic's max.message.bytes: raise it, the partition waits"
            );
        }
    }

    fn recovered(&self) {
        self.services.holds.release(&writing(&self.partition));
    }
}
