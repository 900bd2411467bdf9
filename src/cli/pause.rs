//! `pause` and `resume`: turn a processor's switch through its admin server.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde::Deserialize;
use tokio::time::timeout;

use crate::cli::output::first_line;
use crate::cli::{EXIT_FAILURE, EXIT_USAGE};
use crate::llm::{Call, HttpTransport, LlmConfig, LlmError, Transport as _, TransportError};
use crate::telemetry::AdminConfig;
use crate::telemetry::server::{AdminError, Listen};
use crate::types::Secret;

/// The server answers from memory.
const WITHIN: Duration = Duration::from_secs(5);

/// Arguments of `pause` and `resume`.
#[derive(Debug, Clone, Default, Args)]
pub struct PauseArgs {
    /// Where the processor's admin server listens; otherwise admin.listen.
    #[arg(long, value_name = "HOST:PORT")]
    pub admin: Option<String>,
}

/// Why the switch was not turned.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// It is not known whom to ask.
    #[error(
        "admin.listen = {0} names no port to ask: name the processor's admin server with --admin HOST:PORT"
    )]
    NoAddress(Listen),
    /// The token file is of no use.
    #[error(transparent)]
    Token(#[from] AdminError),
    /// The token cannot stand in a header.
    #[error("admin.token_file: the token cannot stand in an HTTP header")]
    Header,
    /// The machine rules the client out.
    #[error("no HTTP client")]
    Client(#[from] LlmError),
    /// The admin server cannot be reached.
    #[error("{address} cannot be asked: is the processor running, and is that its admin.listen?")]
    Unreachable {
        /// Who was asked.
        address: String,
        /// What the connection said.
        source: TransportError,
    },
    /// The answer is none.
    #[error("{address} answers {status}: {text}")]
    Refused {
        /// Who was asked.
        address: String,
        /// HTTP status.
        status: u16,
        /// What it said.
        text: String,
    },
    /// Standard output.
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
}

impl PauseError {
    /// The process's exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NoAddress(_) | Self::Token(_) | Self::Header => EXIT_USAGE,
            Self::Client(_) | Self::Unreachable { .. } | Self::Refused { .. } | Self::Output(_) => {
                EXIT_FAILURE
            }
        }
    }
}

/// What the server answers.
#[derive(Debug, Deserialize)]
struct Turned {
    changed: bool,
    since: Option<String>,
    in_flight: u64,
}

/// Pauses the processor, or has it go on, and tells how it stands.
///
/// # Errors
/// As [`PauseError`] says.
///
/// # Cancel safety
/// The switch may have been turned.
pub async fn run(
    args: &PauseArgs,
    admin: &AdminConfig,
    paused: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), PauseError> {
    let address = match &args.admin {
        Some(address) => address
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned(),
        None => to_ask(admin.listen)
            .ok_or(PauseError::NoAddress(admin.listen))?
            .to_string(),
    };
    let mut headers = HeaderMap::new();
    let token = admin.token()?;
    if let Some(token) = &token {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.expose()));
        // The source would print the token.
        let mut value = value.map_err(|_invalid| PauseError::Header)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let call = Call {
        base: Arc::from(format!("http://{address}")),
        path: if paused { "/pause" } else { "/resume" },
        headers,
        body: Some(Bytes::from_static(b"{}")),
    };
    let transport = HttpTransport::new(&LlmConfig::default())?;
    let reply = timeout(WITHIN, transport.exchange(call)).await;
    let reply = reply.unwrap_or(Err(TransportError::TimedOut));
    let reply = reply.map_err(|source| PauseError::Unreachable {
        address: address.clone(),
        source,
    })?;
    let turned = serde_json::from_slice::<Turned>(&reply.body).ok();
    let Some(turned) = turned.filter(|_| reply.status == 200) else {
        return Err(PauseError::Refused {
            address,
            status: reply.status,
            text: words(&reply.body, token.as_ref()),
        });
    };
    writeln!(out, "{address}: {}", sentence(paused, &turned))?;
    Ok(())
}

/// What it says, without the token should it repeat that: whoever listens there may be somebody else.
fn words(body: &[u8], token: Option<&Secret>) -> String {
    let said = String::from_utf8_lossy(body).into_owned();
    match token {
        Some(token) => first_line(token.redact(said).as_bytes()),
        None => first_line(said.as_bytes()),
    }
}

fn sentence(paused: bool, turned: &Turned) -> String {
    match (paused, turned.changed, &turned.since) {
        (true, false, Some(since)) => format!("paused already, since {since}"),
        (true, ..) => format!(
            "paused: no new call is begun; {} documents in flight are finished and committed",
            turned.in_flight
        ),
        (false, true, _) => "resumed: calls are begun again".to_owned(),
        (false, false, _) => "was not paused".to_owned(),
    }
}

/// An address that stands for all of this machine's is asked on the loopback one.
const fn to_ask(listen: Listen) -> Option<SocketAddr> {
    let Listen::On(address) = listen else {
        return None;
    };
    if address.port() == 0 {
        return None;
    }
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Some(SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_told_without_the_token() {
        let token = Secret::new("hush-token-of-some-length");
        let body = format!("{}{} is wrong\nmore", "x".repeat(390), token.expose());
        let said = words(body.as_bytes(), Some(&token));
        assert!(
            said.ends_with("x*** is wro") && !said.contains("hu"),
            "{said}"
        );
        assert_eq!(words(b"no\nmore", None), "no");
    }

    #[test]
    fn the_address_to_ask_follows_admin_listen() {
        let asked = |listen: &str| to_ask(listen.parse().unwrap()).map(|at| at.to_string());
        assert_eq!(asked("127.0.0.1:9100").as_deref(), Some("127.0.0.1:9100"));
        assert_eq!(asked("0.0.0.0:9100").as_deref(), Some("127.0.0.1:9100"));
        assert_eq!(asked("[::]:9100").as_deref(), Some("[::1]:9100"));
        assert_eq!(asked("127.0.0.1:0"), None);
        assert_eq!(asked("off"), None);
    }
}
