//! A log in memory whose reading a test can stop at any point.

use std::sync::Mutex as StdMutex;

use async_trait::async_trait;
use futures::future::join_all;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::super::record::tests::sample;
use super::super::{ClaimError, CommitStore, Owner, commit_key};
use super::*;
use crate::kafka::{Fetched, LogReader};
use crate::types::Record;

/// Records of one fetch.
const FETCH: usize = 2;
/// For what would go on for ever.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Topic {
    id: u128,
    leader_epoch: Option<i32>,
    start: usize,
    records: Vec<Record>,
    ends_asked: usize,
    fetches: usize,
    /// Fetches from this one on wait until they are let through.
    held_from: Option<usize>,
    failing: bool,
    /// Fetches bring nothing, although there is something.
    holds_back: bool,
}

#[derive(Debug, Clone, Default)]
struct Memory {
    topic: Arc<StdMutex<Topic>>,
    let_through: Arc<Notify>,
}

impl Memory {
    fn topic(&self) -> std::sync::MutexGuard<'_, Topic> {
        self.topic.lock().unwrap()
    }

    fn write(&self, input: &TopicPartition, owner: &str, epoch: u64, next_offset: i64) {
        let record = sample(owner, epoch, next_offset)
            .into_record(input)
            .unwrap();
        self.topic().records.push(record);
    }

    fn write_value(&self, input: &TopicPartition, value: Option<&'static str>) {
        self.topic().records.push(Record {
            key: Some(commit_key(input)),
            value: value.map(Bytes::from_static_str),
            ..Record::default()
        });
    }

    fn store(&self) -> CommitStore {
        CommitStore::new(Arc::new(self.clone()), "commits", 1)
    }
}

trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Bytes;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }
}

fn offset(index: usize) -> Offset {
    Offset::new(i64::try_from(index).unwrap())
}

#[async_trait]
impl LogReader for Memory {
    async fn log_bounds(&self, _: &TopicPartition) -> Result<(Offset, Offset), KafkaError> {
        yield_now().await;
        let mut topic = self.topic();
        topic.ends_asked += 1;
        if topic.failing {
            return Err(KafkaError::Unreachable {
                brokers: "nowhere".to_owned(),
                detail: "test".to_owned(),
            });
        }
        Ok((offset(topic.start), offset(topic.records.len())))
    }

    async fn topic_id(&self, _: &str) -> Result<Option<Uuid>, KafkaError> {
        Ok(Some(Uuid::from_u128(self.topic().id)))
    }

    async fn read(
        &self,
        _: &TopicPartition,
        from: Offset,
        _: Duration,
    ) -> Result<Fetched, KafkaError> {
        let is_held = {
            let mut topic = self.topic();
            topic.fetches += 1;
            topic.held_from.is_some_and(|held| topic.fetches >= held)
        };
        if is_held {
            self.let_through.notified().await;
        }
        let from = usize::try_from(from.value()).unwrap();
        let (records, high_watermark) = {
            let topic = self.topic();
            let records = topic.records.iter().cloned().enumerate();
            let records: Vec<_> = records
                .skip(from)
                .take(if topic.holds_back { 0 } else { FETCH })
                .map(|(index, record)| (offset(index), record))
                .collect();
            (records, offset(topic.records.len()))
        };
        if records.is_empty() {
            yield_now().await;
        }
        Ok(Fetched {
            next_offset: offset(from + records.len()),
            records,
            high_watermark,
        })
    }
}

impl LogScanner for Memory {
    fn scan(&self, partition: &TopicPartition, from: Offset) -> Box<dyn LogScan> {
        Box::new(MemoryScan {
            memory: self.clone(),
            partition: partition.clone(),
            position: from,
        })
    }

    fn leader_epoch(&self, _: &TopicPartition) -> Option<i32> {
        self.topic().leader_epoch
    }
}

struct MemoryScan {
    memory: Memory,
    partition: TopicPartition,
    position: Offset,
}

#[async_trait]
impl LogScan for MemoryScan {
    async fn next(&mut self, wait: Duration) -> Result<Fetched, KafkaError> {
        let fetched = self
            .memory
            .read(&self.partition, self.position, wait)
            .await?;
        self.position = fetched.next_offset;
        Ok(fetched)
    }

    fn resume_at(&self) -> Offset {
        self.position
    }
}

fn input(partition: i32) -> TopicPartition {
    TopicPartition::new("docs", partition)
}

async fn next_offset(store: &CommitStore, partition: i32) -> Option<i64> {
    let loaded = store.load(&input(partition)).await.unwrap();
    loaded.newest.map(|(_, record)| record.next_offset.value())
}

