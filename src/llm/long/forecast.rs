//! What would become of a document, without asking about it.
//!
//! The plan is the one that the answer would follow; what cannot be known before it, such as how long notes become, is taken for as much as it
//! may be.

use serde::Serialize;

use super::meter::Meter;
use super::{
    Ask, Document, LongDocumentsConfig, LongPolicy, ROOM_TOKENS_MIN, Room, TokenEstimate,
    map_reduce, too_long,
};
use crate::llm::{CompleteError, Message, Question};

/// How a document would be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Treatment {
    /// Whole, in one call.
    Whole,
    /// Part by part, as it is longer than the context.
    MapReduce,
    /// Without what does not fit the context.
    Truncate,
}

/// Calls, and the most tokens that they can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Load {
    /// Calls.
    pub calls: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all answers.
    pub completion_tokens: u64,
}

impl Load {
    /// Adds calls about `content_tokens` in all, each with `overhead` tokens beside them and with an answer of `answer_tokens`.
    pub(super) const fn add(
        &mut self,
        calls: u64,
        content_tokens: u64,
        overhead: u64,
        answer_tokens: u64,
    ) {
        self.merge(Self {
            calls,
            prompt_tokens: content_tokens.saturating_add(calls.saturating_mul(overhead)),
            completion_tokens: calls.saturating_mul(answer_tokens),
        });
    }

    /// Adds another one.
    pub const fn merge(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self
            .completion_tokens
            .saturating_add(other.completion_tokens);
    }
}

/// How a document would be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How it would be read.
    pub treatment: Treatment,
    /// What that would take at the most.
    pub load: Load,
}

/// What would become of a document.
#[derive(Debug)]
pub struct Forecast {
    /// What would be asked about it in one call.
    pub messages: Vec<Message>,
    /// Tokens of that.
    pub prompt_tokens: u64,
    /// Whether the server has counted them; an estimate otherwise.
    pub counted: bool,
    /// Whether it is longer than the context beside its answer.
    pub is_long: bool,
    /// How it would be answered, or why it would be given up.
    pub plan: Result<Plan, CompleteError>,
}

/// Tells what would become of a document. An answer has at most `answer_tokens` tokens. Of `ask` nothing but counts and the context is asked.
///
/// # Errors
/// When its prompt cannot be rendered.
///
/// # Cancel safety
/// Safe.
pub(in crate::llm) async fn forecast<A: Ask + ?Sized>(
    ask: &A,
    document: &Document<'_>,
    answer_tokens: u32,
    tokens: &TokenEstimate,
    config: &LongDocumentsConfig,
) -> Result<Forecast, CompleteError> {
    let meter = Meter::new(ask, tokens);
    let messages = document.render(Question::Answer, document.content)?;
    let counted = meter.count(&messages).await;
    let prompt_tokens = counted.unwrap_or_else(|| tokens.estimate_messages(&messages));
    let room = ask.context(false).await;
    let room = room.map(|context| Room::new(context, answer_tokens));
    let too_small = room.filter(|room| prompt_tokens > room.prompt(room.answer));
    let plan = match too_small {
        Some(room) => long_plan(&meter, document, room, config).await,
        None => Ok(Plan {
            treatment: Treatment::Whole,
            load: Load {
                calls: 1,
                prompt_tokens,
                completion_tokens: answer_tokens.into(),
            },
        }),
    };
    Ok(Forecast {
        messages,
        prompt_tokens,
        counted: counted.is_some(),
        is_long: too_small.is_some(),
        plan,
    })
}

async fn long_plan<A: Ask + ?Sized>(
    meter: &Meter<'_, A>,
    document: &Document<'_>,
    room: Room,
    config: &LongDocumentsConfig,
) -> Result<Plan, CompleteError> {
    match config.policy {
        LongPolicy::MapReduce => Ok(Plan {
            treatment: Treatment::MapReduce,
            load: map_reduce::forecast(meter, document, room, config).await?,
        }),
        LongPolicy::Truncate => {
            let overhead = document.render(Question::Answer, "")?;
            let overhead = meter.tokens_of(&overhead).await;
            let prompt_tokens = room.prompt(room.answer);
            if prompt_tokens.saturating_sub(overhead) < ROOM_TOKENS_MIN {
                return Err(too_long(room.too_small(overhead)));
            }
            let load = Load {
                calls: 1,
                prompt_tokens,
                completion_tokens: room.answer.into(),
            };
            Ok(Plan {
                treatment: Treatment::Truncate,
                load,
            })
        }
        LongPolicy::DeadLetter => Err(too_long(room.exceeded())),
    }
}
