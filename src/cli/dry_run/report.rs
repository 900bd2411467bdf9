//! What a dry run tells, as text and as JSON.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::asked::Asked;
use super::backlog::{Backlog, Standing};
use super::estimate::{Estimate, grouped};
use super::sample::{Sample, Shown};
use crate::cli::output::{Terminal, Tone, harmless};
use crate::llm::LongPolicy;

/// Partitions that are told one by one; `--json` has all.
const PARTITIONS_SHOWN_MAX: usize = 16;

/// Everything that was found out.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) context_tokens: Option<u64>,
    pub(super) policy: LongPolicy,
    pub(super) max_tokens: u32,
    pub(super) group_id: String,
    pub(super) offline: bool,
    pub(super) show_prompt: bool,
    pub(super) backlog: Backlog,
    pub(super) sample: Sample,
    pub(super) asked: Option<Asked>,
    pub(super) estimate: Estimate,
}

/// The distribution of the prompts' tokens: each of the quantiles is one of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Distribution {
    min: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
}

impl Distribution {
    /// `None` of nothing.
    fn new(values: &[u64]) -> Option<Self> {
        let mut values = values.to_vec();
        values.sort_unstable();
        // The nearest rank: the smallest value that so many percent do not exceed.
        let quantile = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100).max(1);
            values.get(rank - 1).copied()
        };
        Some(Self {
            min: *values.first()?,
            p50: quantile(50)?,
            p90: quantile(90)?,
            p99: quantile(99)?,
            max: *values.last()?,
        })
    }
}

impl Report {
    pub(super) fn write(
        &self,
        as_json: bool,
        terminal: &Terminal,
        out: &mut (dyn Write + Send),
    ) -> io::Result<()> {
        if as_json {
            serde_json::to_writer_pretty(&mut *out, &self.json())?;
            return writeln!(out);
        }
        for (name, text) in self.rows() {
            writeln!(
                out,
                "{}  {text}",
                terminal.paint(Tone::Faint, format!("{name:<13}"))
            )?;
        }
        if let Some(shown) = &self.sample.shown {
            write_prompt(shown, terminal, out)?;
        }
        Ok(())
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let sample = &self.sample;
        let mut rows = vec![("read", self.told_sample())];
        if let Some(Distribution {
            min,
            p50,
            p90,
            p99,
            max,
        }) = Distribution::new(&sample.prompt_tokens)
        {
            let [min, p50, p90, p99, max] = [min, p50, p90, p99, max].map(grouped);
            rows.push((
                "prompts",
                format!("min {min} · p50 {p50} · p90 {p90} · p99 {p99} · max {max} tokens"),
            ));
            rows.push(("counted", self.told_counted()));
            rows.push(("context", self.told_context()));
        }
        if let Some(asked) = &self.asked {
            rows.push((
                "asked",
                format!(
                    "{} documents, {} answered in {:.1} s; the answers are thrown away",
                    grouped(asked.documents),
                    grouped(asked.answered),
                    asked.seconds
                ),
            ));
        }
        rows.extend(self.told_backlog());
        let estimate = &self.estimate;
        rows.extend(estimate.arithmetic.iter().cloned());
        if self.backlog.unfinished() > 0 && sample.records > 0 {
            if estimate.seconds.is_none() {
                let how = "not told: --ask N measures it, --seconds-per-call S assumes it";
                rows.push(("time", how.to_owned()));
            }
            if estimate.cost.is_none() {
                let how = "not told: llm.price_per_million_prompt_tokens and …_completion_tokens are not set";
                rows.push(("cost", how.to_owned()));
            }
        }
        rows.push(("written", "nothing, and nothing was committed".to_owned()));
        rows
    }

    fn told_sample(&self) -> String {
        let sample = &self.sample;
        let mut told = format!(
            "{} records: {} documents",
            grouped(sample.records),
            grouped(sample.documents)
        );
        if sample.skipped > 0 {
            told.push_str(&format!(
                ", {} skipped (tombstones)",
                grouped(sample.skipped)
            ));
        }
        if sample.given_up() > 0 {
            let reasons = sample.dead_letters.iter();
            let reasons: Vec<_> = reasons
                .map(|(reason, count)| format!("{reason} {}", grouped(*count)))
                .collect();
            told.push_str(&format!(
                ", {} for the dead letters ({})",
                grouped(sample.given_up()),
                reasons.join(", ")
            ));
        }
        told
    }

    fn told_counted(&self) -> String {
        let sample = &self.sample;
        match (sample.counted, sample.estimated) {
            (_, 0) => "by the server's /tokenize".to_owned(),
            (0, _) if self.offline => "by an estimate (--offline)".to_owned(),
            (0, _) => "by an estimate: the server has no /tokenize".to_owned(),
            (counted, estimated) => format!(
                "{} by the server's /tokenize, {} by an estimate, as it did not answer",
                grouped(counted),
                grouped(estimated)
            ),
        }
    }