#[tokio::test]
async fn a_thousand_that_ask_together_are_served_by_one_reading() {
    let memory = Memory::default();
    for round in 0..3 {
        for partition in 0..1_000 {
            memory.write(&input(partition), "before", 1, i64::from(partition) + round);
        }
    }
    let store = memory.store();
    let loads = (0..1_000).map(|partition| next_offset(&store, partition));
    let loaded = join_all(loads).await;
    for (partition, found) in (0..).zip(loaded) {
        assert_eq!(found, Some(partition + 2));
    }
    assert_eq!(memory.topic().ends_asked, 1);
    assert_eq!(memory.topic().fetches, 3_000 / FETCH);
}

#[tokio::test]
async fn what_was_written_before_the_call_is_seen_however_far_a_reading_is() {
    let memory = Memory::default();
    (0..10).for_each(|next| memory.write(&input(0), "before", 1, next));
    memory.topic().held_from = Some(2);
    let store = memory.store();
    let first = tokio::spawn({
        let store = store.clone();
        async move { next_offset(&store, 0).await }
    });
    while memory.topic().fetches < 2 {
        yield_now().await;
    }
    // Behind the end that the first reads to.
    memory.write(&input(0), "before", 1, 99);
    let second = tokio::spawn({
        let store = store.clone();
        async move { next_offset(&store, 0).await }
    });
    yield_now().await;
    memory.topic().held_from = None;
    memory.let_through.notify_one();
    first.await.unwrap();
    assert_eq!(second.await.unwrap(), Some(99));
}

#[tokio::test]
async fn one_that_gives_up_takes_nothing_from_the_others() {
    let memory = Memory::default();
    (0..20).for_each(|next| memory.write(&input(0), "before", 1, next));
    memory.topic().held_from = Some(6);
    let store = memory.store();
    let first = tokio::spawn({
        let store = store.clone();
        async move { next_offset(&store, 0).await }
    });
    while memory.topic().fetches < 6 {
        yield_now().await;
    }
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    memory.topic().held_from = None;
    assert_eq!(next_offset(&store, 0).await, Some(19));
    let again = 1;
    assert_eq!(memory.topic().fetches, 20 / FETCH + again);
}

#[tokio::test]
async fn a_topic_that_was_created_anew_is_read_anew() {
    let memory = Memory::default();
    (0..6).for_each(|next| memory.write(&input(0), "before", 1, next));
    let store = memory.store();
    assert_eq!(next_offset(&store, 0).await, Some(5));
    // As long as the old one.
    let records = std::mem::take(&mut memory.topic().records);
    memory.topic().id = 1;
    (0..6).for_each(|_| memory.write(&input(1), "new", 1, 1));
    assert_eq!(next_offset(&store, 0).await, None);
    assert_eq!(next_offset(&store, 1).await, Some(1));
    // An old broker knows no ids: a log that is shorter than what was read is told by its end.
    memory.topic().records = records.into_iter().take(3).collect();
    assert_eq!(next_offset(&store, 0).await, Some(2));
    assert_eq!(next_offset(&store, 1).await, None);
    // Somebody has deleted records that were not read yet.
    (0..6).for_each(|_| memory.write(&input(1), "new", 1, 1));
    memory.topic().start = 8;
    assert_eq!(next_offset(&store, 0).await, None);
}

/// Brought by an unclean election; nothing but the epoch tells it from one that has only grown.
#[tokio::test]
async fn a_log_that_was_cut_and_has_grown_back_is_read_anew() {
    let memory = Memory::default();
    memory.topic().leader_epoch = Some(4);
    (0..4).for_each(|next| memory.write(&input(0), "before", 1, next));
    let store = memory.store();
    assert_eq!(next_offset(&store, 0).await, Some(3));
    memory.topic().records.truncate(1);
    (0..6).for_each(|_| memory.write(&input(1), "before", 1, 1));
    memory.topic().leader_epoch = Some(5);
    assert_eq!(next_offset(&store, 0).await, Some(0));
    assert_eq!(next_offset(&store, 1).await, Some(1));
    // Unless there was an election it goes on where it was, also while nobody knows who leads.
    let fetches = memory.topic().fetches;
    memory.topic().leader_epoch = None;
    assert_eq!(next_offset(&store, 1).await, Some(1));
    memory.topic().leader_epoch = Some(5);
    assert_eq!(next_offset(&store, 1).await, Some(1));
    assert_eq!(memory.topic().fetches, fetches);
}

