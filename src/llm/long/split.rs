//! A text in pieces that each fit a budget, cut where the text itself pauses. Pure.
//!
//! 1. The pieces, joined, are the text: nothing is lost, added or asked about twice.
//! 2. No piece costs more than the budget, unless a single character does.
//! 3. Time is linear: a piece is scanned up to its budget, and at least [`WORD_FILL`] of what was scanned is taken.
//!
//! A piece is cut at the coarsest boundary within the last part of what fits: before a heading, between paragraphs, lines, sentences,
//! words, and at last between characters. Only a boundary that leaves the piece [`FILL`] full is taken, or [`WORD_FILL`] for one
//! between words.

use super::headings;

/// How full a piece must be, in percent of the budget, to be cut at a heading, paragraph, line or sentence.
const FILL: u64 = 60;
/// How full a piece must be to be cut between words rather than within one: no word takes three quarters of a budget.
const WORD_FILL: u64 = 25;
/// How many characters are given back at most to keep an accent or a joined emoji with its base.
const CLUSTER_CHARS_MAX: usize = 16;
/// The longest word that can be an abbreviation, in bytes.
const ABBREVIATION_BYTES_MAX: usize = 7;
/// Words after which a full stop ends no sentence, in small letters. Single letters (`U.S.`) and numbers of one or two digits (`Item 7.`)
/// are told without a list.
const ABBREVIATIONS: [&str; 47] = [
    "inc", "corp", "co", "ltd", "llc", "plc", "bros", "no", "nos", "vs", "mr", "mrs", "ms", "dr",
    "prof", "jr", "sr", "st", "gen", "hon", "rev", "fig", "figs", "sec", "art", "vol", "ed",
    "approx", "est", "dept", "div", "etc", "al", "cf", "pp", "jan", "feb", "mar", "apr", "jun",
    "jul", "aug", "sept", "sep", "oct", "nov", "dec",
];

/// Where a text may be cut, from the coarsest down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Boundary {
    Heading,
    Paragraph,
    Line,
    Sentence,
    Word,
}

impl Boundary {
    const ALL: [Self; 5] = [
        Self::Heading,
        Self::Paragraph,
        Self::Line,
        Self::Sentence,
        Self::Word,
    ];
}

