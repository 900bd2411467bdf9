//! What a test can make the simulated server do wrong.
//!
//! Hooks stand in a queue. A request takes the first hook that fits its path and prompt; a hook is used up by one request unless
//! it is [kept](Fault::kept). After a [delay](Action::Delay) the search goes on behind it, so that delays combine with what follows.
//! Beside the hooks stand the states of the engine behind the HTTP front: serving, paused, draining, scaling, dead.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::CHAT_PATH;

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answers at once with exactly this.
    Answer {
        /// HTTP status.
        status: u16,
        /// Headers, beside `content-type: application/json`, which is sent unless one is named here.
        headers: Vec<(String, String)>,
        /// Body.
        body: String,
    },
    /// Sends nothing for this long, then goes on with the next hook that fits, or answers as usual.
    Delay(Duration),
    /// Closes the connection without an answer.
    HangUp,
    /// Works as usual, then sends the headers and half of the body and closes the connection.
    CutMidBody,
    /// Sends nothing until the client leaves or the server stops.
    HangForEver,
    /// Status 200 with a body that is no JSON.
    Garbage,
    /// Status 200 with the first words of the answer and `finish_reason` `abort`, as vLLM answers when it is paused or stopped.
    Abort,
    /// Status 200 with `content: null`, as a reasoning parser leaves it that never saw its end marker.
    NullContent,
    /// Status 200 with exactly this content and `finish_reason` `stop`, whatever `max_tokens` and `stop` say.
    Content(String),
    /// Status 200 with the first half of the answer's tokens and `finish_reason` `length`: a JSON object or list is no JSON then.
    Truncated,
    /// Works as usual, and adds a header of this many bytes to the answer.
    HugeHeader {
        /// Length of its value.
        bytes: usize,
    },
    /// Status 200 and a body that goes on until the client leaves.
    EndlessBody,
    /// The engine dies when this request begins to run; one that is refused, or leaves before, kills nothing. All calls in flight get
    /// the 500 of a dead engine at once and connections are refused, as when vLLM exits.
    KillEngine {
        /// How long after its end the server listens and serves again; `None` waits for [`start_listener`](super::Vllm::start_listener).
        restart_after: Option<Duration>,
    },
}

impl Action {
    /// An answer with a status and a body.
    pub fn answer(status: u16, body: impl Into<String>) -> Self {
        Self::Answer {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// Status 200 with lists within lists, this many of them, where the choices should be: a reader that descends needs a bound.
    #[must_use]
    pub fn deep_body(depth: usize) -> Self {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        Self::answer(
            200,
            format!(r#"{{"object":"chat.completion","choices":{open}{close}}}"#),
        )
    }

    /// The 429 that a gateway in front of vLLM sends (vLLM itself never does).
    #[must_use]
    pub fn too_many_requests(retry_after: Option<Duration>) -> Self {
        Self::Answer {
            status: 429,
            headers: retry_after
                .map(|wait| ("retry-after".to_owned(), wait.as_secs().to_string()))
                .into_iter()
                .collect(),
            body: r#"{"error":{"message":"Too many requests","type":"Too Many Requests","param":null,"code":429}}"#
                .to_owned(),
        }
    }
}

/// A hook: an action, and the requests that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    action: Action,
    path: String,
    marker: Option<String>,
    /// How many requests it still takes; `None` is without end.
    uses: Option<u32>,
}

impl Fault {
    /// A hook for the next chat completion.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self {
            action,
            path: CHAT_PATH.to_owned(),
            marker: None,
            uses: Some(1),
        }
    }

    /// Only for requests to this path (default: chat completions).
    #[must_use]
    pub fn on_path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Only for requests whose prompt holds this text.
    #[must_use]
    pub fn on_prompt(mut self, marker: impl Into<String>) -> Self {
        self.marker = Some(marker.into());
        self
    }

    /// For this many requests, not one.
    #[must_use]
    pub const fn times(mut self, uses: u32) -> Self {
        self.uses = Some(uses);
        self
    }

    /// For every request, until [`Faults::clear`].
    #[must_use]
    pub const fn kept(mut self) -> Self {
        self.uses = None;
        self
    }

    fn fits(&self, path: &str, prompt: &str) -> bool {
        self.path == path
            && self.uses != Some(0)
            && self
                .marker
                .as_ref()
                .is_none_or(|marker| prompt.contains(marker.as_str()))
    }
}

impl From<Action> for Fault {
    fn from(action: Action) -> Self {
        Self::new(action)
    }
}

