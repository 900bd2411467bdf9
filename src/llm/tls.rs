//! TLS to the model server, in pure Rust: the system's roots or, where it has none, the bundled ones; beside them a file of the
//! user's. The crypto provider is handed over explicitly and never installed for the process.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::{LlmConfig, LlmError};

/// The client's TLS settings. For a plain `http://` URL nothing is looked up: no certificate is read and no processor feature needed.
///
/// # Errors
/// When the file of certificates is of no use, or the processor lacks what the encryption needs.
pub(super) fn client_config(config: &LlmConfig) -> Result<ClientConfig, LlmError> {
    let roots = if config.is_https() {
        let missing = missing_cpu_features();
        if !missing.is_empty() {
            return Err(LlmError::UnsupportedCpu {
                missing: missing.join(", "),
            });
        }
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::debug!(%error, "a system certificate could not be read");
        }
        roots(native.certs, config.ca_file.as_deref())?
    } else {
        RootCertStore::empty()
    };
    let mut tls =
        ClientConfig::builder_with_provider(Arc::new(rustls_graviola::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(LlmError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

/// The certificates that are trusted. Those of the system that cannot be parsed are left out, as every TLS client does: systems
/// carry odd ones.
fn roots(
    native: Vec<CertificateDer<'static>>,
    ca_file: Option<&Path>,
) -> Result<RootCertStore, LlmError> {
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(native);
    tracing::debug!(added, ignored, "system certificates");
    if roots.is_empty() {
        tracing::info!("the system has no root certificates: using the bundled ones");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = ca_file {
        let unreadable = |source| LlmError::CaFile {
            path: path.to_owned(),
            source,
        };
        let mut found = false;
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            found = true;
            roots
                .add(certificate.map_err(unreadable)?)
                .map_err(|source| LlmError::CaCertificate {
                    path: path.to_owned(),
                    source,
                })?;
        }
        if !found {
            return Err(LlmError::CaFileEmpty {
                path: path.to_owned(),
            });
        }
    }
    Ok(roots)
}

/// What graviola needs and would panic without.
#[cfg(target_arch = "x86_64")]
fn missing_cpu_features() -> Vec<&'static str> {
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
    .into_iter()
    .filter_map(|(name, present)| (!present).then_some(name))
    .collect()
}

/// What graviola needs and would panic without.
#[cfg(target_arch = "aarch64")]
fn missing_cpu_features() -> Vec<&'static str> {
    [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("aes", std::arch::is_aarch64_feature_detected!("aes")),
        ("pmull", std::arch::is_aarch64_feature_detected!("pmull")),
        ("sha2", std::arch::is_aarch64_feature_detected!("sha2")),
    ]
    .into_iter()
    .filter_map(|(name, present)| (!present).then_some(name))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_without_roots_gets_the_bundled_ones() {
        let roots = roots(Vec::new(), None).unwrap();
        assert_eq!(roots.len(), webpki_roots::TLS_SERVER_ROOTS.len());
    }

    #[test]
    fn a_ca_file_without_certificates_names_the_setting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "nothing here\n").unwrap();
        let error = roots(Vec::new(), Some(&path)).unwrap_err();
        assert!(matches!(error, LlmError::CaFileEmpty { .. }), "{error}");
        assert!(error.to_string().contains("llm.ca_file"));
        let missing = roots(Vec::new(), Some(Path::new("/nonexistent.pem"))).unwrap_err();
        assert!(matches!(missing, LlmError::CaFile { .. }), "{missing}");
    }

    #[test]
    fn a_client_for_https_is_built() {
        let config = LlmConfig {
            url: "https://localhost:1".to_owned(),
            ..LlmConfig::default()
        };
        assert_eq!(
            client_config(&config).unwrap().alpn_protocols,
            vec![b"http/1.1".to_vec()]
        );
    }
}
