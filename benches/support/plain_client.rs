//! What our own client is held to.

use std::sync::Arc;

/// reqwest as anyone would set it up, without TLS and without the search for a proxy.
pub(crate) fn plain_client(at_once: usize) -> reqwest::ClientBuilder {
    let provider = Arc::new(rustls_graviola::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .pool_max_idle_per_host(at_once)
}
