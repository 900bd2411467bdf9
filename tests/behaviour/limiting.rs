//! What limits the work is named while it does, with the numbers and the record that blocks.

use std::time::Duration;

use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, VllmConfig};
use kafka_llm_processor::telemetry::limiting::{Factor, Limiting};
use kafka_protocol::messages::ApiKey;

use crate::harness::{INPUT, OUTPUT, Running, World, eventually, plain};

async fn world(partitions: i32, latency: Duration) -> World {
    let config = VllmConfig {
        latency: Latency::fixed(latency),
        ..VllmConfig::default()
    };
    World::with_vllm(partitions, config).await
}

/// Waits until that factor is shown, and gives back what is shown of it.
async fn limited_by(running: &Running, factor: Factor) -> Limiting {
    let shown = || running.board.snapshot().limiting;
    let what = format!("limited by {factor}");
    eventually(&what, || {
        shown().is_some_and(|limiting| limiting.factor == factor)
    })
    .await;
    shown().unwrap()
}

#[track_caller]
fn assert_tells(limiting: &Limiting, words: &[&str]) {
    for word in words {
        assert!(limiting.detail.contains(word), "{word}: {limiting:?}");
    }
}

#[tokio::test]
async fn a_slow_model_limits_and_its_slots_are_told() {
    let world = world(2, Duration::from_secs(2)).await;
    world.produce(0..200, plain);
    let running = world.start(&["llm.concurrency=4"]);
    let limiting = limited_by(&running, Factor::ModelServer).await;
    let words = ["4 of 4 calls", "wait for a slot", "llm.concurrency"];
    assert_tells(&limiting, &words);
    let status = running.board.snapshot();
    let [endpoint] = &status.model.endpoints[..] else {
        panic!("{:?}", status.model);
    };
    assert_eq!((endpoint.limit, endpoint.breaker), (4, "closed"));
    running.kill().await;
}

#[tokio::test]
async fn the_queue_that_a_server_tells_of_is_told() {
    let config = VllmConfig {
        latency: Latency::fixed(Duration::from_millis(600)),
        max_num_seqs: 2,
        ..VllmConfig::default()
    };
    let world = World::with_vllm(1, config).await;
    world.produce(0..300, plain);
    let running = world.start(&["llm.concurrency=adaptive"]);
    eventually("the server's own queue is told", || {
        let limiting = running.board.snapshot().limiting;
        limiting.is_some_and(|limiting| limiting.detail.contains("requests wait in the server"))
    })
    .await;
    limited_by(&running, Factor::ModelServer).await;
    running.kill().await;
}

#[tokio::test]
async fn a_budget_that_is_used_up_limits() {
    let world = world(1, Duration::ZERO).await;
    world.produce(0..60, plain);
    let running = world.start(&["llm.requests_per_minute=6"]);
    limited_by(&running, Factor::Budget).await;
    // Which one is told as soon as it has been waited for a second.
    eventually("the budget is named", || {
        let limiting = running.board.snapshot().limiting;
        limiting.is_some_and(|limiting| {
            limiting.factor == Factor::Budget
                && limiting
                    .detail
                    .contains("llm.requests_per_minute is used up")
        })
    })
    .await;
    running.kill().await;
}

#[tokio::test]
async fn a_dead_model_server_limits_through_the_breaker_until_it_is_back() {
    let world = world(1, Duration::from_millis(5)).await;
    world.vllm.stop_listener().await;
    world.produce(0..40, plain);
    let running = world.start(&[]);
    let limiting = limited_by(&running, Factor::Breaker).await;
    assert_tells(&limiting, &["40 documents wait", "LLM_URL"]);
    let breaker = &running.board.snapshot().model.endpoints[0];
    assert!(breaker.breaker != "closed" && breaker.held.is_some());
    world.vllm.start_listener().await.unwrap();
    limited_by(&running, Factor::InputEmpty).await;
    running.drain().await;
}

