//! The mirror: the commit offsets under the group's name in Kafka itself, for everybody's lag tools.
//!
//! The compacted topic is the truth; this is a copy outside any transaction. A refusal is a warning and never stops the work.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::kafka::wire::{Cluster, MemberIdentity};
use crate::types::{Offset, TopicPartition};

/// The steady clock: also when nothing moved, as tools take silence for a dead consumer.
const EVERY: Duration = Duration::from_secs(5);

/// Commits `offsets()` for the group, as the member that `identity()` names at that moment, until `shutdown` is cancelled, and once more then.
///
/// # Cancel safety
/// Safe: the next copy replaces the last.
pub async fn mirror(
    cluster: Cluster,
    group: String,
    identity: impl Fn() -> Option<MemberIdentity> + Send,
    offsets: impl Fn() -> Vec<(TopicPartition, Offset)> + Send,
    shutdown: CancellationToken,
) {
    let mut clock = interval(EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned = false;
    loop {
        let last = tokio::select! {
            () = shutdown.cancelled() => true,
            _ = clock.tick() => false,
        };
        let identity = identity();
        let offsets = offsets();
        let committed = cluster.commit_group_offsets(&group, identity.as_ref(), &offsets);
        let trouble = match committed.await {
            // Between two generations of the group it takes no offsets from its members; the next copy is taken.
            Ok(refused) => refused
                .iter()
                .find(|refused| identity.is_none() || !refused.is_between_generations())
                .map(|first| format!("{} ({} refused in all)", first.error, refused.len())),
            Err(error) => Some(error.to_string()),
        };
        match trouble {
            // Once until it works again: the partitions tell for themselves when Kafka is away.
            Some(reason) if !warned => {
                warned = true;
                tracing::warn!(
                    group,
                    reason,
                    "the group's offsets cannot be mirrored: lag tools show old values, the work goes on; a consumer that joined this group would be a reason"
                );
            }
            Some(_) => {}
            None => warned = false,
        }
        if last {
            return;
        }
    }
}
