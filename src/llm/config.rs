//! How to reach the model, what to ask it for, and with which words.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::types::Secret;

/// How it is written that the server decides.
const ADAPTIVE: &str = "adaptive";
/// Where adaptive concurrency begins: little enough for a laptop to bear, and two seconds from a thousand.
const CONCURRENCY_INITIAL: usize = 64;
/// The most calls that may be allowed to run at once: beyond it the connections alone would be the bottleneck.
const CONCURRENCY_MAX: usize = 10_000;
/// The most servers that may be named: each has connections, a probe and metrics of its own.
pub(super) const ENDPOINTS_MAX: usize = 64;
/// The most attempts that a document may be given.
const ATTEMPTS_MAX: u32 = 1_000;
/// The longest that a timeout, wait or deadline may be set to.
const DURATION_MAX: Duration = Duration::from_hours(24 * 7);

/// What becomes of an answer that the server cut at `max_tokens` (`finish_reason` `length`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum OnTruncated {
    /// It is a result, marked by its finish reason.
    #[default]
    Accept,
    /// The document is asked again with twice `max_tokens`, then four times; what is still cut is accepted. Each try costs an attempt.
    RetryLonger,
    /// The document goes to the dead letters.
    DeadLetter,
}

/// How many calls may run at once, at each server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Concurrency {
    /// As many as the server shows that it can use, up to `llm.concurrency_max`.
    #[default]
    Adaptive,
    /// So many.
    Fixed(usize),
}

impl Serialize for Concurrency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Adaptive => serializer.serialize_str(ADAPTIVE),
            Self::Fixed(calls) => serializer.collect_str(calls),
        }
    }
}

impl<'de> Deserialize<'de> for Concurrency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(usize),
            Text(String),
        }
        match Written::deserialize(deserializer)
            .map_err(|_other| de::Error::custom("must be a number or `adaptive`"))?
        {
            Written::Number(calls) => Ok(Self::Fixed(calls)),
            Written::Text(text) if text.trim() == ADAPTIVE => Ok(Self::Adaptive),
            Written::Text(text) => text.trim().parse().map(Self::Fixed).map_err(|_other| {
                de::Error::custom(format!("`{text}` must be a number or `adaptive`"))
            }),
        }
    }
}

impl fmt::Display for Concurrency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adaptive => f.write_str(ADAPTIVE),
            Self::Fixed(calls) => calls.fmt(f),
        }
    }
}

