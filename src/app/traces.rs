//! Traces: the exporter over the HTTP client that is there, with the same trusted certificates.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::App;
use crate::config::Settings;
use crate::llm::{Call, HttpTransport, LlmConfig, Transport as _};
use crate::spans::Spans;
use crate::telemetry::traces::{Collector, CollectorReply, TraceMetrics, Traces};
use crate::types::error_chain;

/// Larger than any answer of a collector.
const REPLY_BYTES_MAX: usize = 64 * 1024;

/// Starts what exports the spans; `None` where no endpoint is set.
///
/// # Errors
/// When a header, its file or the machine rules it out.
pub(super) fn start(
    settings: &Settings,
    instance: &str,
    metrics: TraceMetrics,
) -> anyhow::Result<Option<Traces>> {
    let config = &settings.telemetry;
    tell_passed_over(settings);
    let Some(endpoint) = config.endpoint() else {
        return Ok(None);
    };
    let transport = HttpTransport::new(&LlmConfig {
        url: endpoint.clone(),
        ca_file: settings.llm.ca_file.clone(),
        response_bytes_max: REPLY_BYTES_MAX,
        ..LlmConfig::default()
    })?;
    let collector = HttpCollector {
        transport,
        headers: headers(config.headers().map_err(anyhow::Error::msg)?)?,
        endpoint: endpoint.as_str().into(),
    };
    let traces = Traces::start(config, instance, Arc::new(collector), metrics);
    tracing::info!(endpoint, sample_ratio = config.sample_ratio, "tracing to");
    Ok(Some(traces))
}

/// The value is not repeated: it may hold what belongs into the headers.
fn tell_passed_over(settings: &Settings) {
    if settings.passed_over.is_empty() {
        return;
    }
    let names = settings.passed_over.join(" and ");
    let instead = match settings.telemetry.endpoint() {
        Some(_) => "spans go where another setting says",
        None => "no spans are made",
    };
    tracing::warn!(
        "{names}: must be an http:// or https:// URL of a collector that takes OTLP over HTTP, such as http://localhost:4318 (gRPC, port 4317, is not spoken); it is passed over, and {instead}"
    );
}

fn headers(set: Vec<(String, crate::types::Secret)>) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in set {
        let parsed = name.parse::<HeaderName>().ok();
        let value = HeaderValue::from_str(value.expose()).ok();
        // Neither is repeated: it may be a secret in the wrong place.
        let Some((name, mut value)) = parsed.zip(value) else {
            anyhow::bail!("telemetry.otlp_headers: a name or value cannot stand in an HTTP header");
        };
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let protobuf = HeaderValue::from_static("application/x-protobuf");
    headers.insert(CONTENT_TYPE, protobuf);
    Ok(headers)
}

#[derive(Debug)]
struct HttpCollector {
    transport: HttpTransport,
    endpoint: Arc<str>,
    headers: HeaderMap,
}

#[async_trait]
impl Collector for HttpCollector {
    async fn post(&self, export: Bytes) -> Result<CollectorReply, String> {
        let call = Call {
            base: Arc::clone(&self.endpoint),
            path: "",
            headers: self.headers.clone(),
            body: Some(export),
        };
        let exchanged = self.transport.exchange(call).await;
        let reply = exchanged.map_err(|error| error_chain(&error))?;
        Ok(CollectorReply {
            status: reply.status,
            body: reply.body,
        })
    }
}

impl App {
    /// What makes the spans of documents; none where tracing is off.
    pub(super) fn spans(&self) -> Spans {
        self.traces.as_ref().map(Traces::spans).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::captured::Lines;
    use crate::telemetry::registry::new_registry;

    #[tokio::test]
    async fn an_address_of_another_protocol_is_told_once_and_not_repeated() {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let bad = variable("OTEL_EXPORTER_OTLP_ENDPOINT", "me:hush@collector:4317");
        let exact = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector");
        let good = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/x");
        for (environment, count) in [
            (vec![bad.clone(), exact], 1),
            (vec![bad.clone()], 1),
            (vec![bad, good.clone()], 0),
            (vec![good], 0),
        ] {
            let settings = Settings::load(None, environment, &[]).unwrap();
            let lines = Lines::default();
            let _capturing = lines.capture();
            let metrics = TraceMetrics::new(&mut new_registry());
            drop(start(&settings, "i-1", metrics).unwrap());
            let said = lines.text();
            let warnings: Vec<_> = said.lines().filter(|line| line.contains("WARN")).collect();
            assert_eq!(warnings.len(), count, "{said}");
            assert!(!said.contains("hush"), "{said}");
            for line in warnings {
                for part in [
                    "OTEL_EXPORTER_OTLP_ENDPOINT",
                    "http://localhost:4318",
                    "no spans are made",
                ] {
                    assert!(line.contains(part), "{line}");
                }
            }
        }
    }
}
