//! The engine behind the HTTP front: who runs, who waits, how long it takes.
//!
//! Invariants
//! 1. At most `max_num_seqs` sequences run; who comes beyond waits in the order of arrival. Those that run when the number falls
//!    finish.
//! 2. A call that is dropped (its client has left) gives back its place at once, running or waiting.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::faults::EngineState;
use super::slots::Slots;

/// How long a call takes, without the time that it waits: `base`, the prompt, the answer. The first two are its prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Every call.
    pub base: Duration,
    /// Added for each token of the prompt.
    pub per_prompt_token: Duration,
    /// Added for each token of the answer.
    pub per_output_token: Duration,
    /// Added for each token of the answer and each further sequence that runs when the call begins: what a full batch costs. A
    /// real engine pays it step by step, as sequences come and go; here the beginning counts for the whole call.
    pub per_output_token_running: Duration,
}

impl Latency {
    /// Answers at once.
    pub const ZERO: Self = Self::fixed(Duration::ZERO);

    /// The same for every call.
    #[must_use]
    pub const fn fixed(base: Duration) -> Self {
        Self {
            base,
            per_prompt_token: Duration::ZERO,
            per_output_token: Duration::ZERO,
            per_output_token_running: Duration::ZERO,
        }
    }

    /// The time of one call that begins when `running` sequences run, its own included.
    #[must_use]
    pub fn of(&self, prompt_tokens: usize, output_tokens: usize, running: usize) -> Duration {
        let per_token = self.per_output_token.saturating_add(times(
            self.per_output_token_running,
            running.saturating_sub(1),
        ));
        self.prefill(prompt_tokens)
            .saturating_add(times(per_token, output_tokens))
    }

    fn prefill(&self, prompt_tokens: usize) -> Duration {
        self.base
            .saturating_add(times(self.per_prompt_token, prompt_tokens))
    }
}

fn times(each: Duration, count: usize) -> Duration {
    each.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

impl Default for Latency {
    /// A fast card with a 7B model: 20 ms, and 10 000 prompt and 500 output tokens a second.
    fn default() -> Self {
        Self {
            base: Duration::from_millis(20),
            per_prompt_token: Duration::from_micros(100),
            per_output_token: Duration::from_millis(2),
            per_output_token_running: Duration::ZERO,
        }
    }
}

/// Why a call is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// `max_num_queued_reqs` is reached.
    Busy,
    /// `max_num_queued_tokens` is reached.
    Backlog,
    /// The server drains.
    Draining,
    /// The engine has died.
    Dead,
}

/// What is refused by a queue's bound.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QueueBounds {
    /// Sequences that run and wait together.
    pub(super) requests_max: Option<usize>,
    /// Prompt tokens of sequences that wait or are in their prefill; nobody is taken while there are so many.
    pub(super) tokens_max: Option<usize>,
}

/// How a call that was taken ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Ran {
    /// To its end.
    Done,
    /// The engine was paused when this share of the time (0 to 1) had passed.
    Aborted(f64),
}

/// How many sequences are where.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// Taken and not ended: running, waiting or hanging in a pause.
    taken: usize,
    waiting: usize,
    running: usize,
    peak_running: usize,
    /// Tokens that running sequences will hold at their end.
    tokens: usize,
    /// Prompt tokens of sequences that wait or are in their prefill.
    queued_tokens: usize,
}

/// A snapshot of [`Counts`] for gauges.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) waiting: usize,
    pub(super) running: usize,
    pub(super) peak_running: usize,
    pub(super) tokens: usize,
}

#[derive(Debug)]
pub(super) struct Engine {
    latency: Latency,
    bounds: QueueBounds,
    /// One per sequence that may run.
    slots: Arc<Slots>,
    counts: Mutex<Counts>,
    state: watch::Receiver<EngineState>,
    /// Bumped at each change of the counts, for those who wait for one.
    changed: watch::Sender<u64>,
}

