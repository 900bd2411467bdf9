//! Documents that are longer than the model's context: read part by part, shortened, or given up, and never silently.
//!
//! 1. A prompt fits when it leaves room for the answer: vLLM cuts `max_tokens` to what is left of the context without a word. An answer
//!    that was cut there all the same, as an estimate was wrong, is none.
//! 2. What an estimate says is too long is treated as long; given up for its length is only what was counted, or what the server refused.
//! 3. A shortened document says so in its prompt and in its result; notes that had to be cut are counted.
//!
//! It knows no server: calls, counts and limits come through [`Ask`].

mod config;
mod forecast;
pub(super) mod fuzzing;
mod headings;
mod map_reduce;
mod meter;
mod split;
mod tokens;
mod truncate;

pub use config::{LongDocumentsConfig, LongPolicy, TruncateKeep};
pub(super) use forecast::forecast;
pub use forecast::{Forecast, Load, Plan, Treatment};
pub(super) use tokens::TokenEstimate;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use self::meter::{Fit, Meter};
use self::tokens::{Scale, cost, cost_of};
use super::{CompleteError, Completion, GiveUp, Message, Prompt, Question, Scope};
use crate::types::DeadLetterReason;

/// How often a shortened document is shortened again before it is given up: a refused one loses a quarter each time, so a third of the
/// room is left after the last.
const SHORTEN_TRIES_MAX: u32 = 5;
/// The least room for a document's text or notes, in tokens: some sentences. Below it a context is of no use with its prompt.
const ROOM_TOKENS_MIN: u64 = 32;

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The document's answer.
    Answer,
    /// Notes of a part.
    Map {
        /// Which one, from 1.
        part: usize,
        /// Of how many.
        parts: usize,
    },
    /// Notes merged.
    Reduce {
        /// How often notes were merged before, and this once; from 1.
        level: u32,
        /// Which call of this level, from 1.
        part: usize,
        /// Of how many.
        parts: usize,
    },
}

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum AskError {
    /// The server says that the prompt is longer than the context, or has cut the answer there; as the document would be given up for it.
    TooLong(GiveUp),
    /// For good, and for the whole document.
    Failed(CompleteError),
}

/// Asks the model's server. The one trait between this module and the client.
#[async_trait]
pub(super) trait Ask: Sync {
    /// One call under all limits, retries included. The answer has at most `answer_tokens` tokens, and one that was cut there is an
    /// answer. The usage is this call's alone.
    ///
    /// # Cancel safety
    /// Dropping it ends the call on the server.
    async fn ask(
        &self,
        messages: Vec<Message>,
        answer_tokens: u32,
        step: Step,
    ) -> Result<Completion, AskError>;

    /// Tokens of these messages as the server counts them, the chat template included; `None` when it cannot tell.
    async fn count(&self, messages: &[Message]) -> Option<u64>;

    /// The model's context in tokens, prompt and answer together; `None` when nobody knows it. `surely` asks the server once more.
    async fn context(&self, surely: bool) -> Option<u64>;

    /// How many calls may usefully be on their way at once; at least 1.
    fn width(&self) -> usize;
}

/// A document and how it is put into words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Document<'a> {
    /// The templates.
    pub(super) prompt: &'a Prompt,
    /// What templates see beside the content.
    pub(super) scope: &'a Scope,
    /// The text.
    pub(super) content: &'a str,
}

impl Document<'_> {
    /// The messages that ask `question` about `content`.
    fn render(&self, question: Question, content: &str) -> Result<Vec<Message>, CompleteError> {
        self.prompt
            .render_with(question, self.scope, content)
            .map_err(|error| give_up(DeadLetterReason::PromptFailed, error.to_string()))
    }
}

/// A context that is known, shared out between prompt and answer.
#[derive(Debug, Clone, Copy)]
struct Room {
    context: u64,
    /// At most half of the context: an answer's bound is seldom reached, and a document needs the rest.
    answer: u32,
}

impl Room {
    fn new(context: u64, answer_tokens: u32) -> Self {
        Self {
            context,
            answer: answer_tokens
                .min(u32::try_from(context / 2).unwrap_or(u32::MAX))
                .max(1),
        }
    }

    /// Tokens that a prompt may have beside an answer of `answer_tokens`.
    fn prompt(self, answer_tokens: u32) -> u64 {
        self.context.saturating_sub(u64::from(answer_tokens))
    }

    /// Why a document is given up that is longer.
    fn exceeded(self) -> String {
        format!(
            "the prompt does not fit the model's context of {} tokens beside an answer of {}, and long_documents.policy is dead_letter",
            self.context, self.answer
        )
    }

    /// Why a document is given up of which no part fits beside `overhead` tokens.
    fn too_small(self, overhead: u64) -> String {
        format!(
            "no part of the document fits the model's context of {} tokens beside prompt.user, which takes {overhead}, and an answer of {}",
            self.context, self.answer
        )
    }
}

/// What was done with a document that was too long, for its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "policy")]
pub enum LongSummary {
    /// It was read part by part.
    MapReduce {
        /// Parts that notes were taken of.
        parts: usize,
        /// How often notes were merged before the answer.
        levels: u32,
        /// Calls that were answered, the last included.
        calls: u32,
        /// Notes that had to be cut, as merging did not make them shorter.
        notes_cut: u32,
    },
    /// A part of it was left out.
    Truncate {
        /// What was kept.
        keep: TruncateKeep,
        /// Characters that were left out.
        left_out_characters: u64,
    },
}

/// The answer to a document of any length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LongAnswer {
    /// The last call's answer; usage and attempts are those of all calls.
    pub(super) completion: Completion,
    /// What was done to the document; `None` when it was read whole in one call.
    pub(super) summary: Option<LongSummary>,
}

