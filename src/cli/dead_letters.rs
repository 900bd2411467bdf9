//! `dead-letters`: what was given up, why, and back to the input with it.
//!
//! Dead letters stay where they are, whatever is done here. The topic is read by our own driver, each partition up to the end that it had at
//! the start, a few megabytes at a time: their number bounds nothing but the time.

pub(in crate::cli) mod cursor;
pub(in crate::cli) mod filter;
mod list;
mod marks;
mod replay;
mod show;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::cli::contact;
use crate::cli::output::{Terminal, has_seen_enough};
use crate::kafka::wire::{Cluster, TopicDescription};
use crate::kafka::{KafkaConfig, KafkaError, StepError};
use crate::offsets::Guarantee;
use crate::types::TopicPartition;

pub use filter::FilterArgs;
pub use list::ListArgs;
pub use marks::MarksError;
pub(crate) use marks::fuzzing as fuzzing_marks;
pub use replay::ReplayArgs;
pub use show::{ShowArgs, Target};

/// Arguments of `dead-letters`.
#[derive(Debug, Clone, Args)]
pub struct DeadLettersArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub command: DeadLettersCommand,
}

/// What can be done with dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum DeadLettersCommand {
    /// A line for each
    List(ListArgs),
    /// One with its reason, headers and document
    Show(ShowArgs),
    /// Send the documents to their input topic again, each dead letter once
    Replay(ReplayArgs),
}

/// The settings that count.
#[derive(Debug, Clone, Copy)]
pub struct DeadLetterSettings<'a> {
    /// How to reach Kafka, and whether topics may be created.
    pub kafka: &'a KafkaConfig,
    /// The topic of the dead letters (`dead_letters.topic`).
    pub topic: &'a str,
    /// What a replay promises (`processing.guarantee`).
    pub guarantee: Guarantee,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// With everything that was asked for.
    Done,
    /// With documents that could not be replayed.
    Incomplete,
    /// Before the end, as it was told to stop.
    Stopped,
}

/// Why dead letters cannot be shown or replayed.
#[derive(Debug, thiserror::Error)]
pub enum DeadLettersError {
    /// Kafka, or the way to it.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The topic is not there.
    #[error(
        "topic `{topic}` does not exist: nothing was given up yet (`run` creates it), or dead_letters.topic names another"
    )]
    NoTopic {
        /// The topic.
        topic: String,
    },
    /// A partition that the topic does not have.
    #[error("there is no partition {partition}: topic `{topic}` has {partitions}, numbered from 0")]
    NoPartition {
        /// The topic.
        topic: String,
        /// What was asked for.
        partition: i32,
        /// How many there are.
        partitions: i32,
    },
    /// There is no such dead letter.
    #[error("topic `{topic}` has no dead letter {target}")]
    NotFound {
        /// The topic.
        topic: String,
        /// What was asked for.
        target: Target,
    },
    /// Where replays keep what they have done.
    #[error(transparent)]
    Marks(#[from] MarksError),
    /// `--to` names a topic that must not have documents.
    #[error("--to {topic}: {why}")]
    To {
        /// The topic.
        topic: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Some documents were not acknowledged.
    #[error(
        "{replayed} documents were replayed; the next was not acknowledged. Run the command again: it goes on from there"
    )]
    NotAcknowledged {
        /// Documents that were replayed in this run.
        replayed: u64,
        /// What the last try came to.
        source: StepError,
    },
    /// Standard output.
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
}

/// Lists, shows or replays.
///
/// # Errors
/// When Kafka does not answer in time, a topic or a dead letter does not exist, documents are not acknowledged, or `out` cannot be
/// written. A reader that went away (`| head`) is not an error.
///
/// # Cancel safety
/// Only a replay writes, and it is not to be dropped: cancel `shutdown`, and it ends after the documents that are on their way.
pub async fn run(
    args: &DeadLettersArgs,
    settings: DeadLetterSettings<'_>,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<Completion, DeadLettersError> {
    let topic = Topic::find(settings).await?;
    let done = match &args.command {
        DeadLettersCommand::List(args) => {
            let listing = list::list(args, &topic, terminal, out);
            shutdown.run_until_cancelled(listing).await
        }
        DeadLettersCommand::Show(args) => {
            let showing = show::show(args, &topic, terminal, out);
            shutdown.run_until_cancelled(showing).await
        }
        DeadLettersCommand::Replay(args) => {
            Some(replay::replay(args, settings, &topic, terminal, out, shutdown).await)
        }
    };
    match done {
        // Who stops a listing has seen enough.
        None => Ok(Completion::Done),
        Some(Err(DeadLettersError::Output(error))) if has_seen_enough(&error) => {
            Ok(Completion::Done)
        }
        Some(done) => done,
    }
}

/// The dead-letter topic.
#[derive(Debug)]
struct Topic {
    cluster: Cluster,
    description: TopicDescription,
}

impl Topic {
    async fn find(settings: DeadLetterSettings<'_>) -> Result<Self, DeadLettersError> {
        let found = contact::topic(&contact::impatient(settings.kafka), settings.topic).await?;
        let description = found.ok_or_else(|| DeadLettersError::NoTopic {
            topic: settings.topic.to_owned(),
        })?;
        Ok(Self {
            cluster: Cluster::new(settings.kafka),
            description,
        })
    }

    fn name(&self) -> &str {
        &self.description.name
    }

    fn partition(&self, index: i32) -> TopicPartition {
        TopicPartition::new(self.name(), index)
    }

    /// Those of these numbers, or all.
    fn partitions(&self, asked: &[i32]) -> Result<Vec<TopicPartition>, DeadLettersError> {
        let all = 0..self.description.partitions;
        if let Some(missing) = asked.iter().find(|index| !all.contains(index)) {
            return Err(DeadLettersError::NoPartition {
                topic: self.name().to_owned(),
                partition: *missing,
                partitions: all.end,
            });
        }
        let chosen = all.filter(|index| asked.is_empty() || asked.contains(index));
        Ok(chosen.map(|index| self.partition(index)).collect())
    }
}
