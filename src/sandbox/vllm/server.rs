//! Connections and routes.
//!
//! As uvicorn behind vLLM: HTTP/1.1 only, a connection closes 5 s after its last response, a client that leaves (a half-close
//! counts) ends its request. Not the same: what is not HTTP is answered with an empty 400, bodies end at 64 MiB and headers at 16.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, Response, header};
use bytes::Bytes;
use futures::StreamExt as _;
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine::Engine;
use super::faults::{Action, EngineState, Faults};
use super::metrics::Metrics;
use super::process::Death;
use super::reply::Reply;
use super::seen::RequestLog;
use super::{CHAT_PATH, VllmConfig, chat, routes};

/// A connection that is idle for this long after a response is closed (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`).
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Larger bodies are refused with 413; vLLM has no bound.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Larger heads are refused with 431; vLLM was seen to take 6 MB, and has no bound.
const HEAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// More header lines are refused with 431; vLLM was seen to take 2000.
const HEADERS_MAX: usize = 4096;
/// What an endless body is made of.
const ENDLESS_CHUNK: &[u8] = &[b'x'; 16 * 1024];
/// After a failed accept (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Paths that need the key begin so; all others are open, as in vLLM.
const GUARDED_PREFIXES: [&str; 4] = ["/v1", "/v2", "/inference", "/cohere"];

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: VllmConfig,
    pub(super) engine: Arc<Engine>,
    pub(super) faults: Arc<Faults>,
    pub(super) metrics: Metrics,
    pub(super) log: Arc<RequestLog>,
    /// Requests without an id get one made from this.
    pub(super) ids: AtomicU64,
    /// Told when the engine is killed.
    pub(super) deaths: mpsc::Sender<Death>,
}

/// What ends a listener and its connections.
#[derive(Debug, Clone)]
pub(super) struct Stop {
    /// Nothing new begins: connections end after the answer that they owe.
    pub(super) gently: CancellationToken,
    /// Everything ends.
    pub(super) now: CancellationToken,
}

impl Stop {
    pub(super) fn below(parent: &CancellationToken) -> Self {
        let now = parent.child_token();
        Self {
            gently: now.child_token(),
            now,
        }
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is answered.
    Reply(Reply),
    /// It is answered with the headers and half of the body, then the connection closes.
    CutMidBody(Reply),
    /// It is answered with a body without an end.
    EndlessBody,
    /// The connection closes.
    HangUp,
}

impl Shared {
    /// The first served name, which every answer bears.
    pub(super) fn model(&self) -> &str {
        self.config.models.first().map_or("", String::as_str)
    }

    /// The 404 for a model that is not served; none and an empty one are the first.
    pub(super) fn check_model(&self, model: Option<&str>) -> Result<(), Reply> {
        let Some(model) = model.filter(|model| !model.is_empty()) else {
            return Ok(());
        };
        if self.config.models.iter().any(|served| served == model) {
            return Ok(());
        }
        let aliases = self.config.models.join(", ");
        let message = format!("The model `{model}` does not exist. Valid aliases: {aliases}.");
        Err(Reply::error(404, "NotFoundError", &message, Some("model")))
    }

    /// 16 hexadecimal digits, another each time.
    pub(super) fn next_id(&self) -> String {
        // An odd factor permutes the 64-bit numbers: ids look unlike each other and never repeat.
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Fails who is in flight and ends the process; nothing when the engine is dead.
    pub(super) fn kill_engine(&self, restart_after: Option<Duration>) {
        if self.faults.enter(EngineState::Dead)
            && self.deaths.try_send(Death { restart_after }).is_err()
        {
            // A test has revived an engine whose process is still ending: that end counts for both.
            tracing::debug!("the simulated vLLM is ending already");
        }
    }

    fn allows(&self, parts: &Parts) -> bool {
        let Some(key) = &self.config.api_key else {
            return true;
        };
        let path = parts.uri.path();
        if parts.method == Method::OPTIONS
            || !GUARDED_PREFIXES
                .iter()
                .any(|prefix| path.starts_with(prefix))
        {
            return true;
        }
        header_text(&parts.headers, "authorization")
            .as_deref()
            .and_then(|value| value.split_once(' '))
            .is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && token == key)
    }
}

/// The `created` of answers.
pub(super) fn unix_seconds() -> i64 {
    crate::clock::now().as_second()
}

/// A header as text.
pub(super) fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// The 400 for a body that does not say that it is JSON.
pub(super) fn is_json(headers: &HeaderMap) -> Result<(), Reply> {
    let content_type = header_text(headers, header::CONTENT_TYPE.as_str()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Reply::error(
        400,
        "Bad Request",
        "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
        None,
    ))
}

/// Accepts until cancelled. Connections end with the same token; all tasks are in `tasks`.
pub(super) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: Stop,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.gently.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = serve(stream, peer, Arc::clone(&shared), stop.clone());
                tasks.spawn(connection);
            }
            Err(error) => {
                tracing::warn!(%error, "the simulated vLLM cannot accept a connection");
                tokio::select! {
                    () = stop.gently.cancelled() => return,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

/// Serves one connection until it ends, is idle for too long, or the server stops.
async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, stop: Stop) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot switch Nagle's algorithm off");
    }
    // When the last response ended; `None` before the first one and while a request is worked on.
    let (idle_since, watch_idle) = watch::channel(None);
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        idle_since.send_replace(None);
        let (shared, idle_since) = (Arc::clone(&shared), idle_since.clone());
        async move {
            let response = respond(&shared, request.map(Body::new)).await?;
            Ok::<_, io::Error>(response.map(|body| LastingBody { body, idle_since }))
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut idle = std::pin::pin!(idle_for_too_long(watch_idle));
    let mut ends = false;
    loop {
        tokio::select! {
            biased;
            () = stop.now.cancelled() => return,
            () = stop.gently.cancelled(), if !ends => {
                ends = true;
                connection.as_mut().graceful_shutdown();
            }
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a connection to the simulated vLLM broke");
                }
                return;
            }
            () = idle.as_mut() => return,
        }
    }
}

