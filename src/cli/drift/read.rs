//! What documents came to, out of the output topic and that of the dead letters, in the order of time.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashSet};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::contact;
use crate::cli::dead_letters::cursor::Cursor;
use crate::cli::output::Terminal;
use crate::cli::progress::{Progress, Task};
use crate::config::Settings;
use crate::drift::{Answer, Ending, Fields, FinishReason, Generation, Sample, content};
use crate::kafka::wire::Cluster;
use crate::records::dead_letter::DeadLetter;
use crate::records::result::{ResultOutput, ResultRecord};
use crate::types::{Record, TopicPartition};

use super::{DriftError, ReportArgs};

/// What was read.
#[derive(Debug)]
pub(super) struct Read {
    /// Documents with their input topics, oldest first.
    pub(super) documents: Vec<(Arc<str>, Sample)>,
    /// Records that are no results of this program.
    pub(super) foreign: u64,
    /// Results that repeat the answer to an identical document.
    pub(super) cached: u64,
}

/// A document in the order of time; of equals the one that was read first.
#[derive(Debug)]
struct Timed {
    topic: Arc<str>,
    sample: Sample,
    number: u64,
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> Ordering {
        let at = self.sample.at.cmp(&other.sample.at);
        at.then(self.number.cmp(&other.number))
    }
}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Timed {}

/// The newest documents; no more than were asked for.
struct Newest<'a> {
    args: &'a ReportArgs,
    fields: &'a Fields,
    kept: BinaryHeap<Reverse<Timed>>,
    generations: HashSet<Arc<Generation>>,
    topics: HashSet<Arc<str>>,
    number: u64,
    foreign: u64,
    cached: u64,
}

pub(super) async fn read(
    args: &ReportArgs,
    settings: &Settings,
    fields: &Fields,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<Read, DriftError> {
    let output = &settings.output.topic;
    let mut newest = Newest {
        args,
        fields,
        kept: BinaryHeap::new(),
        generations: HashSet::new(),
        topics: HashSet::new(),
        number: 0,
        foreign: 0,
        cached: 0,
    };
    let cluster = Cluster::new(&settings.kafka);
    let asked = contact::impatient(&settings.kafka);
    let described = contact::topic(&asked, output).await?;
    let described = described.ok_or_else(|| DriftError::NoTopic {
        topic: output.clone(),
    })?;
    let mut cursors = open(args, &cluster, output, described.partitions).await?;
    let letters = &settings.dead_letters.topic;
    // Nothing may have been given up yet.
    if let Some(described) = contact::topic(&asked, letters).await? {
        cursors.extend(open(args, &cluster, letters, described.partitions).await?);
    }
    let task = Task {
        done: "read",
        unit: "records",
        place: "of the output and the dead letters",
        total: cursors.iter().map(Cursor::length).sum(),
    };
    let mut progress = Progress::new(terminal, out, task);
    let mut passed = 0;
    for cursor in &mut cursors {
        while let Some(records) = cursor.next().await? {
            let is_output = *cursor.partition.topic == **output;
            for (_, record) in &records {
                newest.note(record, is_output);
            }
            progress.set(passed + cursor.passed())?;
        }
        passed += cursor.length();
    }
    progress.set(passed)?;
    progress.finish()?;
    let kept = newest.kept.into_sorted_vec().into_iter().rev();
    Ok(Read {
        documents: kept
            .map(|Reverse(timed)| (timed.topic, timed.sample))
            .collect(),
        foreign: newest.foreign,
        cached: newest.cached,
    })
}

async fn open<'a>(
    args: &ReportArgs,
    cluster: &'a Cluster,
    topic: &str,
    partitions: i32,
) -> Result<Vec<Cursor<'a>>, DriftError> {
    let mut cursors = Vec::new();
    for partition in 0..partitions {
        let partition = TopicPartition::new(topic, partition);
        let mut cursor = Cursor::open(cluster, partition).await?;
        // With an upper end, the newest that count may lie anywhere.
        if args.to.is_none() {
            cursor.skip_to_last(args.last);
        }
        cursors.push(cursor);
    }
    Ok(cursors)
}

impl Newest<'_> {
    fn note(&mut self, record: &Record, is_output: bool) {
        let found = if is_output {
            let value = record.value.as_deref().unwrap_or_default();
            ResultRecord::parse(value)
                .ok()
                .map(|result| self.result(result))
        } else {
            DeadLetter::read(record).map(|letter| {
                let topic = self.topic(&letter.source.topic_partition.topic);
                let ending = Ending::DeadLetter(letter.reason);
                let at = letter.at;
                Some((topic, Sample { at, ending }))
            })
        };
        match found {
            None => self.foreign += 1,
            Some(None) => self.cached += 1,
            Some(Some((topic, sample))) => self.keep(topic, sample),
        }
    }

    fn keep(&mut self, topic: Arc<str>, sample: Sample) {
        let (from, to) = (self.args.from, self.args.to);
        if from.is_some_and(|from| sample.at < from) || to.is_some_and(|to| sample.at >= to) {
            return;
        }
        self.number += 1;
        self.kept.push(Reverse(Timed {
            topic,
            sample,
            number: self.number,
        }));
        let kept = u64::try_from(self.kept.len()).unwrap_or(u64::MAX);
        if kept > self.args.last {
            drop(self.kept.pop());
        }
    }

    /// `None` for one that was answered before: it says nothing new of the model.
    fn result(&mut self, result: ResultRecord) -> Option<(Arc<str>, Sample)> {
        if result.cached {
            return None;
        }
        let (text, data) = match result.output {
            ResultOutput::Text(text) => (text, None),
            ResultOutput::Data(data) => (data.to_string(), Some(data)),
        };
        let (characters, refused, fields) = content(&text, data.as_ref(), self.fields);
        let generation = self.generation(Generation {
            model: result.model,
            server: result.system_fingerprint,
            template: result.prompt_hash,
            schema: result.schema_hash,
            settings: result.generation,
        });
        let answer = Answer {
            generation,
            characters,
            completion_tokens: result.usage.completion_tokens,
            calls: result.usage.calls,
            llm: Duration::from_millis(result.timing.llm_ms),
            refused,
            finish_reason: FinishReason::of(&result.finish_reason),
            fields,
        };
        let sample = Sample {
            at: result.completed_at,
            ending: Ending::Answer(Box::new(answer)),
        };
        Some((self.topic(&result.source.topic), sample))
    }

    fn generation(&mut self, generation: Generation) -> Arc<Generation> {
        if let Some(known) = self.generations.get(&generation) {
            return Arc::clone(known);
        }
        let new = Arc::new(generation);
        self.generations.insert(Arc::clone(&new));
        new
    }

    fn topic(&mut self, topic: &str) -> Arc<str> {
        if let Some(known) = self.topics.get(topic) {
            return Arc::clone(known);
        }
        let new: Arc<str> = topic.into();
        self.topics.insert(Arc::clone(&new));
        new
    }
}
