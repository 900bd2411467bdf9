//! The commit protocol: in which order results and the commit that claims them are written, and what an unknown outcome means.
//!
//! It stands above the drivers. One that has transactions writes everything in one: begin, results and commit record in any order, end. One that has none
//! appends the results, waits for every acknowledgement, and only then appends the commit record; whatever of that has an unknown outcome is
//! written again, which can repeat a result and cannot lose one.

mod lanes;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use self::lanes::Lanes;
use super::audit::{AuditWriter, Chain};
use super::record::{CommitPosition, CommitRecord, Guarantee, VERSION};
use super::store::{ClaimError, CommitStore, Owner};
use crate::clock;
use crate::kafka::{Batch, End, KafkaError, PartitionSink, StepError};
use crate::records::audit::{AuditEntry, AuditHead};
use crate::retry::Backoff;
use crate::types::{Offset, Record, TopicPartition};

const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(1);

/// A record that is the outcome of an input record: a result or a dead letter.
#[derive(Debug, Clone)]
pub struct Output {
    /// The input record that it ends.
    pub source: Offset,
    /// Where it goes.
    pub to: TopicPartition,
    /// What is written.
    pub record: Record,
}

/// What becomes durable together.
#[derive(Debug, Clone)]
pub struct Flush {
    /// Outcomes, in the order in which their readers shall see them within a partition.
    pub outputs: Vec<Output>,
    /// What the audit trail says of them, in their order; empty where there is none.
    pub audit: Vec<AuditEntry>,
    /// What may be claimed once they are durable.
    pub position: CommitPosition,
}

/// Why a flush ended without being durable. Everything else is tried again until it is.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// Somebody else owns the partition: nothing more may be written.
    #[error("another instance has taken over {partition}")]
    Fenced {
        /// The input partition.
        partition: TopicPartition,
    },
    /// The broker has forgotten the writer: the partition has to be taken over anew, which finds out what became of the flush.
    #[error("the broker no longer knows the writer of {partition}")]
    Expired {
        /// The input partition.
        partition: TopicPartition,
        /// What the broker said.
        source: KafkaError,
    },
    /// A commit record could not be made.
    #[error("the commit record of {partition} cannot be written")]
    Record {
        /// The input partition.
        partition: TopicPartition,
        /// Why.
        source: super::record::RecordError,
    },
}

/// Hears of trouble while a flush is tried again and again.
pub trait FlushObserver: Send + Sync {
    /// Kafka has answered, well or not: `append` of results, `commit` of the record, `end of transaction`.
    fn step_took(&self, _step: &'static str, _time: Duration) {}
    /// A step failed and will be tried again.
    fn step_failed(&self, step: &'static str, error: &StepError);
    /// A record was larger than its topic accepts; `replaced` tells whether another was written instead.
    fn too_large(&self, source: Offset, replaced: bool);
    /// The flush went through after a step had failed.
    fn recovered(&self);
}

/// What a flush, or a transaction of it, has written.
struct Written {
    /// Where the audit trail ends.
    head: Option<AuditHead>,
    replaced: Vec<Output>,
}

/// Makes a smaller record of one that its topic does not accept; `None` when it cannot be made smaller.
pub type Shrink = dyn Fn(Output) -> Option<Output> + Send + Sync;

/// Writes for the owner of one input partition. It has one user and does one flush at a time.
pub struct Committer {
    /// The input partition.
    pub partition: TopicPartition,
    sink: Box<dyn PartitionSink>,
    store: CommitStore,
    owner: Owner,
    topic_id: Uuid,
    committed: Option<CommitPosition>,
    /// The audit trail of the partition. It advances with a flush that is durable, and only then.
    chain: Chain,
    commit_bytes: usize,
    /// Whether the owner ends with its next commit record.
    releases: bool,
    observer: Box<dyn FlushObserver>,
    shrink: Box<Shrink>,
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer")
            .field("partition", &self.partition)
            .field("owner", &self.owner)
            .field("committed", &self.committed)
            .finish_non_exhaustive()
    }
}

impl Committer {
    /// A committer for `owner`; its first flush, without outputs, is the claim.
    pub fn new(
        partition: TopicPartition,
        topic_id: Uuid,
        owner: Owner,
        sink: Box<dyn PartitionSink>,
        store: CommitStore,
        observer: Box<dyn FlushObserver>,
        shrink: Box<Shrink>,
    ) -> Self {
        Self {
            chain: Chain::new(partition.clone()),
            partition,
            sink,
            store,
            owner,
            topic_id,
            committed: None,
            commit_bytes: 0,
            releases: false,
            observer,
            shrink,
        }
    }

