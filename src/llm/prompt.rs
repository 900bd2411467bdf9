//! From a document to chat messages: MiniJinja templates, parsed at the start and rendered per document.
//!
//! Undefined fields are errors, never empty text: a summary of nothing looks like a summary. The error names the field and holds no
//! text of the document.

use std::path::PathBuf;

use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, context};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{Message, PromptConfig};

/// What is asked when nothing is configured. One user message, as the chat template of the default model may refuse a system role;
/// the document last, so that the fixed beginning is shared in vLLM's prefix cache.
const DEFAULT_USER: &str = "\
You are a financial analyst. Read the financial document at the end of this message and answer from it alone; add nothing that it \
does not say.

Write:
1. Summary: three to five sentences on what the document reports and why it matters.
2. Key facts, one per line: the company, the kind of document, the period, each important figure with its unit and how it changed, \
guidance, risks, and dates.
Write \"not stated\" for what the document leaves open.

Document:
{{ content }}";

/// What is asked when answers have a schema and nothing else is configured.
const DEFAULT_USER_JSON: &str = "\
You are a financial analyst. Read the financial document at the end of this message and answer from it alone; add nothing that it \
does not say.

Answer with one JSON object that has the fields of this JSON Schema, and with nothing else: no text before or after it, no code \
fence. What the document leaves open is null or an empty list, where the schema allows it.

JSON Schema:
{{ schema }}

Document:
{{ content }}";

/// Asks for notes of one part of a document that is too long to be read at once.
const DEFAULT_MAP: &str = "\
You are a financial analyst. A long financial document is read in {{ parts }} parts; part {{ part }} is at the end of this message. \
Take notes of this part for a colleague who will not see it.

Note every fact of weight: figures with unit, period and change; companies, persons, dates and events; guidance; risks and their \
causes. Keep figures and names exactly as they are written. One fact per line, without introduction. Draw no conclusion that the \
text does not draw, and leave out boilerplate. A part without such facts is noted as \"nothing of weight\". Use at most {{ words }} words.

Part {{ part }} of {{ parts }}:
{{ content }}";

/// Asks for one set of notes out of several that follow each other in the document.
const DEFAULT_REDUCE: &str = "\
You are a financial analyst. Below are notes that were taken of consecutive parts of one long financial document, in its order. \
Merge them into one set of notes for a colleague who will see nothing else.

Keep the order, and keep every figure with its unit and period. Name what is repeated once; where notes contradict each other, keep \
both. Add nothing. One fact per line, without introduction. Use at most {{ words }} words.

Notes:
{{ content }}";

/// The steps that one rendering may take, some ten for each turn of a loop: a list of a document has at most some hundred thousand entries, but
/// loops within loops over it have the square of that.
const STEPS_MAX: u64 = 10_000_000;

const SYSTEM: &str = "prompt.system";
const USER: &str = "prompt.user";
const MAP: &str = "prompt.map";
const REDUCE: &str = "prompt.reduce";

/// A template that cannot be used: found at the start.
#[derive(Debug, thiserror::Error)]
pub enum PromptSetupError {
    /// The template's file cannot be read.
    #[error("{key}_file = `{}` cannot be read", path.display())]
    File {
        /// The setting, without its ending.
        key: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The template cannot be parsed.
    #[error("{key}, line {line}: {problem}")]
    Parse {
        /// The setting, with the file's name when it came from one.
        key: String,
        /// Line in the template, from 1.
        line: usize,
        /// The parser's word.
        problem: String,
    },
}

/// A document that cannot be put into the template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}, line {line}: {problem}")]
pub struct PromptError {
    /// The setting.
    pub key: String,
    /// Line in the template, from 1.
    pub line: usize,
    /// What is missing or does not fit; holds no document text.
    pub problem: String,
}

/// What a template sees of the Kafka record, as `kafka`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct KafkaContext {
    /// Key as text; null when there is none.
    pub key: Option<String>,
    /// Headers by name; of one name the last.
    pub headers: Map<String, Value>,
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Timestamp in RFC 3339; null when there is none.
    pub timestamp: Option<String>,
}

