//! `offsets reset`: looks, plans, shows the plan, and does it where that was asked for.
//!
//! The plan is shown in every case and made anew for each partition when it is written, from what is the newest commit then.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::look::{Seen, look, open_between};
use super::table;
use super::{OffsetsError, parse_partition};
use crate::app::wanted_topics;
use crate::cli::contact;
use crate::cli::output::{Terminal, Tone, harmless};
use crate::clock;
use crate::config::Settings;
use crate::kafka::topics;
use crate::kafka::wire::{Cluster, Isolation, OffsetAt, WireSink};
use crate::offsets::{
    CommitStore, Guarantee, Reset, StartAt, WasReset, Writers, reset, reset_position,
};
use crate::types::{Offset, TopicPartition, error_chain};

/// How long one partition may take: a broker that aborts the transaction of an owner that died, and some tries more.
const WITHIN: Duration = Duration::from_secs(60);

/// Where to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// At the first record that exists.
    Earliest,
    /// Behind the last record.
    Latest,
    /// At this offset of each partition.
    Offset(Offset),
    /// At the first record whose time stamp is not before this one; behind the last where there is none.
    Timestamp(Timestamp),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Ok(offset) = text.parse::<i64>() {
            return if offset < 0 {
                Err(format!("`{offset}` is negative, and an offset is not"))
            } else {
                Ok(Self::Offset(Offset::new(offset)))
            };
        }
        text.parse().map(Self::Timestamp).map_err(|_unreadable| {
            format!(
                "`{text}` is neither `earliest`, `latest`, an offset, nor a time such as 2026-11-29T08:00:00Z"
            )
        })
    }
}

/// Arguments of `offsets reset`.
#[derive(Debug, Clone, Args)]
pub struct ResetArgs {
    /// Where to go on: the next offset to read of each partition.
    #[arg(long, value_name = "earliest|latest|OFFSET|TIMESTAMP")]
    pub to: Target,
    /// Only this one (repeatable).
    #[arg(long, value_name = "TOPIC/NUMBER", value_parser = parse_partition)]
    pub partition: Vec<TopicPartition>,
    /// Write it; otherwise this is a dry run.
    #[arg(long, visible_alias = "yes")]
    pub execute: bool,
    /// Take partitions from an instance that is alive: it ends with exit code 3, or goes on from there with input.assignment = group.
    #[arg(long)]
    pub force: bool,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What becomes of one partition.
struct Plan {
    seen: Seen,
    to: Offset,
    /// Finished records that are done again.
    again: u64,
    /// Unfinished records that are passed over.
    passed_over: u64,
    is_unchanged: bool,
}

impl Plan {
    fn new(seen: Seen, to: Offset, start: StartAt) -> Self {
        let commit = seen.commit.as_ref().filter(|_| seen.is_of_this_topic());
        let after = reset_position(commit, seen.topic_id, to);
        let (mut again, mut passed_over) = (0, 0);
        match commit {
            None if seen.commit.is_some() => passed_over = seen.log_start.distance_to(to),
            None => passed_over = seen.start(start).distance_to(to),
            Some(commit) if to < commit.next_offset => {
                let done = commit.done.iter();
                let done: u64 = done.map(|(first, end)| first.distance_to(*end)).sum();
                again = to.distance_to(commit.next_offset).saturating_add(done);
            }
            Some(commit) => {
                // What is gone cannot be passed over.
                let from = commit.next_offset.max(seen.log_start);
                passed_over = open_between(commit, from, to);
            }
        }
        let is_unchanged = commit.is_some_and(|commit| commit.position() == after);
        Self {
            seen,
            to,
            again,
            passed_over,
            is_unchanged,
        }
    }

    /// What it means, for the operator.
    fn effect(&self) -> String {
        if self.is_unchanged {
            return "it stands there".to_owned();
        }
        match (self.again, self.passed_over) {
            (0, 0) => "nothing is done again, nothing is passed over".to_owned(),
            (again, 0) => format!("{again} finished records are done again: results again"),
            (_, passed_over) => format!("{passed_over} unfinished records are passed over"),
        }
    }

