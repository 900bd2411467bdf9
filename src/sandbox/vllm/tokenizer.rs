//! A stand-in for the model's tokenizer: deterministic, reversible, without a vocabulary.
//!
//! A token is one of the template's special strings, or at most one space followed by up to six ASCII letters, up to three
//! digits or one other ASCII character, or one character of any other kind. English text comes to about 1.3 tokens per
//! word, as with the real one.
//!
//! A token's id is its text, packed: `/detokenize` needs no table, and the same text has the same ids in every process.
//! All ids are below 2^53, so that every JSON reader takes them.

/// The longest token in characters: `[/INST]`, or a space and six letters. Bounds a prompt before it is tokenized.
pub(super) const TOKEN_CHARS_MAX: usize = 7;

const LETTERS_MAX: usize = 6;
const DIGITS_MAX: usize = 3;
/// The strings that the chat template adds; one token each.
const SPECIAL: [&str; 4] = ["<s>", "</s>", "[INST]", "[/INST]"];
/// Ids from here name an entry of [`SPECIAL`]; packed text ends at 7 × 7 = 49 bits.
const SPECIAL_BASE: u64 = 1 << 51;
/// Ids from here hold one code point.
const CODE_POINT_BASE: u64 = 1 << 52;
/// Bits of one packed ASCII character.
const ASCII_BITS: u32 = 7;

/// The tokens of a text, in order; together they are the text.
#[derive(Debug, Clone)]
pub(super) struct Tokens<'a> {
    rest: &'a str,
}

/// Splits a text into tokens.
pub(super) const fn tokens(text: &str) -> Tokens<'_> {
    Tokens { rest: text }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (token, rest) = self.rest.split_at_checked(token_bytes(self.rest)?)?;
        self.rest = rest;
        Some(token)
    }
}

/// Length of the first token in bytes; `None` at the end.
fn token_bytes(text: &str) -> Option<usize> {
    let first = text.chars().next()?;
    if let Some(special) = SPECIAL.iter().find(|special| text.starts_with(*special)) {
        return Some(special.len());
    }
    let (space, body) = text
        .strip_prefix(' ')
        .map_or((0, text), |after_space| (1, after_space));
    let run = |kind: fn(&u8) -> bool, max: usize| body.bytes().take(max).take_while(kind).count();
    let letters = run(u8::is_ascii_alphabetic, LETTERS_MAX);
    let digits = run(u8::is_ascii_digit, DIGITS_MAX);
    let marks = run(u8::is_ascii_punctuation, 1);
    // A space is joined to what follows unless that begins a special string.
    let joins = !SPECIAL.iter().any(|special| body.starts_with(special));
    match letters.max(digits).max(marks) {
        0 => Some(first.len_utf8()),
        _ if space == 1 && !joins => Some(1),
        length => Some(space + length),
    }
}

/// How many tokens a text has.
pub(super) fn count(text: &str) -> usize {
    tokens(text).count()
}

/// The ids of a text's tokens.
pub(super) fn encode(text: &str) -> Vec<u64> {
    tokens(text).map(token_id).collect()
}

/// The text of a list of ids; `None` when one of them is no id of this tokenizer.
pub(super) fn decode(ids: &[u64]) -> Option<String> {
    let mut text = String::new();
    for &id in ids {
        if id >= CODE_POINT_BASE {
            let code_point = u32::try_from(id - CODE_POINT_BASE).ok()?;
            text.push(char::from_u32(code_point)?);
        } else if id >= SPECIAL_BASE {
            let index = usize::try_from(id - SPECIAL_BASE).ok()?;
            text.push_str(SPECIAL.get(index)?);
        } else {
            unpack(id, &mut text)?;
        }
    }
    Some(text)
}

fn token_id(token: &str) -> u64 {
    if let Some(index) = SPECIAL.iter().position(|special| *special == token) {
        return (SPECIAL_BASE..).nth(index).unwrap_or(SPECIAL_BASE);
    }
    match token.chars().next() {
        // NUL would be lost in the packing: it goes the way of the other code points.
        Some(first) if !first.is_ascii() || first == '\0' => {
            CODE_POINT_BASE + u64::from(u32::from(first))
        }
        _ => token
            .bytes()
            .rev()
            .fold(0, |packed, byte| (packed << ASCII_BITS) | u64::from(byte)),
    }
}

/// Appends packed ASCII text; `None` when the id holds none.
fn unpack(mut id: u64, text: &mut String) -> Option<()> {
    if id == 0 {
        return None;
    }
    while id > 0 {
        let byte = u8::try_from(id & ((1 << ASCII_BITS) - 1)).ok()?;
        text.push(char::from(byte));
        id >>= ASCII_BITS;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_figures_and_marks_are_split_as_documented() {
        let split: Vec<&str> = tokens("Revenue rose 12.5% to $1,234 million").collect();
        assert_eq!(
            split,
            [
                "Revenu", "e", " rose", " 12", ".", "5", "%", " to", " $", "1", ",", "234",
                " millio", "n"
            ]
        );
    }

    #[test]
    fn special_strings_are_one_token_each() {
        let split: Vec<&str> = tokens("<s>[INST] hi [/INST]").collect();
        assert_eq!(split, ["<s>", "[INST]", " hi", " ", "[/INST]"]);
    }

    proptest! {
        /// Tokens join to the text, ids decode to it, none is longer than promised, and all fit a JSON reader's numbers.
        #[test]
        fn every_text_survives_the_round_trip(text in ".*") {
            prop_assert_eq!(tokens(&text).collect::<String>(), text.clone());
            prop_assert!(tokens(&text).all(|token| token.chars().count() <= TOKEN_CHARS_MAX));
            let ids = encode(&text);
            prop_assert!(ids.iter().all(|id| *id < 1 << 53));
            prop_assert_eq!(decode(&ids), Some(text));
        }
    }

    #[test]
    fn ids_of_nothing_are_refused() {
        assert_eq!(decode(&[0]), None);
        assert_eq!(decode(&[SPECIAL_BASE + 4]), None);
        assert_eq!(decode(&[CODE_POINT_BASE + 0xD800]), None);
        assert_eq!(decode(&[1 << 53]), None);
    }
}
