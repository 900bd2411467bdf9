//! What a collector is told of a document's way: parents, names and attributes, and that it costs nothing where there is none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use kafka_llm_processor::app::RunEnd;
use kafka_llm_processor::records::result::{ResultOutput, ResultRecord};
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, VllmConfig};
use kafka_llm_processor::types::{Header, Record};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{DEAD, INPUT, OUTPUT, Running, World, eventually, json, plain};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// What was exported.
#[derive(Default)]
struct Taken {
    spans: Vec<Span>,
    resources: Vec<BTreeMap<String, String>>,
    headers: Vec<HeaderMap>,
    bytes: Vec<u8>,
}

/// A collector on a port of its own.
struct Collector {
    endpoint: String,
    taken: Arc<Mutex<Taken>>,
    _serving: AbortOnDropHandle<()>,
}

async fn take(
    State(taken): State<Arc<Mutex<Taken>>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body.clone()) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut taken = taken.lock().unwrap();
    taken.headers.push(headers);
    taken.bytes.extend_from_slice(&body);
    for resource in request.resource_spans {
        let of = resource.resource.unwrap();
        taken.resources.push(attributes(&of.attributes));
        let spans = resource.scope_spans.into_iter().flat_map(|scope| {
            assert_eq!(scope.scope.unwrap().name, "kafka-llm-processor");
            scope.spans
        });
        taken.spans.extend(spans);
    }
    StatusCode::OK
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::<Mutex<Taken>>::default();
        let app = Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&taken));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            endpoint: format!("telemetry.otlp_endpoint=http://{address}"),
            taken,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    /// Spans whose name begins so, in the order in which they began.
    fn spans(&self, name: &str) -> Vec<Span> {
        let mut spans = self.taken.lock().unwrap().spans.clone();
        spans.retain(|span| span.name.starts_with(name));
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }

    fn the(&self, name: &str) -> Span {
        let mut spans = self.spans(name);
        assert_eq!(spans.len(), 1, "{name}: {spans:#?}");
        spans.remove(0)
    }
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &AnyValue| match value.value.clone().unwrap() {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::DoubleValue(number) => format!("{number:?}"),
        any_value::Value::BoolValue(is) => is.to_string(),
        any_value::Value::ArrayValue(array) => {
            let any_value::Value::StringValue(one) =
                array.values[0].value.clone().expect("a value")
            else {
                panic!("{array:?}")
            };
            assert_eq!(array.values.len(), 1);
            format!("[{one}]")
        }
        other => panic!("{other:?}"),
    };
    attributes
        .iter()
        .map(|pair| (pair.key.clone(), text(pair.value.as_ref().unwrap())))
        .collect()
}

