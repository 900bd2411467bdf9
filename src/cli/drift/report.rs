//! What was read, by generation, and what differs between one and the next. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::drift::{
    Comparison, Counts, DriftConfig, Ending, Event, Fields, Generation, Kind, Line, Reference,
    Sample, Signal, Window, measured, p_value, psi, signals, told,
};

use super::read::Read;

/// A reference of fewer windows knows too little of how windows differ.
const BLOCKS_MIN: usize = 10;
/// Windows of a new generation that are kept for the comparison: more than any rule asks for whose reference has enough.
const FIRST_WINDOWS: usize = 64;

/// What a report tells.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Documents that were looked at.
    pub documents: u64,
    /// Results that repeat an answer, which say nothing new.
    pub cached: u64,
    /// Records that are not of this program.
    pub foreign: u64,
    /// Documents of a window.
    pub window_documents: u32,
    /// By input topic.
    pub topics: Vec<TopicReport>,
}

/// One input topic.
#[derive(Debug, Serialize)]
pub struct TopicReport {
    /// Its name.
    pub topic: String,
    /// In the order in which they began.
    pub generations: Vec<GenerationReport>,
    /// Each with the one before it.
    pub changes: Vec<PairReport>,
}

/// What a generation has answered.
#[derive(Debug, Serialize)]
pub struct GenerationReport {
    /// In words.
    pub generation: String,
    /// The model.
    pub model: String,
    /// The server's build.
    pub server: Option<String>,
    /// Hash of the prompt template.
    pub template: String,
    /// Hash of the schema.
    pub schema: Option<String>,
    /// Hash of the settings.
    pub settings: String,
    /// Documents that it has ended.
    pub documents: u32,
    /// The first.
    pub first_at: Timestamp,
    /// The last.
    pub last_at: Timestamp,
    /// Medians of numbers, by signal.
    pub medians: BTreeMap<String, Median>,
    /// Shares of categories that occur, by signal.
    pub shares: BTreeMap<String, BTreeMap<String, f64>>,
    /// What left its own reference, or came back to it, in words.
    pub alarms: Vec<String>,
    /// Whether something left it.
    pub is_shifted: bool,
}

/// A median.
#[derive(Debug, Serialize)]
pub struct Median {
    /// How much.
    pub value: u64,
    /// Of what.
    pub unit: &'static str,
}

/// One generation and the next.
#[derive(Debug, Serialize)]
pub struct PairReport {
    /// What changed: `model`, `prompt template`, …
    pub changed: Vec<&'static str>,
    /// Documents before and after.
    pub documents: [u32; 2],
    /// Windows that had to differ in a row; `None` where there were too few documents.
    pub windows: Option<u32>,
    /// Each signal.
    pub signals: Vec<SignalReport>,
}

/// A signal of two generations.
#[derive(Debug, Serialize)]
pub struct SignalReport {
    /// Its name.
    pub signal: String,
    /// Before and after, in words.
    pub detail: String,
    /// Population stability index of all documents; of numbers, over the bins that they are counted in.
    pub psi: f64,
    /// Distance of Kolmogorov and Smirnov of all documents, for numbers.
    pub ks: Option<f64>,
    /// How probable a distance as large as that is, had nothing changed and were documents independent of each other.
    pub ks_p_value: Option<f64>,
    /// The verdict.
    pub verdict: Verdict,
}

/// Whether a signal differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// By the rule of an alarm it does.
    Shifted,
    /// It does not.
    Same,
    /// There are too few documents to tell.
    TooFew,
}

struct Gathered {
    generation: Arc<Generation>,
    all: Window,
    open: Window,
    first: Vec<Window>,
    last: VecDeque<Window>,
    between: (Timestamp, Timestamp),
    alarms: Vec<String>,
    is_shifted: bool,
}

impl Report {
    pub(super) fn new(read: Read, fields: &Fields, config: &DriftConfig) -> Self {
        let signals: Arc<[Signal]> = signals(fields).into();
        let mut by_topic: BTreeMap<Arc<str>, Vec<Sample>> = BTreeMap::new();
        let documents = u64::try_from(read.documents.len()).unwrap_or(u64::MAX);
        for (topic, sample) in read.documents {
            by_topic.entry(topic).or_default().push(sample);
        }
        let topics = by_topic.into_iter().map(|(topic, samples)| {
            let gathered = gather(&samples, &signals, config);
            let pairs = gathered.windows(2).filter_map(|pair| match pair {
                [before, after] => Some(compared(before, after, &signals, config)),
                _ => None,
            });
            TopicReport {
                topic: topic.to_string(),
                changes: pairs.collect(),
                generations: gathered.iter().map(|it| summary(it, &signals)).collect(),
            }
        });
        Self {
            documents,
            cached: read.cached,
            foreign: read.foreign,
            window_documents: config.window_documents,
            topics: topics.collect(),
        }
    }

    /// Whether anything differs, between generations or within one.
    #[must_use]
    pub fn is_shifted(&self) -> bool {
        self.topics.iter().any(|topic| {
            let mut signals = topic.changes.iter().flat_map(|pair| &pair.signals);
            signals.any(|signal| signal.verdict == Verdict::Shifted)
                || topic.generations.iter().any(|it| it.is_shifted)
        })
    }
}

