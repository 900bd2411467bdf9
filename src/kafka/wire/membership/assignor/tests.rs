use proptest::prelude::*;

use super::*;

fn orders(count: i32) -> Topics {
    Topics::from([("orders".into(), count)])
}

fn partition(index: i32) -> TopicPartition {
    TopicPartition::new("orders", index)
}

fn candidate(id: &str, topics: &Topics, owned: &[i32], generation: i32) -> (String, Candidate) {
    let subscription = Subscription {
        topics: topics.keys().cloned().collect(),
        owned: owned.iter().copied().map(partition).collect(),
        generation,
    };
    let rank = id.to_owned();
    (id.to_owned(), Candidate { rank, subscription })
}

fn dealt(shares: &BTreeMap<String, Share>, member: &str) -> Vec<i32> {
    let partitions = shares[member].partitions.iter();
    partitions.map(|found| found.partition).collect()
}

/// What the members tell after they have let go of what they were to give up.
fn told_next(
    members: &BTreeMap<String, Candidate>,
    shares: &BTreeMap<String, Share>,
    generation: i32,
) -> BTreeMap<String, Candidate> {
    let mut next = members.clone();
    for (id, candidate) in &mut next {
        candidate.subscription.owned = shares[id].partitions.clone();
        candidate.subscription.generation = generation;
    }
    next
}

#[test]
fn a_newcomer_gets_what_was_given_up_and_no_sooner() {
    let topics = orders(4);
    let members = BTreeMap::from([
        candidate("a", &topics, &[0, 1, 2, 3], 1),
        candidate("b", &topics, &[], -1),
    ]);
    let first = assign(&topics, &members);
    assert_eq!(dealt(&first, "a"), [0, 1]);
    assert!(dealt(&first, "b").is_empty());
    let given_up = BTreeSet::from([partition(2), partition(3)]);
    assert_eq!(first["a"].give_up, given_up);
    let second = assign(&topics, &told_next(&members, &first, 2));
    assert_eq!(dealt(&second, "a"), [0, 1]);
    assert_eq!(dealt(&second, "b"), [2, 3]);
    assert!(second["a"].give_up.is_empty());
}

#[test]
fn of_two_claims_the_newer_generation_wins() {
    let topics = orders(2);
    let members = BTreeMap::from([
        candidate("a", &topics, &[0, 1], 3),
        candidate("b", &topics, &[0], 5),
    ]);
    let shares = assign(&topics, &members);
    assert_eq!(dealt(&shares, "a"), [1]);
    assert_eq!(dealt(&shares, "b"), [0]);
    assert!(shares.values().all(|share| share.give_up.is_empty()));
}

#[test]
fn what_is_still_worked_on_after_a_loss_is_not_dealt_to_others() {
    let topics = orders(2);
    let members = BTreeMap::from([
        candidate("a", &topics, &[0, 1], -1),
        candidate("b", &topics, &[], 4),
    ]);
    let shares = assign(&topics, &members);
    assert_eq!(dealt(&shares, "a"), [0]);
    assert!(dealt(&shares, "b").is_empty());
    assert_eq!(shares["a"].give_up, BTreeSet::from([partition(1)]));
}

#[test]
fn members_get_only_topics_that_they_want() {
    let both = Topics::from([("orders".into(), 2), ("claims".into(), 2)]);
    let members = BTreeMap::from([
        candidate("a", &both, &[], -1),
        candidate("b", &orders(2), &[], -1),
    ]);
    let shares = assign(&both, &members);
    let b = shares["b"].partitions.iter();
    assert!(b.clone().all(|found| &*found.topic == "orders"));
    assert_eq!(b.count(), 1);
    let all: usize = shares.values().map(|share| share.partitions.len()).sum();
    assert_eq!(all, 4);
}

#[test]
fn a_topic_that_the_leader_does_not_know_stays_where_it_is() {
    let members = BTreeMap::from([
        candidate("a", &orders(3), &[0, 2], 1),
        candidate("b", &orders(3), &[1], 1),
    ]);
    let shares = assign(&Topics::new(), &members);
    assert_eq!(dealt(&shares, "a"), [0, 2]);
    assert_eq!(dealt(&shares, "b"), [1]);
}

