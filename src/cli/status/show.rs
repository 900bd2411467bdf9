//! The page as a person reads it: what limits comes first.

use std::cmp::Reverse;
use std::io::{self, Write};
use std::time::Duration;

use crate::cli::output::{Terminal, Tone, harmless};

use super::page::{Drift, Endpoint, Head, Limiting, Page, Partition, Stall};

/// Partitions that are shown: those with most to do.
const PARTITIONS_MAX: usize = 20;
/// Where the second column begins.
const LABEL: usize = 14;

pub(super) fn write(
    page: &Page,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let text = |name: &str| page.info.get(name).map_or("?", String::as_str);
    let uptime = humantime::format_duration(Duration::from_secs(page.uptime_seconds));
    let tone = if page.works() { Tone::Good } else { Tone::Bad };
    let state = terminal.paint(tone, harmless(&page.state));
    row(
        terminal,
        out,
        "state",
        &format!(
            "{state} for {uptime}, version {}, instance {}, group {}",
            harmless(&page.version),
            harmless(text("instance")),
            harmless(text("group_id"))
        ),
    )?;
    if !page.alive {
        row(terminal, out, "", "its event loop does not turn")?;
    }
    if !page.waiting_for.is_empty() {
        let missing = page.waiting_for.join(", ");
        row(terminal, out, "not done yet", &harmless(&missing))?;
    }
    if let Some(limiting) = &page.limiting {
        write_limiting(limiting, terminal, out)?;
    }
    for hold in &page.holds {
        let what = format!("{} since {}", hold.what, hold.since);
        row(terminal, out, "held", &harmless(&what))?;
        row(terminal, out, "", &harmless(&hold.reason))?;
    }
    for stall in &page.stalled {
        row(terminal, out, "stalled", &harmless(&stalled(stall)))?;
    }
    write_numbers(page, terminal, out)?;
    write_partitions(&page.partitions, terminal, out)
}

fn write_limiting(
    limiting: &Limiting,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let factor = terminal.paint(Tone::Strong, harmless(&limiting.factor));
    row(terminal, out, "limited by", &factor)?;
    row(terminal, out, "", &harmless(&limiting.detail))?;
    let mut shares: Vec<_> = limiting.last_minute_percent.iter().collect();
    shares.sort_by_key(|(name, percent)| (Reverse(**percent), *name));
    let shares = shares
        .iter()
        .map(|(name, percent)| format!("{name} {percent} %"));
    let shares: Vec<_> = shares.collect();
    let minute = format!(
        "{} documents; {}",
        limiting.last_minute_documents,
        shares.join(", ")
    );
    row(terminal, out, "last minute", &harmless(&minute))
}

fn stalled(stall: &Stall) -> String {
    let Stall {
        topic,
        partition,
        offset,
        since,
        ..
    } = stall;
    let stage = stall.stage.as_deref().unwrap_or("not read");
    format!("{topic}/{partition}@{offset} makes no progress since {since} ({stage})")
}

fn write_numbers(page: &Page, terminal: &Terminal, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let failed: u64 = page.totals.dead_lettered.values().sum();
    let documents = format!("{} results, {failed} dead letters", page.totals.processed);
    row(terminal, out, "documents", &documents)?;
    for endpoint in &page.model.endpoints {
        row(terminal, out, "model server", &harmless(&told(endpoint)))?;
    }
    let model = &page.model;
    let waiting = format!(
        "{} for a slot, {} for a budget, {} for their next attempt",
        model.waiting_for_slot, model.waiting_for_budget, model.retrying
    );
    row(terminal, out, "waiting", &waiting)?;
    let ahead = &page.read_ahead;
    let ahead = format!(
        "{} of {} records, {} of {} bytes",
        ahead.records, ahead.records_max, ahead.bytes, ahead.bytes_max
    );
    row(terminal, out, "read ahead", &ahead)?;
    match &page.drift {
        Some(drift) if !drift.generation.is_empty() => {
            let tone = match drift.state.as_str() {
                "shifted" => Tone::Bad,
                "watching" => Tone::Good,
                _ => Tone::Faint,
            };
            let state = terminal.paint(tone, harmless(&drift.state));
            let told = drifted(drift);
            row(
                terminal,
                out,
                "drift",
                &format!("{state}{}", harmless(&told)),
            )
        }
        _ => Ok(()),
    }
}

fn drifted(drift: &Drift) -> String {
    let shifted = drift.signals.iter().filter(|it| it.state == "shifted");
    let shifted: Vec<_> = shifted
        .map(|it| {
            let value = it.value.unwrap_or_default();
            format!(
                "{} ({} {value:.3}, threshold {:.3})",
                it.name, it.statistic, it.threshold
            )
        })
        .collect();
    if shifted.is_empty() {
        let documents = drift.reference_documents;
        return format!(
            ", reference of {documents} documents of {}",
            drift.generation
        );
    }
    format!(": {}", shifted.join(", "))
}

fn told(endpoint: &Endpoint) -> String {
    let Endpoint {
        url,
        limit,
        in_flight,
        ..
    } = endpoint;
    let queued = endpoint
        .queued_there
        .map_or_else(String::new, |queued| format!(", {queued} wait there"));
    let held = if endpoint.held.is_some() {
        ", held"
    } else {
        ""
    };
    format!("{url}: {in_flight} of {limit} calls{queued}{held}")
}

fn write_partitions(
    partitions: &[Partition],
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    if partitions.is_empty() {
        return row(terminal, out, "partitions", "none");
    }
    let mut shown: Vec<_> = partitions.iter().collect();
    shown.sort_by_key(|each| Reverse(each.unfinished()));
    let hidden = shown.len().saturating_sub(PARTITIONS_MAX);
    shown.truncate(PARTITIONS_MAX);
    shown.sort_by_key(|each| (&each.topic, each.partition));
    let name =
        |each: &Partition| harmless(&format!("{}/{}", each.topic, each.partition)).into_owned();
    let names = shown.iter().map(|each| name(each).chars().count());
    let width = names.max().unwrap_or(0).max("partition".len());
    let heads = format!(
        "{:<width$} {:>9} {:>10} {:>9} {:>8} {:>9}  {}",
        "partition", "lag", "unfinished", "in flight", "for turn", "oldest", "which"
    );
    writeln!(out, "\n{}", terminal.paint(Tone::Faint, heads))?;
    for each in shown {
        let oldest = each.oldest_open_ms.map_or_else(String::new, |ms| {
            format!("{}.{} s", ms / 1_000, ms % 1_000 / 100)
        });
        writeln!(
            out,
            "{:<width$} {:>9} {:>10} {:>9} {:>8} {:>9}  {}",
            name(each),
            each.lag(),
            each.unfinished(),
            each.in_flight,
            each.waiting_for_turn,
            oldest,
            harmless(&each.head.as_ref().map_or_else(String::new, which))
        )?;
    }
    if hidden > 0 {
        writeln!(out, "and {hidden} more with less to do")?;
    }
    Ok(())
}

fn which(head: &Head) -> String {
    format!("{} {}", head.offset, head.stage)
}

fn row(
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    label: &str,
    text: &str,
) -> io::Result<()> {
    let label = format!("{label:<LABEL$}");
    writeln!(out, "{}{text}", terminal.paint(Tone::Faint, label))
}
