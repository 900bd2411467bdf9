//! Tokens for OAUTHBEARER: read from a file that somebody else keeps fresh, or asked for with the client-credentials grant (RFC 6749, 4.4).
//!
//! A token that was asked for serves all connections of a cluster until four fifths of its life are over, as Java clients have it
//! (`sasl.login.refresh.window.factor`). When no new one can be had then, the old one serves to its end.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Client, redirect};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::kafka::security;
use crate::kafka::{KafkaConfig, KafkaError};
use crate::types::{Secret, error_chain};
use crate::{clock, tls};

const FILE: &str = "kafka.sasl_oauthbearer_token_file";
const ENDPOINT: &str = "kafka.sasl_oauthbearer_token_endpoint_url";
const CLIENT_SECRET: &str = "kafka.sasl_oauthbearer_client_credentials_client_secret";
const CLIENT_SECRET_FILE: &str = "kafka.sasl_oauthbearer_client_credentials_client_secret_file";

/// Most bytes of an answer with a token: what Kafka reads of a client that has not said who it is.
const ANSWER_BYTES_MAX: usize = 512 * 1024;
/// The life of a token that does not tell its own.
const LIFE_UNTOLD: Duration = Duration::from_secs(60);
/// The longest life that is believed.
const LIFE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How long after a vain try the next one comes while the old token still holds (`sasl.login.refresh.min.period.seconds` is 60).
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How much of what a server says in its own words is passed on.
const WORDS_MAX: usize = 200;

/// The token in use; the lock is held while a new one is asked for, so that many connections ask once.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    token: Secret,
    refresh_at: Instant,
    expires_at: Instant,
}

impl Held {
    fn new(token: Secret, life: Duration) -> Self {
        let (now, life) = (Instant::now(), life.min(LIFE_MAX));
        Self {
            token,
            refresh_at: now + life / 5 * 4,
            expires_at: now + life,
        }
    }
}

impl Tokens {
    /// A token that holds now.
    ///
    /// # Cancel safety
    /// Safe: the next caller asks.
    pub(super) async fn token(&self, config: &KafkaConfig) -> Result<Secret, KafkaError> {
        if let Some(path) = &config.sasl_oauthbearer_token_file {
            let file = (FILE, Some(path.as_path()));
            let token = security::secret((FILE, None), file).await?;
            return check(token, &format!("{FILE} = `{}`", path.display()));
        }
        let mut held = self.held.lock().await;
        let now = Instant::now();
        if let Some(held) = &*held
            && now < held.refresh_at
        {
            return Ok(held.token.clone());
        }
        // Whoever waits for this has no more time than for dialling: where an old token serves on, that is most of what is left for it.
        let has_old = held.as_ref().is_some_and(|held| now < held.expires_at);
        let within = config.connect_timeout / if has_old { 4 } else { 1 };
        let asked = timeout(within, ask(config))
            .await
            .unwrap_or_else(|_elapsed| {
                Err(KafkaError::Credentials {
                    detail: format!("{}: none within {within:?}", origin(config)),
                })
            });
        match asked {
            Ok(fresh) => Ok(held.insert(fresh).token.clone()),
            Err(error) => match &mut *held {
                Some(held) if now < held.expires_at => {
                    tracing::warn!(%error, "the token was not renewed; the old one serves on");
                    held.refresh_at = now + RETRY_AFTER;
                    Ok(held.token.clone())
                }
                _ => Err(error),
            },
        }
    }

    /// A broker does not take this token: the next connection asks for another.
    pub(super) async fn refused(&self, token: &Secret) {
        let mut held = self.held.lock().await;
        if held.as_ref().is_some_and(|held| held.token == *token) {
            *held = None;
        }
    }
}

/// Whose token it is, for messages.
pub(super) const fn origin(config: &KafkaConfig) -> &'static str {
    if config.sasl_oauthbearer_token_file.is_some() {
        "the token (kafka.sasl_oauthbearer_token_file)"
    } else {
        "the token (kafka.sasl_oauthbearer_token_endpoint_url)"
    }
}

/// How long ago it expired, when the token tells and it did.
pub(super) fn expired_since(token: &Secret) -> Option<Duration> {
    let expires = expiry(token)?;
    u64::try_from(clock::now().as_second().saturating_sub(expires))
        .ok()
        .map(Duration::from_secs)
}

/// `exp` of a JSON Web Token, in seconds of the wall clock. It is not verified: that is the broker's business.
fn expiry(token: &Secret) -> Option<i64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: serde_json::Number,
    }
    let claims = token.expose().split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    exp.as_i64()
        .or_else(|| exp.to_string().split('.').next()?.parse().ok())
}

/// RFC 6750: what can stand in a message without ending it.
fn check(token: Secret, place: &str) -> Result<Secret, KafkaError> {
    if !token.expose().is_empty() && token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(token);
    }
    Err(KafkaError::Credentials {
        detail: format!("{place}: it holds no token, which is one line without spaces"),
    })
}

