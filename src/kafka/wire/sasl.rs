//! Authentication of a connection, fresh or in use (KIP-368): SASL PLAIN, SCRAM and OAUTHBEARER in Kafka's frames (KIP-43, KIP-152, KIP-255).

use std::io::Cursor;
use std::ops::RangeInclusive;
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
use tokio::time::{Instant, timeout_at};

use super::access::Access;
use super::api::Call;
use super::connection::{Connection, Deadline};
use super::token;
use crate::kafka::security::extensions;
use crate::kafka::{KafkaConfig, KafkaError, SaslMechanism};
use crate::types::Secret;

/// More messages than any of our mechanisms exchanges: PLAIN one, SCRAM two and one empty.
const STEPS_MAX: usize = 8;
/// Rounds of hashing that a broker may ask for with SCRAM. Fewer than 4,096 give a password away to who listens, and Java clients refuse them
/// too; Kafka itself keeps to at most 16,384. What a hostile broker can ask for takes half an hour, in which this thread does nothing else.
const ITERATIONS: RangeInclusive<u32> = 4_096..=100_000;
/// How much of what a broker says in its own words is passed on.
const WORDS_MAX: usize = 300;

/// Proves who we are. No password and no token appears in an error.
pub(super) async fn authenticate(
    connection: &mut Connection,
    access: &Access,
    deadline: Deadline,
) -> Result<(), KafkaError> {
    let config = &access.config;
    if config.sasl_mechanism == SaslMechanism::Oauthbearer {
        let token = timeout_at(deadline.at, access.tokens.token(config));
        let token = token.await.map_err(|_elapsed| KafkaError::Credentials {
            detail: format!(
                "{}: none within {:?} (kafka.connect_timeout)",
                token::origin(config),
                deadline.after
            ),
        })??;
        handshake(connection, config, deadline).await?;
        let shown = show_token(connection, config, &token, deadline).await;
        if let Err(KafkaError::Authentication { .. }) = &shown {
            access.tokens.refused(&token).await;
        }
        return shown;
    }
    let password = config.password().await?;
    handshake(connection, config, deadline).await?;
    prove_password(connection, config, &password, deadline).await
}

async fn handshake(
    connection: &mut Connection,
    config: &KafkaConfig,
    deadline: Deadline,
) -> Result<(), KafkaError> {
    let version = connection.versions().choose::<SaslHandshakeRequest>()?;
    let mechanism = StrBytes::from_static_str(config.sasl_mechanism.as_str());
    let request = SaslHandshakeRequest::default().with_mechanism(mechanism);
    let response = connection.exchange(&request, version, deadline).await?;
    check_handshake(&response).map_err(|detail| refused(config, None, &detail))
}

async fn prove_password(
    connection: &mut Connection,
    config: &KafkaConfig,
    password: &Secret,
    deadline: Deadline,
) -> Result<(), KafkaError> {
    let refused = |said: &str| refused(config, Some(password), said);
    let mut session = start(config, password).map_err(|detail| refused(&detail))?;
    let mut challenge: Option<Bytes> = None;
    for _ in 0..STEPS_MAX {
        let (message, is_finished) =
            say(&mut session, challenge.as_deref()).map_err(|detail| refused(&detail))?;
        if let Some(message) = message {
            let answer = step(connection, config, password, message, deadline).await?;
            challenge = Some(answer);
        }
        if is_finished {
            return Ok(());
        }
    }
    Err(KafkaError::Protocol {
        operation: SaslAuthenticateRequest::OPERATION,
        detail: format!(
            "{} did not end after {STEPS_MAX} messages",
            config.sasl_mechanism.as_str()
        ),
    })
}

/// What the mechanism says to the broker's last message, if anything, and whether that ends it.
pub(super) fn say(
    session: &mut Session,
    challenge: Option<&[u8]>,
) -> Result<(Option<Vec<u8>>, bool), String> {
    // PLAIN has said all when the broker answers.
    challenge.map_or(Ok(()), check_attributes)?;
    let mut message = Cursor::new(Vec::new());
    let state = session
        .step(challenge, &mut message)
        .map_err(|error| error.to_string())?;
    let message = state.has_sent_message().then(|| message.into_inner());
    Ok((message, state.is_finished()))
}

/// RFC 5802: a message of SCRAM is made of attributes, a letter and `=` each, and `i=` says how many rounds the password is to be hashed. The
/// library panics at a shorter attribute, and does as many rounds as it is told.
fn check_attributes(challenge: &[u8]) -> Result<(), String> {
    for part in challenge.split(|byte| *byte == b',') {
        let [name, b'=', value @ ..] = part else {
            return Err("the broker's message is none of SCRAM's".to_owned());
        };
        let number = || str::from_utf8(value).ok()?.parse().ok();
        if *name == b'i' && !number().is_some_and(|number| ITERATIONS.contains(&number)) {
            let (least, most) = (ITERATIONS.start(), ITERATIONS.end());
            return Err(format!(
                "the broker asks for {} iterations; between {least} and {most} are taken",
                String::from_utf8_lossy(value)
            ));
        }
    }
    Ok(())
}

