//! The board as metrics: read at each scrape, so that nothing is counted twice. What the model's side counts with labels of its own
//! (calls, retries, tokens, durations) is not repeated.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::telemetry::limiting::Factor;
use crate::telemetry::status::{
    ModelStatus, PartitionStatus, RunState, Status, StatusBoard, Totals,
};
use crate::telemetry::watchdog::Stall;
use crate::types::DeadLetterReason;

/// The values of [`EndpointStatus::breaker`](crate::telemetry::status::EndpointStatus::breaker).
const BREAKER_STATES: [&str; 3] = ["closed", "half_open", "open"];

type Read = fn(&PartitionStatus) -> u64;

/// Name, what it is, and where it stands.
const PARTITION_GAUGES: [(&str, &str, Read); 10] = [
    (
        "partition_lag_records",
        "Records from the commit to the end of the input",
        PartitionStatus::lag,
    ),
    (
        "partition_commit_offset",
        "Where a restart would begin",
        |p| offset(p.commit_offset.value()),
    ),
    (
        "partition_high_watermark",
        "End of the input, exclusive",
        |p| offset(p.high_watermark.value()),
    ),
    (
        "partition_unfinished_records",
        "Records without a durable outcome: below the lag while documents behind the commit offset are finished",
        PartitionStatus::unfinished,
    ),
    (
        "partition_open_documents",
        "Documents fetched whose outcome is not on its way to Kafka",
        |p| p.open,
    ),
    (
        "partition_in_flight_documents",
        "Documents that are with the model",
        |p| p.in_flight,
    ),
    (
        "partition_waiting_for_turn_documents",
        "Documents answered that wait for an earlier one",
        |p| p.waiting_for_turn,
    ),
    (
        "partition_appending_documents",
        "Documents whose outcome waits for Kafka to acknowledge it",
        |p| p.appending,
    ),
    (
        "partition_commit_record_bytes",
        "Bytes of the last commit record, uncompressed",
        |p| p.commit_bytes,
    ),
    (
        "partition_read_ahead_waits",
        "1 while nothing is read ahead, or the commit record could outgrow its bound",
        |p| u64::from(p.read_ahead_waits.is_some()),
    ),
];

#[derive(Debug)]
pub(super) struct BoardCollector(pub(super) StatusBoard);

impl Collector for BoardCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.snapshot();
        encode_totals(&mut encoder, &status.totals)?;
        encode_state(&mut encoder, &status)?;
        encode_limiting(&mut encoder, &status, &self.0.limited())?;
        encode_breakers(&mut encoder, &status.model)?;
        encode_partitions(&mut encoder, &status.partitions)?;
        encode_stalled(&mut encoder, &status)
    }
}

