//! How an input record is read as a document.
//!
//! Rules, in their order:
//! 1. A null value (tombstone) marks a deletion and has no content: it is skipped and counted, never dead-lettered.
//! 2. A value that is not UTF-8 is [`DeadLetterReason::InvalidUtf8`]; a byte order mark in front is dropped.
//! 3. No text at all, or white space only, is [`DeadLetterReason::EmptyDocument`].
//! 4. As [`InputFormat`] says, the value is a JSON object (else [`DeadLetterReason::InvalidJson`]) or plain text.
//! 5. A JSON object has its text in the content field: missing or no string is [`DeadLetterReason::MissingContent`], empty is
//!    [`DeadLetterReason::EmptyDocument`].
//!
//! Details of a refusal say where, never what: they hold none of the document's text.

use std::collections::BTreeMap;
use std::str;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::records::result::timestamp;
use crate::types::{DeadLetterReason, Record, SourcePosition};

/// The longest name that a document can give itself: it goes into headers, logs and request ids. A longer one is passed over.
pub const DOCUMENT_ID_BYTES_MAX: usize = 512;

const BYTE_ORDER_MARK: char = '\u{feff}';

/// What the values of the input topic are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputFormat {
    /// A value whose first character is `{` is JSON, any other is plain text.
    #[default]
    Auto,
    /// Every value is a JSON object.
    Json,
    /// Every value is plain text, whatever it looks like.
    Text,
}

/// A document, ready for the prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its name: the JSON `id`, else the Kafka key, else `{topic}/{partition}@{offset}`.
    pub id: String,
    /// Its text; never empty.
    pub text: String,
    /// All JSON fields, the content included; empty for plain text.
    pub fields: Map<String, Value>,
    /// The Kafka key; what is not UTF-8 in it is replaced.
    pub key: Option<String>,
    /// The headers that are UTF-8; of equal names the last.
    pub headers: BTreeMap<String, String>,
    /// Time stamp of the record, when it has one.
    pub timestamp: Option<Timestamp>,
}

/// Why a record is passed over without being a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// A null value: it marks a deletion.
    Tombstone,
}

impl SkipReason {
    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tombstone => "tombstone",
        }
    }
}

/// What a record turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Parsed {
    /// A document.
    Document(Box<Document>),
    /// Nothing to do.
    Skip(SkipReason),
    /// Not a document; the sentence says where it is wrong and holds none of its text.
    Bad(DeadLetterReason, String),
}

impl Document {
    /// Reads a record; `content_field` names the JSON field that holds the text.
    #[must_use]
    pub fn parse(
        record: &Record,
        position: &SourcePosition,
        format: InputFormat,
        content_field: &str,
    ) -> Parsed {
        let Some(value) = &record.value else {
            return Parsed::Skip(SkipReason::Tombstone);
        };
        let content = match str::from_utf8(value) {
            Ok(text) => read_content(text, format, content_field),
            Err(error) => Err(bad(
                DeadLetterReason::InvalidUtf8,
                format!("the first invalid byte is at {}", error.valid_up_to()),
            )),
        };
        match content {
            Err(Bad(reason, detail)) => Parsed::Bad(reason, detail),
            Ok(Content {
                text,
                fields,
                own_id,
            }) => Parsed::Document(Box::new(Self {
                id: own_id
                    .or_else(|| key_id(record))
                    .unwrap_or_else(|| position.to_string()),
                text,
                fields,
                key: record
                    .key
                    .as_ref()
                    .map(|key| String::from_utf8_lossy(key).into_owned()),
                headers: text_headers(record),
                timestamp: timestamp(record.timestamp_ms),
            })),
        }
    }
}