#[track_caller]
fn assert_attributes(span: &Span, expected: &[(&str, &str)]) {
    let found = attributes(&span.attributes);
    for (name, value) in expected {
        let value = Some(*value);
        assert_eq!(
            found.get(*name).map(String::as_str),
            value,
            "{name} of {found:#?}"
        );
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traceparent(span: &Span) -> String {
    format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().unwrap().code == i32::from(SpanStatus::Error)
}

/// Appends a document with these trace headers.
fn put(world: &World, number: usize, text: &str, headers: &[(&str, &str)]) {
    let headers = headers.iter();
    let headers = headers.map(|(name, value)| Header::new(*name, value.as_bytes().to_vec()));
    let record = Record {
        key: Some(format!("k{number}").into()),
        value: Some(json(number, text).into()),
        headers: headers.collect(),
        timestamp_ms: 1_700_000_000_000,
    };
    world.broker.append(INPUT, 0, vec![record]).unwrap();
}

async fn drained(world: &World, running: Running) {
    eventually("everything is committed", || world.is_all_committed()).await;
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
}

fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let value = record.header(name)?;
    Some(std::str::from_utf8(value).unwrap())
}

const TEXT: &str = "A hush-hush report of revenue of 7 million.";

fn the_process(collector: &Collector) -> Span {
    let process = collector.the("process");
    assert_eq!(process.name, "process docs");
    assert_eq!(process.kind, i32::from(SpanKind::Consumer));
    assert_eq!(hex(&process.trace_id), TRACE);
    assert_eq!(hex(&process.parent_span_id), PARENT);
    assert_eq!(process.trace_state, "vendor=1");
    assert!(!is_error(&process));
    let value = json(7, TEXT);
    assert_attributes(
        &process,
        &[
            ("messaging.system", "kafka"),
            ("messaging.operation.name", "process"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", "docs"),
            ("messaging.destination.partition.id", "0"),
            ("messaging.kafka.offset", "0"),
            ("messaging.consumer.group.name", "test"),
            ("messaging.message.body.size", &value.len().to_string()),
            ("klp.document.id", "d7"),
            ("klp.outcome", "result"),
            ("klp.attempts", "1"),
        ],
    );
    process
}

fn the_chat(collector: &Collector, process: &Span, world: &World, result: &ResultRecord) -> Span {
    let chat = collector.the("chat");
    assert_eq!(chat.name, "chat mistralai/Mistral-7B-Instruct-v0.2");
    assert_eq!(chat.kind, i32::from(SpanKind::Client));
    assert_eq!(chat.trace_id, process.trace_id);
    assert_eq!(chat.parent_span_id, process.span_id);
    let server = world.vllm.address();
    assert_attributes(
        &chat,
        &[
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "vllm"),
            ("gen_ai.request.model", "mistralai/Mistral-7B-Instruct-v0.2"),
            ("gen_ai.request.max_tokens", "64"),
            ("gen_ai.request.temperature", "0.0"),
            ("gen_ai.request.top_p", "0.5"),
            ("gen_ai.request.seed", "5"),
            ("gen_ai.output.type", "text"),
            ("gen_ai.response.model", &result.model),
            (
                "gen_ai.response.finish_reasons",
                &format!("[{}]", result.finish_reason),
            ),
            (
                "gen_ai.usage.input_tokens",
                &result.usage.prompt_tokens.to_string(),
            ),
            (
                "gen_ai.usage.output_tokens",
                &result.usage.completion_tokens.to_string(),
            ),
            ("server.address", &server.ip().to_string()),
            ("server.port", &server.port().to_string()),
            ("http.response.status_code", "200"),
            ("klp.attempt", "1"),
            ("klp.request_id", &result.request_id),
        ],
    );
    chat
}

fn assert_flush(collector: &Collector, process: &Span) {
    let send = collector.the("send");
    assert_eq!(send.name, "send results");
    assert_eq!(send.kind, i32::from(SpanKind::Producer));
    assert_eq!(send.parent_span_id, process.span_id);
    assert_attributes(
        &send,
        &[
            ("messaging.operation.name", "send"),
            ("messaging.operation.type", "send"),
            ("messaging.destination.name", "results"),
        ],
    );
    let commit = collector.the("commit");
    assert_eq!(commit.name, "commit docs");
    assert!(commit.parent_span_id.is_empty());
    let linked: Vec<_> = commit.links.iter().map(|link| &link.span_id).collect();
    assert_eq!(linked, [&process.span_id]);
    assert_attributes(
        &commit,
        &[
            ("messaging.operation.name", "commit"),
            ("messaging.operation.type", "settle"),
            ("messaging.destination.name", "docs"),
            ("messaging.destination.partition.id", "0"),
            ("messaging.consumer.group.name", "test"),
            ("messaging.batch.message_count", "1"),
        ],
    );
}

fn assert_export(collector: &Collector, result: &ResultRecord) {
    let taken = collector.taken.lock().unwrap();
    assert_eq!(taken.resources[0]["service.name"], "filings");
    let sent = &taken.headers[0];
    assert_eq!(sent["content-type"], "application/x-protobuf");
    assert_eq!(sent["authorization"], "Bearer hush-key");
    assert_eq!(sent["x-tenant"], "a");
    // Neither what was asked nor what was answered.
    let text = String::from_utf8_lossy(&taken.bytes);
    assert!(text.contains("klp.document.id") && !text.contains("hush"));
    let ResultOutput::Text(answer) = &result.output else {
        panic!("{result:?}")
    };
    let answer: String = answer.chars().take(30).collect();
    assert!(!text.contains(&answer), "{answer}");
}

#[tokio::test]
async fn a_documents_trace_goes_from_its_record_over_the_call_to_the_result() {
    let (world, collector) = (World::new(1).await, Collector::start().await);
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let came_with = [("traceparent", parent.as_str()), ("tracestate", "vendor=1")];
    put(&world, 7, TEXT, &came_with);
    let running = world.start(&[
        &collector.endpoint,
        "telemetry.otlp_headers=authorization=Bearer%20hush-key,x-tenant=a",
        "telemetry.service_name=filings",
        "llm.max_tokens=64",
        "llm.seed=5",
        "llm.top_p=0.5",
    ]);
    drained(&world, running).await;

    let result = world.results().remove(&(0, 0)).unwrap().remove(0);
    let process = the_process(&collector);
    let chat = the_chat(&collector, &process, &world, &result);
    let called = world.vllm.requests();
    let called = called
        .iter()
        .filter_map(|request| request.traceparent.as_deref());
    assert_eq!(called.collect::<Vec<_>>(), [traceparent(&chat)]);

    let (_, _, written) = world.records(OUTPUT).remove(0);
    assert_eq!(
        header(&written, "traceparent"),
        Some(&*traceparent(&process))
    );
    assert_eq!(header(&written, "tracestate"), Some("vendor=1"));
    assert_flush(&collector, &process);
    assert_export(&collector, &result);
}

#[tokio::test]
async fn each_attempt_is_a_span_of_its_own() {
    let (world, collector) = (World::new(1).await, Collector::start().await);
    let away = Action::answer(503, "");
    world.vllm.faults().push(Fault::new(away).times(2));
    put(&world, 1, "A report.", &[]);
    let running = world.start(&[&collector.endpoint]);
    drained(&world, running).await;
    let process = collector.the("process");
    assert!(process.parent_span_id.is_empty() && !is_error(&process));
    assert_attributes(&process, &[("klp.attempts", "3")]);
    let chats = collector.spans("chat");
    assert_eq!(chats.len(), 3);
    for (chat, attempt) in chats.iter().zip(["1", "2", "3"]) {
        assert_eq!(chat.parent_span_id, process.span_id);
        assert_eq!(chat.trace_id, process.trace_id);
        assert_attributes(chat, &[("klp.attempt", attempt)]);
        assert_eq!(is_error(chat), attempt != "3");
    }
    for chat in &chats[..2] {
        assert_attributes(
            chat,
            &[
                ("error.type", "capacity"),
                ("http.response.status_code", "503"),
            ],
        );
    }
    let parents: Vec<_> = chats.iter().map(traceparent).collect();
    let called = world.vllm.requests();
    let called = called
        .iter()
        .filter_map(|request| request.traceparent.clone());
    assert_eq!(called.collect::<Vec<_>>(), parents);
}

#[tokio::test]
async fn a_document_that_is_given_up_is_an_error_that_names_the_reason() {
    let (world, collector) = (World::new(1).await, Collector::start().await);
    world.put(0, Some("k"), Some("{\"id\": \"bad-one\", \"title\": 1}"));
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let came_with = [("traceparent", parent.as_str()), ("tracestate", "vendor=1")];
    put(&world, 1, "", &came_with);
    let running = world.start(&[&collector.endpoint]);
    drained(&world, running).await;
    let spans = collector.spans("process");
    for (span, reason, id) in [
        (&spans[0], "missing_content", "bad-one"),
        (&spans[1], "empty_document", "d1"),
    ] {
        assert!(is_error(span));
        assert_attributes(
            span,
            &[
                ("error.type", reason),
                ("klp.outcome", "dead_letter"),
                ("klp.document.id", id),
            ],
        );
    }
    assert_eq!(collector.spans("chat").len(), 0);
    assert_eq!(collector.spans("send dead").len(), 2);
    let dead = world.records(DEAD);
    let parents: Vec<_> = dead
        .iter()
        .map(|(_, _, record)| header(record, "traceparent").unwrap().to_owned())
        .collect();
    assert_eq!(parents, [traceparent(&spans[0]), traceparent(&spans[1])]);
    assert_eq!(hex(&spans[1].trace_id), TRACE);
    assert_eq!(header(&dead[1].2, "tracestate"), Some("vendor=1"));
}

#[tokio::test]
async fn what_is_no_trace_context_begins_a_trace_of_its_own() {
    let (world, collector) = (World::new(1).await, Collector::start().await);
    let bad = format!("00-{}-{PARENT}-01", "0".repeat(32));
    put(&world, 1, "A report.", &[("traceparent", &bad)]);
    let running = world.start(&[&collector.endpoint]);
    drained(&world, running).await;
    let process = collector.the("process");
    assert!(process.parent_span_id.is_empty());
    assert_ne!(hex(&process.trace_id), "0".repeat(32));
    let (_, _, written) = world.records(OUTPUT).remove(0);
    assert_eq!(
        header(&written, "traceparent"),
        Some(&*traceparent(&process))
    );
}

#[tokio::test]
async fn what_is_not_sampled_is_not_exported_and_the_record_decides() {
    let (world, collector) = (World::new(1).await, Collector::start().await);
    let not = format!("00-{TRACE}-{PARENT}-00");
    put(&world, 0, "One without a trace.", &[]);
    put(
        &world,
        1,
        "One that is not sampled.",
        &[("traceparent", &not)],
    );
    let set = [collector.endpoint.as_str(), "telemetry.sample_ratio=0"];
    drained(&world, world.start(&set)).await;
    assert_eq!(collector.spans("").len(), 0);
    let results = world.records(OUTPUT);
    let parents: Vec<_> = results
        .iter()
        .map(|(_, _, record)| header(record, "traceparent").unwrap())
        .collect();
    assert!(parents.iter().all(|parent| parent.ends_with("-00")));
    assert!(parents[1].contains(TRACE) && parents[1] != not);

    let sampled = format!("00-{TRACE}-{PARENT}-01");
    put(&world, 2, "One that is.", &[("traceparent", &sampled)]);
    drained(&world, world.start(&set)).await;
    let names = collector.spans("").into_iter().map(|span| span.name);
    let mut names: Vec<_> = names
        .map(|name| name.split(' ').next().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["chat", "commit", "process", "send"]);
}

#[tokio::test]
async fn a_result_that_was_too_large_was_not_sent_where_its_span_says() {
    let (world, collector) = (World::new(1).await, Collector::start().await);
    let small = [("max.message.bytes", "100")];
    world.broker.create_topic(OUTPUT, 1, &small).unwrap();
    put(&world, 1, "A report.", &[]);
    let running = world.start(&[&collector.endpoint]);
    drained(&world, running).await;
    assert_eq!(world.dead_letters().len(), 1);
    let send = collector.the("send results");
    assert!(is_error(&send));
    assert_attributes(&send, &[("error.type", "result_too_large")]);
}

/// More spans than a queue holds, and nobody who takes them.
#[tokio::test]
async fn a_dead_collector_costs_no_document_and_its_spans_are_counted() {
    let config = VllmConfig {
        latency: Latency::ZERO,
        ..VllmConfig::default()
    };
    let world = World::with_vllm(2, config).await;
    world.produce(0..1_200, plain);
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!(
        "telemetry.otlp_endpoint=http://{}",
        free.local_addr().unwrap()
    );
    drop(free);
    let running = world.start(&[&endpoint, "admin.listen=127.0.0.1:0"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    let (_, page) = crate::health::get(&running, "/metrics");
    let dropped = page
        .lines()
        .find_map(|line| {
            line.strip_prefix("klp_telemetry_spans_dropped_total{reason=\"queue_full\"} ")
        })
        .unwrap_or_else(|| panic!("{page}"));
    assert!(dropped.parse::<u64>().unwrap() > 0, "{dropped}");
    assert!(page.contains("klp_telemetry_spans_exported_total 0\n"));
    let (end, _) = running.drain().await;
    assert!(matches!(end, RunEnd::Drained), "{end:?}");
    world.assert_all_have_results(1_200);
}
