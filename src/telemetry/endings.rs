//! The latest documents that ended, for the status page. Workers note them once they are durable; a few are kept.
//!
//! Names and details come from documents and servers and can be of any length: they are cut. An answer is kept only where
//! `admin.show_payloads` says so, and then its beginning.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::clock;
use crate::types::{DeadLetterReason, SourcePosition};

/// Results that are kept, and as many failures: a flood of the ones must not wash out the others.
const KEPT: usize = 10;
/// Characters of a document's id, and of its topic's name.
const NAME_MAX: usize = 120;
/// Characters of a detail, and of an answer.
const TEXT_MAX: usize = 300;

/// A document that ended, before it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    document_id: String,
    source: SourcePosition,
    reason: Option<DeadLetterReason>,
    detail: Option<String>,
    answer: Option<String>,
    duration: Duration,
}

impl Ending {
    /// A result.
    #[must_use]
    pub fn result(document_id: &str, source: &SourcePosition, duration: Duration) -> Self {
        Self {
            document_id: cut(document_id, NAME_MAX),
            source: source.clone(),
            reason: None,
            detail: None,
            answer: None,
            duration,
        }
    }

    /// A dead letter.
    #[must_use]
    pub fn dead_letter(
        document_id: &str,
        source: &SourcePosition,
        duration: Duration,
        reason: DeadLetterReason,
        detail: &str,
    ) -> Self {
        Self::result(document_id, source, duration).given_up(reason, detail)
    }

    /// The same, given up after all.
    #[must_use]
    pub fn given_up(self, reason: DeadLetterReason, detail: &str) -> Self {
        Self {
            reason: Some(reason),
            detail: Some(cut(detail, TEXT_MAX)),
            ..self
        }
    }

    /// With the beginning of an answer.
    #[must_use]
    pub fn with_answer(self, answer: &str) -> Self {
        Self {
            answer: Some(cut(answer, TEXT_MAX)),
            ..self
        }
    }
}

/// What is known of it beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Whether the answer, or the document, was cut.
    pub truncated: bool,
    /// Attempts that were made.
    pub attempts: u32,
    /// Tokens of its prompts.
    pub prompt_tokens: u64,
    /// Tokens of its answers.
    pub completion_tokens: u64,
}

/// A document that ended, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// When that was durable.
    pub at: Timestamp,
    /// Its name, or the beginning of it.
    pub document_id: String,
    /// Input topic.
    pub topic: String,
    /// Input partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// `ok`, `truncated`, or the reason of a dead letter.
    pub status: &'static str,
    /// Why it was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The beginning of the answer, where payloads are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// From fetched to ended, without the way to Kafka.
    pub duration_ms: u64,
    /// Attempts that were made.
    pub attempts: u32,
    /// Tokens of its prompts.
    pub prompt_tokens: u64,
    /// Tokens of its answers.
    pub completion_tokens: u64,
}

/// The latest of both kinds, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Latest {
    /// Results.
    pub results: Vec<Ended>,
    /// Dead letters.
    pub failures: Vec<Ended>,
    /// Whether answers are shown.
    pub payloads: bool,
    /// What to ask with the next time.
    #[serde(skip)]
    pub seen: u64,
}

#[derive(Debug, Default)]
struct Rings {
    results: VecDeque<Ended>,
    failures: VecDeque<Ended>,
    /// How many there ever were.
    count: u64,
}

#[derive(Default)]
struct Shared {
    rings: Mutex<Rings>,
    keeps_payloads: AtomicBool,
}

/// The latest endings; cheap to clone.
#[derive(Clone, Default)]
pub struct Endings(Arc<Shared>);

impl fmt::Debug for Endings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endings").finish_non_exhaustive()
    }
}

impl Endings {
    /// Keeps the beginnings of answers too, or does not.
    pub fn keep_payloads(&self, keep: bool) {
        self.0.keeps_payloads.store(keep, Ordering::Relaxed);
    }

    /// Whether the beginnings of answers are kept.
    #[must_use]
    pub fn keeps_payloads(&self) -> bool {
        self.0.keeps_payloads.load(Ordering::Relaxed)
    }

