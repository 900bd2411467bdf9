//! A writer that the broker has fenced without a successor.
//!
//! A transaction that is open for longer than its timeout is aborted by its coordinator, which raises the epoch for that: the writer is
//! fenced although nobody has taken its place. Its old epoch is then good for one thing: to ask for the next one (KIP-360). The coordinator
//! grants it as long as nobody else has it, and refuses once somebody has taken the transactional id over (both seen on Kafka 4.3.1). So a
//! writer that is granted the next epoch is still the owner, its transaction is aborted, and the flush begins again with everything that is
//! in memory.

use async_trait::async_trait;

use super::TransactionalSink;
use crate::kafka::{Batch, End, KafkaError, PartitionSink, StepError};

/// Asks for the next epoch whenever a step was fenced.
pub(super) struct Regaining(pub(super) TransactionalSink);

#[async_trait]
impl PartitionSink for Regaining {
    fn is_transactional(&self) -> bool {
        self.0.is_transactional()
    }

    async fn begin(&mut self) -> Result<(), StepError> {
        let begun = self.0.begin().await;
        self.regain_when_fenced(begun).await
    }

    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        let outcomes = self.0.append(batches).await;
        let is_fenced = |outcome: &Result<(), StepError>| matches!(outcome, Err(StepError::Fenced));
        if !outcomes.iter().any(is_fenced) {
            return outcomes;
        }
        let error = self.regain().await;
        let told = |outcome| {
            if is_fenced(&outcome) {
                Err(error.clone())
            } else {
                outcome
            }
        };
        outcomes.into_iter().map(told).collect()
    }

    async fn end(&mut self, end: End) -> Result<(), StepError> {
        let ended = self.0.end(end).await;
        self.regain_when_fenced(ended).await
    }
}

impl Regaining {
    async fn regain_when_fenced(
        &mut self,
        outcome: Result<(), StepError>,
    ) -> Result<(), StepError> {
        match outcome {
            Err(StepError::Fenced) => Err(self.regain().await),
            outcome => outcome,
        }
    }

    /// Asks for the next epoch; answers how the step has ended.
    async fn regain(&mut self) -> StepError {
        let sink = &mut self.0;
        let deadline = sink.cluster.deadline();
        match sink.raise_epoch(deadline).await {
            Ok(()) => {
                sink.added.clear();
                sink.is_open = false;
                StepError::Refused(KafkaError::TransactionTimedOut {
                    transactional_id: sink.transactional_id.clone(),
                })
            }
            Err(error) => error,
        }
    }
}
