//! The fetch loop of one partition: reads ahead as far as the bound allows, and survives whatever Kafka does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::config::OnDataLoss;
use super::read_ahead::OpenToken;
use super::{Services, reading};
use crate::kafka::{Fetched, KafkaError, RecordStream};
use crate::offsets::is_same_topic;
use crate::records::audit::AUDIT_BYTES;
use crate::retry::Backoff;
use crate::types::{Offset, Record, TopicPartition, error_chain};

const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(1);
/// The longest that a fetch waits where nothing comes: each answer wakes the fetch loop and the worker, which is most of what an idle partition
/// costs. Less than it takes to tell of a broker that is silent.
const IDLE_WAIT_MAX: Duration = Duration::from_millis(1_500);
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
    /// Id of the topic that was taken over.
    pub(super) topic_id: Uuid,
    /// Holds one batch: the next is fetched while the worker takes the last.
    pub(super) to_worker: mpsc::Sender<Intaken>,
    /// Cancelled when the topic was deleted and created again: what is fetched from then on is not what was taken over.
    pub(super) recreated: CancellationToken,
}

/// How an intake ended.
#[derive(Debug)]
pub(super) enum IntakeEnd {
    /// It was told to, or the worker is gone.
    Stopped,
    /// The outside took input away, and `input.on_data_loss` says to go on: the partition has to be taken over anew, which finds out where.
    InputLost(InputLost),
}

/// Input that was taken away while it was read.
#[derive(Debug, Clone)]
pub(super) struct InputLost {
    /// What happened, for the operator.
    pub(super) reason: String,
    /// The end of the log (exclusive) when it was found to end before the position. By the time the partition is taken over the log may have
    /// grown beyond the commit again, and nothing but this tells what lies between.
    pub(super) log_end: Option<Offset>,
}

impl Intake {
    /// Fetches until the token is cancelled, the worker is gone, or there is nothing to fetch any more.
    pub(super) async fn run(mut self, drain: CancellationToken) -> IntakeEnd {
        let worker = self.to_worker.clone();
        let end = tokio::select! {
            biased;
            () = drain.cancelled() => IntakeEnd::Stopped,
            // Also while a failing fetch is tried again and again, and there is nothing to send.
            () = worker.closed() => IntakeEnd::Stopped,
            end = self.read() => end,
        };
        self.services.holds.forget(&reading(&self.partition));
        end
    }

    /// Fetches until input is lost, and holds the partition then unless the policy says otherwise.
    async fn read(&mut self) -> IntakeEnd {
        let recreated = self.recreated.clone();
        let lost = tokio::select! {
            biased;
            () = recreated.cancelled() => was_recreated(),
            lost = self.fetch() => match lost {
                Some(lost) => lost,
                None => return IntakeEnd::Stopped,
            },
        };
        if self.services.input.on_data_loss == OnDataLoss::Resume {
            return IntakeEnd::InputLost(lost);
        }
        let reason = format!(
            "{}. Nothing more is read until you decide: restart with input.on_data_loss = \"resume\" to go on at the first record that exists and was not read, or stop and say where with `kafka-llm-processor offsets reset`",
            lost.reason
        );
        // It is not looked at again: a log that grows past the position would hide what was lost.
        loop {
            self.services.holds.hold(&reading(&self.partition), &reason);
            sleep(HELD_CAP).await;
        }
    }

    /// Hands over what it fetches; ends with what was lost, or with nothing when the worker is gone.
    async fn fetch(&mut self) -> Option<InputLost> {
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_CAP);
        let mut held = Backoff::new(RETRY_CAP, HELD_CAP);
        let what = reading(&self.partition);
        let mut failing = false;
        let shortest = self.services.input.fetch_wait;
        let mut wait = shortest;
        loop {
            self.services.read_ahead.room(self.index).await;
            let max_bytes = self.services.read_ahead.fetch_bytes(self.index);
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
                    wait = if fetched.records.is_empty() {
                        (wait * 2).min(IDLE_WAIT_MAX).max(shortest)
                    } else {
                        shortest
                    };
                    if self
                        .to_worker
                        .send(self.count(fetched, max_bytes))
                        .await
                        .is_err()
                    {
                        return None;
                    }
                }
                Err(error) => {
                    if let Some(lost) = self.loss_in(&error).await {
                        return Some(lost);
                    }
                    failing = true;
                    wait = shortest;
                    self.services.holds.hold(&what, &error_chain(&error));
                    // What lies there will not change by asking often; it is asked again as somebody may change the log or the topic.
                    let delay = match error {
                        KafkaError::Unreadable { .. } | KafkaError::UnknownTopic { .. } => {
                            held.next_delay()
                        }
                        _ => backoff.next_delay(),
                    };
                    sleep(delay).await;
                }
            }
        }
    }

    /// What was lost, when a fetch failed for that.
    async fn loss_in(&mut self, error: &KafkaError) -> Option<InputLost> {
        let outside = match error {
            KafkaError::UnknownTopic { .. } => None,
            KafkaError::OffsetOutOfRange {
                offset,
                log_start,
                high_watermark,
                ..
            } => Some(outside(*offset, *log_start, *high_watermark)?),
            _ => return None,
        };
        // A new topic under the old name refuses the old position too, and is the better explanation.
        let found = self.services.source.topic_id(&self.partition.topic).await;
        match found {
            Ok(Some(found)) if !is_same_topic(self.topic_id, found) => Some(was_recreated()),
            _ => outside,
        }
    }

    fn count(&self, fetched: Fetched, asked: usize) -> Intaken {
        let read_ahead = &self.services.read_ahead;
        let bytes = fetched
            .records
            .iter()
            .map(|(_, record)| record.size())
            .sum();
        read_ahead.learn(self.index, asked, fetched.records.len(), bytes);
        let audit = &self.services.audit;
        let audit_bytes = audit.as_ref().map_or(0, |_kept| AUDIT_BYTES);
        let records = fetched
            .records
            .into_iter()
            .map(|(offset, record)| {
                let open = read_ahead.hold(self.index, record.size() + audit_bytes);
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

/// The commit record keeps the old topic's id, so whoever takes the partition over sees it too.
fn was_recreated() -> InputLost {
    InputLost {
        reason: "the input topic was deleted and created again: nothing more of it is read from the old position, or its first records would be passed over".to_owned(),
        log_end: None,
    }
}

/// What was lost when `offset` is outside the log; nothing when it is inside, as a leader that is catching up may have refused it.
fn outside(offset: Offset, log_start: Offset, high_watermark: Offset) -> Option<InputLost> {
    if offset < log_start {
        return Some(InputLost {
            reason: format!(
                "unread input was deleted: reading was to go on at offset {offset}, the log begins at {log_start}"
            ),
            log_end: None,
        });
    }
    (offset > high_watermark).then(|| InputLost {
        reason: format!(
            "the log was cut off: reading was to go on at offset {offset}, the log ends at {high_watermark}"
        ),
        log_end: Some(high_watermark),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_offset_outside_the_log_is_a_loss_and_both_offsets_are_named() {
        let lost = |offset| outside(Offset::new(offset), Offset::new(10), Offset::new(20));
        let deleted = lost(9).unwrap();
        assert!(deleted.reason.contains("offset 9") && deleted.reason.contains("begins at 10"));
        assert_eq!(deleted.log_end, None);
        assert!(lost(10).is_none() && lost(20).is_none());
        let cut_off = lost(21).unwrap();
        assert!(cut_off.reason.contains("offset 21") && cut_off.reason.contains("ends at 20"));
        assert_eq!(cut_off.log_end, Some(Offset::new(20)));
    }
}
