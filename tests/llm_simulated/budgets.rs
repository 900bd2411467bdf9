//! Budgets over real time: they are kept, waited for visibly, and hold no slot.

use std::sync::Arc;
use std::time::Duration;

use kafka_llm_processor::llm::{Complete as _, CompleteError, LlmConfig};
use kafka_llm_processor::sandbox::vllm::{Answers, VllmConfig};
use tokio::time::Instant;

use crate::harness::{
    PATIENCE, all_answered, ask_now, client, config, eventually, fixed, outcomes, quick, serve,
    start, start_from,
};

/// Two requests a second, 20 at once: six of 26 wait three seconds.
#[tokio::test]
async fn requests_beyond_the_budget_wait_without_a_slot_and_none_is_dropped() {
    let server = serve(quick()).await;
    let client = client(&LlmConfig {
        requests_per_minute: Some(120),
        ..fixed(config(&server), 2)
    });
    let mut waits = client.budget_waits();
    let began = Instant::now();
    let documents = start(&client, 26);
    let shown = waits.wait_for(Option::is_some);
    let shown = tokio::time::timeout(PATIENCE, shown)
        .await
        .unwrap()
        .unwrap()
        .clone()
        .unwrap();
    assert!(
        shown.reason.contains("llm.requests_per_minute"),
        "{}",
        shown.reason
    );
    let state = client.state();
    assert_eq!(state.over_budget.unwrap().reason, shown.reason);
    assert_eq!(state.held, None);
    assert_eq!(
        (state.running, state.endpoints[0].running),
        (0, 0),
        "a slot is held"
    );
    assert!(state.waiting > 0);
    all_answered(documents).await;
    let took = began.elapsed();
    assert!((2.9..5.0).contains(&took.as_secs_f64()), "{took:?}");
    assert_eq!(client.state().over_budget, None);
    assert_eq!(server.calls(), 26);
}

/// 300 tokens a second, 3,000 at once.
#[tokio::test]
async fn tokens_beyond_the_budget_wait() {
    let server = serve(VllmConfig {
        answers: Answers::Fixed("Revenue rose.".to_owned()),
        ..quick()
    })
    .await;
    let client = client(&LlmConfig {
        tokens_per_minute: Some(18_000),
        max_tokens: 16,
        ..fixed(config(&server), 4)
    });
    let began = Instant::now();
    let mut used = 0;
    let mut largest = 0;
    for answer in all_answered(start(&client, 24)).await {
        used += answer.usage.total_tokens;
        largest = largest.max(answer.usage.total_tokens);
    }
    let took = began.elapsed().as_secs_f64();
    let allowed = 3_000.0 + 300.0 * took;
    // What the estimates are wrong by is bounded by the calls in flight, and paid for later.
    let slack = 4.0 * f64::from(u32::try_from(largest).unwrap());
    let used = f64::from(u32::try_from(used).unwrap());
    assert!(used > 3_500.0, "too few to wait: {used}");
    assert!(used <= allowed + slack, "{used} of {allowed}");
    assert!(took < 8.0, "{took}");
}

#[tokio::test]
async fn a_drain_gives_back_what_waits_for_a_budget() {
    let server = serve(quick()).await;
    let client = client(&LlmConfig {
        requests_per_minute: Some(1),
        ..config(&server)
    });
    ask_now(&client, 100, "The first.").await.unwrap();
    let documents = start(&client, 5);
    eventually("it shows", PATIENCE, || {
        client.state().over_budget.is_some()
    })
    .await;
    client.begin_drain();
    let began = Instant::now();
    for outcome in outcomes(documents).await {
        assert!(
            matches!(outcome, Err(CompleteError::Abandoned)),
            "{outcome:?}"
        );
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(client.state().over_budget, None);
    assert_eq!(server.calls(), 1);
}

/// The rest of the documents must not seem to wait for ever.
#[tokio::test]
async fn what_is_dropped_while_it_waits_does_not_wait_any_more() {
    let server = serve(quick()).await;
    let client = client(&LlmConfig {
        requests_per_minute: Some(30),
        ..config(&server)
    });
    all_answered(start(&client, 5)).await;
    let mut documents = start_from(&client, 10, 3);
    eventually("it shows", PATIENCE, || {
        client.state().over_budget.is_some()
    })
    .await;
    documents.shutdown().await;
    assert_eq!(client.state().waiting, 0);
    assert_eq!(client.state().over_budget, None);
    // Their places are free: the next one waits for its own turn only.
    let began = Instant::now();
    ask_now(&client, 20, "Another.").await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_refused_call_costs_no_budget() {
    let server = serve(quick()).await;
    server.stop_listener().await;
    let client = client(&LlmConfig {
        requests_per_minute: Some(60),
        ..fixed(config(&server), 10)
    });
    // Ten at once are allowed; each finds nobody there, and is asked about again after the outage.
    let documents = start(&Arc::clone(&client), 10);
    crate::harness::held_because(&client, "LLM_URL").await;
    server.start_listener().await.unwrap();
    let began = Instant::now();
    all_answered(documents).await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}