/// What the model is asked for, of a document or of a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The answer: `prompt.user`.
    Answer,
    /// Notes of one part: `prompt.map`.
    Notes(Place),
    /// One set of notes out of several: `prompt.reduce`.
    Merge(Place),
}

/// Which part is asked about; in the templates' scope by these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which one, from 1.
    pub part: usize,
    /// Of how many.
    pub parts: usize,
    /// How many words the answer may have.
    pub words: u64,
}

/// A context that is made ready once for many renderings, each with a content of its own.
#[derive(Debug, Clone, Default)]
pub struct Scope(minijinja::Value);

/// The parsed templates.
#[derive(Debug)]
pub struct Prompt {
    environment: Environment<'static>,
    /// What the templates' settings are called, for messages.
    names: Names,
    has_system: bool,
    schema: Option<minijinja::Value>,
    hash: String,
}

impl Prompt {
    /// Reads and parses the templates. `schema` is what they see under that name, whatever fields a document has.
    ///
    /// # Errors
    /// When the file cannot be read or a template cannot be parsed; both name the setting.
    pub fn new(config: &PromptConfig, schema: Option<&str>) -> Result<Self, PromptSetupError> {
        Self::build(config, schema, Names::default())
    }

    /// Those of an input topic: `own` where it has a template, `general` where not. Messages about its own name the topic.
    ///
    /// # Errors
    /// As [`Prompt::new`].
    pub fn for_topic(
        topic: &str,
        own: &PromptConfig,
        general: &PromptConfig,
        schema: Option<&str>,
    ) -> Result<Self, PromptSetupError> {
        let names = Names {
            topic: Some(topic.to_owned()),
            own: own.clone(),
        };
        Self::build(&own.over(general), schema, names)
    }

    fn build(
        config: &PromptConfig,
        schema: Option<&str>,
        names: Names,
    ) -> Result<Self, PromptSetupError> {
        let (system, user) = (names.of(SYSTEM), names.of(USER));
        let system = written(&system, config.system_file.as_ref(), config.system.as_ref())?;
        let user = written(&user, config.user_file.as_ref(), config.user.as_ref())?;
        let user = user.unwrap_or_else(|| Written {
            origin: names.of(USER),
            text: if schema.is_some() {
                DEFAULT_USER_JSON.to_owned()
            } else {
                DEFAULT_USER.to_owned()
            },
        });
        let map = config.map.as_deref().unwrap_or(DEFAULT_MAP);
        let reduce = config.reduce.as_deref().unwrap_or(DEFAULT_REDUCE);
        let mut hasher = Sha256::new();
        for part in [
            system.as_ref().map(|system| system.text.as_str()),
            Some(user.text.as_str()),
            Some(map),
            Some(reduce),
        ] {
            // Presence and length first, so that no two sets of templates run together.
            let length = part.map_or(u64::MAX, |text| {
                u64::try_from(text.len()).unwrap_or(u64::MAX)
            });
            hasher.update(length.to_be_bytes());
            hasher.update(part.unwrap_or_default().as_bytes());
        }
        let hash = hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // Off in release builds by default, and then errors do not tell where in the template they arose.
        environment.set_debug(true);
        environment.set_auto_escape_callback(|_name| AutoEscape::None);
        environment.set_fuel(Some(STEPS_MAX));
        let has_system = system.is_some();
        if let Some(Written { origin, text }) = system {
            add(&mut environment, SYSTEM, &origin, text)?;
        }
        add(&mut environment, USER, &user.origin, user.text)?;
        add(&mut environment, MAP, &names.of(MAP), map.to_owned())?;
        add(
            &mut environment,
            REDUCE,
            &names.of(REDUCE),
            reduce.to_owned(),
        )?;
        Ok(Self {
            environment,
            names,
            has_system,
            schema: schema.map(minijinja::Value::from),
            hash,
        })
    }

    /// SHA-256 of the templates, in hex; the schema has a hash of its own.
    #[must_use]
    pub fn template_hash(&self) -> &str {
        &self.hash
    }

