//! Documents counted into bins of fixed number: what a window, a block of the reference and the reference itself are. Pure.

use super::fields::{Field, Fields};
use super::sample::{Answer, Ending, FinishReason, Sample};
use crate::types::DeadLetterReason;

/// Each octave of a number is cut into so many bins, so that a bin is 6 % wide at most.
const PER_OCTAVE_BITS: u32 = 4;
const PER_OCTAVE: u64 = 1 << PER_OCTAVE_BITS;
/// Larger numbers share the last bin: 16 million characters, tokens, or microseconds of one token.
const OCTAVES: u32 = 24;
/// Bins of a number.
const NUMBER_BINS: usize = 16 * (24 - 4 + 1);

/// The bin of a number: the first sixteen have one each.
fn bin(value: u64) -> usize {
    let value = value.min((1 << OCTAVES) - 1);
    if value < PER_OCTAVE {
        return usize::try_from(value).unwrap_or(0);
    }
    let shift = value.ilog2() - PER_OCTAVE_BITS;
    let bin = PER_OCTAVE * u64::from(shift) + (value >> shift);
    usize::try_from(bin).unwrap_or(NUMBER_BINS - 1)
}

/// The least number of a bin.
fn least(bin: usize) -> u64 {
    let bin = u64::try_from(bin).unwrap_or(0);
    if bin < PER_OCTAVE {
        return bin;
    }
    let shift = bin / PER_OCTAVE - 1;
    (bin - PER_OCTAVE * shift) << shift
}

/// What kind of thing a signal is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A number of this unit.
    Number(&'static str),
    /// One of these.
    Category(Vec<String>),
}

/// What is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// Its name: a metric's label.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it counts what should be rare, so that little of it matters.
    pub is_rare: bool,
}

impl Signal {
    fn number(name: &str, unit: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            kind: Kind::Number(unit),
            is_rare: false,
        }
    }

    fn rare(name: &str, categories: impl IntoIterator<Item = &'static str>) -> Self {
        let categories = categories.into_iter().map(str::to_owned);
        Self {
            name: name.to_owned(),
            kind: Kind::Category(categories.collect()),
            is_rare: true,
        }
    }

    fn field(field: &Field) -> Self {
        Self {
            name: format!("field:{}", field.name),
            kind: Kind::Category(field.values.clone()),
            is_rare: false,
        }
    }

    fn bins(&self) -> usize {
        match &self.kind {
            Kind::Number(_) => NUMBER_BINS,
            Kind::Category(categories) => categories.len(),
        }
    }
}

const CHARACTERS: usize = 0;
const TOKENS: usize = 1;
/// The signal that follows the load too.
pub(super) const LATENCY: usize = 2;
const REFUSAL: usize = 3;
const OUTCOME: usize = 4;
const FINISH: usize = 5;
const FIRST_FIELD: usize = 6;

/// All signals, in the order of the numbers above.
#[must_use]
pub fn signals(fields: &Fields) -> Vec<Signal> {
    let reasons = DeadLetterReason::ALL.map(DeadLetterReason::as_str);
    let mut signals = vec![
        Signal::number("answer_characters", "characters"),
        Signal::number("completion_tokens", "tokens"),
        Signal::number("latency_per_token", "µs"),
        Signal::rare("refusal", ["answered", "refused"]),
        Signal::rare("outcome", ["answered"].into_iter().chain(reasons)),
        Signal::rare("finish_reason", ["stop", "length", "other"]),
    ];
    signals.extend(fields.as_slice().iter().map(Signal::field));
    signals
}

/// Counts of one signal, by bin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    bins: Vec<u32>,
    total: u32,
}

impl Counts {
    fn of(signal: &Signal) -> Self {
        Self {
            bins: vec![0; signal.bins()],
            total: 0,
        }
    }

    fn add(&mut self, bin: usize) {
        if let Some(count) = self.bins.get_mut(bin) {
            *count = count.saturating_add(1);
            self.total = self.total.saturating_add(1);
        }
    }

    /// By bin.
    #[must_use]
    pub fn bins(&self) -> &[u32] {
        &self.bins
    }

    /// Of all bins.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.total
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (count, more) in self.bins.iter_mut().zip(&other.bins) {
            *count = count.saturating_add(*more);
        }
        self.total = self.total.saturating_add(other.total);
    }

    /// Without what `part` has added.
    pub(super) fn without(&self, part: &Self) -> Self {
        let bins = self.bins.iter().zip(&part.bins);
        Self {
            bins: bins.map(|(all, part)| all.saturating_sub(*part)).collect(),
            total: self.total.saturating_sub(part.total),
        }
    }

    /// The number in the middle, to the width of its bin.
    #[must_use]
    pub fn median(&self) -> u64 {
        let half = self.total.div_ceil(2);
        let mut passed = 0_u32;
        let middle = self.bins.iter().position(|count| {
            passed = passed.saturating_add(*count);
            passed >= half
        });
        middle.map_or(0, |bin| {
            u64::midpoint(least(bin), least(bin + 1).saturating_sub(1))
        })
    }

    /// The share of a bin.
    #[must_use]
    pub fn share(&self, bin: usize) -> f64 {
        let count = self.bins.get(bin).copied().unwrap_or(0);
        f64::from(count) / f64::from(self.total.max(1))
    }
}

