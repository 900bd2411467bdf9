//! In which order finished documents leave: order is a matter of emission, never of execution.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::Offset;

/// `pipeline.order`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As they stand in their input partition.
    #[default]
    Input,
    /// Those of one key as they stand in their input partition; those without a key as they finish.
    Key,
    /// As they finish.
    Completion,
}

/// Holds finished outcomes until it is their turn. Bounded by what it is given: one entry per open document.
#[derive(Debug)]
pub struct OrderBuffer<T> {
    order: Order,
    /// Every document inside: its lane, and its outcome once it is finished.
    inside: BTreeMap<Offset, Entry<T>>,
    /// For `Key`: the documents of a key that are inside, oldest first.
    lanes: HashMap<Bytes, VecDeque<Offset>>,
    /// For `Key` and `Completion`: those whose turn it is.
    ready: VecDeque<(Offset, T)>,
}

#[derive(Debug)]
struct Entry<T> {
    key: Option<Bytes>,
    outcome: Option<T>,
}

impl<T> OrderBuffer<T> {
    /// An empty buffer.
    #[must_use]
    pub fn new(order: Order) -> Self {
        Self {
            order,
            inside: BTreeMap::new(),
            lanes: HashMap::new(),
            ready: VecDeque::new(),
        }
    }

    /// Notes a document in input order.
    pub fn enter(&mut self, offset: Offset, key: Option<Bytes>) {
        if self.order == Order::Key
            && let Some(key) = &key
        {
            self.lanes.entry(key.clone()).or_default().push_back(offset);
        }
        self.inside.insert(offset, Entry { key, outcome: None });
    }

    /// Notes an outcome.
    ///
    /// # Panics
    /// When the document is not inside: it was finished twice or never entered.
    pub fn finish(&mut self, offset: Offset, outcome: T) {
        let entry = self.inside.get_mut(&offset);
        assert!(
            entry.is_some(),
            "offset {offset} was finished and is not in the order buffer"
        );
        let Some(entry) = entry else { return };
        entry.outcome = Some(outcome);
        match self.order {
            // Those at the front are found when they are taken.
            Order::Input => {}
            Order::Completion => self.leave(offset),
            Order::Key => match entry.key.clone() {
                None => self.leave(offset),
                Some(key) => self.release_lane(&key),
            },
        }
    }

    /// Takes the next outcome whose turn it is.
    pub fn take_ready(&mut self) -> Option<(Offset, T)> {
        if self.order == Order::Input {
            let front = self.inside.first_entry()?;
            front.get().outcome.as_ref()?;
            let (offset, entry) = front.remove_entry();
            return entry.outcome.map(|outcome| (offset, outcome));
        }
        self.ready.pop_front()
    }

    /// Finished documents that wait for an earlier one.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inside
            .values()
            .filter(|entry| entry.outcome.is_some())
            .count()
    }

    fn release_lane(&mut self, key: &Bytes) {
        while let Some(front) = self.lanes.get(key).and_then(|lane| lane.front().copied()) {
            let finished = self
                .inside
                .get(&front)
                .is_some_and(|entry| entry.outcome.is_some());
            if !finished {
                return;
            }
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.pop_front();
            }
            self.leave(front);
        }
        self.lanes.remove(key);
    }

    fn leave(&mut self, offset: Offset) {
        if let Some(Entry {
            outcome: Some(outcome),
            ..
        }) = self.inside.remove(&offset)
        {
            self.ready.push_back((offset, outcome));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(buffer: &mut OrderBuffer<()>) -> Vec<i64> {
        std::iter::from_fn(|| buffer.take_ready())
            .map(|(offset, ())| offset.value())
            .collect()
    }

    fn buffer(order: Order, keys: &[Option<&'static str>]) -> OrderBuffer<()> {
        let mut buffer = OrderBuffer::new(order);
        for (offset, key) in (0..).zip(keys) {
            buffer.enter(Offset::new(offset), key.map(Bytes::from_static_str));
        }
        buffer
    }

    trait FromStaticStr {
        fn from_static_str(text: &'static str) -> Bytes;
    }
    impl FromStaticStr for Bytes {
        fn from_static_str(text: &'static str) -> Bytes {
            Bytes::from_static(text.as_bytes())
        }
    }

    #[test]
    fn input_order_waits_for_the_oldest() {
        let mut buffer = buffer(Order::Input, &[None; 4]);
        buffer.finish(Offset::new(1), ());
        buffer.finish(Offset::new(3), ());
        assert_eq!(drain(&mut buffer), [0_i64; 0]);
        assert_eq!(buffer.waiting(), 2);
        buffer.finish(Offset::new(0), ());
        assert_eq!(drain(&mut buffer), [0, 1]);
        buffer.finish(Offset::new(2), ());
        assert_eq!(drain(&mut buffer), [2, 3]);
        assert_eq!(buffer.waiting(), 0);
    }

    #[test]
    fn key_order_holds_only_its_own_key() {
        let mut buffer = buffer(Order::Key, &[Some("a"), Some("b"), Some("a"), None]);
        buffer.finish(Offset::new(2), ());
        buffer.finish(Offset::new(3), ());
        buffer.finish(Offset::new(1), ());
        assert_eq!(drain(&mut buffer), [3, 1]);
        buffer.finish(Offset::new(0), ());
        assert_eq!(drain(&mut buffer), [0, 2]);
        assert!(
            buffer.lanes.is_empty(),
            "a key that is through is forgotten"
        );
    }

    #[test]
    fn completion_order_holds_nothing() {
        let mut buffer = buffer(Order::Completion, &[None; 3]);
        buffer.finish(Offset::new(2), ());
        assert_eq!(drain(&mut buffer), [2]);
    }

    proptest! {
        /// Whatever the order of finishing: everything leaves once, and in the order promised.
        #[test]
        fn every_outcome_leaves_once_and_in_its_order(
            keys in prop::collection::vec(prop::option::of(0usize..3), 1..40),
            picks in prop::collection::vec(any::<usize>(), 40),
            order in prop_oneof![Just(Order::Input), Just(Order::Key), Just(Order::Completion)],
        ) {
            const NAMES: [&str; 3] = ["a", "b", "c"];
            let keys: Vec<_> = keys.into_iter().map(|key| key.map(|key| NAMES[key])).collect();
            let mut buffer = buffer(order, &keys);
            let mut open: Vec<i64> = (0..).take(keys.len()).collect();
            let mut left = Vec::new();
            for pick in picks.into_iter().take(keys.len()) {
                let offset = open.remove(pick % open.len());
                buffer.finish(Offset::new(offset), ());
                left.extend(drain(&mut buffer));
                if order == Order::Completion {
                    prop_assert_eq!(left.last(), Some(&offset));
                }
            }
            let mut sorted = left.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..).take(keys.len()).collect::<Vec<i64>>());
            if order == Order::Input {
                prop_assert!(left.is_sorted());
            }
            if order == Order::Key {
                for name in NAMES {
                    let of_key: Vec<_> = left.iter().filter(|offset| keys[usize::try_from(**offset).unwrap()] == Some(name)).collect();
                    prop_assert!(of_key.is_sorted());
                }
            }
        }
    }
}
