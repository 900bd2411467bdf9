//! Out-of-order completions in, the position to commit out.

use std::collections::{BTreeSet, VecDeque};

use super::record::{CommitPosition, commit_bytes_max};
use crate::types::Offset;

/// Which records of one partition are unfinished. It keeps only those: everything else that was read is finished or never existed, so
/// gaps in the offsets need no special case.
#[derive(Debug)]
pub struct Tracker {
    /// Received and not finished.
    open: BTreeSet<Offset>,
    /// How many of them are followed by something finished, up to the next of them or to `read_end`: the finished ranges between them.
    ranges: usize,
    /// Everything below was received or does not exist.
    read_end: Offset,
    /// Finished before this owner took over, and not wholly read again yet.
    done_before: VecDeque<(Offset, Offset)>,
    /// No offset that the position could name lies beyond it.
    far_end: Offset,
}

impl Tracker {
    /// Goes on from a committed position: reading begins at its `next_offset`.
    #[must_use]
    pub fn new(from: CommitPosition) -> Self {
        let inherited_end = from.done.last().map_or(Offset::ZERO, |(_, end)| *end);
        Self {
            open: BTreeSet::new(),
            ranges: 0,
            read_end: from.next_offset,
            done_before: from.done.into(),
            far_end: inherited_end.max(from.next_offset),
        }
    }

    /// Notes a record that was read. Answers whether it is work: false when it was finished before, or was read already.
    pub fn receive(&mut self, offset: Offset) -> bool {
        if offset < self.read_end {
            return false;
        }
        // What lies between is a gap: it counts as finished.
        self.move_read_end(offset);
        let was_done = self
            .done_before
            .front()
            .is_some_and(|(first, _)| *first <= offset);
        if was_done {
            self.move_read_end(offset.next());
            return false;
        }
        self.read_end = offset.next();
        self.far_end = self.far_end.max(self.read_end);
        self.open.insert(offset)
    }

    /// Notes that nothing lies between the last record and `read_end` (exclusive): markers, or gaps that compaction left.
    pub fn advance_to(&mut self, read_end: Offset) {
        if read_end > self.read_end {
            self.move_read_end(read_end);
        }
    }

    /// Nothing that is not finished lies between the old end and the new one, which is not below it.
    fn move_read_end(&mut self, read_end: Offset) {
        let touched = self
            .open
            .last()
            .is_some_and(|last| last.next() == self.read_end);
        if touched && read_end > self.read_end {
            self.ranges += 1;
        }
        self.read_end = read_end;
        self.far_end = self.far_end.max(read_end);
        while self
            .done_before
            .front()
            .is_some_and(|(_, end)| *end <= read_end)
        {
            self.done_before.pop_front();
        }
    }

    /// Notes that a record's outcome goes out with the next flush. The position counts it from now on, and only that flush, once it is
    /// durable, may publish such a position.
    ///
    /// # Panics
    /// When the record is not open: an outcome was handed in twice, or for a record that was never received.
    pub fn finish(&mut self, offset: Offset) {
        assert!(
            self.open.remove(&offset),
            "offset {offset} was finished and is not open"
        );
        let next = self.open.range(offset..).next().copied();
        let next = next.unwrap_or(self.read_end);
        let before = self.open.range(..offset).next_back().copied();
        // The range behind it is joined to what lies before it, where there is an unfinished record to lie behind.
        let range_behind = offset.next() < next;
        let range_before = before.is_some_and(|before| before.next() < offset);
        self.ranges -= usize::from(range_behind) + usize::from(range_before);
        self.ranges += usize::from(before.is_some());
    }

    /// The most bytes of a commit record that claims [`position`](Self::position) now.
    #[must_use]
    pub fn commit_bytes(&self) -> usize {
        commit_bytes_max(self.ranges + self.done_before.len(), self.far_end)
    }

    /// The most bytes of any commit record that the unfinished records could come to, in whatever order they finish, once one more record
    /// is received at `offset`. Each one that finishes adds at most one range, and there is at most one range behind each that is left: of
    /// `n` with `r` ranges between them at most `(n + r) / 2` can come.
    #[must_use]
    pub fn commit_bytes_after(&self, offset: Offset) -> usize {
        let ranges = (self.open.len() + self.ranges + 2).div_ceil(2);
        // One more for a range that a part of an inherited one was joined to.
        commit_bytes_max(
            ranges + self.done_before.len() + 1,
            self.far_end.max(offset.next()),
        )
    }

