//! `check`: is everything there that `run` needs, may it do what it has to, and does a processor run and keep up?
//!
//! All probes run side by side and each has a deadline, so that a wrong setting is told within five seconds, and what one of them cannot
//! find out hides nothing of the others. Each cross says what to do about it. Nothing is changed.

mod backlog;
mod judge;
mod look;
mod model;
mod rights;

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::cli::contact;
use crate::cli::output::{Terminal, Tone, harmless};
use crate::clock;
use crate::config::Settings;
use crate::kafka::KafkaError;
use crate::types::error_chain;

/// How long each probe may take; somewhat longer than Kafka's first answer, whose own message says more.
const PROBE_WITHIN: Duration = Duration::from_millis(4_500);

/// Arguments of `check`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct CheckArgs {
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// One tick or cross.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckItem {
    /// What was checked.
    pub name: String,
    /// Whether it is as it should be.
    pub passed: bool,
    /// What was found.
    pub detail: String,
    /// What to do about a cross, where the detail does not say it already.
    pub remedy: Option<String>,
}

impl CheckItem {
    fn pass(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            passed: true,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn fail(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            passed: false,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// All ticks and crosses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Whether there is no cross.
    pub passed: bool,
    /// In the order in which they are shown.
    pub items: Vec<CheckItem>,
}

/// Checks, and shows what was found; whether all passed (exit code 1 otherwise).
///
/// # Errors
/// When `out` cannot be written.
///
/// # Cancel safety
/// Safe: nothing is changed.
pub async fn run(
    args: CheckArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<bool> {
    let report = report(settings).await;
    if args.json {
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        write_text(&report, terminal, out)?;
    }
    out.flush()?;
    Ok(report.passed)
}

/// Checks.
///
/// # Cancel safety
/// Safe: nothing is changed.
pub async fn report(settings: &Settings) -> CheckReport {
    let asked = (
        Box::pin(model::check(settings)),
        Box::pin(check_kafka(settings)),
    );
    let (mut items, kafka) = tokio::join!(asked.0, asked.1);
    items.extend(kafka);
    CheckReport {
        passed: items.iter().all(|item| item.passed),
        items,
    }
}

async fn check_kafka(settings: &Settings) -> Vec<CheckItem> {
    let cluster = contact::impatient(&settings.kafka);
    let described = within("check", cluster.cluster_description()).await;
    let description = match described {
        Ok(description) => description,
        Err(error) => {
            let unasked = |name| {
                let detail = "not asked, as Kafka does not answer";
                CheckItem::fail(name, detail, "first reach Kafka")
            };
            let detail = error_chain(&error);
            return vec![
                CheckItem::fail("kafka", detail, judge::kafka_remedy(&error)),
                unasked("topics"),
                unasked("rights"),
                unasked("processor"),
            ];
        }
    };
    let (found, backlog) = tokio::join!(
        look::look(&cluster, settings, description),
        backlog::look(&cluster, settings)
    );
    let mut items = judge::kafka(settings, &found);
    items.extend(rights::judge(settings, &found));
    items.extend(judge::processor(&found, &backlog, settings, clock::now()));
    items
}

/// A probe's answer, or that there is none in time.
async fn within<T>(
    operation: &'static str,
    probe: impl Future<Output = Result<T, KafkaError>>,
) -> Result<T, KafkaError> {
    let answer = tokio::time::timeout(PROBE_WITHIN, probe).await;
    answer.unwrap_or(Err(KafkaError::Timeout {
        operation,
        after: PROBE_WITHIN,
    }))
}

fn write_text(
    report: &CheckReport,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let names = report.items.iter().map(|item| item.name.chars().count());
    let width = names.max().unwrap_or(0);
    for item in &report.items {
        let mark = terminal.mark(item.passed);
        let name = harmless(&item.name);
        writeln!(out, "{mark} {name:<width$}  {}", harmless(&item.detail))?;
        for remedy in item.remedy.iter().flat_map(|remedy| remedy.lines()) {
            let remedy = harmless(remedy);
            let remedy = terminal.paint(Tone::Caution, format!("→ {remedy}"));
            writeln!(out, "  {:<width$}  {remedy}", "")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
