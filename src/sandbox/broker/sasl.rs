//! Authentication of one connection.

use kafka_protocol::messages::{ApiKey, ApiVersionsRequest};
use kafka_protocol::protocol::Request;

use super::config::BrokerConfig;

/// How far a connection has come.
#[derive(Debug)]
pub(super) struct Session {
    authenticated: bool,
}

impl Session {
    pub(super) fn new(config: &BrokerConfig) -> Self {
        Self {
            authenticated: config.sasl.is_none(),
        }
    }

    /// Whether a request of this API may be handled now.
    pub(super) fn allows(&self, key: i16) -> bool {
        self.authenticated
            || key == ApiVersionsRequest::KEY
            || key == ApiKey::SaslHandshake as i16
            || key == ApiKey::SaslAuthenticate as i16
    }
}
