//! `drift report`: whether answers have changed, by what the output topic holds. It needs no running processor, and writes nothing.

mod read;
mod report;
mod show;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::cli::dead_letters::filter::time;
use crate::cli::output::Terminal;
use crate::config::Settings;
use crate::drift::Fields;
use crate::kafka::KafkaError;
use crate::llm::{AnswerSchema, LlmError};

pub use report::{
    GenerationReport, Median, PairReport, Report, SignalReport, TopicReport, Verdict,
};

/// Results that are looked at unless others are asked for.
const LAST_DEFAULT: u64 = 100_000;
/// Results that are looked at at most: they are put in order in memory, some 200 bytes each.
const LAST_MAX: u64 = 1_000_000;

/// Arguments of `drift`.
#[derive(Debug, Clone, Args)]
pub struct DriftArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DriftCommand,
}

/// What can be asked about drift.
#[derive(Debug, Clone, Subcommand)]
pub enum DriftCommand {
    /// What each generation of model, server, prompt, schema and settings answered, and what differs between one and the next
    Report(ReportArgs),
}

/// Arguments of `drift report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Look at the newest N results only, at most 1,000,000.
    #[arg(long, value_name = "N", default_value_t = LAST_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=LAST_MAX))]
    pub last: u64,
    /// Answered at this time or later: RFC 3339, a date (UTC), or an age such as 2h.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub from: Option<Timestamp>,
    /// Answered before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub to: Option<Timestamp>,
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
    /// End with exit code 1 where something has shifted.
    #[arg(long)]
    pub fail_on_shift: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a report.
    Reported,
    /// With one that tells of a shift, and --fail-on-shift.
    Shifted,
    /// Before the end, as it was told to stop.
    Stopped,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// Kafka, or the way to it.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The schema says which fields are enumerated, and it cannot be read.
    #[error(transparent)]
    Schema(#[from] LlmError),
    /// The topic is not there.
    #[error(
        "topic `{topic}` does not exist: nothing was written yet (`run` creates it), or OUTPUT_TOPIC names another"
    )]
    NoTopic {
        /// The topic.
        topic: String,
    },
    /// Standard output.
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
}

/// Reads and reports.
///
/// # Errors
/// When Kafka does not answer in time, the output topic does not exist, the schema cannot be read, or `out` cannot be written. A reader that
/// went away (`| head`) is not an error.
///
/// # Cancel safety
/// Safe: it only reads.
pub async fn run(
    args: &DriftArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<End, DriftError> {
    let DriftCommand::Report(args) = &args.command;
    let reported = shutdown
        .run_until_cancelled(tell(args, settings, terminal, out))
        .await;
    match reported {
        None => Ok(End::Stopped),
        Some(Err(DriftError::Output(error))) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(End::Reported)
        }
        Some(Err(error)) => Err(error),
        Some(Ok(report)) if args.fail_on_shift && report.is_shifted() => Ok(End::Shifted),
        Some(Ok(_)) => Ok(End::Reported),
    }
}

async fn tell(
    args: &ReportArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<Report, DriftError> {
    let schema = AnswerSchema::load(&settings.llm)?;
    let schema = schema.and_then(|schema| serde_json::from_str(schema.text()).ok());
    let fields = schema.as_ref().map(Fields::of_schema).unwrap_or_default();
    // Where a program reads on, lines of progress would be in its way.
    let mut nowhere = io::sink();
    let progress: &mut (dyn Write + Send) = if args.json { &mut nowhere } else { &mut *out };
    let read = read::read(args, settings, &fields, terminal, progress).await?;
    let report = Report::new(read, &fields, &settings.drift);
    if args.json {
        serde_json::to_writer(&mut *out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        show::write(&report, terminal, out)?;
    }
    out.flush()?;
    Ok(report)
}
