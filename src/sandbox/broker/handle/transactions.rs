//! What a test may see and do of transactions.

use super::Broker;
use crate::sandbox::broker::transactions::OpenTransaction;
use crate::types::{Offset, Record, TopicPartition};

impl Broker {
    /// What a `read_committed` consumer sees of a topic, by partition and offset: no markers, nothing of aborted transactions, nothing
    /// from the last stable offset on.
    #[must_use]
    pub fn records_committed(&self, topic: &str) -> Vec<(TopicPartition, Offset, Record)> {
        self.collect_records(topic, |log| log.records_committed())
    }

    /// The last stable offset (exclusive): up to here every transaction has ended.
    #[must_use]
    pub fn last_stable_offset(&self, topic: &str, partition: i32) -> Option<Offset> {
        self.look(topic, partition, |partition| {
            Offset::new(partition.log.last_stable())
        })
    }

    /// The transactions that have begun and not ended, by transactional id.
    #[must_use]
    pub fn open_transactions(&self) -> Vec<OpenTransaction> {
        self.inner.shared.state().transactions.open()
    }

    /// Forgets a transactional id, as Kafka does a week after its last use: what it has open is aborted, and its producer gets 49 for
    /// whatever it asks next. False when the id is not known.
    #[must_use]
    pub fn expire_transactional_id(&self, id: &str) -> bool {
        let shared = &self.inner.shared;
        shared.change(|state| state.expire_transactional_id(id))
    }
}
