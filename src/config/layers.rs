//! The layers above the defaults, and what they have in common: keys are checked against the defaults' tree.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;

use super::reference::KEYS;
use super::{ConfigError, Settings};

/// Variables of the product's promise, and the keys that they set.
pub(super) const PROMISED: [(&str, &str); 6] = [
    ("KAFKA_BROKERS", "kafka.brokers"),
    ("INPUT_TOPIC", "input.topics"),
    ("OUTPUT_TOPIC", "output.topic"),
    ("LLM_URL", "llm.url"),
    ("MODEL_NAME", "llm.model"),
    ("LLM_TIMEOUT", "llm.timeout"),
];
/// OpenTelemetry's own variables, which yield to ours; of two for one key the later one holds.
const OPEN_TELEMETRY: [(&str, &str); 6] = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.otlp_endpoint"),
    (
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "telemetry.otlp_traces_endpoint",
    ),
    ("OTEL_EXPORTER_OTLP_HEADERS", "telemetry.otlp_headers"),
    (
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "telemetry.otlp_headers",
    ),
    ("OTEL_SERVICE_NAME", "telemetry.service_name"),
    ("OTEL_RESOURCE_ATTRIBUTES", "telemetry.resource_attributes"),
];
/// All other keys: `KLP_PIPELINE__ORDER` sets `pipeline.order`.
pub(super) const PREFIX: &str = "KLP_";

/// Keys without a default whose values are text even when they look like numbers.
pub(super) const OPTIONAL_TEXT: [&str; 22] = [
    "admin.token_file",
    "kafka.sasl_oauthbearer_client_credentials_client_secret",
    "kafka.sasl_oauthbearer_client_credentials_client_secret_file",
    "kafka.sasl_oauthbearer_token_file",
    "kafka.sasl_password",
    "kafka.sasl_password_file",
    "kafka.ssl_key_location",
    "kafka.ssl_keystore_location",
    "kafka.ssl_truststore_location",
    "llm.api_key",
    "llm.api_key_file",
    "llm.ca_file",
    "llm.schema_file",
    "pipeline.stall_after",
    "prompt.system",
    "prompt.user",
    "prompt.user_file",
    "prompt.system_file",
    "prompt.map",
    "prompt.reduce",
    "telemetry.otlp_headers",
    "telemetry.otlp_headers_file",
];

/// Whether a key's value is in no message, and not taken from the command line, which everybody on the machine can read.
pub(super) fn is_secret(key: &str) -> bool {
    KEYS.iter().any(|of| of.name == key && of.is_secret())
}

/// A setting from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Dotted key, such as `pipeline.order`.
    pub key: String,
    /// The value as it was written.
    pub value: String,
    /// The flag that set it, for messages.
    pub flag: String,
}

/// Where a value came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "layer", content = "name")]
pub enum Origin {
    /// Nothing set it.
    #[default]
    Default,
    /// This file.
    File(String),
    /// This variable.
    Environment(String),
    /// This flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// What set each key; keys that are at their defaults are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// `variables` and `flags` are the names of what set a key there.
    pub(super) fn new(figment: &Figment, variables: &Names, flags: &Names) -> Self {
        let keys = leaves(&defaults(), "").into_iter();
        let set = keys.filter_map(|key| {
            let metadata = figment.find_metadata(&key)?;
            // The defaults' own layer has the name of their type.
            if metadata.name.contains("Settings") {
                return None;
            }
            let origin = if let Some(flag) = flags.get(&key) {
                Origin::Flag(flag.clone())
            } else if let Some(variable) = variables.get(&key) {
                Origin::Environment(variable.clone())
            } else {
                let name = metadata.name.as_ref();
                Origin::File(name.strip_prefix(FILE).unwrap_or(name).to_owned())
            };
            Some((key, origin))
        });
        Self(set.collect())
    }

    /// Where a key's value came from.
    #[must_use]
    pub fn of(&self, key: &str) -> Origin {
        self.0.get(key).cloned().unwrap_or_default()
    }

    /// Adds to a problem the layer that set the key which it begins with; one that begins with no such key stays as it is.
    #[must_use]
    pub fn named_in(&self, problem: String) -> String {
        let key = problem.split([' ', ':', ',']).next().unwrap_or_default();
        match self.of(key) {
            Origin::Default => problem,
            Origin::File(path) => format!("{problem} (from {FILE}{path})"),
            Origin::Environment(_) => format!("{problem} (from the environment)"),
            Origin::Flag(_) => format!("{problem} (from the command line)"),
        }
    }
}

/// By key, the name of the variable or flag that set it.
pub(super) type Names = BTreeMap<String, String>;

