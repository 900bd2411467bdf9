//! A new generation's first windows against the reference of the one before, and differences in words. Pure.

use std::sync::Arc;

use super::config::DriftConfig;
use super::reference::{Reference, Statistic};
use super::sample::Generation;
use super::sequential::Rule;
use super::statistic::{ks_distance, ks_p_value};
use super::window::{Counts, Kind, Signal, Window};

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

/// A new generation's first windows against the old one's reference.
#[derive(Debug)]
pub struct Comparison {
    reference: Arc<Reference>,
    rule: Rule,
    /// Windows that stood out, by test.
    stood_out: Vec<u32>,
    last: Vec<Option<f64>>,
    all: Window,
    windows: u32,
}

impl Comparison {
    /// Nothing was compared yet.
    #[must_use]
    pub fn new(reference: Arc<Reference>, signals: &[Signal], config: &DriftConfig) -> Self {
        let tests = reference.tests.len();
        Self {
            rule: reference.rule(config),
            stood_out: vec![0; tests],
            last: vec![None; tests],
            all: Window::new(signals),
            windows: 0,
            reference,
        }
    }

    /// Who answered before.
    #[must_use]
    pub fn before(&self) -> &Arc<Generation> {
        &self.reference.generation
    }

    /// Documents that were compared.
    #[must_use]
    pub const fn documents(&self) -> u32 {
        self.all.documents()
    }

    /// Windows that it takes.
    #[must_use]
    pub const fn windows(&self) -> u32 {
        self.rule.windows
    }

    /// Notes the next window; whether that was the last one.
    pub fn note(&mut self, window: &Window) -> bool {
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
    #[must_use]
    pub fn findings(&self, signals: &[Signal]) -> Vec<Finding> {
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

pub(super) fn finding(
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
            // Of those that have moved as far, the most frequent.
            let order = |one: &usize, other: &usize| {
                let (one, other) = (*one, *other);
                let by_share = after.share(one).total_cmp(&after.share(other));
                moved(one).total_cmp(&moved(other)).then(by_share)
            };
            let bins = (0..categories.len()).max_by(order);
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
    let distance = ks_distance(before.bins(), after.bins());
    ks_p_value(distance, before.total(), after.total())
}
