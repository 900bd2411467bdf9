//! The admin server: metrics, probes and status over HTTP.
//!
//! It has a thread and an event loop of its own, so that it answers while the workers are busy, and even when they are stuck: then
//! `/livez` says so. What a client can take is bounded: connections, bytes without an answer, time without an answer.

mod connection;
mod control;
pub(crate) mod fuzzing;
mod hosts;
mod listen;
mod routes;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use axum::Router;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::telemetry::{Health, Metrics, PauseSwitch, StatusBoard};
use crate::types::Secret;
use connection::BoundedListener;
use control::Guard;
use hosts::HostCheck;

pub use hosts::AllowedHosts;
pub use listen::Listen;

/// How long requests that run may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(2);

/// Section `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Address and port of the server; `127.0.0.1:9100` by default, port 0 takes a free one, `off` switches it off.
    pub listen: Listen,
    /// File with the token that `POST /pause` and `/resume` must bring. Without one they are taken only where [`listen`](Self::listen) is a
    /// loopback address. Read at start.
    pub token_file: Option<PathBuf>,
    /// Names under which it answers, beside IP addresses and `localhost`.
    pub allowed_hosts: AllowedHosts,
    /// Whether the status page shows the beginnings of answers.
    pub show_payloads: bool,
}

impl AdminConfig {
    /// The token, where there is one.
    ///
    /// # Errors
    /// When the file cannot be read, or holds none.
    pub fn token(&self) -> Result<Option<Secret>, AdminError> {
        self.token_file
            .as_deref()
            .map(control::read_token)
            .transpose()
    }
}

/// What the server shows, and what it can turn.
#[derive(Debug, Clone)]
pub struct AdminSources {
    /// `/metrics`.
    pub metrics: Metrics,
    /// `/livez` and `/readyz`.
    pub health: Health,
    /// `/`, `/events`, `/status` and `/readyz`.
    pub status: StatusBoard,
    /// `/pause` and `/resume`.
    pub pause: PauseSwitch,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The port is taken.
    #[error(
        "admin.listen: {address} is in use by another process. Choose another port, 0 for any free one, or \"off\". Is it a processor of the same group? Only with input.assignment = group or static do several share its work; otherwise this one would put that one down"
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error(
        "admin.listen: cannot listen on {address}; choose an address of this machine, such as 127.0.0.1:9100, or \"off\""
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The token file cannot be read.
    #[error("admin.token_file {}: it cannot be read", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The token file holds no token.
    #[error(
        "admin.token_file {}: it must hold one token of 16 to 1024 visible ASCII characters", path.display()
    )]
    NoToken {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no thread or no event loop.
    #[error("the admin server's thread cannot be started")]
    Thread(#[source] io::Error),
}

/// The running server.
pub struct AdminServer {
    address: SocketAddr,
    ended: oneshot::Receiver<()>,
    shutdown: CancellationToken,
}

impl fmt::Debug for AdminServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl AdminError {
    /// Whether only another setting heals it, and no other moment.
    #[must_use]
    pub const fn is_setting(&self) -> bool {
        matches!(self, Self::TokenFile { .. } | Self::NoToken { .. })
    }
}

impl AdminServer {
    /// Listens and begins to answer; `None` when it is switched off. It ends when `shutdown` is cancelled.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the token file is of no use: the message names the setting and what to do.
    pub fn start(
        config: &AdminConfig,
        sources: AdminSources,
        shutdown: CancellationToken,
    ) -> Result<Option<Self>, AdminError> {
        let Listen::On(address) = config.listen else {
            return Ok(None);
        };
        let token = config.token()?;
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => AdminError::InUse { address },
            _ => AdminError::Listen { address, source },
        };
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;

        let guard = Guard::new(token.as_ref(), address);
        let hosts = HostCheck::new(config.allowed_hosts.clone());
        let router = routes::router(sources, guard, hosts, &shutdown);

        let (started, starting) = mpsc::sync_channel(1);
        let (ending, ended) = oneshot::channel();
        let stop = shutdown.clone();
        thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                let outcome = run(listener, router, stop, &started);
                // A start that failed was told; nobody listens for it any more when the caller is gone.
                if let Err(error) = outcome {
                    drop(started.send(Err(error)));
                }
                drop(ending);
            })
            .map_err(AdminError::Thread)?;
        match starting.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(AdminError::Thread(error)),
            Err(mpsc::RecvError) => {
                return Err(AdminError::Thread(io::Error::other("the thread ended")));
            }
        }
        tracing::info!(%address, "admin server listens");
        Ok(Some(Self {
            address,
            ended,
            shutdown,
        }))
    }

    /// Where it listens: the port that was taken when 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops the server and waits until its requests are answered, at most two seconds.
    ///
    /// # Cancel safety
    /// Dropping it leaves the server to end by itself.
    pub async fn stop(self) {
        self.shutdown.cancel();
        // The sender is dropped when the thread ends, whichever way it ends.
        drop(tokio::time::timeout(GRACE * 2, self.ended).await);
    }
}

fn run(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    started: &mpsc::SyncSender<io::Result<()>>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    runtime.block_on(async {
        let listener = BoundedListener::new(tokio::net::TcpListener::from_std(listener)?);
        drop(started.send(Ok(())));
        let server = axum::serve(listener, router)
            .with_graceful_shutdown(shutdown.clone().cancelled_owned());
        let mut serving = std::pin::pin!(server.into_future());
        tokio::select! {
            biased;
            ended = &mut serving => ended,
            () = shutdown.cancelled() => match tokio::time::timeout(GRACE, serving).await {
                Ok(ended) => ended,
                // Idle and slow connections are cut: every answer is at most two seconds away.
                Err(_elapsed) => Ok(()),
            },
        }
    })
}

#[cfg(test)]
mod tests;
