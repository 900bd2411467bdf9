//! TLS in front of the sandbox's broker, peers that are none, and an identity provider over HTTPS.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// A file of `tests/tls`.
pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tls")
        .join(name)
}

/// Somebody who listens; gone when dropped.
pub(crate) struct Listener {
    pub(crate) address: String,
    _task: AbortOnDropHandle<()>,
}

/// A port to be listened on, known before it is.
pub(crate) struct Port(TcpListener);

impl Port {
    pub(crate) async fn free() -> Self {
        Self(TcpListener::bind(("127.0.0.1", 0)).await.expect("a port"))
    }

    pub(crate) fn number(&self) -> u16 {
        self.0.local_addr().expect("it is bound").port()
    }

    fn serve<F>(self, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Listener
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let address = format!("127.0.0.1:{}", self.number());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = self.0.accept().await {
                connections.spawn(serve(stream));
            }
        });
        Listener {
            address,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Shakes hands with this certificate, and passes everything on.
    pub(crate) fn front(self, certificate: &str, wants_client: bool, behind: &str) -> Listener {
        let acceptor = acceptor(certificate, wants_client);
        let behind = behind.to_owned();
        self.serve(move |stream| {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut behind = TcpStream::connect(behind).await?;
                copy_bidirectional(&mut stream, &mut behind).await.map(drop)
            }
        })
    }

    /// Answers with these bytes, and then with nothing.
    pub(crate) fn mute(self, bytes: &'static [u8]) -> Listener {
        self.serve(move |mut stream| async move {
            stream.read_exact(&mut [0; 16]).await?;
            stream.write_all(bytes).await?;
            pending().await
        })
    }

    /// Gives `token` over HTTPS to whoever shows these credentials, as a browser would write them.
    pub(crate) fn provider(self, credentials: &'static str, token: &'static str) -> Listener {
        let acceptor = acceptor("broker.pem", false);
        self.serve(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut asked = Vec::new();
                while !String::from_utf8_lossy(&asked).contains("client_credentials") {
                    if stream.read_buf(&mut asked).await? == 0 {
                        return Ok(());
                    }
                }
                let is_known = String::from_utf8_lossy(&asked).contains(credentials);
                let (status, body) = if is_known {
                    let body = format!("{{\"access_token\":\"{token}\",\"expires_in\":300}}");
                    ("200 OK", body)
                } else {
                    let body = "{\"error\":\"invalid_client\"}".to_owned();
                    ("401 Unauthorized", body)
                };
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await
            }
        })
    }
}

fn acceptor(certificate: &str, wants_client: bool) -> TlsAcceptor {
    let provider = Arc::new(rustls_graviola::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider's versions");
    let builder = if wants_client {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(file("ca.pem")).expect("a certificate");
        roots.add(authority).expect("an authority");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
    } else {
        builder.with_no_client_auth()
    };
    let path = file(certificate);
    let chain = CertificateDer::pem_file_iter(&path).expect("a file of certificates");
    let chain = chain.collect::<Result<_, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(&path).expect("a key");
    let config = builder.with_single_cert(chain, key).expect("they fit");
    TlsAcceptor::from(Arc::new(config))
}
