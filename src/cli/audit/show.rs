//! `audit show`: what the audit trail says about a document.

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use clap::Args;
use serde_json::{Value, json};

use super::AuditError;
use crate::cli::dead_letters::cursor::Cursor;
use crate::cli::output::{Terminal, Tone, harmless};
use crate::config::Settings;
use crate::kafka::wire::{Cluster, TopicDescription};
use crate::records::audit::{AuditAsked, AuditKind, AuditOutcome, AuditRecord, Hash};
use crate::types::{Offset, SourcePosition, TopicPartition};

/// Arguments of `audit show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// The id of a document, or where it lies in the input.
    #[arg(value_name = "DOCUMENT-ID|TOPIC/PARTITION/OFFSET")]
    pub target: Target,
    /// One JSON object per line.
    #[arg(long)]
    pub json: bool,
}

/// Which document is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    text: String,
    /// Where it lies, when the text can be read so: an id may look like it.
    position: Option<SourcePosition>,
}

impl Target {
    fn is_of(&self, record: &AuditRecord) -> bool {
        let document = &record.document;
        document.id == self.text || Some(document.source.position()) == self.position
    }
}

impl FromStr for Target {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let position = text.rsplit_once('/').and_then(|(rest, offset)| {
            let (topic, partition) = rest.rsplit_once('/')?;
            let partition = partition.parse().ok().filter(|partition| *partition >= 0)?;
            let offset = Offset::parse(offset)?;
            Some(SourcePosition {
                topic_partition: TopicPartition::new(topic, partition),
                offset,
            })
        });
        Ok(Self {
            text: text.to_owned(),
            position,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document `{}`", harmless(&self.text))
    }
}

/// Shows every record about the document.
pub(super) async fn show(
    args: &ShowArgs,
    settings: &Settings,
    topic: &TopicDescription,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<(), AuditError> {
    let cluster = Cluster::new(&settings.kafka);
    let mut shown = 0;
    for partition in 0..topic.partitions {
        let partition = TopicPartition::new(topic.name.as_str(), partition);
        let mut cursor = Cursor::open(&cluster, partition.clone()).await?;
        while let Some(records) = cursor.next().await? {
            for (offset, record) in &records {
                let value = record.value.as_deref().unwrap_or_default();
                // What is none is what `audit verify` tells of.
                let Ok(record) = AuditRecord::parse(value) else {
                    continue;
                };
                if !args.target.is_of(&record) {
                    continue;
                }
                let position = SourcePosition {
                    topic_partition: partition.clone(),
                    offset: *offset,
                };
                let hash = Hash::of(value);
                if args.json {
                    writeln!(out, "{}", as_json(&position, hash, value))?;
                } else {
                    if shown > 0 {
                        writeln!(out)?;
                    }
                    write_text(&position, hash, &record, terminal, out)?;
                }
                out.flush()?;
                shown += 1;
            }
        }
    }
    if shown == 0 {
        return Err(AuditError::NotFound {
            topic: topic.name.clone(),
            target: args.target.clone(),
        });
    }
    Ok(())
}

fn as_json(position: &SourcePosition, hash: Hash, value: &[u8]) -> Value {
    json!({
        "topic": &*position.topic_partition.topic,
        "partition": position.topic_partition.partition,
        "offset": position.offset,
        "hash": hash,
        "record": serde_json::from_slice::<Value>(value).unwrap_or_default(),
    })
}

fn write_text(
    position: &SourcePosition,
    hash: Hash,
    record: &AuditRecord,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<(), AuditError> {
    let title = terminal.paint(Tone::Strong, harmless(&record.document.id));
    writeln!(out, "{title}")?;
    for (name, text) in rows(position, hash, record) {
        let name = terminal.paint(Tone::Faint, format!("{name:<13}"));
        writeln!(out, "  {name} {}", harmless(&text))?;
    }
    Ok(())
}

fn rows(
    position: &SourcePosition,
    hash: Hash,
    record: &AuditRecord,
) -> Vec<(&'static str, String)> {
    let AuditRecord {
        chain,
        by,
        document,
        asked,
        outcome,
        times,
        ..
    } = record;
    let mut rows = vec![
        ("document", document.source.position().to_string()),
        ("its hash", document.hash.to_string()),
    ];
    rows.extend(of_outcome(outcome));
    if let Some(asked) = asked {
        rows.extend(of_call(asked));
    }
    if let Some(usage) = outcome.usage {
        let tokens = format!(
            "{} prompt, {} answer",
            usage.prompt_tokens, usage.completion_tokens
        );
        rows.push(("tokens", tokens));
    }
    rows.push(("attempts", outcome.attempts.to_string()));
    let llm = times
        .llm_ms
        .map_or_else(String::new, |ms| format!(", {ms} ms of it the model's"));
    rows.push((
        "times",
        format!("{} to {}{llm}", times.fetched_at, times.completed_at),
    ));
    rows.push((
        "by",
        format!(
            "{}, version {}, owner epoch {}, {}, configuration {}",
            by.instance, by.version, by.owner_epoch, by.guarantee, by.generation
        ),
    ));
    let take_over = if chain.take_over {
        ", the first of its owner"
    } else {
        ""
    };
    rows.push((
        "record",
        format!(
            "number {} of the chain of {}/{} of group {}{take_over}, at {position}",
            chain.sequence, chain.topic, chain.partition, chain.group
        ),
    ));
    rows.push(("its hash", hash.to_string()));
    let previous = chain.previous.map_or_else(
        || "none: it is the first".to_owned(),
        |hash| hash.to_string(),
    );
    rows.push(("the one before", previous));
    rows
}

/// What became of it.
fn of_outcome(outcome: &AuditOutcome) -> Vec<(&'static str, String)> {
    let (kind, ended) = match outcome.kind {
        AuditKind::Result => (
            "result",
            outcome.status.map_or("", |status| status.as_str()),
        ),
        AuditKind::DeadLetter => ("dead letter", outcome.reason.as_deref().unwrap_or_default()),
    };
    let cached = if outcome.cached {
        ", from the cache"
    } else {
        ""
    };
    let (topic, partition) = (&outcome.topic, outcome.partition);
    let hash = outcome.hash.map_or_else(
        || "none: it has no value".to_owned(),
        |hash| hash.to_string(),
    );
    vec![
        (
            "outcome",
            format!("{kind}, {ended}{cached}, in {topic}/{partition}"),
        ),
        ("its hash", hash),
    ]
}

/// What the model was asked with.
fn of_call(asked: &AuditAsked) -> Vec<(&'static str, String)> {
    let server = asked.endpoint.as_ref();
    let server = server.map_or_else(String::new, |endpoint| format!(" at {endpoint}"));
    let parameters = asked.parameters;
    let mut with = format!(
        "max_tokens {}, temperature {}",
        parameters.max_tokens, parameters.temperature
    );
    with.extend(parameters.top_p.map(|top_p| format!(", top_p {top_p}")));
    with.extend(parameters.seed.map(|seed| format!(", seed {seed}")));
    let mut rows = vec![
        ("model", format!("{}{server}", asked.model)),
        ("parameters", with),
        ("prompt hash", asked.prompt_hash.clone()),
    ];
    rows.extend(asked.schema_hash.clone().map(|hash| ("schema hash", hash)));
    rows.extend(asked.request_id.clone().map(|id| ("request id", id)));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_input_is_told_from_a_name_and_may_be_one() {
        let target: Target = "docs/3/17".parse().unwrap();
        let position = target.position.unwrap();
        assert_eq!(position.to_string(), "docs/3@17");
        for name in ["report-1", "a/b", "a/b/c", "docs/-1/2", "docs/1/-2"] {
            let target: Target = name.parse().unwrap();
            assert_eq!(target.position, None, "{name}");
        }
    }
}
