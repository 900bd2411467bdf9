//! The tracker at work: one record in, one out, and the position for a commit.
//!
//! Estimate before measuring: the open records are a B-tree of 8-byte offsets, three levels deep at ten thousand. Inserting at its end
//! and removing somewhere is a cache-warm descent each, 50 to 100 ns: 0.2 µs for one record's whole stay, hardly more with ten times as
//! many open. A position walks all open records at 2 to 5 ns each: 1 000 open 5 µs, 10 000 open 50 µs; with as many finished ranges
//! between them, written to a vector of 16-byte pairs, twice that. At one position per flush, and twenty flushes a second, that is 0.2 %
//! of a core in the worst case.

#![allow(missing_docs, reason = "a bench fails by panicking")]

use kafka_llm_processor::offsets::{CommitPosition, Tracker};
use kafka_llm_processor::types::Offset;

fn main() {
    divan::main();
}

const OPEN: [i64; 2] = [1_000, 10_000];

fn with_open(open: i64) -> Tracker {
    let mut tracker = Tracker::new(CommitPosition::default());
    for offset in 0..open {
        assert!(tracker.receive(Offset::new(offset)));
    }
    tracker
}

/// One record comes, an arbitrary one of those that are open ends.
#[divan::bench(args = OPEN)]
fn receive_and_finish(bencher: divan::Bencher, open: i64) {
    let mut tracker = with_open(open);
    let mut offsets: Vec<i64> = (0..open).collect();
    let mut next = open;
    let mut random: usize = 1;
    bencher.bench_local(|| {
        tracker.receive(Offset::new(next));
        offsets.push(next);
        next += 1;
        // Knuth's multiplier: scattered, and the same in each run.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let ended = offsets.swap_remove((random >> 33) % offsets.len());
        tracker.finish(Offset::new(ended));
    });
}

/// Everything that was read is open.
#[divan::bench(args = OPEN)]
fn position_of_a_prefix(bencher: divan::Bencher, open: i64) {
    let tracker = with_open(open);
    bencher.bench(|| divan::black_box(&tracker).position());
}

/// Every second record is finished: as many ranges as open records.
#[divan::bench(args = OPEN)]
fn position_with_a_range_between_any_two(bencher: divan::Bencher, open: i64) {
    let mut tracker = with_open(2 * open);
    for offset in (1..2 * open).step_by(2) {
        tracker.finish(Offset::new(offset));
    }
    bencher.bench(|| divan::black_box(&tracker).position());
}
