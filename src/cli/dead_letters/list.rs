//! `dead-letters list`: a line for each. Lines are written as they are read, so columns have a width of their own and not the content's.

use std::io::Write;

use clap::Args;
use serde_json::Value;

use super::cursor::Cursor;
use super::filter::FilterArgs;
use super::marks::{Marks, MarksTopic};
use super::{Completion, DeadLettersError, Topic};
use crate::cli::output::{Terminal, Tone, harmless};
use crate::cli::results;
use crate::records::dead_letter::{DeadLetter, replay_count};
use crate::records::document::document_id;
use crate::types::{Offset, Record, TopicPartition};

/// The columns before the last, which takes what is left: names and widths in characters. The longest reason has 23.
const COLUMNS: [(&str, usize); 5] = [
    ("POSITION", 9),
    ("GIVEN UP AT", 20),
    ("REASON", 23),
    ("STATE", 11),
    (DOCUMENT, 24),
];
const DOCUMENT: &str = "DOCUMENT";
const LAST_COLUMN: &str = "DETAIL";
/// What the last column has at least.
const LAST_WIDTH_MIN: usize = 20;

/// Arguments of `dead-letters list`.
#[derive(Debug, Clone, Default, Args)]
pub struct ListArgs {
    /// Which are listed.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Only those that were not replayed.
    #[arg(long)]
    pub waiting: bool,
    /// Stop after so many.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// One JSON object per line.
    #[arg(long)]
    pub json: bool,
}

pub(super) async fn list(
    args: &ListArgs,
    topic: &Topic,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<Completion, DeadLettersError> {
    let partitions = topic.partitions(&args.filter.partition)?;
    let marks = match MarksTopic::find(&topic.cluster, topic.name()).await? {
        Some(marks) => marks.load(&topic.cluster, topic.description.id).await?,
        None => Marks::none(topic.description.id),
    };
    let is_enough = |listed: u64| args.count.is_some_and(|count| listed >= count);
    let (mut listed, mut foreign) = (0, 0_u64);
    if !args.json {
        let header = row(COLUMNS.map(|(name, _)| name), LAST_COLUMN, terminal);
        let header = terminal.paint(Tone::Faint, header);
        writeln!(out, "{header}").map_err(DeadLettersError::Output)?;
    }
    'all: for partition in partitions {
        let mut cursor = Cursor::open(&topic.cluster, partition.clone()).await?;
        while let Some(records) = cursor.next().await? {
            for (offset, record) in &records {
                if is_enough(listed) {
                    break 'all;
                }
                let Some(letter) = DeadLetter::read(record) else {
                    foreign += 1;
                    continue;
                };
                let is_replayed = marks.contains(partition.partition, *offset);
                if !args.filter.takes(&letter, record) || (args.waiting && is_replayed) {
                    continue;
                }
                let line = if args.json {
                    as_json(&partition, *offset, record, is_replayed).to_string()
                } else {
                    as_row(&letter, terminal, &partition, *offset, record, is_replayed)
                };
                writeln!(out, "{line}").map_err(DeadLettersError::Output)?;
                listed += 1;
            }
            out.flush().map_err(DeadLettersError::Output)?;
        }
    }
    if !args.json {
        let mut end = match listed {
            1 => "1 dead letter".to_owned(),
            _ => format!("{listed} dead letters"),
        };
        if foreign > 0 {
            end.push_str(&format!("; {foreign} records are not of this program"));
        }
        writeln!(out, "{}", terminal.paint(Tone::Faint, end)).map_err(DeadLettersError::Output)?;
    }
    out.flush().map_err(DeadLettersError::Output)?;
    Ok(Completion::Done)
}

fn as_json(
    partition: &TopicPartition,
    offset: Offset,
    record: &Record,
    is_replayed: bool,
) -> Value {
    let mut shown = results::show::dead_letter_value(partition, offset, record);
    if let Some(fields) = shown.as_object_mut() {
        fields.insert("replayed".to_owned(), is_replayed.into());
    }
    shown
}

fn as_row(
    letter: &DeadLetter,
    terminal: &Terminal,
    partition: &TopicPartition,
    offset: Offset,
    record: &Record,
    is_replayed: bool,
) -> String {
    let position = format!("{}:{offset}", partition.partition);
    // Without the fractions of a second.
    let at = letter.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let state = if is_replayed { "replayed" } else { "waiting" };
    let state = match replay_count(record) {
        0 => state.to_owned(),
        // So often before this dead letter was written.
        before => format!("{state} +{before}"),
    };
    let id = document_id(record, &letter.source);
    let columns: [&str; COLUMNS.len()] = [&position, &at, letter.reason.as_str(), &state, &id];
    row(columns, &letter.detail, terminal)
}

/// Columns side by side. What is too long for its column moves the others, unless it is the document's name or the detail on a terminal,
/// which are cut: a position or a reason that is not whole is of no use.
fn row(columns: [&str; COLUMNS.len()], last: &str, terminal: &Terminal) -> String {
    let mut row = String::new();
    for (text, (name, width)) in columns.into_iter().zip(COLUMNS) {
        let text = harmless(text);
        let cut = if name == DOCUMENT && terminal.line_width().is_some() {
            shortened(&text, width)
        } else {
            text.into_owned()
        };
        row.push_str(&format!("{cut:<width$}  "));
    }
    let last = harmless(last);
    match terminal.line_width() {
        Some(width) => {
            let room = width.saturating_sub(row.chars().count());
            row.push_str(&shortened(&last, room.max(LAST_WIDTH_MIN)));
        }
        None => row.push_str(&last),
    }
    row
}

fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DeadLetterReason;

    #[test]
    fn the_columns_have_room_for_every_reason() {
        let longest = DeadLetterReason::ALL.map(|reason| reason.as_str().len());
        let (_, width) = COLUMNS[2];
        assert!(longest.into_iter().all(|length| length <= width));
    }

    #[test]
    fn text_is_cut_where_it_would_not_fit() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("äöüß", 3), "äö…");
    }
}
