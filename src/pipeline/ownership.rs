//! On whose word this process works on a partition, and what it means when somebody else claims it.

use std::sync::Arc;

use tokio::time::sleep;

use super::partition::PartitionEnd;
use super::{Services, writing};
use crate::kafka::Membership;
use crate::retry::Backoff;
use crate::types::{TopicPartition, error_chain};

use super::take_over::{RETRY_CAP, RETRY_INITIAL};

/// Who decides which partitions are ours.
#[derive(Debug, Clone)]
pub enum Ownership {
    /// `input.assignment = all`: all of them, and the group as a whole is claimed first.
    All,
    /// `input.assignment = static`: those that the settings name.
    Static,
    /// `input.assignment = group`: Kafka's group coordinator.
    Group(Arc<dyn Membership>),
}

impl Ownership {
    /// Somebody else has claimed a partition. By our settings it is ours alone, so two instances are set to work on it, and this one ends.
    /// In a group it may be the rightful next owner: then we are no longer the member that the partition was given to.
    pub(super) async fn overruled(
        &self,
        services: &Services,
        partition: &TopicPartition,
        detail: String,
    ) -> PartitionEnd {
        let Self::Group(member) = self else {
            return PartitionEnd::Fenced(detail);
        };
        let session = member.assigned().borrow().session;
        let what = writing(partition);
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_CAP);
        loop {
            let confirmed = member.confirm().await;
            let assigned = member.assigned().borrow().clone();
            let is_ours = assigned.session == session && assigned.partitions.contains(partition);
            match confirmed {
                Ok(true) if is_ours => {
                    return PartitionEnd::Fenced(format!(
                        "{detail}, although the group's coordinator has given the partition to this member: an instance with another input.assignment uses the same kafka.group_id"
                    ));
                }
                Ok(_) => {
                    services.holds.forget(&what);
                    return PartitionEnd::GivenUp { session, detail };
                }
                Err(error) => services.holds.hold(
                    &what,
                    &format!("{detail}; the group's coordinator cannot be asked whether the partition is still ours: {}", error_chain(&error)),
                ),
            }
            sleep(backoff.next_delay()).await;
        }
    }
}
