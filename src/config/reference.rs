//! Every key that can be set, with its unit and meaning, for `config reference` and the README.
//!
//! The names are those of the settings and the defaults are read off them: a test refuses a key that is missing here, or that no setting has.

use serde::Serialize;
use serde_json::Value;

use super::layers::{self, PREFIX, PROMISED};

/// The lines that the README's table of all keys stands between.
pub const MARKDOWN_BEGIN: &str = "<!-- begin: config reference --markdown -->";
/// See [`MARKDOWN_BEGIN`].
pub const MARKDOWN_END: &str = "<!-- end: config reference -->";

/// The unit of what is shown to nobody.
const SECRET: &str = "secret";

/// A key that can be set.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted name.
    pub name: &'static str,
    /// What its value is a number of, or which words it can be.
    pub unit: &'static str,
    /// What holds where the setting's own default is empty.
    absent: &'static str,
    /// What it decides.
    pub meaning: &'static str,
}

/// A key as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Dotted name.
    pub key: &'static str,
    /// The environment's name for it.
    pub variable: String,
    /// As it would be written, or in words where nothing need be.
    pub default: String,
    /// What its value is a number of, or which words it can be.
    pub unit: &'static str,
    /// What it decides.
    pub meaning: &'static str,
}

const fn key(name: &'static str, unit: &'static str, meaning: &'static str) -> Key {
    Key {
        name,
        unit,
        absent: "none",
        meaning,
    }
}

impl Key {
    const fn absent(self, absent: &'static str) -> Self {
        Self { absent, ..self }
    }

    /// The variable that sets it.
    #[must_use]
    pub fn variable(&self) -> String {
        let promised = PROMISED.iter().find(|(_, key)| *key == self.name);
        promised.map_or_else(
            || format!("{PREFIX}{}", self.name.replace('.', "__").to_uppercase()),
            |(variable, _)| (*variable).to_owned(),
        )
    }

    /// Whether its value must be shown to nobody.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.unit == SECRET
    }

    /// A value of it as it would be written.
    #[must_use]
    pub fn written(&self, value: &Value) -> String {
        match value {
            Value::Null => self.absent.to_owned(),
            Value::String(text) if text.is_empty() => self.absent.to_owned(),
            Value::String(text) => text.clone(),
            // 0.0 is written 0.
            Value::Number(number) => {
                let number = number.to_string();
                number.strip_suffix(".0").unwrap_or(&number).to_owned()
            }
            // Topics with nothing but a name are written as their names.
            Value::Array(topics) => {
                let names: Option<Vec<_>> = topics.iter().map(name_alone).collect();
                names.map_or_else(|| value.to_string(), |names| names.join(","))
            }
            value => value.to_string(),
        }
    }
}

fn name_alone(topic: &Value) -> Option<&str> {
    let prompt = topic.get("prompt").and_then(Value::as_object);
    let is_plain = topic.get("weight") == Some(&Value::from(1))
        && prompt.is_none_or(|prompt| prompt.values().all(Value::is_null));
    topic.get("name").filter(|_| is_plain)?.as_str()
}

/// Every key.
#[must_use]
pub fn entries() -> Vec<Entry> {
    let defaults = layers::defaults();
    let entry = |key: &Key| Entry {
        key: key.name,
        variable: key.variable(),
        default: key.written(layers::lookup(&defaults, key.name).unwrap_or(&Value::Null)),
        unit: key.unit,
        meaning: key.meaning,
    };
    KEYS.iter().map(entry).collect()
}

/// The table of all keys in the README.
#[must_use]
pub fn markdown() -> String {
    let mut table = "| key | default | unit or words | meaning |\n|---|---|---|---|\n".to_owned();
    for (key, entry) in KEYS.iter().zip(entries()) {
        let is_words = entry.default == key.absent;
        let default = if is_words {
            entry.default
        } else {
            format!("`{}`", entry.default)
        };
        let Entry {
            key, unit, meaning, ..
        } = entry;
        table.push_str(&format!("| `{key}` | {default} | {unit} | {meaning} |\n"));
    }
    table
}

