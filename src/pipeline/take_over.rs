//! Becoming the owner of an input partition: fence, find the newest commit, claim, and see that the claim holds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::config::OnDataLoss;
use super::{Services, error_chain, reading, writing};
use crate::kafka::{RecordStream, StepError};
use crate::offsets::{
    ClaimError, CommitPosition, CommitRecord, Committer, Flush, FlushError, FlushObserver, Owner,
    Resume, Shrink, recover,
};
use crate::retry::Backoff;
use crate::types::{Offset, TopicPartition};

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

/// Takes the partition over; waits for whatever keeps it from that.
///
/// # Cancel safety
/// Safe in effect: a claim that was written and is not used is overruled by the next one.
pub(super) async fn take_over(
    services: &Arc<Services>,
    turns: &Semaphore,
    partition: &TopicPartition,
    topic_id: Uuid,
) -> Result<Taken, TakeOverError> {
    let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_CAP);
    loop {
        match try_take_over(services, turns, partition, topic_id).await {
            Ok(taken) => {
                services.holds.release(&reading(partition));
                return Ok(taken);
            }
            Err(Failure::End(error)) => return Err(error),
            Err(Failure::Again(reason)) => {
                services.holds.hold(&reading(partition), &reason);
                sleep(backoff.next_delay()).await;
            }
        }
    }
}

fn again(error: &dyn std::error::Error) -> Failure {
    Failure::Again(error_chain(error))
}

/// Turns for the steps of a take-over that only look. Each request in them ends within `kafka.request_timeout`, so a turn always comes.
pub(super) fn turns() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(LOOKING_MAX))
}

async fn try_take_over(
    services: &Arc<Services>,
    turns: &Semaphore,
    partition: &TopicPartition,
    topic_id: Uuid,
) -> Result<Taken, Failure> {
    let turn = turns.acquire().await.map_err(|closed| again(&closed))?;
    let sink = match services.sink.take_over(partition).await {
        Ok(sink) => sink,
        Err(StepError::Fenced) => {
            let reason = "another instance is taking the partition over too";
            return Err(Failure::Again(reason.to_owned()));
        }
        Err(error) => return Err(again(&error)),
    };
    let loaded = services
        .store
        .load(partition)
        .await
        .map_err(|error| again(&error))?;
    let newest = loaded.newest.map(|(_, record)| record);
    let position = resume_at(services, partition, topic_id, newest.as_ref()).await?;
    let owner = Owner {
        instance: services.instance.clone(),
        epoch: newest
            .map_or(0, |record| record.owner_epoch)
            .saturating_add(1),
    };
    // Opened before the claim: an instance that cannot read must not put down one that can.
    let stream = services
        .source
        .open(partition, position.next_offset)
        .await
        .map_err(|error| again(&error))?;
    let mut committer = Committer::new(
        partition.clone(),
        topic_id,
        owner.clone(),
        sink,
        services.store.clone(),
        Box::new(Observer {
            services: Arc::clone(services),
            partition: partition.clone(),
        }),
        shrink(services, partition),
    );
    // The claim is tried until it is written, which may be long: it must not keep the others from looking.
    drop(turn);
    tracing::info!(next_offset = %position.next_offset, owner_epoch = owner.epoch, "taking the partition over");
    let claim = Flush {
        outputs: Vec::new(),
        position,
    };
    committer
        .flush(claim)
        .await
        .map_err(|error| Failure::End(error.into()))?;
    match services
        .store
        .verify(partition, &owner, None, loaded.end)
        .await
    {
        Ok((claimed_at, from)) => {
            let claim = Claim {
                partition: partition.clone(),
                owner,
                claimed_at,
                from,
                topic_id,
                recreated: CancellationToken::new(),
            };
            Ok(Taken {
                committer,
                stream,
                claim,
            })
        }
        Err(error @ ClaimError::Lost { .. }) => Err(Failure::End(TakeOverError::Lost(error))),
        Err(error) => Err(again(&error)),
    }
}

/// Where work goes on. Lost input holds the partition unless the policy says otherwise.
async fn resume_at(
    services: &Services,
    partition: &TopicPartition,
    topic_id: Uuid,
    newest: Option<&CommitRecord>,
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
        high_watermark,
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
}

impl FlushObserver for Observer {
    fn step_failed(&self, step: &'static str, error: &StepError) {
        self.services.metrics.step_failed(step);
        let reason = error
            .kafka()
            .map_or_else(|| error_chain(error), |error| error_chain(error));
        self.services
            .holds
            .hold(&writing(&self.partition), &format!("{step}: {reason}"));
    }

    fn too_large(&self, source: Offset, replaced: bool) {
        let position = format!("{}@{source}", self.partition);
        if replaced {
            tracing::warn!(
                position,
                "the record is larger than its topic's max.message.bytes: a dead letter that points to the input is written instead"
            );
        } else {
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
