//! One connection to one broker: dialling, agreeing on versions, authenticating, and one request with its answer at a time.
//!
//! # Invariants
//! 1. No frame is allocated before its length was checked against [`FRAME_BYTES_MAX`].
//! 2. A connection whose last exchange did not end with its own, whole answer is never used again: an answer that comes late
//!    would be taken for that of the next request.
//! 3. Dialling, the TLS handshake, version agreement and authentication together end within `kafka.connect_timeout`.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;

use super::access::Access;
use super::api::Call;
use super::stream::Stream;
use super::{guard, sasl, tls};
use crate::kafka::{KafkaConfig, KafkaError};

/// The largest answer that is read. Brokers refuse requests above 100 MiB (`socket.request.max.bytes`), so no batch in a log is larger.
pub(super) const FRAME_BYTES_MAX: usize = 100 * 1024 * 1024;

/// What is allocated for an answer before its bytes arrive; the rest grows with them.
const FRAME_BYTES_AHEAD: usize = 64 * 1024;

/// Stands for a timeout so long that no clock can hold its end.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// How long an operation may still take, and how long it was given at its start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    pub(super) after: Duration,
    /// What the operator can change about it.
    setting: &'static str,
}

impl Deadline {
    pub(super) fn within(after: Duration) -> Self {
        let now = Instant::now();
        Self {
            at: now.checked_add(after).unwrap_or(now + FOREVER),
            after,
            setting: "kafka.request_timeout",
        }
    }

    /// The sooner of this and `after` from now, which comes from `setting`.
    pub(super) fn at_most(self, after: Duration, setting: &'static str) -> Self {
        let sooner = Self {
            setting,
            ..Self::within(after)
        };
        if sooner.at < self.at { sooner } else { self }
    }
}

/// Which versions of which API a broker speaks, and what else it tells about itself.
#[derive(Debug, Clone, Default)]
pub(super) struct BrokerVersions {
    /// API key to lowest and highest version, both inclusive.
    pub(super) ranges: BTreeMap<i16, (i16, i16)>,
    /// The finalized level of the feature `metadata.version`; brokers with ZooKeeper have none.
    pub(super) metadata_version: Option<i16>,
}

impl BrokerVersions {
    /// The highest version of `R` that both sides speak.
    pub(super) fn choose<R: Call>(&self) -> Result<i16, KafkaError> {
        let ours = R::OURS;
        let unsupported = |theirs: String| KafkaError::Protocol {
            operation: R::OPERATION,
            detail: format!(
                "no common version: this program speaks {} to {}, the broker {theirs}",
                ours.min, ours.max
            ),
        };
        match self.ranges.get(&R::KEY) {
            None => Err(unsupported("none".to_owned())),
            Some(&(min, max)) => {
                let version = ours.max.min(max);
                if version < ours.min || version < min {
                    return Err(unsupported(format!("{min} to {max}")));
                }
                Ok(version)
            }
        }
    }
}

/// An open connection. One exchange at a time.
#[derive(Debug)]
pub(super) struct Connection {
    address: Arc<str>,
    stream: Stream,
    client_id: StrBytes,
    correlation_id: i32,
    versions: Arc<BrokerVersions>,
    is_usable: bool,
    /// When the broker wants to be authenticated to again (`connections.max.reauth.ms`).
    pub(super) expires: Option<Instant>,
}