#[tokio::test]
async fn a_record_that_cannot_be_used_fails_its_own_partition_until_it_is_gone() {
    let memory = Memory::default();
    memory.write(&input(0), "before", 1, 3);
    memory.write_value(&input(1), Some("rubbish"));
    memory.write(&input(1), "before", 1, 4);
    let store = memory.store();
    assert_eq!(next_offset(&store, 0).await, Some(3));
    let refused = store.load(&input(1)).await;
    assert!(matches!(refused, Err(ClaimError::Record { offset, .. }) if offset == Offset::new(1)));
    // Compaction keeps the offsets of what it leaves.
    memory.topic().records[1].key = None;
    assert_eq!(next_offset(&store, 1).await, Some(4));
    memory.write_value(&input(0), None);
    assert_eq!(next_offset(&store, 0).await, None);
}

#[tokio::test]
async fn a_rival_before_a_tombstone_is_found_all_the_same() {
    let memory = Memory::default();
    let store = memory.store();
    let owner = Owner {
        instance: "me".to_owned(),
        epoch: 2,
    };
    memory.write(&input(0), "me", 2, 0);
    let verified = store
        .verify(&input(0), &owner, None, Offset::ZERO)
        .await
        .unwrap();
    assert_eq!(verified.claimed_at, Some(Offset::ZERO));
    memory.write(&input(0), "rival", 3, 0);
    memory.write_value(&input(0), None);
    memory.write(&input(0), "me", 2, 1);
    let lost = store
        .verify(&input(0), &owner, verified.claimed_at, verified.next)
        .await;
    assert!(
        matches!(lost, Err(ClaimError::Lost { owner_epoch: 3, .. })),
        "{lost:?}"
    );
}

#[tokio::test]
async fn keys_without_room_are_read_by_themselves() {
    let memory = Memory::default();
    for next in 0..3 {
        (0..100).for_each(|partition| memory.write(&input(partition), "before", 1, next));
    }
    let bounds = Arc::new(Bounds::new(10_000));
    let log = CommitLog::new(
        Arc::new(memory.clone()),
        TopicPartition::new("commits", 0),
        Arc::clone(&bounds),
    );
    let known = |partition| {
        let key = commit_key(&input(partition));
        log.ask(move |reading| reading.seen(&key).map(|seen| seen.is_some()))
    };
    assert_eq!(known(0).await.unwrap(), Ok(true));
    assert_eq!(known(99).await.unwrap(), Err(Apart));
    assert!(bounds.kept.load(Ordering::Relaxed) <= 10_000);
    // None that was left out comes back with only its later records.
    memory.write(&input(99), "before", 1, 7);
    assert_eq!(known(99).await.unwrap(), Err(Apart));
}

/// As after an unclean election, or when the topic is deleted meanwhile.
#[tokio::test]
async fn a_log_that_is_cut_while_it_is_read_keeps_nobody_waiting() {
    let memory = Memory::default();
    for partition in 0..2 {
        memory.write(&input(partition), "before", 1, 1);
    }
    (2..6).for_each(|next| memory.write(&input(0), "before", 1, next));
    memory.topic().held_from = Some(2);
    let store = memory.store();
    let reading = tokio::spawn({
        let store = store.clone();
        async move { store.load(&input(0)).await }
    });
    while memory.topic().fetches < 2 {
        yield_now().await;
    }
    memory.topic().records.truncate(3);
    memory.topic().held_from = None;
    memory.let_through.notify_one();
    let cut = timeout(PATIENCE, reading).await.expect("it ends").unwrap();
    assert!(
        matches!(&cut, Err(ClaimError::Kafka(error)) if error.is_transient()),
        "{cut:?}"
    );
    assert_eq!(next_offset(&store, 0).await, Some(2));
}

#[tokio::test]
async fn a_log_that_tells_of_more_than_it_gives_keeps_nobody_waiting() {
    let memory = Memory::default();
    memory.write_value(&input(0), Some("rubbish"));
    memory.write(&input(1), "before", 1, 1);
    let store = memory.store();
    // The key that cannot be used is read by itself.
    assert_eq!(next_offset(&store, 1).await, Some(1));
    memory.topic().holds_back = true;
    memory.write(&input(1), "before", 1, 2);
    for partition in 0..2 {
        let loaded = timeout(PATIENCE, store.load(&input(partition))).await;
        let loaded = loaded.expect("it ends");
        assert!(
            matches!(&loaded, Err(ClaimError::Kafka(error)) if error.is_transient()),
            "{loaded:?}"
        );
    }
    memory.topic().holds_back = false;
    assert_eq!(next_offset(&store, 1).await, Some(2));
}

#[tokio::test]
async fn a_failure_answers_all_who_wait() {
    let memory = Memory::default();
    memory.topic().failing = true;
    let store = memory.store();
    let inputs: Vec<_> = (0..100).map(input).collect();
    let loads = join_all(inputs.iter().map(|input| store.load(input))).await;
    assert!(loads.iter().all(Result::is_err));
    assert_eq!(memory.topic().ends_asked, 1);
    memory.topic().failing = false;
    assert_eq!(next_offset(&store, 0).await, None);
}
