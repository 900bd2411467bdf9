use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;

fn cache(bytes_max: u64) -> Cache<u32> {
    Cache::new(NonZeroU64::new(bytes_max).unwrap())
}

fn key(number: u8) -> CacheKey {
    CacheKey::new([[number].as_slice()])
}

fn begin(look: Look<u32>) -> Flight<u32> {
    match look {
        Look::Begin(flight) => flight,
        other => panic!("{other:?}"),
    }
}

fn wait(look: Look<u32>) -> Waiter<u32> {
    match look {
        Look::Wait(waiter) => waiter,
        other => panic!("{other:?}"),
    }
}

fn hit(look: Look<u32>) -> u32 {
    match look {
        Look::Hit(value) => value,
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_differ_by_content_and_by_where_a_part_ends() {
    let key = |parts: &[&str]| CacheKey::new(parts.iter().map(|part| part.as_bytes()));
    let lists: [&[&str]; 7] = [
        &[],
        &[""],
        &["", ""],
        &["ab"],
        &["a", "b"],
        &["ab", ""],
        &["b", "a"],
    ];
    for (index, one) in lists.iter().enumerate() {
        for (other_index, other) in lists.iter().enumerate() {
            assert_eq!(key(one) == key(other), index == other_index);
        }
    }
}

#[test]
fn an_answer_is_found_again_until_the_least_used_makes_room() {
    let cache = cache(2 * (ENTRY_BYTES + 100));
    for number in [1, 2] {
        begin(cache.look(key(number))).land(number.into(), 100);
    }
    assert_eq!(hit(cache.look(key(1))), 1);
    begin(cache.look(key(3))).land(3, 100);
    assert_eq!(hit(cache.look(key(1))), 1);
    assert_eq!(hit(cache.look(key(3))), 3);
    drop(begin(cache.look(key(2))));
    let full = CacheLevel {
        entries: 2,
        bytes: 2 * (ENTRY_BYTES + 100),
        flights: 0,
    };
    assert_eq!(cache.level(), full);
}

/// Invariant 1.
#[test]
fn what_is_heavier_than_the_bound_is_given_to_those_who_wait_and_not_kept() {
    let cache = cache(ENTRY_BYTES + 100);
    begin(cache.look(key(1))).land(1, 100);
    let flight = begin(cache.look(key(2)));
    let waiter = wait(cache.look(key(2)));
    flight.land(2, 101);
    assert_eq!(hit(waiter.wait().now_or_never().unwrap()), 2);
    drop(begin(cache.look(key(2))));
    assert_eq!(hit(cache.look(key(1))), 1, "nothing had to go for it");
}

/// Invariants 2 and 3.
#[test]
fn all_who_wait_get_the_one_answer() {
    let cache = cache(10_000);
    let flight = begin(cache.look(key(1)));
    let mut waiters: Vec<_> = (0..5)
        .map(|_| Box::pin(wait(cache.look(key(1))).wait()))
        .collect();
    for waiter in &mut waiters {
        assert!(waiter.now_or_never().is_none());
    }
    drop(begin(cache.look(key(2))));
    flight.land(7, 1);
    for waiter in waiters {
        assert_eq!(hit(waiter.now_or_never().unwrap()), 7);
    }
    assert_eq!(cache.level().flights, 0);
}

/// Invariant 3: each flight fails until the last of those who wait has asked itself.
#[test]
fn a_flight_that_is_dropped_hands_over_to_one_of_those_who_wait() {
    let cache = cache(10_000);
    let mut flight = begin(cache.look(key(1)));
    let mut waiters: Vec<_> = (0..4).map(|_| wait(cache.look(key(1)))).collect();
    while !waiters.is_empty() {
        drop(flight);
        let mut next = None;
        let mut again = Vec::new();
        for waiter in waiters {
            match waiter.wait().now_or_never().expect("the flight has ended") {
                Look::Begin(flight) => assert!(next.replace(flight).is_none(), "two ask"),
                Look::Wait(waiter) => again.push(waiter),
                Look::Hit(value) => panic!("{value}"),
            }
        }
        flight = next.expect("nobody asks");
        waiters = again;
    }
    flight.land(9, 1);
    assert_eq!(hit(cache.look(key(1))), 9);
}

/// Invariant 3: whoever would have been next may be gone.
#[test]
fn a_waiter_that_is_dropped_holds_nobody_up() {
    let cache = cache(10_000);
    let flight = begin(cache.look(key(1)));
    let mut first = Box::pin(wait(cache.look(key(1))).wait());
    let mut second = Box::pin(wait(cache.look(key(1))).wait());
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    drop(flight);
    drop(first);
    drop(begin(second.now_or_never().unwrap()));
}

/// An answer that came while a waiter had not looked yet, and is forgotten again, still reaches it.
#[test]
fn a_waiter_that_comes_late_gets_the_answer_although_it_was_forgotten() {
    let cache = cache(ENTRY_BYTES + 100);
    let flight = begin(cache.look(key(1)));
    let waiter = wait(cache.look(key(1)));
    flight.land(1, 100);
    begin(cache.look(key(2))).land(2, 100);
    drop(begin(cache.look(key(1))));
    assert_eq!(hit(waiter.wait().now_or_never().unwrap()), 1);
}

/// What one asker does, and at which of its turns it gives up.
#[derive(Debug, Clone)]
struct Asker {
    key: u8,
    call_turns: u8,
    succeeds: bool,
    gives_up_after: Option<u8>,
}

fn asker() -> impl Strategy<Value = Asker> {
    (
        0_u8..3,
        0_u8..4,
        any::<bool>(),
        proptest::option::of(0_u8..6),
    )
        .prop_map(|(key, call_turns, succeeds, gives_up_after)| Asker {
            key,
            call_turns,
            succeeds,
            gives_up_after,
        })
}

async fn turn() {
    let mut first = true;
    poll_fn(|context| {
        if std::mem::take(&mut first) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

/// Asks as the client does. True when it got an answer, false when its own call failed.
async fn ask(cache: &Cache<u32>, asker: &Asker, asking: &RefCell<BTreeSet<u8>>) -> bool {
    struct Asking<'a>(&'a RefCell<BTreeSet<u8>>, u8);
    impl Drop for Asking<'_> {
        fn drop(&mut self) {
            self.0.borrow_mut().remove(&self.1);
        }
    }
    let mut look = cache.look(key(asker.key));
    loop {
        match look {
            Look::Hit(value) => {
                assert_eq!(value, u32::from(asker.key));
                return true;
            }
            Look::Wait(waiter) => look = waiter.wait().await,
            Look::Begin(flight) => {
                assert!(asking.borrow_mut().insert(asker.key), "two ask at once");
                let asking = Asking(asking, asker.key);
                for _ in 0..asker.call_turns {
                    turn().await;
                }
                drop(asking);
                if asker.succeeds {
                    flight.land(asker.key.into(), 10);
                }
                return asker.succeeds;
            }
        }
    }
}

proptest! {
    /// Invariants 2 and 3 over random interleavings: askers that succeed, fail and give up at any moment. All who stay come to an end,
    /// polled only when they were woken, and none is left without having asked itself or got an answer.
    #[test]
    fn nobody_waits_for_ever_and_no_two_ask_at_once(
        askers in proptest::collection::vec(asker(), 1..12),
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 400),
    ) {
        let cache = cache(10_000);
        let asking = RefCell::new(BTreeSet::new());
        let woken: Vec<_> = askers.iter().map(|_| Arc::new(Woken::default())).collect();
        let mut running: Vec<_> = askers
            .iter()
            .enumerate()
            .map(|(number, asker)| (number, 0, Box::pin(ask(&cache, asker, &asking))))
            .collect();
        let mut order = order.into_iter();
        while !running.is_empty() {
            let ready: Vec<_> = (0..running.len())
                .filter(|at| woken[running[*at].0].is_set())
                .collect();
            prop_assert!(!ready.is_empty(), "those who are left are never woken");
            let at = order.next().map_or(ready[0], |index| ready[index.index(ready.len())]);
            let (number, polls, future) = &mut running[at];
            *polls += 1;
            let (number, asker) = (*number, &askers[*number]);
            if asker.gives_up_after.is_some_and(|after| *polls > after) {
                drop(running.swap_remove(at));
                continue;
            }
            woken[number].clear();
            let waker = Arc::clone(&woken[number]).into();
            let mut context = std::task::Context::from_waker(&waker);
            if let Poll::Ready(answered) = Pin::new(future).poll(&mut context) {
                prop_assert!(answered || !asker.succeeds);
                drop(running.swap_remove(at));
            }
        }
        prop_assert_eq!(cache.level().flights, 0);
    }

    /// Invariant 1, and that exactly the least recently used have gone, against a list in the order of use.
    #[test]
    fn the_bound_is_kept_and_the_least_recently_used_go(
        bytes_max in 1_u64..3_000,
        steps in proptest::collection::vec((0_u8..8, 0_u64..1_200, any::<bool>()), 1..80),
    ) {
        let mut kept = Kept::new(bytes_max);
        let mut model: Vec<(u8, u64)> = Vec::new();
        for (number, weight, insert) in steps {
            let known = model.iter().position(|(known, _)| *known == number);
            if insert {
                kept.insert(key(number), number, weight);
                if let Some(at) = known {
                    model.remove(at);
                }
                let bytes = weight + ENTRY_BYTES;
                if bytes <= bytes_max {
                    model.push((number, bytes));
                    while model.iter().map(|(_, bytes)| bytes).sum::<u64>() > bytes_max {
                        model.remove(0);
                    }
                }
            } else {
                prop_assert_eq!(kept.get(key(number)), known.map(|_| number));
                if let Some(at) = known {
                    let entry = model.remove(at);
                    model.push(entry);
                }
            }
            prop_assert_eq!(kept.bytes, model.iter().map(|(_, bytes)| bytes).sum::<u64>());
            prop_assert!(kept.bytes <= bytes_max);
            let uses: Vec<_> = kept.uses.values().copied().collect();
            let expected: Vec<_> = model.iter().map(|(number, _)| key(*number)).collect();
            prop_assert_eq!(uses, expected);
            prop_assert_eq!(kept.entries.len(), model.len());
        }
    }
}

/// Whether a task was woken since it was last polled; new ones are.
#[derive(Debug)]
struct Woken(std::sync::atomic::AtomicBool);

impl Default for Woken {
    fn default() -> Self {
        Self(true.into())
    }
}

impl Woken {
    fn is_set(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn clear(&self) {
        self.0.store(false, std::sync::atomic::Ordering::SeqCst);
    }
}

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}
