//! Authentication of one connection: PLAIN (RFC 4616), SCRAM (RFC 5802, 7677) and OAUTHBEARER (RFC 7628).

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{ApiVersionsRequest, SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::Request;

use super::config::{BrokerConfig, SaslUsers};
use super::scram::{Exchange, Hash, ScramError, Step};
use super::state::Refusal;

/// What a SASL listener offers.
pub(super) const MECHANISMS: [&str; 4] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"];

/// The authentication of one connection.
#[derive(Debug)]
pub(super) struct Session {
    stage: Stage,
    /// After a handshake of version 0 the tokens come and go as bare frames, without Kafka's headers.
    bare_tokens: bool,
}

/// How far a connection has come.
#[derive(Debug)]
enum Stage {
    /// No authentication is asked for, or it has succeeded.
    Open,
    /// Nothing has happened yet.
    Fresh,
    /// PLAIN was agreed on; its one message is awaited.
    Plain,
    /// SCRAM was agreed on; its next message is awaited.
    Scram(Exchange),
    /// OAUTHBEARER was agreed on; its one message is awaited.
    Bearer,
    /// The token was refused; Kafka waits for one byte before it says so with a code.
    BearerRefused,
    /// An attempt has failed.
    Failed,
}

impl Session {
    pub(super) fn new(config: &BrokerConfig) -> Self {
        let stage = if config.sasl.is_some() {
            Stage::Fresh
        } else {
            Stage::Open
        };
        Self {
            stage,
            bare_tokens: false,
        }
    }

    /// Whether a request of this API may be handled now.
    pub(super) fn allows(&self, key: i16) -> bool {
        match self.stage {
            Stage::Open => true,
            Stage::Fresh => matches!(key, ApiVersionsRequest::KEY | SaslHandshakeRequest::KEY),
            Stage::Plain | Stage::Scram(_) | Stage::Bearer | Stage::BearerRefused => {
                key == SaslAuthenticateRequest::KEY
            }
            Stage::Failed => false,
        }
    }

    /// Whether authentication is behind the connection, or not asked for.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// Whether the next frame is a bare token.
    pub(super) fn awaits_bare_token(&self) -> bool {
        self.bare_tokens
            && matches!(
                self.stage,
                Stage::Plain | Stage::Scram(_) | Stage::Bearer | Stage::BearerRefused
            )
    }

    /// Agrees on a mechanism.
    pub(super) fn handshake(&mut self, mechanism: &str, version: i16) -> Result<(), ResponseError> {
        if !matches!(self.stage, Stage::Fresh) {
            return Err(ResponseError::IllegalSaslState);
        }
        self.bare_tokens = version == 0;
        self.stage = match mechanism {
            "PLAIN" => Stage::Plain,
            "SCRAM-SHA-256" => Stage::Scram(Exchange::new(Hash::Sha256)),
            "SCRAM-SHA-512" => Stage::Scram(Exchange::new(Hash::Sha512)),
            "OAUTHBEARER" => Stage::Bearer,
            _ => {
                self.stage = Stage::Failed;
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
        match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Plain => {
                check_plain(users, message)?;
                self.stage = Stage::Open;
                Ok(Bytes::new())
            }
            Stage::Scram(exchange) => match exchange.step(users, message) {
                Ok(Step::Continue(next, answer)) => {
                    self.stage = Stage::Scram(next);
                    Ok(answer)
                }
                Ok(Step::Done(answer)) => {
                    self.stage = Stage::Open;
                    Ok(answer)
                }
                // Kafka has one sentence for a wrong password, an unknown user and a malformed message.
                Err(ScramError(hash)) => Err(failed(format!(
                    "Authentication failed during authentication due to invalid credentials with SASL mechanism {}",
                    hash.mechanism()
                ))),
            },
            Stage::Bearer if is_known_token(users, message)? => {
                self.stage = Stage::Open;
                Ok(Bytes::new())
            }
            Stage::Bearer => {
                self.stage = Stage::BearerRefused;
                Ok(Bytes::from_static(br#"{"status":"invalid_token"}"#))
            }
            Stage::BearerRefused => Err(failed(r#"{"status":"invalid_token"}"#)),
            before @ (Stage::Open | Stage::Fresh | Stage::Failed) => {
                self.stage = before;
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

/// `n,,`, then `auth=Bearer TOKEN` and other pairs, each between two bytes 1.
fn is_known_token(users: &SaslUsers, message: &[u8]) -> Result<bool, Refusal> {
    let malformed = || failed("Invalid OAUTHBEARER client first message");
    let pairs = message
        .strip_prefix(b"n,,\x01")
        .and_then(|rest| rest.strip_suffix(b"\x01\x01"))
        .ok_or_else(malformed)?;
    let token = pairs
        .split(|byte| *byte == 1)
        .find_map(|pair| pair.strip_prefix(b"auth=Bearer "))
        .ok_or_else(malformed)?;
    Ok(users
        .values()
        .any(|known| known.expose().as_bytes() == token))
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
