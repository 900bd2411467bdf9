//! `dry-run`: what would become of the input, without writing or committing anything.
//!
//! It reads some records, renders and counts their prompts, and tells from them what the whole backlog would take. What it promises:
//! 1. Nothing is written to Kafka: no record, no topic, no offset, and no transactional id is taken.
//! 2. Prompts are those that `run` would send: the same code reads and renders them.
//! 3. Unless `--ask` allows it, the model is asked nothing: the server lists its models and counts tokens, with `--offline` not even that.
//! 4. Prompts are shown with `--show-prompt` only.

mod asked;
mod backlog;
mod estimate;
mod report;
mod sample;

use std::io::{self, Write};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use self::backlog::Backlog;
use self::estimate::{Basis, Estimate};
use self::report::Report;
use self::sample::{Sample, Sampler};
use crate::app::preflight;
use crate::cli::contact;
use crate::cli::output::{Terminal, has_seen_enough};
use crate::cli::progress::{Progress, Task};
use crate::config::Settings;
use crate::kafka::KafkaError;
use crate::kafka::wire::{Cluster, TopicDescription};
use crate::llm::{AnswerSchema, Forecaster, HttpTransport, LlmError, Setup};
use crate::offsets::ClaimError;
use crate::pipeline::Topics;
use crate::types::{Offset, error_chain};

/// Where reading begins in each partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum From {
    /// At the first record that is still there.
    #[default]
    Earliest,
    /// Where the group would go on.
    Commit,
    /// At this offset of each partition, or the nearest that is there.
    Offset(Offset),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "commit" => Ok(Self::Commit),
            other => Offset::parse(other)
                .map(Self::Offset)
                .ok_or_else(|| format!("`{other}` is neither `earliest`, `commit` nor an offset")),
        }
    }
}

/// Arguments of `dry-run`.
#[derive(Debug, Clone, Args)]
pub struct DryRunArgs {
    /// How many records to read, spread over the input partitions
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub count: u64,
    /// Where to begin in each partition; `commit` is where the group would go on
    #[arg(
        long,
        value_name = "earliest|commit|OFFSET",
        default_value = "earliest"
    )]
    pub from: From,
    /// Show the first prompt as it would be sent
    #[arg(long)]
    pub show_prompt: bool,
    /// Ask the model about so many of the documents, and throw the answers away: how fast it is, and how long they are
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000))]
    pub ask: u64,
    /// What a call takes, to tell the time by without --ask
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "ask")]
    pub seconds_per_call: Option<f64>,
    /// Ask the model server for nothing: tokens are estimated
    #[arg(long, conflicts_with = "ask")]
    pub offline: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

impl Default for DryRunArgs {
    fn default() -> Self {
        Self {
            count: 100,
            from: From::default(),
            show_prompt: false,
            ask: 0,
            seconds_per_call: None,
            offline: false,
            json: false,
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.000_1..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("write a number of seconds, from 0.0001 to 86400".to_owned()),
    }
}

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum DryRunError {
    /// A template, a schema or a file is of no use.
    #[error("{0}")]
    Setting(String),
    /// The model server.
    #[error(transparent)]
    Llm(LlmError),
    /// The model server, before it is asked.
    #[error("{0}")]
    Preflight(String),
    /// The model server did not answer what it was asked.
    #[error(
        "the model server has not answered {asked} documents within llm.deadline = {within:?}: {why}"
    )]
    Unanswered {
        /// Documents that were asked about.
        asked: usize,
        /// `llm.deadline`.
        within: Duration,
        /// What holds it, when it is known.
        why: String,
    },
    /// Kafka, or the way to it.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The commits.
    #[error(transparent)]
    Commits(#[from] ClaimError),
    /// An input topic is not there.
    #[error(
        "topic `{0}` (INPUT_TOPIC) does not exist: `run` creates it, and then it is empty; or name another"
    )]
    NoTopic(String),
    /// Standard output.
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
}

impl DryRunError {
    /// Whether no server can heal it.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        matches!(self, Self::Setting(_))
    }
}

