//! Rendering the prompt of one document.
//!
//! Estimate before measuring: the work is two copies of the text, one into the template engine and one out of it, at some GB/s, and
//! a microsecond or two for the engine. 4 KiB: 5 µs; 1 MiB: 300 µs. Both are nothing beside a call of seconds; what matters is that
//! the time grows no faster than the text.
//!
//! Measured, the engine takes half a microsecond, and up to 64 KiB the copies some 20 GB/s. 1 MiB takes three times the estimate: the allocator
//! gets such memory from the system and gives it back each time, so each copy is 240 page faults of 2 µs.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench fails by panicking"
)]

use divan::counter::BytesCount;
use kafka_llm_processor::llm::{KafkaContext, Prompt, PromptConfig, Question, Scope};
use serde_json::Map;

fn main() {
    divan::main();
}

/// What a template sees beside the content, and the content.
fn document(prompt: &Prompt, bytes: usize) -> (Scope, String) {
    let sentence = "Revenue rose 12 % to €4.3 billion in the third quarter. ";
    let content = sentence.repeat(bytes / sentence.len() + 1);
    let mut fields = Map::new();
    fields.insert("company".to_owned(), "Example AG".into());
    let context = Prompt::context(fields, "document-1", KafkaContext::default());
    (prompt.scope(&context), content)
}

fn bench(bencher: divan::Bencher, prompt: &Prompt, bytes: usize) {
    let (scope, content) = document(prompt, bytes);
    let render = || prompt.render_with(Question::Answer, &scope, divan::black_box(&content));
    bencher
        .counter(BytesCount::new(bytes))
        .bench(|| render().unwrap());
}

const SIZES: [usize; 3] = [4 * 1024, 64 * 1024, 1024 * 1024];

#[divan::bench(args = SIZES)]
fn default_template(bencher: divan::Bencher, bytes: usize) {
    let prompt = Prompt::new(&PromptConfig::default(), None).unwrap();
    bench(bencher, &prompt, bytes);
}

#[divan::bench(args = SIZES)]
fn system_and_user_with_fields(bencher: divan::Bencher, bytes: usize) {
    let prompt = Prompt::new(
        &PromptConfig {
            system: Some("You read reports of {{ company }}.".to_owned()),
            user: Some(
                "{% if kafka.key %}{{ kafka.key }}{% endif %}\n{{ document_id }}\n{{ content }}"
                    .to_owned(),
            ),
            ..PromptConfig::default()
        },
        None,
    )
    .unwrap();
    bench(bencher, &prompt, bytes);
}
