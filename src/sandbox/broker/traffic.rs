//! What clients have asked for so far: requests and their bytes by API, and connections.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kafka_protocol::messages::ApiKey;

/// Requests of one API that were answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ApiTraffic {
    /// How many.
    pub requests: u64,
    /// Their bytes, with the length in front.
    pub bytes_in: u64,
    /// The bytes of their answers, with the length in front.
    pub bytes_out: u64,
}

/// All that was asked for since the broker was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    by_api: HashMap<ApiKey, ApiTraffic>,
    /// Connections that were ever opened.
    pub connections_opened: u64,
    /// Connections that are open.
    pub connections: u64,
}

impl Traffic {
    /// What was asked of one API.
    #[must_use]
    pub fn of(&self, api: ApiKey) -> ApiTraffic {
        self.by_api.get(&api).copied().unwrap_or_default()
    }

    /// What came between an earlier picture and this one; the connections are those that are open now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut left = self.clone();
        for (key, before) in &earlier.by_api {
            if let Some(now) = left.by_api.get_mut(key) {
                now.requests = now.requests.saturating_sub(before.requests);
                now.bytes_in = now.bytes_in.saturating_sub(before.bytes_in);
                now.bytes_out = now.bytes_out.saturating_sub(before.bytes_out);
            }
        }
        left.connections_opened = left
            .connections_opened
            .saturating_sub(earlier.connections_opened);
        left
    }
}

/// Counts while the broker runs.
#[derive(Debug, Default)]
pub(super) struct Counters(Mutex<Traffic>);

impl Counters {
    pub(super) fn picture(&self) -> Traffic {
        self.lock().clone()
    }

    /// Counts a request that the broker serves.
    pub(super) fn answered(&self, api: ApiKey, bytes_in: usize, bytes_out: usize) {
        let count = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        let mut traffic = self.lock();
        let api = traffic.by_api.entry(api).or_default();
        api.requests = api.requests.saturating_add(1);
        api.bytes_in = api.bytes_in.saturating_add(count(bytes_in));
        api.bytes_out = api.bytes_out.saturating_add(count(bytes_out));
    }

    /// Counts a connection as open until the answer is dropped.
    pub(super) fn connected(&self) -> Connected<'_> {
        let mut traffic = self.lock();
        traffic.connections_opened = traffic.connections_opened.saturating_add(1);
        traffic.connections = traffic.connections.saturating_add(1);
        Connected(self)
    }

    fn lock(&self) -> MutexGuard<'_, Traffic> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open connection.
pub(super) struct Connected<'a>(&'a Counters);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        let mut traffic = self.0.lock();
        traffic.connections = traffic.connections.saturating_sub(1);
    }
}