/// RFC 7628: one message, and an answer that is empty unless the broker does not take the token. Then it waits for one byte more before
/// it says so with a code.
async fn show_token(
    connection: &mut Connection,
    config: &KafkaConfig,
    token: &Secret,
    deadline: Deadline,
) -> Result<(), KafkaError> {
    let late = || {
        let since = token::expired_since(token);
        since.map_or_else(String::new, |since| {
            let since = humantime::format_duration(since);
            format!("; it expired {since} ago by this machine's clock")
        })
    };
    let tell = |error| match error {
        KafkaError::Authentication {
            mechanism,
            who,
            detail,
        } => KafkaError::Authentication {
            mechanism,
            who,
            detail: format!("{detail}{}", late()),
        },
        other => other,
    };
    let message = bearer_message(token, &config.sasl_oauthbearer_extensions)
        .map_err(|detail| refused(config, Some(token), &detail))?;
    let answer = step(connection, config, token, message, deadline);
    let answer = answer.await.map_err(tell)?;
    if answer.is_empty() {
        return Ok(());
    }
    step(connection, config, token, vec![1], deadline)
        .await
        .map_err(tell)?;
    let said = String::from_utf8_lossy(&answer);
    Err(tell(refused(config, Some(token), &said)))
}

fn bearer_message(token: &Secret, settings: &str) -> Result<Vec<u8>, String> {
    let mut message = b"n,,\x01auth=Bearer ".to_vec();
    message.extend_from_slice(token.expose().as_bytes());
    for (name, value) in extensions(settings)? {
        message.extend_from_slice(format!("\x01{name}={value}").as_bytes());
    }
    message.extend_from_slice(b"\x01\x01");
    Ok(message)
}

/// Sends one message of the mechanism, made of `secret`; answers with the broker's.
async fn step(
    connection: &mut Connection,
    config: &KafkaConfig,
    secret: &Secret,
    message: Vec<u8>,
    deadline: Deadline,
) -> Result<Bytes, KafkaError> {
    let version = connection.versions().choose::<SaslAuthenticateRequest>()?;
    let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
    let response = connection
        .exchange(&request, version, deadline)
        .await
        .map_err(|error| hung_up(config, error))?;
    check_step(&response).map_err(|detail| refused(config, Some(secret), &detail))?;
    connection.expires = expiry(response.session_lifetime_ms);
    Ok(response.auth_bytes)
}

pub(super) fn start(config: &KafkaConfig, password: &Secret) -> Result<Session, String> {
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

/// Some brokers close without a word when they cannot read what they are shown.
fn hung_up(config: &KafkaConfig, error: KafkaError) -> KafkaError {
    match error {
        KafkaError::Disconnected { operation, detail } => KafkaError::Disconnected {
            operation,
            detail: format!(
                "{detail}, as SASL {} showed {}",
                config.sasl_mechanism.as_str(),
                who(config)
            ),
        },
        other => other,
    }
}

/// A broker's words may repeat what it was sent: the secret goes before they are cut, or its beginning could stay.
fn refused(config: &KafkaConfig, secret: Option<&Secret>, said: &str) -> KafkaError {
    let said = said.to_owned();
    let said = match secret {
        Some(secret) => secret.redact(said),
        None => said,
    };
    KafkaError::Authentication {
        mechanism: config.sasl_mechanism.as_str(),
        who: who(config),
        detail: words(&said),
    }
}

/// Who we say we are, with the settings that say it.
fn who(config: &KafkaConfig) -> String {
    if config.sasl_mechanism == SaslMechanism::Oauthbearer {
        return token::origin(config).to_owned();
    }
    let password = match config.sasl_password_file {
        Some(_) => "kafka.sasl_password_file",
        None => "kafka.sasl_password",
    };
    format!(
        "user `{}` (kafka.sasl_username, {password})",
        config.sasl_username
    )
}

/// What a broker says, without what a terminal would act on, and not without end.
fn words(said: &str) -> String {
    let printed = said.chars().filter(|character| !character.is_control());
    printed.take(WORDS_MAX).collect()
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
            .map_or_else(|| format!("{error:?}"), |message| message.to_string())),
    }
}

/// When to authenticate again. The broker closes a connection that is used beyond its session's lifetime: 85 % of it, as Java clients have
/// it, leaves room for a request on its way.
fn expiry(session_lifetime_ms: i64) -> Option<Instant> {
    let lifetime = u64::try_from(session_lifetime_ms)
        .ok()
        .filter(|ms| *ms > 0)?;
    Instant::now().checked_add(Duration::from_millis(lifetime / 100 * 85))
}

#[cfg(test)]
mod tests;