impl Connection {
    /// Dials, encrypts, agrees on versions and authenticates.
    pub(super) async fn open(
        address: &Arc<str>,
        access: &Access,
        deadline: Deadline,
    ) -> Result<Self, KafkaError> {
        let config = &access.config;
        let deadline = deadline.at_most(config.connect_timeout, "kafka.connect_timeout");
        let stream = dial(address, deadline)
            .await
            .map_err(|error| unreachable(address, &error))?;
        let stream = if config.security_protocol.has_tls() {
            Stream::Tls(Box::new(encrypt(stream, address, access, deadline).await?))
        } else {
            Stream::Plain(stream)
        };
        let mut connection = Self {
            address: Arc::clone(address),
            stream,
            client_id: StrBytes::from_string(config.client_id.clone()),
            correlation_id: 0,
            versions: Arc::default(),
            is_usable: true,
            expires: None,
        };
        match connection.greet(access, deadline).await {
            Ok(()) => Ok(connection),
            Err(KafkaError::Timeout { .. }) => Err(KafkaError::Unreachable {
                brokers: address.to_string(),
                detail: format!(
                    "connected, but no answer within {:?} ({})",
                    deadline.after, deadline.setting
                ),
            }),
            Err(KafkaError::Disconnected { operation, detail }) => Err(KafkaError::Unreachable {
                brokers: address.to_string(),
                detail: format!("{operation}: {detail}{}", hint(config, operation)),
            }),
            Err(error) => Err(error),
        }
    }

    async fn greet(&mut self, access: &Access, deadline: Deadline) -> Result<(), KafkaError> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(env!("CARGO_PKG_NAME")))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let response = self
            .exchange(&request, ApiVersionsRequest::OURS.max, deadline)
            .await?;
        self.versions = Arc::new(check_versions(&response)?);
        if access.config.security_protocol.has_sasl() {
            sasl::authenticate(self, access, deadline).await?;
        }
        Ok(())
    }

    /// Whether the broker wants to be authenticated to again before the next request.
    pub(super) fn has_expired(&self) -> bool {
        self.expires.is_some_and(|at| Instant::now() >= at)
    }

    /// Authenticates once more on a connection that stands (KIP-368).
    ///
    /// # Cancel safety
    /// A dropped one leaves the connection unusable.
    pub(super) async fn authenticate_again(
        &mut self,
        access: &Access,
        deadline: Deadline,
    ) -> Result<(), KafkaError> {
        let patience = access.config.connect_timeout;
        let deadline = deadline.at_most(patience, "kafka.connect_timeout");
        sasl::authenticate(self, access, deadline).await?;
        tracing::debug!(address = %self.address, "authenticated again");
        Ok(())
    }

    pub(super) const fn versions(&self) -> &Arc<BrokerVersions> {
        &self.versions
    }

    /// Whether nothing speaks against using it again: its last exchange was whole, and the broker has neither closed it nor sent anything
    /// unasked.
    pub(super) fn is_reusable(&mut self) -> bool {
        self.is_usable && self.stream.is_quiet()
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Cancel safety
    /// A dropped exchange leaves the connection unusable, which [`is_reusable`](Self::is_reusable) tells.
    pub(super) async fn exchange<R: Call>(
        &mut self,
        request: &R,
        version: i16,
        deadline: Deadline,
    ) -> Result<R::Response, KafkaError> {
        self.is_usable = false;
        self.correlation_id = self.correlation_id.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(self.client_id.clone()));
        let frame = encode(&header, request, version)?;
        let answer = timeout_at(deadline.at, swap_frames(&mut self.stream, &frame))
            .await
            .map_err(|_elapsed| KafkaError::Timeout {
                operation: R::OPERATION,
                after: deadline.after,
            })?
            .map_err(|error| error.into_kafka(R::OPERATION, &self.address))?;
        let response = decode::<R>(answer, version, self.correlation_id)?;
        self.is_usable = true;
        Ok(response)
    }
}

fn encode<R: Call>(header: &RequestHeader, request: &R, version: i16) -> Result<Bytes, KafkaError> {
    let fail = |error: &dyn std::fmt::Display| KafkaError::Protocol {
        operation: R::OPERATION,
        detail: format!("the request cannot be written in version {version}: {error}"),
    };
    let mut body = BytesMut::new();
    header
        .encode(&mut body, R::header_version(version))
        .and_then(|()| request.encode(&mut body, version))
        .map_err(|error| fail(&error))?;
    let length = i32::try_from(body.len()).map_err(|error| fail(&error))?;
    let mut frame = BytesMut::with_capacity(body.len() + 4);
    frame.put_i32(length);
    frame.put(body);
    Ok(frame.freeze())
}

