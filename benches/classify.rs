//! Judging one answer of the server.
//!
//! Estimate before measuring: an answer of 4 KiB is parsed at some 300 MB/s into a tree of forty nodes, 15 to 20 µs; a refusal of
//! 300 bytes 2 µs; a transport error only formats a sentence, half a microsecond.
//!
//! Measured it is a quarter of that: the forty nodes cost 3 µs and the text is copied at some 5 GB/s, so its length hardly matters.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench fails by panicking"
)]

use jiff::Timestamp;
use kafka_llm_processor::llm::{
    ConnectFault, Target, TransportError, classify_reply, classify_transport,
};
use reqwest::header::HeaderMap;

fn main() {
    divan::main();
}

const TARGET: Target<'_> = Target {
    url: "http://localhost:8000",
    model: "mistralai/Mistral-7B-Instruct-v0.2",
};

#[divan::bench(args = [256, 4 * 1024, 64 * 1024])]
fn answer(bencher: divan::Bencher, text_bytes: usize) {
    let body = format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1795421451,"model":"m1","choices":[{{"index":0,"message":
        {{"role":"assistant","content":"{}","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},
        "logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null,"routed_experts":null}}],"service_tier":null,
        "system_fingerprint":"vllm-0.32.0","usage":{{"prompt_tokens":16,"total_tokens":24,"completion_tokens":8,
        "prompt_tokens_details":null}},"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null,"metrics":null}}"#,
        "a".repeat(text_bytes)
    );
    let headers = HeaderMap::new();
    bencher.bench(|| {
        classify_reply(
            TARGET,
            200,
            &headers,
            divan::black_box(body.as_bytes()),
            Timestamp::UNIX_EPOCH,
            |said| said,
        )
        .unwrap()
    });
}

#[divan::bench]
fn refusal(bencher: divan::Bencher) {
    let body = br#"{"error":{"message":"This model's maximum context length is 512 tokens. However, your prompt contains at least 513 input tokens, which exceeds this limit even without any output tokens.","type":"BadRequestError","param":"input_tokens","code":400}}"#;
    let headers = HeaderMap::new();
    bencher.bench(|| {
        classify_reply(
            TARGET,
            400,
            &headers,
            divan::black_box(body),
            Timestamp::UNIX_EPOCH,
            |said| said,
        )
        .unwrap_err()
    });
}

#[divan::bench]
fn refused_connection(bencher: divan::Bencher) {
    let error = TransportError::Connect {
        fault: ConnectFault::Refused,
        detail: "Connection refused (os error 111)".to_owned(),
    };
    bencher.bench(|| classify_transport(TARGET, divan::black_box(&error)));
}
