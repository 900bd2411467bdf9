//! Which dead letters are meant.

use clap::Args;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::clock;
use crate::records::dead_letter::DeadLetter;
use crate::types::{DeadLetterReason, Record, duration};

/// What all of them have in common; of several values of one flag any will do.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub struct FilterArgs {
    /// Given up for this reason (repeatable), such as attempts_exhausted.
    #[arg(long, value_name = "REASON", value_parser = reason)]
    pub reason: Vec<DeadLetterReason>,
    /// Given up at this time or later: RFC 3339, a date (UTC), or an age such as 2h.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<Timestamp>,
    /// Given up before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<Timestamp>,
    /// With this key (repeatable).
    #[arg(long, value_name = "KEY")]
    pub key: Vec<String>,
    /// In this partition of the dead-letter topic (repeatable).
    #[arg(long, value_name = "PARTITION")]
    pub partition: Vec<i32>,
    /// Read from this input topic (repeatable).
    #[arg(long, value_name = "TOPIC")]
    pub topic: Vec<String>,
}

impl FilterArgs {
    /// Whether a dead letter is meant; the partition is looked at before it is read.
    pub(super) fn takes(&self, letter: &DeadLetter, record: &Record) -> bool {
        let is_asked = |asked: &[String], found: &[u8]| {
            asked.is_empty() || asked.iter().any(|asked| asked.as_bytes() == found)
        };
        let key = record.key.as_deref();
        (self.reason.is_empty() || self.reason.contains(&letter.reason))
            && self.since.is_none_or(|since| letter.at >= since)
            && self.until.is_none_or(|until| letter.at < until)
            && (self.key.is_empty() || key.is_some_and(|key| is_asked(&self.key, key)))
            && is_asked(&self.topic, letter.source.topic_partition.topic.as_bytes())
    }
}

fn reason(text: &str) -> Result<DeadLetterReason, String> {
    let mut all = DeadLetterReason::ALL.into_iter();
    all.find(|reason| reason.as_str() == text).ok_or_else(|| {
        let names = DeadLetterReason::ALL.map(DeadLetterReason::as_str);
        format!("there is no such reason; there are {}", names.join(", "))
    })
}

/// A moment as people write it.
pub(in crate::cli) fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    if let Ok(at) = text.parse::<DateTime>()
        && let Ok(at) = at.to_zoned(TimeZone::UTC)
    {
        return Ok(at.timestamp());
    }
    let age = duration::parse(text).ok();
    age.and_then(|age| clock::now().checked_sub(age).ok())
        .ok_or_else(|| {
            "write a time such as 2026-11-29T03:00:00Z, a date, or an age such as 2h".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::SignedDuration;

    use super::*;
    use crate::types::{Offset, SourcePosition, TopicPartition};

    fn letter() -> (DeadLetter, Record) {
        let letter = DeadLetter {
            reason: DeadLetterReason::InvalidJson,
            detail: String::new(),
            http_status: None,
            attempts: 0,
            request_id: None,
            answer: None,
            at: Timestamp::from_second(1_000).unwrap(),
            source: SourcePosition {
                topic_partition: TopicPartition::new("docs", 0),
                offset: Offset::ZERO,
            },
        };
        let record = Record {
            key: Some(Bytes::from_static(b"a")),
            ..Record::default()
        };
        (letter, record)
    }

    #[test]
    fn each_filter_has_to_hold_and_one_of_its_values() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let of = |change: &dyn Fn(&mut FilterArgs)| {
            let mut filter = FilterArgs::default();
            change(&mut filter);
            filter
        };
        let (invalid, empty) = (
            DeadLetterReason::InvalidJson,
            DeadLetterReason::EmptyDocument,
        );
        let filters = [
            (FilterArgs::default(), true),
            (of(&|filter| filter.reason = vec![invalid, empty]), true),
            (of(&|filter| filter.reason = vec![empty]), false),
            (
                of(&|filter| (filter.since, filter.until) = (at(1_000), at(1_001))),
                true,
            ),
            (of(&|filter| filter.since = at(1_001)), false),
            (of(&|filter| filter.until = at(1_000)), false),
            (of(&|filter| filter.key = texts(&["b", "a"])), true),
            (of(&|filter| filter.key = texts(&["b"])), false),
            (of(&|filter| filter.topic = texts(&["docs"])), true),
            (
                of(&|filter| {
                    (filter.topic, filter.key) = (texts(&["news"]), texts(&["a"]));
                }),
                false,
            ),
        ];
        let (letter, record) = letter();
        for (filter, expected) in filters {
            assert_eq!(filter.takes(&letter, &record), expected, "{filter:?}");
        }
        let keyless = Record::default();
        let keyed = FilterArgs {
            key: texts(&[""]),
            ..FilterArgs::default()
        };
        assert!(
            !keyed.takes(&letter, &keyless),
            "no key is not the empty one"
        );
    }

    #[test]
    fn a_time_is_a_moment_a_date_or_an_age() {
        let moment = Timestamp::from_second(1_764_385_200).unwrap();
        assert_eq!(time("2025-11-29T03:00:00Z"), Ok(moment));
        assert_eq!(time("2025-11-29T04:00:00+01:00"), Ok(moment));
        assert_eq!(time("2025-11-29T03:00"), Ok(moment));
        let midnight = moment - SignedDuration::from_hours(3);
        assert_eq!(time("2025-11-29"), Ok(midnight));
        let before = time("2h").unwrap();
        let age = clock::now().duration_since(before);
        assert!((7_200..7_210).contains(&age.as_secs()), "{age:?}");
        for text in ["", "soon", "-1", "2025-13-01"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_reason_is_one_of_the_closed_set() {
        assert_eq!(reason("engine_killed"), Ok(DeadLetterReason::EngineKilled));
        let problem = reason("killed").unwrap_err();
        assert!(problem.contains("engine_killed"), "{problem}");
    }
}
