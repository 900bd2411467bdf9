//! One client connection: frames in, frames out, one request at a time in their order, as Kafka does it.
//!
//! Whatever is not a request that the broker knows ends the connection, and nothing else: no answer, no effect on the others.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::ApiKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::api::{self, Outcome};
use super::sasl::Session;
use super::shared::Shared;

/// Kafka's `socket.request.max.bytes`.
const FRAME_BYTES_MAX: usize = 100 * 1024 * 1024;
/// Kafka's `sasl.server.max.receive.size`: what a client may send before it has said who it is.
const FRAME_BYTES_UNAUTHENTICATED_MAX: usize = 512 * 1024;
/// Kafka's `connections.max.idle.ms`.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// How long a client may take to accept a response.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// A frame's length stands before it.
const LENGTH_BYTES: usize = 4;
/// First allocation for a frame; the rest follows the bytes that really come.
const FRAME_BYTES_FIRST: usize = 64 * 1024;

/// Why a connection ended, other than by the client closing it between two frames.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("reading or writing failed")]
    Io(#[from] io::Error),
    #[error("the frame's length {length} is outside 0 to {limit}")]
    FrameLength { length: i32, limit: usize },
    #[error("the frame has no request header")]
    Header,
    #[error("api key {key} version {version} is not served")]
    NotServed { key: i16, version: i16 },
    #[error("api key {key} version {version}: the request cannot be read: {why}")]
    Malformed { key: i16, version: i16, why: String },
    #[error("api key {key} version {version}: the response cannot be written: {why}")]
    Response { key: i16, version: i16, why: String },
    #[error("the client sent api key {0} before it authenticated")]
    Unauthenticated(i16),
    #[error("nothing came or went for too long")]
    Timeout,
}

/// What a handler sees of the broker and of its connection.
#[derive(Debug)]
pub(super) struct Context {
    pub shared: Arc<Shared>,
    pub session: Session,
    pub client_id: Option<String>,
    /// Where the client connects from.
    pub peer: IpAddr,
}

/// Serves a connection until the client or a fault ends it.
pub(super) async fn serve(
    mut stream: TcpStream,
    shared: Arc<Shared>,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let session = Session::new(&shared.config);
    let _connected = shared.traffic.connected();
    let mut context = Context {
        shared: Arc::clone(&shared),
        session,
        client_id: None,
        peer: stream.peer_addr()?.ip(),
    };
    loop {
        let limit = if context.session.is_open() {
            FRAME_BYTES_MAX
        } else {
            FRAME_BYTES_UNAUTHENTICATED_MAX
        };
        let Some(frame) = read_frame(&mut stream, limit).await? else {
            break;
        };
        let (api, bytes_in) = (api_key(&context, &frame), frame.len());
        let outcome = api::dispatch(&mut context, frame).await?;
        if let Some(api) = api {
            let bytes_out = outcome.body().map_or(0, |body| LENGTH_BYTES + body.len());
            shared
                .traffic
                .answered(api, LENGTH_BYTES + bytes_in, bytes_out);
        }
        match outcome {
            Outcome::Reply(body) => write_frame(&mut stream, &body, body.len()).await?,
            Outcome::ReplyAndClose(body) => {
                write_frame(&mut stream, &body, body.len()).await?;
                break;
            }
            Outcome::CutReply(body) => {
                write_frame(&mut stream, &body, body.len() / 2).await?;
                break;
            }
            Outcome::NoReply => {}
            Outcome::Close => break,
            Outcome::Silence => return swallow(&mut stream).await,
        }
    }
    stream.shutdown().await?;
    Ok(())
}

/// The API that a frame asks for; a bare token of SASL asks for none.
fn api_key(context: &Context, frame: &Bytes) -> Option<ApiKey> {
    if context.session.awaits_bare_token() {
        return None;
    }
    let first = frame.first_chunk::<2>()?;
    ApiKey::try_from(i16::from_be_bytes(*first)).ok()
}

/// One frame; `None` when the client closed before it.
async fn read_frame(
    stream: &mut TcpStream,
    limit: usize,
) -> Result<Option<Bytes>, ConnectionError> {
    let mut prefix = [0; 4];
    match timeout(IDLE_MAX, stream.read_exact(&mut prefix)).await {
        Err(_) => return Err(ConnectionError::Timeout),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Ok(read) => read?,
    };
    let length = i32::from_be_bytes(prefix);
    let size = usize::try_from(length)
        .ok()
        .filter(|size| *size <= limit)
        .ok_or(ConnectionError::FrameLength { length, limit })?;
    let mut frame = BytesMut::with_capacity(size.min(FRAME_BYTES_FIRST));
    let body = async {
        while frame.len() < size {
            let missing = size - frame.len();
            if stream.read_buf(&mut (&mut frame).limit(missing)).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
        Ok(())
    };
    match timeout(IDLE_MAX, body).await {
        Err(_) => Err(ConnectionError::Timeout),
        Ok(read) => read.map(|()| Some(frame.freeze())).map_err(Into::into),
    }
}

/// Writes the length of the whole body and its first `sent` bytes.
async fn write_frame(
    stream: &mut TcpStream,
    body: &Bytes,
    sent: usize,
) -> Result<(), ConnectionError> {
    let length = i32::try_from(body.len()).unwrap_or(i32::MAX);
    let mut frame = BytesMut::with_capacity(sent + 4);
    frame.put_i32(length);
    frame.put(body.slice(..sent));
    match timeout(WRITE_MAX, stream.write_all(&frame)).await {
        Err(_) => Err(ConnectionError::Timeout),
        Ok(written) => written.map_err(Into::into),
    }
}

/// Keeps the connection open and answers nothing, until the client closes it.
async fn swallow(stream: &mut TcpStream) -> Result<(), ConnectionError> {
    let mut ignored = BytesMut::with_capacity(FRAME_BYTES_FIRST);
    loop {
        ignored.clear();
        match timeout(IDLE_MAX, stream.read_buf(&mut ignored)).await {
            Err(_) => return Err(ConnectionError::Timeout),
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(_)) => {}
        }
    }
}