    /// How many records are unfinished.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// The oldest unfinished record.
    #[must_use]
    pub fn oldest_open(&self) -> Option<Offset> {
        self.open.first().copied()
    }

    /// Everything below was received or does not exist.
    #[must_use]
    pub const fn read_end(&self) -> Offset {
        self.read_end
    }

    /// The oldest unfinished record, or the end of what was read: [`position`](Self::position)'s `next_offset`, or just below it.
    #[must_use]
    pub fn commit_offset(&self) -> Offset {
        self.oldest_open().unwrap_or(self.read_end)
    }

    /// What may be committed: the oldest unfinished record, or the end of what was read; and the finished ranges beyond it.
    #[must_use]
    pub fn position(&self) -> CommitPosition {
        let Some(next_offset) = self.oldest_open() else {
            return self.position_without_open();
        };
        let mut done = Vec::new();
        let mut from = next_offset.next();
        for open in self.open.iter().skip(1).copied().chain([self.read_end]) {
            if from < open {
                done.push((from, open));
            }
            from = open.next();
        }
        self.append_done_before(&mut done);
        CommitPosition { next_offset, done }
    }

    fn position_without_open(&self) -> CommitPosition {
        let mut done = Vec::new();
        self.append_done_before(&mut done);
        let mut next_offset = self.read_end;
        // A range that begins where reading ended belongs to what is finished.
        if let Some((first, end)) = done.first().copied()
            && first == next_offset
        {
            next_offset = end;
            done.remove(0);
        }
        CommitPosition { next_offset, done }
    }