    /// Whether a system message is asked with.
    #[must_use]
    pub const fn has_system(&self) -> bool {
        self.has_system
    }

    /// Makes `context`, as [`Prompt::context`] builds it, ready for [`Prompt::render_with`]. A `content` that it holds is not seen.
    #[must_use]
    pub fn scope(&self, context: &Value) -> Scope {
        Scope(
            self.with_schema(match context {
                Value::Object(fields) => minijinja::Value::from_pairs(
                    fields
                        .iter()
                        .filter(|(name, _)| *name != "content")
                        .map(|(name, value)| (name.as_str(), to_template(value))),
                ),
                other => to_template(other),
            }),
        )
    }

    /// The schema lies over the document's fields: a field of its name must not take its place.
    fn with_schema(&self, fields: minijinja::Value) -> minijinja::Value {
        match &self.schema {
            Some(schema) => context! { schema, ..fields },
            None => fields,
        }
    }

    /// Renders the messages of one call about `content`, which may be a part of a document or notes of it. Copies no more than
    /// `content`.
    ///
    /// # Errors
    /// When a field is missing or does not fit the template.
    pub fn render_with(
        &self,
        question: Question,
        scope: &Scope,
        content: &str,
    ) -> Result<Vec<Message>, PromptError> {
        let base = scope.0.clone();
        // Of two values of one name the first is seen.
        let context = match question {
            Question::Answer => minijinja::context! { content, ..base },
            Question::Notes(Place { part, parts, words })
            | Question::Merge(Place { part, parts, words }) => {
                minijinja::context! { content, part, parts, words, ..base }
            }
        };
        let name = match question {
            Question::Answer => USER,
            Question::Notes(_) => MAP,
            Question::Merge(_) => REDUCE,
        };
        self.messages(name, &context)
    }

    fn messages(
        &self,
        name: &'static str,
        context: &minijinja::Value,
    ) -> Result<Vec<Message>, PromptError> {
        let mut messages = Vec::with_capacity(2);
        if self.has_system {
            messages.push(self.message("system", SYSTEM, context)?);
        }
        messages.push(self.message("user", name, context)?);
        Ok(messages)
    }

    /// What templates see beside `content`: the document's fields at the top level, over them `document_id` and `kafka`.
    #[must_use]
    pub fn context(fields: Map<String, Value>, document_id: &str, kafka: KafkaContext) -> Value {
        let mut context = fields;
        let mut record = Map::new();
        record.insert("key".to_owned(), kafka.key.into());
        record.insert("headers".to_owned(), Value::Object(kafka.headers));
        record.insert("topic".to_owned(), kafka.topic.into());
        record.insert("partition".to_owned(), kafka.partition.into());
        record.insert("offset".to_owned(), kafka.offset.into());
        record.insert("timestamp".to_owned(), kafka.timestamp.into());
        context.insert("document_id".to_owned(), document_id.into());
        context.insert("kafka".to_owned(), Value::Object(record));
        Value::Object(context)
    }

    fn message(
        &self,
        role: &str,
        name: &'static str,
        context: &minijinja::Value,
    ) -> Result<Message, PromptError> {
        let template = self
            .environment
            .get_template(name)
            .map_err(|error| describe(self.names.of(name), "", &error))?;
        let content = template
            .render(context.clone())
            .map_err(|error| describe(self.names.of(name), template.source(), &error))?;
        Ok(Message {
            role: role.to_owned(),
            content,
        })
    }
}

/// JSON as templates see it. Depth is bounded by the JSON parser.
fn to_template(value: &Value) -> minijinja::Value {
    match value {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => number.into(),
            (_, Some(number), _) => number.into(),
            (_, _, Some(number)) => number.into(),
            _ => number.to_string().into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(values) => values.iter().map(to_template).collect(),
        Value::Object(fields) => minijinja::Value::from_pairs(
            fields
                .iter()
                .map(|(name, value)| (name.as_str(), to_template(value))),
        ),
    }
}

