use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;

fn pool(limits: &[usize]) -> Arc<Pool> {
    Arc::new(Pool::new(limits))
}

fn now(pool: &Arc<Pool>, wish: Wish) -> Option<Permit> {
    pool.acquire(wish).now_or_never()
}

const ANY: Wish = Wish {
    avoid: Lanes(0),
    alone: false,
    kind: Kind::First,
    class: Class::ONLY,
};
const ALONE: Wish = Wish { alone: true, ..ANY };
const PART: Wish = Wish {
    kind: Kind::Part,
    ..ANY
};
const AGAIN: Wish = Wish {
    kind: Kind::Again,
    ..ANY
};

fn not(lane: usize) -> Wish {
    let mut avoid = Lanes::default();
    avoid.insert(lane);
    Wish { avoid, ..ANY }
}

#[test]
fn documents_and_parts_have_their_turns() {
    let pool = pool(&[1]);
    let first = now(&pool, ANY).unwrap();
    let mut parts: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire(PART))).collect();
    let mut document = Box::pin(pool.acquire(ANY));
    for waiter in &mut parts {
        assert!(waiter.now_or_never().is_none());
    }
    assert!((&mut document).now_or_never().is_none());
    drop(first);
    let part = (&mut parts[0]).now_or_never().unwrap();
    drop(part);
    let turn = (&mut document).now_or_never().unwrap();
    assert!((&mut parts[1]).now_or_never().is_none());
    drop(turn);
    // Nobody else waits: one part after the other.
    for part in &mut parts[1..] {
        drop(part.now_or_never().unwrap());
    }
}

#[test]
fn waiters_are_served_in_the_order_they_came() {
    let pool = pool(&[1]);
    let slot = now(&pool, ANY).unwrap();
    let mut first = Box::pin(pool.acquire(ANY));
    let mut second = Box::pin(pool.acquire(ANY));
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    drop(slot);
    assert!((&mut second).now_or_never().is_none());
    let slot = (&mut first).now_or_never().unwrap();
    drop(slot);
    assert!((&mut second).now_or_never().is_some());
}

/// Invariant 5: a waiter that leaves, before or after its slot was on the way, keeps nobody from it.
#[test]
fn a_waiter_that_leaves_gives_its_slot_to_the_next() {
    let pool = pool(&[1]);
    let slot = now(&pool, ANY).unwrap();
    let mut gone = Box::pin(pool.acquire(ANY));
    let mut leaves_late = Box::pin(pool.acquire(ANY));
    let mut stays = Box::pin(pool.acquire(ANY));
    for waiter in [&mut gone, &mut leaves_late, &mut stays] {
        assert!(waiter.now_or_never().is_none());
    }
    drop(gone);
    drop(slot);
    drop(leaves_late);
    assert!(stays.now_or_never().is_some());
}

/// Invariant 2: what was begun does not wait behind what was read ahead, and keeps no part out.
#[test]
fn a_document_that_was_begun_goes_before_those_that_were_not() {
    let pool = pool(&[1]);
    let slot = now(&pool, ANY).unwrap();
    let mut part = Box::pin(pool.acquire(PART));
    let mut read_ahead: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire(ANY))).collect();
    let mut again: Vec<_> = (0..2).map(|_| Box::pin(pool.acquire(AGAIN))).collect();
    for waiter in read_ahead.iter_mut().chain(&mut again).chain([&mut part]) {
        assert!(waiter.now_or_never().is_none());
    }
    drop(slot);
    let mut in_turn = vec![&mut part];
    in_turn.extend(&mut again);
    in_turn.extend(&mut read_ahead);
    for (place, waiter) in in_turn.into_iter().enumerate() {
        let slot = waiter.now_or_never();
        drop(slot.unwrap_or_else(|| panic!("number {place} does not have its turn")));
    }
}

