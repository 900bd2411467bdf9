//! One HTTP exchange with the model server: bytes out, status and bytes back, nothing judged.
//!
//! vLLM speaks HTTP/1.1 only, closes idle connections after 5 s without a word, and sends no byte of an answer before all of it is
//! there. So: no HTTP/2, an idle pool that gives up before the server does, TCP keep-alive, and no read timeout apart from the
//! attempt's own. Bodies are read piece by piece up to a bound. Redirects are not followed and no proxy is used.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use reqwest::header::HeaderMap;
use reqwest::{Client, redirect};

use super::{LlmConfig, LlmError, tls};

/// uvicorn's keep-alive ends after 5 s; a connection must leave the pool before.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Dialling and the TLS handshake: two repeats of a lost SYN (after 1 s and 3 s in Linux) would only delay what the probe finds out.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// First TCP keep-alive probe, so that middle boxes do not forget a connection on which vLLM is silent for minutes.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);
/// How far the attempt's timeout may have grown, see `policy.rs`, with room: callers time their calls themselves, this is the net.
const TIMEOUT_FACTOR: u32 = 5;

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    /// Base URL of the server, without a slash at its end.
    pub base: Arc<str>,
    /// Path below the base URL, with its slash.
    pub path: &'static str,
    /// Headers beside those that HTTP itself needs.
    pub headers: HeaderMap,
    /// JSON to `POST`; `None` is a `GET`.
    pub body: Option<Bytes>,
}

/// One answer, complete.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// Where connecting failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFault {
    /// Nothing listens there.
    Refused,
    /// The name has no address.
    Dns,
    /// The server's certificate, or what it speaks, is not accepted.
    Tls,
    /// Nobody answered in time.
    TimedOut,
    /// Anything else before a connection stood.
    Other,
}

/// Why there is no complete answer.
#[derive(Debug)]
pub enum TransportError {
    /// No connection: nothing was sent.
    Connect {
        /// Where it failed.
        fault: ConnectFault,
        /// The system's word, without document text.
        detail: String,
    },
    /// The connection ended before a byte of the answer.
    Disconnected,
    /// The connection ended in the middle of the answer.
    Broken,
    /// The time was over.
    TimedOut,
    /// The answer is larger than the bound, in bytes.
    TooLarge(usize),
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { detail, .. } => write!(f, "no connection: {detail}"),
            Self::Disconnected => f.write_str("the connection closed before an answer"),
            Self::Broken => f.write_str("the connection closed in the middle of the answer"),
            Self::TimedOut => f.write_str("no answer in time"),
            Self::TooLarge(limit) => write!(f, "the answer is larger than {limit} bytes"),
        }
    }
}

impl StdError for TransportError {}

/// Carries calls to servers. Timeouts are the caller's.
#[async_trait]
pub trait Transport: Send + Sync + fmt::Debug {
    /// Sends `call` and reads the whole answer.
    ///
    /// # Errors
    /// When there is no complete answer; what an answer means is not this trait's business.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection, by which vLLM ends the work.
    async fn exchange(&self, call: Call) -> Result<Reply, TransportError>;
}

/// The transport over TCP and TLS.
#[derive(Debug)]
pub struct HttpTransport {
    client: Client,
    response_bytes_max: usize,
}

impl HttpTransport {
    /// Builds the connection pool; connects to nothing.
    ///
    /// # Errors
    /// When a setting or the machine rules it out.
    pub fn new(config: &LlmConfig) -> Result<Self, LlmError> {
        let client = Client::builder()
            .tls_backend_preconfigured(tls::client_config(config)?)
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(config.timeout.saturating_mul(TIMEOUT_FACTOR))
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(config.concurrency_bound())
            .tcp_nodelay(true)
            .tcp_keepalive(TCP_KEEPALIVE)
            .user_agent(concat!("kafka-llm-processor/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(LlmError::HttpClient)?;
        Ok(Self {
            client,
            response_bytes_max: config.response_bytes_max,
        })
    }
}

#[async_trait]
impl Transport for HttpTransport {
    async fn exchange(&self, call: Call) -> Result<Reply, TransportError> {
        let url = format!("{}{}", call.base, call.path);
        let request = match call.body {
            Some(body) => self
                .client
                .post(url)
                .header(reqwest::header::CONTENT_TYPE, "application/json")
                .body(body),
            None => self.client.get(url),
        };
        let mut response = request
            .headers(call.headers)
            .send()
            .await
            .map_err(|error| before_answer(&error))?;
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let mut body = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(|error| in_answer(&error))? {
            if body.len().saturating_add(piece.len()) > self.response_bytes_max {
                return Err(TransportError::TooLarge(self.response_bytes_max));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Reply {
            status,
            headers,
            body: body.freeze(),
        })
    }
}

fn before_answer(error: &reqwest::Error) -> TransportError {
    if error.is_connect() {
        let fault = if error.is_dns() {
            ConnectFault::Dns
        } else if find::<rustls::Error>(error).is_some() {
            ConnectFault::Tls
        } else if find::<std::io::Error>(error)
            .is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused)
        {
            ConnectFault::Refused
        } else if error.is_timeout() {
            ConnectFault::TimedOut
        } else {
            ConnectFault::Other
        };
        TransportError::Connect {
            fault,
            detail: innermost(error),
        }
    } else if error.is_timeout() {
        TransportError::TimedOut
    } else {
        TransportError::Disconnected
    }
}

fn in_answer(error: &reqwest::Error) -> TransportError {
    if error.is_timeout() {
        TransportError::TimedOut
    } else {
        TransportError::Broken
    }
}

/// The first error of type `E` in the chain. An I/O error hides what it wraps from `source`, so it is asked for that.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = match error.downcast_ref::<std::io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

/// The last error of the chain: the one that says something.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
