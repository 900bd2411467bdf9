//! What TLS to Kafka and to the model server have in common: the crypto provider, in pure Rust, and whom to trust.
//!
//! The provider is handed over explicitly and never installed for the process. It is built only where TLS is used, and not on a processor
//! that it would panic on.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};

/// The processor lacks instructions that the encryption needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this processor lacks what the built-in encryption needs ({})", missing.join(", "))]
pub struct UnsupportedCpu {
    /// The missing features.
    pub missing: Vec<&'static str>,
}

/// Why TLS cannot be set up at all.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SetupError {
    /// The processor is too old.
    #[error(transparent)]
    Cpu(#[from] UnsupportedCpu),
    /// The library refuses.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// What is wrong with a file of certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// It is not PEM.
    #[error("it cannot be read as PEM certificates")]
    Unreadable(#[source] pem::Error),
    /// A certificate in it is not one.
    #[error("it holds a certificate that cannot be used")]
    Unusable(#[source] rustls::Error),
    /// There is none in it.
    #[error("it holds no certificate: write PEM blocks that begin with BEGIN CERTIFICATE")]
    Empty,
}

/// What encrypts.
///
/// # Errors
/// When the processor lacks what it needs.
pub fn provider() -> Result<Arc<CryptoProvider>, UnsupportedCpu> {
    supported(needed())?;
    Ok(Arc::new(rustls_graviola::default_provider()))
}

/// The TLS settings of an HTTP client. Without `roots` it is one for `http://` URLs alone, which wants settings all the same: no processor
/// feature is needed, as nothing is encrypted.
///
/// # Errors
/// When TLS is used and the processor lacks what it needs.
pub fn http_client(roots: Option<RootCertStore>) -> Result<ClientConfig, SetupError> {
    let provider = match &roots {
        Some(_) => provider()?,
        None => Arc::new(rustls_graviola::default_provider()),
    };
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SetupError::Tls)?
        .with_root_certificates(roots.unwrap_or_else(RootCertStore::empty))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

fn supported(
    features: impl IntoIterator<Item = (&'static str, bool)>,
) -> Result<(), UnsupportedCpu> {
    let features = features.into_iter();
    let missing: Vec<_> = features
        .filter_map(|(name, present)| (!present).then_some(name))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(UnsupportedCpu { missing })
    }
}

/// What graviola needs and would panic without.
#[cfg(target_arch = "x86_64")]
fn needed() -> [(&'static str, bool); 6] {
    [
        ("aes", std::arch::is_x86_feature_detected!("aes")),
        (
            "pclmulqdq",
            std::arch::is_x86_feature_detected!("pclmulqdq"),
        ),
        ("bmi1", std::arch::is_x86_feature_detected!("bmi1")),
        ("adx", std::arch::is_x86_feature_detected!("adx")),
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
    ]
}

/// What graviola needs and would panic without.
#[cfg(target_arch = "aarch64")]
fn needed() -> [(&'static str, bool); 4] {
    [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("aes", std::arch::is_aarch64_feature_detected!("aes")),
        ("pmull", std::arch::is_aarch64_feature_detected!("pmull")),
        ("sha2", std::arch::is_aarch64_feature_detected!("sha2")),
    ]
}

/// The system's roots or, where it has none, the bundled ones. Those that cannot be parsed are left out, as every TLS client does: systems
/// carry odd ones.
#[must_use]
pub fn system_roots() -> RootCertStore {
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a system certificate could not be read");
    }
    or_bundled(native.certs)
}

fn or_bundled(native: Vec<CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(native);
    tracing::debug!(added, ignored, "system certificates");
    if roots.is_empty() {
        tracing::info!("the system has no root certificates: using the bundled ones");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// Trusts the certificates of a PEM file too.
///
/// # Errors
/// When it holds none, or one that is of no use.
pub fn trust(roots: &mut RootCertStore, pem: &[u8]) -> Result<(), CertificatesError> {
    let mut found = false;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        found = true;
        roots
            .add(certificate.map_err(CertificatesError::Unreadable)?)
            .map_err(CertificatesError::Unusable)?;
    }
    if found {
        Ok(())
    } else {
        Err(CertificatesError::Empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_without_roots_gets_the_bundled_ones() {
        let roots = or_bundled(Vec::new());
        assert_eq!(roots.len(), webpki_roots::TLS_SERVER_ROOTS.len());
    }

    #[test]
    fn a_file_of_anything_else_is_told_from_certificates() {
        let trusted = |pem: &str| trust(&mut RootCertStore::empty(), pem.as_bytes());
        assert!(matches!(
            trusted("nothing here\n"),
            Err(CertificatesError::Empty)
        ));
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        assert!(matches!(
            trusted(cut),
            Err(CertificatesError::Unreadable(_))
        ));
        let wrong = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(
            trusted(wrong),
            Err(CertificatesError::Unusable(_))
        ));
    }

    #[test]
    fn what_a_processor_lacks_is_told_before_anything_is_encrypted() {
        assert_eq!(supported([("aes", true), ("avx2", true)]), Ok(()));
        let lacking = supported([("aes", false), ("avx", true), ("avx2", false)]).unwrap_err();
        assert!(lacking.to_string().contains("(aes, avx2)"), "{lacking}");
    }
}