/// Invariant 2: on trial the next document is tried, not the one that was refused.
#[test]
fn on_trial_a_document_that_was_begun_waits_for_the_others() {
    let pool = pool(&[4]);
    pool.set_on_trial(0, true);
    let refused = now(&pool, ANY).unwrap();
    let mut begun: Vec<_> = (0..2).map(|_| Box::pin(pool.acquire(AGAIN))).collect();
    let mut others: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire(ANY))).collect();
    for waiter in begun.iter_mut().chain(&mut others) {
        assert!(waiter.now_or_never().is_none());
    }
    drop(refused);
    for waiter in &mut others {
        assert!(begun.iter_mut().all(|begun| begun.now_or_never().is_none()));
        drop(waiter.now_or_never().unwrap());
    }
    let refused = (&mut begun[0]).now_or_never().unwrap();
    let mut next = Box::pin(pool.acquire(ANY));
    assert!((&mut next).now_or_never().is_none());
    // Once it is over, what is begun is ended first.
    pool.set_limit(0, 1);
    pool.set_on_trial(0, false);
    drop(refused);
    assert!((&mut next).now_or_never().is_none());
    drop((&mut begun[1]).now_or_never().unwrap());
    assert!(next.now_or_never().is_some());
}

/// Invariant 2, also where many slots become free before anybody who was served can ask again.
#[test]
fn slots_are_shared_by_weight() {
    let pool = pool(&[16]);
    let wish = |flow: u32, weight: u32| Wish {
        class: Class {
            flow,
            weight: weight.try_into().unwrap(),
            member: 0,
        },
        ..ANY
    };
    let mut running: Vec<_> = (0..16).map(|_| now(&pool, ANY).unwrap()).collect();
    let mut waiters: Vec<_> = (0..200)
        .flat_map(|_| [(7, wish(7, 1)), (8, wish(8, 3))])
        .map(|(flow, wish)| (flow, Box::pin(pool.acquire(wish))))
        .collect();
    for (_, waiter) in &mut waiters {
        assert!(waiter.now_or_never().is_none());
    }
    let (mut light, mut heavy) = (0, 0);
    for _ in 0..10 {
        running.clear();
        waiters.retain_mut(|(flow, waiter)| match waiter.now_or_never() {
            None => true,
            Some(mut permit) => {
                permit.charge(1);
                running.push(permit);
                *if *flow == 7 { &mut light } else { &mut heavy } += 1;
                false
            }
        });
    }
    assert_eq!((light, heavy), (40, 120));
}

/// Invariant 5: a document that needs no call takes no turn from its flow.
#[test]
fn a_slot_without_a_call_costs_no_turn() {
    let pool = pool(&[1]);
    let of = |flow| Wish {
        class: Class {
            flow,
            ..Class::ONLY
        },
        ..ANY
    };
    let mut running = now(&pool, of(0)).unwrap();
    running.charge(1);
    let mut unused: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire(of(1)))).collect();
    let mut other = Box::pin(pool.acquire(of(0)));
    let mut last = Box::pin(pool.acquire(of(1)));
    for waiter in unused.iter_mut().chain([&mut other, &mut last]) {
        assert!(waiter.now_or_never().is_none());
    }
    drop(running);
    for waiter in &mut unused {
        drop(waiter.now_or_never().unwrap());
    }
    let mut permit = (&mut last).now_or_never().expect("none was its turn");
    permit.charge(1);
    drop(permit);
    assert!((&mut other).now_or_never().is_some());
}

#[test]
fn the_lane_with_the_fewest_outstanding_tokens_is_chosen() {
    let pool = pool(&[4, 4]);
    let mut big = now(&pool, ANY).unwrap();
    big.charge(10_000);
    let others: Vec<_> = (0..3)
        .map(|_| {
            let mut permit = now(&pool, ANY).unwrap();
            permit.charge(100);
            permit
        })
        .collect();
    assert!(others.iter().all(|permit| permit.lane() != big.lane()));
    drop(big);
    assert_eq!(pool.lanes().iter().map(|lane| lane.tokens).max(), Some(300));
}

