//! `kill -9` of the processor: the restart finishes every document.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::sleep;

use crate::harness::{BATCH_DOCUMENTS, DOCUMENT_BYTES, DOCUMENTS, Job, Kafka, PARTITIONS, SOON};
use crate::topic_log::{Results, assert_commits_claim, assert_commits_never_fall, commits};

const KILLS: usize = 5;
const READ_AHEAD_RECORDS: usize = 256;
const READ_AHEAD_BYTES: usize = 1024 * 1024;
/// A quarter of the bytes is for fetches, an even part for each partition; a batch that begins within it is handed out whole.
const FETCH_RECORDS: usize = READ_AHEAD_BYTES / 4 / 4 / DOCUMENT_BYTES + BATCH_DOCUMENTS;

/// Five kills at random moments: every document has a result, the commits never fall, and a crash repeats no more than was open.
#[tokio::test(flavor = "multi_thread")]
async fn every_document_survives_five_kills() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let seed = std::env::var("REAL_KAFKA_SEED").ok();
    let seed = seed.map_or_else(rand::random, |seed| {
        seed.parse().expect("REAL_KAFKA_SEED is a number")
    });
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);

    let mut job = Job::with_documents(&kafka, "five-kills").await;
    job.set(
        "pipeline.read_ahead_records",
        &READ_AHEAD_RECORDS.to_string(),
    );
    job.set("pipeline.read_ahead_bytes", &READ_AHEAD_BYTES.to_string());
    let mut results = Results::new(&kafka, &job);
    for kill in 1..=KILLS {
        let processor = job.start();
        let calls = random.random_range(1..=350);
        let moment = Duration::from_micros(random.random_range(0..60_000));
        job.calls(job.vllm.calls() + calls).await;
        // Not a wait for anything: the moment itself is drawn.
        sleep(moment).await;
        processor.kill();
        results.gather().await;
        let (answered, repeats) = (results.answered.len(), results.repeats());
        eprintln!("kill {kill}: {answered} documents have a result, {repeats} repeats");
        assert!(answered < DOCUMENTS, "it was killed at work");
    }
    let processor = job.start();
    results.wait_for(DOCUMENTS).await;
    processor.drain(SOON).await;

    results.gather().await;
    results.assert_complete(DOCUMENTS / 4);
    let commits = commits(&kafka, &job).await;
    assert_commits_never_fall(&commits);
    assert_commits_claim(&commits, &results, 500);
    let open_max =
        READ_AHEAD_RECORDS + usize::try_from(PARTITIONS).expect("a count") * FETCH_RECORDS;
    let repeats = results.repeats();
    eprintln!(
        "{KILLS} kills: {repeats} results repeated (bound {}), {} calls for {DOCUMENTS} documents",
        KILLS * open_max,
        job.vllm.calls()
    );
    assert!(repeats <= KILLS * open_max, "{repeats} repeats");
}
