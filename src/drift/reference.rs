//! What later windows are compared with, and from where on they stand out. Pure.

use std::sync::Arc;

use super::config::DriftConfig;
use super::sample::Generation;
use super::sequential::Rule;
use super::statistic::{ks_distance, psi};
use super::window::{Counts, Kind, LATENCY, Signal, Window};

/// Numbers are cut into so many groups of about equal share for the population stability index, as is the custom.
const GROUPS: u32 = 10;
/// What differs by less is no news, however sure it is: below 0.1 the index is taken for "no change" by custom (N. Siddiqi, Credit Risk
/// Scorecards, 2006).
const PSI_LEAST: f64 = 0.1;
/// The same for what should be rare: some 2 % of documents where there was none.
const PSI_LEAST_OF_RARE: f64 = 0.02;
/// The same for the distance of Kolmogorov and Smirnov: a tenth of the documents lie elsewhere.
const KS_LEAST: f64 = 0.1;
/// The load may be so many times that of the reference, or so many parts of it, and times still compare.
const LOAD_MARGIN: f64 = 1.25;

/// How a difference is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// The population stability index.
    Psi,
    /// The distance of Kolmogorov and Smirnov.
    Ks,
}

impl Statistic {
    /// Its name: a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Psi => "psi",
            Self::Ks => "ks",
        }
    }
}

/// A statistic of a signal.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// Of which signal, by number.
    pub signal: usize,
    /// Which.
    pub statistic: Statistic,
    /// A window above it stands out.
    pub threshold: f64,
    /// For the index of a number: the bin behind the last of each group.
    groups: Vec<usize>,
}

impl Test {
    fn value(&self, reference: &Counts, window: &Counts) -> f64 {
        match self.statistic {
            Statistic::Ks => ks_distance(reference.bins(), window.bins()),
            Statistic::Psi if self.groups.is_empty() => psi(reference.bins(), window.bins()),
            Statistic::Psi => psi(
                &grouped(reference.bins(), &self.groups),
                &grouped(window.bins(), &self.groups),
            ),
        }
    }
}

/// A reference: its documents, and what is asked of later windows.
#[derive(Debug, Clone)]
pub struct Reference {
    /// Whose.
    pub generation: Arc<Generation>,
    /// All of its documents.
    pub all: Window,
    /// Windows that it was cut into.
    pub blocks: u32,
    /// What is asked. A signal that has too few values is not in it.
    pub tests: Vec<Test>,
    /// The load of its blocks, least and most: calls in flight and documents per second.
    load: Option<[(f64, f64); 2]>,
}

impl Reference {
    /// Of these windows.
    #[must_use]
    pub fn new(generation: Arc<Generation>, signals: &[Signal], blocks: &[Window]) -> Self {
        let mut all = Window::new(signals);
        blocks.iter().for_each(|block| all.merge(block));
        let mut tests = Vec::new();
        for (number, signal) in signals.iter().enumerate() {
            let statistics: &[Statistic] = match signal.kind {
                Kind::Number(_) => &[Statistic::Psi, Statistic::Ks],
                Kind::Category(_) => &[Statistic::Psi],
            };
            let asked = statistics.iter();
            tests.extend(
                asked.filter_map(|statistic| test((number, signal), *statistic, &all, blocks)),
            );
        }
        Self {
            generation,
            blocks: u32::try_from(blocks.len()).unwrap_or(u32::MAX),
            tests,
            load: load_of(blocks),
            all,
        }
    }

    /// What it takes to tell a difference from it.
    #[must_use]
    pub fn rule(&self, config: &DriftConfig) -> Rule {
        let tests = u32::try_from(self.tests.len()).unwrap_or(u32::MAX);
        Rule::new(
            self.blocks,
            tests,
            config.window_documents,
            config.sensitivity,
        )
    }

