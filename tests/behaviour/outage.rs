//! An outage costs nothing but its time: nothing is lost, nothing is given up.

use std::time::Duration;

use kafka_llm_processor::app::RunEnd;
use kafka_llm_processor::sandbox::vllm::{Action, EngineState, Fault, Latency, Vllm, VllmConfig};
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::ApiKey;
use tokio::time::{Instant, sleep};

use crate::harness::{OUTPUT, Running, World, eventually, plain};

async fn slow_world() -> World {
    let latency = Latency::fixed(Duration::from_millis(5));
    World::with_vllm(
        2,
        VllmConfig {
            latency,
            ..VllmConfig::default()
        },
    )
    .await
}

#[tokio::test]
async fn a_model_server_that_goes_away_and_comes_back_loses_no_document() {
    let world = slow_world().await;
    world.produce(0..300, plain);
    let running = world.start(&["llm.concurrency=8"]);
    eventually("some results", || world.results().len() > 20).await;
    world.vllm.stop_listener().await;
    eventually("the outage is told", || running.hold("llm").is_some()).await;
    world.vllm.start_listener().await.unwrap();
    let back = Instant::now();
    eventually("the work goes on", || running.hold("llm").is_none()).await;
    assert!(
        back.elapsed() < Duration::from_secs(2),
        "within 2 s: {:?}",
        back.elapsed()
    );
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 300);
    assert_eq!(world.dead_letters().len(), 0);
}

#[tokio::test]
async fn a_dead_engine_holds_and_gives_nothing_up() {
    let world = slow_world().await;
    world.produce(0..100, plain);
    world.vllm.faults().set_engine(EngineState::Dead);
    let running = world.start(&["llm.concurrency=8", "llm.attempts=2"]);
    eventually("the outage is told", || running.hold("llm").is_some()).await;
    world.vllm.faults().set_engine(EngineState::Serving);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(
        (world.results().len(), world.dead_letters().len()),
        (100, 0)
    );
}

