//! Who may call which endpoint now: slots of several endpoints, handed out to those who wait in the order of [`Turns`].
//!
//! Each endpoint is a *lane* with a limit of its own, which may rise and fall while calls run. A waiter is given the lane with the fewest
//! outstanding tokens among those that have room.
//!
//! # Invariants
//! 1. Nobody is let into a lane that is closed or full; one whose limit fell below what runs in it lets nobody in until enough has ended.
//! 2. Waiters are served in their turns, and of one class in the order they came. A waiter that avoids lanes waits for the others while one
//!    of them is open; those behind it, who can use what it does not want, go before it. Documents and parts of long documents are served in
//!    turn: a filing of hundreds of parts keeps nobody else out, and leaves nothing unused. A document that was begun goes before those that
//!    were not; on trial behind them, or those that were refused would be tried again and again.
//! 3. While a call is tried alone nothing else runs in its lane; at most one lane at a time is used for that, and between two such
//!    calls one of the others has its turn.
//! 4. Of a flow on trial at most one call runs over all lanes, and those of other flows go on.
//! 5. A slot comes back when it is dropped, wherever that happens; so does its turn, unless a call was made with it.
//! 6. While it is paused nobody is let in anywhere, and what was let in and has not called yet may not go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use super::turns::{Begun, Class, Kind, Place, Turns};

/// Of the mean of what calls hold in tokens, the newest call is one part in this many.
const MEAN_OVER: u64 = 16;

/// A set of lanes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lanes(u64);

const _: () = assert!(
    super::config::ENDPOINTS_MAX <= 64,
    "a set of lanes has a bit for each"
);

impl Lanes {
    pub(super) fn insert(&mut self, lane: usize) {
        self.0 |= Self::bit(lane);
    }

    pub(super) fn contains(self, lane: usize) -> bool {
        self.0 & Self::bit(lane) != 0
    }

    fn bit(lane: usize) -> u64 {
        u32::try_from(lane)
            .ok()
            .and_then(|lane| 1_u64.checked_shl(lane))
            .unwrap_or(0)
    }
}

/// What a waiter wishes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// Lanes that have failed for it. They bind while another is open.
    pub(super) avoid: Lanes,
    /// Nothing else may run in its lane.
    pub(super) alone: bool,
    /// What it is for.
    pub(super) kind: Kind,
    /// Whose turn it takes.
    pub(super) class: Class,
}

/// The right to make one call to one endpoint. It comes back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    pool: Arc<Pool>,
    lane: usize,
    tokens: u64,
    alone: bool,
    class: Class,
    /// Whether its call was made, or is about to be.
    is_used: bool,
    /// Whether its lane has it back already.
    rests: bool,
}

impl Permit {
    /// The endpoint's number.
    pub(super) const fn lane(&self) -> usize {
        self.lane
    }

    /// Whether nothing else runs in its lane.
    pub(super) const fn is_alone(&self) -> bool {
        self.alone
    }

    /// Says how many tokens the call holds that is made now, prompt and expected answer: the measure of an endpoint's load.
    pub(super) fn charge(&mut self, tokens: u64) {
        self.is_used = true;
        let mut state = self.pool.state();
        state.mean_tokens = state
            .mean_tokens
            .saturating_mul(MEAN_OVER - 1)
            .saturating_add(tokens)
            / MEAN_OVER;
        if let Some(lane) = state.lanes.get_mut(self.lane) {
            lane.tokens = lane
                .tokens
                .saturating_sub(self.tokens)
                .saturating_add(tokens);
        }
        self.tokens = tokens;
    }

    /// Moves to `lane` where that has room and is not the busier one. Not while it is alone.
    pub(super) fn prefer(&mut self, lane: usize) {
        if lane == self.lane || self.alone {
            return;
        }
        let mut state = self.pool.state();
        if state.on_trial.contains(&self.class.flow) {
            return;
        }
        let load = |index: usize| state.lanes.get(index).map(|lane| lane.tokens);
        // What we hold ourselves would move along.
        let here = load(self.lane).map(|tokens| tokens.saturating_sub(self.tokens));
        let is_busier = load(lane) > here;
        let has_room = state.lanes.get(lane).is_some_and(Lane::has_room);
        // A lane that is kept for a suspect is being emptied, so it would always look like the less busy one.
        if is_busier || !has_room || state.alone_in == Some(lane) {
            return;
        }
        if let Some(left) = state.lanes.get_mut(self.lane) {
            left.leave(self.tokens);
        }
        if let Some(entered) = state.lanes.get_mut(lane) {
            entered.enter(self.tokens);
        }
        self.lane = lane;
        self.pool.serve(state);
    }

