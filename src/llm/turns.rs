//! Whose turn is next, of those that wait for a slot: flows share by weight, and the members of a flow share evenly.
//!
//! What a flow and a member are is the caller's business. Flows are queued start-time fair: the next turn of each begins at a virtual time, the
//! earliest is taken, and it moves that flow's next one on by a step that is the smaller the larger the weight is.
//!
//! # Invariants
//! 1. Of two flows that wait all the time, each is served in proportion to its weight: the turns of each, divided by its weight, are never
//!    further apart than one turn of each, divided so.
//! 2. A turn is never left unused while somebody waits whom it fits. Nothing is saved up: a flow that comes back begins where the others are,
//!    and one that has just had its turn not before its next one.
//! 3. Within a flow documents and parts of long documents have their turns in turn, and of the documents those that were begun go before
//!    the others, or behind them where the caller says so; within each of the three the members that wait, one waiter each; within a member
//!    the waiters in the order they came. So nobody waits for more than one round of the members of its flow, and for what was begun.
//! 4. A waiter whom what is free does not fit keeps its place, and those behind it go before it.
//! 5. A turn is what a call takes, wherever it came from: one without a wait is charged to its flow, one that came to no call is given back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;

/// Virtual time that a turn takes at weight 1. Large, so that a step is as good as exact at any weight; the 64 bits above it count turns.
const TURN: u128 = 1 << 64;

/// Who asks: with whom it shares, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// What shares by weight with others of its kind.
    pub flow: u32,
    /// Its weight, at least 1.
    pub weight: NonZeroU32,
    /// What shares evenly with the other members of the flow.
    pub member: u32,
}

impl Class {
    /// The only member of the only flow.
    pub const ONLY: Self = Self {
        flow: 0,
        weight: NonZeroU32::MIN,
        member: 0,
    };

    fn step(self) -> u128 {
        TURN / u128::from(self.weight.get())
    }
}

impl Default for Class {
    fn default() -> Self {
        Self::ONLY
    }
}

/// When the documents of a flow go that were begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    /// Before those that were not.
    First,
    /// After them.
    Last,
}

/// What a turn is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first call of a document.
    #[default]
    First,
    /// A further one of a document that has had a turn. What is begun is ended first: behind what was read ahead it would keep open all that
    /// is answered meanwhile.
    Again,
    /// A call for a part of a long document.
    Part,
}

/// A place among those that wait, to leave it by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    class: Class,
    kind: Kind,
    number: u64,
}

/// Those that wait.
#[derive(Debug)]
pub(super) struct Turns<T> {
    flows: BTreeMap<u32, Flow<T>>,
    /// The flows of which somebody waits, by the begin of the next turn of each.
    order: BTreeSet<(u128, u32)>,
    /// The latest begin of a turn that was taken, and not given back.
    now: u128,
    /// How many have come.
    came: u64,
}

#[derive(Debug)]
struct Flow<T> {
    step: u128,
    /// When its next turn begins.
    begins: u128,
    again: Members<T>,
    documents: Members<T>,
    parts: Members<T>,
    parts_next: bool,
}

/// Waiters by member. A member is in the ring while it has any.
#[derive(Debug)]
struct Members<T> {
    ring: VecDeque<u32>,
    queues: BTreeMap<u32, VecDeque<(u64, T)>>,
}

/// Where a waiter was found.
struct Found<R> {
    in_ring: usize,
    in_queue: usize,
    fits: R,
}

