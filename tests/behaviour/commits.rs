//! Commit records stay within their bound, and flushes come no more often than they have to.

use std::time::Duration;

use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, VllmConfig};
use kafka_llm_processor::telemetry::limiting::Factor;
use tokio::time::Instant;

use crate::harness::{COMMITS, GROUP, INPUT, World, eventually, json, plain};

/// Every second document waits behind the first, whose call hangs: each finished one between them is a range of the commit record.
#[tokio::test]
async fn read_ahead_waits_before_the_commit_record_passes_its_bound_and_nothing_is_lost() {
    const BOUND: usize = 16 * 1024;
    const DOCUMENTS: usize = 3_000;
    let world = World::new(1).await;
    for number in 0..DOCUMENTS {
        let key = (number % 2 == 0).then_some("stuck");
        let text = format!("Document {number} is here.");
        world.put(0, key, Some(&json(number, &text)));
    }
    world
        .vllm
        .faults()
        .push(Fault::new(Action::HangForEver).on_prompt("Document 0 "));
    let running = world.start(&[
        "pipeline.order=key",
        "pipeline.read_ahead_records=20000",
        "pipeline.read_ahead_bytes=67108864",
        "processing.commit_record_bytes_max=16384",
        "processing.commit_interval_ms=50",
        "llm.timeout=25s",
    ]);
    let stuck = || {
        let partition = running.board.snapshot().partitions.into_iter().next();
        partition.filter(|partition| partition.in_flight == 1 && partition.open > 1_000)
    };
    eventually(
        "only the first is with the model, and nothing more is read",
        || {
            stuck().is_some_and(|partition| {
                partition.read_ahead_waits.is_some_and(|reason| {
                    reason.contains("of 16384 bytes") && reason.contains("waits for offset 0")
                })
            })
        },
    )
    .await;
    assert!(running.hold("read-ahead of docs/0").is_some());
    eventually("it is told that this limits", || {
        let limiting = running.board.snapshot().limiting;
        limiting.is_some_and(|limiting| {
            let blocker = limiting.blocker.map(|blocker| blocker.offset.value());
            limiting.factor == Factor::CommitRecord && blocker == Some(0)
        })
    })
    .await;
    let reached = stuck().map(|partition| partition.next_fetch_offset.value());
    assert!(
        reached.is_some_and(|reached| reached < 3_000),
        "{reached:?}"
    );

    // Told by the board: to read thousands of large commit records again and again would take all the time.
    eventually("everything is committed", || {
        let partitions = running.board.snapshot().partitions;
        partitions
            .iter()
            .any(|partition| partition.commit_offset.value() == 3_000)
    })
    .await;
    assert!(world.is_all_committed());
    eventually("nothing holds", || running.board.holds().is_empty()).await;
    running.drain().await;
    assert_eq!(world.results().len(), DOCUMENTS);
    let largest = world
        .broker
        .records(COMMITS)
        .into_iter()
        .filter_map(|(_, _, record)| record.value.map(|value| value.len()))
        .max();
    assert!(
        largest.is_some_and(|bytes| bytes <= BOUND && bytes > BOUND / 2),
        "the bound is used and not passed: {largest:?}"
    );
}

/// A commit interval that is longer than the test may take: what waits for nobody is not kept back by it.
#[tokio::test]
async fn an_idle_partition_commits_at_once() {
    let world = World::new(1).await;
    let running = world.start(&["processing.commit_interval_ms=600000"]);
    for number in 0..3 {
        world.produce(number..number + 1, plain);
        eventually("it is committed", || world.is_all_committed()).await;
    }
    running.drain().await;
    assert_eq!(world.results().len(), 3);
}

#[tokio::test]
async fn a_busy_partition_commits_once_per_interval_and_the_summary_tells_the_rate() {
    const INTERVAL: Duration = Duration::from_millis(100);
    let config = VllmConfig {
        latency: Latency::fixed(Duration::from_millis(5)),
        ..VllmConfig::default()
    };
    let world = World::with_vllm(1, config).await;
    world.produce(0..200, plain);
    let begun = Instant::now();
    let running = world.start(&["processing.commit_interval_ms=100", "llm.concurrency=2"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    let intervals = begun.elapsed().as_millis() / INTERVAL.as_millis();
    let (_, summary) = running.drain().await;
    // Beside one per interval: the claim, the last one, and one that steps to the end of what was read.
    let commits = world.commits(0).len();
    assert!(
        commits <= usize::try_from(intervals).unwrap() + 3,
        "{commits} commits in {intervals} intervals"
    );
    let totals = &summary.totals;
    assert!(totals.flushes >= 3 && totals.flushes < u64::try_from(commits).unwrap());
    assert!(totals.commit_bytes > totals.flushes * 100);
    assert!(summary.to_string().contains("bytes per document"));
}

/// Lag tools do not wait for the next commit, which may be far away.
#[tokio::test]
async fn the_group_in_kafka_shows_what_a_killed_owner_has_committed_as_soon_as_there_is_another() {
    let world = World::new(2).await;
    let running = world.start(&[]);
    // The copy at the start is made, the next comes in five seconds.
    eventually("a copy is made", || {
        world.broker.committed_offset(GROUP, INPUT, 0) == Some(0)
    })
    .await;
    world.produce(0..20, plain);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.kill().await;
    assert!(!world.is_all_mirrored());
    let began = Instant::now();
    let running = world.start(&[]);
    eventually("lag tools see it", || world.is_all_mirrored()).await;
    assert!(began.elapsed() < Duration::from_secs(12));
    running.drain().await;
}
