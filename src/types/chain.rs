//! An error and what caused it, for one line of a log or a message.

use std::error::Error;

/// The error with all its causes, joined by colons. Messages of ours never repeat their source, so nothing is said twice.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
