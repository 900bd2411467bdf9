use std::cell::Cell;

use proptest::prelude::*;

use super::*;

/// A waiter: who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Who {
    flow: u32,
    member: u32,
}

fn class(flow: u32, weight: u32, member: u32) -> Class {
    Class {
        flow,
        weight: NonZeroU32::new(weight).unwrap(),
        member,
    }
}

fn wait(turns: &mut Turns<Who>, class: Class) -> Place {
    let Class { flow, member, .. } = class;
    turns.wait(class, Kind::First, Who { flow, member })
}

fn next(turns: &mut Turns<Who>) -> Option<Who> {
    turns
        .take(|_| Some(Begun::First), |_| Some(()))
        .map(|(who, ())| who)
}

/// The next turn goes to a waiter of these classes, each of which has one at a time that comes back at once.
fn rounds(turns: &mut Turns<Who>, classes: &[Class], count: usize) -> Vec<Who> {
    let taken = |turns: &mut Turns<Who>| {
        let who = next(turns).unwrap();
        let again = classes
            .iter()
            .find(|class| (class.flow, class.member) == (who.flow, who.member));
        wait(turns, *again.unwrap());
        who
    };
    (0..count).map(|_| taken(turns)).collect()
}

fn of_flow(taken: &[Who], flow: u32) -> usize {
    taken.iter().filter(|who| who.flow == flow).count()
}

/// Invariant 1: the share is the flow's, and even between its members.
#[test]
fn a_flow_of_a_thousand_members_does_not_outweigh_one_member_of_three_times_the_weight() {
    let mut classes = vec![class(0, 3, 0)];
    classes.extend((0..1_000).map(|member| class(1, 1, member)));
    let mut turns = Turns::new();
    for class in &classes {
        wait(&mut turns, *class);
    }
    let taken = rounds(&mut turns, &classes, 4_000);
    assert_eq!(of_flow(&taken, 0), 3_000);
    for member in 0..1_000 {
        let turns = taken
            .iter()
            .filter(|who| (who.flow, who.member) == (1, member));
        assert_eq!(turns.count(), 1, "member {member}");
    }
}

/// Invariant 2: what was not asked for is neither kept nor saved up.
#[test]
fn a_flow_without_work_gives_its_turns_away_and_saves_nothing_up() {
    let (heavy, light) = (class(0, 3, 0), class(1, 1, 0));
    let mut turns = Turns::new();
    wait(&mut turns, light);
    assert_eq!(of_flow(&rounds(&mut turns, &[light], 500), 1), 500);
    wait(&mut turns, heavy);
    let taken = rounds(&mut turns, &[heavy, light], 400);
    assert!((299..=301).contains(&of_flow(&taken, 0)), "{taken:?}");
    assert!(of_flow(&taken[..8], 1) >= 1, "nothing is made up for");
}

/// Invariant 2: whoever has one waiter at a time does not begin anew with each.
#[test]
fn who_comes_back_at_once_does_not_overtake_its_weight() {
    let (deep, single) = (class(0, 3, 0), class(1, 1, 0));
    let mut turns = Turns::new();
    for _ in 0..400 {
        wait(&mut turns, deep);
    }
    wait(&mut turns, single);
    let mut served = 0;
    for _ in 0..400 {
        if next(&mut turns).unwrap().flow == 1 {
            served += 1;
            wait(&mut turns, single);
        }
    }
    assert!((99..=101).contains(&served), "{served}");
}

/// Invariant 3.
#[test]
fn a_shallow_member_waits_for_one_round() {
    let mut turns = Turns::new();
    for member in 0..10 {
        for _ in 0..100 {
            wait(&mut turns, class(0, 1, member));
        }
    }
    wait(&mut turns, class(0, 1, 10));
    let before = std::iter::from_fn(|| next(&mut turns)).take_while(|who| who.member != 10);
    assert_eq!(before.count(), 10);
}

/// Invariants 1 and 3: what is begun goes first in its flow, and leaves the other flow its share.
#[test]
fn what_was_begun_goes_first_and_takes_nothing_from_another_flow() {
    let mut turns = Turns::new();
    for _ in 0..40 {
        wait(&mut turns, class(0, 1, 0));
        wait(&mut turns, class(1, 1, 0));
    }
    // Told apart by their member.
    for _ in 0..10 {
        turns.wait(class(0, 1, 1), Kind::Again, Who { flow: 0, member: 1 });
    }
    let taken: Vec<_> = (0..20).map(|_| next(&mut turns).unwrap()).collect();
    assert_eq!(of_flow(&taken, 1), 10, "{taken:?}");
    assert_eq!(taken.iter().filter(|who| who.member == 1).count(), 10);
}

