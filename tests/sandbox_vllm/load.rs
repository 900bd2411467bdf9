//! Concurrency, admission, latency, gauges.

use std::time::Duration;

use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use serde_json::json;

use super::client::{
    CHAT, DEADLINE, answer, chat, chat_body, get, post, quick, server_with, value,
};

async fn metrics(server: &Vllm) -> String {
    answer(get(server, "/metrics").send().await.unwrap())
        .await
        .1
}

/// The lines of a family, without what names the model.
fn sample(metrics: &str, name: &str) -> String {
    let line = metrics.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit_once(' '))
        .map_or_else(String::new, |(_, value)| value.to_owned())
}

#[tokio::test]
async fn no_more_than_max_num_seqs_calls_run_at_once() {
    let server = server_with(VllmConfig {
        max_num_seqs: 2,
        latency: Latency::fixed(Duration::from_millis(20)),
        ..quick()
    })
    .await;
    let mut calls = Vec::new();
    for number in 0..6_u64 {
        let body = chat_body(&format!("Document {number}."), &json!({}));
        let server = server.clone();
        calls.push(tokio::spawn(async move { chat(&server, &body).await.0 }));
    }
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    assert_eq!(
        (server.peak_running(), server.running(), server.waiting()),
        (2, 0, 0)
    );
    assert_eq!(server.calls(), 6);
}

#[tokio::test]
async fn who_leaves_gives_up_its_place_running_or_waiting() {
    let server = server_with(VllmConfig {
        max_num_seqs: 1,
        latency: Latency::fixed(DEADLINE * 3),
        ..quick()
    })
    .await;
    let body = chat_body("Hi.", &json!({}));
    let running = tokio::spawn(post(&server, CHAT).json(&body).send());
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 1)
            .await
    );
    let waiting = tokio::spawn(post(&server, CHAT).json(&body).send());
    assert!(
        server
            .wait_until(DEADLINE, |server| server.waiting() == 1)
            .await
    );
    let text = metrics(&server).await;
    assert_eq!(sample(&text, "vllm:num_requests_running{"), "1.0");
    assert_eq!(sample(&text, "vllm:num_requests_waiting{"), "1.0");
    waiting.abort();
    assert!(
        server
            .wait_until(DEADLINE, |server| server.waiting() == 0)
            .await
    );
    running.abort();
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 0)
            .await
    );
    // As in vLLM, a client that leaves is no aborted success.
    let text = metrics(&server).await;
    assert!(text.contains("finished_reason=\"abort\"} 0.0"), "{text}");
}

#[tokio::test]
async fn a_full_queue_is_refused_as_vllm_refuses() {
    let server = server_with(VllmConfig {
        max_num_queued_reqs: Some(1),
        latency: Latency::fixed(DEADLINE * 3),
        ..quick()
    })
    .await;
    let body = chat_body("Hi.", &json!({}));
    let running = tokio::spawn(post(&server, CHAT).json(&body).send());
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 1)
            .await
    );
    let refused = post(&server, CHAT).json(&body).send().await.unwrap();
    assert_eq!(refused.headers().get("retry-after"), None);
    assert_eq!(
        answer(refused).await,
        (503, r#"{"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#.to_owned())
    );
    let text = metrics(&server).await;
    assert_eq!(sample(&text, "vllm:admission_rejections_total{"), "1.0");
    running.abort();
}

#[tokio::test]
async fn metrics_count_what_usage_says() {
    let server = server_with(quick()).await;
    let (_, text) = chat(&server, &chat_body("Sales rose 4%.", &json!({}))).await;
    let usage = value(&text)["usage"].clone();
    let text = metrics(&server).await;
    let float = |name: &str| format!("{}.0", usage[name]);
    assert_eq!(
        sample(&text, "vllm:prompt_tokens_total{"),
        float("prompt_tokens")
    );
    assert_eq!(
        sample(&text, "vllm:generation_tokens_total{"),
        float("completion_tokens")
    );
    assert!(text.contains(r#"finished_reason="stop"} 1.0"#), "{text}");
    assert_eq!(
        sample(&text, "vllm:e2e_request_latency_seconds_count{"),
        "1.0"
    );
    assert_eq!(sample(&text, "vllm:kv_cache_usage_perc{"), "0.0");
}

#[tokio::test]
async fn latency_follows_prompt_and_output_tokens() {
    let latency = Latency {
        base: Duration::from_millis(10),
        per_prompt_token: Duration::from_micros(100),
        per_output_token: Duration::from_millis(1),
        ..Latency::ZERO
    };
    assert_eq!(latency.of(200, 50, 9), Duration::from_millis(80));
    let server = server_with(VllmConfig { latency, ..quick() }).await;
    let start = tokio::time::Instant::now();
    let (_, text) = chat(&server, &chat_body("Hello.", &json!({"max_tokens": 30}))).await;
    let tokens = value(&text)["usage"]["completion_tokens"].as_u64().unwrap();
    let least = Duration::from_millis(10 + tokens);
    assert!(
        start.elapsed() >= least,
        "{:?} for {least:?}",
        start.elapsed()
    );
}