/// What the settings of templates are called.
#[derive(Debug, Default)]
struct Names {
    /// The input topic that has templates of its own.
    topic: Option<String>,
    /// These.
    own: PromptConfig,
}

impl Names {
    fn of(&self, key: &'static str) -> String {
        let own = &self.own;
        let is_own = match key {
            SYSTEM => own.system.is_some() || own.system_file.is_some(),
            USER => own.user.is_some() || own.user_file.is_some(),
            MAP => own.map.is_some(),
            REDUCE => own.reduce.is_some(),
            _ => false,
        };
        match self.topic.as_ref().filter(|_| is_own) {
            Some(topic) => format!("input.topics `{topic}`: {key}"),
            None => key.to_owned(),
        }
    }
}

/// A template as it was written, and where, for messages.
struct Written {
    origin: String,
    text: String,
}

/// The template of a setting: its file's, or the one that stands in the configuration.
fn written(
    key: &str,
    file: Option<&PathBuf>,
    inline: Option<&String>,
) -> Result<Option<Written>, PromptSetupError> {
    let Some(path) = file else {
        return Ok(inline.map(|text| Written {
            origin: key.to_owned(),
            text: text.clone(),
        }));
    };
    let text = std::fs::read_to_string(path).map_err(|source| PromptSetupError::File {
        key: key.to_owned(),
        path: path.clone(),
        source,
    })?;
    Ok(Some(Written {
        origin: format!("{key}_file = `{}`", path.display()),
        text,
    }))
}

fn add(
    environment: &mut Environment<'static>,
    name: &'static str,
    origin: &str,
    source: String,
) -> Result<(), PromptSetupError> {
    environment
        .add_template_owned(name, source)
        .map_err(|error| PromptSetupError::Parse {
            key: origin.to_owned(),
            line: error.line().unwrap_or(1),
            problem: error
                .detail()
                .map_or_else(|| error.kind().to_string(), str::to_owned),
        })
}