/// Invariant 4.
#[test]
fn whom_nothing_fits_keeps_its_place() {
    let mut turns = Turns::new();
    for member in 0..3 {
        wait(&mut turns, class(0, 1, member));
    }
    let mut not_0 = |who: &Who| (who.member != 0).then_some(());
    let taken = turns.take(|_| Some(Begun::First), &mut not_0).unwrap().0;
    assert_eq!(taken.member, 1);
    assert_eq!(next(&mut turns).unwrap().member, 0);
    assert_eq!(next(&mut turns).unwrap().member, 2);
    assert!(turns.is_empty());
}

/// Invariant 5.
#[test]
fn turns_without_a_wait_are_charged_and_unused_ones_given_back() {
    let classes = [class(0, 1, 0), class(1, 1, 0)];
    let mut turns = Turns::new();
    for class in classes {
        wait(&mut turns, class);
    }
    for _ in 0..10 {
        turns.charge(classes[0]);
    }
    let taken = rounds(&mut turns, &classes, 10);
    assert!(of_flow(&taken, 1) >= 9, "{taken:?}");
    for _ in 0..10 {
        turns.give_back(classes[0]);
    }
    let taken = rounds(&mut turns, &classes, 10);
    assert!((4..=6).contains(&of_flow(&taken, 1)), "{taken:?}");
}

/// Invariants 2 and 5: turns that came to nothing are no lead over a flow that comes after them.
#[test]
fn turns_that_were_given_back_keep_no_newcomer_waiting() {
    let classes = [class(0, 1, 0), class(1, 1, 0)];
    let mut turns = Turns::new();
    wait(&mut turns, classes[0]);
    rounds(&mut turns, &classes, 64);
    for _ in 0..64 {
        turns.give_back(classes[0]);
    }
    wait(&mut turns, classes[1]);
    let taken = rounds(&mut turns, &classes, 8);
    assert_eq!(of_flow(&taken, 1), 4, "{taken:?}");
    // Those that were used still count.
    turns.charge(classes[0]);
    turns.charge(classes[0]);
    let taken = rounds(&mut turns, &classes, 8);
    assert_eq!(of_flow(&taken, 1), 5, "{taken:?}");
}

#[test]
fn who_leaves_is_gone_and_the_rest_keeps_its_order() {
    let mut turns = Turns::new();
    let places: Vec<_> = (0..3)
        .map(|member| wait(&mut turns, class(0, 1, member)))
        .collect();
    turns.leave(places[0]);
    turns.leave(places[0]);
    assert_eq!(next(&mut turns).unwrap().member, 1);
    turns.leave(places[1]);
    turns.leave(places[2]);
    assert!(turns.is_empty());
    assert_eq!(next(&mut turns), None);
}

/// With a thousand members one waiter is looked at for each turn.
#[test]
fn a_turn_costs_no_look_at_those_behind_it() {
    let mut turns = Turns::new();
    for member in 0..1_000 {
        for _ in 0..3 {
            wait(&mut turns, class(member % 7, 1 + member % 5, member));
        }
    }
    let looks = Cell::new(0);
    let look = |_: &Who| {
        looks.set(looks.get() + 1);
        Some(())
    };
    for _ in 0..3_000 {
        turns.take(|_| Some(Begun::First), look).unwrap();
    }
    assert!(turns.is_empty());
    assert_eq!(looks.get(), 3_000);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Come {
        flow: usize,
        member: u32,
        kind: Kind,
    },
    Leave(usize),
    Take,
    Charge(usize),
    GiveBack(usize),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::First), Just(Kind::Again), Just(Kind::Part)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 0..4_u32, kind())
            .prop_map(|(flow, member, kind)| Step::Come { flow, member, kind }),
        1 => any::<usize>().prop_map(Step::Leave),
        4 => Just(Step::Take),
        1 => (0..3_usize).prop_map(Step::Charge),
        1 => (0..3_usize).prop_map(Step::GiveBack),
    ]
}

