//! What tests of the audit trail write.

use jiff::Timestamp;

use super::{AuditDocument, AuditEntry, AuditKind, AuditOutcome, AuditTimes, Hash};
use crate::records::result::ResultSource;
use crate::types::{Offset, SourcePosition, TopicPartition};

/// A result of the document at that offset of `docs/0`, which was written nowhere yet.
pub(crate) fn entry(offset: Offset) -> AuditEntry {
    let position = SourcePosition {
        topic_partition: TopicPartition::new("docs", 0),
        offset,
    };
    AuditEntry {
        generation: "g".to_owned(),
        document: AuditDocument {
            id: format!("d{offset}"),
            source: ResultSource::new(&position, -1),
            hash: Hash::of(b"text"),
        },
        asked: None,
        outcome: AuditOutcome {
            kind: AuditKind::Result,
            status: None,
            reason: None,
            finish_reason: None,
            cached: false,
            topic: String::new(),
            partition: 0,
            hash: None,
            usage: None,
            attempts: 1,
        },
        times: AuditTimes {
            fetched_at: Timestamp::UNIX_EPOCH,
            completed_at: Timestamp::UNIX_EPOCH,
            llm_ms: None,
        },
    }
}
