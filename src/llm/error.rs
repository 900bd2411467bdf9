//! What can be wrong before the first document is asked about.

use std::path::PathBuf;

use crate::tls::UnsupportedCpu;

/// Why a client cannot be built, or a server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// A setting that [`LlmConfig::validate`](super::LlmConfig::validate) refuses.
    #[error("{0}")]
    Setting(String),
    /// The key file cannot be read.
    #[error("llm.api_key_file = `{}` cannot be read", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The key file holds no key.
    #[error("llm.api_key_file = `{}`: its content {problem}", path.display())]
    KeyFileContent {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The key cannot be sent.
    #[error("llm.api_key {problem}")]
    ApiKey {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The schema's file cannot be read.
    #[error("llm.schema_file = `{}` cannot be read", path.display())]
    SchemaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The schema cannot be used.
    #[error("llm.schema_file = `{}`: {problem}", path.display())]
    Schema {
        /// The file, or the name of a schema that ships.
        path: PathBuf,
        /// What is wrong, with the place in it.
        problem: String,
    },
    /// The certificate file cannot be read.
    #[error("llm.ca_file = `{}` cannot be read as PEM certificates", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate of that file is not one.
    #[error("llm.ca_file = `{}` holds a certificate that cannot be used", path.display())]
    CaCertificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The certificate file holds none.
    #[error("llm.ca_file = `{}` holds no certificate: write PEM blocks that begin with BEGIN CERTIFICATE", path.display())]
    CaFileEmpty {
        /// The file.
        path: PathBuf,
    },
    /// The processor lacks instructions that the encryption needs.
    #[error("llm.url uses https, and {0}: use http:// or another machine")]
    UnsupportedCpu(UnsupportedCpu),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// The HTTP client cannot be set up.
    #[error("the HTTP client cannot be set up")]
    HttpClient(#[source] reqwest::Error),
    /// The server was asked and cannot be used.
    #[error("{0}")]
    Unusable(String),
}
