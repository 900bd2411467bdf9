//! Traces: spans leave by OTLP/HTTP in protobuf, from one task behind a bounded queue.
//!
//! # Invariants
//! 1. A document never waits for a span: one that finds the queue full is dropped and counted.
//! 2. Each span that was sampled is counted once, as exported or as dropped with the reason.
//! 3. A collector that is away costs a line of the log now and then, and nothing else.
//!
//! Names, attributes and parents are the business of those who make the spans: see [`Spans`].

mod config;
mod export;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::trace::{Link, SpanKind, TraceId, TracerProvider as _};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler, SamplingResult, SdkTracerProvider, ShouldSample, Span, SpanData, SpanLimits,
    SpanProcessor,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::spans::Spans;

pub use config::TelemetryConfig;
use export::Exporter;

/// Spans that wait to be exported, some 2 KiB each: OpenTelemetry's own default.
const QUEUE_SPANS_MAX: usize = 2_048;
/// Links of a span at most, also OpenTelemetry's own: a flush has as many documents as it gathers.
const LINKS_MAX: u32 = 128;
/// How long the end of the process waits for what is left to be exported.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// The conventions that names and attributes follow.
const CONVENTIONS: &str = "https://opentelemetry.io/schemas/1.41.0";

/// A collector's answer.
#[derive(Debug, Clone)]
pub struct CollectorReply {
    /// HTTP status.
    pub status: u16,
    /// Body, in protobuf.
    pub body: Bytes,
}

/// Carries exports to a collector.
#[async_trait]
pub trait Collector: Send + Sync + std::fmt::Debug {
    /// Posts an export in protobuf.
    ///
    /// # Errors
    /// Why there is no complete answer, for the log.
    ///
    /// # Cancel safety
    /// Dropping it ends the exchange.
    async fn post(&self, export: Bytes) -> Result<CollectorReply, String>;
}

/// Why a span did not reach a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    /// The queue was full: spans end faster than they are exported, or not at all.
    QueueFull,
    /// The collector refused it.
    Refused,
    /// It was not exported when the process ended.
    Unsent,
}

impl Dropped {
    const ALL: [Self; 3] = [Self::QueueFull, Self::Refused, Self::Unsent];

    const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Refused => "refused",
            Self::Unsent => "unsent",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// What becomes of spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TraceMetrics {
    exported: Counter,
    dropped: Family<Reason, Counter>,
}

impl TraceMetrics {
    /// Registers the families.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            exported: Counter::default(),
            dropped: Family::default(),
        };
        registry.register(
            "telemetry_spans_exported",
            "Spans that a collector has taken",
            metrics.exported.clone(),
        );
        registry.register(
            "telemetry_spans_dropped",
            "Spans that no collector has taken, by reason",
            metrics.dropped.clone(),
        );
        for reason in Dropped::ALL {
            metrics.drop_spans(reason, 0);
        }
        metrics
    }

    fn drop_spans(&self, reason: Dropped, spans: usize) {
        let reason = reason.as_str();
        let counter = self.dropped.get_or_create(&Reason { reason });
        counter.inc_by(u64::try_from(spans).unwrap_or(u64::MAX));
    }
}

/// Makes spans and exports them, until it is dropped or ended.
#[derive(Debug)]
pub struct Traces {
    spans: Spans,
    stop: CancellationToken,
    exporting: AbortOnDropHandle<()>,
}

impl Traces {
    /// Starts the task that exports to `collector`. `instance` names this run of the process. Must be called within a Tokio runtime.
    #[must_use]
    pub fn start(
        config: &TelemetryConfig,
        instance: &str,
        collector: Arc<dyn Collector>,
        metrics: TraceMetrics,
    ) -> Self {
        let (to_exporter, queue) = mpsc::channel(QUEUE_SPANS_MAX);
        let resource = Resource::builder_empty()
            .with_attributes(config.resource(instance))
            .build();
        let stop = CancellationToken::new();
        let exporter = Exporter::new(queue, collector, &resource, metrics.clone(), stop.clone());
        // Each setting is given: what is not, the SDK would look for in the environment.
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Queue {
                to_exporter,
                metrics,
            })
            .with_sampler(Sampler::ParentBased(Box::new(Root(
                Sampler::TraceIdRatioBased(config.sample_ratio),
            ))))
            .with_span_limits(SpanLimits {
                max_links_per_span: LINKS_MAX,
                ..SpanLimits::default()
            })
            .with_resource(resource)
            .build();
        let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(CONVENTIONS)
            .build();
        Self {
            spans: Spans::new(provider.tracer_with_scope(scope)),
            stop,
            exporting: AbortOnDropHandle::new(tokio::spawn(exporter.run())),
        }
    }

    /// What makes the spans.
    #[must_use]
    pub fn spans(&self) -> Spans {
        self.spans.clone()
    }

    /// Exports what is left, and gives up what is not taken within three seconds.
    ///
    /// # Cancel safety
    /// Dropping it gives up what is left.
    pub async fn end(self) {
        self.stop.cancel();
        if timeout(FLUSH_MAX, self.exporting).await.is_err() {
            tracing::debug!("the collector is too slow: the last spans are given up");
        }
    }
}

/// The sampler of spans without a parent: what links to documents is made only when one of them is sampled.
#[derive(Debug, Clone)]
struct Root(Sampler);

impl ShouldSample for Root {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let sampler = if links.is_empty() {
            &self.0
        } else {
            &Sampler::AlwaysOn
        };
        sampler.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

/// Where spans go when they end.
#[derive(Debug)]
struct Queue {
    to_exporter: mpsc::Sender<SpanData>,
    metrics: TraceMetrics,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _parent: &Context) {}

    fn on_end(&self, span: SpanData) {
        match self.to_exporter.try_send(span) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.metrics.drop_spans(Dropped::QueueFull, 1),
            Err(TrySendError::Closed(_)) => self.metrics.drop_spans(Dropped::Unsent, 1),
        }
    }

    /// The exporter has an end of its own.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