#[tokio::test]
async fn transient_failures_are_retried_and_counted() {
    let world = slow_world().await;
    world.produce(0..40, plain);
    for action in [
        Action::answer(500, r#"{"error":{"message":"","code":500}}"#),
        Action::HangUp,
        Action::CutMidBody,
        Action::Abort,
        Action::Garbage,
        Action::too_many_requests(Some(Duration::from_millis(1))),
    ] {
        world
            .vllm
            .faults()
            .push(Fault::new(action).on_prompt("Document"));
    }
    let running = world.start(&["llm.concurrency=4"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    let (_, summary) = running.drain().await;
    assert_eq!((world.results().len(), world.dead_letters().len()), (40, 0));
    assert!(summary.totals.retries >= 5, "{summary}");
}

#[tokio::test]
async fn a_broker_that_goes_away_and_comes_back_loses_no_document() {
    let world = slow_world().await;
    world.produce(0..300, plain);
    let running = world.start(&["llm.concurrency=8"]);
    eventually("some results", || world.results().len() > 20).await;
    world.broker.stop_listener().await;
    eventually("the outage is told", || {
        running
            .board
            .holds()
            .iter()
            .any(|hold| hold.what.contains("docs/"))
    })
    .await;
    world.broker.start_listener().await.unwrap();
    eventually("everything is committed", || world.is_all_committed()).await;
    eventually("the holds end", || running.board.holds().is_empty()).await;
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    assert_eq!(world.results().len(), 300);
    assert_eq!(world.dead_letters().len(), 0);
}

#[tokio::test]
async fn appends_that_fail_or_end_unknown_are_repeated_and_lose_nothing() {
    let world = slow_world().await;
    world.produce(0..120, plain);
    let faults = world.broker.faults();
    faults
        .on(ApiKey::Produce)
        .topic(OUTPUT)
        .times(2)
        .answer(ResponseError::NotEnoughReplicas);
    faults
        .on(ApiKey::Produce)
        .topic(OUTPUT)
        .after(3)
        .times(2)
        .hang_up_before();
    faults
        .on(ApiKey::Produce)
        .topic(OUTPUT)
        .after(6)
        .times(2)
        .hang_up_after();
    faults
        .on(ApiKey::Produce)
        .topic("test-commits")
        .after(4)
        .times(2)
        .hang_up_after();
    faults
        .on(ApiKey::Produce)
        .topic(OUTPUT)
        .after(10)
        .cut_mid_frame();
    let running = world.start(&["llm.concurrency=8"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 120);
}

/// A broker that takes requests and never answers.
#[tokio::test]
async fn a_silent_broker_is_noticed_within_the_request_timeout() {
    let world = slow_world().await;
    world.produce(0..40, plain);
    let silent = world
        .broker
        .faults()
        .on(ApiKey::Produce)
        .topic(OUTPUT)
        .keep()
        .silent();
    let running = world.start(&["kafka.request_timeout=500ms"]);
    silent.wait_for_hits(1).await;
    let met = Instant::now();
    eventually("the silence is told", || {
        running
            .board
            .holds()
            .iter()
            .any(|hold| hold.reason.contains("no answer within"))
    })
    .await;
    assert!(met.elapsed() < Duration::from_secs(5));
    silent.remove();
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 40);
}

#[tokio::test]
async fn it_starts_before_kafka_and_the_model_are_up() {
    let world = slow_world().await;
    world.produce(0..20, plain);
    world.broker.stop_listener().await;
    world.vllm.stop_listener().await;
    let running = world.start(&[]);
    eventually("both waits are told", || {
        running.hold("kafka").is_some() && running.hold("llm").is_some()
    })
    .await;
    world.broker.start_listener().await.unwrap();
    world.vllm.start_listener().await.unwrap();
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 20);
}

#[tokio::test]
async fn a_wrong_model_name_holds_and_says_what_to_change() {
    let world = slow_world().await;
    world.produce(0..5, plain);
    let began = Instant::now();
    let running = world.start(&["llm.model=no-such-model"]);
    eventually("it is told", || {
        running
            .hold("llm")
            .is_some_and(|reason| reason.contains("MODEL_NAME"))
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(5));
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    assert_eq!((world.results().len(), world.dead_letters().len()), (0, 0));
}

#[tokio::test]
async fn a_wrong_key_holds_and_says_what_to_change() {
    let config = VllmConfig {
        api_key: Some("right".to_owned()),
        ..VllmConfig::default()
    };
    let world = World::with_vllm(1, config).await;
    world.produce(0..5, plain);
    let running = world.start(&["llm.api_key=wrong"]);
    eventually("it is told", || {
        running
            .hold("llm")
            .is_some_and(|reason| reason.contains("llm.api_key"))
    })
    .await;
    assert!(
        !running.hold("llm").unwrap().contains("wrong"),
        "the key is never shown"
    );
    running.drain().await;
    let running = world.start(&["llm.api_key=right"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 5);
}

#[tokio::test]
async fn fail_fast_ends_where_run_would_wait() {
    let world = slow_world().await;
    let failed = |settings| async {
        let (end, _) = Running::start(settings, true).end().await;
        assert_eq!(end.exit_code(), 1);
        let RunEnd::Failed(error) = end else {
            panic!("{end:?}")
        };
        format!("{error:#}")
    };
    let error = failed(world.settings(&["llm.model=no-such-model"])).await;
    assert!(error.contains("MODEL_NAME"), "{error}");
    world.broker.stop_listener().await;
    let error = failed(world.settings(&[])).await;
    assert!(error.contains("kafka.brokers"), "{error}");
}

/// Memory stays bounded while nothing flows: reading stops at the bound.
#[tokio::test]
async fn an_outage_does_not_read_ahead_without_end() {
    let world = World::new(1).await;
    world.vllm.stop_listener().await;
    world.produce(0..3_000, plain);
    let running = world.start(&[
        "pipeline.read_ahead_records=100",
        "llm.concurrency=64",
        "pipeline.read_ahead_bytes=65536",
    ]);
    let open = || {
        running
            .board
            .snapshot()
            .partitions
            .first()
            .map_or(0, |partition| partition.open)
    };
    eventually("it reads ahead", || open() > 0).await;
    // Two publications later nothing more was read.
    let first = open();
    sleep(Duration::from_millis(2_100)).await;
    assert_eq!(open(), first);
    assert!(
        first < 400,
        "{first} open documents: the bound, and one fetch beyond it"
    );
    world.vllm.start_listener().await.unwrap();
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 3_000);
}

#[tokio::test]
async fn a_server_that_serves_others_is_no_outage_for_a_document_that_fails() {
    let world = slow_world().await;
    world.produce(0..30, plain);
    let poison = Action::answer(500, r#"{"error":{"message":"boom","code":500}}"#);
    world
        .vllm
        .faults()
        .push(Fault::new(poison).on_prompt("Document 9 ").kept());
    let running = world.start(&["llm.attempts=3", "llm.concurrency=4"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 29);
    let letters = world.dead_letters();
    assert_eq!(letters.len(), 1);
    let (letter, _) = &letters[&(1, 4)];
    assert_eq!(letter.reason.as_str(), "attempts_exhausted");
    assert_eq!(letter.attempts, 3);
    assert_eq!(letter.http_status, Some(500));
}

/// The processor must find a server that was replaced by another at the same address.
#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let world = slow_world().await;
    let address = world.vllm.address();
    world.produce(0..20, plain);
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    world.vllm.shutdown().await;
    let restarted = Vllm::start(VllmConfig {
        listen: address,
        ..VllmConfig::default()
    })
    .await
    .unwrap();
    world.produce(20..40, plain);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 40);
    assert!(restarted.calls() >= 20);
}

/// A server that takes connections and says nothing is told at the start, before the first document comes.
#[tokio::test]
async fn a_silent_model_server_is_told_before_the_first_document() {
    let world = World::new(1).await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("llm.url=http://{}", silent.local_addr().unwrap());
    let running = world.start(&[url.as_str()]);
    eventually("the silence is told", || running.hold("llm").is_some()).await;
    running.drain().await;
}
