//! A configuration that is read anew holds for documents that begin then, and is refused as a whole when only a restart could follow it.

use kafka_llm_processor::app::{App, RunEnd};
use kafka_llm_processor::sandbox::vllm::{Latency, VllmConfig};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use crate::harness::{World, eventually, plain};

#[tokio::test]
async fn a_reload_holds_from_the_next_document_on_or_not_at_all() {
    let vllm = VllmConfig {
        latency: Latency::fixed(Duration::from_millis(50)),
        ..VllmConfig::default()
    };
    let world = World::with_vllm(1, vllm).await;
    let first = ["llm.concurrency=2", "prompt.user=First: {{ content }}"];
    let app = App::build(world.settings(&first)).unwrap();
    let (board, mut reloader) = (app.board(), app.reloader());
    let drain = CancellationToken::new();
    let task = tokio::spawn(app.run(drain.clone(), false));
    world.produce(0..4, plain);
    eventually("they are committed", || world.is_all_committed()).await;
    let generation = || board.snapshot().info["generation"].clone();
    let before = generation();

    // One that cannot be followed, one that cannot be used, and one that cannot be read.
    let second = ["llm.concurrency=6", "prompt.user=Second: {{ content }}"];
    let broken = ["llm.concurrency=6", "prompt.user=Second: {{ content"];
    let moved = [&second[..], &["output.topic=elsewhere"]].concat();
    reloader.reload(|| Ok(world.settings(&moved)));
    reloader.reload(|| Ok(world.settings(&broken)));
    reloader.reload(|| {
        kafka_llm_processor::config::Settings::load(Some("no-such-file".as_ref()), [], &[])
    });
    let status = board.snapshot();
    assert_eq!(
        (status.config_generation, generation()),
        (1, before.clone())
    );
    world.produce(4..8, plain);
    eventually("they are committed", || world.is_all_committed()).await;
    assert!(world.vllm.peak_running() <= 2);

    reloader.reload(|| Ok(world.settings(&second)));
    let after = generation();
    assert_ne!(after, before);
    assert_eq!(board.snapshot().config_generation, 2);
    world.produce(8..40, plain);
    eventually("more calls run", || world.vllm.running() > 2).await;
    eventually("everything is committed", || world.is_all_committed()).await;
    let results = world.results();
    assert_eq!(results.len(), 40);
    let hash = |offset: i64| &results[&(0, offset)][0].prompt_hash;
    for ((_, offset), results) in &results {
        let expected = if *offset < 8 { &before } else { &after };
        assert_eq!(results[0].generation, *expected, "{offset}");
        assert_eq!(
            hash(*offset),
            hash(if *offset < 8 { 0 } else { 39 }),
            "{offset}"
        );
    }
    assert_ne!(hash(0), hash(39));
    drain.cancel();
    assert!(matches!(task.await.unwrap().0, RunEnd::Drained));
}