/// Documents that were counted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    documents: u32,
    counts: Vec<Counts>,
    /// Time that calls took, and the times of the first and the last document.
    busy_ms: u64,
    between_ms: Option<(i64, i64)>,
}

impl Window {
    /// Empty.
    #[must_use]
    pub fn new(signals: &[Signal]) -> Self {
        Self {
            documents: 0,
            counts: signals.iter().map(Counts::of).collect(),
            busy_ms: 0,
            between_ms: None,
        }
    }

    /// How many.
    #[must_use]
    pub const fn documents(&self) -> u32 {
        self.documents
    }

    /// Of a signal, by number.
    #[must_use]
    pub fn counts(&self) -> &[Counts] {
        &self.counts
    }

    /// Counts a document.
    pub fn add(&mut self, sample: &Sample) {
        self.documents = self.documents.saturating_add(1);
        let at = sample.at.as_millisecond();
        let (first, last) = self.between_ms.unwrap_or((at, at));
        self.between_ms = Some((first.min(at), last.max(at)));
        match &sample.ending {
            Ending::Answer(answer) => self.add_answer(answer),
            Ending::DeadLetter(reason) => {
                let mut all = DeadLetterReason::ALL.iter();
                let number = all.position(|known| known == reason);
                self.count(OUTCOME, number.map_or(0, |number| number + 1));
            }
        }
    }

    fn add_answer(&mut self, answer: &Answer) {
        let busy = u64::try_from(answer.llm.as_millis()).unwrap_or(u64::MAX);
        self.busy_ms = self.busy_ms.saturating_add(busy);
        self.count(CHARACTERS, bin(answer.characters));
        if answer.completion_tokens > 0 {
            self.count(TOKENS, bin(answer.completion_tokens));
        }
        if let Some(micros) = answer.token_micros() {
            self.count(LATENCY, bin(micros));
        }
        self.count(REFUSAL, usize::from(answer.refused));
        self.count(OUTCOME, 0);
        let finish = match answer.finish_reason {
            FinishReason::Stop => 0,
            FinishReason::Length => 1,
            FinishReason::Other => 2,
        };
        self.count(FINISH, finish);
        for (field, value) in answer.fields.iter().enumerate() {
            self.count(FIRST_FIELD + field, usize::from(*value));
        }
    }

    fn count(&mut self, signal: usize, bin: usize) {
        if let Some(counts) = self.counts.get_mut(signal) {
            counts.add(bin);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.documents = self.documents.saturating_add(other.documents);
        self.busy_ms = self.busy_ms.saturating_add(other.busy_ms);
        for (counts, more) in self.counts.iter_mut().zip(&other.counts) {
            counts.merge(more);
        }
    }

    /// The load under which its documents were answered: calls in flight, by Little's law, and documents per second. `None` where no time
    /// passed between its documents.
    #[must_use]
    pub fn load(&self) -> Option<(f64, f64)> {
        let (first, last) = self.between_ms?;
        let passed = u32::try_from(last.saturating_sub(first)).ok()?;
        if passed == 0 {
            return None;
        }
        let passed = f64::from(passed);
        let busy = f64::from(u32::try_from(self.busy_ms).unwrap_or(u32::MAX));
        Some((busy / passed, f64::from(self.documents) * 1_000.0 / passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_bin_that_holds_it_and_is_narrow() {
        for value in (0..5_000).chain([65_535, 65_536, 1 << 20, (1 << 24) - 1]) {
            let bin = bin(value);
            let (from, to) = (least(bin), least(bin + 1));
            assert!(
                (from..to).contains(&value),
                "{value} is not in {from}..{to}"
            );
            assert!(to - from <= from / 16 + 1, "{from}..{to}");
        }
        assert_eq!(bin((1 << 24) - 1), NUMBER_BINS - 1);
        assert_eq!(bin(u64::MAX), NUMBER_BINS - 1);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let signal = Signal::number("n", "");
        let mut counts = Counts::of(&signal);
        assert_eq!(counts.median(), 0);
        for value in [1, 2, 3, 600, 600, 600, 5_000] {
            counts.add(bin(value));
        }
        assert!((576..608).contains(&counts.median()), "{}", counts.median());
    }

    #[test]
    fn the_signals_stand_where_their_numbers_say() {
        let signals = signals(&Fields::default());
        for (number, name) in [
            (CHARACTERS, "answer_characters"),
            (TOKENS, "completion_tokens"),
            (LATENCY, "latency_per_token"),
            (REFUSAL, "refusal"),
            (OUTCOME, "outcome"),
            (FINISH, "finish_reason"),
        ] {
            assert_eq!(signals[number].name, name);
        }
        assert_eq!(signals.len(), FIRST_FIELD);
    }
}