/// The name of a document, whether or not it can be read as one: the JSON `id` where there is one, else as [`Document::id`].
#[must_use]
pub fn document_id(record: &Record, position: &SourcePosition) -> String {
    let value = record.value.as_deref().unwrap_or_default();
    let text = str::from_utf8(value).unwrap_or_default();
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let fields: Option<Map<String, Value>> = serde_json::from_str(text).ok();
    fields
        .and_then(|fields| own_id(&fields, text))
        .or_else(|| key_id(record))
        .unwrap_or_else(|| position.to_string())
}

struct Content {
    text: String,
    fields: Map<String, Value>,
    own_id: Option<String>,
}

struct Bad(DeadLetterReason, String);

fn bad(reason: DeadLetterReason, detail: impl Into<String>) -> Bad {
    Bad(reason, detail.into())
}

fn read_content(value: &str, format: InputFormat, content_field: &str) -> Result<Content, Bad> {
    let value = value.strip_prefix(BYTE_ORDER_MARK).unwrap_or(value);
    let trimmed = value.trim();
    if trimmed.is_empty() {
        let detail = if value.is_empty() {
            "the value has zero bytes"
        } else {
            "the value is white space"
        };
        return Err(bad(DeadLetterReason::EmptyDocument, detail));
    }
    let is_object = trimmed.starts_with('{');
    match format {
        InputFormat::Json if !is_object => Err(bad(
            DeadLetterReason::InvalidJson,
            "the value is not a JSON object, which input.format = \"json\" asks for",
        )),
        InputFormat::Json | InputFormat::Auto if is_object => read_object(value, content_field),
        InputFormat::Json | InputFormat::Auto | InputFormat::Text => Ok(Content {
            text: value.to_owned(),
            fields: Map::new(),
            own_id: None,
        }),
    }
}

fn read_object(value: &str, content_field: &str) -> Result<Content, Bad> {
    let fields: Map<String, Value> = serde_json::from_str(value)
        .map_err(|error| bad(DeadLetterReason::InvalidJson, json_detail(&error)))?;
    let missing = |what: &str| {
        bad(
            DeadLetterReason::MissingContent,
            format!("field `{content_field}` (input.content_field) {what}"),
        )
    };
    let text = match fields.get(content_field) {
        Some(Value::String(text)) => text.clone(),
        Some(_) => return Err(missing("is not a string")),
        None => return Err(missing("is missing")),
    };
    if text.trim().is_empty() {
        return Err(bad(
            DeadLetterReason::EmptyDocument,
            format!("field `{content_field}` (input.content_field) is empty"),
        ));
    }
    let own_id = own_id(&fields, value);
    Ok(Content {
        text,
        fields,
        own_id,
    })
}

/// Errors of type `Data` may quote the value, so of those only the place is told.
fn json_detail(error: &serde_json::Error) -> String {
    if error.is_data() {
        return format!(
            "a value cannot be read at line {} column {}",
            error.line(),
            error.column()
        );
    }
    error.to_string()
}

fn own_id(fields: &Map<String, Value>, value: &str) -> Option<String> {
    /// The `id` as it is written: a number beyond 64 bits would lose digits, and two documents share a name.
    #[derive(Deserialize)]
    struct RawId<'a> {
        #[serde(borrow)]
        id: &'a RawValue,
    }
    let id = match fields.get("id")? {
        Value::String(id) => id.clone(),
        Value::Number(number) if number.is_f64() => {
            let raw: RawId<'_> = serde_json::from_str(value).ok()?;
            raw.id.get().to_owned()
        }
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    usable_id(&id).then_some(id)
}

fn key_id(record: &Record) -> Option<String> {
    let key = str::from_utf8(record.key.as_ref()?).ok()?;
    usable_id(key).then(|| key.to_owned())
}

fn usable_id(id: &str) -> bool {
    !id.trim().is_empty() && id.len() <= DOCUMENT_ID_BYTES_MAX
}

fn text_headers(record: &Record) -> BTreeMap<String, String> {
    record
        .headers
        .iter()
        .filter_map(|header| {
            let value = str::from_utf8(header.value.as_ref()?).ok()?;
            Some((header.name.clone(), value.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests;
