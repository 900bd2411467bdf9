//! The listener: accepts connections, runs each as a task, and cuts all of them when it stops.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use super::groups;
use super::shared::Shared;

/// Pause after a failed accept, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running listener.
#[derive(Debug)]
pub(super) struct Listener {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Listener {
    /// Takes the address; nothing is accepted before [`start`](Self::start).
    pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::bind(address).await
    }

    /// Accepts connections until it is stopped, or until `broker` is cancelled.
    pub(super) fn start(
        socket: TcpListener,
        shared: Arc<Shared>,
        broker: &CancellationToken,
    ) -> Self {
        let stop = broker.child_token();
        let tasks = TaskTracker::new();
        let clock = groups::clock::run(Arc::clone(&shared), stop.clone());
        tasks.spawn(clock);
        let accept = accept(socket, shared, stop.clone(), tasks.clone());
        tasks.spawn(accept);
        Self { stop, tasks }
    }

    /// Closes the port and all connections; returns when the last task has ended.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn accept(
    socket: TcpListener,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let room = Arc::new(Semaphore::new(shared.config.connections_max));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the sandbox broker cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!(
                connections_max = shared.config.connections_max,
                "the sandbox broker closes a connection that is one too many"
            );
            continue;
        };
        let shared = Arc::clone(&shared);
        let stop = stop.clone();
        tasks.spawn(async move {
            serve(stream, shared, stop).await;
            drop(permit);
        });
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        result = connection::serve(stream, shared) => {
            if let Err(error) = result {
                tracing::debug!(%error, "the sandbox broker ended a connection");
            }
        }
    }
}