/// Invariant 2.
#[test]
fn a_lane_that_failed_is_avoided_while_another_is_open() {
    let pool = pool(&[2, 1]);
    let elsewhere = now(&pool, not(0)).unwrap();
    assert_eq!(elsewhere.lane(), 1);
    let mut waiter = Box::pin(pool.acquire(not(0)));
    assert!((&mut waiter).now_or_never().is_none(), "the other is full");
    assert_eq!(now(&pool, ANY).unwrap().lane(), 0, "it keeps nobody out");
    drop(elsewhere);
    assert_eq!((&mut waiter).now_or_never().unwrap().lane(), 1);
    let mut waiter = Box::pin(pool.acquire(not(0)));
    pool.set_closed(1, true);
    assert_eq!(
        (&mut waiter).now_or_never().unwrap().lane(),
        0,
        "the only one"
    );
}

#[test]
fn nobody_moves_into_the_lane_of_a_suspect() {
    let pool = pool(&[2, 2]);
    let mut elsewhere = now(&pool, not(0)).unwrap();
    elsewhere.charge(1_000);
    let suspect = now(&pool, ALONE).unwrap();
    assert_eq!(suspect.lane(), 0);
    elsewhere.prefer(0);
    assert_eq!(elsewhere.lane(), 1);
}

/// Invariant 1: a limit that falls debits what runs, one that rises lets in at once.
#[test]
fn limits_move_while_calls_run() {
    let pool = pool(&[3]);
    let mut running: Vec<_> = (0..3).map(|_| now(&pool, ANY).unwrap()).collect();
    pool.set_limit(0, 1);
    let mut waiter = Box::pin(pool.acquire(ANY));
    assert!((&mut waiter).now_or_never().is_none());
    drop(running.pop());
    drop(running.pop());
    assert!((&mut waiter).now_or_never().is_none(), "one still runs");
    pool.set_limit(0, 2);
    assert!((&mut waiter).now_or_never().is_some());
}

#[test]
fn a_closed_lane_lets_nobody_in() {
    let pool = pool(&[1, 1]);
    pool.set_closed(0, true);
    assert!(pool.is_usable());
    let permit = now(&pool, ANY).unwrap();
    assert_eq!(permit.lane(), 1);
    pool.set_closed(1, true);
    drop(permit);
    assert!(!pool.is_usable());
    let mut waiter = Box::pin(pool.acquire(ANY));
    assert!((&mut waiter).now_or_never().is_none());
    pool.set_closed(0, false);
    assert_eq!((&mut waiter).now_or_never().unwrap().lane(), 0);
}

/// Invariant 3.
#[test]
fn a_suspect_is_alone_in_its_lane_while_the_other_lane_goes_on() {
    let pool = pool(&[2, 2]);
    let (one, two) = (now(&pool, ANY).unwrap(), now(&pool, ANY).unwrap());
    assert_ne!(one.lane(), two.lane());
    let three = now(&pool, not(one.lane())).unwrap();
    let mut suspect = Box::pin(pool.acquire(ALONE));
    assert!((&mut suspect).now_or_never().is_none());
    // The lane with less in it is being emptied.
    let four = now(&pool, ANY);
    assert!(four.is_none(), "one lane is kept, the other is full");
    let (kept, busy) = (one.lane(), two.lane());
    drop(one);
    let alone = (&mut suspect).now_or_never().unwrap();
    assert!(alone.is_alone());
    assert_eq!(alone.lane(), kept);
    let mut second = Box::pin(pool.acquire(ALONE));
    assert!((&mut second).now_or_never().is_none(), "one at a time");
    drop(three);
    assert_eq!(now(&pool, ANY).unwrap().lane(), busy);
    drop(alone);
    assert!((&mut second).now_or_never().unwrap().is_alone());
}

/// Invariant 3: a suspect that comes again and again keeps nobody from being asked.
#[test]
fn between_two_suspects_somebody_else_has_a_turn() {
    let pool = pool(&[4]);
    let first = now(&pool, ALONE).unwrap();
    let mut suspect = Box::pin(pool.acquire(ALONE));
    let mut others = [Box::pin(pool.acquire(ANY)), Box::pin(pool.acquire(ANY))];
    assert!((&mut suspect).now_or_never().is_none());
    assert!(
        others
            .iter_mut()
            .all(|other| other.now_or_never().is_none())
    );
    drop(first);
    let other = (&mut others[0]).now_or_never().unwrap();
    assert!((&mut others[1]).now_or_never().is_none(), "one of them");
    drop(other);
    assert!((&mut suspect).now_or_never().unwrap().is_alone());
}

