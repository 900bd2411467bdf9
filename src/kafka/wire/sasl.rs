//! Authentication of a fresh connection: SASL PLAIN and SCRAM in Kafka's frames (KIP-43, KIP-152).

use std::io::Cursor;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::{ResponseError, error::ParseResponseErrorCode};
use rsasl::config::SASLConfig;
use rsasl::mechname::Mechname;
use rsasl::prelude::{SASLClient, Session};
use tokio::time::Instant;

use super::api::Call;
use super::connection::{Connection, Deadline};
use crate::kafka::{KafkaConfig, KafkaError};

/// More messages than any of our mechanisms exchanges: PLAIN one, SCRAM two and one empty.
const STEPS_MAX: usize = 8;

/// Proves who we are. The password appears in no error.
pub(super) async fn authenticate(
    connection: &mut Connection,
    config: &KafkaConfig,
    deadline: Deadline,
) -> Result<(), KafkaError> {
    let mechanism = config.sasl_mechanism.as_str();
    let version = connection.versions().choose::<SaslHandshakeRequest>()?;
    let request =
        SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
    let response = connection.exchange(&request, version, deadline).await?;
    check_handshake(&response).map_err(|detail| refused(config, detail))?;

    let mut session = start(config).map_err(|detail| refused(config, detail))?;
    let version = connection.versions().choose::<SaslAuthenticateRequest>()?;
    let mut challenge: Option<Bytes> = None;
    for _ in 0..STEPS_MAX {
        let mut message = Cursor::new(Vec::new());
        let state = session
            .step(challenge.as_deref(), &mut message)
            .map_err(|error| refused(config, error.to_string()))?;
        if state.has_sent_message() {
            let request =
                SaslAuthenticateRequest::default().with_auth_bytes(message.into_inner().into());
            let response = connection.exchange(&request, version, deadline).await?;
            check_step(&response).map_err(|detail| refused(config, detail))?;
            connection.expires = expiry(response.session_lifetime_ms);
            challenge = Some(response.auth_bytes);
        }
        if state.is_finished() {
            return Ok(());
        }
    }
    Err(KafkaError::Protocol {
        operation: SaslAuthenticateRequest::OPERATION,
        detail: format!("{mechanism} did not end after {STEPS_MAX} messages"),
    })
}

fn start(config: &KafkaConfig) -> Result<Session, String> {
    let password = config
        .sasl_password
        .as_ref()
        .ok_or("kafka.sasl_password is not set")?;
    let credentials = SASLConfig::with_credentials(
        None,
        config.sasl_username.clone(),
        password.expose().to_owned(),
    )
    .map_err(|error| error.to_string())?;
    let mechanism = Mechname::parse(config.sasl_mechanism.as_str().as_bytes())
        .map_err(|error| error.to_string())?;
    SASLClient::new(credentials)
        .start_suggested(&[mechanism])
        .map_err(|error| error.to_string())
}

fn refused(config: &KafkaConfig, detail: String) -> KafkaError {
    KafkaError::Authentication {
        mechanism: config.sasl_mechanism.as_str(),
        username: config.sasl_username.clone(),
        // A broker's words may repeat what it was sent.
        detail: match &config.sasl_password {
            Some(password) => password.redact(detail),
            None => detail,
        },
    }
}

fn check_handshake(response: &SaslHandshakeResponse) -> Result<(), String> {
    match response.error_code.err() {
        None => Ok(()),
        Some(ResponseError::UnsupportedSaslMechanism) => {
            let enabled: Vec<_> = response.mechanisms.iter().map(StrBytes::as_str).collect();
            Err(format!(
                "the broker offers {} (kafka.sasl_mechanism)",
                enabled.join(", ")
            ))
        }
        Some(ResponseError::IllegalSaslState) => Err(
            "this listener takes no SASL (kafka.security_protocol, or the port in kafka.brokers)"
                .to_owned(),
        ),
        Some(error) => Err(format!("{error:?} ({})", response.error_code)),
    }
}

fn check_step(response: &SaslAuthenticateResponse) -> Result<(), String> {
    match response.error_code.err() {
        None => Ok(()),
        Some(error) => Err(response
            .error_message
            .as_ref()
            .filter(|message| !message.is_empty())
            .map_or_else(|| format!("{error:?}"), StrBytes::to_string)),
    }
}

/// The broker closes a connection that is used beyond its session's lifetime: 85 % of it, as Java clients have it, leaves room for
/// a request on its way.
fn expiry(session_lifetime_ms: i64) -> Option<Instant> {
    let lifetime = u64::try_from(session_lifetime_ms)
        .ok()
        .filter(|ms| *ms > 0)?;
    Instant::now().checked_add(Duration::from_millis(lifetime / 100 * 85))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Secret;

    fn config(password: Option<&str>) -> KafkaConfig {
        KafkaConfig {
            sasl_username: "alice".to_owned(),
            sasl_password: password.map(Secret::new),
            ..KafkaConfig::default()
        }
    }

    #[test]
    fn a_missing_password_names_its_setting() {
        let detail = start(&config(None)).err().unwrap();
        assert!(detail.contains("kafka.sasl_password"), "{detail}");
        assert!(start(&config(Some("secret"))).is_ok());
    }

    #[test]
    fn a_mechanism_that_is_not_enabled_names_those_that_are() {
        let response = SaslHandshakeResponse::default()
            .with_error_code(33)
            .with_mechanisms(vec![StrBytes::from_static_str("SCRAM-SHA-512")]);
        let detail = check_handshake(&response).unwrap_err();
        assert!(detail.contains("SCRAM-SHA-512") && detail.contains("kafka.sasl_mechanism"));
    }

    #[test]
    fn the_brokers_own_words_are_passed_on() {
        let response = SaslAuthenticateResponse::default().with_error_code(58);
        let plain = check_step(&response).unwrap_err();
        assert_eq!(plain, "SaslAuthenticationFailed");
        let worded = response.with_error_message(Some(StrBytes::from_static_str("who are you")));
        assert_eq!(check_step(&worded).unwrap_err(), "who are you");
    }

    #[test]
    fn a_session_ends_before_the_broker_ends_it() {
        assert_eq!(expiry(0), None);
        assert_eq!(expiry(-1), None);
        let now = Instant::now();
        let ends = expiry(10_000).unwrap() - now;
        assert!(ends > Duration::from_secs(8) && ends < Duration::from_secs(9));
    }
}