    /// Its call is over: the lane is for others. On trial the others of its flow wait until it is dropped.
    pub(super) fn rest(&mut self) {
        let pool = Arc::clone(&self.pool);
        let mut state = pool.state();
        self.leave_lane(&mut state);
        pool.serve(state);
    }

    fn leave_lane(&mut self, state: &mut State) {
        if std::mem::replace(&mut self.rests, true) {
            return;
        }
        if let Some(lane) = state.lanes.get_mut(self.lane) {
            lane.leave(self.tokens);
        }
        if self.alone && state.alone_in == Some(self.lane) {
            state.alone_in = None;
            state.alone_runs = false;
            // What becomes of somebody else shows whether it was the document or the engine.
            state.others_first = true;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let pool = Arc::clone(&self.pool);
        let mut state = pool.state();
        self.leave_lane(&mut state);
        if !self.is_used {
            state.turns.give_back(self.class);
        }
        state.end(self.class);
        pool.serve(state);
    }
}

/// One endpoint's traffic.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lane {
    pub(super) limit: usize,
    pub(super) running: usize,
    /// Prompt and expected answer tokens of what runs.
    pub(super) tokens: u64,
    pub(super) is_closed: bool,
}

impl Lane {
    const fn has_room(&self) -> bool {
        !self.is_closed && self.running < self.limit
    }

    const fn enter(&mut self, tokens: u64) {
        self.running = self.running.saturating_add(1);
        self.tokens = self.tokens.saturating_add(tokens);
    }

    const fn leave(&mut self, tokens: u64) {
        self.running = self.running.saturating_sub(1);
        self.tokens = self.tokens.saturating_sub(tokens);
    }
}

#[derive(Debug)]
struct Waiter {
    avoid: Lanes,
    class: Class,
    grant: oneshot::Sender<Permit>,
}

/// A waiter's place in the queue; it leaves when this is dropped, unless it has had its turn.
struct Waiting<'a> {
    pool: &'a Arc<Pool>,
    place: Option<Place>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            let mut state = self.pool.state();
            state.turns.leave(place);
            // A suspect may have waited for it.
            self.pool.serve(state);
        }
    }
}

/// A slot that is on its way to its waiter.
struct Granted {
    grant: oneshot::Sender<Permit>,
    lane: usize,
    class: Class,
    alone: bool,
}

#[derive(Debug)]
struct State {
    lanes: Vec<Lane>,
    turns: Turns<Waiter>,
    /// Those that must be alone, in the order they came.
    suspects: VecDeque<(Class, oneshot::Sender<Permit>)>,
    /// The lane that is kept free for the first of them, or that one has.
    alone_in: Option<usize>,
    /// Whether one has it.
    alone_runs: bool,
    /// Whether somebody else's turn comes before the next of them.
    others_first: bool,
    /// The flows on trial.
    on_trial: BTreeSet<u32>,
    /// How many slots are out, by flow; no flow is in it without one.
    out: BTreeMap<u32, usize>,
    mean_tokens: u64,
    is_paused: bool,
}

/// The lanes and those who wait for one.
#[derive(Debug)]
pub(super) struct Pool {
    state: Mutex<State>,
    flow: watch::Sender<Flow>,
}

/// Whether calls can flow.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flow {
    /// Some lane is open.
    usable: bool,
    paused: bool,
    on_trial: BTreeSet<u32>,
}

impl Pool {
    /// One open lane for each limit; a limit is at least 1.
    pub(super) fn new(limits: &[usize]) -> Self {
        let lane = |limit: &usize| Lane {
            limit: (*limit).max(1),
            ..Lane::default()
        };
        Self {
            state: Mutex::new(State {
                lanes: limits.iter().map(lane).collect(),
                turns: Turns::new(),
                suspects: VecDeque::new(),
                alone_in: None,
                alone_runs: false,
                others_first: false,
                on_trial: BTreeSet::new(),
                out: BTreeMap::new(),
                mean_tokens: 0,
                is_paused: false,
            }),
            flow: watch::Sender::new(Flow {
                usable: true,
                paused: false,
                on_trial: BTreeSet::new(),
            }),
        }
    }

    /// Waits for a slot.
    ///
    /// # Cancel safety
    /// Safe: a waiter that is dropped loses its place, and a slot that was on its way to it goes to the next.
    pub(super) async fn acquire(self: &Arc<Self>, wish: Wish) -> Permit {
        loop {
            let (grant, granted) = oneshot::channel();
            let mut waiting = self.enter(wish, grant);
            // The queue lives as long as the pool and drops nobody who waits: an error cannot come, and would only cost the place.
            if let Ok(permit) = granted.await {
                waiting.place = None;
                return permit;
            }
        }
    }

