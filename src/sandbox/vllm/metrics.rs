//! `/metrics`: the families of vLLM that say how loaded it is and what it has done, with its names, labels and buckets.
//!
//! Of vLLM's families these are served: requests running and waiting, KV cache usage, prompt and generation tokens, successes by
//! finish reason, refused admissions, end-to-end latency. Counters come without the `_created` lines. Waiting and cache usage
//! also come with an answer, in a header, when a request asks for them.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::engine::Load;

/// Upper bounds of the latency histogram in seconds, as vLLM 0.32 has them.
const LATENCY_BUCKETS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// KV cache of the simulated card in tokens: a gauge is made of it, nothing is bounded by it.
const KV_CACHE_TOKENS: usize = 512 * 1024;
const FINISH_REASONS: [&str; 5] = ["stop", "length", "abort", "error", "repetition"];

/// What has been done since the start.
#[derive(Debug, Clone, Default)]
struct Counters {
    prompt_tokens: u64,
    generation_tokens: u64,
    finished: [u64; FINISH_REASONS.len()],
    rejected_reqs: u64,
    rejected_tokens: u64,
    latency_buckets: [u64; LATENCY_BUCKETS.len()],
    latency_count: u64,
    latency_sum: f64,
}

#[derive(Debug, Default)]
pub(super) struct Metrics {
    counters: Mutex<Counters>,
}

impl Metrics {
    /// A request that was answered.
    pub(super) fn finished(
        &self,
        reason: &str,
        prompt_tokens: usize,
        generation_tokens: usize,
        latency: Duration,
    ) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let add = |to: &mut u64, amount: usize| {
            *to = to.saturating_add(u64::try_from(amount).unwrap_or(u64::MAX));
        };
        add(&mut counters.prompt_tokens, prompt_tokens);
        add(&mut counters.generation_tokens, generation_tokens);
        let place = FINISH_REASONS.iter().position(|name| *name == reason);
        if let Some(count) = place.and_then(|place| counters.finished.get_mut(place)) {
            add(count, 1);
        }
        let seconds = latency.as_secs_f64();
        for (bound, count) in LATENCY_BUCKETS.iter().zip(&mut counters.latency_buckets) {
            add(count, usize::from(seconds <= *bound));
        }
        add(&mut counters.latency_count, 1);
        counters.latency_sum += seconds;
    }

    /// A request that `max_num_queued_reqs` kept out.
    pub(super) fn rejected_by_reqs(&self) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.rejected_reqs = counters.rejected_reqs.saturating_add(1);
    }

    /// A request that `max_num_queued_tokens` kept out.
    pub(super) fn rejected_by_tokens(&self) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.rejected_tokens = counters.rejected_tokens.saturating_add(1);
    }

    /// A new process counts from nothing.
    pub(super) fn reset(&self) {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = Counters::default();
    }

    /// The text of `/metrics`; without a load its gauges are left out.
    pub(super) fn text(&self, model: &str, load: Option<Load>) -> String {
        let counters = self
            .counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut page = Page {
            text: String::new(),
            labels: format!("engine=\"0\",model_name=\"{model}\""),
            model,
        };
        if let Some(load) = load {
            page.load(load);
        }
        page.counters(&counters);
        page.latency(&counters);
        page.text
    }
}

/// The load as the header `endpoint-load-metrics` tells it, to a request whose `endpoint-load-metrics-format` is JSON in any case.
pub(super) fn load_header(format: &str, load: Load) -> Option<String> {
    let usage = kv_cache_usage(load);
    format.eq_ignore_ascii_case("json").then(|| {
        format!(
            r#"JSON {{"named_metrics": {{"num_requests_waiting": {}.0, "kv_cache_usage_perc": {usage:?}}}}}"#,
            load.waiting
        )
    })
}

/// From 0 to 1.
fn kv_cache_usage(load: Load) -> f64 {
    ratio(load.tokens, KV_CACHE_TOKENS)
}

/// A share from 0 to 1.
fn ratio(part: usize, whole: usize) -> f64 {
    let small = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    (small(part) / small(whole.max(1))).min(1.0)
}

struct Page<'a> {
    text: String,
    labels: String,
    model: &'a str,
}

impl Page<'_> {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.text.push_str(&format!(
            "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n"
        ));
    }

    /// A whole number, written as Python writes it.
    fn sample(&mut self, name: &str, value: &str) {
        self.line(name, "", &format!("{value}.0"));
    }

    fn line(&mut self, name: &str, more_labels: &str, value: &str) {
        let labels = &self.labels;
        self.text
            .push_str(&format!("vllm:{name}{{{labels}{more_labels}}} {value}\n"));
    }

    fn load(&mut self, load: Load) {
        self.family(
            "num_requests_running",
            "gauge",
            "Number of requests in model execution batches.",
        );
        self.sample("num_requests_running", &load.running.to_string());
        self.family(
            "num_requests_waiting",
            "gauge",
            "Number of requests waiting to be processed.",
        );
        self.sample("num_requests_waiting", &load.waiting.to_string());
        self.family(
            "kv_cache_usage_perc",
            "gauge",
            "KV-cache usage. 1 means 100 percent usage.",
        );
        let usage = kv_cache_usage(load);
        self.line("kv_cache_usage_perc", "", &format!("{usage:?}"));
    }

    fn counters(&mut self, counters: &Counters) {
        self.family(
            "prompt_tokens_total",
            "counter",
            "Number of prefill tokens processed.",
        );
        self.sample("prompt_tokens_total", &counters.prompt_tokens.to_string());
        self.family(
            "generation_tokens_total",
            "counter",
            "Number of generation tokens processed.",
        );
        self.sample(
            "generation_tokens_total",
            &counters.generation_tokens.to_string(),
        );
        self.family(
            "request_success_total",
            "counter",
            "Count of successfully processed requests.",
        );
        for (reason, count) in FINISH_REASONS.iter().zip(counters.finished) {
            let label = format!(",finished_reason=\"{reason}\"");
            self.line("request_success_total", &label, &format!("{count}.0"));
        }
        self.family(
            "admission_rejections_total",
            "counter",
            "Number of admission attempts rejected by a queue limit, by reason.",
        );
        // The one family without the label `engine`.
        for (reason, count) in [
            ("max_num_queued_reqs", counters.rejected_reqs),
            ("max_num_queued_tokens", counters.rejected_tokens),
        ] {
            self.text.push_str(&format!(
                "vllm:admission_rejections_total{{model_name=\"{}\",reason=\"{reason}\"}} {count}.0\n",
                self.model
            ));
        }
    }

    fn latency(&mut self, counters: &Counters) {
        const NAME: &str = "e2e_request_latency_seconds";
        self.family(
            NAME,
            "histogram",
            "Histogram of e2e request latency in seconds.",
        );
        for (bound, count) in LATENCY_BUCKETS.iter().zip(counters.latency_buckets) {
            let label = format!(",le=\"{bound:?}\"");
            self.line(&format!("{NAME}_bucket"), &label, &format!("{count}.0"));
        }
        let count = counters.latency_count;
        self.line(
            &format!("{NAME}_bucket"),
            ",le=\"+Inf\"",
            &format!("{count}.0"),
        );
        self.line(&format!("{NAME}_count"), "", &format!("{count}.0"));
        self.line(
            &format!("{NAME}_sum"),
            "",
            &format!("{:?}", counters.latency_sum),
        );
    }
}