    fn told_context(&self) -> String {
        let sample = &self.sample;
        let Some(context) = self.context_tokens else {
            return "not known: set long_documents.context_tokens to see what is longer".to_owned();
        };
        let counted = u64::try_from(sample.prompt_tokens.len()).unwrap_or(u64::MAX);
        let mut told = format!(
            "{} tokens with an answer of up to {}: {} of {} are longer",
            grouped(context),
            grouped(self.max_tokens.into()),
            grouped(sample.long),
            grouped(counted)
        );
        if sample.long > 0 {
            let (name, becomes) = match self.policy {
                LongPolicy::MapReduce => ("map_reduce", "read in parts"),
                LongPolicy::Truncate => ("truncate", "shortened"),
                LongPolicy::DeadLetter => ("dead_letter", "answered"),
            };
            let read = sample.map_reduce + sample.truncate;
            let given_up = sample.long.saturating_sub(read);
            told.push_str(&format!(
                "; long_documents.policy = {name}: {} {becomes}, {} given up",
                grouped(read),
                grouped(given_up)
            ));
        }
        told
    }

    fn told_backlog(&self) -> Vec<(&'static str, String)> {
        let Backlog(standings) = &self.backlog;
        let mut rows = vec![(
            "backlog",
            format!(
                "{} unfinished records in {} partitions: high watermark − commit of group {}",
                grouped(self.backlog.unfinished()),
                standings.len(),
                harmless(&self.group_id)
            ),
        )];
        for standing in standings.iter().take(PARTITIONS_SHOWN_MAX) {
            let Standing {
                topic,
                partition,
                commit_offset,
                high_watermark,
                unfinished,
                data_loss,
                ..
            } = standing;
            let mut told = format!(
                "{topic}/{partition}: {high_watermark} − {commit_offset} = {}",
                grouped(commit_offset.distance_to(*high_watermark))
            );
            if *unfinished < commit_offset.distance_to(*high_watermark) {
                told.push_str(&format!(", {} of them unfinished", grouped(*unfinished)));
            }
            if let Some(loss) = data_loss {
                told.push_str(&format!(" ({loss})"));
            }
            rows.push(("", told));
        }
        if let Some(more) = standings
            .len()
            .checked_sub(PARTITIONS_SHOWN_MAX)
            .filter(|more| *more > 0)
        {
            rows.push(("", format!("and {more} partitions more (--json has all)")));
        }
        rows
    }

    fn json(&self) -> Value {
        let sample = &self.sample;
        let distribution = Distribution::new(&sample.prompt_tokens).map(|found| {
            json!({
                "min": found.min, "p50": found.p50, "p90": found.p90, "p99": found.p99,
                "max": found.max,
            })
        });
        let arithmetic: serde_json::Map<_, _> = self
            .estimate
            .arithmetic
            .iter()
            .map(|(name, sum)| (name.replace(' ', "_"), Value::from(sum.as_str())))
            .collect();
        let mut told = json!({
            "sample": {
                "records": sample.records,
                "documents": sample.documents,
                "skipped": sample.skipped,
                "dead_letters": sample.dead_letters,
                "prompt_tokens": distribution,
                "counted_by_the_server": sample.counted,
                "estimated": sample.estimated,
                "longer_than_the_context": sample.long,
                "whole": sample.whole,
                "map_reduce": sample.map_reduce,
                "truncate": sample.truncate,
                "load": sample.load,
            },
            "context_tokens": self.context_tokens,
            "long_documents_policy": self.policy,
            "asked": self.asked,
            "backlog": {
                "unfinished": self.backlog.unfinished(),
                "partitions": self.backlog.0,
            },
            "estimate": {
                "documents": self.estimate.documents,
                "calls": self.estimate.calls,
                "prompt_tokens": self.estimate.prompt_tokens,
                "completion_tokens": self.estimate.completion_tokens,
                "completion_tokens_are_the_most": self.estimate.completion_tokens_are_the_most,
                "seconds": self.estimate.seconds,
                "cost": self.estimate.cost,
                "arithmetic": arithmetic,
            },
        });
        if self.show_prompt
            && let Some(told) = told.as_object_mut()
        {
            let prompt = sample.shown.as_ref().map(|shown| {
                json!({
                    "document_id": shown.document_id,
                    "source": shown.position.to_string(),
                    "messages": shown.messages,
                })
            });
            told.insert("prompt".to_owned(), prompt.unwrap_or_default());
        }
        told
    }
}

/// A prompt as it would be sent, line by line; what could move the cursor is replaced.
fn write_prompt(
    shown: &Shown,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let title = format!("prompt of {} ({})", shown.document_id, shown.position);
    let title = harmless(&title).into_owned();
    writeln!(out, "\n{}", terminal.paint(Tone::Strong, title))?;
    for message in &shown.messages {
        writeln!(
            out,
            "{}",
            terminal.paint(Tone::Faint, format!("{}:", message.role))
        )?;
        for line in message.content.lines() {
            writeln!(out, "  {}", harmless(line))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        assert_eq!(Distribution::new(&[]), None);
        let one = Distribution::new(&[7]).unwrap();
        assert_eq!((one.min, one.p50, one.p99, one.max), (7, 7, 7, 7));
        let hundred: Vec<u64> = (1..=100).rev().collect();
        let found = Distribution::new(&hundred).unwrap();
        let Distribution {
            min,
            p50,
            p90,
            p99,
            max,
        } = found;
        assert_eq!((min, p50, p90, p99, max), (1, 50, 90, 99, 100));
    }
}
