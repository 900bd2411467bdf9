//! What is looked at of one document that ended. Pure.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::types::DeadLetterReason;

use super::fields::Fields;

/// What decides an answer beside the document. Another one of any of these is another generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Generation {
    /// The model that the server says answered.
    pub model: String,
    /// The server's build (`system_fingerprint`), when told.
    pub server: Option<String>,
    /// Hash of the prompt template.
    pub template: String,
    /// Hash of the JSON Schema, when there is one.
    pub schema: Option<String>,
    /// Hash of all settings that decide an answer: `generation` of a result.
    pub settings: String,
}

impl Generation {
    /// What differs, in words.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let all = [
            ("model", self.model == other.model),
            ("server version", self.server == other.server),
            ("prompt template", self.template == other.template),
            ("schema", self.schema == other.schema),
            ("settings", self.settings == other.settings),
        ];
        let differing = all.into_iter().filter(|(_, is_same)| !is_same);
        differing.map(|(what, _)| what).collect()
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = self.server.as_deref().unwrap_or("no fingerprint");
        let short = |hash: &str| hash.chars().take(8).collect::<String>();
        write!(f, "{} ({server}", self.model)?;
        write!(f, ", template {}", short(&self.template))?;
        if let Some(schema) = &self.schema {
            write!(f, ", schema {}", short(schema))?;
        }
        write!(f, ", settings {})", short(&self.settings))
    }
}

/// Why the model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// It had finished.
    Stop,
    /// It had come to `llm.max_tokens`.
    Length,
    /// Anything else.
    Other,
}

impl FinishReason {
    /// Of vLLM's word for it.
    #[must_use]
    pub fn of(word: &str) -> Self {
        match word {
            "stop" => Self::Stop,
            "length" => Self::Length,
            _ => Self::Other,
        }
    }
}

/// A document that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Timestamp,
    /// How.
    pub ending: Ending,
}

/// How a document ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With an answer.
    Answer(Box<Answer>),
    /// It was given up.
    DeadLetter(DeadLetterReason),
}

/// What is known of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Who gave it, to what.
    pub generation: Arc<Generation>,
    /// Its length.
    pub characters: u64,
    /// Its tokens, over all calls; 0 when the server does not tell.
    pub completion_tokens: u64,
    /// Calls that it took.
    pub calls: u32,
    /// Time of the last one.
    pub llm: Duration,
    /// Whether it begins like a refusal.
    pub refused: bool,
    /// Why the model stopped.
    pub finish_reason: FinishReason,
    /// Of each enumerated field, which value it has, by number.
    pub fields: Vec<u8>,
}

impl Answer {
    /// Microseconds of one output token; `None` where the time of one call cannot be set against its tokens.
    #[must_use]
    pub fn token_micros(&self) -> Option<u64> {
        let micros = u64::try_from(self.llm.as_micros()).unwrap_or(u64::MAX);
        (self.calls == 1).then(|| micros.checked_div(self.completion_tokens))?
    }
}

/// Looks at an answer's content: its length, whether it begins like a refusal, and its enumerated fields.
#[must_use]
pub fn content(text: &str, data: Option<&Value>, fields: &Fields) -> (u64, bool, Vec<u8>) {
    let characters = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
    let refused = match data {
        // A refusal in JSON stands in one of its texts.
        Some(Value::Object(data)) => {
            let texts = data.values().filter_map(Value::as_str);
            texts.into_iter().any(is_refusal)
        }
        Some(_) => false,
        None => is_refusal(text),
    };
    let fields = data.map_or_else(Vec::new, |data| fields.read(data));
    (characters, refused, fields)
}

/// How refusals begin, in English. An answer that comes to one later counts as an answer.
const REFUSALS: [&str; 18] = [
    "i'm sorry",
    "i am sorry",
    "sorry, ",
    "i apologize",
    "i apologise",
    "i cannot",
    "i can't",
    "i can not",
    "i could not",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "i am not able",
    "i won't",
    "i must decline",
    "as an ai",
    "as a language model",
    "unfortunately, i ",
];

/// Enough for the longest, and for what may stand before it.
const LOOKED_AT_CHARACTERS: usize = 48;

/// Whether a text begins like a refusal.
#[must_use]
pub fn is_refusal(text: &str) -> bool {
    let begins = text.trim_start_matches(|c: char| !c.is_alphabetic());
    let looked_at = begins.chars().take(LOOKED_AT_CHARACTERS);
    let plain: String = looked_at
        .map(|character| match character {
            '’' => '\'',
            character => character.to_ascii_lowercase(),
        })
        .collect();
    REFUSALS.iter().any(|refusal| plain.starts_with(refusal))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn refusals_are_told_by_how_they_begin() {
        for refusal in [
            "I'm sorry, but I can't help with that.",
            "I’m sorry, but …",
            "\n**I cannot** provide a summary.",
            "As an AI language model, I do not",
            "Unfortunately, I am not able to read this.",
        ] {
            assert!(is_refusal(refusal), "{refusal}");
        }
        for answer in [
            "Revenue rose. I cannot be reached by phone, the chairman said.",
            "Apologies were made by the board.",
            "Ireland's tax authority",
            "",
            "1. 2. 3.",
        ] {
            assert!(!is_refusal(answer), "{answer}");
        }
    }

    #[test]
    fn a_refusal_in_json_stands_in_a_text() {
        let look = |data: Value| content("{…}", Some(&data), &Fields::default()).1;
        assert!(look(
            json!({"tone": "neutral", "summary": "I cannot read this."})
        ));
        assert!(!look(
            json!({"tone": "neutral", "summary": "Revenue rose."})
        ));
        assert!(!look(json!(["I cannot read this."])));
    }

    #[test]
    fn a_generation_tells_what_differs() {
        let first = Generation {
            model: "m".to_owned(),
            server: Some("vllm-0.32.0".to_owned()),
            template: "1f96418e77".to_owned(),
            schema: None,
            settings: "31e754e2a1e9b082".to_owned(),
        };
        let second = Generation {
            server: Some("vllm-0.33.0".to_owned()),
            ..first.clone()
        };
        assert_eq!(first.differences(&second), ["server version"]);
        assert_eq!(
            first.to_string(),
            "m (vllm-0.32.0, template 1f96418e, settings 31e754e2)"
        );
    }

    #[test]
    fn time_is_set_against_tokens_where_both_are_of_one_call() {
        let answer = Answer {
            generation: Arc::new(Generation {
                model: String::new(),
                server: None,
                template: String::new(),
                schema: None,
                settings: String::new(),
            }),
            characters: 1,
            completion_tokens: 50,
            calls: 1,
            llm: Duration::from_millis(500),
            refused: false,
            finish_reason: FinishReason::Stop,
            fields: Vec::new(),
        };
        assert_eq!(answer.token_micros(), Some(10_000));
        let silent = Answer {
            completion_tokens: 0,
            ..answer.clone()
        };
        assert_eq!(silent.token_micros(), None);
        let several = Answer { calls: 2, ..answer };
        assert_eq!(several.token_micros(), None);
    }
}