proptest! {
    /// Invariants 2 and 3, whatever happens: nobody is lost or served twice, a turn is taken while anybody waits, and a class's waiters of
    /// one kind are served in the order they came.
    #[test]
    fn everybody_has_one_turn_in_order(steps in prop::collection::vec(step(), 1..300), weights in prop::array::uniform3(1..1_000_u32)) {
        let mut turns = Turns::new();
        let mut there: Vec<(u32, Place)> = Vec::new();
        let mut number = 0;
        for step in steps {
            let of = |flow: usize, member| class(u32::try_from(flow).unwrap(), weights[flow], member);
            match step {
                Step::Come { flow, member, kind } => {
                    number += 1;
                    there.push((number, turns.wait(of(flow, member), kind, number)));
                }
                Step::Leave(index) if !there.is_empty() => {
                    let (_, place) = there.remove(index % there.len());
                    turns.leave(place);
                }
                Step::Leave(_) => {}
                Step::Take => {
                    let taken = turns.take(|_| Some(Begun::First), |_| Some(())).map(|(number, ())| number);
                    prop_assert_eq!(taken.is_some(), !there.is_empty());
                    if let Some(taken) = taken {
                        let index = there.iter().position(|(number, _)| *number == taken);
                        let (_, place) = there.remove(index.expect("it waits"));
                        let is_alike = |other: &Place| {
                            (other.class, other.kind) == (place.class, place.kind)
                        };
                        prop_assert!(there.iter().all(|(number, other)| *number > taken || !is_alike(other)));
                    }
                }
                Step::Charge(flow) => turns.charge(of(flow, 0)),
                Step::GiveBack(flow) => turns.give_back(of(flow, 0)),
            }
            prop_assert_eq!(turns.is_empty(), there.is_empty());
        }
    }

    /// Invariant 1, in any window: of two flows that wait all the time, the turns of each over its weight differ by at most one turn of each.
    #[test]
    fn shares_are_proportional(
        weights in prop::collection::vec(1..1_000_u32, 2..5),
        members in 1..5_u32,
        before in 0..200_usize,
        window in 1..2_000_usize,
    ) {
        let flows = || (0_u32..).zip(&weights);
        let classes: Vec<_> = flows()
            .flat_map(|(flow, weight)| (0..members).map(move |member| class(flow, *weight, member)))
            .collect();
        let mut turns = Turns::new();
        for class in &classes {
            wait(&mut turns, *class);
            wait(&mut turns, *class);
        }
        rounds(&mut turns, &classes, before);
        let taken = rounds(&mut turns, &classes, window);
        for (one, weight) in flows() {
            for (other, its_weight) in flows() {
                let (weight, its_weight) = (i64::from(*weight), i64::from(*its_weight));
                let count = |flow| i64::try_from(of_flow(&taken, flow)).unwrap();
                // Both sides times both weights. One more for what a step is rounded by.
                let apart = count(one) * its_weight - count(other) * weight;
                prop_assert!(apart.abs() <= weight + its_weight + 1, "{one}: {apart}");
            }
        }
    }

    /// Nobody starves: a document of a shallow member waits for at most one round of its flow's members, and meanwhile the others have what
    /// their weights give them.
    #[test]
    fn a_wait_is_bounded(weight in 1..1_000_u32, other in 1..1_000_u32, members in 1..20_u32) {
        let (mine, heavy) = (|member| class(0, weight, member), class(1, other, 0));
        let classes: Vec<_> = (0..members).map(mine).chain([heavy]).collect();
        let mut turns = Turns::new();
        for class in &classes {
            wait(&mut turns, *class);
            wait(&mut turns, *class);
        }
        rounds(&mut turns, &classes, 100);
        wait(&mut turns, mine(members));
        let of_flow = u64::from(members) + 1;
        let bound = of_flow + (of_flow + 1) * u64::from(other).div_ceil(u64::from(weight)) + 1;
        let mut waited = 0;
        loop {
            let who = next(&mut turns).unwrap();
            if who.member == members {
                break;
            }
            waited += 1;
            prop_assert!(waited <= bound, "{waited} > {bound}");
            let again = classes.iter().find(|class| (class.flow, class.member) == (who.flow, who.member));
            wait(&mut turns, *again.unwrap());
        }
    }
}
