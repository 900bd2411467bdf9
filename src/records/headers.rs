//! The record headers that results and dead letters share. All values are UTF-8 text, so that every tool can show them.

use std::str;

use bytes::Bytes;

use crate::spans::TraceHeaders;
use crate::types::{Header, Offset, Record, SourcePosition, TopicPartition};

/// Topic that the document was read from.
pub const SOURCE_TOPIC: &str = "klp.source.topic";
/// Partition that the document was read from, decimal.
pub const SOURCE_PARTITION: &str = "klp.source.partition";
/// Offset of the document, decimal.
pub const SOURCE_OFFSET: &str = "klp.source.offset";
/// The document's name.
pub const DOCUMENT_ID: &str = "klp.document.id";
/// Version of the schema of a result's value.
pub const SCHEMA: &str = "klp.schema";
/// `ok` or `truncated`, so that a consumer can choose without reading the value.
pub const STATUS: &str = "klp.status";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// What vendors add to it.
pub const TRACESTATE: &str = "tracestate";

/// Sets a header: what was there under that name is replaced.
pub fn set(headers: &mut Vec<Header>, name: &str, value: impl Into<String>) {
    headers.retain(|header| header.name != name);
    headers.push(Header::new(name, Bytes::from(value.into())));
}

/// The text of a header, when it is there and is UTF-8.
#[must_use]
pub fn text<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    str::from_utf8(record.header(name)?).ok()
}

/// Sets the three headers that say where the document came from: the key by which a repeated result is recognised.
pub fn set_source(headers: &mut Vec<Header>, position: &SourcePosition) {
    let TopicPartition { topic, partition } = &position.topic_partition;
    set(headers, SOURCE_TOPIC, topic.as_ref());
    set(headers, SOURCE_PARTITION, partition.to_string());
    set(headers, SOURCE_OFFSET, position.offset.to_string());
}

/// Whether that is one of the three names of [`set_source`].
#[must_use]
pub fn is_source(name: &str) -> bool {
    [SOURCE_TOPIC, SOURCE_PARTITION, SOURCE_OFFSET].contains(&name)
}

/// Reads what [`set_source`] wrote; `None` when a header is missing or is not what it should be.
#[must_use]
pub fn source(record: &Record) -> Option<SourcePosition> {
    let topic = text(record, SOURCE_TOPIC)?;
    let partition = text(record, SOURCE_PARTITION)?.parse().ok()?;
    let offset = text(record, SOURCE_OFFSET)?.parse().ok()?;
    Some(SourcePosition {
        topic_partition: TopicPartition::new(topic, partition),
        offset: Offset::new(offset),
    })
}

/// The trace context of a record, when it has one. Anything else is left out: it goes into an HTTP header next.
#[must_use]
pub fn trace(record: &Record) -> Option<TraceHeaders> {
    TraceHeaders::parse(text(record, TRACEPARENT)?, text(record, TRACESTATE))
}

/// Sets the trace context, and takes away what was there of another.
pub fn set_trace(headers: &mut Vec<Header>, trace: &TraceHeaders) {
    headers.retain(|header| header.name != TRACESTATE);
    set(headers, TRACEPARENT, trace.traceparent.as_str());
    if let Some(state) = &trace.tracestate {
        set(headers, TRACESTATE, state.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_read_as_it_was_written() {
        let position = SourcePosition {
            topic_partition: TopicPartition::new("orders", 7),
            offset: Offset::new(i64::MAX),
        };
        let mut record = Record::default();
        set_source(&mut record.headers, &position);
        assert_eq!(source(&record), Some(position));
    }

    #[test]
    fn a_header_is_replaced_and_never_doubled() {
        let mut record = Record::default();
        set(&mut record.headers, STATUS, "ok");
        set(&mut record.headers, SCHEMA, "1");
        set(&mut record.headers, STATUS, "truncated");
        assert_eq!(record.headers.len(), 2);
        assert_eq!(text(&record, STATUS), Some("truncated"));
    }

    #[test]
    fn a_source_that_is_not_one_is_none() {
        let mut record = Record::default();
        set(&mut record.headers, SOURCE_TOPIC, "orders");
        set(&mut record.headers, SOURCE_PARTITION, "many");
        set(&mut record.headers, SOURCE_OFFSET, "1");
        assert_eq!(source(&record), None);
    }

    #[test]
    fn a_trace_context_is_set_whole_and_only_a_well_formed_one_is_read() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut record = Record {
            headers: vec![
                Header::new(TRACEPARENT, "of another"),
                Header::new(TRACESTATE, "of=another"),
            ],
            ..Record::default()
        };
        assert_eq!(trace(&record), None);
        let mut context = TraceHeaders::parse(parent, None).unwrap();
        set_trace(&mut record.headers, &context);
        assert_eq!(trace(&record).as_ref(), Some(&context));
        context.tracestate = Some("a=1".to_owned());
        set_trace(&mut record.headers, &context);
        assert_eq!(trace(&record), Some(context));
        assert_eq!(record.headers.len(), 2);
        record.headers = vec![Header::new(TRACEPARENT, vec![0xff; 60])];
        assert_eq!(trace(&record), None);
    }
}
