//! `sandbox`: an in-process Kafka and a simulated vLLM in the foreground, so that the other commands work beside it without Docker.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Outcome;
use crate::config::Settings;
use crate::sandbox::broker::{Broker, BrokerConfig};
use crate::sandbox::vllm::{Vllm, VllmConfig};
use crate::types::Secret;

const KAFKA: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9092);
const LLM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);
/// How long a probe waits for a connection on this machine.
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// Arguments of `sandbox`.
#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// Where Kafka listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = KAFKA)]
    pub kafka_listen: SocketAddr,
    /// Where the simulated vLLM listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = LLM)]
    pub llm_listen: SocketAddr,
    /// Start one of the two alone
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Option<Part>,
    /// Start nothing: end with 0 where what would be started listens already, such as for a health check
    #[arg(long)]
    pub probe: bool,
}

/// One of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The in-memory Kafka
    Kafka,
    /// The simulated vLLM
    Llm,
}

impl SandboxArgs {
    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// Serves until `stop` is cancelled. Nothing is kept: the records are in memory.
pub(super) async fn run(
    args: &SandboxArgs,
    settings: &Settings,
    stop: &CancellationToken,
) -> Outcome {
    if args.probe {
        return probe(args).await;
    }
    let in_use = |what: &str, flag: &str, address: SocketAddr, error: io::Error| {
        format!(
            "{what} cannot listen on {address}: {error}; stop what uses the port, or set {flag}"
        )
    };
    let mut told = String::new();
    let mut broker = None;
    if args.wants(Part::Kafka) {
        let config = BrokerConfig {
            listen: args.kafka_listen,
            ..BrokerConfig::default()
        };
        let started = Broker::start(config)
            .await
            .map_err(|error| in_use("Kafka", "--kafka-listen", args.kafka_listen, error))?;
        write!(told, "Kafka (in memory) on {}; ", started.bootstrap())?;
        broker = Some(started);
    }
    let mut vllm = None;
    if args.wants(Part::Llm) {
        let started = Vllm::start(vllm_config(settings, args.llm_listen))
            .await
            .map_err(|error| {
                in_use("the simulated vLLM", "--llm-listen", args.llm_listen, error)
            })?;
        write!(
            told,
            "SIMULATED vLLM on {} serving {}. No model is run, and ",
            started.url(),
            settings.llm.model
        )?;
        vllm = Some(started);
    }
    io::stdout().write_all(format!("{told}nothing is kept.\nCtrl-C ends it.\n").as_bytes())?;
    stop.cancelled().await;
    if let Some(vllm) = vllm {
        vllm.shutdown().await;
    }
    if let Some(broker) = broker {
        broker.shutdown().await;
    }
    Ok(0)
}

/// Whether somebody listens where the servers would.
async fn probe(args: &SandboxArgs) -> Outcome {
    for (part, address) in [
        (Part::Kafka, args.kafka_listen),
        (Part::Llm, args.llm_listen),
    ] {
        if args.wants(part) {
            match timeout(PROBE_WITHIN, TcpStream::connect(address)).await {
                Ok(Ok(_connection)) => {}
                Ok(Err(error)) => {
                    return Err(format!("nobody listens on {address}: {error}").into());
                }
                Err(_elapsed) => return Err(format!("{address} is silent").into()),
            }
        }
    }
    Ok(0)
}

/// A simulated vLLM that serves the model, and asks for the key, that the settings name.
pub(super) fn vllm_config(settings: &Settings, listen: SocketAddr) -> VllmConfig {
    VllmConfig {
        listen,
        models: vec![settings.llm.model.clone()],
        api_key: settings
            .llm
            .api_key
            .as_ref()
            .map(|key| Secret::expose(key).to_owned()),
        ..VllmConfig::default()
    }
}
