//! The document that a pointer stands for, as it lies in its input topic.

use std::time::Duration;

use crate::kafka::KafkaError;
use crate::kafka::wire::{Cluster, Isolation};
use crate::records::dead_letter::{DeadLetter, POINTER_KEY_BYTES_MAX};
use crate::types::{DeadLetterReason, Record};

/// What the fetch asks for; the first batch comes whole even when it is larger.
const FETCH_BYTES_MAX: usize = 64 * 1024;

/// The document, copied out of the fetch's memory; `None` where it is gone, or where another record lies.
///
/// # Cancel safety
/// Safe: it only reads.
pub(super) async fn original(
    cluster: &Cluster,
    letter: &DeadLetter,
    pointer: &Record,
) -> Result<Option<Record>, KafkaError> {
    let source = &letter.source;
    let fetched = cluster.fetch(
        &source.topic_partition,
        source.offset,
        // It was accepted as a document when it was given up.
        Isolation::ReadUncommitted,
        FETCH_BYTES_MAX,
        Duration::ZERO,
    );
    match fetched.await {
        Ok(fetched) => {
            let mut records = fetched.records.into_iter();
            let found = records.find(|(offset, _)| *offset == source.offset);
            Ok(found
                .map(|(_, record)| record)
                .filter(|record| is_the_same(letter.reason, pointer, record))
                .map(|record| record.detached()))
        }
        Err(
            KafkaError::OffsetOutOfRange { .. }
            | KafkaError::UnknownTopic { .. }
            | KafkaError::UnknownPartition { .. },
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A topic that was deleted and created anew has other records at the same offsets. A pointer keeps key and time stamp of its original; that of a
/// result that was too large has the time stamp of the result.
fn is_the_same(reason: DeadLetterReason, pointer: &Record, found: &Record) -> bool {
    let key = found.key.as_ref();
    let key = key.filter(|key| key.len() <= POINTER_KEY_BYTES_MAX);
    key == pointer.key.as_ref()
        && found.value.is_some()
        && (reason == DeadLetterReason::ResultTooLarge
            || found.timestamp_ms == pointer.timestamp_ms)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn another_record_at_the_same_offset_is_not_the_document() {
        let record = |key: Option<Vec<u8>>, timestamp_ms| Record {
            key: key.map(Bytes::from),
            value: Some(Bytes::from_static(b"text")),
            headers: Vec::new(),
            timestamp_ms,
        };
        let (large, rejected) = (
            DeadLetterReason::ResultTooLarge,
            DeadLetterReason::RequestRejected,
        );
        let key = || Some(b"k".to_vec());
        let long = || Some(vec![0; POINTER_KEY_BYTES_MAX + 1]);
        for (reason, pointer, found, expected) in [
            (rejected, record(key(), 5), record(key(), 5), true),
            (rejected, record(key(), 5), record(key(), 6), false),
            (large, record(key(), 5), record(key(), 6), true),
            (large, record(key(), 5), record(None, 5), false),
            (rejected, record(None, 5), record(None, 5), true),
            (rejected, record(None, 5), record(long(), 5), true),
            (rejected, record(None, 5), Record::default(), false),
        ] {
            assert_eq!(is_the_same(reason, &pointer, &found), expected);
        }
    }
}