/// What the name of a file's layer begins with.
const FILE: &str = "file ";

/// A provider under another name, for messages.
pub(super) struct Named<P> {
    inner: P,
    name: String,
}

impl<P> Named<P> {
    pub(super) fn file(inner: P, path: &Path) -> Self {
        Self {
            inner,
            name: format!("{FILE}{}", path.display()),
        }
    }
}

impl<P: Provider> Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }
    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        self.inner.data()
    }
}

/// What the environment sets.
pub(super) struct Variables {
    dict: Dict,
    pub(super) names: Names,
    /// Those of OpenTelemetry's with the address of another protocol.
    pub(super) passed_over: Vec<String>,
}

impl Variables {
    pub(super) fn new(
        environment: impl IntoIterator<Item = (String, String)>,
        problems: &mut Vec<String>,
    ) -> Self {
        let defaults = defaults();
        let (mut dict, mut names) = (Dict::new(), Names::new());
        let mut passed_over = Vec::new();
        let mut variables: Vec<_> = environment.into_iter().collect();
        // Those of others come first, so that ours hold.
        variables.sort_by_cached_key(|(name, _)| (standard(name).is_none(), name.clone()));
        let ours: Vec<String> = variables
            .iter()
            .filter_map(|(name, _)| name.strip_prefix(PREFIX))
            .map(|path| path.to_lowercase().replace("__", "."))
            .collect();
        for (name, value) in variables {
            if let Some(key) = standard(&name) {
                if yields(key, &ours) {
                    continue;
                }
                if is_foreign(key, &value) {
                    passed_over.push(name);
                    continue;
                }
            }
            let promised = PROMISED.iter().find(|(variable, _)| *variable == name);
            let named = promised.map(|(_, key)| *key).or_else(|| standard(&name));
            let key = match (named, name.strip_prefix(PREFIX)) {
                (Some(key), _) => key.to_owned(),
                (None, Some(path)) => path.to_lowercase().replace("__", "."),
                (None, None) => continue,
            };
            match lookup(&defaults, &key) {
                Some(default) => {
                    insert(&mut dict, &key, typed(&key, default, &value));
                    names.insert(key, name);
                }
                None => problems.push(unknown(&key, &format!("environment variable {name}"))),
            }
        }
        Self {
            dict,
            names,
            passed_over,
        }
    }
}

impl Provider for Variables {
    fn metadata(&self) -> Metadata {
        Metadata::named("the environment")
    }
    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// The key that a variable of OpenTelemetry's sets.
fn standard(name: &str) -> Option<&'static str> {
    let found = OPEN_TELEMETRY
        .iter()
        .find(|(variable, _)| *variable == name);
    found.map(|(_, key)| *key)
}

/// Whether a variable of ours sets by another name what one of OpenTelemetry's does.
fn yields(key: &str, ours: &[String]) -> bool {
    let is_set = |names: &[&str]| ours.iter().any(|set| names.contains(&set.as_str()));
    match key {
        "telemetry.otlp_endpoint" | "telemetry.otlp_traces_endpoint" => {
            is_set(&["telemetry.otlp_endpoint", "telemetry.otlp_traces_endpoint"])
        }
        "telemetry.otlp_headers" => {
            is_set(&["telemetry.otlp_headers", "telemetry.otlp_headers_file"])
        }
        _ => false,
    }
}

