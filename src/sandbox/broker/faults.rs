//! Faults that a test asks for: hooks per API, one-shot unless kept, optionally for one topic or
//! one transactional id.
//!
//! A request meets every [`watch`](FaultBuilder::watch) that fits it, and then the oldest other hook that fits. A hook that answers
//! with an error code refuses the whole request, all of its topics.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::ApiKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Requests that one hook remembers; the oldest go first.
const SEEN_MAX: usize = 1024;

/// A request that a hook has met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRequest {
    /// Version of the API.
    pub version: i16,
    /// What the client calls itself.
    pub client_id: Option<String>,
    /// Topics that the request names.
    pub topics: Vec<String>,
    /// The transactional id that the request names.
    pub transactional_id: Option<String>,
}

/// What a hook does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Watch,
    Answer(ResponseError),
    Delay(Duration),
    HangUpBefore,
    HangUpAfter,
    CutMidFrame,
    Hold,
    SilentBefore,
    SilentAfter,
}

#[derive(Debug)]
struct Hook {
    api: ApiKey,
    topic: Option<String>,
    transactional_id: Option<String>,
    action: Action,
    progress: Mutex<Progress>,
    hits: watch::Sender<u64>,
    released: CancellationToken,
}

#[derive(Debug)]
struct Progress {
    /// Requests to let pass before the first hit.
    skip: u64,
    /// Hits that are left; `None` is no end.
    left: Option<u64>,
    seen: VecDeque<SeenRequest>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hook {
    /// Whether the hook acts on this request; counts it when it does.
    fn meets(&self, api: ApiKey, request: &SeenRequest) -> bool {
        let topic_fits = |topic: &String| request.topics.contains(topic);
        let id_fits = |id: &String| request.transactional_id.as_ref() == Some(id);
        if self.api != api
            || !self.topic.as_ref().is_none_or(topic_fits)
            || !self.transactional_id.as_ref().is_none_or(id_fits)
        {
            return false;
        }
        let mut progress = lock(&self.progress);
        if progress.left == Some(0) {
            return false;
        }
        if progress.skip > 0 {
            progress.skip -= 1;
            return false;
        }
        progress.left = progress.left.map(|left| left - 1);
        if progress.seen.len() == SEEN_MAX {
            progress.seen.pop_front();
        }
        progress.seen.push_back(request.clone());
        drop(progress);
        self.hits.send_modify(|hits| *hits += 1);
        true
    }

    fn is_spent(&self) -> bool {
        lock(&self.progress).left == Some(0)
    }
}

/// The faults of a broker.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    hooks: Arc<Mutex<Vec<Arc<Hook>>>>,
}

/// What a request has met: what to do, and the wait when it is held.
#[derive(Debug)]
pub(super) struct Met {
    pub action: Action,
    pub released: CancellationToken,
}

impl Faults {
    /// Begins a hook for requests of one API; one of the closing methods of [`FaultBuilder`] installs it.
    pub fn on(&self, api: ApiKey) -> FaultBuilder {
        FaultBuilder {
            faults: self.clone(),
            api,
            topic: None,
            transactional_id: None,
            skip: 0,
            times: Some(1),
        }
    }

    /// Removes all hooks and releases what they hold.
    pub fn clear(&self) {
        for hook in lock(&self.hooks).drain(..) {
            hook.released.cancel();
        }
    }

    /// Shows a request to the hooks.
    pub(super) fn meet(&self, api: ApiKey, request: &SeenRequest) -> Option<Met> {
        let mut hooks = lock(&self.hooks);
        let mut met = None;
        for hook in hooks.iter() {
            if hook.action == Action::Watch {
                hook.meets(api, request);
            } else if met.is_none() && hook.meets(api, request) {
                met = Some(Met {
                    action: hook.action,
                    released: hook.released.clone(),
                });
            }
        }
        // A spent hook that still holds a request stays, so that `clear` finds it.
        let holds = |hook: &Hook| hook.action == Action::Hold && !hook.released.is_cancelled();
        hooks.retain(|hook| !hook.is_spent() || holds(hook));
        met
    }
}

