//! The books: what the topics hold when everything has ended, and whether that is what was promised. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::documents::BAD_KEY;
use crate::scenario::{Guarantee, Order, PARTITIONS};

/// Partition and offset.
pub(crate) type Place = (i32, i64);

/// Problems of one kind that are named; more are counted.
const NAMED: usize = 3;

/// A result or a dead letter.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Where it lies.
    pub(crate) at: Place,
    /// The topic of its document, as it says.
    pub(crate) topic: String,
    /// Its document, as it says.
    pub(crate) source: Place,
    pub(crate) key: Option<String>,
}

/// The newest commit of an input partition.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) next_offset: i64,
    /// How many ranges are done beyond it.
    pub(crate) ranges: usize,
}

/// What was read.
#[derive(Debug, Clone)]
pub(crate) struct Books {
    pub(crate) input: String,
    /// The end of each input partition, which holds nothing but documents.
    pub(crate) ends: BTreeMap<i32, i64>,
    /// Each output partition in its order.
    pub(crate) results: Vec<Entry>,
    pub(crate) dead_letters: Vec<Entry>,
    pub(crate) commits: BTreeMap<i32, Commit>,
    pub(crate) lag: BTreeMap<i32, i64>,
}

/// What the books come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    pub(crate) documents: usize,
    /// Documents that have a result.
    pub(crate) results: usize,
    /// Documents that have a dead letter.
    pub(crate) dead_letters: usize,
    /// Results and dead letters beyond the first of a document.
    pub(crate) duplicates: usize,
    /// What breaks a promise.
    pub(crate) failures: Vec<String>,
}

impl Books {
    pub(crate) fn balance(&self, guarantee: Guarantee, order: Order) -> Balance {
        let mut failures = Vec::new();
        let expected: BTreeSet<Place> = self
            .ends
            .iter()
            .flat_map(|(partition, end)| (0..*end).map(|offset| (*partition, offset)))
            .collect();
        let results: BTreeSet<_> = self.results.iter().map(|entry| entry.source).collect();
        let dead_letters: BTreeSet<_> =
            self.dead_letters.iter().map(|entry| entry.source).collect();
        let finished: BTreeSet<_> = results.union(&dead_letters).copied().collect();
        let duplicates = self.results.len() + self.dead_letters.len() - finished.len();

        report(
            &mut failures,
            "lost",
            expected.difference(&finished).copied(),
        );
        report(
            &mut failures,
            "invented",
            finished.difference(&expected).copied(),
        );
        report(
            &mut failures,
            "both answered and given up",
            results.intersection(&dead_letters).copied(),
        );
        if guarantee == Guarantee::ExactlyOnce && duplicates > 0 {
            let entries = || self.results.iter().chain(&self.dead_letters);
            let mut seen = BTreeSet::new();
            let again = entries().filter(|entry| !seen.insert(entry.source));
            let again = again.map(|entry| (entry.source, entry.at));
            report(&mut failures, "finished again (document, where)", again);
        }
        self.check_contents(&mut failures);
        self.check_order(order, &mut failures);
        self.check_commits(&mut failures);
        Balance {
            documents: expected.len(),
            results: results.len(),
            dead_letters: dead_letters.len(),
            duplicates,
            failures,
        }
    }

    /// Bad documents are given up, all others are answered, and everything names its topic.
    fn check_contents(&self, failures: &mut Vec<String>) {
        let is_bad = |entry: &&Entry| entry.key.as_deref() == Some(BAD_KEY);
        let answered = self.results.iter().filter(is_bad);
        let given_up = self.dead_letters.iter().filter(|entry| !is_bad(entry));
        report(
            failures,
            "bad and answered",
            answered.map(|entry| entry.source),
        );
        report(
            failures,
            "good and given up",
            given_up.map(|entry| entry.source),
        );
        let all = self.results.iter().chain(&self.dead_letters);
        let foreign = all.filter(|entry| entry.topic != self.input);
        report(failures, "of another topic", foreign.map(|entry| entry.at));
    }

    /// First results are in the order of their documents: in `input` per input and output partition, in `key` per key besides.
    fn check_order(&self, order: Order, failures: &mut Vec<String>) {
        if order == Order::Completion {
            return;
        }
        let mut seen = BTreeSet::new();
        let mut last = BTreeMap::new();
        let mut early = Vec::new();
        for entry in &self.results {
            if !seen.insert(entry.source) {
                continue;
            }
            let key = match order {
                Order::Key => Some(&entry.key),
                Order::Input | Order::Completion => None,
            };
            // Documents without a key have no order among each other.
            if key == Some(&None) {
                continue;
            }
            let before = last.insert((entry.source.0, entry.at.0, key), entry.source.1);
            if before.is_some_and(|before| before > entry.source.1) {
                early.push((entry.source, entry.at));
            }
        }
        report(
            failures,
            "answered behind a later one (document, where)",
            early.into_iter(),
        );
    }

    /// The commits and the group's offsets say that everything is done.
    fn check_commits(&self, failures: &mut Vec<String>) {
        for partition in 0..PARTITIONS {
            let end = self.ends.get(&partition).copied();
            let commit = self.commits.get(&partition);
            let done =
                commit.is_some_and(|commit| Some(commit.next_offset) == end && commit.ranges == 0);
            if !done {
                let what =
                    format!("partition {partition} ends at {end:?}, committed is {commit:?}");
                failures.push(what);
            }
            let lag = self.lag.get(&partition);
            if lag != Some(&0) {
                failures.push(format!("partition {partition} has a lag of {lag:?}"));
            }
        }
    }
}