/// Section `[llm]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlmConfig {
    /// Base URL of the server, with or without `/v1`, or of several, separated by commas, which serve the same model. Also `LLM_URL`.
    /// Default `http://localhost:8000`.
    pub url: String,
    /// Served model name. Also `MODEL_NAME`. Default `mistralai/Mistral-7B-Instruct-v0.2`.
    pub model: String,
    /// The longest that one attempt may take; after each timeout of a document it grows by half, up to four times. Also `LLM_TIMEOUT`.
    /// Default 30 s.
    #[serde(with = "crate::types::duration")]
    pub timeout: Duration,
    /// vLLM's `--api-key`, sent as `Authorization: Bearer`. Default none.
    pub api_key: Option<Secret>,
    /// A file with the key, instead of `api_key`; read again while the server refuses the key. Default none.
    pub api_key_file: Option<PathBuf>,
    /// PEM certificates that are trusted beside the system's. Default none.
    pub ca_file: Option<PathBuf>,
    /// Calls that may run at once, at each server: a number, or `adaptive`, which finds out. Default `adaptive`.
    pub concurrency: Concurrency,
    /// The most that `adaptive` may come to. Default 1024.
    pub concurrency_max: usize,
    /// Attempts that one document may spend, and each part of a long one. Default 5.
    pub attempts: u32,
    /// Different documents in a row whose request is refused (status 400 and the like) before the work is held and one at a time is tried: then
    /// it is our request that is wrong. 0 never holds for that. Default 5.
    pub refusals_to_hold: usize,
    /// With several servers: whether prompts of the same templates go to the same one while it is not the busier one, so that they find
    /// their beginning in its prefix cache. Default false.
    pub prefix_affinity: bool,
    /// Time that one document, and each part of a long one, may spend on calls and on waits between them; it stands still while the work is held or throttled.
    /// Default 10 min.
    #[serde(with = "crate::types::duration")]
    pub deadline: Duration,
    /// The most tokens of an answer. Default 1024.
    pub max_tokens: u32,
    /// Sampling temperature, 0 to 2; always sent, as the model's own default may differ. Default 0.
    pub temperature: f64,
    /// Nucleus sampling, above 0 to 1; not sent when absent. Default none.
    pub top_p: Option<f64>,
    /// Sampling seed; not sent when absent. Default none.
    pub seed: Option<i64>,
    /// What becomes of an answer that was cut at `max_tokens`. Default `accept`.
    pub on_truncated: OnTruncated,
    /// A file with a JSON Schema: answers are asked for and checked by it. `builtin:financial` is the schema that ships with the program.
    /// Default none.
    pub schema_file: Option<PathBuf>,
    /// The largest answer body that is read, in bytes. Default 16 MiB.
    pub response_bytes_max: usize,
    /// Ceiling of the first wait between two attempts; it doubles each time, and each wait is drawn evenly from zero to it.
    /// Default 250 ms.
    #[serde(with = "crate::types::duration")]
    pub retry_backoff_initial: Duration,
    /// Where that ceiling stops growing. Default 10 s.
    #[serde(with = "crate::types::duration")]
    pub retry_backoff_max: Duration,
    /// The longest `Retry-After` that is followed; a longer one is cut to this. Default 60 s.
    #[serde(with = "crate::types::duration")]
    pub retry_after_max: Duration,
    /// Calls that may be made in a minute; beyond it documents wait. In any 60 s at most a sixth more, as up to 10 s' worth may leave at
    /// once, and never less than one request more. Default none: no bound.
    pub requests_per_minute: Option<u64>,
    /// Tokens, of prompts and answers, that may be used in a minute; beyond it documents wait. In any 60 s at most a sixth more, or one
    /// document more where that is larger. Default none: no bound.
    pub tokens_per_minute: Option<u64>,
    /// Tokens, of prompts and answers, that may be used in a day, from midnight to midnight in UTC; beyond it documents wait for
    /// midnight. What was used is not remembered over a restart: the day's count begins anew then. Default none: no bound.
    pub tokens_per_day: Option<u64>,
    /// Memory for answers that are given again to identical requests, in bytes; identical requests that come at the same time are then
    /// asked once. Default 0: every document is asked about.
    pub cache_bytes_max: u64,
    /// What a million tokens of prompts cost, in any currency; `dry-run` tells the cost of a backlog with it. Default none.
    pub price_per_million_prompt_tokens: Option<f64>,
    /// The same of answers. Default none.
    pub price_per_million_completion_tokens: Option<f64>,
}

impl Default for LlmConfig {
    fn default() -> Self {
        Self {
            url: "http://localhost:8000".to_owned(),
            model: "mistralai/Mistral-7B-Instruct-v0.2".to_owned(),
            timeout: Duration::from_secs(30),
            api_key: None,
            api_key_file: None,
            ca_file: None,
            concurrency: Concurrency::Adaptive,
            concurrency_max: 1024,
            attempts: 5,
            refusals_to_hold: 5,
            prefix_affinity: false,
            deadline: Duration::from_mins(10),
            max_tokens: 1024,
            temperature: 0.0,
            top_p: None,
            seed: None,
            on_truncated: OnTruncated::default(),
            schema_file: None,
            response_bytes_max: 16 * 1024 * 1024,
            retry_backoff_initial: Duration::from_millis(250),
            retry_backoff_max: Duration::from_secs(10),
            retry_after_max: Duration::from_mins(1),
            requests_per_minute: None,
            tokens_per_minute: None,
            tokens_per_day: None,
            cache_bytes_max: 0,
            price_per_million_prompt_tokens: None,
            price_per_million_completion_tokens: None,
        }
    }
}

