//! All partitions of a process: starts their workers, watches over their ownership, ends them together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use super::Services;
use super::intake::Intake;
use super::take_over::{Claim, Group, TakeOverError, Taken};
use super::worker::{Worker, WorkerError};
use crate::offsets::{ClaimError, FlushError};
use crate::telemetry::Latch;
use crate::telemetry::status::RunState;
use crate::types::{TopicPartition, error_chain};

/// How often the commit topic is looked at for claims of others.
const WATCH: Duration = Duration::from_secs(5);

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
    /// Another instance owns a partition now.
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

/// Why one partition ended.
enum PartitionEnd {
    Drained,
    Fenced(String),
    Broken(String),
}

/// Works on all partitions, given with the ids of their topics, until `drain` is cancelled and everything in flight is through, or until it
/// cannot go on. `owned` is released once every partition is taken over.
///
/// # Cancel safety
/// Dropping it drops all work; what was not committed is done again.
pub async fn run(
    services: Arc<Services>,
    partitions: Vec<(TopicPartition, Uuid)>,
    owned: Latch,
    drain: CancellationToken,
    drain_timeout: Duration,
) -> PipelineEnd {
    let group = tokio::select! {
        biased;
        () = drain.cancelled() => return PipelineEnd::Drained,
        group = Group::claim(Arc::clone(&services)) => match group {
            Ok(group) => Arc::new(group),
            Err(error) => return refused(&error).into(),
        },
    };
    let count = partitions.len();
    let (claims, taken) = mpsc::channel(count.max(1));
    let mut running = JoinSet::new();
    for (index, (partition, topic_id)) in partitions.into_iter().enumerate() {
        let span = tracing::info_span!("partition", %partition);
        let work = work_on(
            Arc::clone(&group),
            index,
            partition,
            topic_id,
            claims.clone(),
            drain.clone(),
        );
        running.spawn(work.instrument(span));
    }
    drop(claims);
    let mut watch = JoinSet::new();
    watch.spawn(watch_claims(
        Arc::clone(&services),
        group.claim.clone(),
        taken,
        count,
        owned,
    ));

    let ended = tokio::select! {
        biased;
        end = first_bad_end(&mut running) => end,
        Some(lost) = watch.join_next() => match lost {
            Ok(detail) => Some(PipelineEnd::Fenced { detail }),
            Err(error) => Some(PipelineEnd::Broken { detail: format!("the watch over claims ended: {error}") }),
        },
        () = drain.cancelled() => None,
    };
    if let Some(end) = ended {
        return end;
    }
    services.board.set_state(RunState::Draining);
    tracing::info!(
        ?drain_timeout,
        "draining: no new documents; those in flight are finished"
    );
    services.complete.begin_drain();
    match timeout(drain_timeout, first_bad_end(&mut running)).await {
        Ok(end) => end.unwrap_or(PipelineEnd::Drained),
        Err(_elapsed) => PipelineEnd::DeadlinePassed {
            partitions: running.len(),
        },
    }
}

impl From<PartitionEnd> for PipelineEnd {
    fn from(end: PartitionEnd) -> Self {
        match end {
            PartitionEnd::Drained => Self::Drained,
            PartitionEnd::Fenced(detail) => Self::Fenced { detail },
            PartitionEnd::Broken(detail) => Self::Broken { detail },
        }
    }
}

/// Waits until every partition is drained (`None`) or one has ended otherwise.
async fn first_bad_end(running: &mut JoinSet<PartitionEnd>) -> Option<PipelineEnd> {
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(PartitionEnd::Drained) => {}
            Ok(end) => return Some(end.into()),
            Err(error) => {
                return Some(PipelineEnd::Broken {
                    detail: format!("the task of a partition ended: {error}"),
                });
            }
        }
    }
    None
}

