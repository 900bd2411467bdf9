//! `sandbox`: an in-process Kafka and a simulated vLLM in the foreground, so that the other commands work beside it without Docker.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::Outcome;
use crate::config::Settings;
use crate::sandbox::broker::{Broker, BrokerConfig};
use crate::sandbox::vllm::{Vllm, VllmConfig};
use crate::types::Secret;

const KAFKA: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9092);
const LLM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

/// Arguments of `sandbox`.
#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// Where Kafka listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = KAFKA)]
    pub kafka_listen: SocketAddr,
    /// Where the simulated vLLM listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = LLM)]
    pub llm_listen: SocketAddr,
}

/// Serves until `stop` is cancelled. Nothing is kept: the records are in memory.
pub(super) async fn run(
    args: &SandboxArgs,
    settings: &Settings,
    stop: &CancellationToken,
) -> Outcome {
    let in_use = |what: &str, flag: &str, address: SocketAddr, error: io::Error| {
        format!(
            "{what} cannot listen on {address}: {error}; stop what uses the port, or set {flag}"
        )
    };
    let config = BrokerConfig {
        listen: args.kafka_listen,
        ..BrokerConfig::default()
    };
    let broker = Broker::start(config)
        .await
        .map_err(|error| in_use("Kafka", "--kafka-listen", args.kafka_listen, error))?;
    let vllm = Vllm::start(vllm_config(settings, args.llm_listen))
        .await
        .map_err(|error| in_use("the simulated vLLM", "--llm-listen", args.llm_listen, error))?;
    writeln!(
        io::stdout(),
        "Kafka (in memory) on {}; SIMULATED vLLM on {} serving {}. No model is run, and nothing is kept.\nCtrl-C ends both.",
        broker.bootstrap(),
        vllm.url(),
        settings.llm.model,
    )?;
    stop.cancelled().await;
    vllm.shutdown().await;
    broker.shutdown().await;
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
