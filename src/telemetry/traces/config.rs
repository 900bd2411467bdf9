//! Section `[telemetry]`: where spans go, and whose they are. Empty, none is made.

use std::path::{Path, PathBuf};

use opentelemetry::KeyValue;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use crate::types::Secret;

/// What OTLP/HTTP appends to an endpoint that is for all signals.
const TRACES_PATH: &str = "/v1/traces";
/// A file of headers is a few lines; more is the wrong file.
const HEADERS_BYTES_MAX: usize = 16 * 1024;
const SERVICE_NAME: &str = "kafka-llm-processor";

/// Section `[telemetry]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Base URL of a collector that takes OTLP/HTTP, such as `http://localhost:4318`; `/v1/traces` is appended. Empty (default): no traces.
    pub otlp_endpoint: String,
    /// Where traces go exactly, instead. Empty (default): below the base URL.
    pub otlp_traces_endpoint: String,
    /// Headers of each export: `name=value`, comma separated, values percent-encoded.
    pub otlp_headers: Option<Secret>,
    /// Holds them, instead.
    pub otlp_headers_file: Option<PathBuf>,
    /// The share of traces that are sampled, from 0 to 1 (default), where the input record does not say.
    pub sample_ratio: f64,
    /// Names the service. Empty (default): what `resource_attributes` say, else `kafka-llm-processor`.
    pub service_name: String,
    /// More about the service: `name=value`, comma separated, values percent-encoded.
    pub resource_attributes: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: String::new(),
            otlp_traces_endpoint: String::new(),
            otlp_headers: None,
            otlp_headers_file: None,
            sample_ratio: 1.0,
            service_name: String::new(),
            resource_attributes: String::new(),
        }
    }
}

impl TelemetryConfig {
    /// Where spans are sent; `None` when none are made.
    #[must_use]
    pub fn endpoint(&self) -> Option<String> {
        let (base, exact) = (self.otlp_endpoint.trim(), self.otlp_traces_endpoint.trim());
        if !exact.is_empty() {
            return Some(exact.to_owned());
        }
        (!base.is_empty()).then(|| format!("{}{TRACES_PATH}", base.trim_end_matches('/')))
    }

    /// What is wrong, one sentence each, without a secret.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, url) in [
            ("telemetry.otlp_endpoint", &self.otlp_endpoint),
            ("telemetry.otlp_traces_endpoint", &self.otlp_traces_endpoint),
        ] {
            // It is not repeated: it may hold what belongs into the headers.
            if !url.trim().is_empty() && !is_usable(url.trim()) {
                problems.push(format!(
                    "{key}: must be an http:// or https:// URL such as http://localhost:4318, without user name, password or query (telemetry.otlp_headers)"
                ));
            }
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            problems.push(format!(
                "telemetry.sample_ratio = {}: must lie between 0 and 1",
                self.sample_ratio
            ));
        }
        if pairs(&self.resource_attributes).is_none() {
            problems.push(
                "telemetry.resource_attributes: must be name=value, comma separated".to_owned(),
            );
        }
        let headers = self.otlp_headers.as_ref().map(Secret::expose);
        if headers.is_some_and(|headers| pairs(headers).is_none()) {
            problems.push("telemetry.otlp_headers: must be name=value, comma separated".to_owned());
        }
        if headers.is_some() && self.otlp_headers_file.is_some() {
            problems.push(
                "telemetry.otlp_headers and telemetry.otlp_headers_file are both set: remove one"
                    .to_owned(),
            );
        }
        problems
    }

    /// The headers of each export.
    ///
    /// # Errors
    /// When the file cannot be read, or what is written there are no headers; never with what is written.
    pub fn headers(&self) -> Result<Vec<(String, Secret)>, String> {
        let file = self.otlp_headers_file.as_deref();
        let text = match (file, &self.otlp_headers) {
            (Some(file), _) => read(file)?,
            (None, Some(headers)) => headers.expose().to_owned(),
            (None, None) => return Ok(Vec::new()),
        };
        let pairs = pairs(&text).ok_or_else(|| match file {
            Some(file) => format!(
                "telemetry.otlp_headers_file = `{}`: must hold name=value, comma separated",
                file.display()
            ),
            None => "telemetry.otlp_headers: must be name=value, comma separated".to_owned(),
        })?;
        let pairs = pairs.into_iter();
        Ok(pairs
            .map(|(name, value)| (name, Secret::new(value)))
            .collect())
    }

    /// Who we are; `instance` tells this run of the process from others.
    #[must_use]
    pub fn resource(&self, instance: &str) -> Vec<KeyValue> {
        let mut attributes = pairs(&self.resource_attributes).unwrap_or_default();
        let mut set = |name: &str, value: &str, overrides: bool| {
            let known = attributes.iter_mut().find(|(known, _)| known == name);
            match known {
                Some((_, known)) if overrides => value.clone_into(known),
                Some(_) => {}
                None => attributes.push((name.to_owned(), value.to_owned())),
            }
        };
        match self.service_name.trim() {
            "" => set("service.name", SERVICE_NAME, false),
            name => set("service.name", name, true),
        }
        set("service.version", env!("CARGO_PKG_VERSION"), false);
        set("service.instance.id", instance, false);
        let attributes = attributes.into_iter();
        attributes
            .map(|(name, value)| KeyValue::new(name, value))
            .collect()
    }
}