impl LlmConfig {
    /// What is wrong with the settings, one sentence each with key and value; empty when nothing is. Reads no file.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(problem) = self.base_urls() {
            problems.push(problem);
        } else if self.ca_file.is_some() && !self.is_https() {
            problems.push(format!(
                "llm.ca_file is set, but llm.url = `{}` does not use https: remove the one or change the other",
                self.url
            ));
        }
        if self.model.trim().is_empty() {
            problems.push(
                "llm.model (MODEL_NAME) is empty: set the name that vLLM serves the model under"
                    .to_owned(),
            );
        }
        if self.api_key.is_some() && self.api_key_file.is_some() {
            problems
                .push("llm.api_key and llm.api_key_file are both set: keep one of them".to_owned());
        }
        if let Some(key) = &self.api_key
            && let Err(problem) = super::auth::check(key.expose())
        {
            problems.push(format!("llm.api_key {problem}"));
        }
        self.validate_bounds(&mut problems);
        self.validate_durations(&mut problems);
        problems
    }

    fn validate_bounds(&self, problems: &mut Vec<String>) {
        let fixed = match self.concurrency {
            Concurrency::Adaptive => None,
            Concurrency::Fixed(calls) => Some(("llm.concurrency", calls)),
        };
        let bounds = [fixed, Some(("llm.concurrency_max", self.concurrency_max))];
        for (key, calls) in bounds.into_iter().flatten() {
            if calls == 0 || calls > CONCURRENCY_MAX {
                problems.push(format!(
                    "{key} = {calls}: must lie between 1 and {CONCURRENCY_MAX}"
                ));
            }
        }
        if self.attempts == 0 || self.attempts > ATTEMPTS_MAX {
            problems.push(format!(
                "llm.attempts = {}: must lie between 1 and {ATTEMPTS_MAX}",
                self.attempts
            ));
        }
        if self.max_tokens == 0 {
            problems.push("llm.max_tokens = 0: must be at least 1".to_owned());
        }
        if !(0.0..=2.0).contains(&self.temperature) {
            problems.push(format!(
                "llm.temperature = {}: must lie between 0 and 2",
                self.temperature
            ));
        }
        if let Some(top_p) = self.top_p
            && !(top_p > 0.0 && top_p <= 1.0)
        {
            problems.push(format!(
                "llm.top_p = {top_p}: must be above 0 and at most 1"
            ));
        }
        if self.response_bytes_max < 1024 {
            problems.push(format!(
                "llm.response_bytes_max = {}: must be at least 1024",
                self.response_bytes_max
            ));
        }
        for (key, price) in [
            (
                "llm.price_per_million_prompt_tokens",
                self.price_per_million_prompt_tokens,
            ),
            (
                "llm.price_per_million_completion_tokens",
                self.price_per_million_completion_tokens,
            ),
        ] {
            if let Some(price) = price
                && !(price.is_finite() && price >= 0.0)
            {
                problems.push(format!("{key} = {price}: must be 0 or more"));
            }
        }
        for (key, value) in [
            ("llm.requests_per_minute", self.requests_per_minute),
            ("llm.tokens_per_minute", self.tokens_per_minute),
            ("llm.tokens_per_day", self.tokens_per_day),
        ] {
            if value == Some(0) {
                problems.push(format!(
                    "{key} = 0: nothing could ever be asked; set at least 1, or remove it for no bound"
                ));
            }
        }
    }

    fn validate_durations(&self, problems: &mut Vec<String>) {
        let written = |duration: Duration| humantime::format_duration(duration).to_string();
        for (key, value) in [
            ("llm.timeout", self.timeout),
            ("llm.deadline", self.deadline),
            ("llm.retry_backoff_initial", self.retry_backoff_initial),
            ("llm.retry_backoff_max", self.retry_backoff_max),
            ("llm.retry_after_max", self.retry_after_max),
        ] {
            if value.is_zero() || value > DURATION_MAX {
                problems.push(format!(
                    "{key} = {}: must be above 0 and at most {}",
                    written(value),
                    written(DURATION_MAX)
                ));
            }
        }
        if self.deadline < self.timeout {
            problems.push(format!(
                "llm.deadline = {}: must not be below llm.timeout = {}, or no attempt could use its time",
                written(self.deadline),
                written(self.timeout)
            ));
        }
        if self.retry_backoff_max < self.retry_backoff_initial {
            problems.push(format!(
                "llm.retry_backoff_max = {}: must not be below llm.retry_backoff_initial = {}",
                written(self.retry_backoff_max),
                written(self.retry_backoff_initial)
            ));
        }
    }

    /// Calls that may run at once at the start.
    pub(crate) fn concurrency_initial(&self) -> usize {
        match self.concurrency {
            Concurrency::Adaptive => CONCURRENCY_INITIAL.min(self.concurrency_max),
            Concurrency::Fixed(calls) => calls,
        }
    }

    /// The most calls that may ever run at once.
    pub(super) const fn concurrency_bound(&self) -> usize {
        match self.concurrency {
            Concurrency::Adaptive => self.concurrency_max,
            Concurrency::Fixed(calls) => calls,
        }
    }

    /// The setting that bounds the limit of each server, and the bound.
    pub(super) const fn concurrency_setting(&self) -> (&'static str, usize) {
        match self.concurrency {
            Concurrency::Adaptive => ("llm.concurrency_max", self.concurrency_max),
            Concurrency::Fixed(calls) => ("llm.concurrency", calls),
        }
    }

    /// Whether any budget is set.
    pub(super) const fn has_budget(&self) -> bool {
        self.requests_per_minute.is_some()
            || self.tokens_per_minute.is_some()
            || self.tokens_per_day.is_some()
    }

    /// Whether a server is spoken to over TLS.
    pub(super) fn is_https(&self) -> bool {
        let mut urls = self.url.split(',');
        urls.any(|url| {
            let scheme = url.trim().get(..8);
            scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
        })
    }

    /// The servers' base URLs without a trailing slash and without `/v1`, which every path brings itself; at least one.
    ///
    /// # Errors
    /// A sentence that names key and value.
    pub fn base_urls(&self) -> Result<Vec<String>, String> {
        let mut urls = Vec::new();
        if self.url.contains('@') {
            // Not repeated: where it would be cut in pieces a password could show.
            return Err(
                "llm.url (LLM_URL) holds an `@`: it must hold no user or password; use llm.api_key"
                    .to_owned(),
            );
        }
        for text in self.url.split(',') {
            let url = base_url(text.trim())?;
            if urls.contains(&url) {
                return Err(format!(
                    "llm.url (LLM_URL) names `{url}` twice: name each server once"
                ));
            }
            urls.push(url);
        }
        if urls.len() > ENDPOINTS_MAX {
            return Err(format!(
                "llm.url (LLM_URL) names {} servers: at most {ENDPOINTS_MAX}",
                urls.len()
            ));
        }
        Ok(urls)
    }
}

