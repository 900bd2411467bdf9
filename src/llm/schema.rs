//! What an answer must look like: a JSON Schema that the server is told and that every answer is checked against here.
//!
//! 1. The schema is read, judged and compiled once, at the start. It refers to nothing outside itself: nothing is ever fetched.
//! 2. The server gets the schema in the order in which it was written, as the model writes the properties in that order.
//! 3. An answer is taken whole or not at all: one JSON value and nothing else, valid under the schema. A server's own constraint is
//!    trusted for nothing: an unknown option is ignored there without a word, and some keywords are not enforced.
//! 4. `format` is a remark, as draft 2020-12 has it, and is not checked.
//! 5. What a violation says is bounded; its label holds nothing of the answer.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{LlmConfig, LlmError, Message};

/// What stands before the name of a schema that ships with the program.
const BUILTIN: &str = "builtin:";
/// The schemas that ship, by name.
const BUILTINS: [(&str, &str); 1] = [("financial", include_str!("schema/financial.json"))];

/// The largest schema, in bytes: it goes out with every call, and a device or a log named by mistake must not be read for ever.
const SCHEMA_BYTES_MAX: u64 = 256 * 1024;
/// The most memory of one compiled `pattern`, in bytes: a tenth of what the engine would allow, and enough for some thousand states.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// The most problems of one answer that are told: the first few are what a model can mend at once.
const PROBLEMS_MAX: usize = 5;
/// The largest answer whose problems are all looked for, in bytes: each may cost some hundred times the bytes that it is about. In a
/// larger one only the first is looked for.
const PROBLEMS_ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The longest place that is told, in characters: it is made of the answer's names.
const PLACE_CHARS_MAX: usize = 80;
/// The longest rule that is told, in characters: it may list what is allowed.
const RULE_CHARS_MAX: usize = 240;
/// The longest text of all problems of an answer, in characters.
const PROBLEM_CHARS_MAX: usize = 1_000;
/// The longest label, in characters.
const LABEL_CHARS_MAX: usize = 160;
/// The most of a wrong answer that is shown to the model again, in characters: some 4,000 tokens, four times the default of
/// `llm.max_tokens`.
const REPAIR_ANSWER_CHARS_MAX: usize = 16_000;

/// A schema that answers are asked for and checked by.
#[derive(Debug)]
pub struct AnswerSchema {
    validator: Validator,
    text: String,
    response_format: Arc<RawValue>,
    hash: String,
}

/// Why an answer is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    /// One line for each problem, with its place and the rule; for the model, as it holds names of the answer. At most
    /// [`PROBLEM_CHARS_MAX`] characters.
    pub(super) problem: String,
    label: String,
}