/// Reads an answer: the right correlation id, and no byte left over.
pub(super) fn decode<R: Call>(
    mut answer: Bytes,
    version: i16,
    correlation_id: i32,
) -> Result<R::Response, KafkaError> {
    let fail = |detail: String| KafkaError::Protocol {
        operation: R::OPERATION,
        detail,
    };
    let header = ResponseHeader::decode(&mut answer, R::Response::header_version(version))
        .map_err(|error| fail(format!("header: {error}")))?;
    if header.correlation_id != correlation_id {
        return Err(fail(format!(
            "it answers request {} instead of {correlation_id}",
            header.correlation_id
        )));
    }
    // A broker that does not know our ApiVersions version answers in version 0 with this code in front (KIP-511).
    if R::KEY == ApiVersionsRequest::KEY && answer.starts_with(&UNSUPPORTED_VERSION.to_be_bytes()) {
        return Err(fail(format!(
            "the broker does not know version {version}; Kafka 2.4 or newer is needed"
        )));
    }
    let response = guard::decode::<R>(&mut answer, version)
        .map_err(|error| fail(format!("version {version}: {error}")))?;
    if answer.has_remaining() {
        return Err(fail(format!(
            "version {version}: {} bytes are left over",
            answer.remaining()
        )));
    }
    Ok(response)
}

const UNSUPPORTED_VERSION: i16 = 35;

fn check_versions(response: &ApiVersionsResponse) -> Result<BrokerVersions, KafkaError> {
    super::api::check_code("ApiVersions", response.error_code, None)?;
    let metadata_version = response
        .finalized_features
        .iter()
        .find(|feature| feature.name.as_str() == "metadata.version")
        .map(|feature| feature.max_version_level);
    let ranges = response
        .api_keys
        .iter()
        .map(|api| (api.api_key, (api.min_version, api.max_version)))
        .collect();
    Ok(BrokerVersions {
        ranges,
        metadata_version,
    })
}

/// What can go wrong between sending a frame and holding its answer.
#[derive(Debug)]
enum FrameError {
    Io(io::Error),
    Length(i32),
}

impl FrameError {
    fn into_kafka(self, operation: &'static str, address: &str) -> KafkaError {
        match self {
            // With TLS 1.3 a broker says only here what it thinks of the client's certificate.
            Self::Io(error) => {
                tls::broken(address, &error).unwrap_or_else(|| KafkaError::Disconnected {
                    operation,
                    detail: format!("{address}: {error}"),
                })
            }
            // An alert record of TLS 1.x: type 21, major version 3.
            Self::Length(length) if length.to_be_bytes().starts_with(&[21, 3]) => {
                KafkaError::Protocol {
                    operation,
                    detail: format!(
                        "{address} speaks TLS, which kafka.security_protocol does not ask for"
                    ),
                }
            }
            Self::Length(length) => KafkaError::Protocol {
                operation,
                detail: format!(
                    "{address} announces an answer of {length} bytes; {FRAME_BYTES_MAX} is the most that Kafka sends. Is this a Kafka port?"
                ),
            },
        }
    }
}