#[test]
fn a_suspect_that_leaves_or_whose_lane_closes_keeps_nobody_out() {
    let pool = pool(&[2, 1]);
    let running = now(&pool, not(1)).unwrap();
    pool.set_closed(1, true);
    let mut suspect = Box::pin(pool.acquire(ALONE));
    assert!((&mut suspect).now_or_never().is_none());
    assert!(now(&pool, ANY).is_none(), "kept for the suspect");
    drop(suspect);
    let second = now(&pool, ANY).unwrap();
    let mut suspect = Box::pin(pool.acquire(ALONE));
    assert!((&mut suspect).now_or_never().is_none());
    pool.set_closed(0, true);
    pool.set_closed(1, false);
    assert_eq!((&mut suspect).now_or_never().unwrap().lane(), 1);
    drop((running, second));
}

/// Invariants 3 and 4: what is kept for a suspect is not kept from those whose turn comes before it.
#[test]
fn a_trial_that_begins_while_a_lane_is_kept_goes_on() {
    let pool = pool(&[2]);
    let running = now(&pool, ANY).unwrap();
    let mut suspect = Box::pin(pool.acquire(ALONE));
    assert!((&mut suspect).now_or_never().is_none());
    pool.set_on_trial(0, true);
    let mut others = [Box::pin(pool.acquire(ANY)), Box::pin(pool.acquire(ANY))];
    for other in &mut others {
        assert!(other.now_or_never().is_none(), "one runs");
    }
    drop(running);
    for other in &mut others {
        drop(other.now_or_never().expect("it is their turn"));
    }
    assert!(suspect.now_or_never().unwrap().is_alone());
}

/// Invariant 3: the same where somebody else comes before the next suspect, and only the kept lane fits it.
#[test]
fn the_only_lane_that_fits_is_not_kept_from_whose_turn_it_is() {
    let pool = pool(&[2, 2]);
    let first = now(&pool, ALONE).unwrap();
    let (kept, busy) = (first.lane(), 1 - first.lane());
    let mut stays = now(&pool, not(kept)).unwrap();
    stays.charge(1_000);
    let mut moves = now(&pool, not(kept)).unwrap();
    drop(first);
    moves.prefer(kept);
    assert_eq!(moves.lane(), kept);
    let mut suspect = Box::pin(pool.acquire(ALONE));
    assert!((&mut suspect).now_or_never().is_none(), "none is empty");
    let mut other = Box::pin(pool.acquire(not(busy)));
    let turn = (&mut other).now_or_never().expect("it is its turn");
    assert_eq!(turn.lane(), kept);
    drop(moves);
    assert!((&mut suspect).now_or_never().is_none());
    drop(turn);
    assert!(suspect.now_or_never().unwrap().is_alone());
    drop(stays);
}

/// Invariant 4.
#[test]
fn on_trial_one_call_runs_at_a_time() {
    let pool = pool(&[4, 4]);
    pool.set_on_trial(0, true);
    let first = now(&pool, ANY).unwrap();
    let mut second = Box::pin(pool.acquire(ANY));
    let mut third = Box::pin(pool.acquire(ANY));
    assert!((&mut second).now_or_never().is_none());
    assert!((&mut third).now_or_never().is_none());
    drop(first);
    let second = (&mut second).now_or_never().unwrap();
    assert!((&mut third).now_or_never().is_none());
    pool.set_on_trial(0, false);
    assert!((&mut third).now_or_never().is_some());
    drop(second);
}

