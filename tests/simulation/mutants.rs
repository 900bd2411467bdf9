//! Drivers that take the steps of the commit protocol in a wrong order.

use async_trait::async_trait;
use kafka_llm_processor::kafka::{Batch, End, PartitionSink, StepError};

use crate::oracle::COMMITS;
use crate::scenario::Mutant;

/// Holds results back: until the commit record is written, or until the transaction is committed.
pub struct Swapped {
    inner: Box<dyn PartitionSink>,
    mutant: Mutant,
    held: Vec<Batch>,
}

impl Swapped {
    pub fn new(inner: Box<dyn PartitionSink>, mutant: Mutant) -> Self {
        Self {
            inner,
            mutant,
            held: Vec::new(),
        }
    }

    async fn write_held(&mut self) {
        for batch in std::mem::take(&mut self.held) {
            drop(self.inner.append(&[batch]).await);
        }
    }
}

#[async_trait]
impl PartitionSink for Swapped {
    fn is_transactional(&self) -> bool {
        self.inner.is_transactional()
    }

    async fn begin(&mut self) -> Result<(), StepError> {
        self.inner.begin().await
    }

    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        let is_commit = |batch: &&Batch| &*batch.to.topic == COMMITS;
        let results = batches.iter().filter(|batch| !is_commit(batch)).cloned();
        self.held.extend(results);
        let commits: Vec<_> = batches.iter().filter(is_commit).cloned().collect();
        let mut outcomes = Vec::new();
        if !commits.is_empty() {
            outcomes = self.inner.append(&commits).await;
            if self.mutant == Mutant::AcksBeforeWriting {
                self.write_held().await;
            }
        }
        let mut outcomes = outcomes.into_iter();
        batches
            .iter()
            .filter_map(|batch| {
                if is_commit(&batch) {
                    outcomes.next()
                } else {
                    Some(Ok(()))
                }
            })
            .collect()
    }

    async fn end(&mut self, end: End) -> Result<(), StepError> {
        let ended = self.inner.end(end).await;
        if end == End::Abort {
            self.held.clear();
        } else if ended.is_ok()
            && self.mutant == Mutant::EndsBeforeAppending
            && !self.held.is_empty()
        {
            self.inner.begin().await?;
            self.write_held().await;
            return self.inner.end(End::Commit).await;
        }
        ended
    }
}
