use std::path::{Path, PathBuf};
use std::time::Duration;

use kafka_protocol::messages::{MetadataRequest, MetadataResponse};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::access::Access;
use super::super::connection::{Connection, Deadline};
use super::super::fake::{FakeBroker, Reply};
use super::*;
use crate::kafka::SecurityProtocol;

const SECOND: Duration = Duration::from_secs(1);

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tls")
        .join(name)
}

fn acceptor(certificate: &str, wants_client: bool) -> TlsAcceptor {
    let provider = Arc::new(rustls_graviola::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if wants_client {
        let mut roots = RootCertStore::empty();
        tls::trust(&mut roots, &std::fs::read(file("ca.pem")).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let pem = std::fs::read(file(certificate)).unwrap();
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_slice(&pem).unwrap();
    let config = builder.with_single_cert(chain.unwrap(), key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// TLS in front of a broker that has nothing to say but an empty answer.
struct Secured {
    address: Arc<str>,
    _broker: FakeBroker,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Secured {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Secured {
    async fn start(certificate: &str, wants_client: bool) -> Self {
        let broker = FakeBroker::start(|asked| {
            Reply::to::<MetadataRequest>(asked.version, &MetadataResponse::default())
        })
        .await;
        let acceptor = acceptor(certificate, wants_client);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string().into();
        let upstream = broker.address;
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let mut stream = acceptor.accept(stream).await?;
                    let mut upstream = TcpStream::connect(upstream).await?;
                    copy_bidirectional(&mut stream, &mut upstream).await
                });
            }
        });
        Self {
            address,
            _broker: broker,
            task,
        }
    }
}

/// A peer that is no TLS server.
#[derive(Debug, Clone, Copy)]
enum Peer {
    /// Accepts, and says nothing.
    Silent,
    /// Answers with what is not TLS.
    Garbage,
    /// Takes the first bytes and closes, as a Kafka listener without TLS does.
    Closes,
    /// Begins a record and does not end it.
    Stalls,
    /// Says again and again that all is well, and never shakes hands.
    Endless,
}

impl Peer {
    async fn start(self) -> (Arc<str>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string().into();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(self.serve(stream));
            }
        });
        (address, task)
    }

    async fn serve(self, mut stream: TcpStream) -> io::Result<()> {
        let mut bytes = [0; 2048];
        stream.read(&mut bytes).await.map(drop)?;
        match self {
            Self::Closes => return Ok(()),
            Self::Silent => {}
            Self::Garbage => stream.write_all(&[b'x'; 4096]).await?,
            // A handshake record of 16 KiB.
            Self::Stalls => stream.write_all(&[22, 3, 3, 0x40, 0, 2]).await?,
            // A warning: user cancelled.
            Self::Endless => loop {
                stream.write_all(&[21, 3, 3, 0, 2, 1, 90]).await?;
            },
        }
        std::future::pending().await
    }
}

fn config(change: impl FnOnce(&mut KafkaConfig)) -> Access {
    let mut config = KafkaConfig {
        security_protocol: SecurityProtocol::Ssl,
        ssl_truststore_location: Some(file("ca.pem")),
        connect_timeout: SECOND,
        ..KafkaConfig::default()
    };
    change(&mut config);
    Access::new(config)
}

async fn open(address: &Arc<str>, access: &Access) -> Result<Connection, KafkaError> {
    Connection::open(address, access, Deadline::within(10 * SECOND)).await
}

async fn refusal(address: &Arc<str>, access: &Access) -> String {
    open(address, access).await.unwrap_err().to_string()
}

async fn metadata(connection: &mut Connection) {
    let request = MetadataRequest::default();
    let asked = connection.exchange(&request, 12, Deadline::within(SECOND));
    asked.await.unwrap();
}

#[tokio::test]
async fn a_connection_over_tls_is_used_again_and_again() {
    let secured = Secured::start("broker.pem", false).await;
    let mut connection = open(&secured.address, &config(|_| {})).await.unwrap();
    for _ in 0..3 {
        metadata(&mut connection).await;
        assert!(connection.is_reusable(), "tickets are no answers");
    }
    drop(secured);
    // The broker's end may take a moment to arrive.
    let closed = async {
        while connection.is_reusable() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SECOND, closed)
        .await
        .expect("an end is seen");
}

