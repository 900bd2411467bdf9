//! A text with a part left out, and a line in its place that says so. Pure.

use super::TruncateKeep;
use super::split::{head_end, tail_start};

/// A text that was shortened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortened {
    /// What is kept, with the marker where something was left out.
    pub(super) text: String,
    /// Characters that were left out; 0 when nothing was.
    pub(super) left_out: u64,
}

/// Shortens `text` to at most `budget`, as `cost` adds its characters up, the marker included. When not even the marker fits, the
/// marker is all that remains.
pub(super) fn truncate(
    text: &str,
    keep: TruncateKeep,
    budget: u64,
    cost: impl Fn(char) -> u64,
) -> Shortened {
    let total_cost = text
        .chars()
        .fold(0_u64, |sum, character| sum.saturating_add(cost(character)));
    if total_cost <= budget {
        return Shortened {
            text: text.to_owned(),
            left_out: 0,
        };
    }
    // The marker is longest when everything is left out.
    let longest = marker(count(text)) + "\n\n";
    let room = budget.saturating_sub(longest.chars().map(&cost).sum());
    let (head_room, tail_room) = match keep {
        TruncateKeep::Head => (room, 0),
        TruncateKeep::Tail => (0, room),
        TruncateKeep::Ends => (room - room / 2, room / 2),
    };
    let head = text
        .get(..head_within(text, head_room, &cost))
        .unwrap_or_default();
    let tail = text
        .get(tail_start(text, tail_room, &cost)..)
        .unwrap_or_default();
    let left_out = count(text)
        .saturating_sub(count(head))
        .saturating_sub(count(tail));
    let mut shortened = String::with_capacity(head.len() + longest.len() + tail.len());
    shortened.push_str(head);
    if !head.is_empty() && !head.ends_with('\n') {
        shortened.push('\n');
    }
    shortened.push_str(&marker(left_out));
    if !tail.is_empty() && !tail.starts_with('\n') {
        shortened.push('\n');
    }
    shortened.push_str(tail);
    Shortened {
        text: shortened,
        left_out,
    }
}

/// As [`head_end`], and 0 when not even the first character fits.
fn head_within(text: &str, budget: u64, cost: impl Fn(char) -> u64) -> usize {
    match text.chars().next() {
        Some(first) if cost(first) <= budget => head_end(text, true, budget, cost),
        _ => 0,
    }
}

fn marker(left_out: u64) -> String {
    format!("[… {left_out} characters left out …]")
}

fn count(text: &str) -> u64 {
    u64::try_from(text.chars().count()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(_character: char) -> u64 {
        1
    }

    const TEXT: &str = "Aaaa bbbb.\n\nCccc dddd. Eeee ffff.\n\nGggg hhhh. Iiii jjjj.\n\nKkkk llll.\n\nMmmm nnnn oo.";

    #[test]
    fn what_fits_is_left_alone() {
        let shortened = truncate(TEXT, TruncateKeep::Head, count(TEXT), one);
        assert_eq!(shortened.text, TEXT);
        assert_eq!(shortened.left_out, 0);
    }

    #[test]
    fn the_words_say_what_is_kept() {
        for (keep, expected) in [
            (
                TruncateKeep::Head,
                "Aaaa bbbb.\n\nCccc dddd. Eeee ffff.\n\n[… 48 characters left out …]",
            ),
            (
                TruncateKeep::Tail,
                "[… 58 characters left out …]\nKkkk llll.\n\nMmmm nnnn oo.",
            ),
            (
                TruncateKeep::Ends,
                "Aaaa bbbb.\n\n[… 58 characters left out …]\nMmmm nnnn oo.",
            ),
        ] {
            let shortened = truncate(TEXT, keep, 72, one);
            assert_eq!(shortened.text, expected, "{keep:?}");
        }
    }

    proptest! {
        /// What is kept and what is said to be left out are together the text, within the budget, for each way.
        #[test]
        fn nothing_is_left_out_silently(text in "[a-zé .\n]{0,400}", budget in 40_u64..200) {
            for keep in [TruncateKeep::Head, TruncateKeep::Tail, TruncateKeep::Ends] {
                let shortened = truncate(&text, keep, budget, one);
                prop_assert!(count(&shortened.text) <= budget);
                let marker = marker(shortened.left_out);
                if shortened.left_out == 0 {
                    prop_assert_eq!(&shortened.text, &text);
                    continue;
                }
                let (head, tail) = shortened.text.split_once(&marker).unwrap();
                let kept_head = if text.starts_with(head) { head } else { head.strip_suffix('\n').unwrap() };
                let kept_tail = if text.ends_with(tail) { tail } else { tail.strip_prefix('\n').unwrap() };
                prop_assert!(text.starts_with(kept_head) && text.ends_with(kept_tail));
                prop_assert!(keep != TruncateKeep::Head || tail.is_empty());
                prop_assert!(keep != TruncateKeep::Tail || head.is_empty());
                let whole = count(kept_head) + shortened.left_out + count(kept_tail);
                // A line end beside the marker may be the text's or the marker's: one each.
                prop_assert!(whole.abs_diff(count(&text)) <= 2);
            }
        }
    }
}
