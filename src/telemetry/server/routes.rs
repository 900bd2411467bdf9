//! What each path answers. Every answer comes from memory: nothing here waits for Kafka or the model.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::telemetry::registry::{CONTENT_TYPE, CONTENT_TYPE_CLASSIC};
use crate::telemetry::server::AdminSources;
use crate::telemetry::server::control::{self, Guard};
use crate::telemetry::status::Status;

/// The longest that an answer may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

const INDEX: &str = "\
kafka-llm-processor

/status    what it is doing, as JSON
/metrics   metrics, as Prometheus or OpenMetrics text
/livez     200 while the event loop turns
/readyz    200 while documents can flow; else what is waited for
/pause     POST: no new call is begun until /resume
/resume    POST: calls are begun again
";

pub(super) fn router(sources: AdminSources, guard: Guard) -> Router {
    Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(sources.clone())
        .merge(control::router(sources.pause, guard))
        .layer(middleware::from_fn(within_time))
}

async fn within_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => (StatusCode::SERVICE_UNAVAILABLE, "no answer in time\n").into_response(),
    }
}

#[derive(Serialize)]
struct StatusPage {
    alive: bool,
    ready: bool,
    waiting_for: Vec<&'static str>,
    #[serde(flatten)]
    status: Status,
}

async fn status(State(sources): State<AdminSources>) -> Response {
    let status = sources.status.snapshot();
    let waiting_for = sources.health.waiting_for();
    let page = StatusPage {
        alive: sources.health.is_alive(),
        ready: waiting_for.is_empty() && status.holds.is_empty() && status.paused_since.is_none(),
        waiting_for,
        status,
    };
    Json(page).into_response()
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