#[tokio::test]
async fn a_client_certificate_is_shown_from_one_file_or_two() {
    let secured = Secured::start("broker.pem", true).await;
    for (keystore, key) in [("client.pem", None), ("client.crt", Some("client.key"))] {
        let access = config(|config| {
            config.ssl_keystore_location = Some(file(keystore));
            config.ssl_key_location = key.map(file);
        });
        metadata(&mut open(&secured.address, &access).await.unwrap()).await;
    }
}

#[tokio::test]
async fn each_way_in_which_tls_fails_has_its_words() {
    type Change = fn(&mut KafkaConfig);
    let cases: [(&str, bool, Change, &[&str]); 7] = [
        (
            "broker.pem",
            false,
            |c| c.ssl_truststore_location = Some(file("other-ca.pem")),
            &[
                "no authority that is trusted",
                "kafka.ssl_truststore_location",
            ],
        ),
        // The system's authorities.
        (
            "broker.pem",
            false,
            |c| c.ssl_truststore_location = None,
            &[
                "no authority that is trusted",
                "kafka.ssl_truststore_location",
            ],
        ),
        (
            "expired.pem",
            false,
            |_| {},
            &["has expired", "ssl.keystore.location"],
        ),
        (
            "elsewhere.pem",
            false,
            |_| {},
            &[
                "another host",
                "127.0.0.1",
                "elsewhere.example",
                "kafka.brokers",
            ],
        ),
        (
            "broker.pem",
            true,
            |_| {},
            &["client certificate", "kafka.ssl_keystore_location"],
        ),
        (
            "broker.pem",
            true,
            |c| c.ssl_keystore_location = Some(file("stranger.pem")),
            &["client certificate", "kafka.ssl_keystore_location"],
        ),
        (
            "broker.pem",
            false,
            |c| {
                c.security_protocol = SecurityProtocol::Plaintext;
                c.ssl_truststore_location = None;
            },
            &["kafka.security_protocol", "TLS"],
        ),
    ];
    for (certificate, wants_client, change, says) in cases {
        let secured = Secured::start(certificate, wants_client).await;
        let began = tokio::time::Instant::now();
        let text = refusal(&secured.address, &config(change)).await;
        assert!(says.iter().all(|word| text.contains(word)), "{text}");
        assert!(text.contains(&*secured.address), "{text}");
        assert!(began.elapsed() < 5 * SECOND);
    }
}

#[tokio::test]
async fn a_peer_that_never_shakes_hands_is_told_in_time() {
    for (peer, says) in [
        (
            Peer::Silent,
            "no TLS handshake within 1s (kafka.connect_timeout)",
        ),
        (
            Peer::Stalls,
            "no TLS handshake within 1s (kafka.connect_timeout)",
        ),
        (Peer::Garbage, "what answers there is no TLS"),
        (Peer::Closes, "closed the connection in the handshake"),
        (Peer::Endless, "kafka.security_protocol"),
    ] {
        let (address, task) = peer.start().await;
        let began = tokio::time::Instant::now();
        let text = refusal(&address, &config(|_| {})).await;
        assert!(text.contains(says), "{peer:?}: {text}");
        assert!(text.contains("kafka.security_protocol"), "{peer:?}: {text}");
        assert!(
            began.elapsed() < 3 * SECOND,
            "{peer:?}: {:?}",
            began.elapsed()
        );
        task.abort();
    }
}