/// Tells what would become of the input; whether it came to an end before `shutdown`.
///
/// # Errors
/// When a setting is of no use, or Kafka or the model server cannot be used.
///
/// # Cancel safety
/// Safe: nothing is changed.
pub async fn run(
    args: &DryRunArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<bool, DryRunError> {
    let telling = tell(args, settings, terminal, out);
    match shutdown.run_until_cancelled(telling).await {
        None => Ok(false),
        Some(Err(DryRunError::Output(error))) if has_seen_enough(&error) => Ok(true),
        Some(told) => told.map(|()| true),
    }
}

async fn tell(
    args: &DryRunArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<(), DryRunError> {
    let report = if args.json {
        report(args, settings, terminal, &mut io::sink()).await?
    } else {
        report(args, settings, terminal, out).await?
    };
    report.write(args.json, terminal, out)?;
    out.flush()?;
    Ok(())
}

/// What is set, made ready.
struct Parts {
    setup: Setup,
    topics: Topics,
    forecaster: Forecaster,
}

fn parts(args: &DryRunArgs, settings: &Settings) -> Result<Parts, DryRunError> {
    let setting = |error: &dyn std::error::Error| {
        DryRunError::Setting(settings.origins.named_in(error_chain(error)))
    };
    let schema = AnswerSchema::load(&settings.llm).map_err(|error| setting(&error))?;
    let text = schema.as_ref().map(AnswerSchema::text);
    let topics = Topics::load(&settings.input.topics, &settings.prompt, text)
        .map_err(|error| setting(&error))?;
    let setup = Setup {
        llm: settings.llm.clone(),
        long: settings.long_documents.clone(),
        schema: schema.map(Arc::new),
    };
    let forecaster = if args.offline {
        Forecaster::offline(setup.clone())
    } else {
        let transport = HttpTransport::new(&settings.llm).map_err(|error| setting(&error))?;
        Forecaster::new(setup.clone(), Arc::new(transport)).map_err(|error| setting(&error))?
    };
    Ok(Parts {
        setup,
        topics,
        forecaster,
    })
}

async fn report(
    args: &DryRunArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<Report, DryRunError> {
    let parts = parts(args, settings)?;
    let (usable, inputs) = tokio::join!(usable(args, settings, &parts), inputs(settings));
    usable?;
    let inputs = inputs?;
    let cluster = Cluster::new(&settings.kafka);
    let backlog = Backlog::load(&cluster, settings, &inputs).await?;
    let task = Task {
        done: "read",
        unit: "records",
        place: "of the input",
        total: args.count.min(backlog.readable(args.from)),
    };
    let mut progress = Progress::new(terminal, out, task);
    let sample = read(args, settings, &parts, &cluster, &backlog, &mut progress).await;
    progress.finish()?;
    let mut sample = sample?;
    let asked = if args.ask > 0 {
        let kept = std::mem::take(&mut sample.kept);
        Some(asked::ask(parts.setup, kept, settings.llm.deadline).await?)
    } else {
        None
    };
    let basis = Basis {
        unfinished: backlog.unfinished(),
        asked,
        seconds_per_call: args.seconds_per_call,
        llm: &settings.llm,
    };
    let estimate = Estimate::new(&sample, &basis);
    Ok(Report {
        context_tokens: parts.forecaster.context(),
        policy: settings.long_documents.policy,
        max_tokens: settings.llm.max_tokens,
        group_id: settings.kafka.group_id.clone(),
        offline: args.offline,
        show_prompt: args.show_prompt,
        backlog,
        sample,
        asked,
        estimate,
    })
}

/// Whether the model server can be used for what it is needed for.
async fn usable(args: &DryRunArgs, settings: &Settings, parts: &Parts) -> Result<(), DryRunError> {
    parts.forecaster.look().await.map_err(DryRunError::Llm)?;
    if args.ask > 0 {
        let asked = preflight(settings).await;
        asked.map_err(|error| DryRunError::Preflight(format!("{error:#}")))?;
    }
    Ok(())
}

async fn inputs(settings: &Settings) -> Result<Vec<TopicDescription>, DryRunError> {
    let cluster = contact::impatient(&settings.kafka);
    let names = settings.input.topics.iter();
    let names: Vec<_> = names.map(|topic| topic.name.as_str()).collect();
    let mut found = cluster.describe_topics(&names).await?;
    let described = names.into_iter().map(|name| {
        let topic = found.remove(name).flatten();
        topic.ok_or_else(|| DryRunError::NoTopic(name.to_owned()))
    });
    described.collect()
}

async fn read(
    args: &DryRunArgs,
    settings: &Settings,
    parts: &Parts,
    cluster: &Cluster,
    backlog: &Backlog,
    progress: &mut Progress<'_>,
) -> Result<Sample, DryRunError> {
    let mut sampler = Sampler::new(cluster, settings, backlog.cursors(args.from), args.count);
    let mut sample = Sample::new(args.ask, args.show_prompt);
    while let Some(records) = sampler.next().await? {
        let input = &settings.input;
        sample
            .take(records, input, &parts.topics, &parts.forecaster)
            .await;
        progress.set(sample.records)?;
    }
    Ok(sample)
}

#[cfg(test)]
mod tests;
