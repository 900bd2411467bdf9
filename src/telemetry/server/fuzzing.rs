//! What the crate's `fuzzing` hands to fuzzers.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::control::Guard;
use super::hosts::{AllowedHosts, HostCheck};
use super::{AdminSources, routes};
use crate::telemetry::registry::new_registry;
use crate::telemetry::{Health, Metrics, PauseSwitch, StatusBoard};
use crate::types::Secret;

/// Nothing here waits for anything but bytes that are there.
const WITHIN: Duration = Duration::from_secs(5);

/// What a client sends on one connection, up to its end.
pub(crate) fn requests(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let Ok(runtime) = runtime else {
        return;
    };
    let mut registry = new_registry();
    let status = StatusBoard::new(&mut registry);
    let sources = AdminSources {
        metrics: Metrics::new(registry),
        health: Health::new(),
        pause: PauseSwitch::new(status.clone(), |_| {}),
        status,
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9100));
    let guard = Guard::new(Some(&Secret::new("correct-horse-battery")), address);
    // What listens to events is told of the end at once.
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let router = routes::router(
        sources,
        guard,
        HostCheck::new(AllowedHosts::default()),
        &shutdown,
    );
    let answered = runtime.block_on(async {
        let (server, client) = tokio::io::duplex(64 * 1024);
        let (mut answers, mut requests) = tokio::io::split(client);
        let connection = http1::Builder::new()
            .serve_connection(TokioIo::new(server), TowerToHyperService::new(router));
        let sent = async {
            drop(requests.write_all(bytes).await);
            drop(requests.shutdown().await);
        };
        let mut answered = Vec::new();
        let all = async { tokio::join!(connection, sent, answers.read_to_end(&mut answered)) };
        tokio::time::timeout(WITHIN, all).await.is_ok()
    });
    assert!(answered, "it hangs");
}
