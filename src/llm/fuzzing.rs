//! What the crate's `fuzzing` hands to fuzzers.

use reqwest::header::{HeaderMap, HeaderValue};

use super::long::fuzzing::fuzzing as long;
use super::schema::AnswerSchema;
use super::{KafkaContext, Prompt, PromptConfig, Question, api};

/// The lists and counts of a model server, and the load in a header.
pub(crate) fn lists(bytes: &[u8]) {
    drop(api::read_models(bytes));
    api::read_count(bytes);
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        headers.insert("endpoint-load-metrics", value);
        api::read_waiting(&headers);
    }
}

/// Answers to the schema that ships.
pub(crate) fn structured_answers(bytes: &[u8]) {
    let financial = include_str!("schema/financial.json");
    if let Ok(schema) = AnswerSchema::parse(financial) {
        drop(schema.read(&String::from_utf8_lossy(bytes)));
    }
}

/// A schema, a zero byte and an answer to it.
pub(crate) fn schemas(bytes: &[u8]) {
    let (schema, answer) = halves(bytes);
    if let Ok(schema) = AnswerSchema::parse(&schema) {
        drop(schema.read(&answer));
    }
}

/// A template, a zero byte and the fields of a document. The template is only parsed: who writes one may have it make a gigabyte of nothing.
pub(crate) fn templates(bytes: &[u8]) {
    let (template, fields) = halves(bytes);
    drop(Prompt::new(&with_template(&template), None));
    let fields = serde_json::from_str(&fields).unwrap_or_default();
    let context = Prompt::context(fields, "id", KafkaContext::default());
    for template in [
        "{% for x in list %}{% for y in x %}{{ y|upper|tojson }}{% endfor %}{% endfor %}",
        "{{ a.b }}{{ list|sort|join(',') }}{{ list[1:]|reverse|first }}{{ a|items|length }}",
        "{{ content }}{{ kafka.topic }}{{ a + 1 }}{{ a ~ list }}{{ a // 2 }}{{ a|round }}{{ a|title }}",
    ] {
        if let Ok(prompt) = Prompt::new(&with_template(template), None) {
            let scope = prompt.scope(&context);
            drop(prompt.render_with(Question::Answer, &scope, "text"));
        }
    }
}

fn with_template(template: &str) -> PromptConfig {
    PromptConfig {
        user: Some(template.to_owned()),
        ..PromptConfig::default()
    }
}

/// A budget in two bytes, and a text that is longer.
pub(crate) fn long_documents(bytes: &[u8]) {
    let [high, low, text @ ..] = bytes else {
        return;
    };
    let budget = u64::from(u16::from_be_bytes([*high, *low]));
    long(&String::from_utf8_lossy(text), budget);
}

fn halves(bytes: &[u8]) -> (String, String) {
    let mut halves = bytes.splitn(2, |byte| *byte == 0);
    let mut half = || String::from_utf8_lossy(halves.next().unwrap_or_default()).into_owned();
    (half(), half())
}
