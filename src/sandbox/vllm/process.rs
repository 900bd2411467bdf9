//! The process around the engine: its listener, its end, its return.
//!
//! Invariants
//! 1. While it is stopped nothing listens and no connection is open; the address stays the same.
//! 2. A listener that starts again is a new process: a dead or drained engine serves, and counters begin at nothing.
//! 3. When the engine dies no connection is accepted any more, and who is in flight is answered before its connection ends.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::faults::EngineState;
use super::server::{self, Shared, Stop};

/// After its engine's death vLLM is gone in this time; connections that are still open are cut then.
const DEATH: Duration = Duration::from_secs(3);

/// An engine's death, told to the process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Death {
    /// From the end of the process; `None` is never.
    pub(super) restart_after: Option<Duration>,
}

/// Dropped, it ends its listener, its connections and all its tasks.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) shared: Arc<Shared>,
    pub(super) address: SocketAddr,
    /// Bumped when a count, the request log or the state changes.
    pub(super) changed: watch::Sender<u64>,
    /// What ends the listener and its connections; `None` while stopped.
    listener: Mutex<Option<Stop>>,
    listens: AtomicBool,
    /// Parent of all listeners' tokens.
    stop: CancellationToken,
    /// Listener and connections.
    tasks: TaskTracker,
    /// The task that waits for deaths: it waits for `tasks` itself.
    keeper: TaskTracker,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Process {
    pub(super) async fn start(
        shared: Arc<Shared>,
        listener: TcpListener,
        changed: watch::Sender<u64>,
        deaths: mpsc::Receiver<Death>,
    ) -> io::Result<Arc<Self>> {
        let process = Arc::new(Self {
            shared,
            address: listener.local_addr()?,
            changed,
            listener: Mutex::new(None),
            listens: AtomicBool::new(false),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            keeper: TaskTracker::new(),
        });
        process.accept(&mut *process.listener.lock().await, listener);
        let stop = process.stop.clone();
        process
            .keeper
            .spawn(keep(Arc::downgrade(&process), deaths, stop));
        Ok(process)
    }

    fn accept(&self, current: &mut Option<Stop>, listener: TcpListener) {
        let stop = Stop::below(&self.stop);
        *current = Some(stop.clone());
        let tasks = self.tasks.clone();
        let shared = Arc::clone(&self.shared);
        self.tasks
            .spawn(server::accept(listener, shared, stop, tasks));
        self.set_listens(true);
    }

    pub(super) fn listens(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    fn set_listens(&self, listens: bool) {
        self.listens.store(listens, Ordering::Relaxed);
        self.changed
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    /// Cuts all connections.
    pub(super) async fn stop_listener(&self) {
        let mut listener = self.listener.lock().await;
        if let Some(stop) = listener.take() {
            stop.now.cancel();
            self.ended().await;
        }
    }

    /// Lets connections end what they are working on, for [`DEATH`] at most.
    async fn die(&self) {
        let mut listener = self.listener.lock().await;
        if let Some(stop) = listener.take() {
            stop.gently.cancel();
            if tokio::time::timeout(DEATH, self.ended()).await.is_err() {
                stop.now.cancel();
                self.ended().await;
            }
        }
    }

    /// Waits for the listener and its connections.
    async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
        self.set_listens(false);
    }

    pub(super) async fn start_listener(&self) -> io::Result<()> {
        let mut current = self.listener.lock().await;
        if current.is_none() && !self.stop.is_cancelled() {
            let listener = TcpListener::bind(self.address).await?;
            let faults = &self.shared.faults;
            if matches!(faults.engine(), EngineState::Dead | EngineState::Draining) {
                faults.set_engine(EngineState::Serving);
            }
            self.shared.metrics.reset();
            self.accept(&mut current, listener);
        }
        Ok(())
    }

    pub(super) async fn shutdown(&self) {
        self.stop.cancel();
        self.stop_listener().await;
        self.keeper.close();
        self.keeper.wait().await;
    }
}

/// Ends the process at each death of its engine and starts it again when its time has come. A death in between decides anew.
async fn keep(process: Weak<Process>, mut deaths: mpsc::Receiver<Death>, stop: CancellationToken) {
    let mut restart_at = None;
    loop {
        let restart = async {
            match restart_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let death = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            death = deaths.recv() => death,
            () = restart => None,
        };
        let Some(process) = process.upgrade() else {
            return;
        };
        match death {
            Some(Death { restart_after }) => {
                process.die().await;
                restart_at = restart_after.map(|wait| Instant::now() + wait);
            }
            None => {
                restart_at = None;
                if let Err(error) = process.start_listener().await {
                    tracing::warn!(%error, "the simulated vLLM cannot listen again");
                }
            }
        }
    }
}