/// The first of a partition takes its time, and all behind it are answered.
#[tokio::test]
async fn the_record_that_all_others_wait_for_is_named() {
    let world = world(1, Duration::from_millis(5)).await;
    let hangs = Fault::new(Action::HangForEver).on_prompt("Document 3 reports");
    world.vllm.faults().push(hangs);
    world.produce(0..60, plain);
    let running = world.start(&["pipeline.order=input"]);
    let limiting = limited_by(&running, Factor::Order).await;
    let blocker = limiting.blocker.as_ref().unwrap();
    assert_eq!(
        (
            blocker.topic.as_str(),
            blocker.partition,
            blocker.offset.value()
        ),
        ("docs", 0, 3)
    );
    assert_tells(
        &limiting,
        &["56 answered documents", "docs/0@3", "is with the model"],
    );
    running.kill().await;
}

#[tokio::test]
async fn appends_that_take_long_limit() {
    let world = world(1, Duration::ZERO).await;
    world.broker.create_topic(OUTPUT, 1, &[]).unwrap();
    let slow = world.broker.faults().on(ApiKey::Produce).keep();
    slow.topic(OUTPUT).delay(Duration::from_millis(700));
    world.produce(0..2_000, plain);
    let running = world.start(&["llm.concurrency=16", "pipeline.read_ahead_records=64"]);
    let limiting = limited_by(&running, Factor::Appends).await;
    assert_tells(&limiting, &["outcomes wait for Kafka", "docs/0"]);
    running.kill().await;
}

#[tokio::test]
async fn a_broker_that_is_gone_limits_through_the_appends() {
    let world = world(1, Duration::from_millis(20)).await;
    world.produce(0..200, plain);
    let running = world.start(&["llm.concurrency=4"]);
    eventually("some results", || world.results().len() > 10).await;
    world.broker.stop_listener().await;
    limited_by(&running, Factor::Appends).await;
    world.broker.start_listener().await.unwrap();
    limited_by(&running, Factor::InputEmpty).await;
    running.drain().await;
    world.assert_all_have_results(200);
}

#[tokio::test]
async fn a_kafka_that_gives_records_slowly_limits() {
    let world = world(1, Duration::ZERO).await;
    let slow = world.broker.faults().on(ApiKey::Fetch).keep();
    slow.topic(INPUT).delay(Duration::from_millis(900));
    world.produce(0..5_000, plain);
    let running = world.start(&[]);
    let limiting = limited_by(&running, Factor::Reading).await;
    assert_tells(&limiting, &["records are unread", "docs/0"]);
    running.kill().await;
}

/// What the model could take is more than what may be read ahead.
#[tokio::test]
async fn a_bound_on_reading_ahead_that_is_too_low_limits() {
    let world = world(1, Duration::from_secs(1)).await;
    world.produce(0..400, plain);
    let set = ["llm.concurrency=adaptive", "pipeline.read_ahead_records=8"];
    let running = world.start(&set);
    let limiting = limited_by(&running, Factor::ReadAhead).await;
    assert_tells(&limiting, &["pipeline.read_ahead_records", "calls run"]);
    running.kill().await;
}

#[tokio::test]
async fn an_empty_input_limits_from_the_start_and_a_stop_is_told() {
    let world = world(2, Duration::from_millis(5)).await;
    let running = world.start(&[]);
    let limiting = limited_by(&running, Factor::InputEmpty).await;
    assert_tells(&limiting, &["nothing is unread"]);
    world
        .vllm
        .faults()
        .push(Fault::new(Action::Delay(Duration::from_secs(5))));
    world.produce(0..1, plain);
    eventually("it is asked", || {
        running.board.snapshot().model.endpoints[0].in_flight == 1
    })
    .await;
    running.begin_drain();
    limited_by(&running, Factor::Draining).await;
    running.end().await;
}

#[tokio::test]
async fn before_the_topics_are_there_it_is_starting() {
    let world = world(1, Duration::ZERO).await;
    world.broker.stop_listener().await;
    let running = world.start(&[]);
    limited_by(&running, Factor::Starting).await;
    eventually("why is told", || {
        let limiting = running.board.snapshot().limiting;
        limiting.is_some_and(|limiting| limiting.detail.contains("kafka.brokers"))
    })
    .await;
    running.kill().await;
}
