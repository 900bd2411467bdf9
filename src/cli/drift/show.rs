//! The report as a person reads it.

use std::io::{self, Write};

use crate::cli::output::{Terminal, Tone, harmless};

use super::report::{GenerationReport, PairReport, Report, SignalReport, TopicReport, Verdict};

/// Where the second column begins.
const LABEL: usize = 14;

pub(super) fn write(
    report: &Report,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    if report.topics.is_empty() {
        writeln!(out, "no results of these: nothing to compare")?;
    }
    for topic in &report.topics {
        write_topic(topic, report, terminal, out)?;
    }
    if report.cached > 0 {
        let cached = format!(
            "{} answers of identical documents are left out",
            report.cached
        );
        writeln!(out, "{}", terminal.paint(Tone::Faint, cached))?;
    }
    if report.foreign > 0 {
        let foreign = format!("{} records are not of this program", report.foreign);
        writeln!(out, "{}", terminal.paint(Tone::Faint, foreign))?;
    }
    Ok(())
}

fn write_topic(
    topic: &TopicReport,
    report: &Report,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let name = harmless(&topic.topic);
    writeln!(out, "{}", terminal.paint(Tone::Strong, name))?;
    let mut changes = topic.changes.iter();
    for (number, generation) in topic.generations.iter().enumerate() {
        if number > 0
            && let Some(pair) = changes.next()
        {
            write_change(pair, report.window_documents, terminal, out)?;
        }
        write_generation(number + 1, generation, terminal, out)?;
    }
    Ok(())
}

fn write_generation(
    number: usize,
    generation: &GenerationReport,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let mut row = |label: &str, text: &str| {
        let label = terminal.paint(Tone::Faint, format!("{label:<LABEL$}"));
        writeln!(out, "  {label}{}", harmless(text))
    };
    row(&format!("generation {number}"), &generation.generation)?;
    let time = |at: jiff::Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    row(
        "documents",
        &format!(
            "{} from {} to {}",
            generation.documents,
            time(generation.first_at),
            time(generation.last_at)
        ),
    )?;
    let medians = generation.medians.iter();
    let medians =
        medians.map(|(signal, median)| format!("{signal} {} {}", median.value, median.unit));
    row("medians", &medians.collect::<Vec<_>>().join(", "))?;
    for (signal, shares) in &generation.shares {
        let mut shares: Vec<_> = shares.iter().collect();
        shares.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let shares = shares
            .iter()
            .map(|(name, share)| format!("{name} {:.1} %", **share * 100.0));
        let shares: Vec<_> = shares.collect();
        row("", &format!("{signal}: {}", shares.join(", ")))?;
    }
    for alarm in &generation.alarms {
        row("drift", alarm)?;
    }
    Ok(())
}

fn write_change(
    pair: &PairReport,
    window_documents: u32,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let changed = terminal.paint(Tone::Strong, format!("{} changed", pair.changed.join(", ")));
    let judged = match pair.windows {
        Some(windows) => format!(
            "shifted where each of the first {windows} windows of {window_documents} documents stands out"
        ),
        None => format!(
            "too few documents for a verdict: it takes ten windows of {window_documents} before and several after"
        ),
    };
    writeln!(out, "\n  {changed}: {judged}")?;
    let width = pair.signals.iter().map(|it| it.signal.chars().count());
    let width = width.max().unwrap_or(0).max("signal".len());
    let heads = format!(
        "{:<width$}  {:>8}  {:>6}  {:>8}  {:<8}  {}",
        "signal", "psi", "ks", "ks p", "verdict", "before → after"
    );
    writeln!(out, "  {}", terminal.paint(Tone::Faint, heads))?;
    for signal in &pair.signals {
        write_signal(signal, width, terminal, out)?;
    }
    writeln!(out)
}

fn write_signal(
    signal: &SignalReport,
    width: usize,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let verdict = match signal.verdict {
        Verdict::Shifted => terminal.paint(Tone::Bad, format!("{:<8}", "shifted")),
        Verdict::Same => terminal.paint(Tone::Good, format!("{:<8}", "same")),
        Verdict::TooFew => terminal.paint(Tone::Faint, format!("{:<8}", "too few")),
    };
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
    let p = signal.ks_p_value.map_or_else(String::new, |p| {
        if p < 0.000_05 {
            "< 0.0001".to_owned()
        } else {
            format!("{p:.4}")
        }
    });
    writeln!(
        out,
        "  {:<width$}  {:>8.3}  {:>6}  {p:>8}  {verdict}  {}",
        harmless(&signal.signal),
        signal.psi,
        number(signal.ks),
        harmless(&signal.detail)
    )
}
