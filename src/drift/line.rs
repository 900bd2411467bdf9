//! One input topic: its generations, each with a reference of its own, and what their windows turn. Pure.

use std::sync::Arc;

use super::config::DriftConfig;
use super::reference::{Reference, Statistic};
use super::sample::{Ending, Generation, Sample};
use super::sequential::{Rule, Run, Turn};
use super::statistic::ks_p_value;
use super::window::{Counts, Kind, Signal, Window};

/// Generations that are remembered: servers of two versions may answer in turns. The one that answered least recently goes.
const GENERATIONS_MAX: usize = 4;

/// A difference.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The signal's name.
    pub signal: String,
    /// How it was measured.
    pub statistic: Statistic,
    /// What was measured last.
    pub value: f64,
    /// What it would have had to stay below.
    pub threshold: f64,
    /// Before and after, for people.
    pub detail: String,
}

/// What has come to be known.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Another generation answers.
    Began {
        /// Which.
        generation: Generation,
        /// Who answered before, and whether its reference is complete, so that the two will be compared.
        before: Option<(Generation, bool)>,
    },
    /// The first windows of a new generation were compared with its predecessor's reference.
    Compared {
        /// The predecessor.
        from: Generation,
        /// The new one.
        to: Generation,
        /// Documents of the new one that were compared.
        documents: u32,
        /// What differs.
        findings: Vec<Finding>,
    },
    /// A reference is complete.
    Watching {
        /// Of how many documents.
        documents: u32,
        /// Statistics that are looked at.
        tests: usize,
        /// What an alarm takes.
        rule: Rule,
    },
    /// A signal has left its reference.
    Shifted(Finding),
    /// It is back.
    Back(Finding),
}

/// How a test of the current generation stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The signal's name.
    pub signal: String,
    /// How it is measured.
    pub statistic: Statistic,
    /// Of the last window that had enough values.
    pub value: Option<f64>,
    /// A window above it stands out.
    pub threshold: f64,
    /// Whether there was an alarm that has not passed.
    pub is_shifted: bool,
}

/// Watches one input topic.
#[derive(Debug)]
pub struct Line {
    signals: Arc<[Signal]>,
    config: DriftConfig,
    /// The one that answered last comes first.
    generations: Vec<Box<Watched>>,
    windows: u64,
}

#[derive(Debug)]
struct Watched {
    generation: Generation,
    documents: u64,
    open: Window,
    phase: Phase,
    comparison: Option<Comparison>,
}

#[derive(Debug)]
enum Phase {
    Collecting(Vec<Window>),
    Watching(Watch),
}

#[derive(Debug)]
struct Watch {
    reference: Arc<Reference>,
    rule: Rule,
    runs: Vec<Run>,
    last: Vec<Option<f64>>,
}

/// A new generation's first windows against the old one's reference.
#[derive(Debug)]
struct Comparison {
    reference: Arc<Reference>,
    rule: Rule,
    /// Windows that stood out, by test.
    stood_out: Vec<u32>,
    last: Vec<Option<f64>>,
    all: Window,
    windows: u32,
}

impl Line {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(signals: Arc<[Signal]>, config: DriftConfig) -> Self {
        Self {
            signals,
            config,
            generations: Vec::new(),
            windows: 0,
        }
    }

    /// Notes a document; what that brings to light. One that was given up counts for the generation that answered last, and for none before
    /// the first answer.
    pub fn note(&mut self, sample: &Sample) -> Vec<Event> {
        let mut events = Vec::new();
        if let Ending::Answer(answer) = &sample.ending {
            self.turn_to(&answer.generation, &mut events);
        }
        let (window, signals) = (self.config.window_documents, &self.signals);
        let Some(current) = self.generations.first_mut() else {
            return events;
        };
        current.documents += 1;
        current.open.add(sample);
        if current.open.documents() >= window {
            let full = std::mem::replace(&mut current.open, Window::new(signals));
            current.close(full, signals, &self.config, &mut events);
            self.windows += 1;
        }
        events
    }

    /// Windows that were filled, of all generations.
    #[must_use]
    pub const fn windows(&self) -> u64 {
        self.windows
    }

