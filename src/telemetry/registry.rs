//! The one registry of metrics. Each part registers its own families while it is built; then the registry is shared read-only.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// What every metric's name begins with.
pub const PREFIX: &str = "klp";

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of [`Metrics::encode_classic`].
pub const CONTENT_TYPE_CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

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

    /// All metrics as Prometheus' own text, which came before OpenMetrics: `promtool` and older scrapers read no other.
    ///
    /// # Errors
    /// When a part's own collector fails.
    pub fn encode_classic(&self) -> Result<String, fmt::Error> {
        self.encode().map(|text| classic(&text))
    }
}

/// OpenMetrics names a counter without the `_total` of its samples, and tells units and the end of the text.
fn classic(open_metrics: &str) -> String {
    let counters: BTreeSet<&str> = open_metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let described = ["# HELP ", "# TYPE "]
            .into_iter()
            .find_map(|kind| Some((kind, line.strip_prefix(kind)?.split_once(' ')?)));
        match described {
            Some((kind, (name, rest))) if counters.contains(name) => {
                for part in [kind, name, "_total ", rest] {
                    text.push_str(part);
                }
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
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
    #[test]
    fn classic_text_names_counters_as_their_samples_and_knows_no_units() {
        let mut registry = new_registry();
        let (fetched, waits) = (Counter::<u64>::default(), Counter::<u64>::default());
        registry.register("records_fetched", "Records fetched", fetched);
        registry.register_with_unit(
            "waits",
            "Time waited",
            prometheus_client::registry::Unit::Seconds,
            waits,
        );
        let text = Metrics::new(registry).encode_classic().unwrap();
        assert_eq!(
            text,
            "# HELP klp_records_fetched_total Records fetched.\n\
             # TYPE klp_records_fetched_total counter\n\
             klp_records_fetched_total 0\n\
             # HELP klp_waits_seconds_total Time waited.\n\
             # TYPE klp_waits_seconds_total counter\n\
             klp_waits_seconds_total 0\n"
        );
    }
}
