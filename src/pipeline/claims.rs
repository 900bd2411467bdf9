//! The watch over claims: whether somebody else has claimed what is ours, and whether an input topic was replaced.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{BoxFuture, join, join_all};
use uuid::Uuid;

use super::Services;
use super::take_over::Claim;
use crate::offsets::{ClaimError, Verified, is_same_topic};
use crate::types::{TopicPartition, error_chain};

/// The claims of this process, and the look at the commit topic that is on its way.
pub(super) struct ClaimWatch {
    services: Arc<Services>,
    /// The claim on the group as a whole, where there is one.
    group: Option<Claim>,
    partitions: BTreeMap<TopicPartition, Claim>,
}

/// What one look at the commit topic and the topics' ids has found.
pub(super) struct Look {
    seen: Vec<(Claim, Result<Verified, ClaimError>)>,
    topic_ids: BTreeMap<Arc<str>, Uuid>,
}

/// Somebody else has claimed what is ours.
#[derive(Debug)]
pub(super) struct Overruling {
    /// Which partition; `None` is the group as a whole.
    pub(super) partition: Option<TopicPartition>,
    pub(super) detail: String,
}

impl ClaimWatch {
    pub(super) fn new(services: Arc<Services>, group: Option<Claim>) -> Self {
        Self {
            services,
            group,
            partitions: BTreeMap::new(),
        }
    }

    pub(super) fn insert(&mut self, claim: Claim) {
        self.partitions.insert(claim.partition.clone(), claim);
    }

    pub(super) fn remove(&mut self, partition: &TopicPartition) {
        self.partitions.remove(partition);
    }

    pub(super) fn contains(&self, partition: &TopicPartition) -> bool {
        self.partitions.contains_key(partition)
    }

    /// Looks for claims of others since the last look. A partition whose writer the broker fences needs none.
    pub(super) fn look(&self) -> BoxFuture<'static, Look> {
        let services = Arc::clone(&self.services);
        let is_looked_at = |claim: &&Claim| !claim.is_fenced_by_broker;
        let claims: Vec<_> = self
            .group
            .iter()
            .chain(self.partitions.values().filter(is_looked_at))
            .cloned()
            .collect();
        let mut topics: Vec<_> = self
            .partitions
            .keys()
            .map(|partition| Arc::clone(&partition.topic))
            .collect();
        topics.dedup();
        Box::pin(async move {
            // At the same time: claims whose commits lie in one commit partition share one reading of it.
            let seen = claims.into_iter().map(async |claim| {
                let verified = claim.verify(&services).await;
                (claim, verified)
            });
            let (seen, topic_ids) = join(join_all(seen), topic_ids(&services, topics)).await;
            Look { seen, topic_ids }
        })
    }

    /// Notes what a look has found; answers what is not ours any more.
    pub(super) fn note(&mut self, look: Look) -> Vec<Overruling> {
        let mut overrulings = Vec::new();
        for (seen, verified) in look.seen {
            let is_group = self.group.as_ref().is_some_and(|group| {
                group.owner == seen.owner && group.partition == seen.partition
            });
            let current = if is_group {
                self.group.as_mut()
            } else {
                self.partitions.get_mut(&seen.partition)
            };
            // It may have been given up, or taken over anew, while we looked.
            let Some(current) = current.filter(|current| current.owner == seen.owner) else {
                continue;
            };
            match verified {
                Ok(verified) => current.seen(verified),
                // A record that we cannot read was written by a newer program, which has taken over.
                Err(error @ (ClaimError::Lost { .. } | ClaimError::Record { .. })) => {
                    overrulings.push(Overruling {
                        partition: (!is_group).then(|| seen.partition.clone()),
                        detail: error_chain(&error),
                    });
                }
                // Commits that fail hold the partition and say so; that nobody can look for claims now is no news.
                Err(error) => {
                    tracing::debug!(partition = %seen.partition, error = error_chain(&error), "claims cannot be looked at");
                }
            }
        }
        for claim in self.partitions.values() {
            // Fetches name the topic only: once the log of a new topic reaches beyond where the old one was read to, they would go on
            // there, and pass over what lies below.
            let found = look.topic_ids.get(&claim.partition.topic);
            if found.is_some_and(|id| !is_same_topic(claim.topic_id, *id)) {
                claim.recreated.cancel();
            }
        }
        overrulings
    }
}

async fn topic_ids(services: &Services, topics: Vec<Arc<str>>) -> BTreeMap<Arc<str>, Uuid> {
    let mut found = BTreeMap::new();
    for topic in topics {
        match services.source.topic_id(&topic).await {
            Ok(Some(id)) => drop(found.insert(topic, id)),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%topic, %error, "the topic's id cannot be looked at");
            }
        }
    }
    found
}
