//! What the model's side counts. Names are without the service's prefix, which the registry's owner adds.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::LongSummary;
use super::budget::Left;
use super::cache::CacheLevel;
use super::classify::Fault;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    endpoint: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    fault: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct At {
    endpoint: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limited {
    budget: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Done {
    policy: &'static str,
}

/// The families of the model's side; clones share them.
#[derive(Debug, Clone)]
pub struct LlmMetrics {
    calls: Family<Outcome, Counter>,
    retries: Family<Cause, Counter>,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    call_duration: Histogram,
    per_output_token: Histogram,
    running: Gauge,
    limit: Family<At, Gauge>,
    held: Gauge,
    holds: Counter,
    hold_seconds: Counter<f64, AtomicU64>,
    endpoint_held: Family<At, Gauge>,
    cache_hits: Counter,
    cache_bytes: Gauge,
    cache_entries: Gauge,
    budget_left: Family<Limited, Gauge>,
    long_documents: Family<Done, Counter>,
}

impl LlmMetrics {
    /// Creates the families and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            calls: Family::default(),
            retries: Family::default(),
            prompt_tokens: Counter::default(),
            completion_tokens: Counter::default(),
            // 10 ms to 11 min: a long document takes minutes.
            call_duration: Histogram::new(exponential_buckets(0.01, 2.0, 17)),
            // 1 ms to 8 s: answers come whole, so the time of the prompt and of waiting in the server is in it.
            per_output_token: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            running: Gauge::default(),
            limit: Family::default(),
            held: Gauge::default(),
            holds: Counter::default(),
            hold_seconds: Counter::default(),
            endpoint_held: Family::default(),
            cache_hits: Counter::default(),
            cache_bytes: Gauge::default(),
            cache_entries: Gauge::default(),
            budget_left: Family::default(),
            long_documents: Family::default(),
        };
        registry.register(
            "llm_calls",
            "Calls by the base URL of the model server and by outcome: ok, truncated, or the fault",
            metrics.calls.clone(),
        );
        registry.register(
            "llm_retries",
            "Calls that were repeated, by the fault of the call before",
            metrics.retries.clone(),
        );
        registry.register(
            "llm_prompt_tokens",
            "Prompt tokens of answered calls",
            metrics.prompt_tokens.clone(),
        );
        registry.register(
            "llm_completion_tokens",
            "Completion tokens of answered calls",
            metrics.completion_tokens.clone(),
        );
        registry.register_with_unit(
            "llm_call_duration",
            "Time of answered calls, first byte out to last byte in",
            Unit::Seconds,
            metrics.call_duration.clone(),
        );
        registry.register_with_unit(
            "llm_time_per_output_token",
            "Time of an answered call, over the tokens of its answer",
            Unit::Seconds,
            metrics.per_output_token.clone(),
        );
        metrics.register_levels(registry);
        metrics.register_documents(registry);
        metrics
    }

    fn register_levels(&self, registry: &mut Registry) {
        registry.register(
            "llm_calls_in_flight",
            "Calls that run now",
            self.running.clone(),
        );
        registry.register(
            "llm_concurrency_limit",
            "Calls that may run at once, by the base URL of the server",
            self.limit.clone(),
        );
        registry.register(
            "llm_held",
            "1 while the model server cannot be used and the work is held",
            self.held.clone(),
        );
        registry.register(
            "llm_holds",
            "Times that the work was held",
            self.holds.clone(),
        );
        registry.register(
            "llm_hold_seconds",
            "Time that the work was held, counted when a hold ends",
            self.hold_seconds.clone(),
        );
        registry.register(
            "llm_endpoint_held",
            "1 while a model server is held, by its base URL",
            self.endpoint_held.clone(),
        );
    }

    fn register_documents(&self, registry: &mut Registry) {
        registry.register(
            "llm_cache_hits",
            "Documents that got the answer of an identical one",
            self.cache_hits.clone(),
        );
        registry.register_with_unit(
            "llm_cache",
            "Answers that are kept for identical documents",
            Unit::Bytes,
            self.cache_bytes.clone(),
        );
        registry.register(
            "llm_cache_entries",
            "Answers that are kept for identical documents",
            self.cache_entries.clone(),
        );
        registry.register(
            "llm_budget_left",
            "What may be used at once of a budget, below zero while more was used than reserved; by its key",
            self.budget_left.clone(),
        );
        registry.register(
            "llm_long_documents",
            "Documents longer than the context that were answered, by what was done with them",
            self.long_documents.clone(),
        );
    }

    pub(super) fn answered(
        &self,
        url: &str,
        truncated: bool,
        time: Duration,
        prompt: u64,
        completion: u64,
    ) {
        self.called(url, if truncated { "truncated" } else { "ok" });
        if let Some(tokens) = u32::try_from(completion).ok().filter(|tokens| *tokens > 0) {
            let each = time.as_secs_f64() / f64::from(tokens);
            self.per_output_token.observe(each);
        }
        self.call_duration.observe(time.as_secs_f64());
        self.prompt_tokens.inc_by(prompt);
        self.completion_tokens.inc_by(completion);
    }

    pub(super) fn failed(&self, url: &str, fault: Fault) {
        self.called(url, fault.as_str());
    }

    fn called(&self, url: &str, outcome: &'static str) {
        let endpoint = url.to_owned();
        self.calls
            .get_or_create(&Outcome { endpoint, outcome })
            .inc();
    }

    pub(super) fn retried(&self, fault: &'static str) {
        self.retries.get_or_create(&Cause { fault }).inc();
    }

    pub(super) fn call_began(&self) {
        self.running.inc();
    }

    pub(super) fn call_ended(&self) {
        self.running.dec();
    }

    pub(super) fn endpoint_limit(&self, url: &str, limit: usize) {
        let endpoint = url.to_owned();
        self.limit
            .get_or_create(&At { endpoint })
            .set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    pub(super) fn endpoint_held(&self, url: &str, is_held: bool) {
        let endpoint = url.to_owned();
        self.endpoint_held
            .get_or_create(&At { endpoint })
            .set(i64::from(is_held));
    }

    pub(super) fn cache_hit(&self) {
        self.cache_hits.inc();
    }

    pub(super) fn cached(&self, level: CacheLevel) {
        let bytes = i64::try_from(level.bytes).unwrap_or(i64::MAX);
        self.cache_bytes.set(bytes);
        let entries = i64::try_from(level.entries).unwrap_or(i64::MAX);
        self.cache_entries.set(entries);
    }

    pub(super) fn budget_left(&self, left: Left) {
        let budgets = [
            ("requests_per_minute", left.requests),
            ("tokens_per_minute", left.tokens),
            ("tokens_per_day", left.day),
        ];
        for (budget, left) in budgets {
            if let Some(left) = left {
                self.budget_left
                    .get_or_create(&Limited { budget })
                    .set(left);
            }
        }
    }

    pub(super) fn long_document(&self, summary: &LongSummary) {
        let policy = match summary {
            LongSummary::MapReduce { .. } => "map_reduce",
            LongSummary::Truncate { .. } => "truncate",
        };
        self.long_documents.get_or_create(&Done { policy }).inc();
    }

    pub(super) fn hold_began(&self) {
        self.held.set(1);
        self.holds.inc();
    }

    pub(super) fn hold_ended(&self, length: Duration) {
        self.held.set(0);
        self.hold_seconds.inc_by(length.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_exposed_under_their_documented_names() {
        let mut registry = Registry::default();
        let metrics = LlmMetrics::new(&mut registry);
        let url = "http://a:1";
        metrics.answered(url, false, Duration::from_millis(20), 5, 3);
        metrics.answered(url, true, Duration::from_millis(20), 5, 0);
        metrics.failed(url, Fault::Aborted);
        metrics.retried(Fault::Aborted.as_str());
        metrics.endpoint_limit("http://a:1", 64);
        metrics.hold_began();
        metrics.hold_ended(Duration::from_millis(1500));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "llm_calls_total{endpoint=\"http://a:1\",outcome=\"ok\"} 1",
            "llm_calls_total{endpoint=\"http://a:1\",outcome=\"truncated\"} 1",
            "llm_calls_total{endpoint=\"http://a:1\",outcome=\"aborted\"} 1",
            "llm_retries_total{fault=\"aborted\"} 1",
            "llm_prompt_tokens_total 10",
            "llm_completion_tokens_total 3",
            "llm_time_per_output_token_seconds_count 1",
            "llm_call_duration_seconds_count 2",
            "llm_calls_in_flight 0",
            "llm_concurrency_limit{endpoint=\"http://a:1\"} 64",
            "llm_held 0",
            "llm_holds_total 1",
            "llm_hold_seconds_total 1.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