    /// The same with the chain of the audit trail as the newest commit has it: it is kept also where nothing is written to it. `writer` is who
    /// writes to it.
    #[must_use]
    pub fn with_audit(mut self, head: Option<AuditHead>, writer: Option<Arc<AuditWriter>>) -> Self {
        self.chain.continue_from(head, writer);
        self
    }

    /// Makes a flush durable; tries again until it is. Answers with what was written instead of outputs that were too large: of one source the
    /// last counts.
    ///
    /// # Errors
    /// As [`FlushError`] says.
    ///
    /// # Panics
    /// When the position lies before what was committed (invariant 2).
    ///
    /// # Cancel safety
    /// Not safe: what was sent stays sent. Drop it only when the process ends.
    pub async fn flush(&mut self, flush: Flush) -> Result<Vec<Output>, FlushError> {
        if let Some(committed) = &self.committed {
            assert!(
                flush.position.next_offset >= committed.next_offset,
                "commit offset of {} would fall from {} to {}",
                self.partition,
                committed.next_offset,
                flush.position.next_offset
            );
        }
        let mut attempt = Attempt::new(&self.partition);
        let mut flush = flush;
        let written = if self.sink.is_transactional() {
            self.flush_in_transaction(&flush, &mut attempt).await?
        } else {
            self.flush_in_steps(&mut flush, &mut attempt).await?
        };
        if attempt.failed {
            self.observer.recovered();
        }
        self.chain.advance(written.head, !flush.audit.is_empty());
        self.committed = Some(flush.position);
        Ok(written.replaced)
    }

    /// Goes on as the owner in a later epoch, for the topic of that id. With the epoch the commit offset may fall (invariant 2). `releases`
    /// says that the owner ends with what it commits from now on.
    ///
    /// # Panics
    /// When the epoch is not a later one.
    pub(super) fn begin_epoch(&mut self, owner_epoch: u64, topic_id: Uuid, releases: bool) {
        assert!(
            owner_epoch > self.owner.epoch,
            "owner epoch of {} would fall from {} to {owner_epoch}",
            self.partition,
            self.owner.epoch
        );
        self.owner.epoch = owner_epoch;
        self.topic_id = topic_id;
        self.releases = releases;
        self.committed = None;
    }

    /// What the last flush made durable.
    #[must_use]
    pub fn committed(&self) -> Option<&CommitPosition> {
        self.committed.as_ref()
    }

    /// Bytes of the last flush's commit record, uncompressed.
    #[must_use]
    pub const fn commit_bytes(&self) -> usize {
        self.commit_bytes
    }

    /// Who writes.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    fn guarantee(&self) -> Guarantee {
        if self.sink.is_transactional() {
            Guarantee::ExactlyOnce
        } else {
            Guarantee::AtLeastOnce
        }
    }

    fn commit_record(&self, position: &CommitPosition, audit: Option<AuditHead>) -> CommitRecord {
        CommitRecord {
            v: VERSION,
            topic_id: self.topic_id,
            owner: self.owner.instance.clone(),
            owner_epoch: self.owner.epoch,
            guarantee: self.guarantee(),
            next_offset: position.next_offset,
            done: position.done.clone(),
            audit,
            at: clock::now(),
            released: self.releases,
        }
    }

    /// What the audit trail gets of the flush, behind its results in the lanes: what it says of one is known once that is written, as it may
    /// have been replaced by a smaller one. Answers where the chain ends then.
    fn seal(&self, flush: &Flush, lanes: &mut Lanes) -> Option<AuditHead> {
        let (records, head) = self.chain.seal(
            &flush.audit,
            lanes.replaced(),
            &self.owner,
            self.guarantee(),
        );
        lanes.extend(records);
        head
    }

    fn commit_batch(&mut self, commit: &CommitRecord) -> Result<Batch, FlushError> {
        let record = commit
            .clone()
            .into_record(&self.partition)
            .map_err(|source| FlushError::Record {
                partition: self.partition.clone(),
                source,
            })?;
        self.commit_bytes = record.value.as_ref().map_or(0, bytes::Bytes::len);
        Ok(Batch {
            to: self.store.partition_of(&self.partition),
            records: vec![record],
        })
    }

