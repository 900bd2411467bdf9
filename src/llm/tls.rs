//! Whom to trust when the model server speaks TLS: the system's roots, and beside them a file of the user's.

use std::path::Path;

use rustls::pki_types::pem;
use rustls::{ClientConfig, RootCertStore};

use super::{LlmConfig, LlmError};
use crate::tls::{self, CertificatesError, SetupError};

/// The client's TLS settings. For a plain `http://` URL nothing is looked up: no certificate is read and no processor feature needed.
///
/// # Errors
/// When the file of certificates is of no use, or the processor lacks what the encryption needs.
pub(super) fn client_config(config: &LlmConfig) -> Result<ClientConfig, LlmError> {
    let roots = if config.is_https() {
        // Before anything is read.
        tls::provider().map_err(LlmError::UnsupportedCpu)?;
        let mut roots = tls::system_roots();
        if let Some(path) = config.ca_file.as_deref() {
            trust(&mut roots, path)?;
        }
        Some(roots)
    } else {
        None
    };
    tls::http_client(roots).map_err(|error| match error {
        SetupError::Cpu(error) => LlmError::UnsupportedCpu(error),
        SetupError::Tls(error) => LlmError::Tls(error),
    })
}

fn trust(roots: &mut RootCertStore, path: &Path) -> Result<(), LlmError> {
    let unreadable = |source| LlmError::CaFile {
        path: path.to_owned(),
        source,
    };
    let pem = std::fs::read(path).map_err(|error| unreadable(pem::Error::Io(error)))?;
    tls::trust(roots, &pem).map_err(|error| match error {
        CertificatesError::Unreadable(source) => unreadable(source),
        CertificatesError::Unusable(source) => LlmError::CaCertificate {
            path: path.to_owned(),
            source,
        },
        CertificatesError::Empty => LlmError::CaFileEmpty {
            path: path.to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_certificates_names_the_setting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "nothing here\n").unwrap();
        let mut roots = RootCertStore::empty();
        let error = trust(&mut roots, &path).unwrap_err();
        assert!(matches!(error, LlmError::CaFileEmpty { .. }), "{error}");
        assert!(error.to_string().contains("llm.ca_file"));
        let missing = trust(&mut roots, Path::new("/nonexistent.pem")).unwrap_err();
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
