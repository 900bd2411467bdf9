//! Documents as a model might answer them: skewed lengths, documents of one kind in bursts, a server whose load comes and goes, failures
//! that come in clusters. Nothing changes unless it is told to.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kafka_llm_processor::drift::{
    Answer, DriftConfig, Ending, Event, Fields, FinishReason, Generation, Line, Sample, signals,
};
use kafka_llm_processor::types::DeadLetterReason;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

/// How documents hang together.
#[derive(Debug, Clone, Copy)]
pub struct Kinship {
    /// Documents of a kind that come one after the other, in the mean; 1 is none of it.
    pub burst: f64,
}

/// What the model does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Model {
    /// Lengths, times this.
    pub length: f64,
    /// Time per token, times this.
    pub latency: f64,
    /// Share of documents that are refused.
    pub refusals: f64,
    /// Share that are given up.
    pub failures: f64,
    /// Share of answers that end at the limit.
    pub cut: f64,
    /// Share of `positive` that becomes `neutral`.
    pub sentiment: f64,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            length: 1.0,
            latency: 1.0,
            refusals: 0.003,
            failures: 0.005,
            cut: 0.02,
            sentiment: 0.0,
        }
    }
}

pub fn fields() -> Fields {
    Fields::of_schema(&json!({"properties": {
        "sentiment": {"enum": ["positive", "neutral", "negative"]},
        "audited": {"type": "boolean"}
    }}))
}

pub fn line(config: &DriftConfig) -> Line {
    Line::new(signals(&fields()).into(), config.clone())
}

pub fn generation(model: &str) -> Generation {
    Generation {
        model: model.to_owned(),
        server: Some("vllm-0.32.0".to_owned()),
        template: "1f96418e".to_owned(),
        schema: Some("77aa".to_owned()),
        settings: "31e754e2".to_owned(),
    }
}

pub struct Stream {
    random: StdRng,
    kinship: Kinship,
    generation: Arc<Generation>,
    is_annual: bool,
    load: f64,
    failing: u32,
    at_ms: i64,
}

impl Stream {
    pub fn new(seed: u64, kinship: Kinship) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            kinship,
            generation: Arc::new(generation("m1")),
            is_annual: false,
            load: 0.0,
            failing: 0,
            at_ms: 1_700_000_000_000,
        }
    }

    pub fn set_model(&mut self, model: &str) {
        self.generation = Arc::new(generation(model));
    }

    fn normal(&mut self) -> f64 {
        // Box and Muller.
        let (first, second): (f64, f64) = (self.random.random(), self.random.random());
        (-2.0 * (1.0 - first).ln()).sqrt() * (std::f64::consts::TAU * second).cos()
    }

    fn chance(&mut self, share: f64) -> bool {
        self.random.random::<f64>() < share
    }

    pub fn following(&mut self, model: &Model) -> Sample {
        // A third of the documents are annual reports, and they come together.
        let leave = if self.is_annual { 1.0 } else { 0.5 } / self.kinship.burst;
        if self.kinship.burst <= 1.0 {
            self.is_annual = self.chance(1.0 / 3.0);
        } else if self.chance(leave) {
            self.is_annual = !self.is_annual;
        }
        // The load's logarithm follows itself for as long as a burst lasts.
        let memory = 1.0 - 1.0 / self.kinship.burst.max(1.0);
        let noise = self.normal();
        self.load = memory * self.load + 0.15 * (1.0 - memory * memory).sqrt() * noise;
        self.at_ms += 40;
        let at = Timestamp::from_millisecond(self.at_ms).unwrap();
        // One in 4,000 documents begins a cluster of ten bad ones; it is one of the failures, not more of them.
        let clustered = if self.kinship.burst > 1.0 { 0.5 } else { 0.0 };
        if self.failing == 0 && self.chance(model.failures * clustered / 10.0) {
            self.failing = 10;
        }
        let fails = self.failing > 0 || self.chance(model.failures * (1.0 - clustered));
        self.failing = self.failing.saturating_sub(1);
        if fails {
            return Sample {
                at,
                ending: Ending::DeadLetter(DeadLetterReason::InvalidJson),
            };
        }
        Sample {
            at,
            ending: Ending::Answer(Box::new(self.answer(model))),
        }
    }

    fn answer(&mut self, model: &Model) -> Answer {
        let spread = self.normal();
        let middle = if self.is_annual { 900.0 } else { 550.0 };
        let refused = self.chance(model.refusals);
        let length = if refused { 0.2 } else { model.length };
        let characters = (middle * length * (0.4 * spread).exp()).max(1.0);
        let per_token = 4.0 + 0.2 * self.normal();
        let tokens = (characters / per_token).max(1.0);
        let jitter = 0.1 * self.normal();
        let micros = 20_000.0 * model.latency * (self.load + jitter).exp();
        let positive = if self.is_annual { 0.6 } else { 0.4 };
        let sentiment = if self.chance(positive) {
            u8::from(self.chance(model.sentiment))
        } else {
            1 + u8::from(self.chance(0.5))
        };
        let audited = u8::from(!self.is_annual);
        Answer {
            generation: Arc::clone(&self.generation),
            characters: characters as u64,
            completion_tokens: tokens as u64,
            calls: 1,
            llm: Duration::from_micros((micros * tokens) as u64),
            refused,
            finish_reason: if self.chance(model.cut) {
                FinishReason::Length
            } else {
                FinishReason::Stop
            },
            // In the order of their names.
            fields: vec![audited, sentiment],
        }
    }
}

/// The signals of the alarms.
pub fn alarms(events: &[Event]) -> Vec<String> {
    let shifted = events.iter().filter_map(|event| match event {
        Event::Shifted(finding) => Some(finding.signal.clone()),
        _ => None,
    });
    shifted.collect()
}
