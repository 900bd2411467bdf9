//! TLS to the brokers: what the files say now, and a handshake with words for each way in which it fails.
//!
//! The files are read for each new connection, so that certificates may be renewed on disk at any time. What they lead to is kept for as
//! long as they stay the same: it holds the sessions that can be resumed. Connections that stand are left alone.

use std::io;
use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pool::lock;
use crate::kafka::security;
use crate::kafka::{EndpointIdentification, KafkaConfig, KafkaError};
use crate::tls;

const TRUSTSTORE: &str = "kafka.ssl_truststore_location";
pub(super) const KEYSTORE: &str = "kafka.ssl_keystore_location";
const KEY: &str = "kafka.ssl_key_location";

/// TLS as the files had it when they were last read.
#[derive(Debug, Default)]
pub(super) struct Tls {
    current: Mutex<Option<([u8; 32], Arc<ClientConfig>)>>,
}

/// What the files hold, and a hash over all of it.
struct Files {
    truststore: Option<Vec<u8>>,
    keystore: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

impl Files {
    async fn read(config: &KafkaConfig) -> Result<Self, KafkaError> {
        let read = async |setting, path: &Option<std::path::PathBuf>| match path {
            Some(path) => security::read(setting, path).await.map(Some),
            None => Ok(None),
        };
        Ok(Self {
            truststore: read(TRUSTSTORE, &config.ssl_truststore_location).await?,
            keystore: read(KEYSTORE, &config.ssl_keystore_location).await?,
            key: read(KEY, &config.ssl_key_location).await?,
        })
    }

    fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in [&self.truststore, &self.keystore, &self.key] {
            // Each by itself, so that no byte can move from one file to the next unseen.
            hash.update(Sha256::digest(file.as_deref().unwrap_or_default()));
        }
        hash.finalize().into()
    }
}

impl Tls {
    /// Shakes hands on a fresh connection with the broker `host`. The caller sets the deadline.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        address: &str,
        host: &str,
        config: &KafkaConfig,
    ) -> Result<TlsStream<TcpStream>, KafkaError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| {
            fails(
                address,
                format!("`{host}` (kafka.brokers) cannot stand in a certificate: {error}"),
            )
        })?;
        let connector = TlsConnector::from(self.client(config).await?);
        let connected = connector.connect(name, stream).await;
        connected.map_err(|error| fails(address, handshake_detail(&error)))
    }

    async fn client(&self, config: &KafkaConfig) -> Result<Arc<ClientConfig>, KafkaError> {
        let provider = tls::provider().map_err(|error| credentials(format!(
            "kafka.security_protocol = {}, and {error}: use another machine, or a listener without TLS",
            config.security_protocol.as_str()
        )))?;
        let files = Files::read(config).await?;
        let hash = files.hash();
        if let Some((known, client)) = &*lock(&self.current)
            && *known == hash
        {
            return Ok(Arc::clone(client));
        }
        let roots = match &files.truststore {
            Some(pem) => truststore(pem, config)?,
            // They lie in hundreds of files.
            None => tokio::task::spawn_blocking(tls::system_roots)
                .await
                .map_err(|error| credentials(format!("the system's certificates: {error}")))?,
        };
        let client = Arc::new(build(provider, roots, &files, config)?);
        *lock(&self.current) = Some((hash, Arc::clone(&client)));
        Ok(client)
    }
}

fn truststore(pem: &[u8], config: &KafkaConfig) -> Result<RootCertStore, KafkaError> {
    let mut roots = RootCertStore::empty();
    tls::trust(&mut roots, pem).map_err(|error| {
        let path = config.ssl_truststore_location.as_deref();
        unusable(TRUSTSTORE, path, &crate::types::error_chain(&error))
    })?;
    Ok(roots)
}