/// Documents by generation, in the order in which the generations began. A document that was given up belongs to the one that answered last.
fn gather(samples: &[Sample], signals: &Arc<[Signal]>, config: &DriftConfig) -> Vec<Gathered> {
    let mut line = Line::new(Arc::clone(signals), config.clone());
    let mut gathered: Vec<Gathered> = Vec::new();
    let mut current = None;
    for sample in samples {
        if let Ending::Answer(answer) = &sample.ending {
            let mut known = gathered.iter();
            let place = known.position(|it| it.generation == answer.generation);
            current = Some(place.unwrap_or_else(|| {
                gathered.push(Gathered::new(&answer.generation, sample.at, signals));
                gathered.len() - 1
            }));
        }
        let events = line.note(sample);
        if let Some(it) = current.and_then(|current: usize| gathered.get_mut(current)) {
            it.note(sample, signals, config);
            it.tell(&events, sample.at);
        }
    }
    gathered
}

impl Gathered {
    fn new(generation: &Arc<Generation>, at: Timestamp, signals: &[Signal]) -> Self {
        Self {
            generation: Arc::clone(generation),
            all: Window::new(signals),
            open: Window::new(signals),
            first: Vec::new(),
            last: VecDeque::new(),
            between: (at, at),
            alarms: Vec::new(),
            is_shifted: false,
        }
    }

    fn note(&mut self, sample: &Sample, signals: &[Signal], config: &DriftConfig) {
        self.all.add(sample);
        self.between.1 = sample.at;
        self.open.add(sample);
        if self.open.documents() < config.window_documents {
            return;
        }
        let full = std::mem::replace(&mut self.open, Window::new(signals));
        if self.first.len() < FIRST_WINDOWS {
            self.first.push(full.clone());
        }
        self.last.push_back(full);
        if u32::try_from(self.last.len()).unwrap_or(u32::MAX) > config.blocks() {
            drop(self.last.pop_front());
        }
    }

    fn tell(&mut self, events: &[Event], at: Timestamp) {
        for event in events {
            match event {
                Event::Shifted(finding) => {
                    self.is_shifted = true;
                    let what = measured(finding);
                    self.alarms
                        .push(format!("{at} {} shifted ({what})", finding.signal));
                }
                Event::Back(finding) => {
                    let what = measured(finding);
                    self.alarms
                        .push(format!("{at} {} is back ({what})", finding.signal));
                }
                _ => {}
            }
        }
    }
}

fn compared(
    before: &Gathered,
    after: &Gathered,
    signals: &[Signal],
    config: &DriftConfig,
) -> PairReport {
    let verdicts = verdicts(before, after, signals, config);
    let of = |signal: &Signal, one: &Counts, other: &Counts| {
        let is_number = matches!(signal.kind, Kind::Number(_));
        let verdict = match &verdicts {
            None => Verdict::TooFew,
            Some((_, shifted)) if shifted.contains(&signal.name) => Verdict::Shifted,
            Some(_) => Verdict::Same,
        };
        SignalReport {
            signal: signal.name.clone(),
            detail: told(signal, one, other),
            psi: psi(one.bins(), other.bins()),
            ks: is_number.then(|| crate::drift::ks_distance(one.bins(), other.bins())),
            ks_p_value: is_number.then(|| p_value(one, other)),
            verdict,
        }
    };
    let counts = before.all.counts().iter().zip(after.all.counts());
    PairReport {
        changed: before.generation.differences(&after.generation),
        documents: [before.all.documents(), after.all.documents()],
        windows: verdicts.as_ref().map(|(windows, _)| *windows),
        signals: signals
            .iter()
            .zip(counts)
            .filter(|(_, (one, other))| one.total() > 0 || other.total() > 0)
            .map(|(signal, (one, other))| of(signal, one, other))
            .collect(),
    }
}

/// How many windows had to stand out, and the signals of which all did; `None` where there are too few.
fn verdicts(
    before: &Gathered,
    after: &Gathered,
    signals: &[Signal],
    config: &DriftConfig,
) -> Option<(u32, Vec<String>)> {
    if before.last.len() < BLOCKS_MIN {
        return None;
    }
    let blocks: Vec<_> = before.last.iter().cloned().collect();
    let generation = Arc::clone(&before.generation);
    let reference = Arc::new(Reference::new(generation, signals, &blocks));
    let mut comparison = Comparison::new(reference, signals, config);
    let mut windows = after.first.iter();
    windows.find(|window| comparison.note(window))?;
    let findings = comparison.findings(signals).into_iter();
    let shifted = findings.map(|finding| finding.signal);
    Some((comparison.windows(), shifted.collect()))
}

fn summary(gathered: &Gathered, signals: &[Signal]) -> GenerationReport {
    let mut medians = BTreeMap::new();
    let mut shares = BTreeMap::new();
    let counts = gathered.all.counts().iter();
    for (signal, counts) in signals.iter().zip(counts).filter(|(_, it)| it.total() > 0) {
        match &signal.kind {
            Kind::Number(unit) => {
                let value = counts.median();
                medians.insert(signal.name.clone(), Median { value, unit });
            }
            Kind::Category(categories) => {
                let named = categories.iter().enumerate();
                let named = named.map(|(bin, name)| (name.clone(), counts.share(bin)));
                let occurring = named.filter(|(_, share)| *share > 0.0);
                shares.insert(signal.name.clone(), occurring.collect());
            }
        }
    }
    let generation = &gathered.generation;
    GenerationReport {
        generation: generation.to_string(),
        model: generation.model.clone(),
        server: generation.server.clone(),
        template: generation.template.clone(),
        schema: generation.schema.clone(),
        settings: generation.settings.clone(),
        documents: gathered.all.documents(),
        first_at: gathered.between.0,
        last_at: gathered.between.1,
        medians,
        shares,
        alarms: gathered.alarms.clone(),
        is_shifted: gathered.is_shifted,
    }
}