    /// Who works on it, and until when they are taken for alive.
    fn owner(&self, now: Timestamp) -> Option<(&str, Timestamp)> {
        let commit = self.seen.commit.as_ref()?;
        let is_in_the_way = commit.is_live(now) && !self.is_unchanged;
        is_in_the_way.then(|| (commit.owner.as_str(), commit.live_until()))
    }
}

/// Of each instance that is in the way, one sentence with all of its partitions.
fn owners(plans: &[Plan], now: Timestamp) -> Vec<String> {
    let mut by_owner: BTreeMap<&str, (Timestamp, Vec<String>)> = BTreeMap::new();
    for plan in plans {
        if let Some((owner, free_at)) = plan.owner(now) {
            let (latest, partitions) = by_owner.entry(owner).or_default();
            *latest = free_at.max(*latest);
            partitions.push(plan.seen.partition.to_string());
        }
    }
    let told = by_owner.into_iter().map(|(owner, (free_at, partitions))| {
        let shown = free_at.round(jiff::Unit::Second).unwrap_or(free_at);
        let left = Duration::try_from(free_at.duration_since(now)).unwrap_or_default();
        format!(
            "instance `{owner}` works on {}, and is taken for alive until {shown} (in {} s) unless it commits again",
            partitions.join(", "),
            left.as_secs()
        )
    });
    told.collect()
}

pub(super) async fn run(
    args: &ResetArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<(), OffsetsError> {
    let planned = plans(args, settings);
    let planned = shutdown.run_until_cancelled(planned).await;
    let plans = planned.unwrap_or(Err(OffsetsError::Stopped))?;
    let now = clock::now();
    let owners = owners(&plans, now);
    let is_refused = !owners.is_empty() && !args.force;
    if !args.execute || is_refused {
        if args.json {
            write_json(args, &plans, &BTreeMap::new(), out)?;
        } else {
            write_plans(&plans, terminal, out)?;
        }
    }
    if is_refused {
        return Err(OffsetsError::Owned { owners });
    }
    if !args.execute {
        if !args.json {
            for owner in owners {
                let text = format!("→ {owner}: --force overrules it");
                writeln!(out, "{}", terminal.paint(Tone::Caution, harmless(&text)))?;
            }
            writeln!(out, "dry run: nothing was written; --execute does it")?;
        }
        out.flush()?;
        return Ok(());
    }
    if !args.json {
        write_plans(&plans, terminal, out)?;
        out.flush()?;
    }
    execute(args, settings, &plans, terminal, out, shutdown).await
}

async fn plans(args: &ResetArgs, settings: &Settings) -> Result<Vec<Plan>, OffsetsError> {
    let cluster = contact::impatient(&settings.kafka);
    let found = look(&cluster, settings, &args.partition).await?;
    let mut plans = Vec::new();
    for seen in found.partitions {
        let to = match args.to {
            Target::Earliest => seen.log_start,
            Target::Latest => seen.high_watermark,
            Target::Offset(offset) => offset,
            Target::Timestamp(at) => {
                let at = OffsetAt::Timestamp(at.as_millisecond());
                let isolation = Isolation::ReadUncommitted;
                let found = cluster.list_offset(&seen.partition, at, isolation).await?;
                found.unwrap_or(seen.high_watermark)
            }
        };
        // A record may have come, or gone, since the look.
        let is_offset = matches!(args.to, Target::Offset(_));
        if is_offset && !(seen.log_start..=seen.high_watermark).contains(&to) {
            return Err(OffsetsError::Outside {
                partition: seen.partition,
                to,
                log_start: seen.log_start,
                high_watermark: seen.high_watermark,
            });
        }
        plans.push(Plan::new(seen, to, settings.input.start));
    }
    Ok(plans)
}

async fn execute(
    args: &ResetArgs,
    settings: &Settings,
    plans: &[Plan],
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<(), OffsetsError> {
    let cluster = Cluster::new(&settings.kafka);
    // The commit topic has to be there and to be compacted, as for `run`.
    let topics = topics::ensure(&cluster, &wanted_topics(settings)).await?;
    let commits = settings.kafka.commit_topic();
    let reader = std::sync::Arc::new(cluster.clone());
    let store = CommitStore::new(reader, commits, topics.commit_partitions);
    let at_least_once = WireSink::idempotent(cluster.clone());
    let exactly_once = WireSink::transactional(cluster.clone(), &settings.kafka.group_id);
    let writers = Writers {
        at_least_once: &at_least_once,
        exactly_once: &exactly_once,
    };
    let instance = instance();
    let mut ends = BTreeMap::new();
    for plan in plans.iter().filter(|plan| !plan.is_unchanged) {
        if shutdown.is_cancelled() {
            return Err(OffsetsError::Stopped);
        }
        let order = order(args, settings, plan, &instance);
        let partition = &order.partition;
        let end = match timeout(WITHIN, reset(writers, &store, &order)).await {
            Ok(end) => end.map_err(|error| error_chain(&error)),
            Err(_elapsed) => Err(format!(
                "no end within {WITHIN:?}: `offsets show` tells where it stands, and to repeat this is harmless"
            )),
        };
        if !args.json {
            write_end(partition, &end, terminal, out)?;
        }
        ends.insert(partition.clone(), end);
    }
    mirror(&cluster, settings, &ends).await;
    if args.json {
        write_json(args, plans, &ends, out)?;
    }
    out.flush()?;
    let failed = ends.values().filter(|end| end.is_err()).count();
    if failed > 0 {
        let partitions = ends.len();
        return Err(OffsetsError::Failed { failed, partitions });
    }
    Ok(())
}

fn order(args: &ResetArgs, settings: &Settings, plan: &Plan, instance: &str) -> Reset {
    let start = plan.seen.start(settings.input.start);
    Reset {
        partition: plan.seen.partition.clone(),
        topic_id: plan.seen.topic_id,
        uncommitted: (start, settings.processing.guarantee),
        to: plan.to,
        force: args.force,
        instance: instance.to_owned(),
    }
}

/// Tells commits of this run of the command from those of processors.
fn instance() -> String {
    let run = Uuid::new_v4().simple().to_string();
    let run: String = run.chars().take(8).collect();
    format!("offsets-reset-{run}")
}

/// What lag tools see follows at once. The next owner copies it too, so nothing is lost when it is refused.
async fn mirror(
    cluster: &Cluster,
    settings: &Settings,
    ends: &BTreeMap<TopicPartition, Result<WasReset, String>>,
) {
    let offsets: Vec<_> = ends
        .iter()
        .filter_map(|(partition, end)| {
            let done = end.as_ref().ok()?;
            Some((partition.clone(), done.after.next_offset))
        })
        .collect();
    let group = &settings.kafka.group_id;
    let problem = match cluster.commit_group_offsets(group, None, &offsets).await {
        Ok(refused) => refused.first().map(|refused| error_chain(&refused.error)),
        Err(error) => Some(error_chain(&error)),
    };
    if let Some(problem) = problem {
        tracing::warn!(
            group,
            problem,
            "lag tools show the old offsets until a processor has taken the partitions over"
        );
    }
}

fn write_plans(
    plans: &[Plan],
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let rows: Vec<_> = plans
        .iter()
        .map(|plan| {
            let now = plan.seen.commit.as_ref();
            vec![
                plan.seen.partition.to_string(),
                now.map_or_else(|| "-".to_owned(), |commit| commit.next_offset.to_string()),
                plan.to.to_string(),
                plan.effect(),
            ]
        })
        .collect();
    table::write(
        &["partition", "before", "after", "effect"],
        &rows,
        terminal,
        out,
    )?;
    let is_again = plans.iter().any(|plan| plan.again > 0);
    let is_exactly_once = plans.iter().any(|plan| {
        let commit = plan.seen.commit.as_ref();
        commit.is_some_and(|commit| commit.guarantee == Guarantee::ExactlyOnce)
    });
    if is_again && is_exactly_once {
        let text = "→ exactly once holds from the reset on: readers see the results before it and those after it";
        writeln!(out, "{}", terminal.paint(Tone::Caution, text))?;
    }
    Ok(())
}

fn write_end(
    partition: &TopicPartition,
    end: &Result<WasReset, String>,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let mark = terminal.mark(end.is_ok());
    match end {
        Ok(done) => {
            let before = done.before.as_ref();
            let before = before.map_or_else(
                || "without commit".to_owned(),
                |before| before.next_offset.to_string(),
            );
            write!(
                out,
                "{mark} {partition}  {before} → {}",
                done.after.next_offset
            )?;
            if let Some(overruled) = &done.overruled {
                let overruled = harmless(overruled);
                write!(out, "; `{overruled}` is overruled, and notices within 15 s")?;
            }
            writeln!(out)
        }
        Err(problem) => writeln!(out, "{mark} {partition}  {}", harmless(problem)),
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    executed: bool,
    partitions: Vec<Line<'a>>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    topic: &'a str,
    partition: i32,
    before: Option<Offset>,
    after: Offset,
    /// Finished records that are done again.
    done_again: u64,
    /// Unfinished records that are passed over.
    passed_over: u64,
    /// `planned`, `unchanged`, `reset` or `failed`.
    outcome: &'static str,
    overruled: Option<&'a str>,
    problem: Option<&'a str>,
}

fn write_json(
    args: &ResetArgs,
    plans: &[Plan],
    ends: &BTreeMap<TopicPartition, Result<WasReset, String>>,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let lines = plans.iter().map(|plan| {
        let seen = &plan.seen;
        let end = ends.get(&seen.partition);
        let done = end.and_then(|end| end.as_ref().ok());
        let commit = seen.commit.as_ref();
        let before = match done {
            Some(done) => done.before.as_ref().map(|before| before.next_offset),
            None => commit.map(|commit| commit.next_offset),
        };
        Line {
            topic: &seen.partition.topic,
            partition: seen.partition.partition,
            before,
            after: plan.to,
            done_again: plan.again,
            passed_over: plan.passed_over,
            outcome: match end {
                _ if plan.is_unchanged => "unchanged",
                None => "planned",
                Some(Ok(_)) => "reset",
                Some(Err(_)) => "failed",
            },
            overruled: done.and_then(|done| done.overruled.as_deref()),
            problem: end.and_then(|end| end.as_ref().err().map(String::as_str)),
        }
    });
    let report = Report {
        executed: args.execute && !ends.is_empty(),
        partitions: lines.collect(),
    };
    serde_json::to_writer(&mut *out, &report)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        assert_eq!("earliest".parse(), Ok(Target::Earliest));
        assert_eq!("latest".parse(), Ok(Target::Latest));
        assert_eq!("17".parse(), Ok(Target::Offset(Offset::new(17))));
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        for text in ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00"] {
            assert_eq!(text.parse(), Ok(Target::Timestamp(at)), "{text}");
        }
        for text in ["", "-3", "soon", "2023-11-14"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
