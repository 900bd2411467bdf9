//! Order is a matter of emission: results leave in the promised order while calls run at full concurrency.

use std::time::Duration;

use kafka_llm_processor::records::headers;
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, VllmConfig};

use crate::harness::{OUTPUT, World, eventually, json};

/// Source offsets of the results in the order in which they stand in the output, with their keys.
fn emitted(world: &World) -> Vec<(String, i64)> {
    let records = world.broker.records(OUTPUT).into_iter();
    records
        .map(|(_, _, record)| {
            let key = String::from_utf8(record.key.as_ref().unwrap().to_vec()).unwrap();
            (key, headers::source(&record).unwrap().offset.value())
        })
        .collect()
}

/// Forty documents of two keys; the first document of key `a` is slow.
async fn run(order: &str) -> (World, Vec<(String, i64)>) {
    let latency = Latency::fixed(Duration::from_millis(5));
    let world = World::with_vllm(
        1,
        VllmConfig {
            latency,
            ..VllmConfig::default()
        },
    )
    .await;
    world.broker.create_topic(OUTPUT, 1, &[]).unwrap();
    for number in 0..40 {
        let key = if number % 2 == 0 { "a" } else { "b" };
        world.put(
            0,
            Some(key),
            Some(&json(number, &format!("Document {number} is here."))),
        );
    }
    let slow = Action::Delay(Duration::from_millis(300));
    world
        .vllm
        .faults()
        .push(Fault::new(slow).on_prompt("Document 0 "));
    let running = world.start(&[&format!("pipeline.order={order}"), "llm.concurrency=40"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(
        world.vllm.peak_running().max(30),
        world.vllm.peak_running(),
        "calls run at once in every order"
    );
    let emitted = emitted(&world);
    assert_eq!(emitted.len(), 40);
    (world, emitted)
}

#[tokio::test]
async fn input_order_is_kept_at_full_concurrency() {
    let (_world, emitted) = run("input").await;
    assert!(
        emitted.is_sorted_by_key(|(_, offset)| *offset),
        "{emitted:?}"
    );
}

#[tokio::test]
async fn key_order_is_kept_per_key_and_holds_no_other() {
    let (_world, emitted) = run("key").await;
    for key in ["a", "b"] {
        let of_key: Vec<_> = emitted.iter().filter(|(other, _)| other == key).collect();
        assert_eq!(of_key.len(), 20);
        assert!(of_key.is_sorted_by_key(|(_, offset)| *offset), "{of_key:?}");
    }
    let first_of_a = emitted.iter().position(|(key, _)| key == "a").unwrap();
    assert_eq!(
        first_of_a, 20,
        "key b does not wait for the slow document of key a"
    );
}

#[tokio::test]
async fn completion_order_waits_for_nothing() {
    let (_world, emitted) = run("completion").await;
    assert_eq!(
        emitted.last().map(|(_, offset)| *offset),
        Some(0),
        "the slow document is last"
    );
}
