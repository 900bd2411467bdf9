//! Authentication of one connection: PLAIN (RFC 4616) and SCRAM (RFC 5802, 7677).

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{ApiVersionsRequest, SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::Request;

use super::config::{BrokerConfig, SaslUsers};
use super::scram::{Exchange, Hash, ScramError, Step};
use super::state::Refusal;

/// What a SASL listener offers.
pub(super) const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// How far a connection has come.
#[derive(Debug)]
pub(super) enum Session {
    /// No authentication is asked for, or it has succeeded.
    Open,
    /// Nothing has happened yet.
    Fresh,
    /// PLAIN was agreed on; its one message is awaited.
    Plain,
    /// SCRAM was agreed on; its next message is awaited.
    Scram(Exchange),
    /// An attempt has failed.
    Failed,
}

impl Session {
    pub(super) fn new(config: &BrokerConfig) -> Self {
        if config.sasl.is_some() {
            Self::Fresh
        } else {
            Self::Open
        }
    }

    /// Whether a request of this API may be handled now.
    pub(super) fn allows(&self, key: i16) -> bool {
        match self {
            Self::Open => true,
            Self::Fresh => matches!(key, ApiVersionsRequest::KEY | SaslHandshakeRequest::KEY),
            Self::Plain | Self::Scram(_) => key == SaslAuthenticateRequest::KEY,
            Self::Failed => false,
        }
    }

    /// Agrees on a mechanism.
    pub(super) fn handshake(&mut self, mechanism: &str) -> Result<(), ResponseError> {
        if !matches!(self, Self::Fresh) {
            return Err(ResponseError::IllegalSaslState);
        }
        *self = match mechanism {
            "PLAIN" => Self::Plain,
            "SCRAM-SHA-256" => Self::Scram(Exchange::new(Hash::Sha256)),
            "SCRAM-SHA-512" => Self::Scram(Exchange::new(Hash::Sha512)),
            _ => {
                *self = Self::Failed;
                return Err(ResponseError::UnsupportedSaslMechanism);
            }
        };
        Ok(())
    }

    /// Takes the client's next message; answers the server's.
    pub(super) fn authenticate(
        &mut self,
        users: &SaslUsers,
        message: &Bytes,
    ) -> Result<Bytes, Refusal> {
        match std::mem::replace(self, Self::Failed) {
            Self::Plain => {
                check_plain(users, message)?;
                *self = Self::Open;
                Ok(Bytes::new())
            }
            Self::Scram(exchange) => match exchange.step(users, message) {
                Ok(Step::Continue(next, answer)) => {
                    *self = Self::Scram(next);
                    Ok(answer)
                }
                Ok(Step::Done(answer)) => {
                    *self = Self::Open;
                    Ok(answer)
                }
                Err(ScramError::Malformed) => Err(failed("the SCRAM message is malformed")),
                Err(ScramError::Credentials(hash)) => Err(failed(format!(
                    "Authentication failed during authentication due to invalid credentials with SASL mechanism {}",
                    hash.mechanism()
                ))),
            },
            before @ (Self::Open | Self::Fresh | Self::Failed) => {
                *self = before;
                Err(Refusal::new(
                    ResponseError::IllegalSaslState,
                    "SaslAuthenticate request received after successful authentication",
                ))
            }
        }
    }
}

fn failed(message: impl Into<String>) -> Refusal {
    Refusal::new(ResponseError::SaslAuthenticationFailed, message)
}

/// `[authorisation id] NUL user NUL password`.
fn check_plain(users: &SaslUsers, message: &[u8]) -> Result<(), Refusal> {
    let mut parts = message.split(|byte| *byte == 0);
    let (Some(authzid), Some(user), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(failed("Invalid SASL/PLAIN response: expected 3 tokens"));
    };
    let known = std::str::from_utf8(user)
        .ok()
        .and_then(|user| users.get(user));
    let is_right = known.is_some_and(|secret| secret.expose().as_bytes() == password);
    if !is_right {
        return Err(failed(
            "Authentication failed: Invalid username or password",
        ));
    }
    if !authzid.is_empty() && authzid != user {
        return Err(failed(
            "Authentication failed: Client requested an authorization id that is different from username",
        ));
    }
    Ok(())
}
