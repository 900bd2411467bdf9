//! What all connections to a cluster share: the settings, TLS as the files have it, the token.

use super::tls::Tls;
use super::token::Tokens;
use crate::kafka::KafkaConfig;

#[derive(Debug)]
pub(super) struct Access {
    pub(super) config: KafkaConfig,
    pub(super) tls: Tls,
    pub(super) tokens: Tokens,
}

impl Access {
    /// Nothing is read or asked for before the first connection.
    pub(super) fn new(config: KafkaConfig) -> Self {
        Self {
            config,
            tls: Tls::default(),
            tokens: Tokens::default(),
        }
    }
}