    /// How far a window lies from it, by each test; `None` where the window has too few values, or times under another load.
    #[must_use]
    pub fn compare(&self, window: &Window) -> Vec<Option<f64>> {
        let times_compare = self.is_of_this_load(window);
        let compared = self.tests.iter().map(|test| {
            let of_window = window.counts().get(test.signal)?;
            let is_fit =
                has_enough(of_window, window, 4) && (times_compare || test.signal != LATENCY);
            let of_all = self.all.counts().get(test.signal)?;
            is_fit.then(|| test.value(of_all, of_window))
        });
        compared.collect()
    }

    /// Time per token follows the load. It is compared while as many calls are in flight as before, or as many documents come: with a fixed
    /// number of calls a slower server shows in the one, with a steady stream of documents in the other. More of both, or less of both, is
    /// another load.
    fn is_of_this_load(&self, window: &Window) -> bool {
        let (Some([calls, documents]), Some((in_flight, per_second))) = (self.load, window.load())
        else {
            return true;
        };
        let within = |(least, most): (f64, f64), value: f64| {
            value >= least / LOAD_MARGIN && value <= most * LOAD_MARGIN
        };
        within(calls, in_flight) || within(documents, per_second)
    }
}

/// Whether one in `parts` documents has a value.
fn has_enough(counts: &Counts, window: &Window, parts: u32) -> bool {
    counts.total() > 0 && counts.total().saturating_mul(parts) >= window.documents()
}

/// `None` where too few documents have a value.
fn test(
    (number, signal): (usize, &Signal),
    statistic: Statistic,
    all: &Window,
    blocks: &[Window],
) -> Option<Test> {
    let of_all = all.counts().get(number)?;
    if !has_enough(of_all, all, 2) {
        return None;
    }
    let is_number = matches!(signal.kind, Kind::Number(_));
    let least = match statistic {
        Statistic::Ks => KS_LEAST,
        Statistic::Psi if signal.is_rare => PSI_LEAST_OF_RARE,
        Statistic::Psi => PSI_LEAST,
    };
    let mut test = Test {
        signal: number,
        statistic,
        threshold: least,
        groups: if is_number && statistic == Statistic::Psi {
            equal_groups(of_all)
        } else {
            Vec::new()
        },
    };
    for block in blocks {
        let of_block = block.counts().get(number)?;
        if !has_enough(of_block, block, 4) {
            return None;
        }
        let value = test.value(&of_all.without(of_block), of_block);
        test.threshold = test.threshold.max(value);
    }
    Some(test)
}

/// Groups of about equal share; a bin with a share of its own is a group, so that both of its sides are seen.
fn equal_groups(counts: &Counts) -> Vec<usize> {
    let share = counts.total().div_ceil(GROUPS).max(1);
    let mut ends = Vec::new();
    let mut gathered = 0;
    for (bin, count) in counts.bins().iter().enumerate() {
        if *count >= share && ends.last().copied().unwrap_or(0) < bin {
            ends.push(bin);
            gathered = 0;
        }
        gathered += count;
        if gathered >= share {
            ends.push(bin + 1);
            gathered = 0;
        }
    }
    let bins = counts.bins().len();
    if ends.last().is_none_or(|end| *end < bins) {
        ends.push(bins);
    }
    ends
}

fn grouped(bins: &[u32], ends: &[usize]) -> Vec<u32> {
    let mut from = 0;
    let group = |end: &usize| {
        let group = bins.get(from..*end).unwrap_or_default();
        from = *end;
        group.iter().sum()
    };
    ends.iter().map(group).collect()
}

fn load_of(blocks: &[Window]) -> Option<[(f64, f64); 2]> {
    let loads: Option<Vec<_>> = blocks.iter().map(Window::load).collect();
    let loads = loads.filter(|loads| !loads.is_empty())?;
    let range = |value: fn(&(f64, f64)) -> f64| {
        let values = loads.iter().map(value);
        let least = values.clone().fold(f64::INFINITY, f64::min);
        (least, values.fold(0.0, f64::max))
    };
    Some([range(|load| load.0), range(|load| load.1)])
}
