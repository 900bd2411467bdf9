//! The fetch loop of one partition: reads ahead as far as the bound allows, and survives whatever Kafka does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::read_ahead::OpenToken;
use super::{Services, reading};
use crate::kafka::{Fetched, KafkaError, RecordStream};
use crate::retry::Backoff;
use crate::types::{Offset, Record, TopicPartition, error_chain};

const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(2);
/// How often a partition that nothing of ours can heal is looked at again.
const HELD_CAP: Duration = Duration::from_secs(15);

/// Records with their places in the bound.
pub(super) struct Intaken {
    pub(super) records: Vec<(Offset, Record, OpenToken)>,
    pub(super) next_offset: Offset,
    pub(super) high_watermark: Offset,
}

pub(super) struct Intake {
    /// The partition, and its place among those that share the bound.
    pub(super) partition: TopicPartition,
    pub(super) index: usize,
    pub(super) services: Arc<Services>,
    pub(super) stream: Box<dyn RecordStream>,
    /// Holds one batch: the next is fetched while the worker takes the last.
    pub(super) to_worker: mpsc::Sender<Intaken>,
    /// Cancelled when the topic was deleted and created again: what is fetched from then on is not what was taken over.
    pub(super) recreated: CancellationToken,
}

/// What an operator reads when a topic was replaced under us. The commit record keeps the old topic's id, so the restart sees it too.
const RECREATED: &str = "the input topic was deleted and created again: nothing more of it is read, or its first records would be passed over; restart with input.on_data_loss = \"resume\" to begin at the new topic's first record, or with another kafka.group_id";

impl Intake {
    /// Fetches until the token is cancelled or the worker is gone.
    pub(super) async fn run(mut self, drain: CancellationToken) {
        let worker = self.to_worker.clone();
        let recreated = self.recreated.clone();
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            // Also while a failing fetch is tried again and again, and there is nothing to send.
            () = worker.closed() => {}
            () = recreated.cancelled() => {
                self.services.holds.hold(&reading(&self.partition), RECREATED);
                tokio::select! {
                    biased;
                    () = drain.cancelled() => {}
                    () = worker.closed() => {}
                }
            }
            () = self.fetch() => {}
        }
        self.services.holds.forget(&reading(&self.partition));
    }

    async fn fetch(&mut self) {
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_CAP);
        let mut held = Backoff::new(RETRY_CAP, HELD_CAP);
        let what = reading(&self.partition);
        let mut failing = false;
        loop {
            self.services.read_ahead.room(self.index).await;
            let max_bytes = self.services.read_ahead.fetch_bytes();
            let wait = self.services.input.fetch_wait;
            let fetch = self.stream.next(max_bytes, wait);
            let (answer, told) = self.services.patiently(&what, "fetch", wait, fetch).await;
            failing |= told;
            match answer {
                Ok(fetched) => {
                    if failing {
                        self.services.holds.release(&what);
                        failing = false;
                    }
                    backoff.reset();
                    held.reset();
                    if self.to_worker.send(self.count(fetched)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    failing = true;
                    self.services.holds.hold(&what, &error_chain(&error));
                    // What lies there will not change by asking often; it is asked again as somebody may change the log or the topic.
                    let delay = match error {
                        KafkaError::Unreadable { .. }
                        | KafkaError::OffsetOutOfRange { .. }
                        | KafkaError::UnknownTopic { .. } => held.next_delay(),
                        _ => backoff.next_delay(),
                    };
                    sleep(delay).await;
                }
            }
        }
    }

    fn count(&self, fetched: Fetched) -> Intaken {
        let read_ahead = &self.services.read_ahead;
        let records = fetched
            .records
            .into_iter()
            .map(|(offset, record)| {
                let open = read_ahead.hold(self.index, record.size());
                (offset, record, open)
            })
            .collect();
        Intaken {
            records,
            next_offset: fetched.next_offset,
            high_watermark: fetched.high_watermark,
        }
    }
}
