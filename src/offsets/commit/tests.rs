//! The protocol against a log in memory, with and without transactions, with faults at every step.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::kafka::{Fetched, LogReader, LogScan, LogScanner};

/// What happens to one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It works.
    None,
    /// It is refused, and nothing is done.
    Refused,
    /// It is done, and the answer is lost.
    DoneUnknown,
    /// It is not done, and no answer comes.
    NotDoneUnknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visibility {
    Committed,
    Open,
    Aborted,
}

#[derive(Debug, Clone)]
struct Entry {
    to: TopicPartition,
    record: Record,
    visibility: Visibility,
}

#[derive(Debug, Default)]
struct Log {
    /// Every record in the order in which it was written, over all partitions.
    entries: Vec<Entry>,
    /// What happens to the next steps; afterwards all work.
    faults: Vec<Fault>,
    in_transaction: bool,
    fenced: bool,
    /// The topics of each call's batches.
    calls: Vec<Vec<String>>,
}

impl Log {
    fn next_fault(&mut self) -> Fault {
        if self.faults.is_empty() {
            Fault::None
        } else {
            self.faults.remove(0)
        }
    }

    fn end(&mut self, visibility: Visibility) {
        for entry in &mut self.entries {
            if entry.visibility == Visibility::Open {
                entry.visibility = visibility;
            }
        }
        self.in_transaction = false;
    }

    fn visible(&self, topic: &str) -> Vec<&Entry> {
        let committed =
            |entry: &&Entry| entry.visibility == Visibility::Committed && &*entry.to.topic == topic;
        self.entries.iter().filter(committed).collect()
    }
}

#[derive(Debug, Clone)]
struct Memory {
    log: Arc<Mutex<Log>>,
    transactional: bool,
}

impl Memory {
    fn new(transactional: bool, faults: &[Fault]) -> Self {
        let log = Log {
            faults: faults.to_vec(),
            ..Log::default()
        };
        Self {
            log: Arc::new(Mutex::new(log)),
            transactional,
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// One step: `act` does it.
    fn step(&self, act: impl FnOnce(&mut Log)) -> Result<(), StepError> {
        let mut log = self.log();
        if log.fenced {
            return Err(StepError::Fenced);
        }
        let lost = || KafkaError::Disconnected {
            operation: "test",
            detail: "fault".to_owned(),
        };
        match log.next_fault() {
            Fault::None => act(&mut log),
            Fault::Refused => return Err(StepError::Refused(lost())),
            Fault::DoneUnknown => {
                act(&mut log);
                return Err(StepError::OutcomeUnknown(lost()));
            }
            Fault::NotDoneUnknown => return Err(StepError::OutcomeUnknown(lost())),
        }
        Ok(())
    }
}

#[async_trait]
impl PartitionSink for Memory {
    fn is_transactional(&self) -> bool {
        self.transactional
    }

    async fn begin(&mut self) -> Result<(), StepError> {
        self.step(|log| log.in_transaction = true)
    }

    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        let visibility = if self.transactional {
            Visibility::Open
        } else {
            Visibility::Committed
        };
        let transactional = self.transactional;
        let topics = batches.iter().map(|batch| batch.to.topic.to_string());
        self.log().calls.push(topics.collect());
        let write = |batch: &Batch| {
            self.step(|log| {
                assert!(
                    log.in_transaction || !transactional,
                    "append outside a transaction"
                );
                log.entries.extend(batch.records.iter().map(|record| Entry {
                    to: batch.to.clone(),
                    record: record.clone(),
                    visibility,
                }));
            })
        };
        batches.iter().map(write).collect()
    }

    async fn end(&mut self, end: End) -> Result<(), StepError> {
        // As Kafka: a repeated end with the same outcome is answered as the first; there is nothing to end otherwise.
        if !self.log().in_transaction && end == End::Commit {
            return Err(StepError::Refused(KafkaError::Protocol {
                operation: "end",
                detail: "no transaction".to_owned(),
            }));
        }
        self.step(|log| {
            log.end(match end {
                End::Commit => Visibility::Committed,
                End::Abort => Visibility::Aborted,
            });
        })
    }
}

#[async_trait]
impl LogReader for Memory {
    async fn log_bounds(
        &self,
        _partition: &TopicPartition,
    ) -> Result<(Offset, Offset), KafkaError> {
        let end = i64::try_from(self.log().entries.len()).unwrap();
        Ok((Offset::ZERO, Offset::new(end)))
    }

