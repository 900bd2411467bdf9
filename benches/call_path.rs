//! The client's own part of a call: everything but HTTP, and the slots alone.
//!
//! Estimate before measuring: handing a slot from one waiter to the next is two turns of a lock, a one-shot channel and two boxes, 0.4 µs, and as
//! long with 64 as with 1,000 waiters, as the queue is served from its front. A whole call with an answer that is there at once: the default
//! prompt of 1 KiB 4 µs, the request as JSON 2 µs, request id and headers 2 µs, the answer of 700 bytes parsed 5 µs, timer, slot, metrics and the
//! move of the futures 3 µs: 16 µs. Adaptive adds a header to send, one to parse and the controller, which adds up a dozen numbers: 1 µs.
//!
//! Measured it is a half to two thirds of that: 0.2 µs, 10 µs, 0.65 µs.
//!
//! Slots and controller are private: what is measured is what the pipeline calls. The controller's part is the difference between adaptive and
//! fixed. Spans are off here; `request_overhead` has them on.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench fails by panicking"
)]

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use kafka_llm_processor::llm::{
    Call, Class, Complete as _, CompletionRequest, Concurrency, KafkaContext, LlmConfig,
    LlmMetrics, Prompt, PromptConfig, Reply, Slot, Transport, TransportError, VllmClient,
};
use kafka_llm_processor::types::{Offset, SourcePosition, TopicPartition};
use prometheus_client::registry::Registry;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Map;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const ANSWER: &str = r#"{"id":"chatcmpl-klp-documents-0-1-1-0123abcd","object":"chat.completion","created":1795421451,"model":"mistralai/Mistral-7B-Instruct-v0.2","choices":[{"index":0,"message":{"role":"assistant","content":"Revenue rose 12 % to 4.3 billion euro in the third quarter, and margins held.","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null,"routed_experts":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0","usage":{"prompt_tokens":390,"total_tokens":412,"completion_tokens":22,"prompt_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null,"metrics":null}"#;
const LOAD: &str =
    r#"JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.01}}"#;

fn main() {
    divan::main();
}

/// Answers at once, without a network.
#[derive(Debug)]
struct AtOnce(HeaderMap);

#[async_trait]
impl Transport for AtOnce {
    async fn exchange(&self, call: Call) -> Result<Reply, TransportError> {
        divan::black_box(call);
        Ok(Reply {
            status: 200,
            headers: self.0.clone(),
            body: Bytes::from_static(ANSWER.as_bytes()),
        })
    }
}

/// The client's tasks are started and never run: nobody drives the runtime but for a call.
fn client(runtime: &Runtime, concurrency: Concurrency, tells_load: bool) -> VllmClient {
    let config = LlmConfig {
        concurrency,
        concurrency_max: 64,
        ..LlmConfig::default()
    };
    let mut headers = HeaderMap::new();
    if tells_load {
        headers.insert("endpoint-load-metrics", HeaderValue::from_static(LOAD));
    }
    let _entered = runtime.enter();
    let metrics = LlmMetrics::new(&mut Registry::default());
    let transport = Arc::new(AtOnce(headers));
    VllmClient::new(&config, transport, metrics, &CancellationToken::new()).unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

type Admission<'a> = Pin<Box<dyn Future<Output = Slot> + Send + 'a>>;

fn poll(admission: &mut Admission<'_>) -> Option<Slot> {
    match admission
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(slot) => Some(slot),
        Poll::Pending => None,
    }
}

/// A slot comes back, the first of those who wait has it, and another begins to wait.
#[divan::bench(args = [64, 1_000])]
fn a_slot_goes_to_the_next(bencher: divan::Bencher, waiting: usize) {
    let runtime = runtime();
    let client = client(&runtime, Concurrency::Fixed(64), false);
    let wait = || {
        let mut admission = client.admit(Class::ONLY);
        let slot = poll(&mut admission);
        (admission, slot)
    };
    let mut running: VecDeque<Slot> = (0..64).map(|_| wait().1.unwrap()).collect();
    let mut waiters: VecDeque<Admission<'_>> = (0..waiting).map(|_| wait().0).collect();
    bencher.bench_local(|| {
        drop(running.pop_front());
        let slot = poll(&mut waiters.pop_front().unwrap());
        running.push_back(slot.unwrap());
        let (admission, slot) = wait();
        assert!(slot.is_none());
        waiters.push_back(admission);
    });
}

fn call(bencher: divan::Bencher, concurrency: Concurrency, tells_load: bool) {
    let runtime = runtime();
    let client = client(&runtime, concurrency, tells_load);
    let prompt = Prompt::new(&PromptConfig::default(), None).unwrap();
    let context = Prompt::context(Map::new(), "document-1", KafkaContext::default());
    let sentence = "Revenue rose 12 % to 4.3 billion euro in the third quarter. ";
    let request = CompletionRequest {
        class: Class::ONLY,
        document_id: "document-1".to_owned(),
        position: SourcePosition {
            topic_partition: TopicPartition::new("documents", 0),
            offset: Offset::new(1),
        },
        scope: prompt.scope(&context),
        prompt: Arc::new(prompt),
        content: sentence.repeat(1024 / sentence.len() + 1),
        trace: Default::default(),
    };
    bencher
        .with_inputs(|| request.clone())
        .bench_local_values(|request| {
            let mut asked = Box::pin(async {
                let slot = client.admit(Class::ONLY).await;
                client.complete(request, slot).await
            });
            // The answer is there at once, so that one look is enough, and no task of the client's gets a turn.
            let _entered = runtime.enter();
            match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(completion) => completion.unwrap(),
                Poll::Pending => unreachable!("nothing is waited for"),
            }
        });
}

#[divan::bench]
fn call_fixed(bencher: divan::Bencher) {
    call(bencher, Concurrency::Fixed(64), false);
}

#[divan::bench]
fn call_adaptive_untold(bencher: divan::Bencher) {
    call(bencher, Concurrency::Adaptive, false);
}

#[divan::bench]
fn call_adaptive_told(bencher: divan::Bencher) {
    call(bencher, Concurrency::Adaptive, true);
}