fn base_url(text: &str) -> Result<String, String> {
    let at = format!("llm.url (LLM_URL) = `{text}`");
    let url = Url::parse(text)
        .map_err(|error| format!("{at}: {error}; write it like http://localhost:8000"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("{at}: must begin with http:// or https://"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("{at}: has no host"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{at}: must have no `?` or `#` part"));
    }
    let base = url.as_str().trim_end_matches('/');
    Ok(base.strip_suffix("/v1").unwrap_or(base).to_owned())
}

/// Section `[prompt]`: MiniJinja templates. In scope are the document's fields, `content`, `document_id` and `kafka`
/// (`key`, `headers`, `topic`, `partition`, `offset`, `timestamp`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptConfig {
    /// Template of a system message. Default none, as some chat templates refuse that role. Of an input topic an empty one means none, whatever
    /// the general one is.
    pub system: Option<String>,
    /// A file with that template, instead of `system`. Default none.
    pub system_file: Option<PathBuf>,
    /// Template of the user message. Default: summarise a financial document and extract its key facts.
    pub user: Option<String>,
    /// A file with that template, instead of `user`. Default none.
    pub user_file: Option<PathBuf>,
    /// Template of the user message that asks for notes of one part of a long document. In scope beside the rest: `part` (from 1),
    /// `parts`, and `words`, which the notes may have. Default: take notes of a financial document.
    pub map: Option<String>,
    /// Template of the user message that asks to merge notes, which are `content`; in scope as for `map`. Default: merge notes of a
    /// financial document.
    pub reduce: Option<String>,
}

impl PromptConfig {
    /// These templates, and those of `general` where there is none. A file and a text of the same template stand for each other; an empty
    /// `system` stands for none.
    #[must_use]
    pub fn over(&self, general: &Self) -> Self {
        let either = |text: &Option<String>,
                      file: &Option<PathBuf>,
                      other: (&Option<String>, &Option<PathBuf>)| {
            if text.is_some() || file.is_some() {
                (text.clone(), file.clone())
            } else {
                (other.0.clone(), other.1.clone())
            }
        };
        let (system, system_file) = either(
            &self.system,
            &self.system_file,
            (&general.system, &general.system_file),
        );
        let (user, user_file) = either(
            &self.user,
            &self.user_file,
            (&general.user, &general.user_file),
        );
        Self {
            system: system.filter(|text| !text.is_empty()),
            system_file,
            user,
            user_file,
            map: self.map.clone().or_else(|| general.map.clone()),
            reduce: self.reduce.clone().or_else(|| general.reduce.clone()),
        }
    }

    /// Whether no template is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The same of an input topic's own templates, where an empty `system` means none.
    #[must_use]
    pub fn validate_own(&self) -> Vec<String> {
        let mut written = self.clone();
        if self.system_file.is_none() {
            written.system = self.system.clone().filter(|text| !text.is_empty());
        }
        written.validate()
    }

    /// What is wrong with the settings, one sentence each; empty when nothing is. Reads no file and parses nothing.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.system.is_some() && self.system_file.is_some() {
            problems.push(
                "prompt.system and prompt.system_file are both set: keep one of them".to_owned(),
            );
        }
        if self.user.is_some() && self.user_file.is_some() {
            problems
                .push("prompt.user and prompt.user_file are both set: keep one of them".to_owned());
        }
        for (key, template) in [
            ("prompt.system", &self.system),
            ("prompt.user", &self.user),
            ("prompt.map", &self.map),
            ("prompt.reduce", &self.reduce),
        ] {
            if template.as_ref().is_some_and(|text| text.trim().is_empty()) {
                problems.push(format!(
                    "{key} = ``: is empty; remove it or write a template"
                ));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(change: impl FnOnce(&mut LlmConfig)) -> Vec<String> {
        let mut config = LlmConfig::default();
        change(&mut config);
        config.validate()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(LlmConfig::default().validate(), Vec::<String>::new());
        assert_eq!(PromptConfig::default().validate(), Vec::<String>::new());
    }

    #[test]
    fn a_topic_can_do_without_the_general_system_template() {
        let general = PromptConfig {
            system: Some("Be brief.".to_owned()),
            ..PromptConfig::default()
        };
        let own = |system: Option<&str>| PromptConfig {
            system: system.map(str::to_owned),
            ..PromptConfig::default()
        };
        for (system, expected) in [
            (None, Some("Be brief.")),
            (Some("Be long."), Some("Be long.")),
            (Some(""), None),
        ] {
            assert_eq!(own(system).validate_own(), Vec::<String>::new());
            assert_eq!(own(system).over(&general).system.as_deref(), expected);
        }
        assert!(!own(Some("")).is_empty());
        let of_file = PromptConfig {
            system_file: Some("system.j2".into()),
            ..general.clone()
        };
        let over = own(Some("")).over(&of_file);
        assert_eq!((over.system, over.system_file), (None, None));
        // Elsewhere it is a slip.
        assert_eq!(own(Some("")).validate().len(), 1);
        assert_eq!(own(Some(" ")).validate_own().len(), 1);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = serde_json::from_str::<LlmConfig>(r#"{"concurency": 3}"#).unwrap_err();
        assert!(error.to_string().contains("concurency"), "{error}");
    }

    #[test]
    fn concurrency_is_a_number_or_adaptive() {
        let read = |json: &str| serde_json::from_str::<LlmConfig>(json).map(|c| c.concurrency);
        for (json, expected) in [
            (r#"{"concurrency": 3}"#, Concurrency::Fixed(3)),
            (r#"{"concurrency": "3"}"#, Concurrency::Fixed(3)),
            (r#"{"concurrency": "adaptive"}"#, Concurrency::Adaptive),
            ("{}", Concurrency::Adaptive),
        ] {
            assert_eq!(read(json).unwrap(), expected, "{json}");
        }
        for json in [r#"{"concurrency": -1}"#, r#"{"concurrency": "many"}"#] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains("a number or `adaptive`"), "{error}");
        }
    }

    #[test]
    fn durations_are_read_in_seconds_or_with_units() {
        let config: LlmConfig =
            serde_json::from_str(r#"{"timeout": 2, "deadline": "3m"}"#).unwrap();
        assert_eq!(config.timeout, Duration::from_secs(2));
        assert_eq!(config.deadline, Duration::from_mins(3));
    }

    #[test]
    fn a_problem_names_key_and_value() {
        for (change, expected) in [
            (
                Box::new(|c: &mut LlmConfig| c.concurrency = Concurrency::Fixed(0))
                    as Box<dyn FnOnce(&mut LlmConfig)>,
                "llm.concurrency = 0",
            ),
            (
                Box::new(|c| c.concurrency_max = 0),
                "llm.concurrency_max = 0",
            ),
            (Box::new(|c| c.attempts = 0), "llm.attempts = 0"),
            (Box::new(|c| c.temperature = 2.5), "llm.temperature = 2.5"),
            (
                Box::new(|c| c.temperature = f64::NAN),
                "llm.temperature = NaN",
            ),
            (Box::new(|c| c.top_p = Some(0.0)), "llm.top_p = 0"),
            (Box::new(|c| c.max_tokens = 0), "llm.max_tokens = 0"),
            (
                Box::new(|c| c.requests_per_minute = Some(0)),
                "llm.requests_per_minute = 0",
            ),
            (
                Box::new(|c| c.tokens_per_minute = Some(0)),
                "llm.tokens_per_minute = 0",
            ),
            (
                Box::new(|c| c.tokens_per_day = Some(0)),
                "llm.tokens_per_day = 0",
            ),
            (Box::new(|c| c.timeout = Duration::ZERO), "llm.timeout = 0s"),
            (
                Box::new(|c| c.deadline = Duration::from_secs(1)),
                "llm.deadline = 1s",
            ),
            (
                Box::new(|c| c.url = "localhost:8000".into()),
                "`localhost:8000`",
            ),
            (Box::new(|c| c.url = "http://a:1,b:2".into()), "`b:2`"),
            (
                Box::new(|c| c.url = "http://a:1,http://a:1/v1".into()),
                "`http://a:1` twice",
            ),
            (
                Box::new(|c| c.ca_file = Some("ca.pem".into())),
                "llm.ca_file",
            ),
            (
                Box::new(|c| c.api_key = Some(Secret::new("a\nb"))),
                "llm.api_key",
            ),
        ] {
            let problems = problems(change);
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{expected}: {problems:?}"
            );
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        for url in [
            "http://user:hunter2@host:1",
            "http://user:hunt,er2@host:1",
            "user:hunter2@host:1",
        ] {
            let problems = problems(|config| config.url = url.to_owned());
            assert_eq!(problems.len(), 1);
            assert!(!problems[0].contains("hunt"), "{problems:?}");
        }
    }

    #[test]
    fn the_base_url_loses_slash_and_version() {
        for url in [
            "http://h:1",
            "http://h:1/",
            "http://h:1/v1",
            "http://h:1/v1/",
        ] {
            let config = LlmConfig {
                url: url.to_owned(),
                ..LlmConfig::default()
            };
            assert_eq!(config.base_urls(), Ok(vec!["http://h:1".to_owned()]));
        }
        let config = LlmConfig {
            url: "https://h/models/a/v1".to_owned(),
            ..LlmConfig::default()
        };
        assert_eq!(
            config.base_urls(),
            Ok(vec!["https://h/models/a".to_owned()])
        );
    }
}
