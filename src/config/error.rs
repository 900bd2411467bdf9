//! What is wrong with the settings, in sentences for the operator.

use std::fmt;

use figment::error::Kind;

use super::layers::is_secret;

/// One or more problems; each line names the key, the value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    pub(super) fn new(problem: String) -> Self {
        Self {
            problems: vec![problem],
        }
    }

    /// One line each.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    pub(super) fn from_figment(errors: figment::Error) -> Self {
        let problems = errors.into_iter().map(|error| {
            let key = error.path.join(".");
            let source = error
                .metadata
                .as_ref()
                .map_or_else(String::new, |metadata| format!(" (from {})", metadata.name));
            let what = match &error.kind {
                // What was found is the secret.
                _ if is_secret(&key) => "is not text".to_owned(),
                Kind::Message(message) => message.clone(),
                Kind::InvalidType(_, expected) if expected.starts_with("struct ") => {
                    "is a section: set a key of it, such as pipeline.order".to_owned()
                }
                Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
                    // Figment tells Rust's types.
                    let expected = match expected.as_str() {
                        "usize" | "u64" | "i64" | "u32" | "u16" => "a whole number",
                        "f64" | "f32" => "a number",
                        "bool" => "true or false",
                        expected => expected,
                    };
                    format!("{found} is not {expected}")
                }
                Kind::UnknownVariant(found, expected) => {
                    format!("`{found}` is not one of {}", expected.join(", "))
                }
                kind => kind.to_string(),
            };
            if key.is_empty() {
                what
            } else {
                format!("{key}: {what}{source}")
            }
        });
        Self {
            problems: problems.collect(),
        }
    }
}

impl From<Vec<String>> for ConfigError {
    fn from(problems: Vec<String>) -> Self {
        Self { problems }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}
