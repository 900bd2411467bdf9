//! What lies in the topics of results and commits, and what must be true of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kafka_llm_processor::kafka::wire::Cluster;
use kafka_llm_processor::kafka::{KafkaError, LogReader as _};
use kafka_llm_processor::offsets::{CommitRecord, commit_key, group_claim};
use kafka_llm_processor::records::headers;
use kafka_llm_processor::types::{Offset, Record, TopicPartition};
use tokio::time::sleep;

use crate::harness::{Job, Kafka, PARTITIONS, SOON};
use crate::support::eventually;

/// How often the topic of the results is looked at while a job runs: a look is a request to each partition, and must not slow the job.
const LOOK: Duration = Duration::from_millis(100);

/// The documents' place: partition and offset.
pub(crate) type Place = (i32, i64);

/// A result as its readers see it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Where it lies.
    pub(crate) at: Place,
    /// Which document it answers.
    pub(crate) source: Place,
    pub(crate) key: Option<Vec<u8>>,
}

/// Reads a topic from its start, partition by partition, ever further.
pub(crate) struct TopicLog {
    cluster: Cluster,
    topic: String,
    next: BTreeMap<i32, Offset>,
}

impl TopicLog {
    pub(crate) fn new(cluster: &Cluster, topic: &str) -> Self {
        Self {
            cluster: cluster.clone(),
            topic: topic.to_owned(),
            next: (0..PARTITIONS)
                .map(|partition| (partition, Offset::ZERO))
                .collect(),
        }
    }

    /// What was written since the last call; each partition in its order.
    pub(crate) async fn more(&mut self) -> Vec<(Place, Record)> {
        let mut records = Vec::new();
        for (partition, next) in &mut self.next {
            let place = TopicPartition::new(self.topic.as_str(), *partition);
            let end = match self.cluster.log_bounds(&place).await {
                Ok((_, end)) => end,
                // The processor has not created it yet.
                Err(KafkaError::UnknownTopic { .. }) => continue,
                Err(error) => panic!("the bounds of {place}: {error}"),
            };
            while *next < end {
                let fetched = self.cluster.read(&place, *next, Duration::ZERO).await;
                let fetched = fetched.expect("a read");
                if fetched.next_offset == *next {
                    // A transaction is open there; the next call finds out how it ended.
                    break;
                }
                *next = fetched.next_offset;
                let found = fetched.records.into_iter();
                records
                    .extend(found.map(|(offset, record)| ((*partition, offset.value()), record)));
            }
        }
        records
    }
}

/// The results of a job, gathered while they come.
pub(crate) struct Results {
    log: TopicLog,
    input: String,
    pub(crate) seen: Vec<Seen>,
    pub(crate) answered: BTreeSet<Place>,
}

impl Results {
    pub(crate) fn new(kafka: &Kafka, job: &Job) -> Self {
        Self {
            log: TopicLog::new(&kafka.cluster, &job.results()),
            input: job.name.clone(),
            seen: Vec::new(),
            answered: BTreeSet::new(),
        }
    }

    /// Reads what came since the last call.
    pub(crate) async fn gather(&mut self) {
        for (at, record) in self.log.more().await {
            let source = headers::source(&record).expect("it names its source");
            assert_eq!(&*source.topic_partition.topic, self.input);
            let source = (source.topic_partition.partition, source.offset.value());
            check_value(&record, source);
            self.answered.insert(source);
            self.seen.push(Seen {
                at,
                source,
                key: record.key.map(|key| key.to_vec()),
            });
        }
    }

    /// Waits until so many documents have a result.
    pub(crate) async fn wait_for(&mut self, documents: usize) {
        let what = format!("{documents} documents of {} have a result", self.input);
        eventually(&what, SOON, async || {
            self.gather().await;
            if self.answered.len() >= documents {
                return Some(());
            }
            sleep(LOOK).await;
            None
        })
        .await;
    }

