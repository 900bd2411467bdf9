//! The life of one partition in this process: it is taken over, worked on, and ends in one of a few ways.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::intake::{InputLost, Intake, IntakeEnd};
use super::take_over::{Claim, Claimant, TakeOverError, Taken, judge};
use super::worker::{Worker, WorkerError};
use crate::offsets::FlushError;
use crate::types::{TopicPartition, error_chain};

/// How a partition ended.
#[derive(Debug)]
pub(super) enum PartitionEnd {
    /// Everything that was in flight is finished and committed.
    Drained,
    /// Stopped on the spot, as it was told to; what was not committed is done again by whoever owns it next.
    Dropped,
    /// It is still ours, and has to be taken over anew.
    Again(String),
    /// The outside took input away, and the settings say to go on: it has to be taken over anew, which finds out where.
    InputLost(InputLost),
    /// The group has given it to another member, which has claimed it.
    GivenUp(String),
    /// Another instance owns it, against our settings.
    Fenced(String),
    /// An invariant is broken.
    Broken(String),
}

/// What ends the work on a partition at once.
#[derive(Debug)]
pub(super) enum Stop {
    /// It is not ours any more, or its time to finish is over.
    Drop,
    /// Somebody else has claimed it.
    Overruled(String),
}

/// A partition and what is known of it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) partition: TopicPartition,
    /// Its place among those that share the bound on open documents.
    pub(super) index: usize,
    pub(super) topic_id: Uuid,
    /// Input that was lost since it was taken over last.
    pub(super) lost: Option<InputLost>,
}

/// Takes the partition over and works on it until `drain` is cancelled and everything in flight is through, or until it is stopped. Tells
/// its claim once it has one.
pub(super) async fn work_on(
    claimant: Arc<Claimant>,
    place: Place,
    claims: mpsc::Sender<Claim>,
    drain: CancellationToken,
    stop: oneshot::Receiver<Stop>,
) -> PartitionEnd {
    let detail = tokio::select! {
        biased;
        stop = stop => match stop {
            Ok(Stop::Overruled(detail)) => detail,
            // A supervisor that is gone has nobody to work for.
            Ok(Stop::Drop) | Err(_) => return PartitionEnd::Dropped,
        },
        end = until_end(&claimant, &place, claims, drain) => match end {
            Ok(end) => return end,
            Err(Overruled(detail)) => detail,
        },
    };
    let Claimant {
        ownership,
        services,
        ..
    } = &*claimant;
    ownership
        .overruled(services, &place.partition, detail)
        .await
}

/// Somebody else has claimed the partition.
struct Overruled(String);

async fn until_end(
    claimant: &Claimant,
    place: &Place,
    claims: mpsc::Sender<Claim>,
    drain: CancellationToken,
) -> Result<PartitionEnd, Overruled> {
    let taken = tokio::select! {
        biased;
        () = drain.cancelled() => return Ok(PartitionEnd::Drained),
        taken = claimant.take_over(place) => taken,
    };
    let Taken {
        committer,
        stream,
        claim,
    } = match taken {
        Ok(taken) => taken,
        Err(error @ TakeOverError::Lost(_)) => return Err(Overruled(error_chain(&error))),
        Err(error @ TakeOverError::Flush(_)) => {
            return Ok(PartitionEnd::Broken(error_chain(&error)));
        }
    };
    // What the former owner has committed last may not be in Kafka's group yet, and there may be nothing to add to it.
    if let Some(committed) = committer.committed() {
        let offsets = &claimant.services.commit_offsets;
        offsets.set(&place.partition, committed.next_offset);
    }
    // The supervisor takes claims for as long as it lives.
    let Ok(()) = claims.send(claim.clone()).await else {
        return Ok(PartitionEnd::Dropped);
    };
    let (to_worker, from_intake) = mpsc::channel(1);
    let services = Arc::clone(&claimant.services);
    let intake = Intake {
        partition: place.partition.clone(),
        index: place.index,
        services: Arc::clone(&services),
        stream,
        topic_id: claim.topic_id,
        to_worker,
        recreated: claim.recreated.clone(),
    };
    let worker = Worker::new(services, committer, from_intake, drain.clone(), place.index);
    // The intake ends when the worker is gone, as its channel closes; the worker when the intake is, as soon as it is through.
    let (worked, taken_in) = tokio::join!(worker.run(), intake.run(drain));
    match worked {
        Ok(()) => Ok(match taken_in {
            IntakeEnd::Stopped => PartitionEnd::Drained,
            IntakeEnd::InputLost(lost) => PartitionEnd::InputLost(lost),
        }),
        Err(WorkerError::Flush(FlushError::Fenced { .. })) => match judge(&claimant.services, &claim).await {
            Some(lost) => Err(Overruled(error_chain(&lost))),
            None => Ok(PartitionEnd::Again(
                "the broker has fenced this writer and nobody has claimed the partition: a transaction was open for longer than its timeout".to_owned(),
            )),
        },
        Err(error @ WorkerError::Flush(FlushError::Expired { .. })) => {
            Ok(PartitionEnd::Again(error_chain(&error)))
        }
        Err(error) => Ok(PartitionEnd::Broken(error_chain(&error))),
    }
}