fn build(
    provider: Arc<CryptoProvider>,
    roots: RootCertStore,
    files: &Files,
    config: &KafkaConfig,
) -> Result<ClientConfig, KafkaError> {
    let setup = |error: rustls::Error| credentials(format!("TLS cannot be set up: {error}"));
    let roots = Arc::new(roots);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(setup)?;
    let builder = match config.ssl_endpoint_identification_algorithm {
        EndpointIdentification::Https => builder.with_root_certificates(roots),
        EndpointIdentification::None => {
            tracing::warn!(
                "kafka.ssl_endpoint_identification_algorithm = none: whoever has any certificate of a trusted authority can pose as a broker"
            );
            let verifier = AnyHost::new(roots, provider)
                .map_err(|error| credentials(format!("{TRUSTSTORE}: {error}")))?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let Some(keystore) = &files.keystore else {
        return Ok(builder.with_no_client_auth());
    };
    let keystore_path = config.ssl_keystore_location.as_deref();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(keystore).collect();
    // The parser's own words could repeat a line of the key.
    let chain = chain.map_err(|_source| unusable(KEYSTORE, keystore_path, "it is not PEM"))?;
    if chain.is_empty() {
        let problem = "it holds no certificate: write PEM blocks that begin with BEGIN CERTIFICATE";
        return Err(unusable(KEYSTORE, keystore_path, problem));
    }
    let (pem, setting, path) = match &files.key {
        Some(key) => (key, KEY, config.ssl_key_location.as_deref()),
        None => (keystore, KEYSTORE, keystore_path),
    };
    let key = private_key(pem).map_err(|problem| unusable(setting, path, &problem))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| unusable(setting, path, &format!("its key cannot be used: {error}")))
}

/// The first private key of a PEM file. Nothing of it is in an error.
fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    const ENCRYPTED: &[u8] = b"ENCRYPTED";
    PrivateKeyDer::from_pem_slice(pem).map_err(|_source| {
        if pem.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED) {
            "its key is encrypted: write it without a passphrase, for the eyes of this user alone (openssl pkey -in … -out …)"
                .to_owned()
        } else {
            "it holds no private key: write a PEM block that begins with BEGIN PRIVATE KEY".to_owned()
        }
    })
}

/// Trusts every host that has a certificate of a trusted authority.
#[derive(Debug)]
struct AnyHost {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    signatures: Arc<WebPkiServerVerifier>,
}

impl AnyHost {
    fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::client::VerifierBuilderError> {
        let signatures =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()?;
        Ok(Self {
            roots,
            provider,
            signatures,
        })
    }
}

impl ServerCertVerifier for AnyHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_verify_schemes()
    }
}

/// Why there was no handshake, and what to look at.
fn handshake_detail(error: &io::Error) -> String {
    match tls_error(error) {
        Some(error) => alert_or_certificate(error),
        None if is_closed(error) => format!(
            "the broker closed the connection in the handshake ({error}): a listener without TLS does that (kafka.security_protocol, or the port in kafka.brokers)"
        ),
        None => format!("the handshake broke off: {error}"),
    }
}

/// What TLS itself says is wrong with a connection that stood, if it is that.
pub(super) fn broken(address: &str, error: &io::Error) -> Option<KafkaError> {
    tls_error(error).map(|error| fails(address, alert_or_certificate(error)))
}

/// Whether TLS itself says what is wrong, rather than the socket below.
pub(super) fn is_tls(error: &io::Error) -> bool {
    tls_error(error).is_some()
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

fn alert_or_certificate(error: &rustls::Error) -> String {
    use AlertDescription as Alert;
    use CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            Certificate::ExpiredContext { not_after, .. } => format!(
                "the broker's certificate has expired, on {}, or this machine's clock is wrong: renew it on the broker (its ssl.keystore.location)",
                date(*not_after)
            ),
            Certificate::NotValidYetContext { not_before, .. } => format!(
                "the broker's certificate is not valid before {}, or this machine's clock is wrong (its ssl.keystore.location)",
                date(*not_before)
            ),
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => format!(
                "the broker's certificate is for another host: {problem}; correct kafka.brokers or the broker's advertised.listeners (kafka.ssl_endpoint_identification_algorithm = none would accept any host)"
            ),
            Certificate::UnknownIssuer => format!(
                "the broker's certificate comes from no authority that is trusted ({problem}): name a PEM file with its authority's certificate in {TRUSTSTORE}"
            ),
            problem => {
                format!("the broker's certificate cannot be accepted ({TRUSTSTORE}): {problem}")
            }
        },
        rustls::Error::AlertReceived(
            alert @ (Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError),
        ) => format!(
            "the broker wants another client certificate, or one at all (alert {alert:?}): {KEYSTORE}"
        ),
        rustls::Error::AlertReceived(alert) => format!(
            "the broker refuses the handshake (alert {alert:?}): it may want a client certificate ({KEYSTORE}), or speak no TLS 1.2 or 1.3"
        ),
        rustls::Error::InvalidMessage(_) => format!(
            "what answers there is no TLS ({error}): kafka.security_protocol, or the port in kafka.brokers"
        ),
        error => format!("{error} (kafka.security_protocol)"),
    }
}

fn date(at: UnixTime) -> String {
    let seconds = i64::try_from(at.as_secs()).ok();
    let date = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    date.map_or_else(|| format!("{} s", at.as_secs()), |date| date.to_string())
}

fn fails(address: &str, detail: String) -> KafkaError {
    KafkaError::Tls {
        broker: address.to_owned(),
        detail,
    }
}

fn credentials(detail: String) -> KafkaError {
    KafkaError::Credentials { detail }
}

fn unusable(setting: &str, path: Option<&std::path::Path>, problem: &str) -> KafkaError {
    let path = path.map_or_else(String::new, |path| path.display().to_string());
    credentials(format!("{setting} = `{path}`: {problem}"))
}

#[cfg(test)]
mod tests;