    /// Results, then what the audit trail says of them, then the commit record, each once the one before is acknowledged: so nothing is said of
    /// a result that is not there.
    async fn flush_in_steps(
        &mut self,
        flush: &mut Flush,
        attempt: &mut Attempt,
    ) -> Result<Written, FlushError> {
        let mut lanes = Lanes::new(std::mem::take(&mut flush.outputs));
        self.append_until_done(&mut lanes, attempt).await?;
        // Once: whatever of it is written again is the same, byte for byte.
        let head = self.seal(flush, &mut lanes);
        self.append_until_done(&mut lanes, attempt).await?;
        let commit = self.commit_record(&flush.position, head);
        self.append_commit(commit, attempt).await?;
        Ok(Written {
            head,
            replaced: lanes.into_replaced(),
        })
    }

    async fn append_until_done(
        &mut self,
        lanes: &mut Lanes,
        attempt: &mut Attempt,
    ) -> Result<(), FlushError> {
        while let Err(error) = self.append_all(lanes).await {
            attempt.again("append", error, &*self.observer).await?;
        }
        Ok(())
    }

    /// Appends the commit record until it is acknowledged. Repeating it is harmless: it says the same.
    async fn append_commit(
        &mut self,
        commit: CommitRecord,
        attempt: &mut Attempt,
    ) -> Result<(), FlushError> {
        let batch = [self.commit_batch(&commit)?];
        loop {
            let began = Instant::now();
            let outcome = self.sink.append(&batch).await.into_iter().next();
            self.observer.step_took("commit", began.elapsed());
            match outcome.unwrap_or_else(|| Err(no_outcome())) {
                Ok(()) => return Ok(()),
                Err(error) => attempt.again("commit", error, &*self.observer).await?,
            }
        }
    }

    /// Appends what is in the lanes and waits for every acknowledgement. Outputs of one partition go out in their order, one batch at a
    /// time; the partitions side by side. Ends at the first failure: what was not acknowledged stays in the lanes.
    async fn append_all(&mut self, lanes: &mut Lanes) -> Result<(), StepError> {
        while !lanes.is_empty() {
            self.append_heads(lanes, None).await?;
        }
        Ok(())
    }