    /// Ranges of the former owner that reading has not reached; one that it has reached in part is cut, and joined where it touches.
    fn append_done_before(&self, done: &mut Vec<(Offset, Offset)>) {
        for (first, end) in &self.done_before {
            let first = (*first).max(self.read_end);
            match done.last_mut() {
                Some(last) if last.1 == first => last.1 = *end,
                _ => done.push((first, *end)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::super::record::COMMIT_FIXED_BYTES_MAX;
    use super::super::record::tests::sample;
    use super::*;

    fn offsets(range: std::ops::Range<i64>) -> impl Iterator<Item = Offset> {
        range.map(Offset::new)
    }

    fn from(next_offset: i64) -> CommitPosition {
        CommitPosition {
            next_offset: Offset::new(next_offset),
            done: Vec::new(),
        }
    }

    #[test]
    fn commit_offset_stops_at_first_incomplete() {
        let mut tracker = Tracker::new(from(10));
        for offset in offsets(10..15) {
            assert!(tracker.receive(offset));
        }
        tracker.finish(Offset::new(11));
        tracker.finish(Offset::new(14));
        let position = tracker.position();
        assert_eq!(position.next_offset, Offset::new(10));
        assert_eq!(
            position.done,
            [
                (Offset::new(11), Offset::new(12)),
                (Offset::new(14), Offset::new(15))
            ]
        );
    }

    #[test]
    fn trailing_markers_and_gaps_are_stepped_over() {
        let mut tracker = Tracker::new(from(0));
        tracker.receive(Offset::new(3));
        tracker.finish(Offset::new(3));
        tracker.advance_to(Offset::new(9));
        assert_eq!(tracker.position().next_offset, Offset::new(9));
    }

    #[test]
    #[should_panic(expected = "is not open")]
    fn finishing_twice_is_a_broken_invariant() {
        let mut tracker = Tracker::new(from(0));
        tracker.receive(Offset::ZERO);
        tracker.finish(Offset::ZERO);
        tracker.finish(Offset::ZERO);
    }

    /// Every order in which six completions can come, exhaustively.
    #[test]
    fn every_permutation_of_six_completions_commits_the_prefix() {
        fn permute(rest: &mut Vec<i64>, taken: &mut Vec<i64>) {
            if rest.is_empty() {
                let mut tracker = Tracker::new(from(0));
                offsets(0..6).for_each(|offset| assert!(tracker.receive(offset)));
                let mut finished = BTreeSet::new();
                for offset in taken.iter() {
                    tracker.finish(Offset::new(*offset));
                    finished.insert(*offset);
                    let prefix = (0..6).find(|o| !finished.contains(o)).unwrap_or(6);
                    assert_eq!(tracker.position().next_offset, Offset::new(prefix));
                }
                return;
            }
            for index in 0..rest.len() {
                let offset = rest.remove(index);
                taken.push(offset);
                permute(rest, taken);
                taken.pop();
                rest.insert(index, offset);
            }
        }
        permute(&mut (0..6).collect(), &mut Vec::new());
    }

    /// Every second record unfinished, the worst that can come: the record stays within what the tracker says, and that within what it said
    /// before. With so many, a flush must still be cheap against the least commit interval.
    #[test]
    fn every_second_record_unfinished_stays_within_the_estimate() {
        const RECORDS: i64 = 40_000;
        for start in [0, 1_000_000_000, i64::MAX - 1 - RECORDS] {
            let mut tracker = Tracker::new(from(start));
            let mut foreseen = 0;
            for offset in offsets(start..start + RECORDS) {
                foreseen = tracker.commit_bytes_after(offset);
                assert!(tracker.receive(offset));
            }
            for offset in offsets(start..start + RECORDS).skip(1).step_by(2) {
                tracker.finish(offset);
                assert!(tracker.commit_bytes() <= foreseen);
            }
            assert_eq!(tracker.open(), 20_000);
            let position = tracker.position();
            assert_eq!(position.done.len(), 20_000);
            let bytes = encoded(position);
            assert!(bytes <= tracker.commit_bytes());
            assert!(
                tracker.commit_bytes() <= bytes + COMMIT_FIXED_BYTES_MAX + 20_000,
                "the estimate is near the truth: {bytes} of {}",
                tracker.commit_bytes()
            );
        }
    }

    /// The bytes of the commit record that claims the position.
    fn encoded(position: CommitPosition) -> usize {
        let mut record = sample(&"h".repeat(262), u64::MAX, position.next_offset.value());
        record.done = position.done;
        let partition = crate::types::TopicPartition::new("docs", 0);
        record.into_record(&partition).unwrap().value.unwrap().len()
    }

    /// The naive model: a map of every offset that exists to whether it is finished, over several owners.
    #[derive(Debug, Clone)]
    enum Step {
        Read(u8),
        Finish(u16),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u8..6).prop_map(Step::Read),
            6 => any::<u16>().prop_map(Step::Finish),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Reading a log with gaps, finishing in any order, and starting over from any committed position: the position claims
        /// exactly what the model knows to be finished, and no record is worked on again once a committed position claims it.
        #[test]
        fn position_agrees_with_a_naive_model(
            gaps in prop::collection::vec(1i64..4, 1..60),
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let log: Vec<Offset> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(Offset::new(*at - 1)) }).collect();
            let mut finished: BTreeMap<Offset, bool> = log.iter().map(|offset| (*offset, false)).collect();
            let mut tracker = Tracker::new(CommitPosition::default());
            let mut open: Vec<Offset> = Vec::new();
            let mut at = 0;
            let mut foreseen = usize::MAX;
            for step in steps {
                match step {
                    Step::Read(count) => {
                        for offset in log.iter().skip(at).take(count.into()) {
                            foreseen = tracker.commit_bytes_after(*offset);
                            let is_work = tracker.receive(*offset);
                            prop_assert_eq!(is_work, !finished[offset], "offset {}", offset);
                            if is_work { open.push(*offset); }
                            at += 1;
                        }
                    }
                    Step::Finish(pick) if !open.is_empty() => {
                        let offset = open.remove(usize::from(pick) % open.len());
                        tracker.finish(offset);
                        finished.insert(offset, true);
                    }
                    Step::Finish(_) => {}
                    Step::Restart => {
                        let position = tracker.position();
                        at = log.partition_point(|offset| *offset < position.next_offset);
                        tracker = Tracker::new(position);
                        open.clear();
                        foreseen = usize::MAX;
                    }
                }
                let position = tracker.position();
                prop_assert!(encoded(position.clone()) <= tracker.commit_bytes());
                prop_assert!(tracker.commit_bytes() <= foreseen, "{} > {foreseen}", tracker.commit_bytes());
                let spare = tracker.ranges + tracker.done_before.len() - position.done.len();
                prop_assert!(spare <= 1, "ranges are counted, not guessed: {:?}", position);
                for (offset, done) in &finished {
                    prop_assert_eq!(position.contains(*offset), *done, "offset {} in {:?}", offset, position);
                }
                let mut end = position.next_offset;
                for (first, range_end) in &position.done {
                    prop_assert!(*first > end || (*first >= end && first == &position.next_offset), "{:?}", position);
                    prop_assert!(range_end > first);
                    end = *range_end;
                }
            }
        }
    }
}