    fn turn_to(&mut self, generation: &Generation, events: &mut Vec<Event>) {
        let mut known = self.generations.iter();
        match known.position(|known| known.generation == *generation) {
            Some(0) => {}
            Some(place) => {
                if let Some(known) = self.generations.get_mut(..=place) {
                    known.rotate_right(1);
                }
            }
            None => {
                let before = self.generations.first();
                let reference = before.and_then(|before| before.reference());
                events.push(Event::Began {
                    generation: generation.clone(),
                    before: before.map(|it| (it.generation.clone(), reference.is_some())),
                });
                let comparison = reference.map(|reference| Comparison::new(reference, self));
                let new = Watched {
                    generation: generation.clone(),
                    documents: 0,
                    open: Window::new(&self.signals),
                    phase: Phase::Collecting(Vec::new()),
                    comparison,
                };
                self.generations.insert(0, Box::new(new));
                self.generations.truncate(GENERATIONS_MAX);
            }
        }
    }

    /// The generation that answered last, and how many documents it has ended.
    #[must_use]
    pub fn current(&self) -> Option<(&Generation, u64)> {
        let current = self.generations.first()?;
        Some((&current.generation, current.documents))
    }

    /// Documents of its reference so far, and whether it is complete.
    #[must_use]
    pub fn reference_documents(&self) -> (u32, bool) {
        match self.generations.first().map(|current| &current.phase) {
            None => (0, false),
            Some(Phase::Collecting(blocks)) => (blocks.iter().map(Window::documents).sum(), false),
            Some(Phase::Watching(watch)) => (watch.reference.all.documents(), true),
        }
    }

    /// How its tests stand.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let Some(Phase::Watching(watch)) = self.generations.first().map(|current| &current.phase)
        else {
            return Vec::new();
        };
        let tests = watch.reference.tests.iter().zip(&watch.runs);
        let tests = tests.zip(&watch.last);
        let standing = tests.filter_map(|((test, run), value)| {
            Some(Standing {
                signal: self.signals.get(test.signal)?.name.clone(),
                statistic: test.statistic,
                value: *value,
                threshold: test.threshold,
                is_shifted: run.is_shifted(),
            })
        });
        standing.collect()
    }
}

impl Watched {
    fn reference(&self) -> Option<Arc<Reference>> {
        match &self.phase {
            Phase::Watching(watch) => Some(Arc::clone(&watch.reference)),
            Phase::Collecting(_) => None,
        }
    }

    fn close(
        &mut self,
        full: Window,
        signals: &[Signal],
        config: &DriftConfig,
        events: &mut Vec<Event>,
    ) {
        if let Some(comparison) = &mut self.comparison
            && comparison.note(&full)
        {
            events.push(Event::Compared {
                from: comparison.reference.generation.clone(),
                to: self.generation.clone(),
                documents: comparison.all.documents(),
                findings: comparison.findings(signals),
            });
            self.comparison = None;
        }
        match &mut self.phase {
            Phase::Collecting(blocks) => {
                blocks.push(full);
                if u32::try_from(blocks.len()).unwrap_or(u32::MAX) < config.blocks() {
                    return;
                }
                let reference = Reference::new(self.generation.clone(), signals, blocks);
                let watch = Watch::new(Arc::new(reference), config);
                events.push(Event::Watching {
                    documents: watch.reference.all.documents(),
                    tests: watch.reference.tests.len(),
                    rule: watch.rule,
                });
                self.phase = Phase::Watching(watch);
            }
            Phase::Watching(watch) => watch.note(&full, signals, events),
        }
    }
}

fn rule(reference: &Reference, config: &DriftConfig) -> Rule {
    let tests = u32::try_from(reference.tests.len()).unwrap_or(u32::MAX);
    Rule::new(
        reference.blocks,
        tests,
        config.window_documents,
        config.sensitivity,
    )
}

impl Watch {
    fn new(reference: Arc<Reference>, config: &DriftConfig) -> Self {
        let tests = reference.tests.len();
        Self {
            rule: rule(&reference, config),
            runs: vec![Run::default(); tests],
            last: vec![None; tests],
            reference,
        }
    }

