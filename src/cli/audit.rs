//! `audit`: whether the audit trail is whole, and what it says about a document.
//!
//! The topic is read by our own driver, each partition up to the end that it had at the start, a few megabytes at a time: its length bounds
//! nothing but the time.

mod report;
mod show;
mod verify;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::cli::output::Terminal;
use crate::cli::{EXIT_CUT_SHORT, EXIT_FAILURE, contact};
use crate::config::Settings;
use crate::kafka::KafkaError;
use crate::offsets::ClaimError;

pub use show::{ShowArgs, Target};
pub use verify::VerifyArgs;

/// Arguments of `audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: AuditCommand,
}

const VERIFY_HELP: &str = "\
Each input partition has a chain of its own. It is broken where a record was changed, left out, moved or put in, the last included, as the
commit record names the end of its chain. Exit code 1 when a chain is broken.

No breaks are, at least once: a record that is there once more, byte for byte; what an owner had written and not committed when another took
over (a fork, which the first record of the new owner declares); and what a former owner still wrote (late).

Where the beginning of the topic was deleted, as by its retention, the rest is verified, and it is told from which record on.";

/// What can be done with the audit trail.
#[derive(Debug, Clone, Subcommand)]
pub enum AuditCommand {
    /// Walk the chain of each input partition and name the first break
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Show what it says about a document
    Show(ShowArgs),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// With nothing to complain of.
    Whole,
    /// With a chain that is broken.
    Broken,
    /// Before the end, as it was told to stop.
    Stopped,
}

/// Why the audit trail can neither be verified nor shown.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Kafka, or the way to it.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The commits cannot be read.
    #[error(transparent)]
    Commits(#[from] ClaimError),
    /// The topic is not there.
    #[error(
        "topic `{topic}` (audit.topic) does not exist: no audit trail is kept unless audit.enabled = true, and `run` creates the topic"
    )]
    NoTopic {
        /// The topic.
        topic: String,
    },
    /// Nothing is said about it.
    #[error("topic `{topic}` has no record about {target}")]
    NotFound {
        /// The topic.
        topic: String,
        /// What was asked for.
        target: Target,
    },
    /// Standard output.
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
}

/// Verifies or shows.
///
/// # Errors
/// When Kafka does not answer in time, the topic or the document is not there, or `out` cannot be written. A reader that went away
/// (`| head`) is not an error.
///
/// # Cancel safety
/// Safe: it only reads.
pub async fn run(
    args: &AuditArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<Completion, AuditError> {
    let topic = &settings.audit.topic;
    let found = contact::topic(&contact::impatient(&settings.kafka), topic).await?;
    let found = found.ok_or_else(|| AuditError::NoTopic {
        topic: topic.clone(),
    })?;
    let done = match &args.command {
        AuditCommand::Verify(args) => {
            let verifying = verify::verify(args, settings, &found, terminal, out);
            shutdown.run_until_cancelled(verifying).await
        }
        AuditCommand::Show(args) => {
            let showing = show::show(args, settings, &found, terminal, out);
            let showing = shutdown.run_until_cancelled(showing).await;
            showing.map(|shown| shown.map(|()| true))
        }
    };
    match done {
        None => Ok(Completion::Stopped),
        Some(Err(AuditError::Output(error))) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(Completion::Whole)
        }
        Some(done) => Ok(if done? {
            Completion::Whole
        } else {
            Completion::Broken
        }),
    }
}

/// Does it for the command line; the exit code.
pub(super) async fn execute(
    args: AuditArgs,
    settings: &Settings,
    stop: &CancellationToken,
) -> super::Outcome {
    let (terminal, mut out) = (Terminal::stdout(), io::stdout());
    let done = run(&args, settings, &terminal, &mut out, stop).await?;
    Ok(match done {
        Completion::Whole => 0,
        Completion::Broken => EXIT_FAILURE,
        Completion::Stopped => EXIT_CUT_SHORT,
    })
}
