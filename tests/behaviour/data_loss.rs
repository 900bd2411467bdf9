//! What the outside takes away while documents flow is told, and work goes on as `input.on_data_loss` says. Nothing else is lost.

use kafka_llm_processor::types::Offset;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::ApiKey;

use crate::harness::{INPUT, OUTPUT, Running, World, eventually, plain};

/// Ten documents are done; then `change` happens to the input while nothing can be fetched.
async fn changed_unseen(set: &[&str], change: impl FnOnce(&World)) -> (World, Running) {
    let world = World::new(1).await;
    world.produce(0..10, plain);
    let running = world.start(set);
    eventually("everything is committed", || world.is_all_committed()).await;
    let cut = world
        .broker
        .faults()
        .on(ApiKey::Fetch)
        .topic(INPUT)
        .hang_up_before();
    // Whatever was waiting for records before has had its answer then.
    cut.wait_for_hits(1).await;
    change(&world);
    cut.remove();
    (world, running)
}

fn delete_unread(world: &World) {
    world.produce(10..30, plain);
    world
        .broker
        .delete_records(INPUT, 0, Offset::new(15))
        .unwrap();
}

fn create_again_with_three(world: &World) {
    world.broker.delete_topic(INPUT).unwrap();
    world.broker.create_topic(INPUT, 1, &[]).unwrap();
    world.produce(0..3, plain);
}

#[tokio::test]
async fn input_deleted_unread_while_it_runs_holds_the_partition_and_names_both_offsets() {
    let (world, running) = changed_unseen(&[], delete_unread).await;
    eventually("the loss is told", || {
        running.hold("partition docs/0").is_some_and(|reason| {
            reason.contains("offset 10")
                && reason.contains("begins at 15")
                && reason.contains("input.on_data_loss")
        })
    })
    .await;
    running.drain().await;
    assert_eq!(world.results().len(), 10, "nothing more is read");
    assert_eq!(world.commit_offset(0), Some(10));
}

#[tokio::test]
async fn input_deleted_unread_while_it_runs_is_stepped_over_where_that_is_the_policy() {
    let set = ["input.on_data_loss=resume"];
    let (world, running) = changed_unseen(&set, delete_unread).await;
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("nothing holds", || running.board.holds().is_empty()).await;
    world.produce(30..40, plain);
    eventually("what comes later too", || world.is_all_committed()).await;
    running.drain().await;
    let results = world.results();
    assert_eq!(results.len(), 10 + 15 + 10);
    assert!(results.values().all(|results| results.len() == 1));
    let epochs: Vec<_> = world.commits(0);
    assert_eq!(epochs.last().unwrap()["owner_epoch"], 2, "taken over anew");
}

/// The new log ends before the position: the fetch is refused.
#[tokio::test]
async fn a_topic_created_again_while_it_runs_is_read_from_its_beginning_where_that_is_the_policy() {
    let set = ["input.on_data_loss=resume"];
    let (world, running) = changed_unseen(&set, create_again_with_three).await;
    eventually("the new topic is read", || {
        world.commit_offset(0) == Some(3)
    })
    .await;
    world.produce(3..8, plain);
    eventually("what comes later too", || world.is_all_committed()).await;
    running.drain().await;
    let results = world.results();
    assert!((0..3).all(|offset| results[&(0, offset)].len() == 2));
    assert_eq!(world.commit_offset(0), Some(8));
    let id = world.broker.topic_id(INPUT).unwrap().to_string();
    assert_eq!(world.commits(0).last().unwrap()["topic_id"], id.as_str());
}

#[tokio::test]
async fn a_topic_created_again_while_it_runs_holds_the_partition() {
    let (world, running) = changed_unseen(&[], create_again_with_three).await;
    eventually("the loss is told", || {
        running
            .hold("partition docs/0")
            .is_some_and(|reason| reason.contains("created again"))
    })
    .await;
    running.drain().await;
    assert_eq!(world.commit_offset(0), Some(10));
    assert_eq!(world.results().len(), 10);
}

/// A leader that is catching up may refuse an offset that is in the log: that is no loss.
#[tokio::test]
async fn a_refusal_of_an_offset_inside_the_log_is_no_loss() {
    let world = World::new(1).await;
    let refused = world
        .broker
        .faults()
        .on(ApiKey::Fetch)
        .topic(INPUT)
        .times(3)
        .answer(ResponseError::OffsetOutOfRange);
    world.produce(0..10, plain);
    let running = world.start(&[]);
    refused.wait_for_hits(3).await;
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 10);
}

/// Somebody deleted it, so it is not created behind their back.
#[tokio::test]
async fn a_deleted_output_topic_holds_the_results_until_it_is_there_again() {
    let world = World::new(1).await;
    world.produce(0..10, plain);
    let running = world.start(&["kafka.create_topics=true"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    world.broker.delete_topic(OUTPUT).unwrap();
    world.produce(10..25, plain);
    eventually("the topic is named", || {
        running.hold("results of docs/0").is_some_and(|reason| {
            reason.contains("topic `results` does not exist")
                && reason.contains("not created again")
        })
    })
    .await;
    assert_eq!(world.broker.partitions(OUTPUT), None);
    assert_eq!(world.commit_offset(0), Some(10));
    world.broker.create_topic(OUTPUT, 1, &[]).unwrap();
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("the hold ends", || running.board.holds().is_empty()).await;
    running.drain().await;
    let offsets: Vec<_> = world.results().into_keys().collect();
    let expected: Vec<_> = (10..25).map(|offset| (0, offset)).collect();
    assert_eq!(offsets, expected);
}
