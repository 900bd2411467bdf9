//! What the monitor counts and shows.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

use super::line::Standing;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabel {
    topic: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SignalLabel {
    topic: String,
    signal: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatisticLabel {
    topic: String,
    signal: String,
    statistic: &'static str,
}

type Level = Gauge<f64, AtomicU64>;

/// The families. Topics and signals are those of the configuration, so the labels are bounded.
#[derive(Debug, Clone, Default)]
pub(super) struct DriftMetrics {
    statistics: Family<StatisticLabel, Level>,
    thresholds: Family<StatisticLabel, Level>,
    shifted: Family<SignalLabel, Gauge>,
    alarms: Family<SignalLabel, Counter>,
    generations: Family<TopicLabel, Counter>,
    reference: Family<TopicLabel, Gauge>,
}

impl DriftMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "drift_statistic",
            "Distance of the last window of documents from the reference",
            metrics.statistics.clone(),
        );
        registry.register(
            "drift_threshold",
            "Distance above which a window stands out; an alarm takes several in a row",
            metrics.thresholds.clone(),
        );
        registry.register(
            "drift_shifted",
            "1 while a signal has left its reference",
            metrics.shifted.clone(),
        );
        registry.register(
            "drift_alarms",
            "Times that a signal has left its reference, or differed after a change of generation",
            metrics.alarms.clone(),
        );
        registry.register(
            "drift_generations",
            "Generations that have begun: model, server version, prompt template, schema or settings were others",
            metrics.generations.clone(),
        );
        registry.register(
            "drift_reference_documents",
            "Documents of the reference so far",
            metrics.reference.clone(),
        );
        metrics
    }

    pub(super) fn alarm(&self, topic: &str, signal: &str) {
        let label = signal_label(topic, signal);
        self.alarms.get_or_create(&label).inc();
    }

    pub(super) fn began(&self, topic: &str) {
        self.generations.get_or_create(&topic_label(topic)).inc();
    }

    /// Forgets what lasts: it is shown anew.
    pub(super) fn clear(&self) {
        self.statistics.clear();
        self.thresholds.clear();
        self.shifted.clear();
    }

    pub(super) fn show(&self, topic: &str, reference: u32, standings: &[Standing]) {
        let label = topic_label(topic);
        self.reference.get_or_create(&label).set(reference.into());
        for standing in standings {
            let label = StatisticLabel {
                topic: topic.to_owned(),
                signal: standing.signal.clone(),
                statistic: standing.statistic.as_str(),
            };
            self.thresholds
                .get_or_create(&label)
                .set(standing.threshold);
            if let Some(value) = standing.value {
                self.statistics.get_or_create(&label).set(value);
            }
            let of_signal = standings.iter().filter(|it| it.signal == standing.signal);
            let is_shifted = of_signal.into_iter().any(|it| it.is_shifted);
            let label = signal_label(topic, &standing.signal);
            self.shifted.get_or_create(&label).set(is_shifted.into());
            // There from the start, so that the first alarm is an increase.
            drop(self.alarms.get_or_create(&label));
        }
    }
}

fn topic_label(topic: &str) -> TopicLabel {
    TopicLabel {
        topic: topic.to_owned(),
    }
}

fn signal_label(topic: &str, signal: &str) -> SignalLabel {
    SignalLabel {
        topic: topic.to_owned(),
        signal: signal.to_owned(),
    }
}