/// A body that tells when it ends: sent to its end, or dropped before.
struct LastingBody {
    body: Body,
    idle_since: watch::Sender<Option<Instant>>,
}

impl hyper::body::Body for LastingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LastingBody {
    fn drop(&mut self) {
        self.idle_since.send_replace(Some(Instant::now()));
    }
}

/// Returns when no request has come for [`KEEP_ALIVE`] after a response.
async fn idle_for_too_long(mut idle_since: watch::Receiver<Option<Instant>>) {
    loop {
        let since = *idle_since.borrow_and_update();
        let expired = async {
            match since {
                Some(since) => tokio::time::sleep_until(since + KEEP_ALIVE).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = idle_since.changed() => {
                if changed.is_err() {
                    // The connection has ended, and with it the need to close it.
                    std::future::pending::<()>().await;
                }
            }
            () = expired => return,
        }
    }
}

/// The response, or the error that makes hyper close the connection.
async fn respond(shared: &Shared, request: Request<Body>) -> Result<Response<Body>, io::Error> {
    match answer(shared, request).await {
        Outcome::Reply(reply) => Ok(reply.into_response()),
        Outcome::CutMidBody(reply) => Ok(cut(reply)),
        Outcome::EndlessBody => Ok(endless()),
        Outcome::HangUp => Err(io::Error::other("a fault hook hangs up")),
    }
}

/// A response that promises its whole body, sends half, and breaks.
fn cut(mut reply: Reply) -> Response<Body> {
    let body = Bytes::from(std::mem::take(&mut reply.body));
    let half = body.slice(..body.len() / 2);
    reply
        .headers
        .push(("content-length".to_owned(), body.len().to_string()));
    let mut response = reply.into_response();
    let broken = io::Error::other("a fault hook cuts the body");
    let parts =
        futures::stream::iter([Ok::<_, io::Error>(half)]).chain(futures::stream::once(async {
            // Without a pause hyper would see both at once and could drop the half with the connection.
            tokio::task::yield_now().await;
            Err(broken)
        }));
    *response.body_mut() = Body::from_stream(parts);
    response
}

/// A response that begins as JSON text and never ends.
fn endless() -> Response<Body> {
    let begin = Bytes::from_static(br#"{"id":""#);
    let parts = futures::stream::iter([begin])
        .chain(futures::stream::repeat(Bytes::from_static(ENDLESS_CHUNK)));
    let mut response = Reply::json_text(200, "").into_response();
    *response.body_mut() = Body::from_stream(parts.map(Ok::<_, io::Error>));
    response
}

async fn answer(shared: &Shared, request: Request<Body>) -> Outcome {
    if shared.faults.engine() == EngineState::Scaling {
        return Outcome::Reply(Reply::scaling());
    }
    let (parts, body) = request.into_parts();
    if !shared.allows(&parts) {
        return Outcome::Reply(Reply::json_text(401, r#"{"error":"Unauthorized"}"#));
    }
    let path = parts.uri.path();
    if path == CHAT_PATH && parts.method == Method::POST {
        return match read(body).await {
            Ok(body) => chat::chat(shared, &parts.headers, &body).await,
            Err(reply) => Outcome::Reply(reply),
        };
    }
    let mut padding = 0;
    for action in shared.faults.take(path, "") {
        match action {
            Action::Delay(time) => tokio::time::sleep(time).await,
            Action::HangUp => return Outcome::HangUp,
            Action::HangForEver => std::future::pending().await,
            Action::Answer {
                status,
                headers,
                body,
            } => {
                let mut reply = Reply::json_text(status, body);
                reply.headers.extend(headers);
                return Outcome::Reply(reply);
            }
            Action::CutMidBody => {
                return Outcome::CutMidBody(routes::route(shared, &parts, body).await);
            }
            Action::EndlessBody => return Outcome::EndlessBody,
            Action::HugeHeader { bytes } => padding = bytes,
            Action::KillEngine { restart_after } => shared.kill_engine(restart_after),
            Action::Garbage
            | Action::Abort
            | Action::NullContent
            | Action::Content(_)
            | Action::Truncated => {
                return Outcome::Reply(Reply::json_text(200, "<html>this is no JSON"));
            }
        }
    }
    let mut reply = routes::route(shared, &parts, body).await;
    if padding > 0 {
        reply.pad(padding);
    }
    Outcome::Reply(reply)
}

/// The whole body, within the bound.
pub(super) async fn read(body: Body) -> Result<Bytes, Reply> {
    axum::body::to_bytes(body, BODY_BYTES_MAX)
        .await
        // The client has left, or sends too much.
        .map_err(|_error| Reply::detail(413, "Request Entity Too Large"))
}