/// Cuts `text` into pieces of at most `budget`, as `cost` adds its characters up.
pub(super) fn split(text: &str, budget: u64, cost: impl Fn(char) -> u64) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut at_line_start = true;
    while !rest.is_empty() {
        let end = head_end(rest, at_line_start, budget, &cost);
        let (piece, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        at_line_start = piece.ends_with('\n');
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Where the first piece of `text` ends, in bytes: at least one character, unless the text is empty.
pub(super) fn head_end(
    text: &str,
    at_line_start: bool,
    budget: u64,
    cost: impl Fn(char) -> u64,
) -> usize {
    let filled = percent(budget, FILL);
    let filled_for_word = percent(budget, WORD_FILL);
    let mut best = [None; Boundary::ALL.len()];
    let mut spent: u64 = 0;
    let mut cursor = Cursor::new(text, at_line_start);
    for (at, character) in text.char_indices() {
        if at > 0
            && spent >= filled_for_word
            && let Some(boundary) = cursor.boundary(at, character)
            && (spent >= filled || boundary == Boundary::Word)
        {
            for (level, place) in Boundary::ALL.iter().zip(&mut best) {
                if *level == boundary {
                    *place = Some(at);
                }
            }
        }
        spent = spent.saturating_add(cost(character));
        if spent > budget {
            return best
                .into_iter()
                .flatten()
                .next()
                .unwrap_or_else(|| between_characters(text, at.max(character_bytes(text))));
        }
        cursor.pass(at, character);
    }
    text.len()
}

/// Where the last piece of `text` begins, in bytes: as [`head_end`], from the end. May be the text's end, when not even one character
/// fits.
pub(super) fn tail_start(text: &str, budget: u64, cost: impl Fn(char) -> u64) -> usize {
    let mut left = budget;
    let mut earliest = text.len();
    for (at, character) in text.char_indices().rev() {
        let Some(after) = left.checked_sub(cost(character)) else {
            break;
        };
        left = after;
        earliest = at;
    }
    if earliest == 0 {
        return 0;
    }
    let Some(tail) = text.get(earliest..) else {
        return earliest;
    };
    let skipped_max = budget - percent(budget, FILL);
    let skipped_max_for_word = budget - percent(budget, WORD_FILL);
    let mut best = [None; Boundary::ALL.len()];
    let mut skipped: u64 = 0;
    let mut cursor = Cursor::after(text, earliest);
    for (at, character) in tail.char_indices() {
        if skipped > skipped_max_for_word {
            break;
        }
        let at = earliest + at;
        if let Some(boundary) = cursor.boundary(at, character)
            && (skipped <= skipped_max || boundary == Boundary::Word)
        {
            for (level, place) in Boundary::ALL.iter().zip(&mut best) {
                if *level == boundary {
                    place.get_or_insert(at);
                }
            }
        }
        skipped = skipped.saturating_add(cost(character));
        cursor.pass(at, character);
    }
    best.into_iter().flatten().next().unwrap_or(earliest)
}

fn percent(budget: u64, percent: u64) -> u64 {
    budget / 100 * percent + budget % 100 * percent / 100
}

fn character_bytes(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

/// The place itself, or one a little before it that does not part a character from its accents.
fn between_characters(text: &str, at: usize) -> usize {
    let Some((before, after)) = text.split_at_checked(at) else {
        return at;
    };
    let mut following = after.chars().next();
    let mut end = at;
    for (start, character) in before.char_indices().rev().take(CLUSTER_CHARS_MAX) {
        if !following.is_some_and(|following| belongs_together(character, following)) {
            return end;
        }
        following = Some(character);
        end = start;
    }
    at
}

/// Whether no reader would part these two: a line end of two characters, a base and its accent, the parts of a joined emoji.
const fn belongs_together(character: char, following: char) -> bool {
    matches!(
        (character, following),
        ('\r', '\n')
            | ('\u{200d}', _)
            | (
                _,
                '\u{300}'..='\u{36f}'
                    | '\u{200d}'
                    | '\u{fe00}'..='\u{fe0f}'
                    | '\u{1f3fb}'..='\u{1f3ff}'
            )
    )
}

/// What was read so far, as far as it decides about boundaries.
struct Cursor<'a> {
    text: &'a str,
    previous: Option<char>,
    /// Nothing but white space since the last line end.
    blank: bool,
    /// The line before the current one was blank.
    after_blank: bool,
    /// A full stop, or another end of a sentence, and nothing but closing marks and white space after it.
    stop: Option<usize>,
}

impl<'a> Cursor<'a> {
    const fn new(text: &'a str, at_line_start: bool) -> Self {
        Self {
            text,
            previous: None,
            blank: at_line_start,
            after_blank: false,
            stop: None,
        }
    }

    /// A cursor that has passed all before `at`, which must lie between two characters.
    fn after(text: &'a str, at: usize) -> Self {
        let mut cursor = Self::new(text, true);
        let before = text.get(..at).unwrap_or_default();
        // Two line ends and a word are all that a boundary looks back to.
        let mut recent = before.char_indices().rev().take(4).collect::<Vec<_>>();
        recent.reverse();
        if recent.len() == 4 {
            cursor.blank = false;
        }
        for (at, character) in recent {
            cursor.pass(at, character);
        }
        cursor
    }

    /// The boundary before the character at `at`, if there is one.
    fn boundary(&self, at: usize, character: char) -> Option<Boundary> {
        let previous = self.previous?;
        if character == '<'
            && let Some(boundary) = headings::tag(self.text.get(at..).unwrap_or_default())
        {
            return Some(boundary);
        }
        if is_line_end(previous) {
            // Blank lines stay with what they end.
            if matches!(character, '\r' | '\n') {
                return None;
            }
            return Some(
                if headings::is_heading(self.text.get(at..).unwrap_or_default()) {
                    Boundary::Heading
                } else if self.after_blank || previous == '\u{c}' {
                    Boundary::Paragraph
                } else {
                    Boundary::Line
                },
            );
        }
        if is_full_width_stop(previous) && !is_closing(character) {
            return Some(Boundary::Sentence);
        }
        if !previous.is_whitespace() || character.is_whitespace() {
            return None;
        }
        let sentence = self.stop.is_some_and(|stop| {
            !character.is_lowercase() && ends_sentence(self.text.get(..stop).unwrap_or_default())
        });
        Some(if sentence {
            Boundary::Sentence
        } else {
            Boundary::Word
        })
    }

    fn pass(&mut self, at: usize, character: char) {
        if is_line_end(character) {
            self.after_blank = self.blank;
            self.blank = true;
        } else if !character.is_whitespace() {
            self.blank = false;
        }
        match character {
            '.' => self.stop = Some(at),
            // Looks back to nothing, as these are no part of abbreviations.
            '!' | '?' => self.stop = Some(0),
            other if other.is_whitespace() || is_closing(other) => {}
            _ => self.stop = None,
        }
        self.previous = Some(character);
    }
}

const fn is_line_end(character: char) -> bool {
    matches!(character, '\n' | '\u{c}' | '\u{2028}' | '\u{2029}')
}

const fn is_full_width_stop(character: char) -> bool {
    matches!(character, '。' | '！' | '？' | '．')
}

const fn is_closing(character: char) -> bool {
    matches!(
        character,
        '"' | '\'' | ')' | ']' | '}' | '”' | '’' | '»' | '」' | '』' | '）'
    )
}

/// Whether a full stop after `before` can end a sentence.
fn ends_sentence(before: &str) -> bool {
    let word_bytes = before
        .bytes()
        .rev()
        .take(ABBREVIATION_BYTES_MAX + 1)
        .take_while(u8::is_ascii_alphanumeric)
        .count();
    let word = before
        .len()
        .checked_sub(word_bytes)
        .and_then(|start| before.get(start..))
        .unwrap_or_default();
    if word.len() > ABBREVIATION_BYTES_MAX {
        return true;
    }
    let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
    match word.len() {
        // After another mark or a letter beyond ASCII: nothing is known against it.
        0 => true,
        // An initial, or the last letter of `U.S.`; a digit as in `Item 7.`.
        1 => false,
        2 if is_number => false,
        _ => !ABBREVIATIONS
            .iter()
            .any(|abbreviation| word.eq_ignore_ascii_case(abbreviation)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(_character: char) -> u64 {
        1
    }

    fn characters(text: &str) -> u64 {
        u64::try_from(text.chars().count()).unwrap()
    }

    #[test]
    fn a_text_that_fits_is_one_piece_and_an_empty_one_is_none() {
        assert_eq!(split("Revenue rose.", 13, one), ["Revenue rose."]);
        assert!(split("", 13, one).is_empty());
    }

    /// Each text has a coarse boundary early and finer ones later, all in the last part of what fits.
    #[test]
    fn the_coarsest_boundary_wins() {
        for (text, budget, first) in [
            (
                "aaaa bbbb cccc\n# Risks\n\ndddd eeee",
                25,
                "aaaa bbbb cccc\n",
            ),
            (
                "aaaa bbbb cccc\nItem 1A. Risk Factors\ndddd eeee ffff gggg",
                20,
                "aaaa bbbb cccc\n",
            ),
            (
                "aaaa bbbb cccc\nLIQUIDITY\ndddd eeee ffff gggg",
                24,
                "aaaa bbbb cccc\n",
            ),
            (
                "aaaa bbbb cccc<h2>Risks</h2>dddd eeee",
                22,
                "aaaa bbbb cccc",
            ),
            ("aaaa bbbb\n\ncccc\ndddd eeee", 17, "aaaa bbbb\n\n"),
            (
                "aaaa bbbb\r\n \r\ncccc\ndddd eeee",
                21,
                "aaaa bbbb\r\n \r\n",
            ),
            ("aaaa bbbb\ncccc. Dd eeee ffff", 16, "aaaa bbbb\n"),
            ("aaaa bbbb. Cccc dddd eeee", 17, "aaaa bbbb. "),
            ("aaaa bbbb cccc dddd", 17, "aaaa bbbb cccc "),
            ("aaaabbbbccccdddd", 10, "aaaabbbbcc"),
        ] {
            assert_eq!(split(text, budget, one)[0], first, "{text:?}");
        }
    }

    #[test]
    fn full_stops_of_abbreviations_and_figures_end_no_sentence() {
        for text in [
            "Alphabet Inc. Is",
            "Made in U.S. By",
            "See Note No. Five",
            "Now 3.5 Points",
            "See Item 7. Results",
            "It fell. slightly",
        ] {
            let mut cursor = Cursor::new(text, true);
            for (at, character) in text.char_indices() {
                assert_ne!(
                    cursor.boundary(at, character),
                    Some(Boundary::Sentence),
                    "{text}"
                );
                cursor.pass(at, character);
            }
        }
    }

    #[test]
    fn sentences_end_at_stops_marks_and_closing_quotes() {
        for (text, second) in [
            ("It rose. It fell", "It fell"),
            ("In 2024. It fell", "It fell"),
            ("It rose! 5 fell", "5 fell"),
            ("(It rose.) It fell", "It fell"),
            ("He said \"never.\"  It fell", "It fell"),
            ("増加した。減少した", "減少した"),
        ] {
            let mut cursor = Cursor::new(text, true);
            let mut found = Vec::new();
            for (at, character) in text.char_indices() {
                if cursor.boundary(at, character) == Some(Boundary::Sentence) {
                    found.push(text.get(at..).unwrap());
                }
                cursor.pass(at, character);
            }
            assert_eq!(found, [second], "{text}");
        }
    }

    #[test]
    fn characters_keep_their_accents_and_line_ends_stay_whole() {
        assert_eq!(split("aaae\u{301}b", 4, one), ["aaa", "e\u{301}b"]);
        assert_eq!(
            split("aa👩\u{200d}👩\u{200d}👧", 4, one)[0],
            "aa",
            "the joined emoji begins the next piece"
        );
        // A budget below one cluster: it is cut all the same, and the loop ends.
        assert_eq!(
            split("e\u{301}\u{302}\u{303}", 2, one).concat(),
            "e\u{301}\u{302}\u{303}"
        );
    }

    /// Ordinary text leaves no piece below the fill, the last aside.
    #[test]
    fn pieces_are_well_filled() {
        let text = "Net sales rose 4 % to $ 12.3 million. Costs fell, as freight was cheaper.\n"
            .repeat(7)
            + "\n";
        let text = text.repeat(40);
        let pieces = split(&text, 700, one);
        for piece in &pieces[..pieces.len() - 1] {
            assert!(characters(piece) >= 420, "{}", piece.len());
            assert!(piece.ends_with('\n'));
        }
    }

    /// Counts the characters that are looked at: a scan that began again from too far back would look at many times the text.
    #[test]
    fn texts_without_pauses_and_texts_of_nothing_else_are_scanned_in_linear_time() {
        for unit in [
            "\n", "a", " ", ". ", "a ", "A\n\n", "<", "#\n", "é", "\u{301}",
        ] {
            let text = unit.repeat(200_000 / unit.len());
            let looked = std::cell::Cell::new(0_usize);
            let pieces = split(&text, 1_000, |_character| {
                looked.set(looked.get() + 1);
                1
            });
            assert_eq!(pieces.concat(), text);
            let length = text.chars().count();
            assert!(
                looked.get() <= length * 4 + 4_000,
                "{unit:?}: {} of {length}",
                looked.get()
            );
            assert!(
                pieces.len() <= length / 250 + 1,
                "{unit:?}: {}",
                pieces.len()
            );
        }
    }

    #[test]
    fn the_tail_begins_at_a_boundary_within_the_budget() {
        let text = "Aaaa bbbb. Cccc dddd.\n\nEeee ffff. Gggg hhhh.";
        let start = tail_start(text, 25, one);
        assert_eq!(text.get(start..).unwrap(), "Eeee ffff. Gggg hhhh.");
        assert_eq!(tail_start(text, 1_000, one), 0);
        assert_eq!(tail_start(text, 0, one), text.len());
        let start = tail_start("aaaaaaaa", 3, one);
        assert_eq!(start, 5);
    }

    fn texts() -> impl Strategy<Value = String> {
        let parts = proptest::sample::select(vec![
            "Revenue",
            "rose",
            " ",
            " ",
            "\n",
            "\n\n",
            "\r\n",
            ". ",
            "Inc. ",
            "12.5",
            "# ",
            "ITEM 1A. ",
            "PART II\n",
            "RISKS\n",
            "<h1>",
            "e\u{301}",
            "👩\u{200d}👧",
            "増加",
            "。",
            "\u{c}",
            "\t",
            "!",
            "\") ",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        ]);
        prop_oneof![
            proptest::collection::vec(parts, 0..200).prop_map(|parts| parts.concat()),
            ".{0,300}",
        ]
    }

    proptest! {
        /// Invariants 1 and 2.
        #[test]
        fn pieces_join_to_the_text_and_keep_to_the_budget(text in texts(), budget in 0_u64..120) {
            let pieces = split(&text, budget, one);
            prop_assert_eq!(&pieces.concat(), &text);
            for piece in pieces {
                prop_assert!(!piece.is_empty());
                prop_assert!(characters(piece) <= budget.max(1));
            }
        }

        #[test]
        fn pieces_keep_to_a_budget_of_unequal_costs(text in texts(), budget in 5_000_u64..60_000) {
            let pieces = split(&text, budget, super::super::tokens::cost);
            prop_assert_eq!(&pieces.concat(), &text);
            for piece in pieces {
                prop_assert!(super::super::tokens::cost_of(piece) <= budget);
            }
        }

        #[test]
        fn the_tail_keeps_to_the_budget_and_the_end(text in texts(), budget in 0_u64..120) {
            let start = tail_start(&text, budget, one);
            let tail = text.get(start..).unwrap();
            prop_assert!(characters(tail) <= budget);
            if characters(&text) > budget {
                prop_assert!(characters(tail) >= budget / 4, "{} of {budget}", characters(tail));
            } else {
                prop_assert_eq!(start, 0);
            }
        }
    }
}
