//! Committed offsets of consumer groups. Membership is not served yet, so every group here is without members.

use std::collections::BTreeMap;

/// Groups that are remembered; an offset each for some partitions, so a few MiB at most.
const GROUPS_MAX: usize = 10_000;

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Committed {
    pub offset: i64,
    pub leader_epoch: i32,
    pub metadata: String,
}

/// One group: what it has committed, by topic and partition.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub offsets: BTreeMap<String, BTreeMap<i32, Committed>>,
}

impl Group {
    pub(super) fn committed(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.offsets.get(topic)?.get(&partition)
    }
}

/// All groups by their id.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: BTreeMap<String, Group>,
}

impl Groups {
    pub(super) fn find(&self, id: &str) -> Option<&Group> {
        self.groups.get(id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// Records a commit; the group comes to be with its first one. False when there is no room for one more group.
    pub(super) fn commit(
        &mut self,
        group: &str,
        topic: &str,
        partition: i32,
        what: Committed,
    ) -> bool {
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(group) {
            return false;
        }
        let group = self.groups.entry(group.to_owned()).or_default();
        let partitions = group.offsets.entry(topic.to_owned()).or_default();
        partitions.insert(partition, what);
        true
    }

    /// Forgets a group; false when there is none.
    pub(super) fn delete(&mut self, id: &str) -> bool {
        self.groups.remove(id).is_some()
    }

    /// Forgets what was committed for a topic; a group that has nothing left is gone.
    pub(super) fn forget_topic(&mut self, topic: &str) {
        self.groups
            .retain(|_, group| group.offsets.remove(topic).is_none() || !group.offsets.is_empty());
    }
}
