//! Topics are created where that is allowed, and refused where they would lose work; a refusal writes nothing.

use kafka_llm_processor::app::RunEnd;

use crate::harness::{COMMITS, DEAD, INPUT, OUTPUT, World, eventually, plain};

async fn failure(world: &World, set: &[&str]) -> String {
    let (end, _) = world.start(set).end().await;
    assert_eq!(end.exit_code(), 1);
    let RunEnd::Failed(error) = end else {
        panic!("{end:?}")
    };
    format!("{error:#}")
}

#[tokio::test]
async fn missing_topics_are_created_and_the_commit_topic_is_compacted() {
    let world = World::new(3).await;
    world.produce(0..3, plain);
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    for topic in [OUTPUT, DEAD, COMMITS] {
        assert_eq!(world.broker.partitions(topic), Some(3), "{topic}");
    }
    let config = |name| world.broker.topic_config(COMMITS, name);
    assert_eq!(config("cleanup.policy").as_deref(), Some("compact"));
    assert_eq!(config("segment.bytes").as_deref(), Some("1048576"));
    assert_eq!(config("min.cleanable.dirty.ratio").as_deref(), Some("0.1"));
}

#[tokio::test]
async fn a_missing_input_topic_is_created_and_waited_on() {
    let world = World::new(1).await;
    world.broker.delete_topic(INPUT).unwrap();
    let running = world.start(&[]);
    eventually("it is created", || world.broker.partitions(INPUT).is_some()).await;
    world.produce(0..4, plain);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 4);
}

#[tokio::test]
async fn a_missing_topic_with_creation_forbidden_is_named_and_nothing_is_written() {
    let world = World::new(1).await;
    let error = failure(&world, &["kafka.create_topics=false"]).await;
    assert!(
        error.contains("OUTPUT_TOPIC")
            && error.contains("`results`")
            && error.contains("kafka.create_topics"),
        "{error}"
    );
    assert_eq!(world.broker.topics(), [INPUT]);
}

#[tokio::test]
async fn a_commit_topic_that_is_not_compacted_is_refused_and_nothing_is_written() {
    let world = World::new(1).await;
    world
        .broker
        .create_topic(COMMITS, 1, &[("cleanup.policy", "delete")])
        .unwrap();
    world.produce(0..3, plain);
    let error = failure(&world, &[]).await;
    assert!(
        error.contains("kafka.commit_topic") && error.contains("cleanup.policy = delete"),
        "{error}"
    );
    let mut topics = world.broker.topics();
    topics.sort();
    assert_eq!(topics, [INPUT, COMMITS]);
    assert_eq!(world.commits(0).len(), 0);
}

#[tokio::test]
async fn a_commit_record_of_a_newer_version_is_not_overruled() {
    let world = World::new(1).await;
    world.produce(0..3, plain);
    world
        .broker
        .create_topic(COMMITS, 1, &[("cleanup.policy", "compact")])
        .unwrap();
    let newer = kafka_llm_processor::types::Record {
        key: Some("docs/0".into()),
        value: Some("{\"v\":2}".into()),
        ..kafka_llm_processor::types::Record::default()
    };
    world.broker.append(COMMITS, 0, vec![newer]).unwrap();
    let running = world.start(&[]);
    eventually("it is told", || {
        let told = |reason: String| {
            reason.contains("docs/0") && reason.contains("version 2") && reason.contains("upgrade")
        };
        // Before the group is claimed, so that a newer program that works is left alone.
        running.hold("kafka").is_some_and(told)
    })
    .await;
    running.drain().await;
    assert_eq!(world.results().len(), 0);
    assert_eq!(world.records(COMMITS).len(), 1, "no claim overrules it");
}

#[tokio::test]
async fn partitions_that_are_added_while_it_runs_are_told_of() {
    let world = World::new(1).await;
    let running = world.start(&[]);
    eventually("it is taken over", || !world.commits(0).is_empty()).await;
    world.broker.delete_topic(INPUT).unwrap();
    world.broker.create_topic(INPUT, 2, &[]).unwrap();
    eventually("they are told of", || {
        running
            .hold("new partitions of docs")
            .is_some_and(|reason| reason.contains("has 2 partitions, and had 1"))
    })
    .await;
    running.drain().await;
}