fn report<T: std::fmt::Debug>(
    failures: &mut Vec<String>,
    what: &str,
    found: impl Iterator<Item = T>,
) {
    let found: Vec<_> = found.collect();
    if !found.is_empty() {
        let named: Vec<_> = found.iter().take(NAMED).collect();
        failures.push(format!("{} {what}, such as {named:?}", found.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four documents on each partition, all finished once and in order; the last of each is bad.
    fn books() -> Books {
        let entry = |partition: i32, offset: i64, key: &str| Entry {
            at: (partition, offset),
            topic: "in".to_owned(),
            source: (partition, offset),
            key: Some(key.to_owned()),
        };
        let all = || 0..PARTITIONS;
        Books {
            input: "in".to_owned(),
            ends: all().map(|partition| (partition, 4)).collect(),
            results: all()
                .flat_map(|partition| {
                    (0..3).map(move |offset| entry(partition, offset, "customer-1"))
                })
                .collect(),
            dead_letters: all()
                .map(|partition| entry(partition, 3, BAD_KEY))
                .collect(),
            commits: all()
                .map(|partition| {
                    let commit = Commit {
                        next_offset: 4,
                        ranges: 0,
                    };
                    (partition, commit)
                })
                .collect(),
            lag: all().map(|partition| (partition, 0)).collect(),
        }
    }

    fn failures(books: &Books, guarantee: Guarantee, order: Order) -> Vec<String> {
        books.balance(guarantee, order).failures
    }

    /// Exactly one problem, and this one.
    #[track_caller]
    fn fails(books: &Books, order: Order, what: &str) {
        let failures = failures(books, Guarantee::ExactlyOnce, order);
        assert!(
            matches!(failures.as_slice(), [one] if one.contains(what)),
            "{failures:?}"
        );
    }

    #[test]
    fn what_was_promised_balances() {
        for guarantee in Guarantee::ALL {
            for order in Order::ALL {
                let balance = books().balance(*guarantee, *order);
                let expected = Balance {
                    documents: 32,
                    results: 24,
                    dead_letters: 8,
                    duplicates: 0,
                    failures: Vec::new(),
                };
                assert_eq!(balance, expected);
            }
        }
    }

    #[test]
    fn a_loss_is_found() {
        let mut books = books();
        books.results.remove(5);
        fails(&books, Order::Input, "1 lost, such as [(1, 2)]");
        assert_eq!(
            failures(&books, Guarantee::AtLeastOnce, Order::Completion).len(),
            1
        );
    }

    #[test]
    fn a_lost_dead_letter_is_found() {
        let mut books = books();
        books.dead_letters.pop();
        fails(&books, Order::Input, "1 lost, such as [(7, 3)]");
    }

    /// Only where nothing may be repeated it is a failure, and it is counted everywhere.
    #[test]
    fn a_repeat_is_found() {
        let mut books = books();
        let mut again = books.results[4].clone();
        again.at.1 = 100;
        books.results.push(again);
        fails(&books, Order::Input, "1 finished again");
        let balance = books.balance(Guarantee::AtLeastOnce, Order::Input);
        assert_eq!((balance.duplicates, balance.failures), (1, Vec::new()));
    }

    #[test]
    fn an_invention_is_found() {
        let mut books = books();
        books.results[2].source.1 = 77;
        let failures = failures(&books, Guarantee::AtLeastOnce, Order::Completion);
        assert_eq!(failures.len(), 2, "one lost, one invented: {failures:?}");
    }

    #[test]
    fn a_document_that_is_given_up_without_need_is_found() {
        let mut books = books();
        let result = books.results.remove(2);
        books.dead_letters.push(result);
        fails(&books, Order::Input, "1 good and given up");
    }

    #[test]
    fn an_overtaking_is_found_in_each_order_that_forbids_it() {
        let mut books = books();
        books.results.swap(0, 1);
        fails(&books, Order::Input, "behind a later one");
        fails(&books, Order::Key, "behind a later one");
        let free = failures(&books, Guarantee::ExactlyOnce, Order::Completion);
        assert_eq!(free, Vec::<String>::new());
        books.results[0].key = Some("customer-2".to_owned());
        let other_key = failures(&books, Guarantee::ExactlyOnce, Order::Key);
        assert_eq!(other_key, Vec::<String>::new());
    }

    #[test]
    fn a_commit_that_is_short_or_has_ranges_or_is_missing_is_found() {
        let mut short = books();
        short
            .commits
            .entry(3)
            .and_modify(|commit| commit.next_offset = 3);
        fails(&short, Order::Input, "partition 3 ends at");
        let mut open = books();
        open.commits.entry(3).and_modify(|commit| commit.ranges = 1);
        fails(&open, Order::Input, "partition 3 ends at");
        let mut missing = books();
        missing.commits.remove(&3);
        fails(&missing, Order::Input, "partition 3 ends at");
    }

    #[test]
    fn a_lag_is_found() {
        let mut behind = books();
        behind.lag.insert(6, 1);
        fails(&behind, Order::Input, "partition 6 has a lag");
        behind.lag.remove(&6);
        fails(&behind, Order::Input, "partition 6 has a lag");
    }
}