const DURATION: &str = "duration";

/// In the order in which they are told, a line each.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("kafka.brokers", "`host:port`, comma separated", "`bootstrap.servers`"),
    key("kafka.group_id", "name", "names the commit topic, and the group whose offsets lag tools show"),
    key("kafka.commit_topic", "topic", "where the commits are").absent("`{group_id}-commits`"),
    key("kafka.create_topics", "`true`, `false`", "whether missing topics are created"),
    key("kafka.replication_factor", "replicas", "of created topics; `-1` takes the broker's default"),
    key("kafka.driver", "`auto`, `rskafka`, `wire`", "the client that reads the input; `wire`, the own one, reads what is packed and writes everything in any case, and `auto` takes it where exactly once, `read_committed`, TLS, SASL or topics of more than 256 partitions ask for it"),
    key("kafka.client_id", "name", "`client.id`, which brokers show in their logs and quotas"),
    key("kafka.security_protocol", "`PLAINTEXT`, `SSL`, `SASL_PLAINTEXT`, `SASL_SSL`", "`security.protocol`: see [security](#security)"),
    key("kafka.sasl_mechanism", "`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`, `OAUTHBEARER`", "`sasl.mechanism`"),
    key("kafka.sasl_username", "text", "SASL user name"),
    key("kafka.sasl_password", SECRET, "SASL password; not from the command line"),
    key("kafka.sasl_password_file", "path", "file with the SASL password, read for each new connection; by the driver `rskafka` once"),
    key("kafka.sasl_oauthbearer_token_file", "path", "with `OAUTHBEARER`: file with a token that somebody else keeps fresh, read for each authentication"),
    key("kafka.sasl_oauthbearer_token_endpoint_url", "URL", "`sasl.oauthbearer.token.endpoint.url`: where tokens are asked for, with the client-credentials grant"),
    key("kafka.sasl_oauthbearer_client_credentials_client_id", "text", "`sasl.oauthbearer.client.credentials.client.id`: who asks for tokens"),
    key("kafka.sasl_oauthbearer_client_credentials_client_secret", SECRET, "`sasl.oauthbearer.client.credentials.client.secret`; not from the command line"),
    key("kafka.sasl_oauthbearer_client_credentials_client_secret_file", "path", "file with that secret, read whenever a token is asked for"),
    key("kafka.sasl_oauthbearer_scope", "text", "`sasl.oauthbearer.scope`: what the token is asked for"),
    key("kafka.sasl_oauthbearer_extensions", "`name=value`, comma separated", "what goes to the broker beside the token, such as `logicalCluster=lkc-1,identityPoolId=pool-1`"),
    key("kafka.ssl_truststore_location", "path", "`ssl.truststore.location`, PEM: the authorities that brokers' certificates may come from, and no others").absent("the system's"),
    key("kafka.ssl_keystore_location", "path", "`ssl.keystore.location`, PEM: the client's certificate with its chain, and its key"),
    key("kafka.ssl_key_location", "path", "`ssl.key.location`, PEM: the key, where it has a file of its own"),
    key("kafka.ssl_endpoint_identification_algorithm", "`https`, `none`", "`ssl.endpoint.identification.algorithm`: whether a broker's certificate has to name its host; with `none` whoever has any certificate of a trusted authority can pose as a broker"),
    key("kafka.request_timeout", DURATION, "`request.timeout.ms`: the longest that a request may take, beyond what it waits on purpose"),
    key("kafka.connect_timeout", DURATION, "`socket.connection.setup.timeout.ms`: the longest that dialling, the TLS handshake and authenticating may take"),
    key("kafka.session_timeout", DURATION, "`session.timeout.ms`: with `input.assignment = group`, how long a member may be silent before its partitions go to others"),
    key("kafka.heartbeat_interval", DURATION, "`heartbeat.interval.ms`: with `group`, how often a member tells that it lives; at most a third of the session timeout"),
    key("kafka.group_instance_id", "name", "`group.instance.id`: with `group`, a static member, unique among the running instances"),
    key("input.topics", "topics, comma separated", "in a file `[[input.topics]]`, each with `name`, `weight` (1 to 1,000) and `prompt`: see below"),
    key("input.format", "`auto`, `json`, `text`", "what values are; `auto` takes one that begins with `{` for JSON"),
    key("input.content_field", "name", "the JSON field that holds the text"),
    key("input.start", "`earliest`, `latest`", "where to begin a partition that has no commit"),
    key("input.isolation_level", "`read_uncommitted`, `read_committed`", "`isolation.level`: whether records of aborted transactions are left out; exactly once implies `read_committed`"),
    key("input.on_data_loss", "`hold`, `resume`", "what to do when unread input is gone"),
    key("input.fetch_wait", DURATION, "`fetch.max.wait.ms`: how long the broker waits for records when there are none"),
    key("input.assignment", "`all`, `static`, `group`", "which input partitions are this instance's"),
    key("input.static_partitions", "such as `0-3,7`", "with `static`: these, of each input topic"),
    key("input.static_ordinal", "number from 0, or `hostname`", "with `static`: every partition whose number modulo `input.static_count` is the ordinal; `hostname` takes the number at the end of the host's name"),
    key("input.static_count", "instances", "with `input.static_ordinal`: how many there are"),
    key("output.topic", "topic", "where results go"),
    key("output.partitioner", "`key`, `source`", "a result's partition: by the key's hash as the Java client does it, or that of the source, which keeps the order of a whole partition"),
    key("dead_letters.topic", "topic", "documents that were given up"),
    key("dead_letters.header_style", "`connect`, `spring`, `share`", "the reason headers beside our own: Kafka Connect's, Spring's (`kafka_dlt-…`, numbers big-endian) or those of share groups (`__dlq.errors.…`)"),
    key("audit.enabled", "`true`, `false`", "whether a record is kept of what became of each document: see [audit trail](#audit-trail)"),
    key("audit.topic", "topic", "where these records are; with as many partitions as the input, and nothing of it is deleted, where it is created here"),
    key("processing.guarantee", "`at_least_once`, `exactly_once`", "see [guarantees](#guarantees-and-their-limits)"),
    key("processing.commit_interval_ms", "milliseconds", "least time between two commits of a partition while documents are on their way; longer after a large commit record").absent("10 at least once, 50 exactly once"),
    key("processing.commit_record_bytes_max", "bytes", "of a commit record at most: read-ahead waits before it could be passed"),
    key("pipeline.order", "`input`, `key`, `completion`", "the order in which results leave"),
    key("pipeline.read_ahead_records", "documents", "most that are fetched and not yet committed"),
    key("pipeline.read_ahead_bytes", "bytes", "the same in bytes"),
    key("pipeline.stall_after", DURATION, "how long a partition that has work may make no progress before that is told").absent("`llm.deadline` and one `llm.timeout`"),
    key("pipeline.worker_threads", "threads", "that do the work; one moves some 10,000 documents a second"),
    key("pipeline.drain_timeout", DURATION, "how long a stop may take"),
    key("llm.url", "URLs, comma separated", "the model server, with or without `/v1`, or several of one model"),
    key("llm.model", "name", "served model name"),
    key("llm.timeout", DURATION, "the longest that one attempt may take; after each timeout of a document it grows by half, up to four times"),
    key("llm.api_key", SECRET, "vLLM's `--api-key`"),
    key("llm.api_key_file", "file", "holds the key, instead of `llm.api_key`; read again while the server refuses it"),
    key("llm.ca_file", "PEM file", "certificates that are trusted beside the system's"),
    key("llm.concurrency", "calls, or `adaptive`", "in flight at each server: a number, or found out, up to the second"),
    key("llm.concurrency_max", "calls", "the most that `adaptive` may come to"),
    key("llm.attempts", "attempts", "what one document, and each part of a long one, may spend before it is given up"),
    key("llm.deadline", DURATION, "the same in time, on calls and the waits between them; it stands still while the work is held or throttled"),
    key("llm.refusals_to_hold", "documents", "of a topic, refused in a row (400 and the like), before its work is held; `0` never"),
    key("llm.max_tokens", "tokens", "of an answer at most, sent with every call"),
    key("llm.temperature", "0 to 2", "sampling temperature, sent with every call"),
    key("llm.top_p", "above 0 to 1", "nucleus sampling; not sent when absent"),
    key("llm.seed", "whole number", "sampling seed; not sent when absent"),
    key("llm.on_truncated", "`accept`, `retry_longer`, `dead_letter`", "what becomes of an answer that was cut at `llm.max_tokens`"),
    key("llm.schema_file", "file, or `builtin:financial`", "a JSON Schema that every answer must keep to"),
    key("llm.response_bytes_max", "bytes", "the largest answer body that is read"),
    key("llm.retry_backoff_initial", DURATION, "ceiling of the first wait between two attempts; it doubles each time, and each wait is drawn evenly from zero to it"),
    key("llm.retry_backoff_max", DURATION, "where that ceiling stops growing"),
    key("llm.retry_after_max", DURATION, "the longest `Retry-After` that is followed"),
    key("llm.requests_per_minute", "calls", "over it documents wait"),
    key("llm.tokens_per_minute", "tokens", "of prompts and answers; over it documents wait"),
    key("llm.tokens_per_day", "tokens", "of prompts and answers, from midnight to midnight in UTC; over it documents wait"),
    key("llm.cache_bytes_max", "bytes", "of answers that are kept for identical documents; `0` keeps none"),
    key("llm.prefix_affinity", "`true`, `false`", "with several servers: prompts of one template prefer one server while it is not the busier one"),
    key("llm.price_per_million_prompt_tokens", "any currency", "what `dry-run` tells the cost of a backlog with"),
    key("llm.price_per_million_completion_tokens", "any currency", "the same for the tokens of answers"),
    key("prompt.user", "template", "the user message; the default asks for a summary of a financial document and its key facts").absent("built in"),
    key("prompt.user_file", "file", "holds that template"),
    key("prompt.system", "template", "the system message; of an input topic `system = \"\"` means none"),
    key("prompt.system_file", "file", "holds that template"),
    key("prompt.map", "template", "with `map_reduce`: asks for notes of a part; `part`, `parts` and `words` are in scope too").absent("built in"),
    key("prompt.reduce", "template", "with `map_reduce`: asks to merge notes, with the same in scope").absent("built in"),
    key("long_documents.policy", "`map_reduce`, `truncate`, `dead_letter`", "what becomes of a document that is longer than the model's context"),
    key("long_documents.truncate_keep", "`head`, `tail`, `ends`", "what `truncate` keeps; with `ends` the middle is left out"),
    key("long_documents.map_tokens", "tokens", "with `map_reduce`: of the notes of one part at most").absent("an eighth of the context"),
    key("long_documents.calls_max", "calls", "with `map_reduce`: of one document at most"),
    key("long_documents.context_tokens", "tokens", "the model's context, prompt and answer together").absent("what the server tells"),
    key("drift.enabled", "`true`, `false`", "whether it is watched that answers stay like those before: see [drift](docs/drift.md)"),
    key("drift.reference_documents", "documents", "of a generation that are the reference for what follows; 10 to 200 windows"),
    key("drift.window_documents", "documents", "that are compared with the reference at a time; 20 to 10,000"),
    key("drift.sensitivity", "false alarms", "that may be expected in 100,000 documents; the fewer, the more windows in a row an alarm takes"),
    key("admin.listen", "`address:port`, or `off`", "`/` (the status page), `/events`, `/metrics`, `/status`, `/readyz`, `/livez`, `POST /pause`, `/resume`; port 0 takes a free one"),
    key("admin.token_file", "file", "holds the token that `/pause` and `/resume` ask for, read at the start; without one they are taken on a loopback address only"),
    key("admin.allowed_hosts", "names, comma separated", "under which it answers, beside IP addresses and `localhost`: see [the admin port](#the-admin-port); `.example.org` for all below it, `*` for any").absent("none"),
    key("admin.show_payloads", "`true`, `false`", "whether the status page shows the beginnings of answers to whoever can open it"),
    key("log.level", "`error`, `warn`, `info`, `debug`, `trace`", "or a list such as `info,kafka_llm_processor::kafka=debug`"),
    key("log.format", "`human`, `json`", "of the log's lines"),
    key("log.file", "path, `auto`, `off`", "`auto` writes `logs/kafka-llm-processor.log` where it can, not in containers"),
    key("log.max_files", "files", "daily ones that are kept"),
    key("telemetry.otlp_endpoint", "URL", "of a collector that takes OTLP over HTTP, such as `http://localhost:4318`: spans go to `/v1/traces` below it; `OTEL_EXPORTER_OTLP_ENDPOINT` sets it too").absent("no traces"),
    key("telemetry.otlp_traces_endpoint", "URL", "where spans go exactly, instead; `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` sets it too"),
    key("telemetry.otlp_headers", SECRET, "of each export: `name=value`, comma separated, values percent-encoded; `OTEL_EXPORTER_OTLP_HEADERS` sets it too"),
    key("telemetry.otlp_headers_file", "file", "holds them, instead of `telemetry.otlp_headers`; read at the start"),
    key("telemetry.sample_ratio", "0 to 1", "the share of documents that are traced; one whose record has a `traceparent` is traced when that says so"),
    key("telemetry.service_name", "name", "`service.name` of the spans; `OTEL_SERVICE_NAME` sets it too").absent("`kafka-llm-processor`"),
    key("telemetry.resource_attributes", "`name=value`, comma separated", "more about the service, values percent-encoded; `OTEL_RESOURCE_ATTRIBUTES` sets it too"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::layers::{defaults, leaves};

    #[test]
    fn every_key_is_told_once_and_no_other() {
        let names: Vec<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        let told: BTreeSet<_> = names.iter().cloned().collect();
        assert_eq!(told.len(), names.len(), "a key is told twice");
        let all: BTreeSet<_> = leaves(&defaults(), "").into_iter().collect();
        let missing: Vec<_> = all.difference(&told).collect();
        let superfluous: Vec<_> = told.difference(&all).collect();
        assert!(
            missing.is_empty() && superfluous.is_empty(),
            "config/reference.rs lacks {missing:?}, and no setting has {superfluous:?}"
        );
    }

    #[test]
    fn each_has_a_unit_and_a_meaning_that_fit_a_table() {
        for key in KEYS {
            for text in [key.unit, key.meaning, key.absent] {
                assert!(!text.is_empty() && !text.contains(['|', '\n']), "{key:?}");
            }
        }
    }

    #[test]
    fn sections_stand_together() {
        let section = |key: &Key| key.name.split('.').next().unwrap();
        let mut sections: Vec<_> = KEYS.iter().map(section).collect();
        sections.dedup();
        let distinct: BTreeSet<_> = sections.iter().collect();
        assert_eq!(distinct.len(), sections.len(), "{sections:?}");
    }

    #[test]
    fn defaults_are_those_of_the_settings() {
        let default = |name: &str| {
            let entries = entries();
            let entry = entries.iter().find(|entry| entry.key == name).unwrap();
            (entry.variable.clone(), entry.default.clone())
        };
        let expected = |variable: &str, default: &str| (variable.to_owned(), default.to_owned());
        assert_eq!(default("llm.timeout"), expected("LLM_TIMEOUT", "30s"));
        assert_eq!(
            default("input.topics"),
            expected("INPUT_TOPIC", "financial-documents")
        );
        assert_eq!(
            default("llm.temperature"),
            expected("KLP_LLM__TEMPERATURE", "0")
        );
        assert_eq!(
            default("kafka.commit_topic"),
            expected("KLP_KAFKA__COMMIT_TOPIC", "`{group_id}-commits`")
        );
    }
}
