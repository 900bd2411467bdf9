//! Which dead letters were replayed: a mark for each, in a compacted topic beside theirs.
//!
//! A record of it says so for [`SPAN`] offsets of a partition, as ranges that a console consumer can read. Marks are only ever added, so
//! whatever two writers leave is read as both. They hold for the topic with that id alone: one that was created anew begins without.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::cursor::Cursor;
use crate::cli::contact;
use crate::kafka::wire::{Cluster, NewTopic};
use crate::kafka::{KafkaConfig, KafkaError, LogReader};
use crate::records::partitioner::partition_for_key;
use crate::types::{Offset, Record, TopicPartition};

/// The version of the value's schema that this program writes and reads.
const VERSION: u32 = 1;

/// Offsets of one record: with every other one marked it has some 80 KiB.
const SPAN: i64 = 4_096;
/// 64 bits each: [`SPAN`] of them.
const WORDS: usize = 64;

/// What the topic is created with. Replays read it from its start; the cleaner never touches the last segment, and 1 MiB is the least that
/// Kafka 4 accepts.
const TOPIC_CONFIGS: [(&str, &str); 2] =
    [("cleanup.policy", "compact"), ("segment.bytes", "1048576")];

/// Why marks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MarksError {
    /// The topic is not there and must not be created.
    #[error(
        "topic `{topic}`, where replays keep what they have done, does not exist, and kafka.create_topics = false: create it with cleanup.policy=compact, or allow it to be created"
    )]
    NoTopic {
        /// The topic.
        topic: String,
    },
    /// Marks would be deleted by age, and documents replayed again.
    #[error(
        "topic `{topic}` has cleanup.policy = {policy} and must have `compact`, or what was replayed is forgotten; change it with kafka-configs --alter --topic {topic} --add-config cleanup.policy=compact"
    )]
    NotCompacted {
        /// The topic.
        topic: String,
        /// Its policy.
        policy: String,
    },
    /// A record that cannot be read. To go on without it would replay again what was replayed.
    #[error("the record at {place} does not say which dead letters were replayed")]
    Unusable {
        /// Where it lies.
        place: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Written by a newer program.
    #[error("the record at {place} has version {found}; this program knows {VERSION}: upgrade it")]
    Version {
        /// Where it lies.
        place: String,
        /// The version found.
        found: u32,
    },
    /// It cannot be written as JSON, which no value makes it do.
    #[error("what was replayed cannot be written down")]
    Unwritable(#[source] serde_json::Error),
}

/// The value of a record: what was replayed of the offsets from `first` (inclusive) to `first` and [`SPAN`].
#[derive(Debug, Serialize, Deserialize)]
struct MarksRecord {
    v: u32,
    topic_id: Uuid,
    partition: i32,
    first: i64,
    /// Sorted; ends are exclusive.
    replayed: Vec<(i64, i64)>,
    at: Timestamp,
}

#[derive(Debug, Deserialize)]
struct Versioned {
    v: u32,
}

/// The marks of a topic: a bit for each offset of a span that has one.
#[derive(Debug)]
pub(super) struct Marks {
    topic_id: Uuid,
    /// By partition and first offset.
    spans: BTreeMap<(i32, i64), [u64; WORDS]>,
}

impl Marks {
    /// None, of the topic with that id.
    pub(super) const fn none(topic_id: Uuid) -> Self {
        Self {
            topic_id,
            spans: BTreeMap::new(),
        }
    }

    /// Whether the dead letter was replayed.
    pub(super) fn contains(&self, partition: i32, offset: Offset) -> bool {
        let (first, word, bit) = place(offset);
        let span = self.spans.get(&(partition, first));
        let word = span.and_then(|span| span.get(word));
        word.is_some_and(|word| word & bit != 0)
    }

    /// It was replayed.
    pub(super) fn insert(&mut self, partition: i32, offset: Offset) {
        let (first, word, bit) = place(offset);
        let span = self.spans.entry((partition, first)).or_insert([0; WORDS]);
        if let Some(word) = span.get_mut(word) {
            *word |= bit;
        }
    }

    /// The record that says so of these offsets too, which share a span.
    pub(super) fn record_with(
        &self,
        partition: i32,
        offsets: &[Offset],
        at: Timestamp,
    ) -> Result<Record, MarksError> {
        let first = span_of(offsets.first().copied().unwrap_or_default());
        let span = self.spans.get(&(partition, first));
        let mut span = span.copied().unwrap_or([0; WORDS]);
        for offset in offsets {
            let (_, word, bit) = place(*offset);
            if let Some(word) = span.get_mut(word) {
                *word |= bit;
            }
        }
        let value = MarksRecord {
            v: VERSION,
            topic_id: self.topic_id,
            partition,
            first,
            replayed: ranges(first, &span),
            at,
        };
        let value = serde_json::to_vec(&value).map_err(MarksError::Unwritable)?;
        Ok(Record {
            key: Some(format!("{partition}@{first}").into()),
            value: Some(Bytes::from(value)),
            headers: Vec::new(),
            timestamp_ms: at.as_millisecond(),
        })
    }

    /// Takes what a record says; it lies at `place`.
    fn take(&mut self, record: &Record, place: impl Fn() -> String) -> Result<(), MarksError> {
        let Some(value) = &record.value else {
            return Ok(());
        };
        let unusable = |source| MarksError::Unusable {
            place: place(),
            source,
        };
        let Versioned { v: found } = serde_json::from_slice(value).map_err(unusable)?;
        if found != VERSION {
            return Err(MarksError::Version {
                place: place(),
                found,
            });
        }
        let read: MarksRecord = serde_json::from_slice(value).map_err(unusable)?;
        if read.topic_id != self.topic_id {
            return Ok(());
        }
        // What lies outside of its span is nothing that we wrote.
        let span = read.first..read.first.saturating_add(SPAN);
        for (first, end) in read.replayed {
            for offset in first.max(span.start)..end.min(span.end) {
                self.insert(read.partition, Offset::new(offset));
            }
        }
        Ok(())
    }
}

/// The first offset of its span: what is replayed of one span is marked by one record.
pub(super) const fn span_of(offset: Offset) -> i64 {
    offset.value() - offset.value().rem_euclid(SPAN)
}

/// The first offset of its span, and the word and the bit that stand for it there.
fn place(offset: Offset) -> (i64, usize, u64) {
    let inside = offset.value().rem_euclid(SPAN);
    let word = usize::try_from(inside / 64).unwrap_or(0);
    (span_of(offset), word, 1_u64 << (inside % 64))
}

fn ranges(first: i64, span: &[u64; WORDS]) -> Vec<(i64, i64)> {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    let bits = span
        .iter()
        .flat_map(|word| (0..64).map(move |bit| *word & (1_u64 << bit) != 0));
    for (offset, is_marked) in (first..).zip(bits) {
        if !is_marked {
            continue;
        }
        match ranges.last_mut() {
            Some((_, end)) if *end == offset => *end += 1,
            _ => ranges.push((offset, offset + 1)),
        }
    }
    ranges
}

/// The topic of the marks.
#[derive(Debug)]
pub(super) struct MarksTopic {
    name: String,
    partitions: i32,
}

impl MarksTopic {
    fn name_for(dead_letters: &str) -> String {
        format!("{dead_letters}-replays")
    }

    /// The one of these dead letters; `None` where nothing was ever replayed.
    pub(super) async fn find(
        cluster: &Cluster,
        dead_letters: &str,
    ) -> Result<Option<Self>, KafkaError> {
        let name = Self::name_for(dead_letters);
        let found = contact::topic(cluster, &name).await?;
        Ok(found.map(|topic| Self {
            name,
            partitions: topic.partitions,
        }))
    }

    /// The one of these dead letters, which is created where that is allowed.
    pub(super) async fn ensure(
        cluster: &Cluster,
        kafka: &KafkaConfig,
        dead_letters: &str,
    ) -> Result<Self, super::DeadLettersError> {
        if Self::find(cluster, dead_letters).await?.is_none() {
            let topic = Self::name_for(dead_letters);
            if !kafka.create_topics {
                return Err(MarksError::NoTopic { topic }.into());
            }
            let configs = TOPIC_CONFIGS.into_iter();
            let new = NewTopic {
                name: topic,
                partitions: 1,
                replication_factor: kafka.replication_factor,
                configs: configs
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
            };
            cluster.create_topic(&new).await?;
        }
        let name = Self::name_for(dead_letters);
        // Somebody else may have been first, with another policy.
        const KEY: &str = "cleanup.policy";
        let configs = cluster.topic_configs(&name, &[KEY]).await?;
        let policy = configs.get(KEY).and_then(|config| config.value.as_deref());
        let policy = policy.unwrap_or("unknown");
        if policy != "compact" {
            return Err(MarksError::NotCompacted {
                topic: name,
                policy: policy.to_owned(),
            }
            .into());
        }
        let found = Self::find(cluster, dead_letters).await?;
        found.ok_or_else(|| MarksError::NoTopic { topic: name }.into())
    }

    /// All marks of the topic with that id.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub(super) async fn load(
        &self,
        reader: &dyn LogReader,
        topic_id: Uuid,
    ) -> Result<Marks, super::DeadLettersError> {
        let mut marks = Marks::none(topic_id);
        for index in 0..self.partitions {
            let partition = TopicPartition::new(self.name.as_str(), index);
            let mut cursor = Cursor::open(reader, partition.clone()).await?;
            while let Some(records) = cursor.next().await? {
                for (offset, record) in &records {
                    marks.take(record, || format!("{partition}@{offset}"))?;
                }
            }
        }
        Ok(marks)
    }

    /// Where a record of marks goes.
    pub(super) fn partition_of(&self, record: &Record) -> TopicPartition {
        let key = record.key.as_deref().unwrap_or_default();
        TopicPartition::new(self.name.as_str(), partition_for_key(key, self.partitions))
    }
}

