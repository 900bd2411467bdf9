//! On whose word this process works on a partition, and what it means when somebody else claims it.

use std::sync::Arc;

use tokio::time::{Instant, sleep};

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
    /// Why nothing may be taken over just now, when that is so: a process that was stopped for a while may have lost its membership, and has
    /// not heard of it yet.
    pub(super) fn doubt(&self) -> Option<&'static str> {
        let Self::Group(member) = self else {
            return None;
        };
        let is_valid = member
            .valid_until()
            .is_some_and(|until| Instant::now() < until);
        (!is_valid).then_some(
            "the membership in the group is in doubt: no heartbeat was answered for kafka.session_timeout",
        )
    }

    /// What happened when another instance has claimed what our settings say is ours, and what to do about it.
    pub(super) fn collision(&self, detail: &str) -> String {
        let advice = match self {
            Self::All => {
                "input.assignment = all is for one instance of a kafka.group_id: stop one of them, or set input.assignment = group for both"
            }
            Self::Static => {
                "the input.static_* settings of both name the partition: correct one of them"
            }
            Self::Group(_) => return detail.to_owned(),
        };
        format!("{detail}. If it replaces this instance nothing is to be done; otherwise {advice}")
    }

    /// Somebody else has claimed a partition. By our settings it is ours alone, so two instances are set to work on it, and this one ends.
    /// In a group the coordinator knows whose it is: the other may be the rightful next owner, or one that has not heard that it is not.
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
            if assigned.session != session || !assigned.partitions.contains(partition) {
                services.holds.forget(&what);
                return PartitionEnd::GivenUp(detail);
            }
            match confirmed {
                Ok(true) => {
                    services.holds.forget(&what);
                    return PartitionEnd::Again(format!(
                        "{detail}, although the group's coordinator has given it to this member"
                    ));
                }
                // Between two generations, or about to hear that the membership is lost.
                Ok(false) => {}
                Err(error) => services.holds.hold(
                    &what,
                    &format!(
                        "{detail}; the group's coordinator cannot be asked whose it is: {}",
                        error_chain(&error)
                    ),
                ),
            }
            sleep(backoff.next_delay()).await;
        }
    }
}
