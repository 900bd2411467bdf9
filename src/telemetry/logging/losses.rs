//! Lines that never came to be written: a queue was full, or the system took them not, as on a full disk.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use tokio::time::sleep;
use tracing_appender::non_blocking::ErrorCounter;

/// How often it is told that lines were lost since.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Counts for all outputs. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    queues: Vec<ErrorCounter>,
    unwritten: Arc<AtomicUsize>,
}

impl Losses {
    /// Counts the lines for which a queue has no room.
    pub(super) fn watch(&mut self, queue: ErrorCounter) {
        self.queues.push(queue);
    }

    /// Counts the lines that `inner` does not take.
    pub(super) fn count_in<W: Write>(&self, inner: W) -> Counted<W> {
        Counted {
            inner,
            unwritten: Arc::clone(&self.unwritten),
        }
    }

    /// Lines that were dropped as a queue was full.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.queues.iter().map(ErrorCounter::dropped_lines).sum()
    }

    /// Lines that could not be written.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        self.unwritten.load(Ordering::Relaxed)
    }

    /// Has the metrics count them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// Tells now and then, while there is something to tell: what the file does not take the console may.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn tell(self) {
        let mut told = (0, 0);
        loop {
            sleep(TELL_EVERY).await;
            let now = (self.dropped(), self.unwritten());
            if now != told {
                tracing::warn!(
                    dropped = now.0,
                    unwritten = now.1,
                    "lines of the log were lost: `unwritten` ones as by a full disk or a closed terminal (log.file), `dropped` ones as more came than could be written (log.level)"
                );
                told = now;
            }
        }
    }
}

/// The counts are where the queues and writers keep them, and are looked up when they are asked for.
impl Collector for Losses {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut family = encoder.encode_descriptor(
            "log_lines_lost",
            "Lines of the log that were not written, by reason",
            None,
            MetricType::Counter,
        )?;
        for (reason, lines) in [
            ("queue_full", self.dropped()),
            ("unwritten", self.unwritten()),
        ] {
            let lines = u64::try_from(lines).unwrap_or(u64::MAX);
            let label = [("reason", reason)];
            ConstCounter::new(lines).encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }
}

/// A writer whose failures are counted. The log's thread hands over a line at a time, and passes over errors.
#[derive(Debug)]
pub(super) struct Counted<W> {
    inner: W,
    unwritten: Arc<AtomicUsize>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.inner.write_all(line).inspect_err(|_error| {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
