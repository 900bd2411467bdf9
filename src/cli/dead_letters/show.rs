//! `dead-letters show`: everything about one document that was given up.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::cursor::Cursor;
use super::{Completion, DeadLettersError, Topic};
use crate::cli::output::{Terminal, Tone, harmless};
use crate::cli::results;
use crate::kafka::{KafkaError, LogReader as _};
use crate::records::dead_letter::{DeadLetter, replay_count};
use crate::records::document::document_id;
use crate::types::{Header, Offset, Record, TopicPartition};

/// Most bytes of a value, and of a header, that are shown without `--full`.
const SHOWN_BYTES_MAX: usize = 4 * 1024;

/// Arguments of `dead-letters show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// PARTITION:OFFSET in the dead-letter topic as `list` shows it, or the id of a document, of which all dead letters are shown.
    #[arg(value_name = "PARTITION:OFFSET|DOCUMENT-ID")]
    pub target: Target,
    /// The whole document and whole headers, however long.
    #[arg(long)]
    pub full: bool,
    /// One JSON object per line, whole.
    #[arg(long)]
    pub json: bool,
}

/// Which dead letter is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The one at this place of the dead-letter topic.
    Position {
        /// The partition.
        partition: i32,
        /// The offset.
        offset: Offset,
    },
    /// Those of the document with this name.
    Document(String),
}

impl FromStr for Target {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let position = text.split_once(':').and_then(|(partition, offset)| {
            let partition = partition.parse().ok().filter(|partition| *partition >= 0)?;
            let offset = Offset::parse(offset)?;
            Some(Self::Position { partition, offset })
        });
        Ok(position.unwrap_or_else(|| Self::Document(text.to_owned())))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Position { partition, offset } => write!(f, "at {partition}:{offset}"),
            Self::Document(id) => write!(f, "of document `{}`", harmless(id)),
        }
    }
}