async fn work_on(
    group: Arc<Group>,
    index: usize,
    partition: TopicPartition,
    topic_id: Uuid,
    claims: mpsc::Sender<Claim>,
    drain: CancellationToken,
) -> PartitionEnd {
    let taken = tokio::select! {
        biased;
        () = drain.cancelled() => return PartitionEnd::Drained,
        taken = group.take_over(&partition, topic_id) => taken,
    };
    let Taken {
        committer,
        stream,
        claim,
    } = match taken {
        Ok(taken) => taken,
        Err(error) => return refused(&error),
    };
    let services = Arc::clone(&group.services);
    let recreated = claim.recreated.clone();
    // The channel holds one claim per partition; without a watch there is nobody to tell.
    let Ok(()) = claims.send(claim).await else {
        return PartitionEnd::Drained;
    };
    drop(claims);
    let (to_worker, from_intake) = mpsc::channel(1);
    let intake = Intake {
        partition,
        index,
        services: Arc::clone(&services),
        stream,
        to_worker,
        recreated,
    };
    let worker = Worker::new(services, committer, from_intake, drain.clone());
    // The intake ends when the worker is gone, as its channel closes.
    let (worked, ()) = tokio::join!(worker.run(), intake.run(drain));
    match worked {
        Ok(()) => PartitionEnd::Drained,
        Err(error @ WorkerError::Flush(FlushError::Fenced { .. })) => {
            PartitionEnd::Fenced(error_chain(&error))
        }
        Err(error) => PartitionEnd::Broken(error_chain(&error)),
    }
}

/// Why nothing can be taken over.
fn refused(error: &TakeOverError) -> PartitionEnd {
    match error {
        TakeOverError::Flush(FlushError::Record { .. } | FlushError::Expired { .. }) => {
            PartitionEnd::Broken(error_chain(error))
        }
        TakeOverError::Lost(_) | TakeOverError::Flush(FlushError::Fenced { .. }) => {
            PartitionEnd::Fenced(error_chain(error))
        }
    }
}

/// Gathers the claims as partitions are taken over, releases `owned` when all are, and from then on looks for claims of others. Ends when
/// one of ours is overruled.
async fn watch_claims(
    services: Arc<Services>,
    group: Claim,
    mut taken: mpsc::Receiver<Claim>,
    count: usize,
    owned: Latch,
) -> String {
    let mut owned = Some(owned);
    let mut group = group;
    let mut claims: Vec<Claim> = Vec::with_capacity(count);
    let mut look = interval(WATCH);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            Some(claim) = taken.recv(), if claims.len() < count => {
                claims.push(claim);
                if claims.len() == count && let Some(owned) = owned.take() {
                    owned.release();
                    services.board.set_state(RunState::Running);
                    tracing::info!(partitions = count, "all partitions are taken over: documents flow");
                }
            }
            _ = look.tick() => {
                for claim in std::iter::once(&mut group).chain(&mut claims) {
                    match verify(&services, claim).await {
                        Ok(()) => {}
                        // A record that we cannot read was written by a newer program, which has taken over.
                        Err(error @ (ClaimError::Lost { .. } | ClaimError::Record { .. })) => return error_chain(&error),
                        // Commits that fail hold the partition and say so; that nobody can look for claims now is no news.
                        Err(error) => tracing::debug!(partition = %claim.partition, error = error_chain(&error), "claims cannot be looked at"),
                    }
                }
                watch_topics(&services, &claims).await;
            }
        }
    }
}

/// Looks whether a topic was deleted and created again. Fetches name the topic only: once the new log reaches beyond where the old one was
/// read to, they would go on there, and pass over what lies below.
async fn watch_topics(services: &Services, claims: &[Claim]) {
    let mut found: BTreeMap<&str, Option<Uuid>> = BTreeMap::new();
    for claim in claims {
        let topic = &*claim.partition.topic;
        if !found.contains_key(topic) {
            let id = match services.source.topic_id(topic).await {
                Ok(id) => id,
                Err(error) => {
                    tracing::debug!(topic, %error, "the topic's id cannot be looked at");
                    None
                }
            };
            found.insert(topic, id);
        }
        // The nil id is that of a broker before Kafka 2.8, which knows none.
        let id = found.get(topic).copied().flatten();
        if id.is_some_and(|id| id != claim.topic_id && !id.is_nil() && !claim.topic_id.is_nil()) {
            claim.recreated.cancel();
        }
    }
}

async fn verify(services: &Services, claim: &mut Claim) -> Result<(), ClaimError> {
    let (claimed_at, from) = services
        .store
        .verify(&claim.partition, &claim.owner, claim.claimed_at, claim.from)
        .await?;
    claim.claimed_at = claimed_at;
    claim.from = from;
    Ok(())
}
