//! What clients know of a partition's leader after it has changed. There is one broker, so it leads before and after; what a change does to
//! clients is that those who have not asked for metadata since are told `NOT_LEADER_OR_FOLLOWER`.

use std::collections::BTreeSet;

use kafka_protocol::error::ResponseError;

/// Clients that are told apart; with more, everybody counts as informed.
const CLIENTS_MAX: usize = 1024;

/// Who knows of the last change of the leader.
#[derive(Debug, Default)]
pub(super) struct Election {
    /// Clients, by what they call themselves, that have asked for metadata since; `None` when there is nothing to know.
    informed: Option<BTreeSet<String>>,
}

impl Election {
    /// A new leader, which nobody knows of.
    pub(super) fn begin(&mut self) {
        self.informed = Some(BTreeSet::new());
    }

    /// A client has asked for metadata.
    pub(super) fn inform(&mut self, client: Option<&str>) {
        if let Some(informed) = &mut self.informed {
            informed.insert(client.unwrap_or_default().to_owned());
            if informed.len() > CLIENTS_MAX {
                self.informed = None;
            }
        }
    }

    /// Whether the client would come to the leader.
    pub(super) fn check(&self, client: Option<&str>) -> Result<(), ResponseError> {
        match &self.informed {
            Some(informed) if !informed.contains(client.unwrap_or_default()) => {
                Err(ResponseError::NotLeaderOrFollower)
            }
            _ => Ok(()),
        }
    }
}
