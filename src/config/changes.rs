//! What differs between two configurations, and what of that can change while the process runs.

use serde_json::Value;

use super::Settings;
use crate::llm::Concurrency;

/// The keys that differ.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Those that can change while the process runs.
    pub reloaded: Vec<String>,
    /// Those that only a restart changes.
    pub fixed: Vec<String>,
}

/// Budgets that can get another limit; one that comes or goes cannot.
const BUDGETS: [&str; 3] = [
    "llm.requests_per_minute",
    "llm.tokens_per_minute",
    "llm.tokens_per_day",
];

impl Settings {
    /// What it takes to get from these to `new`.
    #[must_use]
    pub fn changes_to(&self, new: &Self) -> Changes {
        let mut changes = Changes::default();
        let value = |settings: &Self| serde_json::to_value(settings).unwrap_or_default();
        compare("", &value(self), &value(new), &mut |key, before, after| {
            let is_number = !before.is_null() && !after.is_null();
            let can_change = match key {
                "llm.concurrency" => {
                    let fixed =
                        |settings: &Self| matches!(settings.llm.concurrency, Concurrency::Fixed(_));
                    fixed(self) && fixed(new)
                }
                key if BUDGETS.contains(&key) => is_number,
                key => key.starts_with("prompt.") || is_prompt_of_topic(key),
            };
            let keys = if can_change {
                &mut changes.reloaded
            } else {
                &mut changes.fixed
            };
            keys.push(key.to_owned());
        });
        // Their values are not shown, so they are not among what was compared.
        if self.kafka.sasl_password != new.kafka.sasl_password {
            changes.fixed.push("kafka.sasl_password".to_owned());
        }
        let token_secret = |settings: &Self| {
            settings
                .kafka
                .sasl_oauthbearer_client_credentials_client_secret
                .clone()
        };
        if token_secret(self) != token_secret(new) {
            let key = "kafka.sasl_oauthbearer_client_credentials_client_secret";
            changes.fixed.push(key.to_owned());
        }
        if self.llm.api_key != new.llm.api_key {
            changes.fixed.push("llm.api_key".to_owned());
        }
        if self.telemetry.otlp_headers != new.telemetry.otlp_headers {
            changes.fixed.push("telemetry.otlp_headers".to_owned());
        }
        changes.fixed.sort();
        changes.fixed.dedup();
        changes
    }
}

/// `input.topics.N.prompt.…`
fn is_prompt_of_topic(key: &str) -> bool {
    let in_topic = key.strip_prefix("input.topics.");
    let in_topic = in_topic.and_then(|rest| rest.split_once('.'));
    in_topic.is_some_and(|(_, rest)| rest.starts_with("prompt."))
}

/// Tells each leaf that differs. Lists of different lengths are one leaf: what is in them has no name that stays.
fn compare(key: &str, before: &Value, after: &Value, tell: &mut dyn FnMut(&str, &Value, &Value)) {
    let below = |name: &str| {
        if key.is_empty() {
            name.to_owned()
        } else {
            format!("{key}.{name}")
        }
    };
    match (before, after) {
        (Value::Object(one), Value::Object(other)) => {
            let more = other.keys().filter(|name| !one.contains_key(*name));
            for name in one.keys().chain(more) {
                let of = |object: &serde_json::Map<String, Value>| {
                    object.get(name).cloned().unwrap_or_default()
                };
                compare(&below(name), &of(one), &of(other), tell);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                compare(&below(&index.to_string()), one, other, tell);
            }
        }
        _ if before == after => {}
        _ => tell(key, before, after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::InputTopic;
    use crate::types::Secret;

    fn changes(change: impl Fn(&mut Settings)) -> Changes {
        let mut before = Settings::default();
        before.llm.concurrency = Concurrency::Fixed(4);
        before.llm.tokens_per_minute = Some(1_000);
        let mut after = before.clone();
        change(&mut after);
        before.changes_to(&after)
    }

    #[test]
    fn what_can_change_while_it_runs_is_told_from_what_cannot() {
        assert_eq!(changes(|_| {}), Changes::default());
        type Change = fn(&mut Settings);
        let reloaded: [(&str, Change); 4] = [
            ("prompt.user", |s| s.prompt.user = Some("New".to_owned())),
            ("input.topics.0.prompt.system", |s| {
                s.input.topics[0].prompt.system = Some("New".to_owned());
            }),
            ("llm.concurrency", |s| {
                s.llm.concurrency = Concurrency::Fixed(9)
            }),
            ("llm.tokens_per_minute", |s| {
                s.llm.tokens_per_minute = Some(5)
            }),
        ];
        for (key, change) in reloaded {
            let found = changes(change);
            assert_eq!(
                (found.reloaded, found.fixed),
                (vec![key.to_owned()], vec![])
            );
        }
        let fixed: [(&str, Change); 8] = [
            ("kafka.brokers", |s| {
                s.kafka.brokers = "other:9092".to_owned()
            }),
            ("kafka.sasl_password", |s| {
                s.kafka.sasl_password = Some(Secret::new("p"))
            }),
            (
                "kafka.sasl_oauthbearer_client_credentials_client_secret",
                |s| {
                    s.kafka.sasl_oauthbearer_client_credentials_client_secret =
                        Some(Secret::new("p"));
                },
            ),
            ("llm.api_key", |s| s.llm.api_key = Some(Secret::new("k"))),
            ("llm.concurrency", |s| {
                s.llm.concurrency = Concurrency::Adaptive
            }),
            ("llm.tokens_per_minute", |s| s.llm.tokens_per_minute = None),
            ("llm.tokens_per_day", |s| s.llm.tokens_per_day = Some(5)),
            ("input.topics", |s| {
                s.input.topics.push(InputTopic::named("more"))
            }),
        ];
        for (key, change) in fixed {
            let found = changes(change);
            assert_eq!(
                (found.reloaded, found.fixed),
                (vec![], vec![key.to_owned()])
            );
        }
        let found = changes(|s| s.input.topics[0].name = "other".to_owned());
        assert_eq!(found.fixed, ["input.topics.0.name"]);
    }
}