impl AnswerSchema {
    /// Reads the schema that `llm.schema_file` names; `None` when it names none.
    ///
    /// # Errors
    /// When the file cannot be read, or what it holds cannot be used as a schema; both name the setting.
    pub fn load(config: &LlmConfig) -> Result<Option<Self>, LlmError> {
        let Some(path) = &config.schema_file else {
            return Ok(None);
        };
        let unusable = |problem| LlmError::Schema {
            path: path.clone(),
            problem,
        };
        let text = match path.to_str().and_then(|name| name.strip_prefix(BUILTIN)) {
            Some(name) => builtin(name).map_err(unusable)?.to_owned(),
            None => read(path).map_err(|source| LlmError::SchemaFile {
                path: path.clone(),
                source,
            })?,
        };
        Self::parse(&text).map(Some).map_err(unusable)
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if u64::try_from(text.len()).is_ok_and(|bytes| bytes > SCHEMA_BYTES_MAX) {
            return Err(format!("is larger than {SCHEMA_BYTES_MAX} bytes"));
        }
        // Some editors begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim();
        let schema: Value =
            serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
        // Consumers rely on named fields, and the server takes no schema that is not an object itself.
        if schema.get("type").and_then(Value::as_str) != Some("object") {
            return Err(
                "an answer must be an object: write `\"type\": \"object\"` at the top of the schema"
                    .to_owned(),
            );
        }
        let validator = jsonschema::options()
            .offline()
            .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES_MAX))
            .build(&schema)
            .map_err(|error| unusable(&error))?;
        let compact = compact(text);
        let hash = Sha256::digest(compact.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let response_format = format!(
            r#"{{"type":"json_schema","json_schema":{{"name":"answer","schema":{compact}}}}}"#
        );
        let response_format = RawValue::from_string(response_format)
            .map_err(|error| format!("cannot be written as JSON: {error}"))?;
        Ok(Self {
            validator,
            text: text.to_owned(),
            response_format: Arc::from(response_format),
            hash,
        })
    }

    /// The schema as it was written, for prompts.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// SHA-256 of the schema without the white space between its parts, in hex.
    #[must_use]
    pub fn schema_hash(&self) -> &str {
        &self.hash
    }

    /// The value of a request's `response_format`.
    pub(super) fn response_format(&self) -> &Arc<RawValue> {
        &self.response_format
    }

    /// Reads an answer: one JSON value, with white space around it at most, that is valid under the schema. Of a name that is given
    /// twice the last counts. Control characters in texts may stand as they are: xgrammar lets them pass where there is a `maxLength`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(&self, text: &str) -> Result<Value, Violation> {
        let text = text.trim();
        let parsed = serde_json::from_str(text)
            .or_else(|error| escaped(text).map_or(Err(error), |text| serde_json::from_str(&text)));
        let answer = parsed.map_err(|error| {
            // The parser's words are its own, without a word of the text.
            let at = format!("line {}, column {}", error.line(), error.column());
            Violation {
                problem: cut(
                    &format!("It is not one JSON value: {error}"),
                    PROBLEM_CHARS_MAX,
                ),
                label: format!("it is not one JSON value ({at})"),
            }
        })?;
        if self.validator.is_valid(&answer) {
            return Ok(answer);
        }
        let problems: Vec<_> = if text.len() > PROBLEMS_ANSWER_BYTES_MAX {
            self.validator.validate(&answer).err().into_iter().collect()
        } else {
            self.validator.iter_errors(&answer).collect()
        };
        Err(Violation::new(&problems))
    }
}

/// An answer with the control characters within its texts escaped, as JSON wants them; `None` when there are none.
fn escaped(text: &str) -> Option<String> {
    let mut escaped = String::with_capacity(text.len());
    let mut is_changed = false;
    let mut is_in_text = false;
    let mut is_after_backslash = false;
    for character in text.chars() {
        if is_in_text && !is_after_backslash && character < ' ' {
            is_changed = true;
            escaped += &format!("\\u{:04x}", u32::from(character));
            continue;
        }
        match character {
            '"' if !is_after_backslash => is_in_text = !is_in_text,
            _ => {}
        }
        is_after_backslash = is_in_text && character == '\\' && !is_after_backslash;
        escaped.push(character);
    }
    is_changed.then_some(escaped)
}

