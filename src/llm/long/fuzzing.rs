//! What the crate's `fuzzing` hands to fuzzers.

use super::TruncateKeep;
use super::split::split;
use super::tokens::{cost, cost_of};
use super::truncate::truncate;

/// Cuts and shortens a text.
pub(in crate::llm) fn fuzzing(text: &str, budget: u64) {
    let pieces = split(text, budget, cost);
    assert!(pieces.concat() == text, "the pieces are not the text");
    for piece in pieces {
        let fits = cost_of(piece) <= budget || piece.chars().count() == 1;
        assert!(fits, "a piece costs more than its budget");
    }
    for keep in [TruncateKeep::Head, TruncateKeep::Tail, TruncateKeep::Ends] {
        let shortened = truncate(text, keep, budget, cost);
        let is_marker = shortened.text.starts_with('[') && shortened.text.ends_with(']');
        let fits = cost_of(&shortened.text) <= budget || is_marker;
        assert!(fits, "a shortened text costs more than its budget");
    }
}