/// Invariant 4.
#[test]
fn a_flow_on_trial_holds_no_other() {
    let other = Wish {
        class: Class {
            flow: 1,
            ..Class::ONLY
        },
        ..ANY
    };
    let pool = pool(&[2]);
    pool.set_on_trial(0, true);
    let mut tried = now(&pool, ANY).unwrap();
    let mut next = Box::pin(pool.acquire(ANY));
    assert!((&mut next).now_or_never().is_none());
    let first = now(&pool, other).unwrap();
    assert!(pool.may_go(&tried) && pool.may_go(&first));
    assert!(now(&pool, other).is_none(), "the lane is full");
    tried.rest();
    assert!((&mut next).now_or_never().is_none());
    let second = now(&pool, other).unwrap();
    assert!(now(&pool, other).is_none(), "the lane is full");
    drop(first);
    assert!(
        (&mut next).now_or_never().is_none(),
        "it still has its turn"
    );
    drop(tried);
    assert!((&mut next).now_or_never().is_some());
    drop(second);
    assert_eq!(pool.running(0), 0);
}

/// A lane is kept for a suspect until a trial begins: others are tried first then, and must find it free.
#[test]
fn a_suspect_on_trial_keeps_no_lane_from_those_before_it() {
    let pool = pool(&[1]);
    let running = now(&pool, ANY).unwrap();
    let mut suspect = Box::pin(pool.acquire(ALONE));
    assert!((&mut suspect).now_or_never().is_none());
    let mut other = Box::pin(pool.acquire(ANY));
    assert!((&mut other).now_or_never().is_none());
    pool.set_on_trial(0, true);
    drop(running);
    let other = (&mut other).now_or_never().unwrap();
    assert!((&mut suspect).now_or_never().is_none());
    drop(other);
    assert!((&mut suspect).now_or_never().is_some());
}

#[test]
fn a_preferred_lane_is_taken_unless_it_is_the_busier_one() {
    let pool = pool(&[2, 2]);
    let mut first = now(&pool, ANY).unwrap();
    first.charge(100);
    let preferred = 1 - first.lane();
    first.prefer(preferred);
    assert_eq!(first.lane(), preferred);
    let mut second = now(&pool, ANY).unwrap();
    second.charge(10);
    assert_ne!(second.lane(), preferred);
    second.prefer(preferred);
    assert_ne!(second.lane(), preferred, "it is the busier one");
    let lanes = pool.lanes();
    assert_eq!(lanes.iter().map(|lane| lane.running).sum::<usize>(), 2);
    drop((first, second));
    assert!(
        pool.lanes()
            .iter()
            .all(|lane| lane.running == 0 && lane.tokens == 0)
    );
}

#[derive(Debug, Clone)]
enum Step {
    Ask(Option<usize>, bool, Kind),
    Take,
    Leave(usize),
    End(usize),
    Limit(usize, usize),
    Close(usize, bool),
    Trial(u32, bool),
    Charge(usize, u64),
    Prefer(usize, usize),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::First), Just(Kind::Again), Just(Kind::Part)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (proptest::option::of(0..3_usize), any::<bool>(), kind()).prop_map(|(avoid, alone, kind)| Step::Ask(avoid, alone && avoid.is_none(), kind)),
        4 => Just(Step::Take),
        2 => (0..8_usize).prop_map(Step::Leave),
        4 => (0..8_usize).prop_map(Step::End),
        1 => (0..3_usize, 0..4_usize).prop_map(|(lane, limit)| Step::Limit(lane, limit)),
        1 => (0..3_usize, any::<bool>()).prop_map(|(lane, closed)| Step::Close(lane, closed)),
        1 => (0..2_u32, any::<bool>()).prop_map(|(flow, on)| Step::Trial(flow, on)),
        1 => (0..8_usize, 0..3_usize).prop_map(|(index, lane)| Step::Prefer(index, lane)),
        2 => (0..8_usize, 0..1000_u64).prop_map(|(index, tokens)| Step::Charge(index, tokens)),
    ]
}

