//! What each path answers. Every answer comes from memory: nothing here waits for Kafka or the model.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;

use crate::telemetry::page::{self, StatusPage};
use crate::telemetry::registry::{CONTENT_TYPE, CONTENT_TYPE_CLASSIC};
use crate::telemetry::server::AdminSources;
use crate::telemetry::server::control::{self, Guard};
use crate::telemetry::server::hosts::{self, HostCheck};

/// The longest that an answer may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn router(
    sources: AdminSources,
    guard: Guard,
    hosts: HostCheck,
    shutdown: &CancellationToken,
) -> Router {
    let page = page::router(
        sources.health.clone(),
        sources.status.clone(),
        shutdown.clone(),
    );
    Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(sources.clone())
        .merge(control::router(sources.pause, guard))
        .merge(page)
        .layer(middleware::from_fn(within_time))
        .layer(middleware::from_fn_with_state(hosts, hosts::check))
}

async fn within_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => (StatusCode::SERVICE_UNAVAILABLE, "no answer in time\n").into_response(),
    }
}

async fn status(State(sources): State<AdminSources>) -> Response {
    Json(StatusPage::new(&sources.health, &sources.status)).into_response()
}

/// OpenMetrics for who asks for it, as Prometheus does; who asks for nothing may not know it.
async fn metrics(State(sources): State<AdminSources>, headers: HeaderMap) -> Response {
    let accepted = headers.get_all(header::ACCEPT).into_iter();
    let mut accepted = accepted.filter_map(|value| value.to_str().ok());
    let encoded = if accepted.any(|value| value.contains("application/openmetrics-text")) {
        sources.metrics.encode().map(|text| (CONTENT_TYPE, text))
    } else {
        let text = sources.metrics.encode_classic();
        text.map(|text| (CONTENT_TYPE_CLASSIC, text))
    };
    match encoded {
        Ok((media_type, text)) => ([(header::CONTENT_TYPE, media_type)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn livez(State(sources): State<AdminSources>) -> Response {
    if sources.health.is_alive() {
        "alive\n".into_response()
    } else {
        let text = "the event loop of the workers does not turn\n";
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn readyz(State(sources): State<AdminSources>) -> Response {
    let mut missing = String::new();
    for name in sources.health.waiting_for() {
        line(&mut missing, &["not done yet: ", name]);
    }
    // Documents cannot flow, whoever wants it so: a roll-out must not count this instance as one that works.
    if let Some(since) = sources.status.paused_since() {
        let since = since.to_string();
        line(
            &mut missing,
            &["paused: since ", &since, "; POST /resume ends it"],
        );
    }
    for hold in sources.status.holds() {
        line(&mut missing, &["on hold: ", &hold.what, ": ", &hold.reason]);
    }
    if missing.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing).into_response()
    }
}

fn line(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
    text.push('\n');
}