/// A hook that is being described.
#[derive(Debug)]
#[must_use = "a closing method such as `answer` installs the hook"]
pub struct FaultBuilder {
    faults: Faults,
    api: ApiKey,
    topic: Option<String>,
    transactional_id: Option<String>,
    skip: u64,
    times: Option<u64>,
}

impl FaultBuilder {
    /// Only requests that name this topic.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Only requests under this transactional id.
    pub fn transactional_id(mut self, id: impl Into<String>) -> Self {
        self.transactional_id = Some(id.into());
        self
    }

    /// Lets this many fitting requests pass first.
    pub fn after(mut self, requests: u64) -> Self {
        self.skip = requests;
        self
    }

    /// Acts this many times instead of once.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Acts until it is removed.
    pub fn keep(mut self) -> Self {
        self.times = None;
        self
    }

    /// Only counts and remembers requests; always kept.
    pub fn watch(self) -> Fault {
        self.keep().install(Action::Watch)
    }

    /// Refuses with this code, at every place where the response has one, without handling the request.
    pub fn answer(self, code: ResponseError) -> Fault {
        self.install(Action::Answer(code))
    }

    /// Handles the request after this time.
    pub fn delay(self, time: Duration) -> Fault {
        self.install(Action::Delay(time))
    }

    /// Closes the connection without handling the request.
    pub fn hang_up_before(self) -> Fault {
        self.install(Action::HangUpBefore)
    }

    /// Handles the request and closes the connection instead of answering: for the client the outcome is unknown.
    pub fn hang_up_after(self) -> Fault {
        self.install(Action::HangUpAfter)
    }

    /// Handles the request, sends half of the response, and closes the connection.
    pub fn cut_mid_frame(self) -> Fault {
        self.install(Action::CutMidFrame)
    }

    /// Handles the request only after [`Fault::release`].
    pub fn hold(self) -> Fault {
        self.install(Action::Hold)
    }

    /// Never handles the request nor anything after it on this connection, which stays open, as a stopped process leaves it.
    pub fn silent(self) -> Fault {
        self.install(Action::SilentBefore)
    }

    /// Handles the request and never answers it nor anything after it on this connection, which stays open.
    pub fn silent_after(self) -> Fault {
        self.install(Action::SilentAfter)
    }

    fn install(self, action: Action) -> Fault {
        let hook = Arc::new(Hook {
            api: self.api,
            topic: self.topic,
            transactional_id: self.transactional_id,
            action,
            progress: Mutex::new(Progress {
                skip: self.skip,
                left: self.times,
                seen: VecDeque::new(),
            }),
            hits: watch::Sender::new(0),
            released: CancellationToken::new(),
        });
        lock(&self.faults.hooks).push(Arc::clone(&hook));
        Fault {
            faults: self.faults,
            hook,
        }
    }
}

/// An installed hook. Dropping this handle leaves the hook in place.
#[derive(Debug, Clone)]
pub struct Fault {
    faults: Faults,
    hook: Arc<Hook>,
}

impl Fault {
    /// How many requests it has met.
    #[must_use]
    pub fn hits(&self) -> u64 {
        *self.hook.hits.borrow()
    }

    /// Waits until it has met this many requests; the deadline is the caller's.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn wait_for_hits(&self, hits: u64) {
        let mut receiver = self.hook.hits.subscribe();
        // The sender lives in the hook that `self` holds, so the wait cannot fail.
        if receiver.wait_for(|now| *now >= hits).await.is_err() {
            tracing::debug!("a fault hook ended while it was waited for");
        }
    }

    /// The requests it has met, the newest 1024.
    #[must_use]
    pub fn seen(&self) -> Vec<SeenRequest> {
        lock(&self.hook.progress).seen.iter().cloned().collect()
    }

    /// Lets held requests go on; later ones are not held.
    pub fn release(&self) {
        self.hook.released.cancel();
    }

    /// Takes the hook away and releases what it holds.
    pub fn remove(&self) {
        self.hook.released.cancel();
        lock(&self.faults.hooks).retain(|hook| !Arc::ptr_eq(hook, &self.hook));
    }
}