#[test]
fn nobody_to_deal_to_is_no_assignment() {
    assert!(assign(&orders(3), &BTreeMap::new()).is_empty());
}

/// A group at any moment: who owns what (several may claim the same), in which generation.
fn groups() -> impl Strategy<Value = (Topics, BTreeMap<String, Candidate>)> {
    let owned = prop::collection::btree_set(0..12_i32, 0..12);
    let members = prop::collection::btree_map("[a-z]{1,3}", (owned, -1..4_i32), 1..6);
    (0..12_i32, members).prop_map(|(count, members)| {
        let topics = orders(count);
        let members = members.into_iter().map(|(id, (owned, generation))| {
            let owned: Vec<i32> = owned.into_iter().collect();
            candidate(&id, &topics, &owned, generation)
        });
        let members = members.collect();
        (topics, members)
    })
}

/// The most partitions that can stay in any balanced assignment, by trying every choice of who is one above the even part.
fn most_kept(owned: &[usize], partitions: usize) -> usize {
    let (even, above) = (partitions / owned.len(), partitions % owned.len());
    (0_u32..1 << owned.len())
        .filter(|chosen| usize::try_from(chosen.count_ones()).unwrap() == above)
        .map(|chosen| {
            let quota = |index: usize| even + usize::from(chosen & (1 << index) != 0);
            let kept = owned.iter().enumerate();
            kept.map(|(index, owned)| quota(index).min(*owned)).sum()
        })
        .max()
        .unwrap()
}

proptest! {
    #[test]
    fn nothing_is_dealt_twice_or_while_another_works_on_it((topics, members) in groups()) {
        let shares = assign(&topics, &members);
        prop_assert_eq!(&shares, &assign(&topics, &members), "deterministic");
        prop_assert!(shares.keys().eq(members.keys()), "everybody gets an answer");
        let mut seen = BTreeSet::new();
        for (id, share) in &shares {
            for found in share.partitions.iter().chain(&share.give_up) {
                prop_assert!(seen.insert(found.clone()), "{} twice", found);
            }
            for found in &share.partitions {
                let newest = members.iter().filter(|(_, other)| other.subscription.owned.contains(found))
                    .map(|(_, other)| other.subscription.generation).max();
                let own = members[id].subscription.owned.contains(found)
                    .then_some(members[id].subscription.generation);
                prop_assert!(newest.is_none() || own == newest, "{} has another owner", found);
            }
            for found in &share.give_up {
                prop_assert!(members[id].subscription.owned.contains(found));
            }
        }
        let all: BTreeSet<_> = (0..topics["orders"]).map(partition).collect();
        prop_assert_eq!(seen, all, "complete, what is given up counted in");
    }

    #[test]
    fn after_the_hand_over_it_is_complete_balanced_and_stays((topics, members) in groups()) {
        let first = assign(&topics, &members);
        let next = told_next(&members, &first, 5);
        let second = assign(&topics, &next);
        let sizes: Vec<_> = second.values().map(|share| share.partitions.len()).collect();
        let count = usize::try_from(topics["orders"]).unwrap();
        prop_assert_eq!(sizes.iter().sum::<usize>(), count);
        prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{:?}", sizes);
        prop_assert!(second.values().all(|share| share.give_up.is_empty()));
        let third = assign(&topics, &told_next(&next, &second, 6));
        prop_assert_eq!(&third, &second, "nothing moves without a reason");
    }

    #[test]
    fn as_few_as_possible_move((topics, members) in groups()) {
        let owned: BTreeMap<&str, usize> = {
            let mut owned: BTreeMap<&str, usize> = members.keys().map(|id| (id.as_str(), 0)).collect();
            let ranked: Vec<_> = members.iter().map(|(id, found)| (id.as_str(), found)).collect();
            for (found, owner) in owners(&ranked) {
                if found.partition < topics["orders"] {
                    *owned.get_mut(owner).unwrap() += 1;
                }
            }
            owned
        };
        let sizes: Vec<_> = owned.values().copied().collect();
        let total: usize = sizes.iter().sum();
        let shares = assign(&topics, &members);
        let moved: usize = shares.values().map(|share| share.give_up.len()).sum();
        let count = usize::try_from(topics["orders"]).unwrap();
        prop_assert_eq!(total - moved, most_kept(&sizes, count));
    }
}
