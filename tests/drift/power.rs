//! Streams in which something changes: how many documents pass before it is told.

use kafka_llm_processor::drift::DriftConfig;

use crate::stream::{Kinship, Model, Stream, alarms, line};

const STREAMS: u64 = 20;
const GIVEN_UP_AFTER: u32 = 20_000;

/// Documents from the change to the first alarm of the signal, one for each stream; `None` where it never came.
fn delays(config: &DriftConfig, change: Model, signal: &str, streams: u64) -> Vec<Option<u32>> {
    let delay = |seed| {
        let mut stream = Stream::new(1_000 + seed, Kinship { burst: 10.0 });
        let mut line = line(config);
        // The change comes somewhere in a window.
        let before = config.reference_documents + 1_000 + u32::try_from(seed).unwrap() * 7;
        for _ in 0..before {
            line.note(&stream.following(&Model::default()));
        }
        (1..=GIVEN_UP_AFTER).find(|_| {
            let events = line.note(&stream.following(&change));
            alarms(&events).iter().any(|found| found == signal)
        })
    };
    let mut delays: Vec<_> = (0..streams).map(delay).collect();
    delays.sort_by_key(|delay| delay.unwrap_or(u32::MAX));
    delays
}

fn changes() -> Vec<(&'static str, &'static str, Model)> {
    let model = Model::default();
    let length = |length| Model { length, ..model };
    let latency = |latency| Model { latency, ..model };
    let refusals = |refusals| Model { refusals, ..model };
    let failures = |failures| Model { failures, ..model };
    let cut = |cut| Model { cut, ..model };
    let sentiment = |sentiment| Model { sentiment, ..model };
    vec![
        ("length × 0.9", "answer_characters", length(0.9)),
        ("length × 0.8", "answer_characters", length(0.8)),
        ("length × 0.7", "answer_characters", length(0.7)),
        ("length × 0.5", "answer_characters", length(0.5)),
        ("length × 1.25", "answer_characters", length(1.25)),
        ("length × 1.5", "answer_characters", length(1.5)),
        ("length × 2", "answer_characters", length(2.0)),
        ("time per token × 1.15", "latency_per_token", latency(1.15)),
        ("time per token × 1.3", "latency_per_token", latency(1.3)),
        ("time per token × 1.5", "latency_per_token", latency(1.5)),
        ("refusals 0.3 % → 3 %", "refusal", refusals(0.03)),
        ("refusals 0.3 % → 5 %", "refusal", refusals(0.05)),
        ("refusals 0.3 % → 10 %", "refusal", refusals(0.1)),
        ("dead letters 0.5 % → 5 %", "outcome", failures(0.05)),
        ("dead letters 0.5 % → 20 %", "outcome", failures(0.2)),
        ("cut off 2 % → 10 %", "finish_reason", cut(0.1)),
        ("cut off 2 % → 20 %", "finish_reason", cut(0.2)),
        (
            "`sentiment`: a quarter of 47 % elsewhere",
            "field:sentiment",
            sentiment(0.25),
        ),
        (
            "`sentiment`: half of 47 % elsewhere",
            "field:sentiment",
            sentiment(0.5),
        ),
        (
            "`sentiment`: all of 47 % elsewhere",
            "field:sentiment",
            sentiment(1.0),
        ),
    ]
}

/// What makes every window stand out.
#[test]
fn what_is_plain_is_told_within_the_stated_number_of_documents() {
    let config = DriftConfig::default();
    let model = Model::default();
    // Five windows in a row, and the one that had begun.
    let stated = 600;
    for (signal, change) in [
        (
            "answer_characters",
            Model {
                length: 0.5,
                ..model
            },
        ),
        (
            "latency_per_token",
            Model {
                latency: 2.0,
                ..model
            },
        ),
        (
            "refusal",
            Model {
                refusals: 0.3,
                ..model
            },
        ),
        (
            "outcome",
            Model {
                failures: 0.5,
                ..model
            },
        ),
        ("finish_reason", Model { cut: 0.5, ..model }),
        (
            "field:sentiment",
            Model {
                sentiment: 1.0,
                ..model
            },
        ),
    ] {
        let delays = delays(&config, change, signal, 2);
        assert!(
            delays
                .iter()
                .all(|delay| delay.is_some_and(|delay| delay <= stated)),
            "{signal}: {delays:?}"
        );
    }
}

/// The table of `docs/drift.md`, with `DRIFT_TABLE=1`.
#[test]
fn table() {
    if std::env::var("DRIFT_TABLE").is_err() {
        return;
    }
    let config = DriftConfig::default();
    println!("| change | median | 9 of 10 within |\n|---|---|---|");
    for (name, signal, change) in changes() {
        let delays = delays(&config, change, signal, STREAMS);
        let told = |delay: Option<u32>| {
            delay.map_or_else(|| format!("> {GIVEN_UP_AFTER}"), |delay| delay.to_string())
        };
        println!("| {name} | {} | {} |", told(delays[9]), told(delays[17]));
    }
}
