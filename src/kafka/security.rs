//! How connections are secured: the words of the settings, what they need of each other, and the secrets that lie in files.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use super::{KafkaConfig, KafkaError};
use crate::types::Secret;

/// Most bytes of a file with a password, a token, certificates or a key. Kafka reads no more than 512 KiB of a client that has not said who
/// it is.
const FILE_BYTES_MAX: u64 = 512 * 1024;

/// `security.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum SecurityProtocol {
    /// Neither encryption nor authentication.
    #[default]
    #[serde(rename = "PLAINTEXT")]
    Plaintext,
    /// TLS; who we are is told by a certificate, or not at all.
    #[serde(rename = "SSL")]
    Ssl,
    /// SASL without encryption.
    #[serde(rename = "SASL_PLAINTEXT")]
    SaslPlaintext,
    /// SASL over TLS.
    #[serde(rename = "SASL_SSL")]
    SaslSsl,
}

impl SecurityProtocol {
    /// Kafka's name for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "PLAINTEXT",
            Self::Ssl => "SSL",
            Self::SaslPlaintext => "SASL_PLAINTEXT",
            Self::SaslSsl => "SASL_SSL",
        }
    }

    /// Whether connections are encrypted.
    #[must_use]
    pub const fn has_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    /// Whether a mechanism proves who we are.
    #[must_use]
    pub const fn has_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

/// `sasl.mechanism`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum SaslMechanism {
    /// User and password as they are.
    #[default]
    #[serde(rename = "PLAIN")]
    Plain,
    /// RFC 5802 with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// RFC 5802 with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// RFC 7628: a token of an identity provider.
    #[serde(rename = "OAUTHBEARER")]
    Oauthbearer,
}

impl SaslMechanism {
    /// Kafka's name for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::Oauthbearer => "OAUTHBEARER",
        }
    }
}

/// `ssl.endpoint.identification.algorithm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum EndpointIdentification {
    /// A broker's certificate has to name the host that was dialled.
    #[default]
    Https,
    /// Any host will do that has a certificate of a trusted authority.
    None,
}

