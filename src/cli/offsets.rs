//! `offsets`: where each input partition stands, and putting it elsewhere.
//!
//! What is shown is read at one moment after the other: with a processor at work the numbers of one line may be some milliseconds apart.

pub(super) mod look;
mod reset;
mod show;
mod table;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::cli::output::{Terminal, has_seen_enough};
use crate::cli::{EXIT_FAILURE, EXIT_OWNED, EXIT_USAGE};
use crate::config::Settings;
use crate::kafka::KafkaError;
use crate::kafka::topics::TopicsError;
use crate::offsets::ClaimError;
use crate::types::{Offset, TopicPartition};

pub use reset::{ResetArgs, Target};
pub use show::ShowArgs;

/// Arguments of `offsets`.
#[derive(Debug, Clone, Args)]
pub struct OffsetsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: OffsetsCommand,
}

const RESET_HELP: &str = "\
Without --execute nothing is written; the exit code is that which --execute would begin with.

Backwards, everything from there on is done again, also what is finished beyond the commit: its results are written once more, under
both guarantees. Forwards, what is not finished before it is passed over and never answered; what is finished beyond it stays finished.

While an instance is alive, which its newest commit tells for 45 s, nothing is reset (exit code 3), unless --force is given: then the
partition is claimed first, and that instance ends with exit code 3 (with input.assignment = group it goes on from there).";

/// What can be done with offsets.
#[derive(Debug, Clone, Subcommand)]
pub enum OffsetsCommand {
    /// Show where each input partition stands: log, commit, unfinished records, owner
    Show(ShowArgs),
    /// Go on elsewhere: a dry run, unless --execute is given
    #[command(after_help = RESET_HELP)]
    Reset(ResetArgs),
}

/// Why offsets cannot be shown, or not be reset.
#[derive(Debug, thiserror::Error)]
pub enum OffsetsError {
    /// Kafka, or the way to it.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The commits cannot be read.
    #[error(transparent)]
    Commits(#[from] ClaimError),
    /// An input topic is not there.
    #[error("input topic `{0}` (INPUT_TOPIC) does not exist")]
    NoTopic(String),
    /// A partition was named that is none of the input.
    #[error("--partition {0}: no such partition of an input topic (INPUT_TOPIC)")]
    NoPartition(TopicPartition),
    /// The target is not in the log.
    #[error(
        "{partition} has no offset {to}: its log begins at {log_start} and ends at {high_watermark}; name partitions with --partition, or take `earliest` or `latest`"
    )]
    Outside {
        /// The partition.
        partition: TopicPartition,
        /// The target.
        to: Offset,
        /// The first offset that exists.
        log_start: Offset,
        /// The end of the log, exclusive.
        high_watermark: Offset,
    },
    /// Somebody works on what is to be reset.
    #[error(
        "nothing is reset. {}. Stop it and wait until then, or take it from there with --force",
        owners.join(". ")
    )]
    Owned {
        /// For each instance that is at work: on which partitions, and until when it is taken for alive.
        owners: Vec<String>,
    },
    /// The topics are not as they have to be.
    #[error(transparent)]
    Topics(#[from] TopicsError),
    /// Some partitions stand where they stood.
    #[error(
        "{failed} of {partitions} partitions were not reset; repeating the command is harmless"
    )]
    Failed {
        /// How many were not.
        failed: usize,
        /// How many were to be.
        partitions: usize,
    },
    /// A signal came.
    #[error("stopped by a signal")]
    Stopped,
    /// Standard output.
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
}

impl OffsetsError {
    /// The process's exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NoPartition(_) => EXIT_USAGE,
            Self::Owned { .. } => EXIT_OWNED,
            Self::Stopped => super::EXIT_CUT_SHORT,
            _ => EXIT_FAILURE,
        }
    }
}

/// Does what the arguments say.
///
/// # Errors
/// As [`OffsetsError`] says.
///
/// # Cancel safety
/// Safe in effect: a partition is where it was or where it is to be.
pub async fn run(
    args: &OffsetsArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<(), OffsetsError> {
    match &args.command {
        OffsetsCommand::Show(args) => {
            let shown = show::run(args, settings, terminal, out);
            let shown = shutdown.run_until_cancelled(shown).await;
            match shown.unwrap_or(Err(OffsetsError::Stopped)) {
                Err(OffsetsError::Output(error)) if has_seen_enough(&error) => Ok(()),
                shown => shown,
            }
        }
        OffsetsCommand::Reset(args) => reset::run(args, settings, terminal, out, shutdown).await,
    }
}

/// Reads `topic/0`.
fn parse_partition(text: &str) -> Result<TopicPartition, String> {
    let parsed = text.rsplit_once('/').and_then(|(topic, number)| {
        let number: i32 = number.parse().ok()?;
        (!topic.is_empty() && number >= 0).then(|| TopicPartition::new(topic, number))
    });
    parsed.ok_or_else(|| format!("`{text}` is not TOPIC/NUMBER, such as financial-documents/0"))
}
