//! The edge to the model: answers late, gives documents up, and hands back what waits when the process stops.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kafka_llm_processor::llm::{
    Class, Complete, CompleteError, Completion, CompletionRequest, GiveUp, Slot, Usage,
};
use kafka_llm_processor::types::DeadLetterReason;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::broker::VALUE_BYTES_MAX;
use crate::instance::Instance;
use crate::scenario::Flavour;

#[derive(Debug)]
pub struct Model {
    instance: Arc<Instance>,
    slots: Arc<Semaphore>,
    drain: CancellationToken,
}

impl Model {
    pub fn new(instance: &Arc<Instance>) -> Self {
        Self {
            instance: Arc::clone(instance),
            slots: Arc::new(Semaphore::new(instance.world.scenario.concurrency)),
            drain: CancellationToken::new(),
        }
    }
}

#[async_trait]
impl Complete for Model {
    async fn admit(&self, _class: Class) -> Slot {
        self.instance.gate().await;
        match Arc::clone(&self.slots).acquire_owned().await {
            Ok(permit) => Slot::new(permit),
            Err(_closed) => Slot::unbounded(),
        }
    }

    async fn complete(
        &self,
        request: CompletionRequest,
        slot: Slot,
    ) -> Result<Completion, CompleteError> {
        self.instance.gate().await;
        let position = &request.position;
        self.instance.note(format_args!("asks about {position}"));
        let (gives_up, held, time) = {
            let state = &mut *self.instance.world.state();
            let partition = position.topic_partition.partition;
            state
                .oracle
                .asked(&self.instance.name, partition, position.offset);
            let faults = &self.instance.world.scenario.faults;
            let strikes = state.faults_on && state.random.chance(faults.percent.max(10));
            let held = faults.slow_documents && strikes;
            // Without transactions a document that gets another outcome when it is asked again goes to another topic than the first time: no
            // order can be promised for it. There the document decides.
            let number = u64::try_from(position.offset.value()).unwrap();
            let gives_up = faults.gives_up
                && match self.instance.world.scenario.flavour {
                    Flavour::ExactlyOnce => state.random.chance(20),
                    Flavour::Idempotent | Flavour::Plain => number % 5 == 0,
                };
            (gives_up, held, state.random.millis(20, 500))
        };
        if held {
            // What waits for a retry holds no slot, and is given back when the process stops.
            drop(slot);
            let wait = self.instance.world.state().random.between(1, 20);
            let waited = self
                .drain
                .run_until_cancelled(sleep(Duration::from_secs(wait)));
            if waited.await.is_none() {
                return Err(CompleteError::Abandoned);
            }
            sleep(time).await;
        } else {
            sleep(time).await;
            drop(slot);
        }
        self.instance.gate().await;
        if gives_up {
            return Err(CompleteError::DeadLetter(GiveUp {
                reason: DeadLetterReason::RequestRejected,
                detail: "a fault of the simulation".to_owned(),
                attempts: 1,
                http_status: Some(400),
                request_id: None,
                answer: None,
            }));
        }
        let is_long =
            self.instance.world.scenario.faults.small_messages && position.offset.value() % 7 == 3;
        let length = if is_long { VALUE_BYTES_MAX } else { 0 };
        Ok(Completion {
            text: format!("about {position}{}", ".".repeat(length)),
            data: None,
            long: None,
            cached: false,
            finish_reason: "stop".to_owned(),
            model: "simulated".to_owned(),
            system_fingerprint: None,
            endpoint: String::new(),
            usage: Usage::default(),
            attempts: 1,
            request_id: position.to_string(),
            llm_time: time,
        })
    }

    fn begin_drain(&self) {
        self.drain.cancel();
    }
}