fn is_usable(url: &str) -> bool {
    reqwest::Url::parse(url).is_ok_and(|url| {
        // A query may hold a key, and the address is logged.
        let is_bare =
            url.username().is_empty() && url.password().is_none() && url.query().is_none();
        matches!(url.scheme(), "http" | "https") && url.has_host() && is_bare
    })
}

fn read(file: &Path) -> Result<String, String> {
    let named = |problem: &str| {
        let file = file.display();
        format!("telemetry.otlp_headers_file = `{file}` {problem}")
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| named(&format!("cannot be read: {error}")))?;
    if text.len() > HEADERS_BYTES_MAX {
        return Err(named("is too long for headers"));
    }
    // A header on each line is as clear.
    Ok(text.trim().replace('\n', ","))
}

/// `name=value`, comma separated, values percent-encoded, as OpenTelemetry's variables have it; `None` for what is not that.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pairs = text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let name = name.trim();
        (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_below_the_base_or_exactly_what_is_named() {
        let endpoint = |base: &str, exact: &str| {
            let config = TelemetryConfig {
                otlp_endpoint: base.to_owned(),
                otlp_traces_endpoint: exact.to_owned(),
                ..TelemetryConfig::default()
            };
            assert_eq!(config.validate(), Vec::<String>::new());
            config.endpoint()
        };
        assert_eq!(endpoint("", ""), None);
        let below = Some("http://c:4318/v1/traces".to_owned());
        assert_eq!(endpoint("http://c:4318", ""), below);
        assert_eq!(endpoint("http://c:4318/", ""), below);
        assert_eq!(
            endpoint("https://c/otlp", "").as_deref(),
            Some("https://c/otlp/v1/traces")
        );
        assert_eq!(
            endpoint("http://c:4318", "http://t/x").as_deref(),
            Some("http://t/x")
        );
    }

    #[test]
    fn headers_are_decoded_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("headers");
        std::fs::write(&file, "authorization=Bearer%20hush\nx-tenant = a\n").unwrap();
        let config = TelemetryConfig {
            otlp_headers_file: Some(file.clone()),
            ..TelemetryConfig::default()
        };
        let headers = config.headers().unwrap();
        let plain: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose()))
            .collect();
        assert_eq!(plain, [("authorization", "Bearer hush"), ("x-tenant", "a")]);
        assert!(!format!("{headers:?}").contains("hush"));
        std::fs::write(&file, "hush").unwrap();
        let error = config.headers().unwrap_err();
        assert!(
            error.contains("telemetry.otlp_headers_file") && !error.contains("hush"),
            "{error}"
        );
        std::fs::remove_file(&file).unwrap();
        assert!(config.headers().unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn what_cannot_be_used_is_told_by_key_and_without_secrets() {
        let config = TelemetryConfig {
            otlp_endpoint: "collector:4317".to_owned(),
            otlp_traces_endpoint: "http://me:hush@c".to_owned(),
            otlp_headers: Some(Secret::new("hush")),
            otlp_headers_file: Some("f".into()),
            sample_ratio: f64::NAN,
            resource_attributes: "x".to_owned(),
            ..TelemetryConfig::default()
        };
        let problems = config.validate().join("\n");
        for key in [
            "otlp_endpoint",
            "otlp_traces_endpoint",
            "otlp_headers:",
            "otlp_headers_file",
            "sample_ratio",
            "resource_attributes",
        ] {
            assert!(problems.contains(&format!("telemetry.{key}")), "{problems}");
        }
        assert!(!problems.contains("hush"), "{problems}");
    }

    #[test]
    fn the_service_is_named_by_the_setting_that_says_most() {
        let name = |service: &str, attributes: &str| {
            let config = TelemetryConfig {
                service_name: service.to_owned(),
                resource_attributes: attributes.to_owned(),
                ..TelemetryConfig::default()
            };
            let resource = config.resource("i-1");
            let named = |key: &str| {
                let mut found = resource.iter().filter(|pair| pair.key.as_str() == key);
                let value = found.next().map(|pair| pair.value.to_string());
                assert!(found.next().is_none(), "{key} twice");
                value.unwrap()
            };
            assert_eq!(named("service.instance.id"), "i-1");
            named("service.name")
        };
        assert_eq!(name("", ""), "kafka-llm-processor");
        assert_eq!(name("", "service.name=a%20b,x=y"), "a b");
        assert_eq!(name("mine", "service.name=theirs"), "mine");
    }
}
