//! `results`: shows what was answered, or what was given up.
//!
//! The topic is read by our own driver: a past exactly-once run leaves transaction markers in it. Partitions are read to the ends
//! that they had at the start; with `--follow` the reading goes on.

pub(in crate::cli) mod show;

use std::io::{self, Write};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::cli::contact;
use crate::cli::output::{Terminal, has_seen_enough};
use crate::kafka::wire::Cluster;
use crate::kafka::{Fetched, KafkaConfig, KafkaError, LogReader};
use crate::retry::Backoff;
use crate::types::{Offset, Record, TopicPartition};

/// How long a partition without news is waited for before the next look, with `--follow`.
const FOLLOW_WAIT: Duration = Duration::from_secs(1);

/// Partitions that are read side by side: each read may bring some megabytes.
const READS_MAX: usize = 4;

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum From {
    /// At the first record that is still there.
    #[default]
    Earliest,
    /// Behind the last record: only what comes from now on.
    Latest,
    /// At this offset of each partition, or the nearest that is there.
    Offset(Offset),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            other => Offset::parse(other)
                .map(Self::Offset)
                .ok_or_else(|| format!("`{other}` is neither `earliest`, `latest` nor an offset")),
        }
    }
}

/// Arguments of `results`.
#[derive(Debug, Clone, Default, Args)]
pub struct ResultsArgs {
    /// Where to begin in each partition.
    #[arg(
        long,
        value_name = "earliest|latest|OFFSET",
        default_value = "earliest"
    )]
    pub from: From,
    /// Stop after so many; with --follow it is waited for as many.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Go on with what is written from now on, until Ctrl-C.
    #[arg(long)]
    pub follow: bool,
    /// One JSON object per line.
    #[arg(long)]
    pub json: bool,
    /// Show the documents that were given up instead.
    #[arg(long)]
    pub dead_letters: bool,
}

/// Why results cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// Kafka, or the way to it.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The topic is not there.
    #[error(
        "topic `{topic}` does not exist: nothing was written yet (`run` creates it), or {setting} names another"
    )]
    NoTopic {
        /// The topic.
        topic: String,
        /// The setting that names it.
        setting: &'static str,
    },
    /// Standard output.
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
}

/// Which topics there are.
#[derive(Debug, Clone, Copy)]
pub struct ResultTopics<'a> {
    /// Topic of the results (`OUTPUT_TOPIC`).
    pub output: &'a str,
    /// Topic of the dead letters (`dead_letters.topic`).
    pub dead_letters: &'a str,
}

/// Shows records until the end, the count, or `shutdown`; how many were shown.
///
/// # Errors
/// When Kafka does not answer in time, the topic does not exist, or `out` cannot be written. A reader that went away (`| head`) is
/// not an error.
///
/// # Cancel safety
/// Safe: it only reads.
pub async fn run(
    args: &ResultsArgs,
    kafka: &KafkaConfig,
    topics: ResultTopics<'_>,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shutdown: &CancellationToken,
) -> Result<u64, ResultsError> {
    let (topic, setting) = if args.dead_letters {
        (topics.dead_letters, "dead_letters.topic")
    } else {
        (topics.output, "OUTPUT_TOPIC")
    };
    let described = contact::topic(&contact::impatient(kafka), topic).await?;
    let described = described.ok_or_else(|| ResultsError::NoTopic {
        topic: topic.to_owned(),
        setting,
    })?;
    let cluster = Cluster::new(kafka);
    let partitions = (0..described.partitions).map(|index| TopicPartition::new(topic, index));
    let mut shown = 0;
    let reading = read(
        args,
        &cluster,
        partitions.collect(),
        terminal,
        out,
        &mut shown,
    );
    match shutdown.run_until_cancelled(reading).await {
        None | Some(Ok(())) => Ok(shown),
        Some(Err(ResultsError::Output(error))) if has_seen_enough(&error) => Ok(shown),
        Some(Err(error)) => Err(error),
    }
}

/// A partition and how far it was read.
#[derive(Debug)]
struct Cursor {
    partition: TopicPartition,
    next: Offset,
    end: Offset,
}

async fn read(
    args: &ResultsArgs,
    reader: &dyn LogReader,
    partitions: Vec<TopicPartition>,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    shown: &mut u64,
) -> Result<(), ResultsError> {
    let mut cursors = Vec::with_capacity(partitions.len());
    for partition in partitions {
        cursors.push(open(reader, partition, args.from).await?);
    }
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        if is_enough(args, *shown) {
            return Ok(());
        }
        let behind = cursors.iter().any(|cursor| cursor.next < cursor.end);
        if !behind && !args.follow {
            return Ok(());
        }
        let wait = if behind { Duration::ZERO } else { FOLLOW_WAIT };
        let round = round(reader, &mut cursors, wait, behind).await;
        for (partition, fetched) in round {
            match fetched {
                Ok(fetched) => {
                    backoff.reset();
                    for (offset, record) in &fetched.records {
                        if is_enough(args, *shown) {
                            return Ok(());
                        }
                        show(args, terminal, out, &partition, *offset, record)?;
                        *shown += 1;
                    }
                    out.flush().map_err(ResultsError::Output)?;
                }
                Err(error) if args.follow && error.is_transient() => {
                    tracing::warn!(%error, %partition, "reading goes on when Kafka answers again");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_enough(args: &ResultsArgs, shown: u64) -> bool {
    args.count.is_some_and(|count| shown >= count)
}

async fn open(
    reader: &dyn LogReader,
    partition: TopicPartition,
    from: From,
) -> Result<Cursor, KafkaError> {
    let (log_start, end) = reader.log_bounds(&partition).await?;
    let next = match from {
        From::Earliest => log_start,
        From::Latest => end,
        From::Offset(offset) => offset.clamp(log_start, end.max(log_start)),
    };
    Ok(Cursor {
        partition,
        next,
        end,
    })
}

type Round = Vec<(TopicPartition, Result<Fetched, KafkaError>)>;

/// Reads once: from those that are behind, a few at a time, or, when none is, from all at once, as they have little to bring.
async fn round(
    reader: &dyn LogReader,
    cursors: &mut [Cursor],
    wait: Duration,
    behind: bool,
) -> Round {
    let due = cursors
        .iter_mut()
        .filter(|cursor| !behind || cursor.next < cursor.end)
        .take(if behind { READS_MAX } else { usize::MAX });
    join_all(due.map(|cursor| async move {
        let fetched = reader.read(&cursor.partition, cursor.next, wait).await;
        if let Ok(fetched) = &fetched {
            cursor.next = cursor.next.max(fetched.next_offset);
        }
        (cursor.partition.clone(), fetched)
    }))
    .await
}

fn show(
    args: &ResultsArgs,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
    partition: &TopicPartition,
    offset: Offset,
    record: &Record,
) -> Result<(), ResultsError> {
    let text = match (args.dead_letters, args.json) {
        (false, false) => show::result(terminal, partition, offset, record),
        (false, true) => show::result_json(partition, offset, record),
        (true, false) => show::dead_letter(terminal, partition, offset, record),
        (true, true) => show::dead_letter_json(partition, offset, record),
    };
    out.write_all(text.as_bytes()).map_err(ResultsError::Output)
}

#[cfg(test)]
mod tests;
