//! The chain of one partition's audit trail, as its owner goes on with it. Pure.

use std::sync::Arc;

use super::commit::Output;
use super::record::Guarantee;
use super::store::Owner;
use crate::records::audit::{AUDIT_VERSION, AuditEntry, AuditHead, AuditRecord, Link, Writer};
use crate::types::TopicPartition;

/// Where the records of the audit trail go, and for which group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditWriter {
    /// The audit topic.
    pub topic: Arc<str>,
    /// How many partitions it has; at least 1.
    pub partitions: i32,
    /// `kafka.group_id`.
    pub group: String,
}

impl AuditWriter {
    /// Where the chain of an input partition lies.
    #[must_use]
    pub fn partition_of(&self, input: &TopicPartition) -> TopicPartition {
        TopicPartition {
            topic: Arc::clone(&self.topic),
            partition: input.partition.rem_euclid(self.partitions.max(1)),
        }
    }
}

/// Has one owner, and knows the end of what is committed. Where nobody writes to it it only keeps that.
#[derive(Debug)]
pub(super) struct Chain {
    partition: TopicPartition,
    head: Option<AuditHead>,
    writer: Option<Arc<AuditWriter>>,
    /// Whether a record of this owner is in it.
    has_ours: bool,
}

impl Chain {
    /// A chain of the input partition that has no records.
    pub(super) const fn new(partition: TopicPartition) -> Self {
        Self {
            partition,
            head: None,
            writer: None,
            has_ours: false,
        }
    }

    /// Goes on where a commit record says.
    pub(super) fn continue_from(
        &mut self,
        head: Option<AuditHead>,
        writer: Option<Arc<AuditWriter>>,
    ) {
        self.head = head;
        self.writer = writer;
    }

    /// Whether its records go there.
    pub(super) fn is_written_to(&self, to: &TopicPartition) -> bool {
        let writer = self.writer.as_ref();
        writer.is_some_and(|writer| writer.topic == to.topic)
    }

    /// The records of the entries, in their order, and where the chain ends with them. `replaced` are outputs that were written instead of
    /// others. The chain itself stays as it is: the same again gives the same bytes.
    pub(super) fn seal(
        &self,
        entries: &[AuditEntry],
        replaced: &[Output],
        owner: &Owner,
        guarantee: Guarantee,
    ) -> (Vec<Output>, Option<AuditHead>) {
        let Some(writer) = &self.writer else {
            return (Vec::new(), self.head);
        };
        let to = writer.partition_of(&self.partition);
        let committed = self.head.map_or(0, |head| head.length);
        let mut head = self.head;
        let mut outputs = Vec::with_capacity(entries.len());
        for entry in entries {
            let source = entry.document.source.offset;
            let mut entry = entry.clone();
            let written = replaced.iter().rev();
            if let Some(output) = written.into_iter().find(|output| output.source == source) {
                entry.written(&output.to, &output.record);
            }
            let sequence = head.map_or(0, |head| head.length);
            let record = AuditRecord {
                v: AUDIT_VERSION,
                chain: Link {
                    group: writer.group.clone(),
                    topic: self.partition.topic.to_string(),
                    partition: self.partition.partition,
                    sequence,
                    previous: head.map(|head| head.head),
                    committed,
                    take_over: !self.has_ours && outputs.is_empty(),
                },
                by: Writer {
                    instance: owner.instance.clone(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    owner_epoch: owner.epoch,
                    guarantee: guarantee.to_string(),
                    generation: entry.generation,
                },
                document: entry.document,
                asked: entry.asked,
                outcome: entry.outcome,
                times: entry.times,
            };
            let (record, hash) = record.into_record();
            head = Some(AuditHead {
                length: sequence + 1,
                head: hash,
            });
            outputs.push(Output {
                source,
                to: to.clone(),
                record,
            });
        }
        (outputs, head)
    }

    /// What was sealed is durable, with the commit record that names its end.
    pub(super) fn advance(&mut self, head: Option<AuditHead>, has_written: bool) {
        self.head = head;
        self.has_ours |= has_written && self.writer.is_some();
    }
}
