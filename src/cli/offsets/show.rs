//! `offsets show`.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::look::{Found, Seen, look};
use super::table::{self, Row};
use super::{OffsetsError, parse_partition};
use crate::cli::contact;
use crate::cli::output::{Terminal, Tone, harmless};
use crate::clock;
use crate::config::Settings;
use crate::offsets::{CommitRecord, Guarantee, StartAt};
use crate::types::{Offset, TopicPartition};

/// Finished ranges that are named in a line; the rest is counted.
const RANGES_SHOWN: usize = 3;

const TITLES: [&str; 9] = [
    "partition",
    "log start",
    "high watermark",
    "commit",
    "finished beyond",
    "unfinished",
    "group offset",
    "committed",
    "owner",
];

/// Arguments of `offsets show`.
#[derive(Debug, Clone, Default, Args)]
pub struct ShowArgs {
    /// Only this one (repeatable).
    #[arg(long, value_name = "TOPIC/NUMBER", value_parser = parse_partition)]
    pub partition: Vec<TopicPartition>,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    group_id: &'a str,
    commit_topic: String,
    partitions: Vec<Line<'a>>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    topic: &'a str,
    partition: i32,
    log_start: Offset,
    high_watermark: Offset,
    commit: Option<Commit<'a>>,
    unfinished: u64,
    group_offset: Option<Offset>,
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Commit<'a> {
    next_offset: Offset,
    done: &'a [(Offset, Offset)],
    owner: &'a str,
    owner_epoch: u64,
    guarantee: Guarantee,
    at: Timestamp,
    age_seconds: u64,
    is_live: bool,
    live_until: Timestamp,
}

pub(super) async fn run(
    args: &ShowArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<(), OffsetsError> {
    let cluster = contact::impatient(&settings.kafka);
    let found = look(&cluster, settings, &args.partition).await?;
    let (now, start) = (clock::now(), settings.input.start);
    if args.json {
        let lines = found.partitions.iter().map(|seen| line(seen, start, now));
        let report = Report {
            group_id: &settings.kafka.group_id,
            commit_topic: settings.kafka.commit_topic(),
            partitions: lines.collect(),
        };
        serde_json::to_writer(&mut *out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        write_text(&found, start, now, terminal, out)?;
    }
    out.flush()?;
    Ok(())
}

fn line(seen: &Seen, start: StartAt, now: Timestamp) -> Line<'_> {
    Line {
        topic: &seen.partition.topic,
        partition: seen.partition.partition,
        log_start: seen.log_start,
        high_watermark: seen.high_watermark,
        commit: seen.commit.as_ref().map(|commit| Commit {
            next_offset: commit.next_offset,
            done: &commit.done,
            owner: &commit.owner,
            owner_epoch: commit.owner_epoch,
            guarantee: commit.guarantee,
            at: commit.at,
            age_seconds: age(commit, now).as_secs(),
            is_live: commit.is_live(now),
            live_until: commit.live_until(),
        }),
        unfinished: seen.unfinished(start),
        group_offset: seen.group_offset,
        problem: seen.problem(start),
    }
}

fn write_text(
    found: &Found,
    start: StartAt,
    now: Timestamp,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let rows: Vec<_> = found
        .partitions
        .iter()
        .map(|seen| row(seen, start, now))
        .collect();
    table::write(&TITLES, &rows, terminal, out)?;
    for seen in &found.partitions {
        if let Some(problem) = seen.problem(start) {
            let partition = &seen.partition;
            let text = format!("→ {partition}: {problem}; `offsets reset` decides where to go on");
            writeln!(out, "{}", terminal.paint(Tone::Caution, text))?;
        }
    }
    if let Some(problem) = &found.group_problem {
        let text = format!("→ the group's offsets are not known: {}", harmless(problem));
        writeln!(out, "{}", terminal.paint(Tone::Caution, text))?;
    }
    Ok(())
}

fn row(seen: &Seen, start: StartAt, now: Timestamp) -> Row {
    let none = || "-".to_owned();
    let commit = seen.commit.as_ref();
    vec![
        seen.partition.to_string(),
        seen.log_start.to_string(),
        seen.high_watermark.to_string(),
        commit.map_or_else(none, |commit| commit.next_offset.to_string()),
        commit.map_or_else(none, |commit| ranges(&commit.done)),
        seen.unfinished(start).to_string(),
        seen.group_offset
            .map_or_else(none, |offset| offset.to_string()),
        commit.map_or_else(none, |commit| {
            let age = Duration::from_secs(age(commit, now).as_secs());
            let live = if commit.is_live(now) { ", live" } else { "" };
            format!("{} ago{live}", humantime::format_duration(age))
        }),
        commit.map_or_else(none, |commit| {
            let (owner, epoch) = (&commit.owner, commit.owner_epoch);
            format!("{owner}, epoch {epoch}, {}", commit.guarantee)
        }),
    ]
}

/// As in the commit record: ends are exclusive.
fn ranges(done: &[(Offset, Offset)]) -> String {
    if done.is_empty() {
        return "-".to_owned();
    }
    let shown = done.iter().take(RANGES_SHOWN);
    let shown: Vec<_> = shown
        .map(|(first, end)| format!("{first}..{end}"))
        .collect();
    let shown = shown.join(" ");
    let count: u64 = done
        .iter()
        .map(|(first, end)| first.distance_to(*end))
        .sum();
    if done.len() > RANGES_SHOWN {
        return format!("{shown} … ({count} in {} ranges)", done.len());
    }
    format!("{shown} ({count})")
}

/// How long ago it was written; nothing where the clocks of two machines differ.
fn age(commit: &CommitRecord, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(commit.at)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_named_as_far_as_they_fit() {
        let range = |first, end| (Offset::new(first), Offset::new(end));
        assert_eq!(ranges(&[]), "-");
        assert_eq!(ranges(&[range(6, 8), range(10, 11)]), "6..8 10..11 (3)");
        let many: Vec<_> = (1..6).map(|n| range(n * 10, n * 10 + 2)).collect();
        assert_eq!(ranges(&many), "10..12 20..22 30..32 … (10 in 5 ranges)");
    }
}