impl Engine {
    pub(super) fn new(
        latency: Latency,
        max_num_seqs: usize,
        bounds: QueueBounds,
        state: watch::Receiver<EngineState>,
        changed: watch::Sender<u64>,
    ) -> Self {
        Self {
            latency,
            bounds,
            slots: Slots::new(max_num_seqs),
            counts: Mutex::new(Counts::default()),
            state,
            changed,
        }
    }

    pub(super) fn load(&self) -> Load {
        let counts = self.counts();
        Load {
            waiting: counts.waiting,
            running: counts.running,
            peak_running: counts.peak_running,
            tokens: counts.tokens,
        }
    }

    /// Takes a call of `sequences` answers, or says why not. vLLM asks this before it looks at the prompt.
    pub(super) fn admit(self: &Arc<Self>, sequences: usize) -> Result<Taken, Refused> {
        match *self.state.borrow() {
            EngineState::Dead => return Err(Refused::Dead),
            EngineState::Draining => return Err(Refused::Draining),
            EngineState::Serving | EngineState::Paused | EngineState::Scaling => {}
        }
        let mut counts = self.counts();
        if let Some(bound) = self.bounds.requests_max
            && counts.taken.saturating_add(sequences) > bound
        {
            return Err(Refused::Busy);
        }
        if let Some(bound) = self.bounds.tokens_max
            && counts.queued_tokens >= bound
        {
            return Err(Refused::Backlog);
        }
        counts.taken = counts.taken.saturating_add(sequences);
        drop(counts);
        Ok(Taken {
            engine: Arc::clone(self),
            sequences,
        })
    }

    /// Changes how many sequences may run; those that run finish.
    pub(super) fn set_max_num_seqs(&self, max_num_seqs: usize) {
        self.slots.set_places(max_num_seqs);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts());
        self.changed
            .send_modify(|version| *version = version.wrapping_add(1));
    }
}

/// A call that the engine has taken; dropping it takes it out again.
#[derive(Debug)]
pub(super) struct Taken {
    engine: Arc<Engine>,
    sequences: usize,
}

