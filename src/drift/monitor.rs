//! Watches what a process answers. Every partition tells it of each document that ended; it tells the log, the metrics and the status.
//!
//! A document is a dozen counts under a lock that is never held across anything that waits. Each window's end is some ten thousand
//! additions, each reference's some hundred times that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use prometheus_client::registry::Registry;

use super::comparison::Finding;
use super::config::DriftConfig;
use super::fields::Fields;
use super::line::{Event, Line, Standing};
use super::metrics::DriftMetrics;
use super::sample::{Generation, Sample};
use super::window::{Signal, signals};

/// Alarms that are shown.
const ALARMS_MAX: usize = 20;
/// Input topics that are watched at most; those beyond are not.
const TOPICS_MAX: usize = 64;
/// The signal of an alarm that a change of generation has raised.
const GENERATION: &str = "generation";

/// An alarm, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// When.
    pub at: Timestamp,
    /// Of which signal, or `generation`.
    pub signal: String,
    /// What was found.
    pub detail: String,
}

/// How one input topic stands.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicStanding {
    /// Input topic.
    pub topic: String,
    /// Who answered last.
    pub generation: Arc<Generation>,
    /// How many documents it has ended.
    pub documents: u64,
    /// Documents of its reference so far.
    pub reference_documents: u32,
    /// Whether the reference is complete.
    pub is_watching: bool,
    /// Its tests.
    pub standings: Vec<Standing>,
}

#[derive(Debug, Default)]
struct Seen {
    lines: BTreeMap<String, Line>,
    alarms: VecDeque<Alarm>,
}

#[derive(Debug)]
struct Shared {
    config: DriftConfig,
    fields: Fields,
    signals: Arc<[Signal]>,
    metrics: DriftMetrics,
    seen: Mutex<Seen>,
}

/// The monitor of a process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Monitor(Arc<Shared>);

impl Monitor {
    /// Has seen nothing; its metrics are registered. `fields` are those of the schema that answers keep to.
    #[must_use]
    pub fn new(config: DriftConfig, fields: Fields, registry: &mut Registry) -> Self {
        Self(Arc::new(Shared {
            config,
            signals: signals(&fields).into(),
            fields,
            metrics: DriftMetrics::new(registry),
            seen: Mutex::default(),
        }))
    }

    /// The enumerated fields that answers are looked at for.
    #[must_use]
    pub fn fields(&self) -> &Fields {
        &self.0.fields
    }

    /// Notes a document of an input topic that has ended.
    pub fn note(&self, topic: &str, sample: &Sample) {
        let mut seen = self.lock();
        if !seen.lines.contains_key(topic) {
            if seen.lines.len() >= TOPICS_MAX {
                return;
            }
            let line = Line::new(Arc::clone(&self.0.signals), self.0.config.clone());
            seen.lines.insert(topic.to_owned(), line);
        }
        let Seen { lines, alarms } = &mut *seen;
        let Some(line) = lines.get_mut(topic) else {
            return;
        };
        let windows = line.windows();
        let events = line.note(sample);
        let metrics = &self.0.metrics;
        for event in &events {
            match event {
                Event::Began { .. } => metrics.began(topic),
                Event::Shifted(finding) => metrics.alarm(topic, &finding.signal),
                Event::Compared { findings, .. } if !findings.is_empty() => {
                    metrics.alarm(topic, GENERATION);
                }
                _ => {}
            }
            if let Some((signal, detail)) = alarm(event) {
                alarms.truncate(ALARMS_MAX - 1);
                alarms.push_front(Alarm {
                    at: sample.at,
                    signal,
                    detail,
                });
            }
        }
        let is_full = line.windows() != windows;
        let has_begun = matches!(events.first(), Some(Event::Began { .. }));
        if has_begun {
            // What was known of the one before says nothing of this one.
            metrics.clear();
        }
        for (name, line) in lines.iter() {
            if has_begun || (is_full && name == topic) {
                let (documents, _) = line.reference_documents();
                metrics.show(name, documents, &line.standings());
            }
        }
        drop(seen);
        events.iter().for_each(|event| tell(topic, event));
    }

    /// How each input topic stands, and the last alarms, newest first.
    #[must_use]
    pub fn standing(&self) -> (Vec<TopicStanding>, Vec<Alarm>) {
        let seen = self.lock();
        let topics = seen.lines.iter().filter_map(|(topic, line)| {
            let (generation, documents) = line.current()?;
            let (reference_documents, is_watching) = line.reference_documents();
            Some(TopicStanding {
                topic: topic.clone(),
                generation: Arc::clone(generation),
                documents,
                reference_documents,
                is_watching,
                standings: line.standings(),
            })
        });
        (topics.collect(), seen.alarms.iter().cloned().collect())
    }

