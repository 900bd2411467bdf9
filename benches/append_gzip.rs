//! Compressing one appended batch of 100 results: gzip on zlib-rs, at level 3 as our own driver does it (`kafka::wire`), and at level 6 as
//! rskafka does it, which fixes that.
//!
//! Estimate before measuring: results are JSON with much in common, some 0.9 KiB each with their headers. zlib-rs took 33 µs per KiB of
//! text at level 6, 9 µs at level 3 and 4 µs at level 1 when it was chosen: 3 ms, 0.8 ms and 0.4 ms for 88 KiB, at a ratio of 5 to 8.
//! That is 8 µs per document at level 3 and 30 µs at level 6, so one core compresses for 120 000 or 30 000 documents a second. It runs on
//! the executor's thread: a batch of the largest size, 512 KiB, holds that thread for 5 or 17 ms.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench fails by panicking"
)]

use std::fmt::Write as _;
use std::io::Write as _;

use divan::counter::BytesCount;
use flate2::Compression;
use flate2::write::GzEncoder;

fn main() {
    report_ratios();
    divan::main();
}

const RECORDS: usize = 100;

/// A generator of numbers below a bound, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Made-up words; few of them make up most of a text, as in language.
fn vocabulary(random: &mut Random) -> Vec<String> {
    const SYLLABLES: [&str; 16] = [
        "re", "ven", "ue", "mar", "gin", "ta", "con", "di", "ly", "for", "est", "quar", "ter",
        "ing", "pro", "s",
    ];
    let word = |random: &mut Random| -> String {
        let syllables = 1 + random.below(4);
        (0..syllables)
            .filter_map(|_| SYLLABLES.get(usize::try_from(random.below(16)).unwrap()))
            .copied()
            .collect()
    };
    (0..3_000).map(|_| word(random)).collect()
}

/// Results as they are written: what differs from one to the next is ids, figures, times and the answer.
fn batch() -> Vec<u8> {
    let mut random = Random(1);
    let words = vocabulary(&mut random);
    let mut text = String::new();
    for record in 0..RECORDS {
        let mut answer = String::new();
        while answer.len() < 350 {
            let rank = random.below(3_000) * random.below(3_000) / 3_000;
            answer.push_str(words.get(usize::try_from(rank).unwrap()).unwrap());
            answer.push(' ');
        }
        let mut next = |bound| random.below(bound);
        let prompt_hash = format!("{:08x}{:08x}", next(1 << 31), next(1 << 31));
        let (tokens, llm_ms) = (next(400), next(5_000));
        write!(
            text,
            r#"klp.source.topicfinancial-documentsklp.source.partition{}klp.source.offset{record}klp.document.iddocument-{record}klp.schema1klp.statusok{{"schema":1,"document_id":"document-{record}","status":"ok","output":{{"text":"{answer}"}},"finish_reason":"stop","model":"mistralai/Mistral-7B-Instruct-v0.2","system_fingerprint":"vllm-0.32.0","generation":"0f3c9a51b2d87e64","prompt_hash":"{prompt_hash}","usage":{{"prompt_tokens":{tokens},"completion_tokens":{},"total_tokens":{},"calls":1}},"timing":{{"queued_ms":{},"llm_ms":{llm_ms},"total_ms":{}}},"attempts":1,"truncated":null,"source":{{"topic":"financial-documents","partition":{},"offset":{record},"timestamp":"2026-01-02T03:04:05Z"}},"completed_at":"2026-01-02T03:04:{:02}.{:03}Z"}}"#,
            next(4),
            next(80),
            tokens + next(80),
            next(900),
            llm_ms + next(900),
            next(4),
            next(60),
            next(1_000),
        )
        .unwrap();
    }
    text.into_bytes()
}

/// Ours is 3 and rskafka's 6; the first shows what another choice would save.
const LEVELS: [u32; 3] = [1, 3, 6];

fn compress(batch: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(batch.len()), Compression::new(level));
    encoder.write_all(batch).unwrap();
    encoder.finish().unwrap()
}

#[divan::bench(args = LEVELS)]
fn gzip(bencher: divan::Bencher, level: u32) {
    let batch = batch();
    bencher
        .counter(BytesCount::new(batch.len()))
        .bench(|| compress(divan::black_box(&batch), level));
}

#[allow(clippy::print_stdout, reason = "the ratio is a result of the bench")]
fn report_ratios() {
    let batch = batch();
    for level in LEVELS {
        let tenths = batch.len() * 10 / compress(&batch, level).len();
        let (from, whole, tenth) = (batch.len(), tenths / 10, tenths % 10);
        println!("{RECORDS} records, {from} bytes, level {level}: {whole}.{tenth} to 1");
    }
}