    async fn topic_id(&self, _topic: &str) -> Result<Option<uuid::Uuid>, KafkaError> {
        Ok(None)
    }

    async fn read(
        &self,
        partition: &TopicPartition,
        from: Offset,
        _wait: Duration,
    ) -> Result<Fetched, KafkaError> {
        let log = self.log();
        let end = Offset::new(i64::try_from(log.entries.len()).unwrap());
        let records = (0..)
            .map(Offset::new)
            .zip(&log.entries)
            .filter(|(at, entry)| {
                *at >= from && entry.to == *partition && entry.visibility == Visibility::Committed
            })
            .map(|(at, entry)| (at, entry.record.clone()))
            .collect();
        Ok(Fetched {
            records,
            next_offset: end,
            high_watermark: end,
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
}

struct MemoryScan {
    memory: Memory,
    partition: TopicPartition,
    position: Offset,
}

#[async_trait]
impl LogScan for MemoryScan {
    async fn next(&mut self, wait: Duration) -> Result<Fetched, KafkaError> {
        let read = self.memory.read(&self.partition, self.position, wait);
        let fetched = read.await?;
        self.position = fetched.next_offset;
        Ok(fetched)
    }

    fn resume_at(&self) -> Offset {
        self.position
    }
}

struct Silent;

impl FlushObserver for Silent {
    fn step_failed(&self, _step: &'static str, _error: &StepError) {}
    fn too_large(&self, _source: Offset, _replaced: bool) {}
    fn recovered(&self) {}
}

fn committer(memory: &Memory) -> Committer {
    Committer::new(
        TopicPartition::new("docs", 0),
        Uuid::from_u128(7),
        Owner {
            instance: "me".to_owned(),
            epoch: 1,
        },
        Box::new(memory.clone()),
        CommitStore::new(Arc::new(memory.clone()), "commits", 1),
        Box::new(Silent),
        Box::new(|_output| None),
    )
}

/// Outcome of offset n to one of two result partitions.
fn output(offset: i64) -> Output {
    let record = Record {
        value: Some(Bytes::from(offset.to_string())),
        timestamp_ms: 0,
        ..Record::default()
    };
    let partition = i32::from(offset % 2 == 1);
    Output {
        source: Offset::new(offset),
        to: TopicPartition::new("results", partition),
        record,
    }
}

fn flush_of(offsets: std::ops::Range<i64>) -> Flush {
    let next_offset = Offset::new(offsets.end);
    Flush {
        outputs: offsets.map(output).collect(),
        audit: Vec::new(),
        position: CommitPosition {
            next_offset,
            done: Vec::new(),
        },
    }
}

/// At every moment a reader sees no claim of an offset whose result it does not see too (invariants 1 and 3), claims never fall
/// (invariant 2), and each result partition is in order of first occurrences. Answers how often each result is there.
fn check(memory: &Memory, offsets: i64) -> Vec<usize> {
    let log = memory.log();
    let mut seen = HashSet::new();
    let mut claimed = Offset::ZERO;
    let mut counts = vec![0; usize::try_from(offsets).unwrap()];
    for entry in log
        .entries
        .iter()
        .filter(|entry| entry.visibility == Visibility::Committed)
    {
        let value = entry.record.value.as_ref().unwrap();
        if &*entry.to.topic == "commits" {
            let commit = CommitRecord::from_value(value).unwrap();
            assert!(commit.next_offset >= claimed, "claims never fall");
            claimed = commit.next_offset;
            for offset in 0..claimed.value() {
                assert!(
                    seen.contains(&offset),
                    "offset {offset} is claimed and has no result"
                );
            }
        } else {
            let offset: i64 = std::str::from_utf8(value).unwrap().parse().unwrap();
            if seen.insert(offset) {
                let older = (0..offset).filter(|older| older % 2 == offset % 2);
                older.for_each(|older| assert!(seen.contains(&older), "{older} after {offset}"));
            }
            counts[usize::try_from(offset).unwrap()] += 1;
        }
    }
    assert_eq!(
        claimed,
        Offset::new(offsets),
        "everything is claimed in the end"
    );
    counts
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::None),
        1 => Just(Fault::Refused),
        1 => Just(Fault::DoneUnknown),
        1 => Just(Fault::NotDoneUnknown),
    ]
}

/// Three flushes under the faults, on a paused clock.
fn run_flushes(memory: &Memory) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(async {
        let mut committer = committer(memory);
        for offsets in [0..4, 4..7, 7..12] {
            committer.flush(flush_of(offsets)).await.unwrap();
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn with_transactions_each_result_is_visible_once(faults in prop::collection::vec(fault(), 0..40)) {
        let memory = Memory::new(true, &faults);
        run_flushes(&memory);
        prop_assert_eq!(check(&memory, 12), vec![1; 12]);
    }

    #[test]
    fn without_transactions_no_result_is_lost(faults in prop::collection::vec(fault(), 0..40)) {
        let memory = Memory::new(false, &faults);
        run_flushes(&memory);
        let counts = check(&memory, 12);
        prop_assert!(counts.iter().all(|count| *count >= 1), "{:?}", counts);
        if !faults.contains(&Fault::DoneUnknown) {
            prop_assert_eq!(counts, vec![1; 12], "only an unknown outcome can repeat a result");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_whose_answer_is_lost_is_decided_by_the_commit_record() {
    // begin, two results, commit record, end: done, and the answer is lost; the repeat is refused, as there is no transaction.
    let faults = [
        Fault::None,
        Fault::None,
        Fault::None,
        Fault::None,
        Fault::DoneUnknown,
    ];
    let memory = Memory::new(true, &faults);
    committer(&memory).flush(flush_of(0..2)).await.unwrap();
    assert_eq!(memory.log().visible("results").len(), 2);
    assert_eq!(memory.log().visible("commits").len(), 1);
}

/// In a transaction both become visible at once; without one a claim that is written first would be a promise.
#[tokio::test(start_paused = true)]
async fn only_in_a_transaction_the_commit_record_goes_with_the_results() {
    let calls = |memory: &Memory| memory.log().calls.clone();
    let memory = Memory::new(true, &[]);
    committer(&memory).flush(flush_of(0..2)).await.unwrap();
    assert_eq!(calls(&memory), [["results", "results", "commits"]]);
    let memory = Memory::new(false, &[]);
    committer(&memory).flush(flush_of(0..2)).await.unwrap();
    assert_eq!(
        calls(&memory),
        [vec!["results", "results"], vec!["commits"]]
    );
}

#[test]
fn a_commit_record_cannot_be_made_smaller() {
    let to = TopicPartition::new("commits", 0);
    let shrink = |_output| -> Option<Output> { panic!("it is no output") };
    for records in [1, 2] {
        let mut lanes = Lanes::new(vec![output(0)]);
        assert!(!lanes.make_smaller(&to, records, &shrink, &Silent));
        assert_eq!(lanes.next_batches().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fenced_owner_writes_nothing_more() {
    for transactional in [false, true] {
        let memory = Memory::new(transactional, &[]);
        let mut committer = committer(&memory);
        committer.flush(flush_of(0..2)).await.unwrap();
        memory.log().fenced = true;
        let before = memory.log().entries.len();
        let error = committer.flush(flush_of(2..4)).await.unwrap_err();
        assert!(matches!(error, FlushError::Fenced { .. }), "{error}");
        assert_eq!(memory.log().entries.len(), before);
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "would fall from 4 to 2")]
async fn a_falling_commit_offset_is_a_broken_invariant() {
    let memory = Memory::new(false, &[]);
    let mut committer = committer(&memory);
    committer.flush(flush_of(0..4)).await.unwrap();
    drop(committer.flush(flush_of(0..2)).await);
}

/// A sink whose topics take no batch above a number of records, and no record above a number of bytes.
struct Narrow {
    memory: Memory,
    records_max: usize,
    bytes_max: usize,
}

#[async_trait]
impl PartitionSink for Narrow {
    fn is_transactional(&self) -> bool {
        false
    }
    async fn begin(&mut self) -> Result<(), StepError> {
        Ok(())
    }
    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        let mut outcomes = Vec::new();
        for batch in batches {
            let too_large = batch.records.len() > self.records_max
                || batch
                    .records
                    .iter()
                    .any(|record| record.size() > self.bytes_max);
            outcomes.push(if too_large && &*batch.to.topic != "commits" {
                Err(StepError::Refused(KafkaError::TooLarge {
                    partition: batch.to.clone(),
                }))
            } else {
                self.memory
                    .append(std::slice::from_ref(batch))
                    .await
                    .remove(0)
            });
        }
        outcomes
    }
    async fn end(&mut self, _end: End) -> Result<(), StepError> {
        Ok(())
    }
}

/// Forwards to a narrow sink, and loses the answer to the first dead letters.
struct Forgetful {
    narrow: Narrow,
    unresolved: Option<Batch>,
    has_lost: bool,
}

#[async_trait]
impl PartitionSink for Forgetful {
    fn is_transactional(&self) -> bool {
        false
    }
    async fn begin(&mut self) -> Result<(), StepError> {
        Ok(())
    }
    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        let mut outcomes = self.narrow.append(batches).await;
        for (batch, outcome) in batches.iter().zip(&mut outcomes) {
            if &*batch.to.topic != "dead-letters" {
                continue;
            }
            if let Some(before) = self.unresolved.take() {
                assert_eq!(before.records, batch.records, "the same batch comes again");
            }
            if !std::mem::replace(&mut self.has_lost, true) {
                self.unresolved = Some(batch.clone());
                *outcome = Err(StepError::OutcomeUnknown(KafkaError::Disconnected {
                    operation: "append",
                    detail: "a test".to_owned(),
                }));
            }
        }
        outcomes
    }
    async fn end(&mut self, _end: End) -> Result<(), StepError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_substitute_does_not_change_a_batch_whose_outcome_is_unknown() {
    let memory = Memory::new(false, &[]);
    let mut committer = committer(&memory);
    committer.sink = Box::new(Forgetful {
        narrow: Narrow {
            memory: memory.clone(),
            records_max: 100,
            bytes_max: 10,
        },
        unresolved: None,
        has_lost: false,
    });
    committer.shrink = Box::new(|mut output| {
        output.to = TopicPartition::new("dead-letters", 0);
        output.record.value = Some(Bytes::from_static(b"too large"));
        Some(output)
    });
    let mut flush = flush_of(0..3);
    flush.outputs[0].record.value = Some(Bytes::from(vec![b'x'; 11]));
    flush.outputs[1].to = TopicPartition::new("dead-letters", 0);
    flush.outputs.remove(2);
    committer.flush(flush).await.unwrap();
    // The batch whose answer was lost twice, as this sink knows no sequences, and the substitute once.
    assert_eq!(memory.log().visible("dead-letters").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_too_large_is_split_and_a_record_is_replaced() {
    let memory = Memory::new(false, &[]);
    let mut committer = committer(&memory);
    committer.sink = Box::new(Narrow {
        memory: memory.clone(),
        records_max: 3,
        bytes_max: 10,
    });
    committer.shrink = Box::new(|mut output| {
        output.to = TopicPartition::new("dead-letters", 0);
        output.record.value = Some(Bytes::from_static(b"too large"));
        Some(output)
    });
    let mut flush = flush_of(0..20);
    flush.outputs[6].record.value = Some(Bytes::from(vec![b'x'; 11]));
    let replaced = committer.flush(flush).await.unwrap();
    let replaced = replaced.iter().map(|it| (it.source.value(), &*it.to.topic));
    assert_eq!(replaced.collect::<Vec<_>>(), [(6, "dead-letters")]);
    assert_eq!(memory.log().visible("results").len(), 19);
    assert_eq!(memory.log().visible("dead-letters").len(), 1);
    assert_eq!(memory.log().visible("commits").len(), 1);
}

mod audit;
