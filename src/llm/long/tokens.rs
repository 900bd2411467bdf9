//! How many tokens a text has, as far as that can be told without the model's tokenizer: an estimate that is measured.
//!
//! Each kind of character has a cost, chosen from the high end of what tokenizers in use make of it; one factor over all of them is
//! learned from the prompts that the server has counted. The factor follows an upper quantile of what was seen, not the mean: a text
//! that is thought longer than it is costs a call, one that is thought shorter costs a refused one.
//!
//! 1. The estimate of a text is that of its characters, added up: two texts joined cost what both cost.
//! 2. One count moves the factor by at most [`STEP_UP`], and the factor stays within [`FACTOR_MIN`] and [`FACTOR_MAX`].

use std::sync::atomic::{AtomicU64, Ordering};

use crate::llm::Message;

/// Cost units of one token before anything is learned.
pub(super) const UNITS_PER_TOKEN: u64 = 1_000;
/// Factors are in parts per million.
const ONE: u64 = 1_000_000;
/// Bounds of the factor: half of the prior is better than any vocabulary in use, three times it is a byte-wise tokenizer on prose.
const FACTOR_MIN: u64 = ONE / 2;
const FACTOR_MAX: u64 = ONE * 3;
/// How far one count that was above the estimate moves the factor, at most, and how far one below it does: nine to one, so that the
/// factor rests where nine counts of ten are not above the estimate.
const STEP_UP: u64 = ONE * 9 / 100;
const STEP_DOWN: u64 = ONE / 100;
/// The least prompt that is learned from, in cost units: of a shorter one the chat template is too large a part.
const LEARN_UNITS_MIN: u64 = 50 * UNITS_PER_TOKEN;
/// Tokens that the chat template adds to each message, at the high end.
const TEMPLATE_TOKENS: u64 = 12;

/// Cost of one character in thousandths of a token.
pub(super) const fn cost(character: char) -> u64 {
    match character {
        // Words of four to five letters, with the space that belongs to their first token.
        'a'..='z' => 250,
        'A'..='Z' => 400,
        ' ' => 150,
        // Some vocabularies have groups of up to three digits, others single ones.
        '\u{0}'..='\u{7f}' => 1_000,
        // Two bytes of UTF-8: accents, Greek, Cyrillic.
        '\u{80}'..='\u{7ff}' => 800,
        // Three bytes: CJK among them, often one token, up to three when the vocabulary lacks it.
        '\u{800}'..='\u{ffff}' => 1_500,
        _ => 3_000,
    }
}

/// [`cost`] of the character that begins with this byte of UTF-8; the bytes that follow cost nothing. Without the decoding the compiler takes
/// many bytes at a time, and each prompt is counted twice.
const fn cost_at(byte: u8) -> u64 {
    match byte {
        b'a'..=b'z' => 250,
        b'A'..=b'Z' => 400,
        b' ' => 150,
        0x00..=0x7f => 1_000,
        0x80..=0xbf => 0,
        0xc0..=0xdf => 800,
        0xe0..=0xef => 1_500,
        _ => 3_000,
    }
}

/// Cost of a text. One pass, no allocation.
pub(super) fn cost_of(text: &str) -> u64 {
    text.bytes().map(cost_at).sum()
}

/// The process's knowledge of how the model's tokenizer counts. Shared by all calls; reading and learning are single atomic steps.
#[derive(Debug)]
pub(in crate::llm) struct TokenEstimate {
    factor: AtomicU64,
}

impl Default for TokenEstimate {
    fn default() -> Self {
        Self {
            factor: AtomicU64::new(ONE),
        }
    }
}

impl TokenEstimate {
    /// Tokens that a prompt is thought to have, the chat template included.
    pub(in crate::llm) fn estimate_messages(&self, messages: &[Message]) -> u64 {
        self.scale().messages(messages)
    }

    /// Takes in that the server counted `tokens` for a prompt: `usage.prompt_tokens` of an answer, or a count that was asked for.
    /// Counts of short prompts, and 0, say nothing.
    pub(in crate::llm) fn learn(&self, messages: &[Message], tokens: u64) {
        let units: u64 = messages
            .iter()
            .map(|message| cost_of(&message.content))
            .sum();
        if units < LEARN_UNITS_MIN || tokens == 0 {
            return;
        }
        let seen = factor_of(units, tokens);
        // The closure always gives a value, so the update cannot fail.
        let _previous = self
            .factor
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |factor| {
                let next = if seen > factor {
                    seen.min(factor + factor * STEP_UP / ONE)
                } else {
                    seen.max(factor - factor * STEP_DOWN / ONE)
                };
                Some(next.clamp(FACTOR_MIN, FACTOR_MAX))
            });
    }

    /// What is known now.
    pub(super) fn scale(&self) -> Scale {
        Scale {
            factor: self.factor.load(Ordering::Relaxed),
        }
    }
}

/// A fixed relation of cost to tokens, so that the plan of one document does not move under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scale {
    /// Tokens per [`UNITS_PER_TOKEN`], in parts per million; at least 1.
    factor: u64,
}

impl Scale {
    /// The relation that a counted text shows: `units` of cost were `tokens`.
    pub(super) fn measured(units: u64, tokens: u64) -> Self {
        Self {
            factor: factor_of(units, tokens).max(1),
        }
    }