    /// Sets how many calls may run in a lane at once; at least 1.
    pub(super) fn set_limit(self: &Arc<Self>, lane: usize, limit: usize) {
        self.change(lane, |lane| lane.limit = limit.max(1));
    }

    fn enter(self: &Arc<Self>, wish: Wish, grant: oneshot::Sender<Permit>) -> Waiting<'_> {
        let Wish {
            avoid,
            alone,
            kind,
            class,
        } = wish;
        let mut state = self.state();
        let place = if alone {
            state.suspects.push_back((class, grant));
            None
        } else {
            let waiter = Waiter {
                avoid,
                class,
                grant,
            };
            Some(state.turns.wait(class, kind, waiter))
        };
        self.serve(state);
        Waiting { pool: self, place }
    }

    /// Closes a lane, or opens it.
    pub(super) fn set_closed(self: &Arc<Self>, lane: usize, is_closed: bool) {
        self.change(lane, |lane| lane.is_closed = is_closed);
    }

    /// From now on nobody is let in, or everybody in turn again. What runs goes on.
    pub(super) fn set_paused(self: &Arc<Self>, paused: bool) {
        let mut state = self.state();
        state.is_paused = paused;
        self.note_flow(&state);
        self.serve(state);
    }

    /// From now on one call of that flow at a time, until it is over.
    pub(super) fn set_on_trial(self: &Arc<Self>, flow: u32, on_trial: bool) {
        let mut state = self.state();
        if on_trial {
            state.on_trial.insert(flow);
        } else {
            state.on_trial.remove(&flow);
        }
        self.note_flow(&state);
        self.serve(state);
    }

    /// Whether the call of `permit` may be made now: nothing is paused, its lane is open, and on trial no other of its flow runs.
    pub(super) fn may_go(&self, permit: &Permit) -> bool {
        let state = self.state();
        if state.is_paused {
            return false;
        }
        let is_open = state
            .lanes
            .get(permit.lane)
            .is_some_and(|lane| !lane.is_closed);
        let flow = permit.class.flow;
        is_open && (!state.on_trial.contains(&flow) || state.out.get(&flow) == Some(&1))
    }

    /// Whether some lane is open.
    pub(super) fn is_usable(&self) -> bool {
        self.flow.borrow().usable
    }

    /// Waits until the calls of that flow are on trial.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn on_trial(&self, id: u32) {
        self.wait_for(|flow| flow.on_trial.contains(&id)).await;
    }

    /// Waits until the calls of that flow stand still: no lane is open, all are paused, or they are on trial.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn standing_still(&self, id: u32) {
        self.wait_for(|flow| !flow.usable || flow.paused || flow.on_trial.contains(&id))
            .await;
    }

    async fn wait_for(&self, wanted: impl FnMut(&Flow) -> bool) {
        // The sender lives as long as `self`, so waiting cannot fail.
        drop(self.flow.subscribe().wait_for(wanted).await);
    }

    /// Under the lock, so that two changes cannot overtake each other.
    fn note_flow(&self, state: &State) {
        let flow = Flow {
            usable: state.lanes.iter().any(|lane| !lane.is_closed),
            paused: state.is_paused,
            on_trial: state.on_trial.clone(),
        };
        self.flow.send_if_modified(|was| {
            let is_other = *was != flow;
            *was = flow;
            is_other
        });
    }

    /// Whether nobody waits for a slot.
    pub(super) fn nobody_waits(&self) -> bool {
        let state = self.state();
        let mut suspects = state.suspects.iter();
        state.turns.is_empty() && suspects.all(|(_, suspect)| suspect.is_closed())
    }

    /// Calls that run in a lane.
    pub(super) fn running(&self, lane: usize) -> usize {
        self.state().lanes.get(lane).map_or(0, |lane| lane.running)
    }

    /// A snapshot of the lanes.
    pub(super) fn lanes(&self) -> Vec<Lane> {
        self.state().lanes.clone()
    }

    fn change(self: &Arc<Self>, lane: usize, change: impl FnOnce(&mut Lane)) {
        let mut state = self.state();
        if let Some(lane) = state.lanes.get_mut(lane) {
            change(lane);
        }
        self.note_flow(&state);
        self.serve(state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of another task leaves the counts whole: every change is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out what can be handed out. Slots leave after the lock is given back: one whose waiter has gone comes back through its drop.
    fn serve(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let mut grants = Vec::new();
        while let Some(granted) = state.next() {
            let Granted {
                grant,
                lane,
                class,
                alone,
            } = granted;
            let permit = Permit {
                pool: Arc::clone(self),
                lane,
                tokens: state.mean_tokens,
                alone,
                class,
                is_used: false,
                rests: false,
            };
            grants.push((grant, permit));
        }
        drop(state);
        for (grant, permit) in grants {
            drop(grant.send(permit));
        }
    }
}

impl State {
    /// The next waiter that can be let in, already counted in its lane.
    fn next(&mut self) -> Option<Granted> {
        if self.is_paused {
            return None;
        }
        let suspect = self.suspect_in_turn();
        let is_suspects_turn = suspect.is_some();
        if let Some(lane) = self.lane_for_suspect(is_suspects_turn)
            && let Some((class, grant)) = self.suspects.remove(suspect?)
        {
            self.alone_runs = true;
            self.turns.charge(class);
            self.begin(class, lane);
            return Some(Granted {
                grant,
                lane,
                class,
                alone: true,
            });
        }
        // A lane is kept for nobody while it is not a suspect's turn: it could be the only one, or the only one that fits.
        let is_kept = is_suspects_turn || self.alone_runs;
        let (lanes, kept) = (&self.lanes, self.alone_in.filter(|_| is_kept));
        // Without this each waiter would be asked whether nothing fits it.
        least_loaded(lanes, kept, Lanes::default())?;
        let fits = |waiter: &Waiter| least_loaded(lanes, kept, waiter.avoid);
        let (on_trial, out) = (&self.on_trial, &self.out);
        // On trial the next document is tried before one that was refused, and one at a time.
        let begun = |flow: u32| match (on_trial.contains(&flow), out.contains_key(&flow)) {
            (false, _) => Some(Begun::First),
            (true, false) => Some(Begun::Last),
            (true, true) => None,
        };
        let (waiter, lane) = self.turns.take(begun, fits)?;
        self.others_first = false;
        self.begin(waiter.class, lane);
        Some(Granted {
            grant: waiter.grant,
            lane,
            class: waiter.class,
            alone: false,
        })
    }

    /// A slot leaves.
    fn begin(&mut self, class: Class, lane: usize) {
        *self.out.entry(class.flow).or_default() += 1;
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.enter(self.mean_tokens);
        }
    }

    /// A slot came back.
    fn end(&mut self, class: Class) {
        if let Some(out) = self.out.get_mut(&class.flow) {
            *out -= 1;
            if *out == 0 {
                self.out.remove(&class.flow);
            }
        }
    }

    /// The first suspect whose turn it is. On trial others of its flow have theirs first, or the same suspect would be tried again and again.
    fn suspect_in_turn(&mut self) -> Option<usize> {
        self.suspects.retain(|(_, suspect)| !suspect.is_closed());
        if self.others_first && !self.turns.is_empty() {
            return None;
        }
        self.suspects.iter().position(|(class, _)| {
            let flow = class.flow;
            let is_free = !self.out.contains_key(&flow) && !self.turns.waits(flow);
            is_free || !self.on_trial.contains(&flow)
        })
    }

    /// The lane that has become free for a suspect, where it is the turn of one. Chooses one to become free where none was chosen.
    fn lane_for_suspect(&mut self, is_turn: bool) -> Option<usize> {
        if self.alone_runs {
            return None;
        }
        let is_open = |lane: usize| self.lanes.get(lane).is_some_and(|lane| !lane.is_closed);
        self.alone_in = self.alone_in.filter(|lane| is_open(*lane));
        if !is_turn {
            return None;
        }
        if self.alone_in.is_none() {
            let open = self
                .lanes
                .iter()
                .enumerate()
                .filter(|(_, lane)| !lane.is_closed);
            self.alone_in = open
                .min_by_key(|(_, lane)| lane.running)
                .map(|(index, _)| index);
        }
        self.alone_in
            .filter(|lane| self.lanes.get(*lane).is_some_and(|lane| lane.running == 0))
    }
}

/// The lane with room and the fewest outstanding tokens, except the one that is kept for a suspect; none of those to avoid while another is
/// open.
fn least_loaded(lanes: &[Lane], kept: Option<usize>, avoid: Lanes) -> Option<usize> {
    let open = || {
        let lanes = lanes.iter().enumerate();
        lanes.filter(|(_, lane)| !lane.is_closed)
    };
    let binds = open().any(|(index, _)| !avoid.contains(index));
    open()
        .filter(|(index, lane)| lane.has_room() && kept != Some(*index))
        .filter(|(index, _)| !(binds && avoid.contains(*index)))
        .min_by_key(|(_, lane)| (lane.tokens, lane.running))
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests;