impl Violation {
    fn new(problems: &[ValidationError<'_>]) -> Self {
        let mut told: Vec<_> = problems
            .iter()
            .take(PROBLEMS_MAX)
            .map(|problem| {
                let place = place(problem.instance_path().as_str(), "the whole answer");
                format!("- {place}: {}", rule(problem))
            })
            .collect();
        let more = problems.len().saturating_sub(PROBLEMS_MAX);
        if more > 0 {
            told.push(format!("- and {more} more"));
        }
        let place = problems.first().map_or_else(String::new, |problem| {
            place(problem.schema_path().as_str(), "its top")
        });
        let others = match problems.len() {
            0 | 1 => String::new(),
            problems => format!(", the first of {problems} problems"),
        };
        Self {
            problem: cut(&told.join("\n"), PROBLEM_CHARS_MAX),
            label: cut(
                &format!("it breaks the schema at {place}{others}"),
                LABEL_CHARS_MAX,
            ),
        }
    }

    /// An answer that ended at its `max_tokens`, or with the context: what of it there is may be valid, and is not whole.
    pub(super) fn cut_off(max_tokens: u32) -> Self {
        Self {
            problem: format!(
                "It was cut off, as it was longer than {max_tokens} tokens. Be shorter: fewer list entries and shorter texts."
            ),
            label: format!(
                "it was cut off at llm.max_tokens = {max_tokens}, or at the end of the context"
            ),
        }
    }

    /// The same in short, for logs and dead letters: the rule that is broken, and nothing of the answer.
    pub(super) fn label(&self) -> &str {
        &self.label
    }
}

/// The conversation that asks for a better answer: what was asked, what was answered, and what is wrong with it. Roles alternate, as
/// chat templates demand.
pub(super) fn repair_messages(
    original: &[Message],
    answer: &str,
    violation: &Violation,
) -> Vec<Message> {
    let shown = cut(answer.trim(), REPAIR_ANSWER_CHARS_MAX);
    let shown = if shown.is_empty() {
        // Some templates refuse a turn without text.
        "(no answer)".to_owned()
    } else {
        shown
    };
    let message = |role: &str, content| Message {
        role: role.to_owned(),
        content,
    };
    let mut messages = original.to_vec();
    messages.push(message("assistant", shown));
    messages.push(message(
        "user",
        format!(
            "That answer cannot be used:\n{}\n\nCorrect it. Answer with the corrected JSON object alone: no text before or after it, no code \
             fence.",
            violation.problem
        ),
    ));
    messages
}

fn builtin(name: &str) -> Result<&'static str, String> {
    let found = BUILTINS.iter().find(|(builtin, _)| *builtin == name);
    found.map(|(_, text)| *text).ok_or_else(|| {
        let known = BUILTINS.map(|(name, _)| format!("{BUILTIN}{name}"));
        format!("no such schema ships: use {}", known.join(", "))
    })
}

/// Reads at most one byte more than a schema may have, so that a file that is too large is told as such.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(SCHEMA_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// What is wrong with a schema, with the place in it.
fn unusable(error: &ValidationError<'_>) -> String {
    if let ValidationErrorKind::Referencing(error) = error.kind() {
        return match error {
            jsonschema::ReferencingError::Unretrievable { uri, .. } => format!(
                "refers to `{uri}`, which is not in the file, and nothing is fetched: put it under `$defs` and refer to `#/$defs/...`"
            ),
            error => format!("holds a reference that leads nowhere: {error}"),
        };
    }
    // A wrong keyword is an instance of the rules for schemas; what cannot be compiled names its own place.
    let pointer = match error.instance_path().as_str() {
        "" => error.schema_path().as_str(),
        pointer => pointer,
    };
    let place = place(pointer, "its top");
    format!(
        "is not a valid schema, at {place}: {}",
        cut(&error.to_string(), RULE_CHARS_MAX)
    )
}

/// A JSON pointer for a message.
fn place(pointer: &str, root: &str) -> String {
    match pointer {
        "" => root.to_owned(),
        pointer => format!("`{}`", cut(pointer, PLACE_CHARS_MAX)),
    }
}

/// The rule that is broken, without the value that breaks it. Names that are not allowed are told, as the model must drop them.
fn rule(problem: &ValidationError<'_>) -> String {
    let rule = match problem.kind() {
        // The crate's own words leave out all but two.
        ValidationErrorKind::Enum { options } => format!("value is not one of {options}"),
        _ => problem.masked().to_string(),
    };
    cut(&rule, RULE_CHARS_MAX)
}

/// The JSON text without the white space between its parts. It has been parsed, so quotes pair up.
fn compact(json: &str) -> String {
    let mut compact = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if in_string || !c.is_ascii_whitespace() {
            compact.push(c);
        }
        if c == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && c == '\\' && !escaped;
    }
    compact
}

/// The text, cut to so many characters; what was cut shows as `…`, which counts.
fn cut(text: &str, chars_max: usize) -> String {
    let mut ends = text.char_indices().map(|(at, _)| at);
    let kept = ends.nth(chars_max.saturating_sub(1)).unwrap_or(text.len());
    match (ends.next(), text.get(..kept)) {
        (Some(_), Some(kept)) => format!("{kept}…"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
