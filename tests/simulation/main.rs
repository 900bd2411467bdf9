//! The processor in a simulated world: the real pipeline on a clock that stands still while it works, against a Kafka and a model in memory
//! that fail as the seed says. Whatever happens, the promises hold; and once the faults stop, everything is finished in time.
//!
//! - `broker`, `log`, `group`: Kafka; `kafka`, `model`: the edges that the pipeline calls; `instance`: what becomes of each call, and of the process.
//! - `scenario` draws what a run is made of, `conductor` runs it, `processor` starts the pipeline, `oracle` judges.
//! - `mutants`, and a few lines at the edges, are wrong on purpose: a test of the oracle.
//!
//! A seed that fails is printed first. `SIMULATION_SEED=n cargo test --test simulation` runs it again and prints all that happens in it
//! (with `-- --nocapture` also when nothing fails); `SIMULATION_SEEDS=n` sets how many seeds are run.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

mod audit;
mod broker;
mod conductor;
mod group;
mod instance;
mod kafka;
mod log;
mod model;
mod mutants;
mod oracle;
mod processor;
mod random;
mod scenario;
mod trace;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{panic, thread};

use crate::conductor::Outcome;
use crate::scenario::{Mutant, Scenario};

/// How many seeds are run when nothing else is said.
const SEEDS: u64 = 500;
/// Within so many seeds the oracle sees each mutant.
const MUTANT_SEEDS: u64 = 1_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

fn run(seed: u64, mutant: Option<Mutant>, printed: bool) -> Outcome {
    conductor::run(Scenario::draw(seed, mutant), printed)
}

/// The first seed that fails and why, of `0..seeds`, tried on all cores.
fn first_failure(seeds: u64, mutant: Option<Mutant>) -> Option<(u64, String)> {
    let next = AtomicU64::new(0);
    let end = AtomicU64::new(seeds);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut failed = None;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return failed;
            }
            let outcome = panic::catch_unwind(|| run(seed, mutant, false));
            let violation = match outcome {
                Ok(outcome) => outcome.violation,
                Err(_panic) => Some("the simulation panicked".to_owned()),
            };
            if let Some(violation) = violation {
                end.fetch_min(seed, Ordering::Relaxed);
                failed = Some((seed, violation));
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let failures = workers
            .into_iter()
            .filter_map(|worker| worker.join().unwrap());
        failures.min()
    })
}

#[test]
fn every_document_has_its_outcome_whatever_fails() {
    if let Some(seed) = number("SIMULATION_SEED") {
        println!("SIMULATION_SEED={seed}");
        let violation = run(seed, None, true).violation;
        assert_eq!(violation, None, "SIMULATION_SEED={seed}");
        return;
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    if let Some((seed, violation)) = first_failure(seeds, None) {
        panic!("SIMULATION_SEED={seed}: {violation}");
    }
}

/// The seeds reach what they are for: a simulation in which nothing goes wrong shows nothing.
#[test]
fn the_seeds_reach_every_kind_of_trouble() {
    let mut missing = BTreeSet::from([
        "done",
        "refused",
        "unknown",
        "expired",
        "fenced",
        "late request",
        "repeated batch",
        "transaction timed out",
        "open transaction aborted",
        "died before a step",
        "died after a step",
        "killed",
        "thawed",
        "two side by side",
        "too large",
        "input lost",
        "handed over",
        "membership lost",
        "membership confirmed",
        "ended: drained",
        "ended: fenced",
    ]);
    for seed in 0..SEEDS {
        let reached = run(seed, None, false).reached;
        missing.retain(|kind| !reached.contains(kind));
        if missing.is_empty() {
            return;
        }
    }
    panic!("not reached in {SEEDS} seeds: {missing:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let first = run(seed, None, false);
        let second = run(seed, None, false);
        assert_eq!(first.trace, second.trace, "SIMULATION_SEED={seed}");
    }
    assert_ne!(run(0, None, false).trace, run(1, None, false).trace);
}

fn is_seen(mutant: Mutant) {
    let failure = first_failure(MUTANT_SEEDS, Some(mutant));
    let (seed, violation) = failure.expect("the oracle sees the mutant");
    println!("{mutant:?}: seed {seed}: {violation}");
}

#[test]
fn an_owner_that_nobody_fences_is_seen() {
    is_seen(Mutant::NobodyIsFenced);
}

#[test]
fn results_acknowledged_before_they_are_written_are_seen() {
    is_seen(Mutant::AcksBeforeWriting);
}

#[test]
fn a_transaction_that_ends_before_its_results_is_seen() {
    is_seen(Mutant::EndsBeforeAppending);
}

#[test]
fn a_scan_that_hides_the_newest_commit_is_seen() {
    is_seen(Mutant::HidesNewestCommit);
}

#[test]
fn a_broker_that_forgets_sequences_is_seen() {
    is_seen(Mutant::ForgetsSequences);
}

#[test]
fn a_scan_that_hands_out_aborted_commits_is_seen() {
    is_seen(Mutant::HandsOutAborted);
}

#[test]
fn a_coordinator_that_gives_a_partition_to_two_members_is_seen() {
    is_seen(Mutant::DealsTwice);
}

#[test]
fn a_hand_over_that_does_not_wait_for_the_former_owner_is_seen() {
    is_seen(Mutant::HandsOverEarly);
}