    /// Results beyond the first of a document.
    pub(crate) fn repeats(&self) -> usize {
        self.seen.len() - self.answered.len()
    }

    /// Fails unless each of `per_partition` documents of every partition has a result, and nothing else has.
    pub(crate) fn assert_complete(&self, per_partition: usize) {
        let offsets = i64::try_from(per_partition).expect("a count");
        let expected: BTreeSet<Place> = (0..PARTITIONS)
            .flat_map(|partition| (0..offsets).map(move |offset| (partition, offset)))
            .collect();
        let lost: Vec<_> = expected.difference(&self.answered).collect();
        assert!(
            lost.is_empty(),
            "{} lost, such as {:?}",
            lost.len(),
            lost.first()
        );
        let invented = self.answered.difference(&expected).next();
        assert_eq!(invented, None, "a result without a document");
    }

    /// Fails unless the first results of what `lane` calls one lane, in one output partition, are in the order of their documents.
    pub(crate) fn assert_ordered<L: Ord>(&self, lane: impl Fn(&Seen) -> L) {
        let mut last = BTreeMap::new();
        for seen in &self.seen {
            let before = last.insert((lane(seen), seen.at.0), seen.source.1);
            let in_order = before.is_none_or(|before| before < seen.source.1);
            assert!(in_order, "{seen:?} comes after offset {before:?}");
        }
    }
}

/// The value says of the document what the headers say.
fn check_value(record: &Record, source: Place) {
    let value = record.value.as_ref().expect("a result is no tombstone");
    let value: serde_json::Value = serde_json::from_slice(value).expect("JSON");
    let named = (&value["source"]["partition"], &value["source"]["offset"]);
    assert_eq!(named, (&source.0.into(), &source.1.into()));
    assert_eq!(value["status"], "ok");
}

/// The commit records of a job, in their order within each partition. Nothing of them is compacted away as long as the topic has one
/// segment.
pub(crate) async fn commits(kafka: &Kafka, job: &Job) -> BTreeMap<i32, Vec<CommitRecord>> {
    let mut log = TopicLog::new(&kafka.cluster, &job.commits());
    let mut commits: BTreeMap<i32, Vec<_>> = BTreeMap::new();
    for (_, record) in log.more().await {
        let key = record.key.expect("a commit has a key");
        if key == commit_key(&group_claim()) {
            continue;
        }
        let key = String::from_utf8(key.to_vec()).expect("text");
        let (topic, partition) = key.rsplit_once('/').expect("topic/partition");
        assert_eq!(topic, job.name);
        let record = CommitRecord::from_value(&record.value.expect("a value")).expect("a commit");
        let partition = partition.parse().expect("a number");
        commits.entry(partition).or_default().push(record);
    }
    commits
}

/// Fails unless the commit offset and the owner epoch never fall.
pub(crate) fn assert_commits_never_fall(commits: &BTreeMap<i32, Vec<CommitRecord>>) {
    for (partition, commits) in commits {
        for (before, after) in commits.iter().zip(commits.iter().skip(1)) {
            assert!(
                after.next_offset >= before.next_offset && after.owner_epoch >= before.owner_epoch,
                "partition {partition}: {before:?}, then {after:?}"
            );
        }
    }
}

/// Fails unless the newest commits claim what has a result, and nothing else.
pub(crate) fn assert_commits_claim(
    commits: &BTreeMap<i32, Vec<CommitRecord>>,
    results: &Results,
    per_partition: i64,
) {
    for partition in 0..PARTITIONS {
        let newest = commits.get(&partition).and_then(|commits| commits.last());
        let position = newest.expect("a commit").position();
        for offset in 0..per_partition {
            let answered = results.answered.contains(&(partition, offset));
            let claimed = position.contains(Offset::new(offset));
            assert_eq!(claimed, answered, "{partition}@{offset} in {position:?}");
        }
    }
}
