//! `status`: what a running processor does, and what limits it. It asks the admin server, so it works while Kafka and the model do not.

mod page;
mod show;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use tokio::time::timeout;

use crate::cli::output::{Terminal, first_line};
use crate::llm::{Call, HttpTransport, LlmConfig, Reply, Transport as _};
use crate::telemetry::server::Listen;
use crate::types::error_chain;

use self::page::Page;

/// How long the admin server may take: it answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_millis(4_500);
/// More than the status of some ten thousand partitions has.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
const STATUS: &str = "/status";

/// Arguments of `status`.
#[derive(Debug, Clone, Default, Args)]
pub struct StatusArgs {
    /// Address of the processor's admin server; default is that of admin.listen
    #[arg(long, value_name = "HOST:PORT")]
    pub admin: Option<String>,
    /// The JSON of /status as it is
    #[arg(long)]
    pub json: bool,
    /// Only whether it is alive, as /livez says: for the health check of a container that is restarted
    #[arg(long, conflicts_with_all = ["json", "ready"])]
    pub live: bool,
    /// Only whether documents can flow, as /readyz says
    #[arg(long, conflicts_with = "json")]
    pub ready: bool,
}

impl StatusArgs {
    /// The path of the probe that is asked for.
    const fn probe(&self) -> Option<&'static str> {
        match (self.live, self.ready) {
            (true, _) => Some("/livez"),
            (false, true) => Some("/readyz"),
            (false, false) => None,
        }
    }
}

/// Why there is no status to show.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// There is no address to ask.
    #[error(
        "admin.listen is {0}, which tells no address: give that of the running processor with --admin HOST:PORT; its log has it (\"admin server listens\")"
    )]
    NoAddress(&'static str),
    /// Nobody answers.
    #[error(
        "no processor answers at {address}: {why}. Is one running, and is {address} its admin.listen? Another address can be given with --admin HOST:PORT"
    )]
    NoAnswer {
        /// What was asked.
        address: String,
        /// What happened.
        why: String,
    },
    /// Somebody else answers.
    #[error("what answers at {address} is no processor's admin server: {why}")]
    Foreign {
        /// What was asked.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// It answers others, or under another name.
    #[error("{address} refuses to answer: {text}")]
    Refused {
        /// What was asked.
        address: String,
        /// What it said.
        text: String,
    },
    /// The output cannot be written.
    #[error(transparent)]
    Out(#[from] io::Error),
}

/// Asks, and shows the answer; whether the processor works: it is alive, ready, held by nothing, and every partition makes progress. With
/// `live` or `ready`, whether that alone is so.
///
/// # Errors
/// As [`StatusError`] says.
///
/// # Cancel safety
/// Safe: nothing is changed.
pub async fn run(
    args: &StatusArgs,
    listen: Listen,
    terminal: &Terminal,
    out: &mut (dyn Write + Send),
) -> Result<bool, StatusError> {
    let address = address(args, listen)?;
    if let Some(probe) = args.probe() {
        return answers(&address, probe, out).await;
    }
    let body = page(&address).await?;
    let page: Page = serde_json::from_slice(&body).map_err(|error| StatusError::Foreign {
        address: address.clone(),
        why: format!("its /status is not what was expected ({error})"),
    })?;
    if args.json {
        out.write_all(&body)?;
        writeln!(out)?;
    } else {
        show::write(&page, terminal, out)?;
    }
    out.flush()?;
    Ok(page.works())
}

/// The address to ask: an admin server on every address of its machine is asked on this one.
fn address(args: &StatusArgs, listen: Listen) -> Result<String, StatusError> {
    if let Some(admin) = &args.admin {
        let bare = admin.trim().trim_end_matches('/');
        return Ok(bare.strip_prefix("http://").unwrap_or(bare).to_owned());
    }
    match listen {
        Listen::Off => Err(StatusError::NoAddress("off")),
        Listen::On(address) if address.port() == 0 => {
            Err(StatusError::NoAddress("on any free port"))
        }
        Listen::On(address) => {
            let ip = match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                ip => ip,
            };
            Ok(SocketAddr::new(ip, address.port()).to_string())
        }
    }
}

/// Whether a probe is answered with 200; what it says is shown, as container engines keep the output of a health check.
async fn answers(
    address: &str,
    probe: &'static str,
    out: &mut (dyn Write + Send),
) -> Result<bool, StatusError> {
    let Reply { status, body, .. } = ask(address, probe).await?;
    if !matches!(status, 200 | 503) {
        return Err(unexpected(address, probe, status, &body));
    }
    out.write_all(&body)?;
    out.flush()?;
    Ok(status == 200)
}

async fn page(address: &str) -> Result<Bytes, StatusError> {
    let Reply { status, body, .. } = ask(address, STATUS).await?;
    if status == 200 {
        return Ok(body);
    }
    Err(unexpected(address, STATUS, status, &body))
}

fn unexpected(address: &str, path: &str, status: u16, body: &[u8]) -> StatusError {
    let address = address.to_owned();
    match status {
        403 => StatusError::Refused {
            address,
            text: first_line(body),
        },
        _ => StatusError::Foreign {
            address,
            why: format!("{path} answers {status}"),
        },
    }
}

async fn ask(address: &str, path: &'static str) -> Result<Reply, StatusError> {
    let no_answer = |why: String| StatusError::NoAnswer {
        address: address.to_owned(),
        why,
    };
    let config = LlmConfig {
        response_bytes_max: ANSWER_BYTES_MAX,
        ..LlmConfig::default()
    };
    let transport = HttpTransport::new(&config).map_err(|error| no_answer(error_chain(&error)))?;
    let call = Call {
        base: Arc::from(format!("http://{address}")),
        path,
        headers: Default::default(),
        body: None,
    };
    match timeout(ANSWER_WITHIN, transport.exchange(call)).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err(no_answer(error.to_string())),
        Err(_elapsed) => Err(no_answer(format!("silent for {ANSWER_WITHIN:?}"))),
    }
}

#[cfg(test)]
mod tests;
