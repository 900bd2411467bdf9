//! One run of a processor, seen from the edges: whether it lives, and what becomes of what it asks.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kafka_llm_processor::kafka::{KafkaError, StepError};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use crate::broker::{State, World};

/// Whether a process runs. One that is frozen or dead sends nothing and sees no answer; what it has sent arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Running,
    Frozen,
    Dead,
}

#[derive(Debug)]
pub struct Instance {
    pub name: String,
    /// The input partitions that it may work on.
    pub partitions: BTreeSet<i32>,
    pub world: Arc<World>,
    life: Mutex<Life>,
    /// Told of each change of `life`. Not a watch: that wakes its waiters in an order that it draws itself.
    changed: Notify,
}

/// What kind of step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    TakeOver,
    Append,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    Refused,
    /// Somebody else takes over at the same moment.
    Fenced,
    RequestLost,
    AnswerLost,
}

/// What becomes of a step, drawn before it is taken.
struct Lot {
    fate: Fate,
    /// Until the request arrives.
    there: Duration,
    /// Until the answer arrives.
    back: Duration,
    /// How long the sender waits, when no answer will come.
    patience: Duration,
    dies_before: bool,
    dies_after: bool,
}

impl State {
    fn lot(&mut self, world: &World, step: Step) -> Lot {
        let faults = &world.scenario.faults;
        let percent = if self.faults_on { faults.percent } else { 0 };
        let random = &mut self.random;
        let mut strikes = |exists: bool| exists && random.chance(percent);
        let disturbed = step != Step::TakeOver || faults.failing_take_overs;
        let fate = if step == Step::TakeOver && strikes(disturbed && faults.refuses) {
            Fate::Fenced
        } else if strikes(disturbed && faults.refuses) {
            Fate::Refused
        } else if strikes(disturbed && faults.loses_requests) {
            Fate::RequestLost
        } else if strikes(disturbed && faults.loses_answers) {
            Fate::AnswerLost
        } else {
            Fate::Done
        };
        let is_slow = strikes(faults.slow_steps);
        let dies_before = strikes(faults.dies_at_steps && percent < 25);
        let dies_after = strikes(faults.dies_at_steps && percent < 25);
        let most = if is_slow { 12_000 } else { 5 };
        Lot {
            fate,
            there: self.random.millis(1, most),
            back: self.random.millis(0, 3),
            patience: self.random.millis(1, most.max(100)),
            dies_before,
            dies_after,
        }
    }
}

pub fn lost() -> KafkaError {
    KafkaError::Disconnected {
        operation: "step",
        detail: "a fault of the simulation".to_owned(),
    }
}

impl Instance {
    pub fn new(world: &Arc<World>, name: String, partitions: BTreeSet<i32>) -> Arc<Self> {
        Arc::new(Self {
            name,
            partitions,
            world: Arc::clone(world),
            life: Mutex::new(Life::Running),
            changed: Notify::new(),
        })
    }

    pub fn set_life(&self, life: Life) {
        self.note(format_args!("{life:?}"));
        let mut now = self.life.lock().unwrap();
        if *now != Life::Dead {
            *now = life;
        }
        drop(now);
        self.changed.notify_waiters();
    }

    pub fn note(&self, event: fmt::Arguments<'_>) {
        self.world.note(format_args!("{} {event}", self.name));
    }

    /// Passes while the process runs.
    pub async fn gate(&self) {
        self.becomes(Life::Running).await;
    }

    pub async fn death(&self) {
        self.becomes(Life::Dead).await;
    }

    async fn becomes(&self, life: Life) {
        loop {
            let changed = self.changed.notified();
            if *self.life.lock().unwrap() == life {
                return;
            }
            changed.await;
        }
    }

    /// Takes a step that changes something. Once it is sent it arrives, whatever becomes of its sender. `act` learns whether the sender has
    /// stopped to wait.
    pub async fn step<T, F>(
        &self,
        step: Step,
        what: &str,
        act: impl FnOnce(Waits) -> F,
    ) -> Result<T, StepError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        self.gate().await;
        let lot = {
            let state = &mut *self.world.state();
            state.lot(&self.world, step)
        };
        if lot.dies_before {
            self.note(format_args!("dies before {step:?} {what}"));
            self.world.state().reached.insert("died before a step");
            self.set_life(Life::Dead);
            self.gate().await;
        }
        let outcome = self.send(&lot, act).await;
        self.gate().await;
        let told = match &outcome {
            Ok(_) => "done",
            Err(StepError::Refused(_)) => "refused",
            Err(StepError::OutcomeUnknown(_)) => "unknown",
            Err(StepError::Expired(_)) => "expired",
            Err(StepError::Fenced) => "fenced",
        };
        self.note(format_args!("{step:?} {what}: {told}"));
        self.world.state().reached.insert(told);
        if lot.dies_after {
            self.note(format_args!("dies after {step:?} {what}"));
            self.world.state().reached.insert("died after a step");
            self.set_life(Life::Dead);
            self.gate().await;
        }
        outcome
    }

    async fn send<T, F>(&self, lot: &Lot, act: impl FnOnce(Waits) -> F) -> Result<T, StepError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        match lot.fate {
            Fate::Refused => {
                sleep(lot.back).await;
                return Err(StepError::Refused(lost()));
            }
            Fate::Fenced => {
                sleep(lot.back).await;
                return Err(StepError::Fenced);
            }
            Fate::RequestLost => {
                sleep(lot.patience).await;
                return Err(StepError::OutcomeUnknown(lost()));
            }
            Fate::Done | Fate::AnswerLost => {}
        }
        let (answer, answered) = oneshot::channel();
        let (waits, request) = (Waits::default(), lot.there);
        let acting = act(waits.clone());
        tokio::spawn(async move {
            sleep(request).await;
            let outcome = acting.await;
            // Whoever does not wait any more does not hear it.
            drop(answer.send(outcome));
        });
        let guard = waits.guard();
        if lot.fate == Fate::AnswerLost {
            drop(timeout(lot.patience, answered).await);
            drop(guard);
            return Err(StepError::OutcomeUnknown(lost()));
        }
        let outcome = answered.await;
        sleep(lot.back).await;
        outcome.unwrap_or_else(|_| Err(StepError::OutcomeUnknown(lost())))
    }

    /// Takes a step that only looks; it may take its time, and may fail.
    pub async fn look(&self, may_fail: bool) -> Result<(), KafkaError> {
        self.gate().await;
        let (fails, delay) = {
            let state = &mut *self.world.state();
            let faults = &self.world.scenario.faults;
            let percent = if state.faults_on { faults.percent } else { 0 };
            let fails = may_fail && state.random.chance(percent);
            let is_slow = faults.slow_steps && state.random.chance(percent);
            let most = if is_slow { 5_000 } else { 3 };
            (fails, state.random.millis(0, most))
        };
        sleep(delay).await;
        self.gate().await;
        if fails { Err(lost()) } else { Ok(()) }
    }
}

/// Whether the sender of a request still waits for its answer.
#[derive(Debug, Clone, Default)]
pub struct Waits(Arc<AtomicBool>);

impl Waits {
    /// True once the sender has given up, or is no more.
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn guard(&self) -> WaitsGuard {
        WaitsGuard(self.clone())
    }
}

struct WaitsGuard(Waits);

impl Drop for WaitsGuard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
