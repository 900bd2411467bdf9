//! Everything that reads bytes from outside, on what was found worth keeping and on what a seeded chance makes of it, for a bounded time.
//!
//! `FUZZ_SECONDS` is how long each target gets (default 1), `FUZZ_SEED` where chance begins. `cargo fuzz` runs the same targets, guided by
//! coverage: see `tests/fuzz/Cargo.toml`. What either finds belongs into the corpus.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test binary: what is not as expected ends the test"
)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kafka_llm_processor::fuzzing::{TARGETS, Target};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

/// The longest input that chance makes: what is longer finds nothing new.
const INPUT_BYTES_MAX: usize = 4096;
/// One reading takes no longer, in a build without optimisation on a busy machine. A batch may inflate to 64 MiB.
const READ_WITHIN: Duration = Duration::from_secs(20);
/// Inputs are small: a batch that inflates to its bound, twice over while it grows, and a zstd window of 128 MiB are the most that any of
/// them may ask for.
const PEAK_KIB_MAX: u64 = 512 * 1024;

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let entries = fs::read_dir(folder.join(target)).expect("each target has a corpus");
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    files
}

/// Reads once; what went wrong, if anything.
fn read(target: &Target, input: &[u8]) -> Result<(), String> {
    let began = Instant::now();
    let read = catch_unwind(AssertUnwindSafe(|| (target.read)(input)));
    let took = began.elapsed();
    match read {
        Err(_) => Err("it panics".to_owned()),
        Ok(()) if took > READ_WITHIN => Err(format!("it takes {took:?}")),
        Ok(()) => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Numbers at which readers break: bounds of their types, and what a count or length announces.
const NUMBERS: [&[u8]; 10] = [
    &[0x7f, 0xff, 0xff, 0xff],
    &[0x80, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xfe, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0, 0, 0, 0],
    &[0x7f, 0xff],
    b"[[[[[[[[{\"a\":",
];

/// One change, as fuzzers make them.
fn change(chance: &mut StdRng, input: &mut Vec<u8>, others: &[(PathBuf, Vec<u8>)]) {
    let at = chance.random_range(0..=input.len());
    match chance.random_range(0..7) {
        0 if at < input.len() => input[at] ^= 1 << chance.random_range(0..8),
        1 if at < input.len() => input[at] = chance.random(),
        2 => input.truncate(at),
        3 => {
            let number = NUMBERS.choose(chance).unwrap();
            let end = (at + number.len()).min(input.len());
            input.splice(at..end, number.iter().copied());
        }
        4 => {
            let piece = input[at..].to_vec();
            input.extend(piece);
        }
        5 => {
            let (_, other) = others.choose(chance).unwrap();
            let from = chance.random_range(0..=other.len());
            input.splice(at.., other[from..].iter().copied());
        }
        _ => input.insert(at, chance.random()),
    }
    input.truncate(INPUT_BYTES_MAX);
}

/// Most memory that this process ever held.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = peak.expect("it tells this").split_whitespace().next();
    number.and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn nothing_from_outside_panics_hangs_or_takes_memory() {
    let within = Duration::from_secs(number("FUZZ_SECONDS", 1));
    let seed = number("FUZZ_SEED", 1);
    for target in &TARGETS {
        let corpus = corpus(target.name);
        for (path, input) in &corpus {
            if let Err(problem) = read(target, input) {
                panic!("{}: {problem}", path.display());
            }
        }
        let mut chance = StdRng::seed_from_u64(seed);
        let (began, mut inputs) = (Instant::now(), 0_u64);
        while began.elapsed() < within {
            let (_, start) = corpus.choose(&mut chance).unwrap();
            let mut input = start.clone();
            for _ in 0..chance.random_range(1..6) {
                change(&mut chance, &mut input, &corpus);
            }
            inputs += 1;
            if let Err(problem) = read(target, &input) {
                let name = target.name;
                panic!(
                    "{name}: {problem}, input {inputs} of seed {seed}: {}",
                    hex(&input)
                );
            }
        }
        println!("{}: {} files, {inputs} inputs", target.name, corpus.len());
        assert!(inputs > 10, "{}: only {inputs} inputs", target.name);
        let peak = peak_kib();
        assert!(peak < PEAK_KIB_MAX, "{}: {peak} KiB", target.name);
    }
}