async fn swap_frames(stream: &mut Stream, frame: &[u8]) -> Result<Bytes, FrameError> {
    stream.send(frame).await.map_err(FrameError::Io)?;
    let announced = stream.read_i32().await.map_err(FrameError::Io)?;
    let length = usize::try_from(announced)
        .ok()
        .filter(|length| *length <= FRAME_BYTES_MAX)
        .ok_or(FrameError::Length(announced))?;
    let mut answer = BytesMut::with_capacity(length.min(FRAME_BYTES_AHEAD));
    while answer.len() < length {
        let missing = length - answer.len();
        let read = stream
            .read_buf(&mut (&mut answer).limit(missing))
            .await
            .map_err(FrameError::Io)?;
        if read == 0 {
            return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(answer.freeze())
}

/// What a broker may mean that closes a fresh connection.
fn hint(config: &KafkaConfig, operation: &str) -> String {
    let is_first = operation == ApiVersionsRequest::OPERATION;
    let has_certificate = config.ssl_keystore_location.is_some();
    if config.security_protocol.has_tls() && is_first && !has_certificate {
        format!(
            " (a broker that wants a client certificate does that too: {})",
            tls::KEYSTORE
        )
    } else {
        String::new()
    }
}

async fn encrypt(
    stream: TcpStream,
    address: &Arc<str>,
    access: &Access,
    deadline: Deadline,
) -> Result<TlsStream<TcpStream>, KafkaError> {
    let (host, _) = split_address(address).map_err(|error| unreachable(address, &error))?;
    let connected = access.tls.connect(stream, address, host, &access.config);
    timeout_at(deadline.at, connected)
        .await
        .map_err(|_elapsed| KafkaError::Unreachable {
            brokers: address.to_string(),
            detail: format!(
                "connected, but no TLS handshake within {:?} ({}): does kafka.security_protocol fit this listener?",
                deadline.after, deadline.setting
            ),
        })?
}

fn unreachable(address: &str, error: &io::Error) -> KafkaError {
    KafkaError::Unreachable {
        brokers: address.to_owned(),
        detail: error.to_string(),
    }
}

/// Tries each address that the name stands for; each gets an even part of the time that is left, so that one address behind a
/// silent firewall leaves time for the next.
async fn dial(address: &str, deadline: Deadline) -> io::Result<TcpStream> {
    let (host, port) = split_address(address)?;
    let addresses: Vec<_> = within(
        deadline.at,
        "looking its name up",
        deadline,
        lookup_host((host, port)),
    )
    .await?
    .collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for socket_address in addresses {
        let share = deadline.at.saturating_duration_since(Instant::now()) / left.max(1);
        left = left.saturating_sub(1);
        let dialled = within(
            Instant::now() + share,
            "dialling",
            deadline,
            connect(socket_address),
        );
        match dialled.await {
            Ok(stream) => {
                // Requests are small and each is waited for: holding them back for more bytes only delays.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            // What a name stands for is worth telling; a literal was told already.
            Err(error) if host.parse::<IpAddr>().is_ok() => last = error,
            Err(error) => last = io::Error::new(error.kind(), format!("{socket_address}: {error}")),
        }
    }
    Err(last)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // For connections that lie idle in the pool while a firewall forgets them; requests have their own deadline.
    socket.set_keepalive(true)?;
    socket.connect(address).await
}

async fn within<T>(
    at: Instant,
    what: &str,
    deadline: Deadline,
    future: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    timeout_at(at, future).await.map_err(|_elapsed| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "{what} did not end within {:?} ({})",
                deadline.after, deadline.setting
            ),
        )
    })?
}

/// Splits `host:port`; an IPv6 literal stands in brackets.
fn split_address(address: &str) -> io::Result<(&str, u16)> {
    let invalid = |why: &str| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{address}` in kafka.brokers is not host:port: {why}"),
        )
    };
    let (host, port) = address
        .rsplit_once(':')
        .ok_or_else(|| invalid("the port is missing"))?;
    let port = port
        .parse()
        .map_err(|error| invalid(&format!("`{port}`: {error}")))?;
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(literal) => Ok((literal, port)),
        None if host.contains(':') => {
            Err(invalid("an IPv6 address needs brackets, as in [::1]:9092"))
        }
        None if host.is_empty() => Err(invalid("the host is missing")),
        None => Ok((host, port)),
    }
}

/// Writes `host:port` so that [`split_address`] reads it.
pub(super) fn join_address(host: &str, port: i32) -> Arc<str> {
    if host.contains(':') {
        format!("[{host}]:{port}").into()
    } else {
        format!("{host}:{port}").into()
    }
}

#[cfg(test)]
mod tests;
