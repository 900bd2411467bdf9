//! The one registry of metrics. Each part registers its own families while it is built; then the registry is shared read-only.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// What every metric's name begins with.
pub const PREFIX: &str = "klp";

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An empty registry, for the parts to register their families with: `fn new(registry: &mut Registry)`.
#[must_use]
pub fn new_registry() -> Registry {
    Registry::with_prefix(PREFIX)
}

/// The complete registry, read-only and cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Registry>);

impl Metrics {
    /// Closes the registry: nothing can be registered any more.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self(Arc::new(registry))
    }

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    /// When a part's own collector fails.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut encoded = String::new();
        text::encode(&mut encoded, &self.0)?;
        Ok(encoded)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn names_have_the_prefix_and_the_text_ends() {
        let mut registry = new_registry();
        let fetched: Counter = Counter::default();
        registry.register("records_fetched", "Records fetched", fetched.clone());
        let metrics = Metrics::new(registry);
        fetched.inc();
        let text = metrics.encode().unwrap();
        assert!(text.contains("\nklp_records_fetched_total 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
