//! `audit verify`: each chain from its beginning to the end that the commit topic names.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use clap::Args;

use super::AuditError;
use super::report::{ChainReport, Report};
use crate::cli::dead_letters::cursor::Cursor;
use crate::cli::output::Terminal;
use crate::cli::progress::{Progress, Task};
use crate::clock;
use crate::config::Settings;
use crate::kafka::wire::{Cluster, TopicDescription};
use crate::offsets::CommitStore;
use crate::records::audit::chain::{Committed, Place, Seen, Verifier};
use crate::records::audit::{AuditHead, chain_key};
use crate::types::{Offset, Record, TopicPartition};

/// Arguments of `audit verify`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct VerifyArgs {
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Verifies every chain of the group; whether none is broken.
pub(super) async fn verify(
    args: &VerifyArgs,
    settings: &Settings,
    topic: &TopicDescription,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<bool, AuditError> {
    let cluster = Cluster::new(&settings.kafka);
    let inputs = inputs(&cluster, settings).await?;
    let mut chains = Chains::new(&settings.kafka.group_id);
    let mut cursors = Vec::new();
    for partition in 0..topic.partitions {
        let partition = TopicPartition::new(topic.name.as_str(), partition);
        cursors.push(Cursor::open(&cluster, partition).await?);
    }
    for input in inputs {
        let index = usize::try_from(input.partition.rem_euclid(topic.partitions.max(1)));
        let cursor = index.ok().and_then(|index| cursors.get(index));
        chains.expect(input, cursor.is_some_and(Cursor::is_cut));
    }
    // What is written for programs has no lines about the way.
    let mut nowhere = io::sink();
    let told: &mut (dyn Write + Send) = if args.json { &mut nowhere } else { &mut *out };
    let place = format!("of {}", topic.name);
    let task = Task {
        done: "read",
        unit: "offsets",
        place: &place,
        total: cursors.iter().map(Cursor::length).sum(),
    };
    let mut progress = Progress::new(terminal, told, task);
    chains.read(&mut cursors, Some(&mut progress)).await?;
    progress.finish()?;

    let commits = Commits::new(&cluster, settings).await?;
    commits.load(&mut chains).await?;
    // A processor that is at work may have gone on: what its commits name is in the log by now.
    if chains.are_behind() {
        for cursor in &mut cursors {
            cursor.extend().await?;
        }
        chains.read(&mut cursors, None).await?;
        commits.load(&mut chains).await?;
    }
    let report = chains.report(topic);
    if args.json {
        serde_json::to_writer(&mut *out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        report.write_text(terminal, out)?;
    }
    out.flush()?;
    Ok(!report.is_broken)
}

/// The partitions of the input topics that exist.
async fn inputs(cluster: &Cluster, settings: &Settings) -> Result<Vec<TopicPartition>, AuditError> {
    let topics = settings.input.topics.iter();
    let names: Vec<_> = topics.map(|topic| topic.name.as_str()).collect();
    let described = cluster.describe_topics(&names).await?;
    let mut inputs = Vec::new();
    for topic in described.into_values().flatten() {
        let name: Arc<str> = topic.name.as_str().into();
        inputs.extend((0..topic.partitions).map(|partition| TopicPartition {
            topic: Arc::clone(&name),
            partition,
        }));
    }
    Ok(inputs)
}

/// The commit topic, if it is there.
struct Commits(Option<CommitStore>);

impl Commits {
    async fn new(cluster: &Cluster, settings: &Settings) -> Result<Self, AuditError> {
        let topic = settings.kafka.commit_topic();
        let mut described = cluster.describe_topics(&[&topic]).await?;
        let found = described.remove(&topic).flatten();
        let reader = Arc::new(cluster.clone());
        Ok(Self(found.map(|found| {
            CommitStore::new(reader, topic.as_str(), found.partitions)
        })))
    }

    /// Asks about the chains of which nothing is known yet.
    async fn load(&self, chains: &mut Chains<'_>) -> Result<(), AuditError> {
        let Self(Some(store)) = self else {
            return Ok(());
        };
        for (partition, chain) in &mut chains.by_partition {
            if chain.committed.is_some() {
                continue;
            }
            let loaded = store.load(partition).await?;
            chain.committed = Some(match loaded.newest {
                None => Committed::Nothing,
                Some((_, commit)) => Committed::Head {
                    head: commit.audit,
                    is_live: commit.is_live(clock::now()),
                },
            });
        }
        Ok(())
    }
}

struct Chain {
    verifier: Verifier,
    committed: Option<Committed>,
}

impl Chain {
    fn new(is_cut: bool) -> Self {
        Self {
            verifier: Verifier::new(is_cut),
            committed: None,
        }
    }
}

/// The chains of one group, by input partition.
struct Chains<'a> {
    group: &'a str,
    by_partition: BTreeMap<TopicPartition, Chain>,
    /// Records of other groups, and what is no record of an audit trail.
    foreign: u64,
}

impl<'a> Chains<'a> {
    const fn new(group: &'a str) -> Self {
        Self {
            group,
            by_partition: BTreeMap::new(),
            foreign: 0,
        }
    }

    /// There may be a chain of it.
    fn expect(&mut self, input: TopicPartition, is_cut: bool) {
        let chains = self.by_partition.entry(input);
        chains.or_insert_with(|| Chain::new(is_cut));
    }

    /// Reads each partition to its end.
    async fn read(
        &mut self,
        cursors: &mut [Cursor<'_>],
        mut progress: Option<&mut Progress<'_>>,
    ) -> Result<(), AuditError> {
        let mut before = 0;
        for cursor in cursors {
            while let Some(records) = cursor.next().await? {
                for (offset, record) in &records {
                    self.take(cursor, *offset, record);
                }
                if let Some(progress) = &mut progress {
                    progress.set(before + cursor.passed())?;
                }
            }
            before += cursor.length();
        }
        Ok(())
    }

    fn take(&mut self, cursor: &Cursor<'_>, offset: Offset, record: &Record) {
        let at = Place {
            partition: cursor.partition.partition,
            offset,
        };
        let is_cut = cursor.is_cut();
        let value = record.value.as_deref();
        let key = record.key.as_deref();
        let seen = match value.ok_or_else(|| "it has no value".to_owned()) {
            Ok(value) => Seen::parse(value),
            Err(why) => Err(why),
        };
        match seen {
            Ok(seen) if seen.chain.group != self.group => self.foreign += 1,
            Ok(seen) => {
                let link = &seen.chain;
                let input = TopicPartition::new(link.topic.as_str(), link.partition);
                let right = chain_key(&link.group, &link.topic, link.partition);
                let chain = self.by_partition.entry(input);
                let verifier = &mut chain.or_insert_with(|| Chain::new(is_cut)).verifier;
                if key == Some(&*right) {
                    verifier.take(at, &seen);
                } else {
                    verifier.unusable(at, "its key is not that of its chain");
                }
            }
            // Whose it was its key tells.
            Err(why) => match key.and_then(|key| self.chain_of(key)) {
                Some(input) => {
                    let chain = self.by_partition.entry(input);
                    let chain = chain.or_insert_with(|| Chain::new(is_cut));
                    chain.verifier.unusable(at, &why);
                }
                None => self.foreign += 1,
            },
        }
    }

    fn chain_of(&self, key: &[u8]) -> Option<TopicPartition> {
        let key = std::str::from_utf8(key).ok()?;
        let input = key.strip_prefix(self.group)?.strip_prefix('/')?;
        let (topic, partition) = input.split_once('/')?;
        Some(TopicPartition::new(topic, partition.parse().ok()?))
    }

    fn are_behind(&self) -> bool {
        self.by_partition.values().any(|chain| {
            let length = match chain.committed {
                Some(Committed::Head { head, .. }) => head.map_or(0, |head: AuditHead| head.length),
                Some(Committed::Nothing) | None => 0,
            };
            chain.verifier.length() < length
        })
    }

    fn report(self, topic: &TopicDescription) -> Report {
        let chains = self.by_partition.into_iter().map(|(input, chain)| {
            let committed = chain.committed.unwrap_or(Committed::Nothing);
            ChainReport {
                topic: input.topic.to_string(),
                partition: input.partition,
                verdict: chain.verifier.conclude(committed),
            }
        });
        let chains: Vec<_> = chains.collect();
        Report {
            topic: topic.name.clone(),
            group_id: self.group.to_owned(),
            is_broken: chains.iter().any(|chain| chain.verdict.breaks > 0),
            foreign_records: self.foreign,
            chains,
        }
    }
}