    /// Notes a document whose end is durable.
    pub fn note(&self, ending: Ending, cost: Cost) {
        let Ending {
            document_id,
            source,
            reason,
            detail,
            answer,
            duration,
        } = ending;
        let status = match (reason, cost.truncated) {
            (Some(reason), _) => reason.as_str(),
            (None, true) => "truncated",
            (None, false) => "ok",
        };
        let ended = Ended {
            at: clock::now(),
            document_id,
            topic: cut(&source.topic_partition.topic, NAME_MAX),
            partition: source.topic_partition.partition,
            offset: source.offset.value(),
            status,
            detail,
            answer: answer.filter(|_| self.keeps_payloads()),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            attempts: cost.attempts,
            prompt_tokens: cost.prompt_tokens,
            completion_tokens: cost.completion_tokens,
        };
        let mut rings = self.lock();
        rings.count += 1;
        let ring = match reason {
            Some(_) => &mut rings.failures,
            None => &mut rings.results,
        };
        ring.truncate(KEPT - 1);
        ring.push_front(ended);
    }

    /// The latest, where there are newer ones than the first `seen`.
    #[must_use]
    pub fn news(&self, seen: Option<u64>) -> Option<Latest> {
        let rings = self.lock();
        (seen != Some(rings.count)).then(|| Latest {
            results: rings.results.iter().cloned().collect(),
            failures: rings.failures.iter().cloned().collect(),
            payloads: self.keeps_payloads(),
            seen: rings.count,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.0.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The beginning of a text, at most so many characters.
fn cut(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some((end, _)) => {
            let (beginning, _) = text.split_at(end);
            format!("{beginning}…")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Offset, TopicPartition};

    fn source(offset: i64) -> SourcePosition {
        SourcePosition {
            topic_partition: TopicPartition::new("docs", 1),
            offset: Offset::new(offset),
        }
    }

    fn result(offset: i64) -> Ending {
        Ending::result(&format!("d{offset}"), &source(offset), Duration::ZERO)
    }

    fn failure(detail: &str) -> Ending {
        let reason = DeadLetterReason::InvalidJson;
        Ending::dead_letter("bad", &source(7), Duration::ZERO, reason, detail)
    }

    #[test]
    fn a_flood_of_results_is_bounded_and_leaves_the_failures() {
        let endings = Endings::default();
        endings.note(failure("no JSON"), Cost::default());
        for offset in 0..10_000 {
            endings.note(result(offset), Cost::default());
        }
        let latest = endings.news(None).unwrap();
        assert_eq!(latest.results.len(), KEPT);
        assert_eq!(latest.results.first().unwrap().document_id, "d9999");
        assert_eq!(latest.failures.len(), 1);
        let failure = latest.failures.first().unwrap();
        assert_eq!(failure.status, "invalid_json");
        assert_eq!(failure.detail.as_deref(), Some("no JSON"));
        assert_eq!((failure.partition, failure.offset), (1, 7));
    }

    #[test]
    fn it_answers_only_where_there_is_news() {
        let endings = Endings::default();
        let seen = endings.news(None).unwrap().seen;
        assert_eq!(endings.news(Some(seen)), None);
        endings.note(result(1), Cost::default());
        assert_eq!(endings.news(Some(seen)).unwrap().results.len(), 1);
    }

    #[test]
    fn answers_are_kept_only_where_that_is_configured() {
        let endings = Endings::default();
        endings.note(result(1).with_answer("secret"), Cost::default());
        assert_eq!(endings.news(None).unwrap().results[0].answer, None);
        endings.keep_payloads(true);
        endings.note(result(2).with_answer("secret"), Cost::default());
        let answer = endings.news(None).unwrap().results[0].answer.clone();
        assert_eq!(answer.as_deref(), Some("secret"));
    }

    #[test]
    fn what_others_name_is_cut() {
        let endings = Endings::default();
        endings.keep_payloads(true);
        let long = "é".repeat(100_000);
        let ending = Ending::dead_letter(
            &long,
            &source(1),
            Duration::ZERO,
            DeadLetterReason::PromptFailed,
            &long,
        );
        endings.note(ending.with_answer(&long), Cost::default());
        let latest = endings.news(None).unwrap();
        let ended = latest.failures.first().unwrap();
        assert_eq!(ended.document_id.chars().count(), NAME_MAX + 1);
        assert_eq!(ended.detail.as_ref().unwrap().chars().count(), TEXT_MAX + 1);
        assert_eq!(ended.answer.as_ref().unwrap().chars().count(), TEXT_MAX + 1);
    }

    #[test]
    fn a_cut_result_is_told() {
        let endings = Endings::default();
        let cost = Cost {
            truncated: true,
            attempts: 2,
            prompt_tokens: 10,
            completion_tokens: 5,
        };
        endings.note(result(1), cost);
        let latest = endings.news(None).unwrap();
        let ended = latest.results.first().unwrap();
        assert_eq!((ended.status, ended.attempts), ("truncated", 2));
        assert_eq!((ended.prompt_tokens, ended.completion_tokens), (10, 5));
    }
}