proptest! {
    /// Whatever happens: counts are those of the slots that are out, nobody is alone in company, and at the end everybody is served, also on
    /// trial and with one lane.
    #[test]
    fn no_slot_is_lost_and_no_bound_is_passed(steps in proptest::collection::vec(step(), 1..80), on_trial in any::<bool>(), only in proptest::option::of(0..3_usize)) {
        let pool = pool(&[2, 1, 3]);
        let mut waiting = Vec::new();
        let mut out: Vec<Permit> = Vec::new();
        for step in steps {
            match step {
                Step::Ask(avoid, alone, kind) => {
                    let pool = Arc::clone(&pool);
                    let wish = Wish { avoid: avoid.map_or(Lanes(0), |lane| not(lane).avoid), alone, kind, class: Class { flow: u32::from(alone), member: 1, ..Class::ONLY } };
                    let mut waiter = Box::pin(async move { pool.acquire(wish).await });
                    match (&mut waiter).now_or_never() {
                        Some(permit) => out.push(permit),
                        None => waiting.push(waiter),
                    }
                }
                Step::Take => waiting.retain_mut(|waiter| match waiter.now_or_never() {
                    Some(permit) => { out.push(permit); false }
                    None => true,
                }),
                Step::Leave(index) => if index < waiting.len() { drop(waiting.remove(index)); },
                Step::End(index) => if index < out.len() { drop(out.remove(index)); },
                Step::Limit(lane, limit) => pool.set_limit(lane, limit),
                Step::Close(lane, closed) => pool.set_closed(lane, closed),
                Step::Trial(flow, on) => pool.set_on_trial(flow, on),
                Step::Prefer(index, lane) => if let Some(permit) = out.get_mut(index) { permit.prefer(lane); },
                Step::Charge(index, tokens) => if let Some(permit) = out.get_mut(index) { permit.charge(tokens); },
            }
            // Slots on their way to a waiter are counted in their lane and not in `out`.
            let on_their_way = waiting.len();
            let lanes = pool.lanes();
            let running: usize = lanes.iter().map(|lane| lane.running).sum();
            prop_assert!(running >= out.len() && running <= out.len() + on_their_way);
            for permit in &out {
                if permit.is_alone() {
                    let company = lanes[permit.lane()].running;
                    prop_assert_eq!(company, 1, "alone with {} others", company - 1);
                }
            }
        }
        pool.set_on_trial(0, on_trial);
        pool.set_on_trial(1, on_trial);
        for lane in 0..3 {
            pool.set_closed(lane, only.is_some_and(|only| only != lane));
            pool.set_limit(lane, 2);
        }
        // Whoever has a slot ends, until nobody waits.
        let rounds = AtomicUsize::new(0);
        loop {
            out.clear();
            waiting.retain_mut(|waiter| match waiter.now_or_never() {
                Some(permit) => { out.push(permit); false }
                None => true,
            });
            if waiting.is_empty() && out.is_empty() { break; }
            prop_assert!(rounds.fetch_add(1, Ordering::Relaxed) < 200, "somebody waits for ever");
        }
        prop_assert!(pool.lanes().iter().all(|lane| lane.running == 0 && lane.tokens == 0));
    }
}

/// Invariant 6.
#[tokio::test]
async fn while_it_is_paused_nobody_is_let_in_and_nobody_goes() {
    let pool = pool(&[1, 2]);
    let let_in = now(&pool, ANY).unwrap();
    assert!(pool.may_go(&let_in));
    pool.set_paused(true);
    assert!(!pool.may_go(&let_in));
    let mut waiters = [ANY, PART, ALONE].map(|wish| Box::pin(pool.acquire(wish)));
    for waiter in &mut waiters {
        assert!(waiter.now_or_never().is_none());
    }
    // What ends meanwhile makes no room.
    drop(let_in);
    for waiter in &mut waiters {
        assert!(waiter.now_or_never().is_none());
    }
    // A drain does not wait for it.
    assert!(pool.standing_still(0).now_or_never().is_some());
    pool.set_paused(false);
    assert!(pool.standing_still(0).now_or_never().is_none());
    for waiter in waiters {
        let permit = waiter.await;
        assert!(pool.may_go(&permit));
    }
}
