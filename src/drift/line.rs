//! One input topic: its generations, each with a reference of its own, and what their windows turn. Pure.

use std::sync::Arc;

use super::comparison::{Comparison, Finding, finding};
use super::config::DriftConfig;
use super::reference::{Reference, Statistic};
use super::sample::{Ending, Generation, Sample};
use super::sequential::{Rule, Run, Turn};
use super::window::{Signal, Window};

/// Generations that are watched at once: servers of several versions may answer in turns.
const GENERATIONS_MAX: usize = 8;

/// What has come to be known.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Another generation answers.
    Began {
        /// Which.
        generation: Arc<Generation>,
        /// Who answered before, and whether its reference is complete, so that the two will be compared.
        before: Option<(Arc<Generation>, bool)>,
    },
    /// Another generation answers, and is not watched: as many as can be answer in turns. Told once, until another one begins.
    LeftOut {
        /// Which.
        generation: Arc<Generation>,
        /// How many are watched.
        watched: usize,
        /// Each of them has answered one of the last so many documents.
        within: u32,
    },
    /// The first windows of a new generation were compared with its predecessor's reference.
    Compared {
        /// The predecessor.
        from: Arc<Generation>,
        /// The new one.
        to: Arc<Generation>,
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
    generations: Vec<Watched>,
    windows: u64,
    documents: u64,
    /// Whether the last answer was of a generation that is not watched.
    is_left_out: bool,
    /// Whether that was told since a generation has begun.
    has_told: bool,
}

#[derive(Debug)]
struct Watched {
    generation: Arc<Generation>,
    documents: u64,
    /// How many documents the line had ended when it answered last.
    answered_at: u64,
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

impl Line {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(signals: Arc<[Signal]>, config: DriftConfig) -> Self {
        Self {
            signals,
            config,
            generations: Vec::new(),
            windows: 0,
            documents: 0,
            is_left_out: false,
            has_told: false,
        }
    }

    /// Notes a document; what that brings to light. One that was given up counts for the generation that answered last, and for none before
    /// the first answer, or where that one is not watched.
    pub fn note(&mut self, sample: &Sample) -> Vec<Event> {
        let mut events = Vec::new();
        self.documents += 1;
        if let Ending::Answer(answer) = &sample.ending {
            self.is_left_out = !self.turn_to(&answer.generation, &mut events);
        }
        let (window, signals) = (self.config.window_documents, &self.signals);
        let current = self.generations.first_mut();
        let Some(current) = current.filter(|_| !self.is_left_out) else {
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

    /// The generation has answered; false when it is not watched.
    fn turn_to(&mut self, generation: &Arc<Generation>, events: &mut Vec<Event>) -> bool {
        let mut known = self.generations.iter();
        match known.position(|known| known.generation == *generation) {
            Some(place) => {
                if let Some(known) = self.generations.get_mut(..=place) {
                    known.rotate_right(1);
                }
            }
            None if self.has_room() => self.begin(generation, events),
            None => {
                if !std::mem::replace(&mut self.has_told, true) {
                    events.push(Event::LeftOut {
                        generation: Arc::clone(generation),
                        watched: self.generations.len(),
                        within: self.config.reference_documents,
                    });
                }
                return false;
            }
        }
        if let Some(current) = self.generations.first_mut() {
            current.answered_at = self.documents;
        }
        true
    }

    /// Whether one more can be watched. For it goes the one that answered least recently, once that has answered none of as many documents as
    /// a reference takes. Were it to go sooner, of one more than are watched, in turns, none would ever have a reference.
    fn has_room(&mut self) -> bool {
        let silent_for = |it: &Watched| self.documents.saturating_sub(it.answered_at);
        let is_silent = |it: &Watched| silent_for(it) >= self.config.reference_documents.into();
        if self.generations.last().is_some_and(is_silent)
            && self.generations.len() >= GENERATIONS_MAX
        {
            self.generations.pop();
        }
        self.generations.len() < GENERATIONS_MAX
    }

    fn begin(&mut self, generation: &Arc<Generation>, events: &mut Vec<Event>) {
        let before = self.generations.first();
        let reference = before.and_then(|before| before.reference());
        events.push(Event::Began {
            generation: Arc::clone(generation),
            before: before.map(|it| (Arc::clone(&it.generation), reference.is_some())),
        });
        let comparison =
            reference.map(|reference| Comparison::new(reference, &self.signals, &self.config));
        let new = Watched {
            generation: Arc::clone(generation),
            documents: 0,
            answered_at: self.documents,
            open: Window::new(&self.signals),
            phase: Phase::Collecting(Vec::new()),
            comparison,
        };
        self.generations.insert(0, new);
        self.has_told = false;
    }

    /// The generation that answered last, and how many documents it has ended.
    #[must_use]
    pub fn current(&self) -> Option<(&Arc<Generation>, u64)> {
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
                from: Arc::clone(comparison.before()),
                to: Arc::clone(&self.generation),
                documents: comparison.documents(),
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
                let reference = Reference::new(Arc::clone(&self.generation), signals, blocks);
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

impl Watch {
    fn new(reference: Arc<Reference>, config: &DriftConfig) -> Self {
        let tests = reference.tests.len();
        Self {
            rule: reference.rule(config),
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
