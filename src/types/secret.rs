//! Text that must never be printed.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// A password or key. `Debug`, `Display` and serialisation show stars; [`Secret::expose`] is the one way in.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself, for the wire.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `text` with stars wherever it repeats the secret, as a server's words may.
    #[must_use]
    pub fn redact(&self, text: String) -> String {
        if self.0.is_empty() || !text.contains(&self.0) {
            return text;
        }
        text.replace(&self.0, STARS)
    }
}

const STARS: &str = "***";

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STARS)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STARS)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(STARS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_it_is_starred() {
        let secret = Secret::new("hush");
        assert_eq!(secret.redact("no hush, hush!".to_owned()), "no ***, ***!");
        assert_eq!(Secret::new("").redact("as it is".to_owned()), "as it is");
        assert_eq!(format!("{secret:?} {secret}"), "*** ***");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
    }
}