#[derive(Deserialize)]
struct Answer {
    access_token: Secret,
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Complaint {
    error: String,
    #[serde(default)]
    error_description: String,
}

async fn ask(config: &KafkaConfig) -> Result<Held, KafkaError> {
    let url = &config.sasl_oauthbearer_token_endpoint_url;
    let fails = |detail: &dyn fmt::Display| KafkaError::Credentials {
        detail: format!("{ENDPOINT} = `{url}` gives no token: {detail}"),
    };
    let secret = security::secret(
        (
            CLIENT_SECRET,
            config
                .sasl_oauthbearer_client_credentials_client_secret
                .as_ref(),
        ),
        (
            CLIENT_SECRET_FILE,
            config
                .sasl_oauthbearer_client_credentials_client_secret_file
                .as_deref(),
        ),
    )
    .await?;
    let lost = |error: reqwest::Error| fails(&error_chain(&error.without_url()));
    let mut response = client(config)
        .await?
        .post(url)
        .basic_auth(
            &config.sasl_oauthbearer_client_credentials_client_id,
            Some(secret.expose()),
        )
        .header(
            reqwest::header::CONTENT_TYPE,
            "application/x-www-form-urlencoded",
        )
        .header(reqwest::header::ACCEPT, "application/json")
        .body(form(&config.sasl_oauthbearer_scope))
        .send()
        .await
        .map_err(lost)?;
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(lost)? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            let problem = format!("its answer is larger than {ANSWER_BYTES_MAX} bytes");
            return Err(fails(&problem));
        }
        body.extend_from_slice(&piece);
    }
    if status != 200 {
        let said = complaint(&body, &secret);
        return Err(fails(&format!(
            "it answers {status}{said} (kafka.sasl_oauthbearer_client_credentials_client_id, …_client_secret)"
        )));
    }
    held(&body, &fails)
}

/// The token of an answer.
fn held(body: &[u8], fails: &dyn Fn(&dyn fmt::Display) -> KafkaError) -> Result<Held, KafkaError> {
    // The parser's own words could repeat the token.
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_source| fails(&"its answer is no JSON with an access_token"))?;
    let token = check(answer.access_token, ENDPOINT)?;
    let life = answer
        .expires_in
        .and_then(|told| seconds(&told))
        .or_else(|| {
            let left = expiry(&token)?.saturating_sub(clock::now().as_second());
            u64::try_from(left).ok()
        })
        .map_or(LIFE_UNTOLD, Duration::from_secs);
    Ok(Held::new(token, life))
}

/// `expires_in`, which some servers send as text.
fn seconds(told: &serde_json::Value) -> Option<u64> {
    told.as_u64().or_else(|| told.as_str()?.parse().ok())
}

/// Trusts the system's authorities, and those of the brokers beside them.
async fn client(config: &KafkaConfig) -> Result<Client, KafkaError> {
    let fails = |detail: &dyn fmt::Display| KafkaError::Credentials {
        detail: format!("{ENDPOINT}: {detail}"),
    };
    let is_https = config
        .sasl_oauthbearer_token_endpoint_url
        .starts_with("https:");
    let roots = if is_https {
        let mut roots = tokio::task::spawn_blocking(tls::system_roots)
            .await
            .map_err(|error| fails(&error))?;
        if let Some(path) = &config.ssl_truststore_location {
            let setting = "kafka.ssl_truststore_location";
            let pem = security::read(setting, path).await?;
            tls::trust(&mut roots, &pem).map_err(|error| KafkaError::Credentials {
                detail: format!("{setting} = `{}`: {}", path.display(), error_chain(&error)),
            })?;
        }
        Some(roots)
    } else {
        None
    };
    let tls = tls::http_client(roots).map_err(|error| fails(&error_chain(&error)))?;
    Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        .timeout(config.connect_timeout)
        .user_agent(concat!("kafka-llm-processor/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| fails(&error_chain(&error.without_url())))
}

fn form(scope: &str) -> String {
    let mut form = "grant_type=client_credentials".to_owned();
    if !scope.is_empty() {
        form.push_str("&scope=");
        // RFC 3986: whatever is not unreserved is escaped, which every form decoder understands.
        for byte in scope.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                form.push(char::from(byte));
            } else {
                form.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    form
}

/// The server's own words (RFC 6749, 5.2), cut short, and without the secret should it repeat that.
fn complaint(body: &[u8], secret: &Secret) -> String {
    let Ok(Complaint {
        error,
        error_description,
    }) = serde_json::from_slice(body)
    else {
        return String::new();
    };
    let said = format!("{error}: {error_description}").replace(secret.expose(), "***");
    let said: String = said
        .trim_end_matches([':', ' '])
        .chars()
        .filter(|character| !character.is_control())
        .take(WORDS_MAX)
        .collect();
    format!(", {said}")
}

/// What the crate's `fuzzing` hands to fuzzers.
pub(super) fn fuzzing(body: &[u8]) {
    let fails = |detail: &dyn fmt::Display| KafkaError::Credentials {
        detail: detail.to_string(),
    };
    drop(held(body, &fails));
    drop(complaint(body, &Secret::new("hush")));
    expired_since(&Secret::new(String::from_utf8_lossy(body)));
}

#[cfg(test)]
mod tests;