/// What is switched off is the name alone.
#[tokio::test]
async fn without_endpoint_identification_a_certificate_still_has_to_be_good() {
    let none: fn(&mut KafkaConfig) =
        |c| c.ssl_endpoint_identification_algorithm = EndpointIdentification::None;
    let elsewhere = Secured::start("elsewhere.pem", false).await;
    metadata(&mut open(&elsewhere.address, &config(none)).await.unwrap()).await;
    let wrong_authority = config(|config| {
        none(config);
        config.ssl_truststore_location = Some(file("other-ca.pem"));
    });
    let text = refusal(&elsewhere.address, &wrong_authority).await;
    assert!(text.contains("no authority"), "{text}");
    let expired = Secured::start("expired.pem", false).await;
    let text = refusal(&expired.address, &config(none)).await;
    assert!(text.contains("has expired"), "{text}");
}

#[tokio::test]
async fn certificates_that_are_renewed_on_disk_are_taken_up() {
    let secured = Secured::start("broker.pem", true).await;
    let folder = tempfile::tempdir().unwrap();
    let (truststore, keystore) = (
        folder.path().join("ca.pem"),
        folder.path().join("client.pem"),
    );
    let put = |from: &str, to: &Path| {
        std::fs::copy(file(from), to).unwrap();
    };
    put("other-ca.pem", &truststore);
    put("stranger.pem", &keystore);
    let access = config(|config| {
        config.ssl_truststore_location = Some(truststore.clone());
        config.ssl_keystore_location = Some(keystore.clone());
    });
    assert!(
        refusal(&secured.address, &access)
            .await
            .contains("kafka.ssl_truststore")
    );
    put("ca.pem", &truststore);
    assert!(
        refusal(&secured.address, &access)
            .await
            .contains("kafka.ssl_keystore")
    );
    put("client.pem", &keystore);
    let mut connection = open(&secured.address, &access).await.unwrap();
    // A connection that stands is left alone; the next one is not.
    std::fs::remove_file(&truststore).unwrap();
    metadata(&mut connection).await;
    assert!(
        refusal(&secured.address, &access)
            .await
            .contains("cannot be read")
    );
}

#[tokio::test]
async fn what_the_files_lead_to_is_kept_while_they_stay_the_same() {
    let access = config(|config| config.ssl_keystore_location = Some(file("client.pem")));
    let first = access.tls.client(&access.config).await.unwrap();
    let second = access.tls.client(&access.config).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second), "sessions can be resumed");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let certificate = std::fs::read_to_string(file("client.crt")).unwrap();
    let encrypted = write(
        "encrypted.pem",
        &format!(
            "{certificate}-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
        ),
    );
    let keyless = write("keyless.pem", &certificate);
    let broken = write(
        "broken.pem",
        "-----BEGIN PRIVATE KEY-----\nhush!\n-----END PRIVATE KEY-----\n",
    );
    let empty = write("empty.pem", "hush");
    let other_key = write(
        "other.key",
        &std::fs::read_to_string(file("broker.pem")).unwrap(),
    );
    type Change = Box<dyn FnOnce(&mut KafkaConfig)>;
    let keystore =
        |path: PathBuf| -> Change { Box::new(|config| config.ssl_keystore_location = Some(path)) };
    let pair = |key: PathBuf| -> Change {
        Box::new(|config| {
            config.ssl_keystore_location = Some(file("client.crt"));
            config.ssl_key_location = Some(key);
        })
    };
    let cases: [(Change, &str, &str); 7] = [
        (keystore(encrypted), KEYSTORE, "is encrypted"),
        (keystore(keyless), KEYSTORE, "no private key"),
        (keystore(empty.clone()), KEYSTORE, "no certificate"),
        (pair(broken), KEY, "no private key"),
        (pair(other_key), KEY, "cannot be used"),
        (
            Box::new(|config| config.ssl_truststore_location = Some(empty)),
            TRUSTSTORE,
            "holds no certificate",
        ),
        (
            Box::new(|config| config.ssl_truststore_location = Some("/nonexistent.pem".into())),
            TRUSTSTORE,
            "cannot be read",
        ),
    ];
    for (change, setting, says) in cases {
        let access = config(change);
        let error = access.tls.client(&access.config).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(setting) && text.contains(says), "{text}");
        assert!(!text.contains("hush"), "{text}");
        assert!(error.is_transient(), "others renew files");
    }
}
