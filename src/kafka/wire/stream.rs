//! The bytes of a connection, encrypted or not.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::tls;

#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Sends all of it. A broker that closes while something is still sent may have said why before, which is read then.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = async {
            self.write_all(bytes).await?;
            self.flush().await
        };
        match (sent.await, self) {
            (Err(error), Self::Tls(stream)) => match stream.read_u8().await {
                Err(why) if tls::is_tls(&why) => Err(why),
                _ => Err(error),
            },
            (sent, _) => sent,
        }
    }

    /// Whether the broker has neither closed it nor sent anything unasked. What TLS itself sends between answers, such as tickets to
    /// resume a session with, is taken in and is no answer.
    pub(super) fn is_quiet(&mut self) -> bool {
        match self {
            Self::Plain(stream) => matches!(
                stream.try_read(&mut [0_u8; 1]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock
            ),
            Self::Tls(stream) => {
                let mut byte = [0_u8; 1];
                let mut context = Context::from_waker(Waker::noop());
                let mut buffer = ReadBuf::new(&mut byte);
                Pin::new(stream)
                    .poll_read(&mut context, &mut buffer)
                    .is_pending()
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
