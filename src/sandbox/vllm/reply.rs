//! Answers as vLLM writes them: the bodies of its errors, and JSON with its keys in its order.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// An answer that is ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorInfo<'a>,
}

#[derive(Serialize)]
struct ErrorInfo<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: u16,
}

impl Reply {
    /// No body, and no content type.
    pub(super) const fn empty(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: String::new(),
        }
    }

    /// JSON text that is ready.
    pub(super) fn json_text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.into(),
        }
    }

    /// A value as JSON.
    pub(super) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(body) => Self::json_text(200, body),
            Err(error) => Self::error(500, "InternalServerError", &error.to_string(), None),
        }
    }

    /// vLLM's error body.
    pub(super) fn error(status: u16, kind: &str, message: &str, param: Option<&str>) -> Self {
        let body = ErrorBody {
            error: ErrorInfo {
                message,
                r#type: kind,
                param,
                code: status,
            },
        };
        Self::json_text(status, serde_json::to_string(&body).unwrap_or_default())
    }

    /// A 400 of vLLM's own checks.
    pub(super) fn bad_request(message: &str) -> Self {
        Self::error(400, "BadRequestError", message, None)
    }

    /// A 400 that names a field, and the value when it is told.
    pub(super) fn bad_field(message: &str, param: &str, value: Option<&str>) -> Self {
        let value = value.map_or_else(String::new, |value| format!(", value={value}"));
        let message = format!("{message} (parameter={param}{value})");
        Self::error(400, "BadRequestError", &message, Some(param))
    }

    /// FastAPI's own error body.
    pub(super) fn detail(status: u16, detail: &str) -> Self {
        Self::json_text(status, format!(r#"{{"detail":"{detail}"}}"#))
    }

    /// The path exists, not with this method.
    pub(super) fn method_not_allowed(allow: &str) -> Self {
        let mut reply = Self::detail(405, "Method Not Allowed");
        reply.headers.push(("allow".to_owned(), allow.to_owned()));
        reply
    }

    /// `max_num_queued_reqs` is reached; vLLM sends no `Retry-After`.
    pub(super) fn busy() -> Self {
        Self::error(
            503,
            "Service Unavailable",
            "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.",
            None,
        )
    }

    /// `max_num_queued_tokens` is reached.
    pub(super) fn backlog() -> Self {
        Self::error(
            503,
            "Service Unavailable",
            "The engine has reached its prefill token backlog limit. Please try again later or on a different instance.",
            None,
        )
    }

    /// The server drains before its end.
    pub(super) fn draining() -> Self {
        Self::error(
            500,
            "InternalServerError",
            "cannot schedule new futures after shutdown",
            None,
        )
    }

    /// The model is being scaled.
    pub(super) fn scaling() -> Self {
        Self::json_text(
            503,
            r#"{"error":"The model is currently scaling. Please try again later."}"#,
        )
    }

    /// The engine has died.
    pub(super) fn engine_dead() -> Self {
        Self::error(
            500,
            "InternalServerError",
            "EngineCore encountered an issue. See stack trace (above) for the root cause.",
            None,
        )
    }

    /// Adds a header of this many bytes.
    pub(super) fn pad(&mut self, bytes: usize) {
        self.headers
            .push(("x-padding".to_owned(), "x".repeat(bytes)));
    }

    /// The response; a status or header that HTTP does not know is left out.
    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        if let Ok(status) = StatusCode::from_u16(self.status) {
            *response.status_mut() = status;
        }
        let headers = response.headers_mut();
        headers.insert(header::SERVER, HeaderValue::from_static("simulated-vllm"));
        for (name, value) in self.headers {
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_str(&value),
            ) {
                headers.insert(name, value);
            }
        }
        response
    }
}
