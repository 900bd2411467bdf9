//! One partition, from its start to the end that it had.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::kafka::{KafkaError, LogReader};
use crate::retry::Backoff;
use crate::types::{Offset, Record, TopicPartition};

/// How long one read waits for records that the log's end has promised.
const READ_WAIT: Duration = Duration::from_millis(500);

/// How long reading may stay where it is: an outage, or a transaction that somebody left open, which a broker ends within 20 s.
const STANDS_STILL_MAX: Duration = Duration::from_secs(30);

/// Reads on from where it is.
#[derive(Debug)]
pub(in crate::cli) struct Cursor<'a> {
    reader: &'a dyn LogReader,
    pub(in crate::cli) partition: TopicPartition,
    start: Offset,
    next: Offset,
    end: Offset,
}

impl<'a> Cursor<'a> {
    /// At the start of the partition, which ends where it ends now.
    pub(in crate::cli) async fn open(
        reader: &'a dyn LogReader,
        partition: TopicPartition,
    ) -> Result<Self, KafkaError> {
        let (start, end) = reader.log_bounds(&partition).await?;
        Ok(Self {
            reader,
            partition,
            start,
            next: start,
            end,
        })
    }

    /// Begins that many offsets before the end, or where the partition begins.
    pub(in crate::cli) fn skip_to_last(&mut self, offsets: u64) {
        let back = i64::try_from(offsets).unwrap_or(i64::MAX);
        let from = Offset::new(self.end.value().saturating_sub(back));
        self.start = self.start.max(from);
        self.next = self.start;
    }

    /// Whether the log does not begin with its first offset any more.
    pub(in crate::cli) fn is_cut(&self) -> bool {
        self.start > Offset::ZERO
    }

    /// From now on it ends where the partition ends now.
    pub(in crate::cli) async fn extend(&mut self) -> Result<(), KafkaError> {
        let (_, end) = self.reader.log_bounds(&self.partition).await?;
        self.end = end.max(self.end);
        Ok(())
    }

    /// How many offsets there are, and how many of them are behind us.
    pub(in crate::cli) const fn length(&self) -> u64 {
        self.start.distance_to(self.end)
    }

    /// How many offsets are behind us.
    pub(in crate::cli) const fn passed(&self) -> u64 {
        self.start.distance_to(self.next)
    }

    /// The next records; `None` at the end. What fails in passing is asked again.
    ///
    /// # Cancel safety
    /// Safe: the position moves only when records are handed out.
    pub(in crate::cli) async fn next(
        &mut self,
    ) -> Result<Option<Vec<(Offset, Record)>>, KafkaError> {
        let deadline = Instant::now() + STANDS_STILL_MAX;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while self.next < self.end {
            let error = match self
                .reader
                .read(&self.partition, self.next, READ_WAIT)
                .await
            {
                Ok(fetched) if fetched.next_offset > self.next => {
                    // What lies beyond the end is read again, should it be moved.
                    self.next = fetched.next_offset.min(self.end);
                    let mut records = fetched.records;
                    records.retain(|(offset, _)| *offset < self.end);
                    return Ok(Some(records));
                }
                Ok(fetched) => KafkaError::Stalled {
                    partition: self.partition.clone(),
                    position: self.next,
                    end: self.end,
                    high_watermark: fetched.high_watermark,
                },
                // Retention has gone on meanwhile.
                Err(KafkaError::OffsetOutOfRange { log_start, .. }) if log_start > self.next => {
                    self.next = log_start.min(self.end);
                    continue;
                }
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            let delay = backoff.next_delay();
            if Instant::now() + delay >= deadline {
                return Err(error);
            }
            sleep(delay).await;
        }
        Ok(None)
    }
}