    /// Appends one batch of each lane, and side by side with them the commit record, if it is given.
    async fn append_heads(
        &mut self,
        lanes: &mut Lanes,
        commit: Option<&Batch>,
    ) -> Result<(), StepError> {
        let mut batches = lanes.next_batches();
        batches.extend(commit.cloned());
        let began = Instant::now();
        let mut outcomes = self.sink.append(&batches).await.into_iter();
        self.observer.step_took("append", began.elapsed());
        let mut failure = None;
        let (chain, shrink) = (&self.chain, &self.shrink);
        // Of the audit trail every record is as small as it can be.
        let shrink = move |output: Output| {
            let is_audit = chain.is_written_to(&output.to);
            if is_audit { None } else { shrink(output) }
        };
        for batch in &batches {
            let sent = batch.records.len();
            match outcomes.next().unwrap_or_else(|| Err(no_outcome())) {
                Ok(()) => lanes.acknowledged(&batch.to, sent),
                Err(StepError::Refused(KafkaError::TooLarge { .. }))
                    if lanes.make_smaller(&batch.to, sent, &shrink, &*self.observer) => {}
                Err(error @ (StepError::Fenced | StepError::Expired(_))) => return Err(error),
                Err(error) => {
                    if matches!(error, StepError::OutcomeUnknown(_)) {
                        lanes.unresolved(&batch.to, sent);
                    }
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// As all of a transaction becomes visible at once or not at all, the commit record need not wait for the results: it goes out with the first
    /// of them, which saves adding its partition and appending it by themselves. With an audit trail it waits for the results, and goes out with
    /// what is said of them, as it names the end of the chain.
    async fn flush_in_transaction(
        &mut self,
        flush: &Flush,
        attempt: &mut Attempt,
    ) -> Result<Written, FlushError> {
        loop {
            let written = match self.begin_transaction(flush).await {
                Ok(mut lanes) => {
                    let head = self.seal(flush, &mut lanes);
                    let commit = self.commit_record(&flush.position, head);
                    let batch = self.commit_batch(&commit)?;
                    let appended = self.append_with_commit(&mut lanes, &batch).await;
                    appended.map(|()| (commit, lanes.into_replaced()))
                }
                Err(error) => Err(error),
            };
            match written {
                Ok((commit, replaced)) => {
                    if self.commit_transaction(&commit, attempt).await? {
                        let head = commit.audit;
                        return Ok(Written { head, replaced });
                    }
                }
                Err(error) => {
                    attempt.again("transaction", error, &*self.observer).await?;
                    self.abort(attempt).await?;
                }
            }
        }
    }

    /// Begins a transaction; answers with what it has to write beside audit trail and commit record.
    async fn begin_transaction(&mut self, flush: &Flush) -> Result<Lanes, StepError> {
        self.sink.begin().await?;
        let mut lanes = Lanes::new(flush.outputs.clone());
        if !flush.audit.is_empty() {
            self.append_all(&mut lanes).await?;
        }
        Ok(lanes)
    }

    async fn append_with_commit(
        &mut self,
        lanes: &mut Lanes,
        commit: &Batch,
    ) -> Result<(), StepError> {
        self.append_heads(lanes, Some(commit)).await?;
        self.append_all(lanes).await
    }

    /// Ends the transaction; true when it was committed, false when it was not and the flush begins again. An unknown outcome is repeated
    /// with the same end. Once that is refused, whatever is still open is aborted (it would hide the log's end from us), and then the
    /// commit record decides, as it is part of the transaction.
    async fn commit_transaction(
        &mut self,
        commit: &CommitRecord,
        attempt: &mut Attempt,
    ) -> Result<bool, FlushError> {
        loop {
            let began = Instant::now();
            let ended = self.sink.end(End::Commit).await;
            self.observer
                .step_took("end of transaction", began.elapsed());
            match ended {
                Ok(()) => return Ok(true),
                Err(error) => {
                    let refused = matches!(error, StepError::Refused(_));
                    attempt
                        .again("end of transaction", error, &*self.observer)
                        .await?;
                    if refused {
                        self.abort(attempt).await?;
                        return self.is_in_the_log(commit, attempt).await;
                    }
                }
            }
        }
    }

    async fn is_in_the_log(
        &mut self,
        commit: &CommitRecord,
        attempt: &mut Attempt,
    ) -> Result<bool, FlushError> {
        loop {
            match self.store.load(&self.partition).await {
                Ok(loaded) => {
                    return Ok(loaded.newest.is_some_and(|(_, newest)| newest == *commit));
                }
                Err(ClaimError::Kafka(error)) => {
                    let error = StepError::OutcomeUnknown(error);
                    attempt
                        .again("reading the commit back", error, &*self.observer)
                        .await?;
                }
                Err(ClaimError::Record {
                    partition, source, ..
                }) => {
                    return Err(FlushError::Record { partition, source });
                }
                Err(ClaimError::Lost { partition, .. }) => {
                    return Err(FlushError::Fenced { partition });
                }
            }
        }
    }

    async fn abort(&mut self, attempt: &mut Attempt) -> Result<(), FlushError> {
        loop {
            match self.sink.end(End::Abort).await {
                Ok(()) => return Ok(()),
                Err(error) => attempt.again("abort", error, &*self.observer).await?,
            }
        }
    }
}

/// A driver answers once per batch; one that does not leaves the outcome unknown.
fn no_outcome() -> StepError {
    StepError::OutcomeUnknown(KafkaError::Protocol {
        operation: "append",
        detail: "the driver gave no outcome for a batch".to_owned(),
    })
}

/// One flush's tries: its back-off, and whether any step failed.
struct Attempt {
    partition: TopicPartition,
    backoff: Backoff,
    failed: bool,
}

impl Attempt {
    fn new(partition: &TopicPartition) -> Self {
        Self {
            partition: partition.clone(),
            backoff: Backoff::new(RETRY_INITIAL, RETRY_CAP),
            failed: false,
        }
    }

    /// Reports a failed step and waits before the next try; being fenced ends it.
    async fn again(
        &mut self,
        step: &'static str,
        error: StepError,
        observer: &dyn FlushObserver,
    ) -> Result<(), FlushError> {
        self.failed = true;
        let partition = self.partition.clone();
        match error {
            StepError::Fenced => return Err(FlushError::Fenced { partition }),
            StepError::Expired(source) => return Err(FlushError::Expired { partition, source }),
            StepError::Refused(_) | StepError::OutcomeUnknown(_) => {}
        }
        observer.step_failed(step, &error);
        tokio::time::sleep(self.backoff.next_delay()).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
