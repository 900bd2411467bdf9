//! What drift is looked for in, of each document that ends.

use std::sync::Arc;

use jiff::Timestamp;

use crate::drift::{Answer, Ending, FinishReason, Generation, Monitor, Sample, content};
use crate::llm::Completion;
use crate::types::DeadLetterReason;

/// What a document was asked with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) settings: &'a str,
    pub(super) template: &'a str,
    pub(super) schema: Option<&'a str>,
}

/// `None` where nobody looks, and for an answer that was given before: it says nothing new of the model.
pub(super) fn answer(
    drift: Option<&Monitor>,
    asked: Asked<'_>,
    completion: &Completion,
    at: Timestamp,
) -> Option<Box<Sample>> {
    let drift = drift.filter(|_| !completion.cached)?;
    let (characters, refused, fields) =
        content(&completion.text, completion.data.as_ref(), drift.fields());
    let answer = Answer {
        generation: Arc::new(Generation {
            model: completion.model.clone(),
            server: completion.system_fingerprint.clone(),
            template: asked.template.to_owned(),
            schema: asked.schema.map(str::to_owned),
            settings: asked.settings.to_owned(),
        }),
        characters,
        completion_tokens: completion.usage.completion_tokens,
        calls: completion.usage.calls,
        llm: completion.llm_time,
        refused,
        finish_reason: FinishReason::of(&completion.finish_reason),
        fields,
    };
    Some(Box::new(Sample {
        at,
        ending: Ending::Answer(Box::new(answer)),
    }))
}

/// `None` where nobody looks.
pub(super) fn dead_letter(
    drift: Option<&Monitor>,
    reason: DeadLetterReason,
    at: Timestamp,
) -> Option<Box<Sample>> {
    drift.map(|_| {
        Box::new(Sample {
            at,
            ending: Ending::DeadLetter(reason),
        })
    })
}
