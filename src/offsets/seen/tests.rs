use proptest::prelude::*;

use super::super::owner::newest;
use super::super::record::tests::sample;
use super::*;
use crate::types::TopicPartition;

/// What a log may hold of one key.
#[derive(Debug, Clone)]
enum Written {
    Commit(&'static str, u64, i64),
    /// As another program may write it: with a space.
    Spaced(&'static str, u64, i64),
    Tombstone,
    Rubbish,
}

fn value_of(written: &Written) -> Option<Bytes> {
    let commit = |owner: &str, epoch, next_offset| {
        let record = sample(owner, epoch, next_offset);
        let record = record.into_record(&TopicPartition::new("docs", 0)).unwrap();
        record.value.unwrap()
    };
    match written {
        Written::Commit(owner, epoch, next_offset) => Some(commit(owner, *epoch, *next_offset)),
        Written::Spaced(owner, epoch, next_offset) => {
            let value = commit(owner, *epoch, *next_offset);
            Some(Bytes::from([b" ", &*value].concat()))
        }
        Written::Tombstone => None,
        Written::Rubbish => Some(Bytes::from_static(b"{\"v\":1,")),
    }
}

fn written() -> impl Strategy<Value = Written> {
    let owner = || prop::sample::select(vec!["me", "other", "third"]);
    prop_oneof![
        8 => (owner(), 1_u64..4, 0_i64..12).prop_map(|(owner, epoch, next)| Written::Commit(owner, epoch, next)),
        2 => (owner(), 1_u64..4, 0_i64..12).prop_map(|(owner, epoch, next)| Written::Spaced(owner, epoch, next)),
        1 => Just(Written::Tombstone),
        1 => Just(Written::Rubbish),
    ]
}

/// Offsets of a log's records: with gaps, as compaction leaves them.
fn at(index: usize) -> Offset {
    Offset::new(i64::try_from(index * 2).unwrap())
}

fn seen_of(log: &[Written]) -> Seen {
    let mut seen = Seen::default();
    for (index, written) in log.iter().enumerate() {
        seen.take(at(index), value_of(written).as_ref());
    }
    seen.detach();
    seen
}

fn newest_of(log: &[Written]) -> Option<(Offset, CommitRecord)> {
    let mut found = None;
    for (index, written) in log.iter().enumerate() {
        match value_of(written).map(|value| CommitRecord::from_value(&value)) {
            Some(Ok(record)) => found = Some(newest(found.take(), (at(index), record))),
            Some(Err(_)) => {}
            None => found = None,
        }
    }
    found
}

/// The verdict of reading the key's records from `from` one by one: where the owner's claim lies, and whether it was overruled.
fn judged(log: &[Written], owner: &Owner, from: Offset) -> (Option<Offset>, bool) {
    let mut claimed_at = None;
    let mut is_lost = false;
    for (index, written) in log.iter().enumerate() {
        let value = value_of(written).filter(|_| at(index) >= from);
        let Some(Ok(record)) = value.map(|value| CommitRecord::from_value(&value)) else {
            continue;
        };
        if record.owner == owner.instance && record.owner_epoch == owner.epoch {
            claimed_at.get_or_insert(at(index));
        }
        let ours = claimed_at.unwrap_or(Offset::new(i64::MAX));
        let seen = (at(index), record.owner.as_str(), record.owner_epoch);
        is_lost |= standing(&owner.instance, owner.epoch, ours, seen) == Standing::Lost;
    }
    (claimed_at, is_lost)
}

proptest! {
    #[test]
    fn what_is_kept_says_what_reading_every_record_says(
        before in prop::collection::vec(written(), 0..12),
        after in prop::collection::vec(written(), 0..12),
    ) {
        let seen = seen_of(&before);
        let kept = seen.newest().map(|(at, value)| (at, CommitRecord::from_value(value).unwrap()));
        let expected = newest_of(&before);
        prop_assert_eq!(kept.as_ref().map(|(at, _)| *at), expected.as_ref().map(|(at, _)| *at));
        let is_rubbish = |written: &Written| matches!(written, Written::Rubbish);
        prop_assert_eq!(seen.is_unusable(), before.iter().any(is_rubbish));

        // An owner claims one epoch above what it has loaded, and looks from the end of that.
        let epoch = expected.map_or(0, |(_, record)| record.owner_epoch) + 1;
        let owner = Owner { instance: "me".to_owned(), epoch };
        let from = at(before.len());
        let log = [before, after.clone()].concat();
        let seen = seen_of(&log);
        let is_odd = |written: &Written| matches!(written, Written::Tombstone | Written::Rubbish);
        prop_assert_eq!(seen.is_odd_from(from), after.iter().any(is_odd));
        if !seen.is_odd_from(from) {
            let (claimed_at, is_lost) = judged(&log, &owner, from);
            let kept = seen.overruled(&owner, seen.claimed_at(&owner, from), from);
            prop_assert_eq!(kept.is_some(), is_lost);
            if !is_lost {
                prop_assert_eq!(seen.claimed_at(&owner, from), claimed_at);
            }
        }
    }
}

#[test]
fn a_beginning_that_is_not_the_last_ones_is_read_as_a_whole() {
    let mut seen = seen_of(&[Written::Commit("me", 1, 5)]);
    let damaged = |next: &str| {
        let value = value_of(&Written::Commit("me", 1, 777)).unwrap();
        Bytes::from(
            String::from_utf8(value.to_vec())
                .unwrap()
                .replace("777", next),
        )
    };
    for next in ["-3", "", "1e3", "99999999999999999999", "\"9\"", "6 "] {
        let mut seen = seen_of(&[Written::Commit("me", 1, 5)]);
        seen.take(at(1), Some(&damaged(next)));
        let is_number = next == "-3" || next == "6 ";
        let is_offset = CommitRecord::from_value(&damaged(next)).is_ok();
        assert_eq!(seen.is_unusable(), !is_offset, "{next}");
        assert!(is_number || !is_offset, "{next}");
    }
    // A damaged end is found when it is loaded, if nothing has taken its place.
    let value = value_of(&Written::Commit("me", 1, 9)).unwrap();
    let cut = value.slice(..value.len() - 1);
    seen.take(at(1), Some(&cut));
    assert!(CommitRecord::from_value(seen.newest().unwrap().1).is_err());
    seen.take(at(2), value_of(&Written::Commit("me", 1, 10)).as_ref());
    assert!(CommitRecord::from_value(seen.newest().unwrap().1).is_ok());
}

#[test]
fn of_many_that_claimed_together_two_are_kept() {
    let mut seen = Seen::default();
    for index in 0..100 {
        let value =
            sample(&format!("instance-{index}"), 3, 0).into_record(&TopicPartition::new("docs", 0));
        seen.take(at(index), value.unwrap().value.as_ref());
    }
    assert!(seen.bytes() < SEEN_BYTES + 1_000, "{}", seen.bytes());
    for (index, is_lost) in [(0, false), (1, true), (50, true)] {
        let owner = Owner {
            instance: format!("instance-{index}"),
            epoch: 3,
        };
        let claimed_at = seen.claimed_at(&owner, Offset::ZERO);
        let overruled = seen.overruled(&owner, claimed_at, Offset::ZERO);
        assert_eq!(overruled.is_some(), is_lost, "{index}");
    }
}
