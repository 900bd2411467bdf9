//! What is counted of the work.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::telemetry::histogram::Quantiles;

/// What has happened since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Totals {
    /// Results that were written, truncated ones included.
    pub processed: u64,
    /// Of these, those whose answer ended at the token limit.
    pub truncated: u64,
    /// Documents that were given up, by [`DeadLetterReason::as_str`](crate::types::DeadLetterReason::as_str).
    pub dead_lettered: BTreeMap<&'static str, u64>,
    /// Records that are no documents: tombstones.
    pub skipped: u64,
    /// Attempts after the first.
    pub retries: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// Flushes: results, and the commit record that claims them, made durable together. Each is a transaction where work is exactly once.
    pub flushes: u64,
    /// Bytes of their commit records, uncompressed.
    pub commit_bytes: u64,
    /// Documents that ended, by input topic.
    pub topics: BTreeMap<String, TopicTotals>,
}

/// What has happened to the documents of an input topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct TopicTotals {
    /// Results that were written.
    pub processed: u64,
    /// Documents that were given up.
    pub dead_lettered: u64,
}

impl Totals {
    /// Documents that were given up.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.dead_lettered.values().sum()
    }

    /// Bytes of commit records per document that ended; 0 before the first.
    #[must_use]
    pub fn commit_bytes_per_document(&self) -> u64 {
        let ended = self.processed + self.failed();
        self.commit_bytes.checked_div(ended).unwrap_or(0)
    }
}

/// Latencies of the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Latency {
    /// The model's calls that succeeded.
    pub llm: Quantiles,
    /// Documents, from fetched to answered.
    pub total: Quantiles,
}

/// A result, as far as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResultCount {
    /// Whether the answer ended at the token limit.
    pub truncated: bool,
    /// Tokens of its prompts.
    pub prompt_tokens: u64,
    /// Tokens of its answers.
    pub completion_tokens: u64,
    /// The call that succeeded.
    pub llm: Duration,
    /// From fetched to answered.
    pub total: Duration,
}
