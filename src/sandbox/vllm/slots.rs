//! The places of running sequences, whose number may change while they are held.
//!
//! Invariants
//! 1. No more places are held than there are, but for what was held before their number fell, and for one holder that wants more
//!    than there are: it gets them when nobody else holds any.
//! 2. Who waits is served in the order of arrival; nobody overtakes, however few places it wants.
//! 3. Who leaves gives back what it held, or leaves the queue; then the next ones are served at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

#[derive(Debug)]
pub(super) struct Slots {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Places that there are; at least one.
    places: usize,
    held: usize,
    /// In the order of their tickets, which is the order of arrival. Bounded by the calls that the engine takes.
    queue: VecDeque<Waiter>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    wanted: usize,
    served: oneshot::Sender<()>,
}

impl State {
    const fn fits(&self, wanted: usize) -> bool {
        self.held == 0 || self.held.saturating_add(wanted) <= self.places
    }

    fn serve(&mut self) {
        while let Some(first) = self.queue.front()
            && self.fits(first.wanted)
            && let Some(first) = self.queue.pop_front()
        {
            self.held = self.held.saturating_add(first.wanted);
            // One that is just leaving is no longer in the queue: it gives back what it never used.
            let _is_leaving = first.served.send(()).is_err();
        }
    }
}

impl Slots {
    /// `places` of at least one.
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                places: places.max(1),
                held: 0,
                queue: VecDeque::new(),
                next_ticket: 0,
            }),
        })
    }

    /// Changes how many places there are; holders keep theirs.
    pub(super) fn set_places(&self, places: usize) {
        let mut state = self.state();
        state.places = places.max(1);
        state.serve();
    }

    /// Waits for this many places and holds them until the answer is dropped.
    ///
    /// # Cancel safety
    /// Safe: a call that is dropped leaves the queue and holds nothing.
    pub(super) async fn hold(self: &Arc<Self>, wanted: usize) -> Held {
        let (held, turn) = self.queue_up(wanted);
        // The sender is dropped unused only with the queue, which `held` keeps alive.
        drop(turn.await);
        held
    }

    fn queue_up(self: &Arc<Self>, wanted: usize) -> (Held, oneshot::Receiver<()>) {
        let (served, turn) = oneshot::channel();
        let mut state = self.state();
        let ticket = state.next_ticket;
        state.next_ticket = ticket.saturating_add(1);
        state.queue.push_back(Waiter {
            ticket,
            wanted,
            served,
        });
        state.serve();
        drop(state);
        let held = Held {
            slots: Arc::clone(self),
            ticket,
            wanted,
        };
        (held, turn)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Places that are held, or waited for.
#[derive(Debug)]
pub(super) struct Held {
    slots: Arc<Slots>,
    ticket: u64,
    wanted: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        match state
            .queue
            .binary_search_by_key(&self.ticket, |waiter| waiter.ticket)
        {
            Ok(place) => drop(state.queue.remove(place)),
            Err(_was_served) => state.held = state.held.saturating_sub(self.wanted),
        }
        state.serve();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    impl Slots {
        fn held(&self) -> usize {
            self.state().held
        }
    }

    /// Invariant 1: holders outlive a smaller number, and nobody is let in before it is kept again.
    #[tokio::test]
    async fn fewer_places_let_holders_finish() {
        let slots = Slots::new(3);
        let mut holders = Vec::new();
        for _ in 0..3 {
            holders.push(slots.hold(1).await);
        }
        slots.set_places(1);
        assert_eq!(slots.held(), 3);
        let mut waiting = Box::pin(slots.hold(1));
        for left in [2, 1] {
            drop(holders.pop());
            assert!((&mut waiting).now_or_never().is_none(), "{left} hold on");
        }
        drop(holders.pop());
        let _last = (&mut waiting).now_or_never().unwrap();
        assert_eq!(slots.held(), 1);
    }

    #[tokio::test]
    async fn more_places_serve_the_queue_at_once() {
        let slots = Slots::new(1);
        let _first = slots.hold(1).await;
        let (_second, mut second) = slots.queue_up(1);
        let (_third, mut third) = slots.queue_up(1);
        slots.set_places(2);
        assert!(second.try_recv().is_ok());
        assert!(third.try_recv().is_err());
        slots.set_places(0);
        assert_eq!(slots.state().places, 1, "there is always one");
    }

    /// Invariants 1 and 2: who wants more than there are waits until all are free, and those behind it wait too.
    #[tokio::test]
    async fn a_large_want_is_served_alone_and_in_its_turn() {
        let slots = Slots::new(2);
        let first = slots.hold(1).await;
        let (large, mut large_turn) = slots.queue_up(5);
        let (_small, mut small_turn) = slots.queue_up(1);
        assert!(large_turn.try_recv().is_err() && small_turn.try_recv().is_err());
        drop(first);
        assert!(large_turn.try_recv().is_ok());
        assert!(small_turn.try_recv().is_err());
        drop(large);
        assert!(small_turn.try_recv().is_ok());
    }

    /// Invariant 3: before its turn, and between its turn and the first look at it.
    #[tokio::test]
    async fn who_leaves_leaves_nothing_behind() {
        let slots = Slots::new(1);
        let first = slots.hold(1).await;
        let (blocking, _) = slots.queue_up(3);
        let (served, mut turn) = slots.queue_up(1);
        drop(blocking);
        assert!(turn.try_recv().is_err());
        drop(first);
        assert_eq!(slots.held(), 1);
        drop(served);
        assert_eq!(slots.held(), 0);
    }
}
