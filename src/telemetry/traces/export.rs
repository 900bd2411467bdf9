//! The task that exports: gathers spans, posts them, and tries again while the collector is away.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Collector, CollectorReply, Dropped, TraceMetrics};
use crate::retry::Backoff;

/// Spans of one export at most.
const BATCH_SPANS_MAX: usize = 512;
/// How long the first span of an export waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// The longest that an export may take.
const POST_MAX: Duration = Duration::from_secs(10);
const RETRY_INITIAL: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(30);
/// How often a collector that stays away is told of.
const TELL_EVERY: Duration = Duration::from_secs(600);

/// Owns the queue's end. Whatever ends it, what it leaves is counted.
#[derive(Debug)]
pub(super) struct Exporter {
    queue: mpsc::Receiver<SpanData>,
    collector: Arc<dyn Collector>,
    resource: ResourceAttributesWithSchema,
    metrics: TraceMetrics,
    stop: CancellationToken,
    /// Spans of the export on its way.
    in_hand: usize,
    /// When it was told last that they are not taken, while they are not.
    told: Option<Instant>,
}

/// What becomes of an export.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Taken, but for so many spans.
    Taken { refused: usize },
    /// The same export will not be taken another time either.
    Refused(String),
    /// It may be taken another time.
    Away(String),
}

impl Exporter {
    pub(super) fn new(
        queue: mpsc::Receiver<SpanData>,
        collector: Arc<dyn Collector>,
        resource: &Resource,
        metrics: TraceMetrics,
        stop: CancellationToken,
    ) -> Self {
        Self {
            queue,
            collector,
            resource: resource.into(),
            metrics,
            stop,
            in_hand: 0,
            told: None,
        }
    }

    /// Exports until it is stopped and nothing is left, or is not taken any more.
    pub(super) async fn run(mut self) {
        loop {
            let batch = self.gather().await;
            if batch.is_empty() || !self.deliver(batch).await {
                return;
            }
        }
    }

    /// The next export; empty at the end.
    async fn gather(&mut self) -> Vec<SpanData> {
        let mut batch = Vec::with_capacity(BATCH_SPANS_MAX);
        tokio::select! {
            _ = self.queue.recv_many(&mut batch, BATCH_SPANS_MAX) => {}
            () = self.stop.cancelled() => {
                self.queue.close();
                self.queue.recv_many(&mut batch, BATCH_SPANS_MAX).await;
            }
        }
        let until = Instant::now() + LINGER;
        while (1..BATCH_SPANS_MAX).contains(&batch.len()) {
            let room = BATCH_SPANS_MAX - batch.len();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                () = sleep_until(until) => break,
                received = self.queue.recv_many(&mut batch, room) => if received == 0 { break },
            }
        }
        self.in_hand = batch.len();
        batch
    }

    /// Posts an export until it is taken or refused; answers whether to go on. Once it is stopped, one more try is the last.
    async fn deliver(&mut self, batch: Vec<SpanData>) -> bool {
        let count = batch.len();
        let export = Bytes::from(
            ExportTraceServiceRequest {
                resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
            }
            .encode_to_vec(),
        );
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_CAP);
        loop {
            let was_stopped = self.stop.is_cancelled();
            let answer = timeout(POST_MAX, self.collector.post(export.clone())).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {POST_MAX:?}")));
            match judge(answer) {
                Verdict::Taken { refused } => {
                    let refused = refused.min(count);
                    self.end_export(count - refused, refused);
                    if refused > 0 {
                        self.tell(&format!("{refused} of {count} spans were refused"));
                    } else if self.told.take().is_some() {
                        tracing::info!("spans are exported again");
                    }
                    return true;
                }
                Verdict::Refused(reason) => {
                    self.end_export(0, count);
                    self.tell(&reason);
                    return true;
                }
                Verdict::Away(reason) => {
                    self.tell(&reason);
                    if was_stopped {
                        return false;
                    }
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = sleep(backoff.next_delay()) => {}
            }
        }
    }

    fn end_export(&mut self, taken: usize, refused: usize) {
        self.in_hand = 0;
        let taken = u64::try_from(taken).unwrap_or(u64::MAX);
        self.metrics.exported.inc_by(taken);
        self.metrics.drop_spans(Dropped::Refused, refused);
    }

    fn tell(&mut self, reason: &str) {
        let now = Instant::now();
        let is_due = self.told.is_none_or(|told| now >= told + TELL_EVERY);
        if is_due {
            self.told = Some(now);
            tracing::warn!(
                reason,
                "spans are not exported (telemetry.otlp_endpoint); the work goes on, and klp_telemetry_spans_dropped_total counts those that are lost"
            );
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.queue.close();
        let mut left = self.in_hand;
        while self.queue.try_recv().is_ok() {
            left += 1;
        }
        self.metrics.drop_spans(Dropped::Unsent, left);
    }
}

/// <https://opentelemetry.io/docs/specs/otlp/#otlphttp-response>: these statuses, and no other, ask to try again.
fn judge(answer: Result<CollectorReply, String>) -> Verdict {
    let CollectorReply { status, body } = match answer {
        Ok(reply) => reply,
        Err(reason) => return Verdict::Away(reason),
    };
    match status {
        200..=299 => {
            // A body that is none says nothing against the spans.
            let reply = ExportTraceServiceResponse::decode(body).ok();
            let partial = reply.and_then(|reply| reply.partial_success);
            let refused = partial.map_or(0, |partial| partial.rejected_spans);
            Verdict::Taken {
                refused: usize::try_from(refused).unwrap_or(0),
            }
        }
        429 | 502 | 503 | 504 => Verdict::Away(format!("the collector answers {status}")),
        _ => Verdict::Refused(format!("the collector refuses them with {status}")),
    }
}