fn encode_totals(encoder: &mut DescriptorEncoder<'_>, totals: &Totals) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "documents",
        "Results that were written, by status",
        None,
        MetricType::Counter,
    )?;
    counter(
        &mut family,
        "status",
        "ok",
        totals.processed - totals.truncated,
    )?;
    counter(&mut family, "status", "truncated", totals.truncated)?;

    let mut family = encoder.encode_descriptor(
        "dead_letters",
        "Documents that were given up, by reason",
        None,
        MetricType::Counter,
    )?;
    for reason in DeadLetterReason::ALL {
        let count = totals
            .dead_lettered
            .get(reason.as_str())
            .copied()
            .unwrap_or(0);
        counter(&mut family, "reason", reason.as_str(), count)?;
    }

    if !totals.topics.is_empty() {
        let mut family = encoder.encode_descriptor(
            "topic_documents",
            "Documents that ended, by input topic and by whether with a result or as a dead letter",
            None,
            MetricType::Counter,
        )?;
        for (topic, totals) in &totals.topics {
            for (end, count) in [
                ("result", totals.processed),
                ("dead_letter", totals.dead_lettered),
            ] {
                let labels = [("topic", topic.as_str()), ("end", end)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
    }

    let family = encoder.encode_descriptor(
        "records_skipped",
        "Records that are no documents: tombstones",
        None,
        MetricType::Counter,
    )?;
    ConstCounter::new(totals.skipped).encode(family)?;

    let family = encoder.encode_descriptor(
        "flushes",
        "Flushes: results and the commit that claims them made durable together, a transaction each where work is exactly once",
        None,
        MetricType::Counter,
    )?;
    ConstCounter::new(totals.flushes).encode(family)?;
    let family = encoder.encode_descriptor(
        "commit_records",
        "Bytes of the commit records that were written, uncompressed",
        Some(&Unit::Bytes),
        MetricType::Counter,
    )?;
    ConstCounter::new(totals.commit_bytes).encode(family)
}

fn counter(family: &mut MetricEncoder<'_>, label: &str, value: &str, count: u64) -> fmt::Result {
    ConstCounter::new(count).encode(family.encode_family(&[(label, value)])?)
}

fn encode_state(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "state",
        "1 for the state that the process is in",
        None,
        MetricType::Gauge,
    )?;
    for state in [
        RunState::Starting,
        RunState::Running,
        RunState::Holding,
        RunState::Paused,
        RunState::Draining,
        RunState::Stopped,
    ] {
        let labels = [("state", state.as_str())];
        ConstGauge::new(i64::from(state == status.state)).encode(family.encode_family(&labels)?)?;
    }
    let family = encoder.encode_descriptor(
        "config_generation",
        "Configurations that were in force since the start, with the one that is",
        None,
        MetricType::Gauge,
    )?;
    let number = i64::try_from(status.config_generation).unwrap_or(i64::MAX);
    ConstGauge::new(number).encode(family)?;
    let family = encoder.encode_descriptor(
        "paused",
        "1 while an operator has paused the work",
        None,
        MetricType::Gauge,
    )?;
    ConstGauge::new(i64::from(status.paused_since.is_some())).encode(family)?;
    if status.holds.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(
        "hold",
        "1 for each thing that holds the work",
        None,
        MetricType::Gauge,
    )?;
    for hold in &status.holds {
        let labels = [("what", hold.what.as_str())];
        ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_limiting(
    encoder: &mut DescriptorEncoder<'_>,
    status: &Status,
    limited: &BTreeMap<Factor, Duration>,
) -> fmt::Result {
    let Some(limiting) = &status.limiting else {
        return Ok(());
    };
    let mut family = encoder.encode_descriptor(
        "limiting_factor",
        "1 for what limits the work now",
        None,
        MetricType::Gauge,
    )?;
    for factor in Factor::ALL {
        let labels = [("factor", factor.as_str())];
        let is_it = i64::from(factor == limiting.factor);
        ConstGauge::new(is_it).encode(family.encode_family(&labels)?)?;
    }
    let mut family = encoder.encode_descriptor(
        "limited",
        "Time by what limited the work",
        Some(&Unit::Seconds),
        MetricType::Counter,
    )?;
    for factor in Factor::ALL {
        let labels = [("factor", factor.as_str())];
        let lasted = limited.get(&factor).copied().unwrap_or_default();
        ConstCounter::new(lasted.as_secs_f64()).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_breakers(encoder: &mut DescriptorEncoder<'_>, model: &ModelStatus) -> fmt::Result {
    if model.endpoints.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(
        "llm_breaker",
        "1 for the state of the breaker of a model server, by its base URL: calls flow while it is closed",
        None,
        MetricType::Gauge,
    )?;
    for endpoint in &model.endpoints {
        for state in BREAKER_STATES {
            let labels = [("endpoint", endpoint.url.as_str()), ("state", state)];
            let is_it = i64::from(endpoint.breaker == state);
            ConstGauge::new(is_it).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_stalled(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> fmt::Result {
    if status.partitions.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(
        "partition_stalled",
        "1 while the partition has work and makes no progress, and nothing else tells why",
        None,
        MetricType::Gauge,
    )?;
    for partition in &status.partitions {
        let of_it = |stall: &Stall| {
            stall.partition == partition.partition && stall.topic == partition.topic
        };
        let is_stalled = i64::from(status.stalled.iter().any(of_it));
        let number = partition.partition.to_string();
        let labels = [
            ("topic", partition.topic.as_str()),
            ("partition", number.as_str()),
        ];
        ConstGauge::new(is_stalled).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_partitions(
    encoder: &mut DescriptorEncoder<'_>,
    partitions: &[PartitionStatus],
) -> fmt::Result {
    if partitions.is_empty() {
        return Ok(());
    }
    for (name, help, read) in PARTITION_GAUGES {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for partition in partitions {
            let number = partition.partition.to_string();
            let labels = [
                ("topic", partition.topic.as_str()),
                ("partition", number.as_str()),
            ];
            ConstGauge::new(read(partition)).encode(family.encode_family(&labels)?)?;
        }
    }
    let mut family = encoder.encode_descriptor(
        "partition_oldest_open",
        "Age of the oldest unfinished document, from the moment it was fetched",
        Some(&Unit::Seconds),
        MetricType::Gauge,
    )?;
    for partition in partitions {
        let number = partition.partition.to_string();
        let labels = [
            ("topic", partition.topic.as_str()),
            ("partition", number.as_str()),
        ];
        let age = Duration::from_millis(partition.oldest_open_ms.unwrap_or(0));
        ConstGauge::new(age.as_secs_f64()).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Offsets are never negative where a partition is owned; −1 stands for not known yet.
fn offset(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