/// The engine behind the HTTP front. A listener that starts again is a new process: what was dead or drained serves then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// Answers.
    Serving,
    /// As after `/pause`: calls that run end with `abort`, new ones hang until it serves again; `/health` is 200.
    Paused,
    /// As after SIGTERM with `--shutdown-timeout`: calls that were taken end as usual, new ones are 500; `/health` is 200.
    Draining,
    /// As while elastic expert parallelism scales: every path is 503; calls that were taken end as usual.
    Scaling,
    /// As after a crash with `VLLM_KEEP_ALIVE_ON_ENGINE_DEATH=1`: chat is 500, `/health` 503, `/v1/models` 200.
    Dead,
}

/// The hooks of one server and the state of its engine.
#[derive(Debug)]
pub struct Faults {
    hooks: Mutex<VecDeque<Fault>>,
    /// Sent by the test, watched by every call that runs or waits.
    engine: watch::Sender<EngineState>,
    deaths: AtomicU64,
    /// Bumped when the engine's state changes, for those who wait for one.
    changed: watch::Sender<u64>,
}

impl Faults {
    pub(super) fn new(changed: watch::Sender<u64>) -> Self {
        Self {
            hooks: Mutex::new(VecDeque::new()),
            engine: watch::Sender::new(EngineState::Serving),
            deaths: AtomicU64::new(0),
            changed,
        }
    }

    /// Adds a hook behind those that are there.
    pub fn push(&self, fault: impl Into<Fault>) {
        self.hooks().push_back(fault.into());
    }

    /// Removes all hooks; the state of the engine stays.
    pub fn clear(&self) {
        self.hooks().clear();
    }

    /// Hooks that are not used up, kept ones included.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.hooks().len()
    }

    /// Kills, pauses or revives the engine; calls that run learn of it at once.
    pub fn set_engine(&self, state: EngineState) {
        self.enter(state);
    }

    /// False when that was its state before.
    pub(super) fn enter(&self, state: EngineState) -> bool {
        let entered = self.engine.send_if_modified(|engine| {
            let left = std::mem::replace(engine, state);
            // Counted before anyone can see it.
            if state == EngineState::Dead && left != state {
                self.deaths.fetch_add(1, Ordering::Relaxed);
            }
            left != state
        });
        self.changed
            .send_modify(|version| *version = version.wrapping_add(1));
        entered
    }

    pub(super) fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Relaxed)
    }

    /// The state of the engine.
    #[must_use]
    pub fn engine(&self) -> EngineState {
        *self.engine.borrow()
    }

    pub(super) fn watch_engine(&self) -> watch::Receiver<EngineState> {
        self.engine.subscribe()
    }

    /// Uses up what a request meets: any number of delays, then at most one other action.
    pub(super) fn take(&self, path: &str, prompt: &str) -> Vec<Action> {
        let mut hooks = self.hooks();
        let mut taken = Vec::new();
        for fault in hooks.iter_mut().filter(|fault| fault.fits(path, prompt)) {
            fault.uses = fault.uses.map(|uses| uses.saturating_sub(1));
            taken.push(fault.action.clone());
            if !matches!(fault.action, Action::Delay(_)) {
                break;
            }
        }
        hooks.retain(|fault| fault.uses != Some(0));
        taken
    }

    fn hooks(&self) -> MutexGuard<'_, VecDeque<Fault>> {
        // A panic of another test thread leaves the queue whole: every change is one step.
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_used_in_order_and_once() {
        let faults = Faults::new(watch::Sender::new(0));
        faults.push(Action::HangUp);
        faults.push(Action::Garbage);
        assert_eq!(faults.take("/health", ""), []);
        assert_eq!(faults.take(CHAT_PATH, ""), [Action::HangUp]);
        assert_eq!(faults.take(CHAT_PATH, ""), [Action::Garbage]);
        assert_eq!(faults.take(CHAT_PATH, ""), []);
    }

    #[test]
    fn a_marker_chooses_its_request_and_leaves_the_others() {
        let faults = Faults::new(watch::Sender::new(0));
        faults.push(Fault::new(Action::HangUp).on_prompt("poison").kept());
        assert_eq!(faults.take(CHAT_PATH, "a plain document"), []);
        assert_eq!(
            faults.take(CHAT_PATH, "a poison document"),
            [Action::HangUp]
        );
        assert_eq!(
            faults.take(CHAT_PATH, "a poison document"),
            [Action::HangUp]
        );
        faults.clear();
        assert_eq!(faults.take(CHAT_PATH, "a poison document"), []);
    }

    #[test]
    fn delays_combine_with_the_next_hook() {
        let delay = Action::Delay(Duration::from_secs(1));
        let faults = Faults::new(watch::Sender::new(0));
        faults.push(Fault::new(delay.clone()).times(2));
        faults.push(Action::Garbage);
        assert_eq!(faults.take(CHAT_PATH, ""), [delay.clone(), Action::Garbage]);
        assert_eq!(faults.take(CHAT_PATH, ""), [delay]);
        assert_eq!(faults.pending(), 0);
    }
}