    /// The one that makes more tokens of a text.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            factor: self.factor.max(other.factor),
        }
    }

    /// With `percent` more tokens to a text.
    pub(super) fn with_margin(self, percent: u64) -> Self {
        Self {
            factor: self
                .factor
                .saturating_add(self.factor.saturating_mul(percent) / 100),
        }
    }

    /// Tokens of a text that costs `units`, rounded up.
    pub(super) fn tokens(self, units: u64) -> u64 {
        let tokens = u128::from(units) * u128::from(self.factor);
        saturated(tokens.div_ceil(u128::from(UNITS_PER_TOKEN * ONE)))
    }

    /// The most that a text may cost to have at most `tokens`.
    pub(super) fn units(self, tokens: u64) -> u64 {
        saturated(u128::from(tokens) * u128::from(UNITS_PER_TOKEN * ONE) / u128::from(self.factor))
    }

    /// Tokens of a prompt, the chat template included.
    pub(super) fn messages(self, messages: &[Message]) -> u64 {
        messages
            .iter()
            .map(|message| TEMPLATE_TOKENS + self.tokens(cost_of(&message.content)))
            .sum()
    }
}

fn factor_of(units: u64, tokens: u64) -> u64 {
    saturated(u128::from(tokens) * u128::from(UNITS_PER_TOKEN * ONE) / u128::from(units.max(1)))
}

fn saturated(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl TokenEstimate {
        /// Tokens that `text` is thought to have.
        fn estimate(&self, text: &str) -> u64 {
            self.scale().tokens(cost_of(text))
        }
    }

    fn prompt(text: &str) -> Vec<Message> {
        vec![Message {
            role: "user".to_owned(),
            content: text.to_owned(),
        }]
    }

    fn prose() -> String {
        "Revenue of the segment rose to 12.5 million in the second quarter. ".repeat(20)
    }

    #[test]
    fn a_text_costs_what_its_characters_cost() {
        for edges in [
            '\u{0}',
            'a',
            'Z',
            ' ',
            '~',
            '\u{7f}',
            '\u{80}',
            '\u{7ff}',
            '\u{800}',
            '\u{ffff}',
            '\u{10000}',
            '\u{10ffff}',
        ] {
            assert_eq!(cost_of(&edges.to_string()), cost(edges), "{edges:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_costs_what_its_characters_cost(text in ".{0,60}") {
            prop_assert_eq!(cost_of(&text), text.chars().map(cost).sum::<u64>());
        }
    }

    #[test]
    fn the_prior_is_on_the_safe_side_of_common_texts() {
        let estimate = TokenEstimate::default();
        // 13 words and marks make at least as many tokens; 4.2 characters per token is what vocabularies reach on such prose.
        let text = prose();
        let characters = u64::try_from(text.len()).unwrap();
        let tokens = estimate.estimate(&text);
        assert!(tokens > characters * 10 / 42, "{tokens} of {characters}");
        assert!(tokens < characters / 2, "{tokens} of {characters}");
        // One token per digit, as vocabularies with single digits count.
        assert!(estimate.estimate("1234567890") >= 10);
        assert!(estimate.estimate("売上高は前年同期比で増加") >= 12);
        assert_eq!(estimate.estimate(""), 0);
    }

    #[test]
    fn it_comes_to_rest_near_what_the_server_counts() {
        let estimate = TokenEstimate::default();
        let text = prose();
        let prior = estimate.estimate(&text);
        for counted in [prior * 7 / 10, prior * 2] {
            for _ in 0..200 {
                estimate.learn(&prompt(&text), counted);
            }
            let learned = estimate.estimate(&text);
            assert!(learned.abs_diff(counted) <= 2, "{learned}, not {counted}");
        }
    }

    #[test]
    fn of_mixed_counts_it_keeps_to_the_upper_ones() {
        let estimate = TokenEstimate::default();
        let text = prose();
        let prior = estimate.estimate(&text);
        // Seven of ten prompts count low, three high: the mean would be too low for the three.
        for round in 0..1_000_u64 {
            let counted = if round % 10 < 7 {
                prior * 6 / 10
            } else {
                prior
            };
            estimate.learn(&prompt(&text), counted);
        }
        let learned = estimate.estimate(&text);
        assert!(learned * 10 >= prior * 9, "{learned} of {prior}");
    }

    #[test]
    fn short_prompts_and_missing_counts_teach_nothing() {
        let estimate = TokenEstimate::default();
        let before = estimate.scale();
        estimate.learn(&prompt("Are you there?"), 4_000);
        estimate.learn(&prompt(&prose()), 0);
        assert_eq!(estimate.scale(), before);
    }

    #[test]
    fn a_scale_is_what_was_measured() {
        let scale = Scale::measured(4_000, 3);
        assert_eq!(scale.tokens(4_000), 3);
        assert_eq!(scale.units(3), 4_000);
        assert_eq!(scale.with_margin(10).tokens(40_000), 33);
        assert_eq!(scale.max(Scale::measured(4_000, 2)), scale);
        assert_eq!(
            Scale::measured(0, 0).tokens(u64::MAX),
            u64::MAX / 1_000_000_000 + 1
        );
    }

    proptest! {
        /// One count, however odd, moves the estimate by less than a tenth, and no series of counts drives it out of its bounds.
        #[test]
        fn one_odd_document_cannot_spoil_it(counts in proptest::collection::vec(any::<u64>(), 1..50)) {
            let estimate = TokenEstimate::default();
            let messages = prompt(&prose());
            for count in counts {
                let before = estimate.scale().factor;
                estimate.learn(&messages, count);
                let after = estimate.scale().factor;
                prop_assert!(after.abs_diff(before) * 10 < before);
                prop_assert!((FACTOR_MIN..=FACTOR_MAX).contains(&after));
            }
        }

        /// What fits a budget in cost has at most that many tokens.
        #[test]
        fn cost_and_tokens_agree(factor in FACTOR_MIN..=FACTOR_MAX, tokens in 0_u64..10_000_000) {
            let scale = Scale { factor };
            prop_assert!(scale.tokens(scale.units(tokens)) <= tokens);
        }
    }
}