/// Whether it is the address of another protocol, as `collector:4317` is, which others on the machine may need: no reason to end the start.
fn is_foreign(key: &str, value: &str) -> bool {
    let is_address = matches!(
        key,
        "telemetry.otlp_endpoint" | "telemetry.otlp_traces_endpoint"
    );
    let value = value.trim();
    let is_http = ["http://", "https://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    is_address && !value.is_empty() && !is_http
}

/// What the command line sets.
pub(super) struct Flags {
    dict: Dict,
    pub(super) names: Names,
}

impl Flags {
    pub(super) fn new(overrides: &[Override], problems: &mut Vec<String>) -> Self {
        let defaults = defaults();
        let (mut dict, mut names) = (Dict::new(), Names::new());
        for Override { key, value, flag } in overrides {
            if is_secret(key) {
                problems.push(secret_in_the_open(key, flag));
                continue;
            }
            match lookup(&defaults, key) {
                // It could hold a secret.
                Some(serde_json::Value::Object(_)) => problems.push(format!(
                    "{key}: is a section: set a key of it, such as pipeline.order ({flag})"
                )),
                Some(default) => {
                    insert(&mut dict, key, typed(key, default, value));
                    names.insert(key.clone(), flag.clone());
                }
                None => problems.push(unknown(key, flag)),
            }
        }
        Self { dict, names }
    }
}

impl Provider for Flags {
    fn metadata(&self) -> Metadata {
        Metadata::named("the command line")
    }
    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// Notes every key of a layer that no setting has.
pub(super) fn check_keys(
    layer: &impl Provider,
    name: &str,
    problems: &mut Vec<String>,
) -> Result<(), ConfigError> {
    let data = layer.data().map_err(|error| {
        // The parser's own words name line and column, and show the line, which may hold a secret.
        let words = error.kind.to_string();
        let told = words.lines().filter(|line| !shows_the_file(line));
        let told: Vec<_> = told.collect();
        ConfigError::new(format!("file {name}: {}", told.join(": ")))
    })?;
    let defaults = defaults();
    for dict in data.values() {
        check_dict(dict, "", &defaults, name, problems);
    }
    Ok(())
}

/// `3 | key = "value`, and what points into it.
fn shows_the_file(line: &str) -> bool {
    let rest = line
        .trim_start()
        .trim_start_matches(|c: char| c.is_ascii_digit());
    rest.trim_start().starts_with('|')
}

fn check_dict(
    dict: &Dict,
    prefix: &str,
    defaults: &serde_json::Value,
    name: &str,
    problems: &mut Vec<String>,
) {
    for (key, value) in dict {
        let path = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        match (lookup(defaults, &path), value) {
            (None, _) => problems.push(unknown(&path, &format!("file {name}"))),
            (Some(serde_json::Value::Object(_)), Value::Dict(_, inner)) => {
                check_dict(inner, &path, defaults, name, problems);
            }
            _ => {}
        }
    }
}

pub(super) fn defaults() -> serde_json::Value {
    serde_json::to_value(Settings::default()).unwrap_or_default()
}

pub(super) fn lookup<'a>(
    defaults: &'a serde_json::Value,
    key: &str,
) -> Option<&'a serde_json::Value> {
    key.split('.')
        .try_fold(defaults, |value, part| value.get(part))
}

/// The value of a variable or flag, in the type that the setting has: what is text stays text, whatever it looks like.
fn typed(key: &str, default: &serde_json::Value, value: &str) -> Value {
    let is_text = default.is_string() || OPTIONAL_TEXT.contains(&key);
    match default {
        _ if is_text => Value::from(value),
        // INPUT_TOPIC: a list of names, comma separated.
        serde_json::Value::Array(_) if key == "input.topics" => {
            let topics = value
                .split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty());
            let tables = topics
                .map(|name| Value::from(Dict::from([("name".to_owned(), Value::from(name))])));
            Value::from(tables.collect::<Vec<_>>())
        }
        // Parsing text as a value cannot fail: what is nothing else is a string.
        _ => value
            .parse()
            .unwrap_or_else(|_infallible| Value::from(value)),
    }
}

fn secret_in_the_open(key: &str, flag: &str) -> String {
    let variable = key.to_uppercase().replace('.', "__");
    format!(
        "{key}: {flag} shows it to everybody on this machine; set {PREFIX}{variable} or {key}_file"
    )
}

fn insert(dict: &mut Dict, key: &str, value: Value) {
    let Some((first, rest)) = key.split_once('.') else {
        dict.insert(key.to_owned(), value);
        return;
    };
    let inner = dict
        .entry(first.to_owned())
        .or_insert_with(|| Value::from(Dict::new()));
    if let Value::Dict(_, inner) = inner {
        insert(inner, rest, value);
    }
}

fn unknown(key: &str, place: &str) -> String {
    let defaults = defaults();
    let mut candidates = leaves(&defaults, "");
    // A misspelt section is as likely as a misspelt key.
    candidates.extend(
        defaults
            .as_object()
            .into_iter()
            .flatten()
            .map(|(section, _)| section.clone()),
    );
    let best = candidates
        .iter()
        .map(|candidate| {
            (
                strsim::normalized_damerau_levenshtein(key, candidate),
                candidate,
            )
        })
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .filter(|(similarity, _)| *similarity > 0.5);
    match best {
        Some((_, candidate)) => {
            format!("{key}: unknown key in {place}; did you mean `{candidate}`?")
        }
        None => format!("{key}: unknown key in {place}"),
    }
}

/// Every key that can be set.
pub(super) fn leaves(value: &serde_json::Value, prefix: &str) -> Vec<String> {
    let serde_json::Value::Object(object) = value else {
        return vec![prefix.to_owned()];
    };
    object
        .iter()
        .flat_map(|(key, value)| {
            let path = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            leaves(value, &path)
        })
        .collect()
}
