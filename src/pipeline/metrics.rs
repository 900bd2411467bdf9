//! What the pipeline counts beyond what the status board counts: how results become durable.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::telemetry::status::ReadAheadStatus;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    event: &'static str,
}

/// What is open, against the bounds of `[pipeline]`.
#[derive(Debug, Clone, Default)]
pub struct OpenGauges {
    records: Gauge,
    bytes: Gauge,
    records_max: Gauge,
    bytes_max: Gauge,
}

impl OpenGauges {
    pub(super) fn set_bounds(&self, records: usize, bytes: usize) {
        self.records_max
            .set(i64::try_from(records).unwrap_or(i64::MAX));
        self.bytes_max.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// What they show.
    #[must_use]
    pub fn level(&self) -> ReadAheadStatus {
        let value = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or(0);
        ReadAheadStatus {
            records: value(&self.records),
            records_max: value(&self.records_max),
            bytes: value(&self.bytes),
            bytes_max: value(&self.bytes_max),
        }
    }

    pub(super) fn add(&self, bytes: usize) {
        self.records.inc();
        self.bytes.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(super) fn remove(&self, bytes: usize) {
        self.records.dec();
        self.bytes.dec_by(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// The families of the pipeline.
#[derive(Debug, Clone)]
pub struct PipelineMetrics {
    flush_duration: Histogram,
    flushed: Counter,
    audited: Counter,
    step_durations: Family<StepLabel, Histogram>,
    step_failures: Family<StepLabel, Counter>,
    rebalances: Family<EventLabel, Counter>,
    input_losses: Counter,
    open: OpenGauges,
}

impl PipelineMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            flush_duration: step_histogram(),
            flushed: Counter::default(),
            audited: Counter::default(),
            step_durations: Family::new_with_constructor(step_histogram),
            step_failures: Family::default(),
            rebalances: Family::default(),
            input_losses: Counter::default(),
            open: OpenGauges::default(),
        };
        registry.register(
            "read_ahead_records",
            "Documents that are fetched and not committed; pipeline.read_ahead_records bounds them",
            metrics.open.records.clone(),
        );
        registry.register_with_unit(
            "read_ahead",
            "Their bytes, with what each document costs beside its own; pipeline.read_ahead_bytes bounds them",
            Unit::Bytes,
            metrics.open.bytes.clone(),
        );
        registry.register(
            "read_ahead_bound_records",
            "pipeline.read_ahead_records",
            metrics.open.records_max.clone(),
        );
        registry.register_with_unit(
            "read_ahead_bound",
            "pipeline.read_ahead_bytes",
            Unit::Bytes,
            metrics.open.bytes_max.clone(),
        );
        registry.register_with_unit(
            "kafka_step_duration",
            "Time until Kafka has answered, failures included: append of results, commit record, or end of a transaction",
            Unit::Seconds,
            metrics.step_durations.clone(),
        );
        registry.register(
            "rebalances",
            "Assignments that the group dealt out to this member, and memberships that were lost",
            metrics.rebalances.clone(),
        );
        registry.register_with_unit(
            "flush_duration",
            "Time to make results and their commit durable",
            Unit::Seconds,
            metrics.flush_duration.clone(),
        );
        registry.register(
            "flushed_records",
            "Results and dead letters that are durable",
            metrics.flushed.clone(),
        );
        registry.register(
            "audit_records",
            "Records of the audit trail that are durable; none with audit.enabled = false",
            metrics.audited.clone(),
        );
        registry.register(
            "kafka_step_failures",
            "Steps of the commit protocol that failed and were tried again",
            metrics.step_failures.clone(),
        );
        registry.register(
            "input_losses",
            "Times that work went on behind input that the outside had taken away, as input.on_data_loss = resume says",
            metrics.input_losses.clone(),
        );
        metrics
    }

    /// Where it is told what is open.
    #[must_use]
    pub fn open(&self) -> OpenGauges {
        self.open.clone()
    }

    pub(super) fn flushed(&self, records: usize, duration: Duration) {
        self.flushed
            .inc_by(u64::try_from(records).unwrap_or(u64::MAX));
        self.flush_duration.observe(duration.as_secs_f64());
    }

    pub(super) fn audited(&self, records: usize) {
        self.audited
            .inc_by(u64::try_from(records).unwrap_or(u64::MAX));
    }

    pub(super) fn step_took(&self, step: &'static str, duration: Duration) {
        let label = StepLabel { step };
        let durations = self.step_durations.get_or_create(&label);
        durations.observe(duration.as_secs_f64());
    }

    /// The group has dealt out its partitions.
    pub(super) fn assigned(&self) {
        self.rebalanced("assigned");
    }

    /// The membership in the group was lost.
    pub(super) fn membership_lost(&self) {
        self.rebalanced("lost");
    }

    fn rebalanced(&self, event: &'static str) {
        self.rebalances.get_or_create(&EventLabel { event }).inc();
    }

    pub(super) fn input_lost(&self) {
        self.input_losses.inc();
    }

    pub(super) fn step_failed(&self, step: &'static str) {
        self.step_failures.get_or_create(&StepLabel { step }).inc();
    }
}

/// 1 ms to half a minute.
fn step_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}