impl KafkaConfig {
    /// The setting that only the wire driver can serve.
    #[must_use]
    pub const fn needs_wire(&self) -> Option<&'static str> {
        match self.security_protocol {
            SecurityProtocol::Ssl => Some("kafka.security_protocol = SSL"),
            SecurityProtocol::SaslSsl => Some("kafka.security_protocol = SASL_SSL"),
            SecurityProtocol::SaslPlaintext
                if matches!(self.sasl_mechanism, SaslMechanism::Oauthbearer) =>
            {
                Some("kafka.sasl_mechanism = OAUTHBEARER")
            }
            SecurityProtocol::SaslPlaintext | SecurityProtocol::Plaintext => None,
        }
    }

    /// Whether tokens are asked for, rather than read from a file.
    fn asks_for_tokens(&self) -> bool {
        self.uses_tokens() && self.sasl_oauthbearer_token_file.is_none()
    }

    const fn uses_tokens(&self) -> bool {
        self.security_protocol.has_sasl()
            && matches!(self.sasl_mechanism, SaslMechanism::Oauthbearer)
    }

    /// The password, which may lie in a file that is written anew.
    ///
    /// # Errors
    /// When there is none, or its file is of no use.
    pub(super) async fn password(&self) -> Result<Secret, KafkaError> {
        secret(
            ("kafka.sasl_password", self.sasl_password.as_ref()),
            (
                "kafka.sasl_password_file",
                self.sasl_password_file.as_deref(),
            ),
        )
        .await
    }

    /// What is wrong with the settings about security, one sentence each. Each begins with the key.
    #[must_use]
    pub fn validate_security(&self) -> Vec<String> {
        let mut problems = Vec::new();
        self.validate_sasl(&mut problems);
        self.validate_tokens(&mut problems);
        self.validate_tls(&mut problems);
        problems
    }

    fn validate_sasl(&self, problems: &mut Vec<String>) {
        if self.sasl_password.is_some() && self.sasl_password_file.is_some() {
            problems.push(
                "kafka.sasl_password_file: kafka.sasl_password is set too; set one of them"
                    .to_owned(),
            );
        }
        let has_password = self.sasl_password.is_some() || self.sasl_password_file.is_some();
        if self.security_protocol.has_sasl()
            && self.sasl_mechanism != SaslMechanism::Oauthbearer
            && (self.sasl_username.is_empty() || !has_password)
        {
            problems.push(format!(
                "kafka.security_protocol = {} needs kafka.sasl_username and kafka.sasl_password (KLP_KAFKA__SASL_PASSWORD) or kafka.sasl_password_file",
                self.security_protocol.as_str()
            ));
        }
    }

    fn validate_tokens(&self, problems: &mut Vec<String>) {
        let url = &self.sasl_oauthbearer_token_endpoint_url;
        if self.uses_tokens() && (self.sasl_oauthbearer_token_file.is_some() != url.is_empty()) {
            problems.push(
                "kafka.sasl_mechanism = OAUTHBEARER needs kafka.sasl_oauthbearer_token_file or kafka.sasl_oauthbearer_token_endpoint_url, one of them"
                    .to_owned(),
            );
        }
        if !url.is_empty() {
            let parsed = reqwest::Url::parse(url).ok();
            let usable = parsed.as_ref().is_some_and(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.username().is_empty()
                    && url.password().is_none()
            });
            if !usable {
                // Not repeated: it may hold a password.
                problems.push(
                    "kafka.sasl_oauthbearer_token_endpoint_url: must be an http:// or https:// URL without a user and a password"
                        .to_owned(),
                );
            }
        }
        let secret = &self.sasl_oauthbearer_client_credentials_client_secret;
        let file = &self.sasl_oauthbearer_client_credentials_client_secret_file;
        if secret.is_some() && file.is_some() {
            problems.push(
                "kafka.sasl_oauthbearer_client_credentials_client_secret_file: kafka.sasl_oauthbearer_client_credentials_client_secret is set too; set one of them"
                    .to_owned(),
            );
        }
        let is_known = !self
            .sasl_oauthbearer_client_credentials_client_id
            .is_empty()
            && (secret.is_some() || file.is_some());
        if self.asks_for_tokens() && !url.is_empty() && !is_known {
            problems.push(
                "kafka.sasl_oauthbearer_token_endpoint_url needs kafka.sasl_oauthbearer_client_credentials_client_id and kafka.sasl_oauthbearer_client_credentials_client_secret (or …_client_secret_file)"
                    .to_owned(),
            );
        }
        if let Err(problem) = extensions(&self.sasl_oauthbearer_extensions) {
            problems.push(format!("kafka.sasl_oauthbearer_extensions: {problem}"));
        }
    }

    fn validate_tls(&self, problems: &mut Vec<String>) {
        let has_tls = self.security_protocol.has_tls();
        let trusts_for_tokens = self.asks_for_tokens()
            && self
                .sasl_oauthbearer_token_endpoint_url
                .starts_with("https");
        let without_effect = [
            (
                "kafka.ssl_truststore_location",
                self.ssl_truststore_location.is_some() && !trusts_for_tokens,
            ),
            (
                "kafka.ssl_keystore_location",
                self.ssl_keystore_location.is_some(),
            ),
            ("kafka.ssl_key_location", self.ssl_key_location.is_some()),
        ];
        for (key, _) in without_effect.iter().filter(|(_, is_set)| *is_set) {
            if !has_tls {
                problems.push(format!(
                    "{key}: kafka.security_protocol = {} uses no TLS; set SSL or SASL_SSL",
                    self.security_protocol.as_str()
                ));
            }
        }
        if self.ssl_key_location.is_some() && self.ssl_keystore_location.is_none() {
            problems.push(
                "kafka.ssl_key_location needs kafka.ssl_keystore_location, the certificate that the key is for"
                    .to_owned(),
            );
        }
    }
}

/// `name=value` pairs, comma separated, of `sasl.oauthbearer.extensions` (KIP-342).
///
/// # Errors
/// With what is wrong.
pub(super) fn extensions(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let pairs = text.split(',').map(str::trim);
    let pairs = pairs.filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("`{pair}` is not name=value"))?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic());
        // RFC 7628: 0x01 ends a value.
        let is_value = value
            .bytes()
            .all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if !is_name || name == "auth" || !is_value {
            return Err(format!(
                "`{name}` cannot be sent: a name is letters and not `auth`, a value ASCII"
            ));
        }
        Ok((name, value))
    });
    pairs.collect()
}

/// A secret out of the settings or a file, each with the name of its setting.
pub(super) async fn secret(
    (setting, value): (&'static str, Option<&Secret>),
    (file_setting, file): (&'static str, Option<&Path>),
) -> Result<Secret, KafkaError> {
    let Some(path) = file else {
        return value.cloned().ok_or_else(|| KafkaError::Credentials {
            detail: format!("{setting} is not set"),
        });
    };
    let bytes = read(file_setting, path).await?;
    let unusable = |problem: &str| KafkaError::Credentials {
        detail: format!("{file_setting} = `{}` {problem}", path.display()),
    };
    // Its content is in no error.
    let text = std::str::from_utf8(&bytes).map_err(|_invalid| unusable("is not UTF-8"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(unusable("is empty"));
    }
    Ok(Secret::new(text))
}

/// A file that a setting names.
pub(super) async fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, KafkaError> {
    let unreadable = |problem: &dyn std::fmt::Display| KafkaError::Credentials {
        detail: format!("{setting} = `{}` cannot be read: {problem}", path.display()),
    };
    let file = tokio::fs::File::open(path);
    let file = file.await.map_err(|error| unreadable(&error))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .await
        .map_err(|error| unreadable(&error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(unreadable(&format!(
            "it is larger than {FILE_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