pub(super) async fn show(
    args: &ShowArgs,
    topic: &Topic,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<Completion, DeadLettersError> {
    let mut shown = |partition: &TopicPartition, offset: Offset, record: &Record| {
        let text = if args.json {
            format!("{}\n", as_json(partition, offset, record))
        } else {
            as_text(args, terminal, partition, offset, record)
        };
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(DeadLettersError::Output)
    };
    let is_found = match &args.target {
        Target::Position { partition, offset } => {
            let partition = topic
                .partitions(&[*partition])?
                .pop()
                .unwrap_or_else(|| topic.partition(*partition));
            let record = record_at(topic, &partition, *offset).await?;
            if let Some(record) = &record {
                shown(&partition, *offset, record)?;
            }
            record.is_some()
        }
        Target::Document(id) => {
            let mut is_found = false;
            for partition in topic.partitions(&[])? {
                let mut cursor = Cursor::open(&topic.cluster, partition.clone()).await?;
                while let Some(records) = cursor.next().await? {
                    for (offset, record) in &records {
                        let letter = DeadLetter::read(record);
                        let is_it = |letter: DeadLetter| document_id(record, &letter.source) == *id;
                        if letter.is_some_and(is_it) {
                            shown(&partition, *offset, record)?;
                            is_found = true;
                        }
                    }
                }
            }
            is_found
        }
    };
    if is_found {
        Ok(Completion::Done)
    } else {
        Err(DeadLettersError::NotFound {
            topic: topic.name().to_owned(),
            target: args.target.clone(),
        })
    }
}

async fn record_at(
    topic: &Topic,
    partition: &TopicPartition,
    offset: Offset,
) -> Result<Option<Record>, KafkaError> {
    match topic.cluster.read(partition, offset, Duration::ZERO).await {
        Ok(fetched) => {
            let mut records = fetched.records.into_iter();
            Ok(records.find_map(|(found, record)| (found == offset).then_some(record)))
        }
        Err(KafkaError::OffsetOutOfRange { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn as_text(
    args: &ShowArgs,
    terminal: &Terminal,
    partition: &TopicPartition,
    offset: Offset,
    record: &Record,
) -> String {
    let mut text = results::show::dead_letter(terminal, partition, offset, record);
    text.truncate(text.trim_end().len());
    let mut line = |label: &str, value: &str| {
        let label = terminal.paint(Tone::Faint, format!("{label:<16}"));
        text.push_str(&format!("\n  {label}{value}"));
    };
    line("dead letter", &format!("{partition}@{offset}"));
    let replays = replay_count(record);
    if replays > 0 {
        line("replayed", &format!("{replays} times before"));
    }
    if let Some(key) = &record.key {
        line("key", &shown_bytes(key, args.full));
    }
    if let Ok(at) = jiff::Timestamp::from_millisecond(record.timestamp_ms)
        && record.timestamp_ms >= 0
    {
        line("time stamp", &at.to_string());
    }
    line("headers", "");
    text.truncate(text.trim_end().len());
    for header in &record.headers {
        let name = harmless(&header.name);
        let value = shown_header(header, args.full);
        text.push_str(&format!("\n    {name}: {value}"));
    }
    let value = record.value.as_deref();
    let label = match value {
        Some(value) => format!("document, {} bytes", value.len()),
        None => "document: none".to_owned(),
    };
    text.push_str(&format!("\n  {}\n", terminal.paint(Tone::Faint, label)));
    if let Some(value) = value {
        text.push_str(&shown_bytes(value, args.full));
        text.push('\n');
    }
    text.push('\n');
    text
}

/// Bytes as text with its lines, without what would act on a terminal; cut at a character unless all of it is asked for.
fn shown_bytes(bytes: &[u8], full: bool) -> String {
    let text = String::from_utf8_lossy(bytes);
    let end = if full {
        text.len()
    } else {
        text.floor_char_boundary(SHOWN_BYTES_MAX)
    };
    let kept = text.get(..end).unwrap_or(&text);
    let mut shown: Vec<Cow<'_, str>> = kept.split('\n').map(harmless).collect();
    if end < text.len() {
        let rest = text.len() - end;
        shown.push(format!("… {rest} more bytes: --full").into());
    }
    shown.join("\n")
}

/// Text as it is; what is no text, such as the numbers of Spring's headers, in hexadecimal.
fn shown_header(header: &Header, full: bool) -> String {
    match &header.value {
        None => "(null)".to_owned(),
        Some(value) => match std::str::from_utf8(value) {
            Ok(text) if !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => {
                shown_bytes(value, full)
            }
            _ => {
                let shown = if full {
                    value.len()
                } else {
                    SHOWN_BYTES_MAX / 2
                };
                format!("0x{}", hexadecimal(value.get(..shown).unwrap_or(value)))
            }
        },
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn as_json(partition: &TopicPartition, offset: Offset, record: &Record) -> Value {
    let mut shown = results::show::dead_letter_value(partition, offset, record);
    if let Some(fields) = shown.as_object_mut() {
        let headers = record.headers.iter().map(|header| {
            let mut shown = Map::new();
            shown.insert("name".to_owned(), header.name.as_str().into());
            insert_bytes(&mut shown, "value", header.value.as_deref());
            Value::Object(shown)
        });
        fields.insert("headers".to_owned(), headers.collect());
        fields.insert("timestamp_ms".to_owned(), record.timestamp_ms.into());
        insert_bytes(fields, "key", record.key.as_deref());
        insert_bytes(fields, "value", record.value.as_deref());
    }
    shown
}

/// Text under that name, bytes that are none in hexadecimal under `{name}_hex`.
fn insert_bytes(fields: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_no_text| bytes)) {
        None => fields.insert(name.to_owned(), Value::Null),
        Some(Ok(text)) => fields.insert(name.to_owned(), json!(text)),
        Some(Err(bytes)) => {
            fields.remove(name);
            fields.insert(format!("{name}_hex"), json!(hexadecimal(bytes)))
        }
    };
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_target_is_a_position_or_a_name() {
        let target = |text: &str| text.parse::<Target>().unwrap();
        let position = Target::Position {
            partition: 3,
            offset: Offset::new(14),
        };
        assert_eq!(target("3:14"), position);
        for name in ["report-7", "3:", "3:-1", "-1:3", "docs/0@3", "a:3"] {
            assert_eq!(target(name), Target::Document(name.to_owned()));
        }
    }

    #[test]
    fn a_long_value_is_cut_at_a_character_unless_all_is_asked_for() {
        let long = format!("a{}", "ä".repeat(SHOWN_BYTES_MAX));
        let cut = shown_bytes(long.as_bytes(), false);
        let (kept, rest) = cut.split_once('\n').unwrap();
        assert_eq!(kept.len(), SHOWN_BYTES_MAX - 1);
        assert_eq!(
            rest,
            format!("… {} more bytes: --full", long.len() - kept.len())
        );
        assert_eq!(shown_bytes(long.as_bytes(), true), long);
        assert_eq!(shown_bytes(b"a\nb\x1b[31m", false), "a\nb\u{fffd}[31m");
    }

    #[test]
    fn numbers_in_headers_are_hexadecimal() {
        let header = |value: &'static [u8]| Header::new("h", Bytes::from_static(value));
        assert_eq!(shown_header(&header(b"text"), false), "text");
        assert_eq!(shown_header(&header(&[0, 0, 0, 7]), false), "0x00000007");
        assert_eq!(shown_header(&header(&[0xff]), false), "0xff");
        let null = Header {
            name: "h".to_owned(),
            value: None,
        };
        assert_eq!(shown_header(&null, false), "(null)");
    }
}
