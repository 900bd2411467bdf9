//! Counts prompts: by the server as long as it can tell, else by the estimate.

use std::sync::atomic::{AtomicBool, Ordering};

use super::tokens::Scale;
use super::{Ask, AskError, Step, TokenEstimate};
use crate::llm::{Completion, Message};

/// Estimates further from the limit than this are believed, in percent of it.
const SURELY_FITS: u64 = 70;
const SURELY_TOO_LONG: u64 = 130;
/// What an estimate is taken longer by where a document is planned with it, in percent: of ten texts one is above the estimate, and
/// a refused call costs more than a shorter part.
const ESTIMATED_MARGIN: u64 = 10;

/// Whether a prompt fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Fits,
    TooLong,
}

/// The server's and the estimate's counts, for one document.
#[derive(Debug)]
pub(super) struct Meter<'a, A: ?Sized> {
    ask: &'a A,
    tokens: &'a TokenEstimate,
    /// Cleared by the first count that the server does not give.
    counts: AtomicBool,
}

impl<'a, A: Ask + ?Sized> Meter<'a, A> {
    pub(super) const fn new(ask: &'a A, tokens: &'a TokenEstimate) -> Self {
        Self {
            ask,
            tokens,
            counts: AtomicBool::new(true),
        }
    }

    /// Whether a prompt has at most `limit` tokens. The server is asked when the estimate is near the limit, or when the prompt must
    /// `surely` be too long; then what it does not count is thought to fit.
    pub(super) async fn fit(&self, messages: &[Message], limit: u64, surely: bool) -> Fit {
        let estimated = self.tokens.estimate_messages(messages);
        let part = |percent: u64| limit.saturating_mul(percent) / 100;
        let believed = if estimated <= part(SURELY_FITS) {
            true
        } else if estimated > part(SURELY_TOO_LONG) && !surely {
            false
        } else {
            match self.count(messages).await {
                Some(counted) => counted <= limit,
                None => surely || estimated <= limit,
            }
        };
        if believed { Fit::Fits } else { Fit::TooLong }
    }

    /// The server's count; `None` from the first time on that it gives none.
    pub(super) async fn count(&self, messages: &[Message]) -> Option<u64> {
        if !self.counts.load(Ordering::Relaxed) {
            return None;
        }
        let counted = self.ask.count(messages).await;
        match counted {
            Some(tokens) => self.tokens.learn(messages, tokens),
            None => self.counts.store(false, Ordering::Relaxed),
        }
        counted
    }

    /// The server's count, or else the estimate with its margin.
    pub(super) async fn tokens_of(&self, messages: &[Message]) -> u64 {
        match self.count(messages).await {
            Some(tokens) => tokens,
            None => self.estimated().messages(messages),
        }
    }

    /// What a text is thought to have, with a margin.
    pub(super) fn estimated(&self) -> Scale {
        self.tokens.scale().with_margin(ESTIMATED_MARGIN)
    }

    /// As [`Ask::ask`].
    pub(super) async fn ask(
        &self,
        messages: Vec<Message>,
        answer_tokens: u32,
        step: Step,
    ) -> Result<Completion, AskError> {
        self.ask.ask(messages, answer_tokens, step).await
    }

    /// As [`Ask::width`], and at least 1.
    pub(super) fn width(&self) -> usize {
        self.ask.width().max(1)
    }
}
