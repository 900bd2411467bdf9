//! Becoming the owner of an input partition: fence, find the newest commit, claim, and see that the claim holds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::config::OnDataLoss;
use super::{Services, reading, writing};
use crate::kafka::{KafkaError, PartitionSink, RecordStream, StepError};
use crate::offsets::{
    ClaimError, CommitPosition, CommitRecord, Committer, Flush, FlushError, FlushObserver, Loaded,
    Owner, Resume, Shrink, group_claim, recover,
};
use crate::retry::Backoff;
use crate::types::{Offset, TopicPartition, error_chain};

const RETRY_INITIAL: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(5);
/// Partitions that look for their newest commit and their place in the log at the same time: all of a thousand at once would wait for each
/// other's connections until `kafka.request_timeout` fails them all, again and again. As many as the wire side has connections to a broker.
const LOOKING_MAX: usize = 32;

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
    /// Cancelled when we gave the partition up to take it over anew: the claim above this one is ours.
    pub(super) released: CancellationToken,
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

/// A group that is ours: from it partitions are taken over.
pub(super) struct Group {
    pub(super) services: Arc<Services>,
    pub(super) claim: Claim,
    /// Turns for the steps of a take-over that only look. Each request in them ends within `kafka.request_timeout`, so a turn always comes.
    turns: Semaphore,
}

impl Group {
    /// Claims the group as a whole, which comes before any partition: of several instances that start together one wins here, and the
    /// others end before they have touched a partition. Otherwise each could win some partitions, and all would end.
    ///
    /// # Cancel safety
    /// Safe in effect: a claim that was written and is not used is overruled by the next one.
    pub(super) async fn claim(services: Arc<Services>) -> Result<Self, TakeOverError> {
        let claim = until_done(&services, "kafka", || try_claim_group(&services)).await?;
        Ok(Self {
            services,
            claim,
            turns: Semaphore::new(LOOKING_MAX),
        })
    }

    /// Takes a partition over; waits for whatever keeps it from that. `log_end` is where the log was seen to end before the position.
    ///
    /// # Cancel safety
    /// As [`claim`](Self::claim).
    pub(super) async fn take_over(
        &self,
        partition: &TopicPartition,
        topic_id: Uuid,
        log_end: Option<Offset>,
    ) -> Result<Taken, TakeOverError> {
        let what = reading(partition);
        until_done(&self.services, &what, || {
            try_take_over(self, partition, topic_id, log_end)
        })
        .await
    }

    /// Whether the group is still ours.
    async fn verify(&self) -> Result<(), Failure> {
        let Claim {
            partition,
            owner,
            claimed_at,
            from,
            ..
        } = &self.claim;
        let verified = self
            .services
            .store
            .verify(partition, owner, *claimed_at, *from)
            .await;
        verified.map(drop).map_err(failure)
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

async fn try_claim_group(services: &Arc<Services>) -> Result<Claim, Failure> {
    let group = group_claim();
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

async fn try_take_over(
    group: &Group,
    partition: &TopicPartition,
    topic_id: Uuid,
    log_end: Option<Offset>,
) -> Result<Taken, Failure> {
    let services = &group.services;
    let turn = group
        .turns
        .acquire()
        .await
        .map_err(|closed| again(&closed))?;
    let sink = sink_of(services, partition).await?;
    let loaded = services
        .store
        .load(partition)
        .await
        .map_err(|error| again(&error))?;
    let newest = loaded.newest.as_ref().map(|(_, record)| record);
    let position = resume_at(services, partition, topic_id, newest, log_end).await?;
    // Opened before the claim: an instance that cannot read must not put down one that can.
    let stream = services
        .source
        .open(partition, position.next_offset)
        .await
        .map_err(|error| again(&error))?;
    // After the load: whoever owns the group since has claimed it before any partition that the load could show.
    group.verify().await?;
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
        Err(Failure::End(TakeOverError::Lost(lost))) => {
            group.verify().await?;
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
    let newest = loaded.newest.map_or(0, |(_, record)| record.owner_epoch);
    let owner = Owner {
        instance: services.instance.clone(),
        epoch: newest.saturating_add(1),
    };
    let observer = Observer::new(services, partition);
    let mut committer = Committer::new(
        partition.clone(),
        topic_id,
        owner.clone(),
        sink,
        services.store.clone(),
        Box::new(observer),
        shrink(services, partition),
    );
    committer
        .flush(Flush {
            outputs: Vec::new(),
            position,
        })
        .await
        .map_err(|error| Failure::End(error.into()))?;
    let verified = services
        .store
        .verify(partition, &owner, None, loaded.end)
        .await;
    let (claimed_at, from) = verified.map_err(failure)?;
    let partition = partition.clone();
    let recreated = CancellationToken::new();
    let released = CancellationToken::new();
    Ok((
        committer,
        Claim {
            partition,
            owner,
            claimed_at,
            from,
            topic_id,
            recreated,
            released,
        },
    ))
}

/// An instance that was overruled ends; whatever else keeps us from the commit topic is tried again.
fn failure(error: ClaimError) -> Failure {
    match error {
        ClaimError::Lost { .. } => Failure::End(TakeOverError::Lost(error)),
        ClaimError::Kafka(_) | ClaimError::Record { .. } => again(&error),
    }
}

/// Where work goes on. Lost input holds the partition unless the policy says otherwise.
async fn resume_at(
    services: &Services,
    partition: &TopicPartition,
    topic_id: Uuid,
    newest: Option<&CommitRecord>,
    log_end: Option<Offset>,
) -> Result<CommitPosition, Failure> {
    let (log_start, high_watermark) = services
        .source
        .bounds(partition)
        .await
        .map_err(|error| again(&error))?;
    let loss = match recover(
        newest,
        topic_id,
        log_start,
        log_end.map_or(high_watermark, |end| end.min(high_watermark)),
        services.input.start,
    ) {
        Resume::From(position) => return Ok(position),
        Resume::DataLoss(loss) => loss,
    };
    let next_offset = loss.resume_at();
    if services.input.on_data_loss == OnDataLoss::Hold {
        return Err(Failure::Again(format!(
            "{loss}. Nothing is read until you decide: set input.on_data_loss = \"resume\" to go on at offset {next_offset}, or another kafka.group_id to begin anew"
        )));
    }
    services.metrics.input_lost();
    tracing::error!(%next_offset, "{loss}; going on as input.on_data_loss = resume says");
    Ok(CommitPosition {
        next_offset,
        done: Vec::new(),
    })
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
                "even the dead letter is larger than the topic's max.message.bytes: raise it, the partition waits"
            );
        }
    }

    fn recovered(&self) {
        self.services.holds.release(&writing(&self.partition));
    }
}
