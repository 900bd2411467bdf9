//! Settings: defaults < TOML file < environment < flags, each value with the layer it came from.
//!
//! The parts own their sections; this composes them. An unknown key is an error with a suggestion, in every layer.

mod changes;
mod effective;
mod error;
mod layers;
pub mod reference;
mod validate;

use std::path::Path;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format as _, Serialized, Toml};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::drift::DriftConfig;
use crate::kafka::{DriverChoice, KafkaConfig, Needs, SecurityProtocol, choose_driver};
use crate::llm::{LlmConfig, LongDocumentsConfig, PromptConfig};
use crate::offsets::Guarantee;
use crate::pipeline::{
    Assignment, AuditConfig, DeadLettersConfig, InputConfig, IsolationLevel, OutputConfig,
    PipelineConfig, ProcessingConfig, StaticShare,
};
use crate::telemetry::{AdminConfig, LogConfig, TelemetryConfig};

pub use changes::Changes;
pub use effective::Effective;
pub use error::ConfigError;
pub use layers::{Origin, Origins, Override};

/// Everything that can be set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// The guarantee.
    pub processing: ProcessingConfig,
    /// What is read.
    pub input: InputConfig,
    /// Where results go.
    pub output: OutputConfig,
    /// Where documents go that are given up.
    pub dead_letters: DeadLettersConfig,
    /// The audit trail.
    pub audit: AuditConfig,
    /// Order and bounds.
    pub pipeline: PipelineConfig,
    /// The model server.
    pub llm: LlmConfig,
    /// What the model is asked.
    pub prompt: PromptConfig,
    /// Documents that are longer than the model's context.
    pub long_documents: LongDocumentsConfig,
    /// Whether answers are still like those before.
    pub drift: DriftConfig,
    /// The admin server.
    pub admin: AdminConfig,
    /// Logs.
    pub log: LogConfig,
    /// Traces.
    pub telemetry: TelemetryConfig,
    /// Where the values came from, for messages about what a setting leads to, such as a file.
    #[serde(skip)]
    pub origins: Origins,
    /// Variables of OpenTelemetry's that would say where spans go, and do not: they hold no address of HTTP.
    #[serde(skip)]
    pub passed_over: Vec<String>,
}

