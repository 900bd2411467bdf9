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

/// Two of three running calls are over the new bound: they go on, and only what is free beyond them is given away.
#[tokio::test]
async fn max_num_seqs_changes_while_calls_run() {
    let server = server_with(VllmConfig {
        max_num_seqs: 3,
        latency: Latency::fixed(DEADLINE * 3),
        ..quick()
    })
    .await;
    let body = chat_body("Hi.", &json!({}));
    let send = || tokio::spawn(post(&server, CHAT).json(&body).send());
    let state = |running, waiting| {
        let server = server.clone();
        async move {
            let reached =
                |server: &Vllm| (server.running(), server.waiting()) == (running, waiting);
            assert!(server.wait_until(DEADLINE, reached).await);
        }
    };
    let mut calls = vec![send(), send(), send()];
    state(3, 0).await;
    server.set_max_num_seqs(1);
    calls.push(send());
    state(3, 1).await;
    for running in [2, 1] {
        calls.remove(0).abort();
        state(running, 1).await;
    }
    calls.remove(0).abort();
    state(1, 0).await;
    calls.push(send());
    calls.push(send());
    state(1, 2).await;
    server.set_max_num_seqs(2);
    state(2, 1).await;
    for call in calls {
        call.abort();
    }
}

/// What an adaptive limiter climbs: with more sequences each token is slower, so that throughput rises less and less.
#[test]
fn tokens_are_slower_in_a_larger_batch() {
    let latency = Latency {
        base: Duration::from_millis(10),
        per_output_token: Duration::from_millis(8),
        per_output_token_running: Duration::from_micros(250),
        ..Latency::ZERO
    };
    assert_eq!(latency.of(100, 10, 1), Duration::from_millis(90));
    assert_eq!(latency.of(100, 10, 33), Duration::from_millis(170));
    assert_eq!(latency.of(100, 0, 33), Duration::from_millis(10));
}

/// The load is that at the end of the call: two wait behind the first, or one when the second has begun.
#[tokio::test]
async fn an_answer_tells_the_load_to_who_asks() {
    let server = server_with(VllmConfig {
        max_num_seqs: 1,
        latency: Latency::fixed(Duration::from_secs(2)),
        ..quick()
    })
    .await;
    let body = chat_body("Hi.", &json!({}));
    let ask = |format: &str| {
        let request = post(&server, CHAT).header("endpoint-load-metrics-format", format);
        tokio::spawn(request.json(&body).send())
    };
    let load = |response: &reqwest::Response| {
        let load = response.headers().get("endpoint-load-metrics")?;
        Some(load.to_str().unwrap().to_owned())
    };
    let first = ask("JSON");
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 1)
            .await
    );
    let others = [ask("JSON"), ask("JSON")];
    assert!(
        server
            .wait_until(DEADLINE, |server| server.waiting() == 2)
            .await
    );
    let busy = load(&first.await.unwrap().unwrap()).unwrap();
    let waiting = busy
        .strip_prefix(r#"JSON {"named_metrics": {"num_requests_waiting": "#)
        .unwrap();
    assert!(
        waiting.starts_with("1.0,") || waiting.starts_with("2.0,"),
        "{busy}"
    );
    for other in others {
        other.abort();
    }
}

#[tokio::test]
async fn an_idle_server_tells_its_load_in_vllms_words() {
    let server = server_with(quick()).await;
    let body = chat_body("Hi.", &json!({}));
    let load = async |format: Option<&str>| {
        let mut request = post(&server, CHAT).json(&body);
        if let Some(format) = format {
            request = request.header("endpoint-load-metrics-format", format);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let load = response.headers().get("endpoint-load-metrics");
        load.map(|load| load.to_str().unwrap().to_owned())
    };
    let idle =
        r#"JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0}}"#;
    assert_eq!(load(Some("JSON")).await.as_deref(), Some(idle));
    assert_eq!(load(Some("json")).await.as_deref(), Some(idle));
    assert_eq!(load(Some("XML")).await, None);
    assert_eq!(load(None).await, None);
}

#[tokio::test]
async fn a_server_may_keep_its_load_to_itself() {
    let server = server_with(VllmConfig {
        reports_load: false,
        ..quick()
    })
    .await;
    let request = post(&server, CHAT).header("endpoint-load-metrics-format", "JSON");
    let response = request
        .json(&chat_body("Hi.", &json!({})))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers().get("endpoint-load-metrics"), None);
    let text = metrics(&server).await;
    for gauge in [
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage",
    ] {
        assert!(!text.contains(gauge), "{text}");
    }
    assert!(text.contains(r#"finished_reason="stop"} 1.0"#), "{text}");
}

/// As many prompt tokens as the bound wait or are being read: the next call is refused, and taken when one of them has left.
#[tokio::test]
async fn a_backlog_of_prompts_is_refused_as_vllm_refuses() {
    let server = server_with(VllmConfig {
        max_num_queued_tokens: Some(1),
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
    assert_eq!(
        chat(&server, &body).await,
        (503, r#"{"error":{"message":"The engine has reached its prefill token backlog limit. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#.to_owned())
    );
    let rejections = r#"reason="max_num_queued_tokens"} 1.0"#;
    assert!(metrics(&server).await.contains(rejections));
    running.abort();
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 0)
            .await
    );
    let taken = tokio::spawn(post(&server, CHAT).json(&body).send());
    assert!(
        server
            .wait_until(DEADLINE, |server| server.running() == 1)
            .await
    );
    taken.abort();
}
