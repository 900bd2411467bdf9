//! A dead letter on its way back: the original document, with what a replay has to know of it the next time.

use super::{HeaderStyle, OWN_PREFIX, REASON, STYLE};
use crate::records::headers;
use crate::types::{Header, Record};

/// How often the document was replayed, decimal; none before the first time. It stays with the document, through a result that fails and into
/// the next dead letter, so that a replay can tell what fails for ever.
pub const REPLAY_COUNT: &str = "klp.error.replay_count";
/// The time stamp that the document had before it was replayed, in milliseconds since the Unix epoch.
pub const ORIGINAL_TIMESTAMP: &str = "klp.error.original_timestamp";

/// How often the document of a record was replayed.
#[must_use]
pub fn replay_count(record: &Record) -> u32 {
    headers::text(record, REPLAY_COUNT)
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

/// The document of a dead letter as a record for its topic: key, value and headers of the original, without the reason; `replays` says how
/// often it was replayed with this time.
///
/// Its time stamp is `now_ms`: with the original's, which may be older than the topic's retention, it could be deleted before it is read. The
/// original's is kept in [`ORIGINAL_TIMESTAMP`].
#[must_use]
pub fn replayed(record: &Record, replays: u32, now_ms: i64) -> Record {
    let mut headers = original_headers(record, None);
    headers::set(&mut headers, REPLAY_COUNT, replays.to_string());
    if record.timestamp_ms >= 0 && headers::text(record, ORIGINAL_TIMESTAMP).is_none() {
        let timestamp = record.timestamp_ms.to_string();
        headers::set(&mut headers, ORIGINAL_TIMESTAMP, timestamp);
    }
    Record {
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
        timestamp_ms: now_ms,
    }
}

/// The headers of a record without those that say why it was given up. Of a dead letter that is a document again, as when somebody copied it
/// back, those of the style that it was written in go with ours; of any record those of the style that is about to be `written`, as of two
/// reasons only the newest says why the record is here. What a replay has to know stays.
pub(super) fn original_headers(record: &Record, written: Option<HeaderStyle>) -> Vec<Header> {
    let is_dead_letter = headers::text(record, REASON).is_some();
    let former = is_dead_letter.then(|| {
        // Before there was a choice it was Kafka Connect's.
        let named = headers::text(record, STYLE).and_then(HeaderStyle::named);
        named.unwrap_or_default()
    });
    let goes = |name: &str| {
        if [REPLAY_COUNT, ORIGINAL_TIMESTAMP].contains(&name) {
            return false;
        }
        let is_of = |style: HeaderStyle| name.starts_with(style.prefix());
        name.starts_with(OWN_PREFIX)
            || headers::is_source(name)
            || former.is_some_and(is_of)
            || written.is_some_and(is_of)
    };
    let headers = record.headers.iter();
    headers
        .filter(|header| !goes(&header.name))
        .cloned()
        .collect()
}
