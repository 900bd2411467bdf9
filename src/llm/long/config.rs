//! What becomes of documents that are longer than the model's context.

use serde::{Deserialize, Serialize};

/// The least context that is planned with: below it no prompt leaves room for a document and an answer.
const CONTEXT_TOKENS_MIN: u64 = 64;
/// The most tokens of a context or an answer that can be meant: beyond any model.
const TOKENS_MAX: u64 = 100_000_000;
/// The least room of a note: one sentence.
const MAP_TOKENS_MIN: u32 = 16;
/// The most calls that one document may be allowed: at a second each, more than a day.
const CALLS_MAX: u32 = 100_000;

/// What becomes of a document that does not fit the model's context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum LongPolicy {
    /// It is read part by part: notes are taken of each, merged, and answered from.
    #[default]
    MapReduce,
    /// A part of it is left out, and both the prompt and the result say so.
    Truncate,
    /// It goes to the dead letters.
    DeadLetter,
}

/// Which part of a document is kept when the rest is left out.
///
/// The third word is `ends`, not `middle`: `truncate_keep = middle` would read as if the middle were kept, and it is the middle that
/// is cut out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum TruncateKeep {
    /// The beginning is kept, the rest is left out.
    #[default]
    Head,
    /// The end is kept, what comes before is left out.
    Tail,
    /// Beginning and end are kept, half of the room each; the middle is left out.
    Ends,
}

/// Section `[long_documents]`: documents that do not fit the model's context beside the prompt and the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LongDocumentsConfig {
    /// What becomes of them. Default `map_reduce`.
    pub policy: LongPolicy,
    /// With `truncate`, which part is kept. Default `head`.
    pub truncate_keep: TruncateKeep,
    /// With `map_reduce`, the most tokens of the notes that one call takes; cut to a quarter of the context. Default an eighth of
    /// the context (256 of 2,048), at most `llm.max_tokens`.
    pub map_tokens: Option<u32>,
    /// With `map_reduce`, the most calls that one document may take: one that needs more is given up before the first. Default 2000.
    pub calls_max: u32,
    /// The model's context in tokens, prompt and answer together, instead of what the server tells. Default none.
    pub context_tokens: Option<u64>,
}

impl Default for LongDocumentsConfig {
    fn default() -> Self {
        Self {
            policy: LongPolicy::default(),
            truncate_keep: TruncateKeep::default(),
            map_tokens: None,
            calls_max: 2_000,
            context_tokens: None,
        }
    }
}

impl LongDocumentsConfig {
    /// What is wrong with the settings, one sentence each with key and value; empty when nothing is.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(tokens) = self.map_tokens
            && !(MAP_TOKENS_MIN..=u32::try_from(TOKENS_MAX).unwrap_or(u32::MAX)).contains(&tokens)
        {
            problems.push(format!(
                "long_documents.map_tokens = {tokens}: must lie between {MAP_TOKENS_MIN} and {TOKENS_MAX}"
            ));
        }
        if !(1..=CALLS_MAX).contains(&self.calls_max) {
            problems.push(format!(
                "long_documents.calls_max = {}: must lie between 1 and {CALLS_MAX}",
                self.calls_max
            ));
        }
        if let Some(tokens) = self.context_tokens
            && !(CONTEXT_TOKENS_MIN..=TOKENS_MAX).contains(&tokens)
        {
            problems.push(format!(
                "long_documents.context_tokens = {tokens}: must lie between {CONTEXT_TOKENS_MIN} and {TOKENS_MAX}"
            ));
        }
        problems
    }

    /// Tokens that a map or reduce call may answer with, in a context of `context_tokens` for answers of `answer_tokens`.
    pub(super) fn note_tokens(&self, context_tokens: u64, answer_tokens: u32) -> u32 {
        let most = |part: u64| u32::try_from(context_tokens / part).unwrap_or(u32::MAX);
        self.map_tokens
            .map_or_else(|| most(8).min(answer_tokens), |tokens| tokens.min(most(4)))
            .max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_take_notes_of_256_tokens_in_a_context_of_2048() {
        let config = LongDocumentsConfig::default();
        assert_eq!(config.validate(), Vec::<String>::new());
        assert_eq!(config.policy, LongPolicy::MapReduce);
        assert_eq!(config.note_tokens(2_048, 1_024), 256);
        assert_eq!(config.note_tokens(131_072, 1_024), 1_024);
    }

    #[test]
    fn set_notes_take_at_most_a_quarter_of_the_context() {
        let config = LongDocumentsConfig {
            map_tokens: Some(1_000),
            ..LongDocumentsConfig::default()
        };
        assert_eq!(config.note_tokens(2_048, 100), 512);
        assert_eq!(config.note_tokens(8_192, 100), 1_000);
    }

    #[test]
    fn a_problem_names_key_and_value() {
        let problems = LongDocumentsConfig {
            map_tokens: Some(3),
            calls_max: 0,
            context_tokens: Some(63),
            ..LongDocumentsConfig::default()
        }
        .validate();
        for (problem, expected) in problems.iter().zip([
            "long_documents.map_tokens = 3:",
            "long_documents.calls_max = 0:",
            "long_documents.context_tokens = 63:",
        ]) {
            assert!(problem.starts_with(expected), "{problem}");
        }
        assert_eq!(problems.len(), 3);
    }

    #[test]
    fn a_kept_middle_cannot_be_asked_for() {
        let read = |text: &str| serde_json::from_str::<TruncateKeep>(text);
        assert_eq!(read("\"ends\"").unwrap(), TruncateKeep::Ends);
        assert!(read("\"middle\"").is_err());
    }
}
