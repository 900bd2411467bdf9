//! Who owns a partition, judged from the commit records alone.

use super::record::CommitRecord;
use crate::types::Offset;

/// Of two commit records for one key, the one that counts: the higher owner epoch, then the one that got further, then the later in the
/// log. An instance that lost a tie wrote its claim late, with the position that it had read before the winner went on.
#[must_use]
pub fn newest(
    current: Option<(Offset, CommitRecord)>,
    seen: (Offset, CommitRecord),
) -> (Offset, CommitRecord) {
    let rank =
        |(at, record): &(Offset, CommitRecord)| (record.owner_epoch, record.next_offset, *at);
    match current {
        Some(current) if rank(&current) > rank(&seen) => current,
        _ => seen,
    }
}

/// How an owner stands after a record in the commit topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has taken over.
    Keep,
    /// Somebody else owns the partition: stop, commit nothing.
    Lost,
}

/// Judges a record of our key by where it lies, its owner and its epoch. `claimed_at` is where our claim lies in the log: of equal epochs the
/// earlier claim wins.
#[must_use]
pub fn standing(
    owner: &str,
    owner_epoch: u64,
    claimed_at: Offset,
    seen: (Offset, &str, u64),
) -> Standing {
    let (at, seen_owner, seen_epoch) = seen;
    if seen_owner == owner && seen_epoch == owner_epoch {
        return Standing::Keep;
    }
    let lost = seen_epoch > owner_epoch || (seen_epoch == owner_epoch && at < claimed_at);
    if lost { Standing::Lost } else { Standing::Keep }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::sample;
    use super::*;

    #[test]
    fn the_highest_epoch_wins_over_a_late_write() {
        let current = newest(None, (Offset::new(5), sample("new", 2, 30)));
        let (_, kept) = newest(Some(current), (Offset::new(9), sample("old", 1, 40)));
        assert_eq!(
            (kept.owner.as_str(), kept.next_offset),
            ("new", Offset::new(30))
        );
        let current = newest(None, (Offset::new(5), sample("new", 2, 30)));
        let (_, later) = newest(Some(current), (Offset::new(9), sample("new", 2, 33)));
        assert_eq!(
            later.next_offset,
            Offset::new(33),
            "of one epoch the latest counts"
        );
        let current = newest(None, (Offset::new(5), sample("winner", 2, 33)));
        let (_, kept) = newest(Some(current), (Offset::new(9), sample("loser", 2, 30)));
        assert_eq!(
            kept.next_offset,
            Offset::new(33),
            "a late claim of the same epoch takes nothing back"
        );
    }

    #[test]
    fn a_higher_epoch_or_an_earlier_claim_takes_the_partition() {
        let judge = |owner: &str, epoch, at| {
            standing("me", 4, Offset::new(100), (Offset::new(at), owner, epoch))
        };
        assert_eq!(judge("me", 4, 200), Standing::Keep);
        assert_eq!(
            judge("other", 3, 200),
            Standing::Keep,
            "a late write of a former owner"
        );
        assert_eq!(judge("other", 5, 200), Standing::Lost);
        assert_eq!(
            judge("other", 4, 99),
            Standing::Lost,
            "of equal epochs the earlier wins"
        );
        assert_eq!(
            judge("other", 4, 101),
            Standing::Keep,
            "the other one loses this tie"
        );
        assert_eq!(
            judge("me", 5, 200),
            Standing::Lost,
            "a newer run of the same instance"
        );
    }
}
