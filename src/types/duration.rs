//! Durations in configuration: `30` (seconds), `"1.5"`, `"250ms"`, `"10m"`.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

/// Reads a number of seconds, or a number with a unit.
///
/// # Errors
/// A sentence for the operator when it is neither.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return from_seconds(seconds);
    }
    humantime::parse_duration(text).map_err(|error| {
        format!("`{text}` is not a duration ({error}); write seconds, or a number with a unit such as 250ms, 30s, 10m")
    })
}

fn from_seconds(seconds: f64) -> Result<Duration, String> {
    if seconds < 0.0 {
        return Err(format!("`{seconds}` is negative, and a duration is not"));
    }
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| format!("`{seconds}` is not a duration: {error}"))
}

/// Writes a duration as [`parse`] reads it.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Reads a number of seconds or text that [`parse`] takes.
///
/// # Errors
/// When the value is neither.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct DurationVisitor;
    impl Visitor<'_> for DurationVisitor {
        type Value = Duration;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("seconds, or a number with a unit such as 250ms, 30s, 10m")
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).map_err(E::custom)
        }
        fn visit_u64<E: Error>(self, seconds: u64) -> Result<Duration, E> {
            Ok(Duration::from_secs(seconds))
        }
        fn visit_i64<E: Error>(self, seconds: i64) -> Result<Duration, E> {
            u64::try_from(seconds)
                .map(Duration::from_secs)
                .map_err(|_negative| {
                    E::custom(format!("`{seconds}` is negative, and a duration is not"))
                })
        }
        fn visit_f64<E: Error>(self, seconds: f64) -> Result<Duration, E> {
            from_seconds(seconds).map_err(E::custom)
        }
    }
    deserializer.deserialize_any(DurationVisitor)
}

/// The same for a duration that need not be set.
pub mod option {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Written(#[serde(with = "super")] Duration);

    /// Writes a duration as [`parse`](super::parse) reads it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a number of seconds, or text that [`parse`](super::parse) takes.
    ///
    /// # Errors
    /// When the value is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let written = Option::<Written>::deserialize(deserializer)?;
        Ok(written.map(|Written(duration)| duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_units_are_read() {
        assert_eq!(parse("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse(" 250ms "), Ok(Duration::from_millis(250)));
        assert_eq!(parse("10m"), Ok(Duration::from_secs(600)));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        assert!(parse("-1").is_err());
        assert!(parse("soon").is_err());
        assert!(parse("").is_err());
    }
}
