//! Drift, from the schema that says what can be watched to the status that shows it.

use prometheus_client::registry::Registry;

use crate::drift::{Alarm, DriftConfig, Fields, Monitor, Standing, TopicStanding};
use crate::llm::AnswerSchema;
use crate::telemetry::status::{DriftAlarm, DriftSignal, DriftState, DriftStatus};

/// `None` where it is off.
pub(super) fn monitor(
    config: &DriftConfig,
    schema: Option<&AnswerSchema>,
    registry: &mut Registry,
) -> Option<Monitor> {
    config.enabled.then(|| {
        let schema = schema.and_then(|schema| serde_json::from_str(schema.text()).ok());
        let fields = schema.as_ref().map(Fields::of_schema).unwrap_or_default();
        Monitor::new(config.clone(), fields, registry)
    })
}

/// How it stands, as it is shown.
pub(super) fn status(monitor: &Monitor) -> DriftStatus {
    let (topics, alarms) = monitor.standing();
    let busiest = topics.iter().max_by_key(|topic| topic.documents);
    let is_shifted = |topic: &TopicStanding| topic.standings.iter().any(|it| it.is_shifted);
    let state = if topics.iter().any(is_shifted) {
        DriftState::Shifted
    } else if !topics.is_empty() && topics.iter().all(|topic| topic.is_watching) {
        DriftState::Watching
    } else {
        DriftState::Collecting
    };
    let several = topics.len() > 1;
    let signals = topics.iter().flat_map(|topic| {
        let of_topic = topic.standings.iter();
        of_topic.map(move |standing| signal(standing, several.then_some(&topic.topic)))
    });
    DriftStatus {
        state,
        generation: busiest.map_or_else(String::new, |topic| topic.generation.to_string()),
        reference_documents: busiest.map_or(0, |topic| topic.reference_documents),
        window_documents: monitor.config().window_documents,
        signals: signals.collect(),
        alarms: alarms.into_iter().map(alarm).collect(),
    }
}

fn signal(standing: &Standing, topic: Option<&String>) -> DriftSignal {
    DriftSignal {
        name: match topic {
            Some(topic) => format!("{} ({topic})", standing.signal),
            None => standing.signal.clone(),
        },
        statistic: standing.statistic.as_str(),
        value: standing.value,
        threshold: standing.threshold,
        state: if standing.is_shifted { "shifted" } else { "ok" },
    }
}

fn alarm(alarm: Alarm) -> DriftAlarm {
    let Alarm { at, signal, detail } = alarm;
    DriftAlarm { at, signal, detail }
}
