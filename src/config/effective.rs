//! The settings in force, key by key, each with where its value came from.

use serde::Serialize;
use serde_json::Value;

use super::Settings;
use super::layers::{self, Origin};
use super::reference::KEYS;
use crate::kafka::DriverSetting;

/// One key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effective {
    /// Dotted name.
    pub key: &'static str,
    /// Its value; a secret is stars.
    pub value: Value,
    /// The same as one would write it, or in words.
    #[serde(skip)]
    pub written: String,
    /// What it comes to, where that follows from other settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_force: Option<String>,
    /// Where the value came from.
    pub from: Origin,
}

impl Settings {
    /// Every key, in the order of [`KEYS`]. Secrets write themselves as stars, so none is in it.
    #[must_use]
    pub fn effective(&self) -> Vec<Effective> {
        let values = serde_json::to_value(self).unwrap_or_default();
        let effective = KEYS.iter().map(|key| {
            let value = layers::lookup(&values, key.name).cloned();
            let value = value.unwrap_or_default();
            Effective {
                key: key.name,
                written: key.written(&value),
                value,
                in_force: self.in_force(key.name),
                from: self.origins.of(key.name),
            }
        });
        effective.collect()
    }

    fn in_force(&self, key: &str) -> Option<String> {
        match key {
            "kafka.commit_topic" if self.kafka.commit_topic.is_empty() => {
                Some(self.kafka.commit_topic())
            }
            "kafka.driver" if self.kafka.driver == DriverSetting::Auto => {
                self.driver().ok().map(|choice| choice.driver.to_string())
            }
            "input.isolation_level" if self.input.isolation_level != self.isolation_level() => {
                let level = serde_json::to_value(self.isolation_level()).ok()?;
                level.as_str().map(str::to_owned)
            }
            "processing.commit_interval_ms" if self.processing.commit_interval_ms.is_none() => {
                Some(self.processing.commit_interval().as_millis().to_string())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Override;

    fn of<'a>(all: &'a [Effective], key: &str) -> &'a Effective {
        all.iter().find(|one| one.key == key).unwrap()
    }

    #[test]
    fn each_value_says_where_it_came_from() {
        let folder = tempfile::tempdir().unwrap();
        let file: PathBuf = folder.path().join("klp.toml");
        std::fs::write(
            &file,
            "[llm]\nattempts = 7\nmodel = \"of the file\"\n[[input.topics]]\nname = \"news\"\nweight = 2\n",
        )
        .unwrap();
        let environment = [
            ("MODEL_NAME", "of the variable"),
            ("KLP_LLM__SEED", "9"),
            ("KLP_PIPELINE__ORDER", "key"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let set = |key: &str, value: &str, flag: &str| Override {
            key: key.to_owned(),
            value: value.to_owned(),
            flag: flag.to_owned(),
        };
        let flags = [
            set("pipeline.order", "completion", "--order"),
            set("kafka.create_topics", "false", "--set"),
        ];
        let settings = Settings::load(Some(&file), environment, &flags).unwrap();
        let all = settings.effective();
        assert_eq!(all.len(), KEYS.len());
        let path = file.display().to_string();
        for (key, value, from) in [
            ("llm.attempts", "7", Origin::File(path.clone())),
            ("input.topics", "", Origin::File(path)),
            (
                "llm.model",
                "of the variable",
                Origin::Environment("MODEL_NAME".to_owned()),
            ),
            (
                "llm.seed",
                "9",
                Origin::Environment("KLP_LLM__SEED".to_owned()),
            ),
            (
                "pipeline.order",
                "completion",
                Origin::Flag("--order".to_owned()),
            ),
            (
                "kafka.create_topics",
                "false",
                Origin::Flag("--set".to_owned()),
            ),
            ("llm.deadline", "10m", Origin::Default),
            ("llm.top_p", "none", Origin::Default),
        ] {
            let found = of(&all, key);
            assert!(value.is_empty() || found.written == value, "{found:?}");
            assert_eq!(found.from, from, "{key}");
        }
        // What is more than a name is told whole.
        assert!(of(&all, "input.topics").written.contains("\"weight\":2"));
    }

    #[test]
    fn what_follows_from_other_settings_is_told() {
        let guarantee = Override {
            key: "processing.guarantee".to_owned(),
            value: "exactly_once".to_owned(),
            flag: "--set".to_owned(),
        };
        let all = Settings::load(None, [], &[guarantee]).unwrap().effective();
        for (key, in_force) in [
            ("kafka.driver", "wire"),
            ("kafka.commit_topic", "kafka-llm-processor-commits"),
            ("input.isolation_level", "read_committed"),
            ("processing.commit_interval_ms", "50"),
        ] {
            assert_eq!(of(&all, key).in_force.as_deref(), Some(in_force), "{key}");
        }
        assert_eq!(of(&all, "kafka.group_id").in_force, None);
    }

    #[test]
    fn a_secret_is_stars_whatever_layer_it_came_from() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("klp.toml");
        std::fs::write(&file, "[llm]\napi_key = \"hush-file\"\n").unwrap();
        let variable = ("KLP_KAFKA__SASL_PASSWORD", "hush-variable");
        let environment = [variable].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = Settings::load(Some(&file), environment, &[]).unwrap();
        let all = settings.effective();
        assert_eq!(of(&all, "llm.api_key").written, "***");
        let told = format!("{all:?}{}", serde_json::to_string(&all).unwrap());
        assert!(!told.contains("hush"), "{told}");
    }
}