impl Taken {
    /// Waits for a slot, calls `begins`, and lets the time of the call pass.
    pub(super) async fn run(
        self,
        prompt_tokens: usize,
        output_tokens: usize,
        begins: impl FnOnce(),
    ) -> Result<Ran, Refused> {
        let engine = &self.engine;
        let mut state = engine.state.clone();
        let prompts = prompt_tokens.saturating_mul(self.sequences);
        let queued = Gauge::raise(engine, prompts, |counts| &mut counts.queued_tokens);
        serving(&mut state).await?;
        let _held = {
            let _waiting = Gauge::raise(engine, self.sequences, |counts| &mut counts.waiting);
            tokio::select! {
                biased;
                refused = died(&mut state) => return Err(refused),
                held = engine.slots.hold(self.sequences) => held,
            }
        };
        let _running = Gauge::raise(engine, self.sequences, |counts| &mut counts.running);
        let _tokens = Gauge::raise(
            engine,
            prompt_tokens.saturating_add(output_tokens.saturating_mul(self.sequences)),
            |counts| &mut counts.tokens,
        );
        let running = engine.load().running;
        let time = engine.latency.of(prompt_tokens, output_tokens, running);
        let start = Instant::now();
        begins();
        let passes = async {
            pass(engine.latency.prefill(prompt_tokens)).await;
            drop(queued);
            pass(time.saturating_sub(start.elapsed())).await;
        };
        tokio::select! {
            biased;
            left = stopped(&mut state) => match left {
                EngineState::Paused => Ok(Ran::Aborted(share(start.elapsed(), time))),
                EngineState::Dead
                | EngineState::Serving
                | EngineState::Draining
                | EngineState::Scaling => Err(Refused::Dead),
            },
            () = passes => Ok(Ran::Done),
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let sequences = self.sequences;
        self.engine
            .change(|counts| counts.taken = counts.taken.saturating_sub(sequences));
    }
}

/// Lets time pass; no time is not rounded up to the timer's next millisecond.
async fn pass(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

fn share(elapsed: Duration, time: Duration) -> f64 {
    if time.is_zero() {
        return 0.0;
    }
    (elapsed.as_secs_f64() / time.as_secs_f64()).clamp(0.0, 1.0)
}

/// Returns when the engine takes the call up: a pause is waited for.
async fn serving(state: &mut watch::Receiver<EngineState>) -> Result<(), Refused> {
    match state
        .wait_for(|state| *state != EngineState::Paused)
        .await
        .map(|state| *state)
    {
        // Who was taken before the server began to drain is served.
        Ok(EngineState::Serving | EngineState::Draining | EngineState::Scaling) => Ok(()),
        // The sender lives as long as the server: its end is the engine's.
        Ok(EngineState::Dead | EngineState::Paused) | Err(_) => Err(Refused::Dead),
    }
}

async fn died(state: &mut watch::Receiver<EngineState>) -> Refused {
    drop(state.wait_for(|state| *state == EngineState::Dead).await);
    Refused::Dead
}

/// Returns when calls that run do not go on.
async fn stopped(state: &mut watch::Receiver<EngineState>) -> EngineState {
    state
        .wait_for(|state| matches!(state, EngineState::Paused | EngineState::Dead))
        .await
        .map_or(EngineState::Dead, |state| *state)
}

/// Keeps one of the counts raised while it lives.
struct Gauge<'a> {
    engine: &'a Engine,
    amount: usize,
    count: fn(&mut Counts) -> &mut usize,
}

impl<'a> Gauge<'a> {
    fn raise(engine: &'a Engine, amount: usize, count: fn(&mut Counts) -> &mut usize) -> Self {
        engine.change(|counts| {
            let value = count(counts);
            *value = value.saturating_add(amount);
            counts.peak_running = counts.peak_running.max(counts.running);
        });
        Self {
            engine,
            amount,
            count,
        }
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.engine.change(|counts| {
            let value = (self.count)(counts);
            *value = value.saturating_sub(self.amount);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(
        max_num_seqs: usize,
        max_num_queued_reqs: Option<usize>,
    ) -> (Arc<Engine>, watch::Sender<EngineState>) {
        let (state, watched) = watch::channel(EngineState::Serving);
        let latency = Latency::fixed(Duration::from_secs(1));
        let changed = watch::Sender::new(0);
        let bounds = QueueBounds {
            requests_max: max_num_queued_reqs,
            tokens_max: None,
        };
        let engine = Engine::new(latency, max_num_seqs, bounds, watched, changed);
        (Arc::new(engine), state)
    }

    /// Invariant 1: one at a time, each second, in the order of arrival.
    #[tokio::test(start_paused = true)]
    async fn who_waits_runs_in_the_order_of_arrival() {
        let (engine, _state) = engine(1, None);
        let start = Instant::now();
        let ended = Arc::new(Mutex::new(Vec::new()));
        let calls: Vec<_> = (0..5_u64)
            .map(|number| {
                let taken = engine.admit(1).unwrap();
                let ended = Arc::clone(&ended);
                tokio::spawn(async move {
                    assert_eq!(taken.run(0, 0, || ()).await, Ok(Ran::Done));
                    ended
                        .lock()
                        .unwrap()
                        .push((number, start.elapsed().as_secs()));
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
        let expected = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)];
        assert_eq!(*ended.lock().unwrap(), expected);
        assert_eq!(engine.load().peak_running, 1);
    }

    /// Invariant 2, at the queue's bound: a call that is dropped makes room at once.
    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_makes_room() {
        let (engine, _state) = engine(4, Some(2));
        let (first, second) = (engine.admit(1).unwrap(), engine.admit(1).unwrap());
        assert_eq!(engine.admit(1).unwrap_err(), Refused::Busy);
        drop(second);
        let third = engine.admit(1).unwrap();
        assert_eq!(engine.admit(1).unwrap_err(), Refused::Busy);
        // A call of several sequences counts as several.
        drop((first, third));
        assert_eq!(engine.admit(3).unwrap_err(), Refused::Busy);
        assert!(engine.admit(2).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_tells_how_far_a_call_was() {
        let (engine, state) = engine(4, None);
        let call = tokio::spawn(engine.admit(1).unwrap().run(0, 0, || ()));
        tokio::time::sleep(Duration::from_millis(250)).await;
        state.send_replace(EngineState::Paused);
        assert_eq!(call.await.unwrap(), Ok(Ran::Aborted(0.25)));
        assert_eq!((engine.load().running, engine.load().waiting), (0, 0));
    }

    /// More sequences than slots run as one call that takes all slots.
    #[tokio::test(start_paused = true)]
    async fn a_call_of_many_sequences_ends() {
        let (engine, _state) = engine(2, None);
        assert_eq!(
            engine.admit(5).unwrap().run(0, 0, || ()).await,
            Ok(Ran::Done)
        );
    }

    /// One runs, one waits; both end, in two seconds, and nobody else is taken.
    #[tokio::test(start_paused = true)]
    async fn a_drain_serves_who_was_taken() {
        let (engine, state) = engine(1, None);
        let start = Instant::now();
        let calls = [engine.admit(1).unwrap(), engine.admit(1).unwrap()]
            .map(|taken| tokio::spawn(taken.run(0, 0, || ())));
        tokio::time::sleep(Duration::from_millis(250)).await;
        state.send_replace(EngineState::Draining);
        assert_eq!(engine.admit(1).unwrap_err(), Refused::Draining);
        for call in calls {
            assert_eq!(call.await.unwrap(), Ok(Ran::Done));
        }
        assert_eq!(start.elapsed().as_secs(), 2);
    }

    /// Ten tokens, 1 ms for each and each other sequence: alone they take nothing, beside two others 20 ms, as three at once too.
    #[tokio::test(start_paused = true)]
    async fn a_call_that_begins_beside_others_takes_longer() {
        let (_state, watched) = watch::channel(EngineState::Serving);
        let latency = Latency {
            per_output_token_running: Duration::from_millis(1),
            ..Latency::ZERO
        };
        let bounds = QueueBounds::default();
        let engine = Engine::new(latency, 9, bounds, watched, watch::Sender::new(0));
        let engine = Arc::new(engine);
        let time = async |sequences| {
            let start = Instant::now();
            let taken = engine.admit(sequences).unwrap();
            assert_eq!(taken.run(0, 10, || ()).await, Ok(Ran::Done));
            start.elapsed().as_millis()
        };
        assert_eq!(time(1).await, 0);
        assert_eq!(time(3).await, 20);
        let (two, one) = tokio::join!(time(2), time(1));
        assert_eq!((two, one), (10, 20));
    }

    /// Prompt tokens weigh until their prefill is over: one of two seconds' prefill and as long a decode.
    #[tokio::test(start_paused = true)]
    async fn a_backlog_ends_with_the_prefill() {
        let (_state, watched) = watch::channel(EngineState::Serving);
        let second = Duration::from_secs(1);
        let latency = Latency {
            per_prompt_token: second,
            per_output_token: second,
            ..Latency::ZERO
        };
        let bounds = QueueBounds {
            requests_max: None,
            tokens_max: Some(2),
        };
        let engine = Engine::new(latency, 1, bounds, watched, watch::Sender::new(0));
        let engine = Arc::new(engine);
        let call = tokio::spawn(engine.admit(1).unwrap().run(2, 2, || ()));
        tokio::time::sleep(Duration::from_millis(1900)).await;
        assert_eq!(engine.admit(1).unwrap_err(), Refused::Backlog);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(engine.load().running, 1);
        assert!(engine.admit(1).is_ok());
        assert_eq!(call.await.unwrap(), Ok(Ran::Done));
    }
}