impl Settings {
    /// Puts the layers together and checks them.
    ///
    /// `environment` are the variables of the process, `overrides` what the command line sets.
    ///
    /// # Errors
    /// All problems at once, each with the key, the value and the layer it came from.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[Override],
    ) -> Result<Self, ConfigError> {
        // Read here, as the provider takes a file that is not there for an empty one.
        let text = file.map(std::fs::read_to_string).transpose();
        let text = text.map_err(|error| {
            let file = file.unwrap_or_else(|| Path::new(""));
            ConfigError::new(format!("--config {}: {error}", file.display()))
        })?;
        Self::layered(file.zip(text.as_deref()), environment, overrides)
    }

    /// As [`Settings::load`], of a file that was read.
    pub(crate) fn layered(
        file: Option<(&Path, &str)>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[Override],
    ) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        let mut problems = Vec::new();
        if let Some((file, text)) = file {
            let toml = Toml::string(text);
            layers::check_keys(&toml, &file.display().to_string(), &mut problems)?;
            figment = figment.merge(layers::Named::file(toml, file));
        }
        let variables = layers::Variables::new(environment, &mut problems);
        let flags = layers::Flags::new(overrides, &mut problems);
        let names = (variables.names.clone(), flags.names.clone());
        let passed_over = variables.passed_over.clone();
        figment = figment.merge(variables).merge(flags);
        if !problems.is_empty() {
            return Err(ConfigError::from(problems));
        }
        let mut settings: Self = figment.extract().map_err(ConfigError::from_figment)?;
        settings.origins = Origins::new(&figment, &names.0, &names.1);
        settings.passed_over = passed_over;
        // What says exactly where traces go leaves the other nothing to say.
        if !settings.telemetry.otlp_traces_endpoint.trim().is_empty() {
            let exact = |name: &String| name.contains("TRACES");
            settings.passed_over.retain(exact);
        }
        settings.check()?;
        Ok(settings)
    }

    /// Whether the values are in their ranges and fit each other, for settings that were put together in code.
    ///
    /// # Errors
    /// All problems at once, each with the key, the value and where it came from.
    pub fn check(&self) -> Result<(), ConfigError> {
        let problems = validate::problems(self);
        if problems.is_empty() {
            return Ok(());
        }
        let named = problems.into_iter();
        let named = named.map(|problem| self.origins.named_in(problem));
        Err(ConfigError::from(named.collect::<Vec<_>>()))
    }

    /// The driver that the settings lead to.
    ///
    /// # Errors
    /// When `kafka.driver` names one that lacks what another setting needs.
    pub fn driver(&self) -> Result<DriverChoice, String> {
        let needs = Needs {
            transactions: self.processing.guarantee == Guarantee::ExactlyOnce,
            read_committed: self.input.isolation_level == IsolationLevel::ReadCommitted,
            security: self.kafka.needs_wire(),
            is_authenticated: self.kafka.security_protocol == SecurityProtocol::SaslPlaintext,
        };
        choose_driver(self.kafka.driver, needs).map_err(|setting| {
            format!("kafka.driver = rskafka: it cannot do {setting}; set kafka.driver = \"auto\"")
        })
    }

    /// How long a partition that has work may make no progress before that is told.
    #[must_use]
    pub fn stall_after(&self) -> Duration {
        let by_deadline = self.llm.deadline.saturating_add(self.llm.timeout);
        self.pipeline.stall_after.unwrap_or(by_deadline)
    }

    /// What the input is read at: exactly once implies `read_committed`.
    #[must_use]
    pub fn isolation_level(&self) -> IsolationLevel {
        match self.processing.guarantee {
            Guarantee::ExactlyOnce => IsolationLevel::ReadCommitted,
            Guarantee::AtLeastOnce => self.input.isolation_level,
        }
    }

    /// With `input.assignment = static`, the partitions of this process; `None` with another assignment.
    ///
    /// # Errors
    /// With the key that is wrong.
    pub fn static_share(&self) -> Result<Option<StaticShare>, String> {
        let input = &self.input;
        if input.assignment != Assignment::Static {
            return Ok(None);
        }
        let host = host_name();
        let (partitions, ordinal) = (&input.static_partitions, &input.static_ordinal);
        StaticShare::parse(partitions, ordinal, input.static_count, host.as_deref()).map(Some)
    }

    /// Hash of what decides an answer: model, parameters, schema, prompt and how the input is read. Stands in every result.
    #[must_use]
    pub fn generation(&self) -> String {
        #[derive(Serialize)]
        struct Deciding<'a> {
            model: &'a str,
            max_tokens: u32,
            temperature: f64,
            top_p: Option<f64>,
            seed: Option<i64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            schema_file: Option<&'a Path>,
            prompt: &'a PromptConfig,
            // Left out where no topic has a prompt of its own, so that weights and names alone change no generation.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            topic_prompts: Vec<(&'a str, &'a PromptConfig)>,
            long_documents: &'a LongDocumentsConfig,
            format: crate::records::document::InputFormat,
            content_field: &'a str,
        }
        let topics = self.input.topics.iter();
        let topics = topics.map(|topic| (topic.name.as_str(), &topic.prompt));
        let deciding = Deciding {
            model: &self.llm.model,
            max_tokens: self.llm.max_tokens,
            temperature: self.llm.temperature,
            top_p: self.llm.top_p,
            seed: self.llm.seed,
            schema_file: self.llm.schema_file.as_deref(),
            prompt: &self.prompt,
            topic_prompts: topics.filter(|(_, prompt)| !prompt.is_empty()).collect(),
            long_documents: &self.long_documents,
            format: self.input.format,
            content_field: &self.input.content_field,
        };
        let text = serde_json::to_vec(&deciding).unwrap_or_default();
        Sha256::digest(&text)
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// The host's name as the environment has it: in a container, the pod's.
pub(crate) fn host_name() -> Option<String> {
    std::env::var("HOSTNAME")
        .ok()
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests;