/// A sentence for a failed rendering. The engine's own words can quote values, so only its kind is taken, and the place in the
/// template: that is the operator's text.
fn describe(key: String, source: &str, error: &minijinja::Error) -> PromptError {
    let expression = error
        .range()
        .and_then(|range| source.get(range))
        .unwrap_or_default();
    let problem = match error.kind() {
        ErrorKind::UndefinedError if expression.is_empty() => {
            "a field of the template is missing in the document".to_owned()
        }
        ErrorKind::UndefinedError => format!("field `{expression}` is missing in the document"),
        ErrorKind::OutOfFuel => format!("it takes more than {STEPS_MAX} steps for this document"),
        kind if expression.is_empty() => kind.to_string(),
        kind => format!("`{expression}`: {kind}"),
    };
    PromptError {
        key,
        line: error.line().unwrap_or(1),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn prompt(user: &str) -> Prompt {
        Prompt::new(
            &PromptConfig {
                user: Some(user.to_owned()),
                ..PromptConfig::default()
            },
            None,
        )
        .unwrap()
    }

    /// What templates see, `content` among it.
    fn context(fields: Map<String, Value>, content: &str, id: &str, kafka: KafkaContext) -> Value {
        let mut context = Prompt::context(fields, id, kafka);
        context["content"] = content.into();
        context
    }

    impl Prompt {
        fn render(&self, context: &Value) -> Result<Vec<Message>, PromptError> {
            let content = context["content"].as_str().unwrap_or_default();
            self.render_with(Question::Answer, &self.scope(context), content)
        }
    }

    fn fields(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    #[test]
    fn the_default_is_one_user_message_with_the_document_last() {
        let prompt = Prompt::new(&PromptConfig::default(), None).unwrap();
        let context = context(
            Map::new(),
            "Revenue <rose> & {{ fell }}",
            "d",
            KafkaContext::default(),
        );
        let messages = prompt.render(&context).unwrap();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].role, "user");
        assert!(messages[0].content.ends_with("Revenue <rose> & {{ fell }}"));
    }

    #[test]
    fn fields_and_kafka_are_in_scope_and_nothing_is_escaped() {
        let context = context(
            fields(
                json!({"company": "A & B", "figures": {"revenue": 12.5}, "content": "shadowed"}),
            ),
            "text",
            "doc-1",
            KafkaContext {
                key: Some("k".into()),
                headers: fields(json!({"source": "sec"})),
                topic: "t".into(),
                partition: 3,
                offset: 42,
                timestamp: Some("2026-01-01T00:00:00Z".into()),
            },
        );
        let rendered = prompt(
            "{{ company }}|{{ figures.revenue }}|{{ content }}|{{ document_id }}|{{ kafka.key }}|{{ kafka.headers.source }}|\
             {{ kafka.topic }}/{{ kafka.partition }}@{{ kafka.offset }}|{{ kafka.timestamp }}",
        )
        .render(&context)
        .unwrap();
        assert_eq!(
            rendered[0].content,
            "A & B|12.5|text|doc-1|k|sec|t/3@42|2026-01-01T00:00:00Z"
        );
    }

    #[test]
    fn a_missing_field_is_named_with_its_line() {
        let error = prompt("one\n{{ figures.revenue }}")
            .render(&json!({"figures": {"secret": "text"}}))
            .unwrap_err();
        assert_eq!(error.line, 2);
        let message = error.to_string();
        assert!(message.contains("figures.revenue"), "{message}");
        assert!(!message.contains("secret"), "{message}");
        let error = prompt("{{ ticker }}").render(&json!({})).unwrap_err();
        assert!(error.to_string().contains("`ticker`"), "{error}");
    }

    /// Without the bound this takes a day.
    #[test]
    fn loops_over_a_documents_lists_end() {
        let list = vec![json!(0); 10_000];
        let fields = json!({"list": list});
        let loops =
            |depth: usize| "{% for x in list %}".repeat(depth) + &"{% endfor %}".repeat(depth);
        prompt(&loops(1)).render(&fields).unwrap();
        let error = prompt(&loops(3)).render(&fields).unwrap_err();
        assert!(error.problem.contains("10000000 steps"), "{error}");
    }

    #[test]
    fn an_error_while_rendering_holds_no_document_text() {
        let error = prompt("{{ content + 1 }}")
            .render(&json!({"content": "confidential"}))
            .unwrap_err();
        assert!(!error.to_string().contains("confidential"), "{error}");
    }

    #[test]
    fn a_template_that_cannot_be_parsed_names_setting_and_line() {
        let error = Prompt::new(
            &PromptConfig {
                user: Some("one\ntwo {{ content".into()),
                ..PromptConfig::default()
            },
            None,
        )
        .unwrap_err()
        .to_string();
        assert!(error.starts_with("prompt.user, line 2: "), "{error}");
    }

    #[test]
    fn a_file_is_read_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.j2");
        std::fs::write(&path, "Read: {{ content }}").unwrap();
        let config = |path| PromptConfig {
            user_file: Some(path),
            ..PromptConfig::default()
        };
        let messages = Prompt::new(&config(path.clone()), None)
            .unwrap()
            .render(&json!({"content": "x"}))
            .unwrap();
        assert_eq!(messages[0].content, "Read: x");
        let error = Prompt::new(&config(folder.path().join("none")), None).unwrap_err();
        assert!(error.to_string().contains("prompt.user_file"), "{error}");
        let system = |path| PromptConfig {
            system_file: Some(path),
            ..PromptConfig::default()
        };
        let with_system = Prompt::new(&system(path.clone()), None).unwrap();
        let messages = with_system.render(&json!({"content": "x"})).unwrap();
        assert_eq!(messages[0].role, "system");
        assert_eq!(messages[0].content, "Read: x");
        let error = Prompt::new(&system(folder.path().join("none")), None).unwrap_err();
        assert!(error.to_string().contains("prompt.system_file"), "{error}");
        std::fs::write(&path, "{% if %}").unwrap();
        let error = Prompt::new(&config(path), None).unwrap_err().to_string();
        assert!(
            error.contains("prompt.j2") && error.contains("line 1"),
            "{error}"
        );
    }

    #[test]
    fn the_hash_tells_templates_apart() {
        let with = |system: Option<&str>, user: &str| {
            Prompt::new(
                &PromptConfig {
                    system: system.map(str::to_owned),
                    user: Some(user.to_owned()),
                    ..PromptConfig::default()
                },
                None,
            )
            .unwrap()
            .template_hash()
            .to_owned()
        };
        assert_eq!(with(None, "ab").len(), 64);
        assert_eq!(with(None, "ab"), with(None, "ab"));
        assert_ne!(with(None, "ab"), with(Some("a"), "b"));
        assert_ne!(with(Some("a"), "bc"), with(Some("ab"), "c"));
        assert_ne!(with(None, "a"), with(Some(""), "a"));
    }

    #[test]
    fn a_system_template_comes_first() {
        let messages = Prompt::new(
            &PromptConfig {
                system: Some("You read {{ kind }}.".into()),
                user: Some("{{ content }}".into()),
                ..PromptConfig::default()
            },
            None,
        )
        .unwrap()
        .render(&json!({"kind": "filings", "content": "x"}))
        .unwrap();
        assert_eq!(messages[0].role, "system");
        assert_eq!(messages[0].content, "You read filings.");
        assert_eq!(messages[1].content, "x");
    }

    #[test]
    fn with_a_schema_the_default_asks_for_json() {
        let config = PromptConfig::default();
        let (text, json) = (
            Prompt::new(&config, None).unwrap(),
            Prompt::new(&config, Some("{\"type\": <1>}")).unwrap(),
        );
        assert_ne!(text.template_hash(), json.template_hash());
        let context = context(Map::new(), "The document.", "d", KafkaContext::default());
        let messages = json.render(&context).unwrap();
        assert_eq!(messages.len(), 1);
        let content = &messages[0].content;
        assert!(content.contains("{\"type\": <1>}"), "{content}");
        assert!(content.ends_with("The document."), "{content}");
    }

    #[test]
    fn a_document_cannot_replace_the_schema() {
        let config = PromptConfig {
            user: Some("{{ schema }}|{{ content }}".into()),
            ..PromptConfig::default()
        };
        let context = json!({"schema": "the document's", "content": "x"});
        let rendered = |schema| Prompt::new(&config, schema).unwrap().render(&context);
        assert_eq!(rendered(Some("ours")).unwrap()[0].content, "ours|x");
        assert_eq!(rendered(None).unwrap()[0].content, "the document's|x");
    }

    fn place(part: usize) -> Place {
        Place {
            part,
            parts: 7,
            words: 150,
        }
    }

    #[test]
    fn a_part_is_rendered_with_its_place_and_the_documents_fields() {
        let prompt = Prompt::new(
            &PromptConfig {
                system: Some("You read {{ company }}.".into()),
                map: Some("{{ company }} {{ part }}/{{ parts }} {{ words }}: {{ content }}".into()),
                reduce: Some("merge {{ part }}/{{ parts }}: {{ content }}".into()),
                user: Some("{{ content }} of {{ company }}".into()),
                ..PromptConfig::default()
            },
            None,
        )
        .unwrap();
        let scope = prompt.scope(&json!({"company": "A & B", "content": "whole", "part": "x"}));
        for (question, expected) in [
            (Question::Notes(place(2)), "A & B 2/7 150: piece"),
            (Question::Merge(place(1)), "merge 1/7: piece"),
            (Question::Answer, "piece of A & B"),
        ] {
            let messages = prompt.render_with(question, &scope, "piece").unwrap();
            assert_eq!(messages[0].content, "You read A & B.");
            assert_eq!(messages[1].content, expected);
        }
    }

    #[test]
    fn rendering_with_a_content_is_the_same_as_with_it_in_the_context() {
        let context = json!({"company": "A", "content": "text"});
        let prompt = prompt("{{ company }}: {{ content }}");
        assert_eq!(
            prompt.render(&context),
            prompt.render_with(Question::Answer, &prompt.scope(&context), "text")
        );
    }

    #[test]
    fn the_place_is_no_field_of_the_answer_and_a_missing_field_is_named() {
        let prompt = Prompt::new(
            &PromptConfig {
                user: Some("{{ part }}".into()),
                map: Some("{{ ticker }}".into()),
                ..PromptConfig::default()
            },
            None,
        )
        .unwrap();
        let scope = prompt.scope(&json!({}));
        let error = prompt
            .render_with(Question::Answer, &scope, "x")
            .unwrap_err();
        assert!(error.to_string().contains("`part`"), "{error}");
        let error = prompt
            .render_with(Question::Notes(place(1)), &scope, "x")
            .unwrap_err();
        assert_eq!(error.key, "prompt.map");
        assert!(error.to_string().contains("`ticker`"), "{error}");
    }

    #[test]
    fn the_default_templates_name_part_and_length_and_end_with_the_content() {
        let prompt = Prompt::new(&PromptConfig::default(), None).unwrap();
        let scope = prompt.scope(&json!({}));
        let notes = prompt
            .render_with(Question::Notes(place(3)), &scope, "Revenue rose.")
            .unwrap();
        assert_eq!(notes.len(), 1);
        assert!(notes[0].content.contains("at most 150 words"));
        assert!(notes[0].content.ends_with("Part 3 of 7:\nRevenue rose."));
        let merged = prompt
            .render_with(Question::Merge(place(3)), &scope, "Revenue rose.")
            .unwrap();
        assert!(merged[0].content.ends_with("Notes:\nRevenue rose."));
    }

    #[test]
    fn the_hash_covers_the_templates_of_parts() {
        let with = |map: Option<&str>, reduce: Option<&str>| {
            Prompt::new(
                &PromptConfig {
                    map: map.map(str::to_owned),
                    reduce: reduce.map(str::to_owned),
                    ..PromptConfig::default()
                },
                None,
            )
            .unwrap()
            .template_hash()
            .to_owned()
        };
        assert_eq!(with(None, None), with(Some(DEFAULT_MAP), None));
        assert_ne!(with(None, None), with(Some("a"), None));
        assert_ne!(with(Some("a"), Some("b")), with(Some("b"), Some("a")));
    }

    /// A key that a topic does not have comes from the section, and a message tells whose template it is about.
    #[test]
    fn a_topic_has_templates_of_its_own_beside_the_general_ones() {
        let general = PromptConfig {
            system: Some("Be brief.".to_owned()),
            user: Some("Summarise: {{ content }}".to_owned()),
            map: Some("{{ missing }}".to_owned()),
            ..PromptConfig::default()
        };
        let own = PromptConfig {
            user: Some("News: {{ content }} {{ gone }}".to_owned()),
            ..PromptConfig::default()
        };
        let prompt = Prompt::for_topic("news", &own, &general, None).unwrap();
        let everywhere = Prompt::new(&general, None).unwrap();
        assert_ne!(prompt.template_hash(), everywhere.template_hash());
        let gone = Value::Object(Map::from_iter([("gone".to_owned(), "now".into())]));
        let messages = prompt
            .render_with(Question::Answer, &prompt.scope(&gone), "rates fell")
            .unwrap();
        assert_eq!(messages[0].content, "Be brief.");
        assert_eq!(messages[1].content, "News: rates fell now");
        let error = |question| {
            let empty = prompt.scope(&Value::Object(Map::new()));
            prompt.render_with(question, &empty, "").unwrap_err()
        };
        assert_eq!(
            error(Question::Answer).key,
            "input.topics `news`: prompt.user"
        );
        assert_eq!(error(Question::Notes(place(1))).key, "prompt.map");
    }

    #[test]
    fn a_topics_file_takes_the_place_of_a_general_template() {
        let general = PromptConfig {
            user: Some("Summarise: {{ content }}".to_owned()),
            ..PromptConfig::default()
        };
        let own = PromptConfig {
            user_file: Some("nowhere.txt".into()),
            ..PromptConfig::default()
        };
        let error = Prompt::for_topic("news", &own, &general, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "input.topics `news`: prompt.user_file = `nowhere.txt` cannot be read"
        );
    }
}