    /// The settings that it watches with.
    #[must_use]
    pub fn config(&self) -> &DriftConfig {
        &self.0.config
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn alarm(event: &Event) -> Option<(String, String)> {
    match event {
        Event::Shifted(finding) => Some((finding.signal.clone(), measured(finding))),
        Event::Compared {
            from, to, findings, ..
        } if !findings.is_empty() => Some((
            GENERATION.to_owned(),
            format!(
                "{} changed, and so did {}",
                from.differences(to).join(", "),
                listed(findings)
            ),
        )),
        _ => None,
    }
}

/// What a difference is, in one line.
#[must_use]
pub fn measured(finding: &Finding) -> String {
    format!(
        "{}: {} {:.3}, threshold {:.3}",
        finding.detail,
        finding.statistic.as_str(),
        finding.value,
        finding.threshold
    )
}

fn listed(findings: &[Finding]) -> String {
    let each = findings.iter();
    let each = each.map(|finding| format!("{} ({})", finding.signal, measured(finding)));
    each.collect::<Vec<_>>().join("; ")
}

/// A line about a signal; its message begins with the signal and what was found.
macro_rules! tell_turn {
    ($level:ident, $topic:ident, $finding:ident, $message:literal $(, $more:expr)?) => {
        tracing::$level!(
            topic = $topic,
            signal = $finding.signal,
            statistic = $finding.statistic.as_str(),
            value = $finding.value,
            threshold = $finding.threshold,
            $message,
            $finding.signal,
            $finding.detail
            $(, $more)?
        )
    };
}

fn tell(topic: &str, event: &Event) {
    match event {
        Event::Began { generation, before } => tell_began(topic, generation, before.as_ref()),
        Event::Watching {
            documents,
            tests,
            rule,
        } => tracing::info!(
            topic,
            documents,
            tests,
            windows = rule.windows,
            false_alarms_per_100000_documents = rule.false_alarms,
            "drift: the reference is complete, and answers are compared with it"
        ),
        Event::Compared {
            from,
            to,
            documents,
            findings,
        } if findings.is_empty() => tracing::info!(
            topic,
            documents,
            "drift: {} changed, and no signal differs from before",
            from.differences(to).join(", ")
        ),
        Event::Compared {
            from,
            to,
            documents,
            findings,
        } => tracing::warn!(
            topic,
            documents,
            before = %from,
            now = %to,
            "drift: {} changed, and these signals differ: {}. Look at answers of both (`kafka-llm-processor drift report`), and go back if that was not meant",
            from.differences(to).join(", "),
            listed(findings)
        ),
        Event::LeftOut {
            generation,
            watched,
            within,
        } => tracing::warn!(
            topic,
            generation = %generation,
            watched,
            "drift: a generation is not watched, as {watched} others answer in turns, each within the last {within} documents: have fewer versions of the model server, or look at what its answers say for `system_fingerprint`"
        ),
        Event::Shifted(finding) => tell_turn!(
            warn,
            topic,
            finding,
            "drift: {} has left its reference ({}). {}",
            what_to_do(&finding.signal)
        ),
        Event::Back(finding) => tell_turn!(
            info,
            topic,
            finding,
            "drift: {} is back at its reference ({})"
        ),
    }
}

fn tell_began(topic: &str, generation: &Generation, before: Option<&(Arc<Generation>, bool)>) {
    let Some((old, is_complete)) = before else {
        return tracing::debug!(topic, generation = %generation, "drift: a reference is begun");
    };
    let compared = if *is_complete {
        "its first windows are compared with the reference before it"
    } else {
        "there was no complete reference to compare it with"
    };
    tracing::info!(
        topic,
        before = %old,
        now = %generation,
        "drift: {} changed: a new reference is begun, and {compared}",
        old.differences(generation).join(", ")
    );
}

/// Where an operator looks first.
#[must_use]
pub fn what_to_do(signal: &str) -> &'static str {
    match signal {
        "latency_per_token" => {
            "Look at the model server: its load, its batch sizes, its hardware; the model itself is rarely at fault"
        }
        "refusal" => {
            "Read some of the refusals (`kafka-llm-processor results`): a server behind the same name may serve another model, or documents of a new kind may have come"
        }
        "outcome" => "Look at what was given up, and why: `kafka-llm-processor dead-letters list`",
        "finish_reason" => {
            "Answers end elsewhere: look at llm.max_tokens, and at answers with finish reason `length`"
        }
        _ => {
            "Compare answers from before and now (`kafka-llm-processor drift report`): the documents have changed, or the model behind the same name has"
        }
    }
}
