//! What Kafka checks of a produced batch before it appends it, in Kafka's order and with its codes.
//!
//! A batch is opened whatever its codec, as Kafka opens it, and stored as it came. What depends on the partition's producers is checked
//! when it is appended.

use bytes::Bytes;
use kafka_protocol::error::ResponseError;

use super::batch::{Batch, BatchError, Codec};
use super::state::Refusal;
use super::topic_config::TopicConfig;
use crate::types::{Offset, Record};

/// Record errors that a message names, as Kafka limits them.
const NAMED_ERRORS_MAX: usize = 3;
/// The Produce version from which zstd is allowed.
const ZSTD_FROM_VERSION: i16 = 7;

/// A refused batch: the code and sentence, and the records at fault by their index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BatchRefusal {
    pub refusal: Refusal,
    pub records: Vec<(i32, String)>,
}

impl From<Refusal> for BatchRefusal {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            records: Vec::new(),
        }
    }
}

fn invalid(message: impl Into<String>) -> BatchRefusal {
    Refusal::new(ResponseError::InvalidRecord, message).into()
}

/// Checks the bytes of one partition of a Produce request; answers the batch as it is to be appended.
pub(super) fn check(
    mut bytes: Bytes,
    version: i16,
    config: &TopicConfig,
    now_ms: i64,
) -> Result<Batch, BatchRefusal> {
    if bytes.is_empty() {
        return Err(invalid(format!(
            "Produce requests with version {version} must have at least one record batch per partition"
        )));
    }
    let mut batch = Batch::split_from(&mut bytes).map_err(|error| match error {
        BatchError::Magic(_) => invalid(format!(
            "Produce requests with version {version} are only allowed to contain record batches with magic version 2"
        )),
        other => Refusal::new(ResponseError::CorruptMessage, other.to_string()).into(),
    })?;
    if !bytes.is_empty() {
        return Err(invalid(format!(
            "Produce requests with version {version} are only allowed to contain exactly one record batch per partition"
        )));
    }
    check_header(&batch, version, config)?;
    let records = check_offsets(&batch)?;
    check_records(&records, config, now_ms)?;
    if config.is_log_append_time() {
        batch.header.set_log_append_time(now_ms);
    } else {
        let max = records.iter().map(|(_, record)| record.timestamp_ms).max();
        batch.header.set_create_time(max.unwrap_or(-1));
    }
    Ok(batch)
}

fn check_header(batch: &Batch, version: i16, config: &TopicConfig) -> Result<(), BatchRefusal> {
    let header = &batch.header;
    if header.codec() == Codec::Zstd && version < ZSTD_FROM_VERSION {
        let message = format!(
            "Produce requests with version {version} are not allowed to use ZStandard compression"
        );
        return Err(Refusal::new(ResponseError::UnsupportedCompressionType, message).into());
    }
    if header.base_offset != 0 {
        return Err(invalid(format!(
            "The baseOffset of the record batch should be 0, but it is {}",
            header.base_offset
        )));
    }
    let limit = config.max_message_bytes();
    if batch.size() > limit {
        let message = format!(
            "The record batch size is {} bytes which exceeds the maximum configured value of {limit}.",
            batch.size()
        );
        return Err(Refusal::new(ResponseError::MessageTooLarge, message).into());
    }
    batch
        .verify_checksum()
        .map_err(|error| Refusal::new(ResponseError::CorruptMessage, error.to_string()))?;
    if batch.size() > config.segment_bytes() {
        let message = "The record batch is larger than the configured segment size.";
        return Err(Refusal::new(ResponseError::RecordListTooLarge, message).into());
    }
    if header.is_control() {
        return Err(invalid("Clients are not allowed to write control records"));
    }
    if header.producer_id >= 0 && header.base_sequence < 0 {
        return Err(invalid(format!(
            "Invalid sequence number {} in record batch with producerId {}",
            header.base_sequence, header.producer_id
        )));
    }
    Ok(())
}

/// Checks count and offsets, and opens the records.
fn check_offsets(batch: &Batch) -> Result<Vec<(Offset, Record)>, BatchRefusal> {
    let header = &batch.header;
    if header.last_offset_delta < 0 {
        return Err(invalid("Batch has an invalid offset range"));
    }
    if header.count <= 0 {
        return Err(invalid("Invalid reported count for record batch"));
    }
    if header.last_offset_delta != header.count - 1 {
        return Err(invalid("Inconsistent batch offset range"));
    }
    match batch.records() {
        Ok(records) => {
            let in_order = (0..)
                .zip(&records)
                .all(|(expected, (offset, _))| offset.value() == expected);
            if in_order {
                Ok(records)
            } else {
                Err(invalid("The offsets of the records are not 0, 1, 2, …"))
            }
        }
        Err(error @ BatchError::Codec(_)) => {
            let code = ResponseError::UnsupportedCompressionType;
            Err(Refusal::new(code, error.to_string()).into())
        }
        Err(error) => Err(invalid(error.to_string())),
    }
}

fn check_records(
    records: &[(Offset, Record)],
    config: &TopicConfig,
    now_ms: i64,
) -> Result<(), BatchRefusal> {
    let mut faults = Vec::new();
    let mut is_timestamp = false;
    for (index, (_, record)) in (0..).zip(records) {
        if config.is_compacted() && record.key.is_none() {
            faults.push((
                index,
                "Compacted topic cannot accept message without key".to_owned(),
            ));
        } else if let Some(why) = timestamp_fault(record.timestamp_ms, config, now_ms) {
            is_timestamp = true;
            faults.push((index, why));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    let refusal = if is_timestamp {
        Refusal::new(
            ResponseError::InvalidTimestamp,
            "One or more records have been rejected due to invalid timestamp",
        )
    } else {
        let named: Vec<_> = faults
            .iter()
            .take(NAMED_ERRORS_MAX)
            .map(|(index, why)| format!("record {index}: {why}"))
            .collect();
        Refusal::new(
            ResponseError::InvalidRecord,
            format!(
                "One or more records have been rejected due to {} record errors in total, and only showing the first three errors at most: {}",
                faults.len(),
                named.join(", ")
            ),
        )
    };
    Err(BatchRefusal {
        refusal,
        records: faults,
    })
}

fn timestamp_fault(timestamp_ms: i64, config: &TopicConfig, now_ms: i64) -> Option<String> {
    if config.is_log_append_time() || timestamp_ms == -1 {
        return None;
    }
    let earliest = now_ms.saturating_sub(config.timestamp_before_max_ms());
    let latest = now_ms.saturating_add(config.timestamp_after_max_ms());
    let is_within = (earliest..=latest).contains(&timestamp_ms);
    (!is_within).then(|| {
        format!("Timestamp {timestamp_ms} of message is out of range. The timestamp should be within [{earliest}, {latest}]")
    })
}

#[cfg(test)]
mod tests;