/// Whether an answer was cut because its prompt, as the server has counted it, left it less room than it is to have.
pub(super) fn is_cut_by_context(
    answer: &Completion,
    context_tokens: Option<u64>,
    answer_tokens: u32,
) -> bool {
    let usage = answer.usage;
    let prompt_tokens = usage.prompt_tokens / u64::from(usage.calls.max(1));
    answer.finish_reason == "length"
        && context_tokens.is_some_and(|context| {
            let room = Room::new(context, answer_tokens);
            prompt_tokens > room.prompt(room.answer)
        })
}

/// Answers a document: in one call when it fits, else as `config` says. An answer has at most `answer_tokens` tokens.
///
/// # Errors
/// The first call that failed for good, and [`DeadLetterReason::ContextLengthExceeded`] for a document that cannot be done.
///
/// # Cancel safety
/// Dropping it ends all its calls; nothing of it runs on.
pub(super) async fn answer<A: Ask + ?Sized>(
    ask: &A,
    document: &Document<'_>,
    answer_tokens: u32,
    tokens: &TokenEstimate,
    config: &LongDocumentsConfig,
) -> Result<LongAnswer, CompleteError> {
    let meter = Meter::new(ask, tokens);
    let room_in = |context: Option<u64>| context.map(|context| Room::new(context, answer_tokens));
    let room = room_in(ask.context(false).await);
    let messages = document.render(Question::Answer, document.content)?;
    let fit = match room {
        Some(room) => {
            let surely = config.policy == LongPolicy::DeadLetter;
            meter.fit(&messages, room.prompt(room.answer), surely).await
        }
        None => Fit::Fits,
    };
    let mut refused = None;
    if fit == Fit::Fits {
        match ask.ask(messages, answer_tokens, Step::Answer).await {
            Ok(completion) => {
                return Ok(LongAnswer {
                    completion,
                    summary: None,
                });
            }
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::TooLong(given_up)) => refused = Some(given_up),
        }
    } else {
        drop(messages);
    }
    // The server may have told meanwhile, or does when it is asked now.
    let room = match room {
        Some(room) => Some(room),
        None => room_in(ask.context(true).await),
    };
    let Some(room) = room else {
        return Err(refused_or_counted(
            refused,
            "the server refuses the prompt as longer than its context, whose size it does not tell: set long_documents.context_tokens"
                .to_owned(),
        ));
    };
    let answered = match config.policy {
        LongPolicy::MapReduce => map_reduce::run(&meter, document, room, config).await,
        LongPolicy::Truncate => shortened(&meter, document, room, config.truncate_keep).await,
        LongPolicy::DeadLetter => {
            return Err(refused_or_counted(refused, room.exceeded()));
        }
    };
    let mut answer = answered?;
    answer.completion.attempts += refused.map_or(0, |refused| refused.attempts);
    Ok(answer)
}

/// Answers from a part of the document. Shortened anew while a count or the server says that it is still too long.
async fn shortened<A: Ask + ?Sized>(
    meter: &Meter<'_, A>,
    document: &Document<'_>,
    room: Room,
    keep: TruncateKeep,
) -> Result<LongAnswer, CompleteError> {
    let prompt_tokens = room.prompt(room.answer);
    let overhead = meter
        .tokens_of(&document.render(Question::Answer, "")?)
        .await;
    let mut budget = prompt_tokens.saturating_sub(overhead);
    let mut scale = meter.estimated();
    let mut refused_attempts = 0;
    for attempt in 0..SHORTEN_TRIES_MAX {
        if budget < ROOM_TOKENS_MIN {
            break;
        }
        let part = truncate::truncate(document.content, keep, scale.units(budget), cost);
        let messages = document.render(Question::Answer, &part.text)?;
        if let Some(counted) = meter.count(&messages).await {
            let is_too_long = counted > prompt_tokens;
            let wastes_room = counted < prompt_tokens * 9 / 10 && part.left_out > 0;
            // The count of this very text is the best measure for the next cut.
            if is_too_long || (wastes_room && attempt == 0) {
                scale = Scale::measured(cost_of(&part.text), counted.saturating_sub(overhead))
                    .with_margin(2 + u64::from(attempt));
                continue;
            }
        }
        match meter.ask(messages, room.answer, Step::Answer).await {
            Ok(mut completion) => {
                completion.attempts += refused_attempts;
                let left_out_characters = part.left_out;
                let summary = (left_out_characters > 0).then_some(LongSummary::Truncate {
                    keep,
                    left_out_characters,
                });
                return Ok(LongAnswer {
                    completion,
                    summary,
                });
            }
            Err(AskError::Failed(error)) => return Err(error),
            Err(AskError::TooLong(refused)) => {
                refused_attempts += refused.attempts;
                budget = budget * 3 / 4;
            }
        }
    }
    Err(too_long(room.too_small(overhead)))
}

fn give_up(reason: DeadLetterReason, detail: String) -> CompleteError {
    CompleteError::DeadLetter(GiveUp {
        reason,
        detail,
        attempts: 0,
        http_status: None,
        request_id: None,
        answer: None,
    })
}

fn too_long(detail: String) -> CompleteError {
    give_up(DeadLetterReason::ContextLengthExceeded, detail)
}

/// As [`too_long`], with the attempt, its status and the server's words where the server has refused the document.
fn refused_or_counted(refused: Option<GiveUp>, detail: String) -> CompleteError {
    match refused {
        Some(refused) => CompleteError::DeadLetter(GiveUp {
            detail: format!("{detail}: {}", refused.detail),
            ..refused
        }),
        None => too_long(detail),
    }
}

#[cfg(test)]
mod tests;