/// What the crate's `fuzzing` hands to fuzzers.
pub(crate) fn fuzzing(value: Option<bytes::Bytes>) {
    let record = Record {
        value,
        ..Record::default()
    };
    drop(Marks::none(Uuid::nil()).take(&record, String::new));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn offsets(offsets: &[i64]) -> Vec<Offset> {
        offsets.iter().copied().map(Offset::new).collect()
    }

    #[test]
    fn marks_are_read_as_they_were_written() {
        let id = Uuid::from_u128(7);
        let mut marks = Marks::none(id);
        let spans: [&[i64]; 4] = [
            &[0, 1, 2, 63, 64, 4_095],
            &[4_096],
            &[9_000],
            &[1 << 40, (1 << 40) + 2],
        ];
        for span in spans {
            let record = Marks::none(id).record_with(3, &offsets(span), at());
            marks.take(&record.unwrap(), String::new).unwrap();
        }
        for offset in offsets(&spans.concat()) {
            assert!(marks.contains(3, offset), "{offset}");
            assert!(!marks.contains(2, offset), "another partition");
        }
        for offset in offsets(&[3, 62, 65, 4_094, 4_097, 8_999, (1 << 40) + 1]) {
            assert!(!marks.contains(3, offset), "{offset}");
        }
        let record = marks.record_with(3, &offsets(&[3]), at()).unwrap();
        assert_eq!(record.key.as_deref(), Some(b"3@0".as_slice()));
        let value: serde_json::Value =
            serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        let replayed = serde_json::json!([[0, 4], [63, 65], [4_095, 4_096]]);
        assert_eq!(value["replayed"], replayed);
        assert!(
            !marks.contains(3, Offset::new(3)),
            "not before it is written"
        );
    }

    #[test]
    fn marks_of_two_writers_hold_both() {
        let id = Uuid::from_u128(7);
        let mut marks = Marks::none(id);
        for offset in offsets(&[5, 9]) {
            let record = Marks::none(id).record_with(0, &[offset], at()).unwrap();
            marks.take(&record, String::new).unwrap();
        }
        marks.take(&Record::default(), String::new).unwrap();
        assert!(marks.contains(0, Offset::new(5)) && marks.contains(0, Offset::new(9)));
    }

    #[test]
    fn marks_of_a_topic_that_was_created_anew_do_not_hold() {
        let old = Marks::none(Uuid::from_u128(1));
        let record = old.record_with(0, &offsets(&[5]), at()).unwrap();
        let mut marks = Marks::none(Uuid::from_u128(2));
        marks.take(&record, String::new).unwrap();
        assert!(!marks.contains(0, Offset::new(5)));
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let record = |value: &'static str| Record {
            value: Some(Bytes::from_static(value.as_bytes())),
            ..Record::default()
        };
        let mut marks = Marks::none(Uuid::nil());
        let mut problem = |record: Record| {
            let error = marks.take(&record, || "here".to_owned()).unwrap_err();
            error.to_string()
        };
        assert!(problem(record("{")).contains("here"));
        assert!(problem(record(r#"{"v":2}"#)).contains("upgrade"));
        assert!(problem(record(r#"{"v":1}"#)).contains("here"));
    }

    #[test]
    fn the_largest_record_fits_into_a_batch() {
        let far = span_of(Offset::new(i64::MAX)) - SPAN;
        let every_other: Vec<_> = (far..far + SPAN).step_by(2).map(Offset::new).collect();
        let marks = Marks::none(Uuid::nil());
        let record = marks.record_with(i32::MAX, &every_other, at()).unwrap();
        let size = record.size();
        assert!(size < 100 * 1024, "{size}");
    }
}