impl<T> Turns<T> {
    /// Nobody waits.
    pub(super) const fn new() -> Self {
        Self {
            flows: BTreeMap::new(),
            order: BTreeSet::new(),
            now: 0,
            came: 0,
        }
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Somebody comes, to the end of its member's queue.
    pub(super) fn wait(&mut self, class: Class, kind: Kind, waiter: T) -> Place {
        self.came += 1;
        let number = self.came;
        let flow = self
            .flows
            .entry(class.flow)
            .or_insert_with(|| Flow::new(class.step()));
        if flow.is_empty() {
            flow.begins = flow.begins.max(self.now);
            self.order.insert((flow.begins, class.flow));
        }
        flow.of(kind).push(class.member, number, waiter);
        Place {
            class,
            kind,
            number,
        }
    }

    /// Somebody goes without a turn; nothing happens when it has had it.
    pub(super) fn leave(&mut self, place: Place) {
        let Place { class, number, .. } = place;
        let Some(flow) = self.flows.get_mut(&class.flow) else {
            return;
        };
        let was_there = flow.of(place.kind).leave(class.member, number);
        if was_there && flow.is_empty() {
            self.order.remove(&(flow.begins, class.flow));
        }
    }

    /// Whether somebody of a flow waits.
    pub(super) fn waits(&self, flow: u32) -> bool {
        self.flows.get(&flow).is_some_and(|flow| !flow.is_empty())
    }

    /// Takes the first waiter in turn for whom `fits` has something, and whose flow may go: `begun` says of a flow when those of its
    /// documents go that were begun, or that none goes. Its turn is charged.
    pub(super) fn take<R>(
        &mut self,
        begun: impl Fn(u32) -> Option<Begun>,
        mut fits: impl FnMut(&T) -> Option<R>,
    ) -> Option<(T, R)> {
        let (begins, id, kind, found) = self.order.iter().find_map(|(begins, id)| {
            let begun = begun(*id)?;
            let (kind, found) = self.flows.get(id)?.find(begun, &mut fits)?;
            Some((*begins, *id, kind, found))
        })?;
        let flow = self.flows.get_mut(&id)?;
        let waiter = flow.of(kind).take(found.in_ring, found.in_queue)?;
        flow.parts_next = kind != Kind::Part;
        self.order.remove(&(begins, id));
        // Not always the earliest: that one may be of a flow that waits for something else.
        self.now = self.now.max(begins);
        flow.begins = begins.saturating_add(flow.step);
        if !flow.is_empty() {
            self.order.insert((flow.begins, id));
        }
        Some((waiter, found.fits))
    }

    /// A turn was taken without a wait here.
    pub(super) fn charge(&mut self, class: Class) {
        let now = self.now;
        self.move_on(class, |begins| begins.max(now).saturating_add(class.step()));
    }

    /// A turn came to nothing.
    pub(super) fn give_back(&mut self, class: Class) {
        self.move_on(class, |begins| begins.saturating_sub(class.step()));
        // Or whoever comes next would wait for as many turns as came to nothing.
        let taken = |flow: &Flow<T>| flow.begins.saturating_sub(flow.step);
        self.now = self.flows.values().map(taken).max().unwrap_or_default();
    }

    fn move_on(&mut self, class: Class, begins: impl FnOnce(u128) -> u128) {
        let flow = self
            .flows
            .entry(class.flow)
            .or_insert_with(|| Flow::new(class.step()));
        let waits = self.order.remove(&(flow.begins, class.flow));
        flow.begins = begins(flow.begins);
        if waits {
            self.order.insert((flow.begins, class.flow));
        }
    }
}

impl<T> Flow<T> {
    const fn new(step: u128) -> Self {
        Self {
            step,
            begins: 0,
            again: Members::new(),
            documents: Members::new(),
            parts: Members::new(),
            parts_next: false,
        }
    }

    fn is_empty(&self) -> bool {
        let all = [&self.again, &self.documents, &self.parts];
        all.into_iter().all(|members| members.ring.is_empty())
    }

    const fn of(&mut self, kind: Kind) -> &mut Members<T> {
        match kind {
            Kind::First => &mut self.documents,
            Kind::Again => &mut self.again,
            Kind::Part => &mut self.parts,
        }
    }

    fn find<R>(
        &self,
        begun: Begun,
        fits: &mut impl FnMut(&T) -> Option<R>,
    ) -> Option<(Kind, Found<R>)> {
        let mut documents = [(Kind::Again, &self.again), (Kind::First, &self.documents)];
        if begun == Begun::Last {
            documents.reverse();
        }
        let [one, two] = documents;
        let parts = (Kind::Part, &self.parts);
        let in_turn = if self.parts_next {
            [parts, one, two]
        } else {
            [one, two, parts]
        };
        let mut in_turn = in_turn.into_iter();
        in_turn.find_map(|(kind, members)| Some((kind, members.find(fits)?)))
    }
}

impl<T> Members<T> {
    const fn new() -> Self {
        Self {
            ring: VecDeque::new(),
            queues: BTreeMap::new(),
        }
    }

    fn push(&mut self, member: u32, number: u64, waiter: T) {
        let queue = self.queues.entry(member).or_insert_with(|| {
            self.ring.push_back(member);
            VecDeque::new()
        });
        queue.push_back((number, waiter));
    }

    fn find<R>(&self, fits: &mut impl FnMut(&T) -> Option<R>) -> Option<Found<R>> {
        self.ring.iter().enumerate().find_map(|(in_ring, member)| {
            let mut queue = self.queues.get(member)?.iter().enumerate();
            queue.find_map(|(in_queue, (_, waiter))| {
                let fits = fits(waiter)?;
                Some(Found {
                    in_ring,
                    in_queue,
                    fits,
                })
            })
        })
    }

    /// The member of the waiter goes to the end of the ring.
    fn take(&mut self, in_ring: usize, in_queue: usize) -> Option<T> {
        let member = self.ring.remove(in_ring)?;
        let queue = self.queues.get_mut(&member)?;
        let waiter = queue.remove(in_queue);
        if queue.is_empty() {
            self.queues.remove(&member);
        } else {
            self.ring.push_back(member);
        }
        waiter.map(|(_, waiter)| waiter)
    }

    fn leave(&mut self, member: u32, number: u64) -> bool {
        let Some(queue) = self.queues.get_mut(&member) else {
            return false;
        };
        let Ok(index) = queue.binary_search_by_key(&number, |(number, _)| *number) else {
            return false;
        };
        queue.remove(index);
        if queue.is_empty() {
            self.queues.remove(&member);
            self.ring.retain(|other| *other != member);
        }
        true
    }
}

#[cfg(test)]
mod tests;
