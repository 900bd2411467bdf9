//! Connections per broker, lent to one exchange at a time.
//!
//! # Invariants
//! 1. A connection comes back only after a whole answer; whatever else drops it closes it.
//! 2. Long polls and writes have permits of their own: however many wait, other requests find a connection.

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::access::Access;
use super::connection::{Connection, Deadline};
use crate::kafka::KafkaError;

/// Connections to one broker that carry a request at the same time; as many again may carry long polls, and as many writes.
const CONNECTIONS_MAX: usize = 32;

/// How long a connection may lie idle. As long as it is one of the burst that a round of flushes or fetches makes, it is kept: as many as
/// the lanes have permits, since a new one is opened only when none lies idle.
const IDLE_FOR: Duration = Duration::from_secs(60);

/// Whether the broker answers at once or waits for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Request,
    /// It waits on purpose.
    LongPoll,
    /// It waits for the replicas: while one of them hangs, for up to `kafka.request_timeout`. A heartbeat behind such requests would come
    /// too late, and all partitions of this process would be lost over a follower.
    Write,
}

/// All connections of a cluster.
#[derive(Debug, Default)]
pub(super) struct Pools {
    by_address: Mutex<HashMap<Arc<str>, Arc<Pool>>>,
}

#[derive(Debug)]
struct Pool {
    /// With the time at which each came back, which rises to the end.
    idle: Mutex<VecDeque<(Instant, Connection)>>,
    requests: Arc<Semaphore>,
    long_polls: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            idle: Mutex::default(),
            requests: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            long_polls: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            writes: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }
}

impl Pools {
    /// Lends an idle connection, or a new one, as soon as the lane has a permit.
    pub(super) async fn lend(
        &self,
        address: &Arc<str>,
        lane: Lane,
        access: &Access,
        deadline: Deadline,
    ) -> Result<Lent, KafkaError> {
        let pool = Arc::clone(
            lock(&self.by_address)
                .entry(Arc::clone(address))
                .or_default(),
        );
        let permits = match lane {
            Lane::Request => &pool.requests,
            Lane::LongPoll => &pool.long_polls,
            Lane::Write => &pool.writes,
        };
        let permit = timeout_at(deadline.at, Arc::clone(permits).acquire_owned())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(KafkaError::Timeout {
                operation: "waiting for a free connection",
                after: deadline.after,
            })?;
        let mut idle = pool.take_idle();
        if let Some(connection) = &mut idle
            && connection.has_expired()
            && let Err(error) = connection.authenticate_again(access, deadline).await
        {
            // A new connection tells the same, or does better.
            tracing::debug!(%error, %address, "a connection was not authenticated again");
            idle = None;
        }
        let was_idle = idle.is_some();
        let connection = match idle {
            Some(connection) => connection,
            None => Connection::open(address, access, deadline).await?,
        };
        Ok(Lent {
            connection,
            was_idle,
            pool,
            _permit: permit,
        })
    }
}

impl Pool {
    /// The connection that came back last and is still good; those that are not are closed on the way.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        while let Some((_, mut connection)) = idle.pop_back() {
            if connection.is_reusable() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request, and closes those that nobody has needed for long.
    fn put_back(&self, mut connection: Connection) {
        let now = Instant::now();
        let mut idle = lock(&self.idle);
        while idle
            .front()
            .is_some_and(|(since, _)| now.duration_since(*since) > IDLE_FOR)
        {
            idle.pop_front();
        }
        if connection.is_reusable() {
            idle.push_back((now, connection));
        }
    }
}

/// A lent connection. Dropping it closes it; after a whole answer it goes back with [`give_back`](Self::give_back).
#[derive(Debug)]
pub(super) struct Lent {
    connection: Connection,
    was_idle: bool,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Lent {
    /// Whether it was used before: what closes it now need not be about this request.
    pub(super) const fn was_idle(&self) -> bool {
        self.was_idle
    }

    /// Returns the connection for the next request, if it is good for one.
    pub(super) fn give_back(self) {
        self.pool.put_back(self.connection);
    }
}

impl Deref for Lent {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// Nothing panics while one of these locks is held, and what they guard is whole between statements.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
