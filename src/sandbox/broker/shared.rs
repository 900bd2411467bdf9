//! What the handle, the listener and the connections share.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::config::BrokerConfig;
use super::faults::Faults;
use super::groups::Groups;
use super::state::State;
use super::traffic::Counters;

/// The one broker's id.
pub(super) const NODE_ID: i32 = 1;

/// The broker itself, apart from its listener.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: BrokerConfig,
    /// Where it listens; it stays the same over stops and starts.
    pub address: SocketAddr,
    pub faults: Faults,
    pub traffic: Counters,
    state: Mutex<State>,
    /// Counts changes of logs and topics: fetches that wait for records sleep on it.
    changes: watch::Sender<u64>,
    /// Counts changes of groups: their clock sleeps on it, and so do tests.
    group_changes: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(config: BrokerConfig, address: SocketAddr) -> Self {
        let state = State::new(&config);
        Self {
            config,
            address,
            faults: Faults::default(),
            traffic: Counters::default(),
            state: Mutex::new(state),
            changes: watch::Sender::new(0),
            group_changes: watch::Sender::new(0),
        }
    }

    /// The state, for one look.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the fetches that wait.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    /// To wait for changes from now on.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Changes the groups and wakes their clock.
    pub(super) fn change_groups<T>(&self, change: impl FnOnce(&mut Groups, Instant) -> T) -> T {
        let result = change(&mut self.state().groups, Instant::now());
        self.group_changes.send_modify(|count| *count += 1);
        result
    }

    /// To wait for changes of groups from now on.
    pub(super) fn group_changes(&self) -> watch::Receiver<u64> {
        self.group_changes.subscribe()
    }

    /// Host and port that clients are told.
    pub(super) fn advertised(&self) -> (String, i32) {
        let host = match &self.config.advertised_host {
            Some(host) => host.clone(),
            // Nobody can connect to 0.0.0.0.
            None if self.address.ip().is_unspecified() => "localhost".to_owned(),
            None => self.address.ip().to_string(),
        };
        let port = self.config.advertised_port;
        (host, i32::from(port.unwrap_or(self.address.port())))
    }
}
