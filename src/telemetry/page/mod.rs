//! The status page: one file on `/` that needs nothing else, and the events on `/events` that it lives by.
//!
//! What it shows comes from documents and servers and is not trusted: the page sets text alone, and its policy lets no script run but its own.

mod events;
mod view;

use std::sync::LazyLock;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{Health, StatusBoard};

use events::Events;

pub use view::StatusPage;

const HTML: &str = include_str!("index.html");

/// Only what stands in the file may run, and it may ask this server alone.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style"),
    )
});

/// Hash of what stands in the only element of that name.
fn hash_of(element: &str) -> String {
    let (begin, end) = (format!("<{element}>"), format!("</{element}>"));
    let rest = HTML.split_once(&begin).map_or("", |(_, rest)| rest);
    let content = rest.split_once(&end).map_or("", |(content, _)| content);
    STANDARD.encode(Sha256::digest(content))
}

/// `/` and `/events`; the events end with `shutdown`.
pub(super) fn router(health: Health, board: StatusBoard, shutdown: CancellationToken) -> Router {
    Router::new()
        .route("/", get(|| async { page() }))
        .merge(events::router(Events::new(health, board, shutdown)))
}

fn page() -> Response {
    let fixed = |name: HeaderName, value: &'static str| (name, HeaderValue::from_static(value));
    let policy = HeaderValue::from_str(&POLICY).ok();
    let headers = [
        fixed(header::CONTENT_TYPE, "text/html; charset=utf-8"),
        fixed(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        fixed(header::REFERRER_POLICY, "no-referrer"),
        fixed(header::CACHE_CONTROL, "no-cache"),
    ];
    match policy {
        Some(policy) => {
            (headers, [(header::CONTENT_SECURITY_POLICY, policy)], HTML).into_response()
        }
        // It is ASCII, so this is never so; without its policy the page is not served.
        None => axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests;