    fn note(&mut self, window: &Window, signals: &[Signal], events: &mut Vec<Event>) {
        let values = self.reference.compare(window);
        for (index, test) in self.reference.tests.iter().enumerate() {
            let Some(value) = values.get(index).copied().flatten() else {
                continue;
            };
            // A signal is told of once, whichever of its statistics is first, and last.
            let was_shifted = self.is_shifted(test.signal);
            let Some(run) = self.runs.get_mut(index) else {
                continue;
            };
            let turn = run.note(value > test.threshold, self.rule.windows);
            if let Some(last) = self.last.get_mut(index) {
                *last = Some(value);
            }
            let is_news = was_shifted != self.is_shifted(test.signal);
            if let Some(turn) = turn.filter(|_| is_news)
                && let Some(finding) = finding(&self.reference, index, value, window, signals)
            {
                events.push(match turn {
                    Turn::Shifted => Event::Shifted(finding),
                    Turn::Back => Event::Back(finding),
                });
            }
        }
    }

    fn is_shifted(&self, signal: usize) -> bool {
        let mut tests = self.reference.tests.iter().zip(&self.runs);
        tests.any(|(test, run)| test.signal == signal && run.is_shifted())
    }
}

impl Comparison {
    fn new(reference: Arc<Reference>, line: &Line) -> Self {
        let tests = reference.tests.len();
        Self {
            rule: rule(&reference, &line.config),
            stood_out: vec![0; tests],
            last: vec![None; tests],
            all: Window::new(&line.signals),
            windows: 0,
            reference,
        }
    }

    /// Whether that was the last one.
    fn note(&mut self, window: &Window) -> bool {
        self.all.merge(window);
        self.windows += 1;
        let values = self.reference.compare(window);
        let tests = self.reference.tests.iter().zip(values);
        let noted = self.stood_out.iter_mut().zip(&mut self.last);
        for ((test, value), (stood_out, last)) in tests.zip(noted) {
            *stood_out += u32::from(value.is_some_and(|value| value > test.threshold));
            *last = value.or(*last);
        }
        self.windows >= self.rule.windows
    }

    /// Where every window stood out: the same rule as that of an alarm, and one look.
    fn findings(&self, signals: &[Signal]) -> Vec<Finding> {
        let mut findings: Vec<Finding> = Vec::new();
        for (index, stood_out) in self.stood_out.iter().enumerate() {
            let value = self.last.get(index).copied().flatten();
            let Some(value) = value.filter(|_| *stood_out >= self.rule.windows) else {
                continue;
            };
            let found = finding(&self.reference, index, value, &self.all, signals);
            let is_told = |found: &Finding| findings.iter().any(|it| it.signal == found.signal);
            if let Some(found) = found.filter(|found| !is_told(found)) {
                findings.push(found);
            }
        }
        findings
    }
}

fn finding(
    reference: &Reference,
    test: usize,
    value: f64,
    window: &Window,
    signals: &[Signal],
) -> Option<Finding> {
    let test = reference.tests.get(test)?;
    let signal = signals.get(test.signal)?;
    let before = reference.all.counts().get(test.signal)?;
    let after = window.counts().get(test.signal)?;
    Some(Finding {
        signal: signal.name.clone(),
        statistic: test.statistic,
        value,
        threshold: test.threshold,
        detail: told(signal, before, after),
    })
}

/// Before and after in words: medians of a number, the category that has moved most.
#[must_use]
pub fn told(signal: &Signal, before: &Counts, after: &Counts) -> String {
    match &signal.kind {
        Kind::Number(unit) => format!("median {} → {} {unit}", before.median(), after.median()),
        Kind::Category(categories) => {
            let moved = |bin: usize| (after.share(bin) - before.share(bin)).abs();
            let bins =
                (0..categories.len()).max_by(|one, other| moved(*one).total_cmp(&moved(*other)));
            let bin = bins.unwrap_or(0);
            format!(
                "{} {:.1} % → {:.1} %",
                categories.get(bin).map_or("", String::as_str),
                before.share(bin) * 100.0,
                after.share(bin) * 100.0
            )
        }
    }
}

/// How probable a distance of numbers as large as that is, had nothing changed and were documents independent.
#[must_use]
pub fn p_value(before: &Counts, after: &Counts) -> f64 {
    let distance = super::statistic::ks_distance(before.bins(), after.bins());
    ks_p_value(distance, before.total(), after.total())
}
