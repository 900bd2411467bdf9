//! What can be turned from outside, and who may turn it.
//!
//! A page in a browser on the operator's machine can send requests to it without being asked. So a request must have the content type of
//! JSON, which a page cannot give to another site without asking that site first, and must not come from a page at all: browsers say so
//! with `Origin` or `Sec-Fetch-Site`, also where a name was made to point here. Under such a name nothing is answered: see `hosts`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use sha2::{Digest as _, Sha256};

use super::AdminError;
use crate::telemetry::PauseSwitch;
use crate::types::Secret;

const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=1024;

/// Who may turn things.
#[derive(Debug)]
pub(super) struct Guard {
    /// SHA-256 of the token.
    token: Option<[u8; 32]>,
    is_loopback: bool,
}

impl Guard {
    pub(super) fn new(token: Option<&Secret>, address: SocketAddr) -> Self {
        Self {
            token: token.map(|token| Sha256::digest(token.expose()).into()),
            is_loopback: address.ip().is_loopback(),
        }
    }

    /// # Errors
    /// Why the request is refused.
    fn check(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        if headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site") {
            return Err("requests of a browser are not taken");
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let media_type = text(header::CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case("application/json") {
            return Err("the header Content-Type: application/json is missing");
        }
        let Some(expected) = &self.token else {
            return if self.is_loopback {
                Ok(())
            } else {
                Err("admin.listen is no loopback address: set admin.token_file and bring its token")
            };
        };
        let bearer = text(header::AUTHORIZATION).and_then(|value| value.split_once(' '));
        let token = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let token = token.map_or("", |(_, token)| token.trim());
        if is_equal(expected, &Sha256::digest(token).into()) {
            Ok(())
        } else {
            Err("the header Authorization: Bearer must bring the token of admin.token_file")
        }
    }
}

/// In the same time wherever they differ. What is compared are hashes, so that neither length nor beginning of a token shows either.
fn is_equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let pairs = one.iter().zip(other);
    let difference = pairs.fold(0, |difference, (one, other)| difference | (one ^ other));
    std::hint::black_box(difference) == 0
}

pub(super) fn read_token(path: &Path) -> Result<Secret, AdminError> {
    let text = std::fs::read_to_string(path).map_err(|source| AdminError::TokenFile {
        path: path.to_owned(),
        source,
    })?;
    let token = text.trim();
    let is_visible = token.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_visible || !TOKEN_BYTES.contains(&token.len()) {
        return Err(AdminError::NoToken {
            path: path.to_owned(),
        });
    }
    Ok(Secret::new(token))
}

#[derive(Debug, Clone)]
struct Control {
    pause: PauseSwitch,
    guard: Arc<Guard>,
}

pub(super) fn router(pause: PauseSwitch, guard: Guard) -> Router {
    let guard = Arc::new(guard);
    Router::new()
        .route("/pause", post(pause_work))
        .route("/resume", post(resume_work))
        .with_state(Control { pause, guard })
}

async fn pause_work(State(control): State<Control>, headers: HeaderMap) -> Response {
    turn(true, &control, &headers)
}

async fn resume_work(State(control): State<Control>, headers: HeaderMap) -> Response {
    turn(false, &control, &headers)
}

fn turn(paused: bool, control: &Control, headers: &HeaderMap) -> Response {
    let Control { pause, guard } = control;
    match guard.check(headers) {
        Ok(()) => Json(pause.set(paused)).into_response(),
        Err(reason) => (StatusCode::FORBIDDEN, format!("{reason}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair =
            |(name, value): &(&'static str, &str)| (name.parse().unwrap(), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    fn guard(token: Option<&str>, address: &str) -> Guard {
        Guard::new(token.map(Secret::new).as_ref(), address.parse().unwrap())
    }

    #[test]
    fn without_a_token_only_a_loopback_listener_takes_requests() {
        for (address, is_taken) in [
            ("127.0.0.1:9100", true),
            ("[::1]:9100", true),
            ("0.0.0.0:9100", false),
            ("10.0.0.1:9100", false),
        ] {
            let taken = guard(None, address).check(&headers(&[JSON]));
            assert_eq!(taken.is_ok(), is_taken, "{address}");
        }
    }

    #[test]
    fn with_a_token_it_is_asked_for_everywhere() {
        let guard = guard(Some("correct-horse-battery"), "127.0.0.1:9100");
        for (value, is_taken) in [
            ("Bearer correct-horse-battery", true),
            ("bearer  correct-horse-battery", true),
            ("Bearer correct-horse-batter", false),
            ("Bearer correct-horse-battery2", false),
            ("Basic correct-horse-battery", false),
            ("correct-horse-battery", false),
            ("Bearer", false),
        ] {
            let taken = guard.check(&headers(&[JSON, ("authorization", value)]));
            assert_eq!(taken.is_ok(), is_taken, "{value}");
        }
        assert!(guard.check(&headers(&[JSON])).is_err());
    }

    #[test]
    fn what_a_page_in_a_browser_sends_is_refused() {
        let guard = guard(None, "127.0.0.1:9100");
        for (pairs, reason) in [
            (&[][..], "Content-Type"),
            (&[("content-type", "text/plain")], "Content-Type"),
            (
                &[("content-type", "application/x-www-form-urlencoded")],
                "Content-Type",
            ),
            (&[JSON, ("origin", "http://127.0.0.1:9100")], "browser"),
            (&[JSON, ("origin", "null")], "browser"),
            (&[JSON, ("sec-fetch-site", "same-origin")], "browser"),
        ] {
            let refused = guard.check(&headers(pairs)).unwrap_err();
            assert!(refused.contains(reason), "{pairs:?}: {refused}");
        }
    }
}
