use std::sync::Mutex;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use tokio::time::{Instant, sleep};

use super::*;
use crate::telemetry::Metrics;
use crate::telemetry::registry::new_registry;

/// Answers as it is told, and at the end of that for ever as the last time.
#[derive(Debug)]
struct Scripted {
    answers: Mutex<Vec<Result<CollectorReply, String>>>,
    posts: Mutex<Vec<(Instant, usize)>>,
}

#[async_trait]
impl Collector for Scripted {
    async fn post(&self, export: Bytes) -> Result<CollectorReply, String> {
        let request = ExportTraceServiceRequest::decode(export).unwrap();
        let scopes = request.resource_spans.iter().flat_map(|r| &r.scope_spans);
        let spans = scopes.map(|scope| scope.spans.len()).sum();
        self.posts.lock().unwrap().push((Instant::now(), spans));
        let mut answers = self.answers.lock().unwrap();
        let last = answers.last().cloned().unwrap();
        if answers.len() > 1 {
            return answers.remove(0);
        }
        last
    }
}

fn status(status: u16) -> Result<CollectorReply, String> {
    let body = Bytes::new();
    Ok(CollectorReply { status, body })
}

struct Fixture {
    collector: Arc<Scripted>,
    metrics: Metrics,
    traces: Traces,
}

fn fixture(answers: &[Result<CollectorReply, String>]) -> Fixture {
    let mut registry = new_registry();
    let metrics = TraceMetrics::new(&mut registry);
    let collector = Arc::new(Scripted {
        answers: Mutex::new(answers.to_vec()),
        posts: Mutex::default(),
    });
    let config = TelemetryConfig::default();
    let posted: Arc<dyn Collector> = Arc::<Scripted>::clone(&collector);
    let traces = Traces::start(&config, "i-1", posted, metrics);
    Fixture {
        collector,
        metrics: Metrics::new(registry),
        traces,
    }
}

impl Fixture {
    fn make(&self, spans: usize) {
        for _ in 0..spans {
            let kind = SpanKind::Internal;
            let span = self
                .traces
                .spans()
                .begin(None, kind, "s".to_owned(), Vec::new);
            assert!(span.is_some());
        }
    }

    fn posts(&self) -> Vec<usize> {
        let posts = self.collector.posts.lock().unwrap();
        posts.iter().map(|(_, spans)| *spans).collect()
    }
}

/// Spans exported, and dropped as the queue was full, refused, and unsent.
fn counts(metrics: &Metrics) -> [u64; 4] {
    let text = metrics.encode().unwrap();
    let value = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    };
    let dropped = |reason| {
        value(&format!(
            "klp_telemetry_spans_dropped_total{{reason=\"{reason}\"}}"
        ))
    };
    [
        value("klp_telemetry_spans_exported_total"),
        dropped("queue_full"),
        dropped("refused"),
        dropped("unsent"),
    ]
}

#[tokio::test(start_paused = true)]
async fn spans_are_gathered_and_what_is_left_leaves_at_the_end() {
    let fixture = fixture(&[status(200)]);
    fixture.make(600);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(fixture.posts(), [512], "a full export waits for nothing");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(fixture.posts(), [512, 88]);
    fixture.make(1);
    let (collector, metrics) = (Arc::clone(&fixture.collector), fixture.metrics.clone());
    fixture.traces.end().await;
    assert_eq!(collector.posts.lock().unwrap().len(), 3);
    assert_eq!(counts(&metrics), [601, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_away_is_asked_again_with_the_same_spans() {
    let away = Err("connection refused".to_owned());
    let fixture = fixture(&[away, status(503), status(200)]);
    fixture.make(5);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fixture.posts(), [5, 5, 5]);
    assert_eq!(counts(&fixture.metrics), [5, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn what_a_collector_refuses_is_counted_and_not_sent_again() {
    let body = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans: 2,
            error_message: String::new(),
        }),
    };
    let partial = CollectorReply {
        status: 200,
        body: body.encode_to_vec().into(),
    };
    let fixture = fixture(&[status(400), Ok(partial)]);
    fixture.make(3);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(counts(&fixture.metrics), [0, 0, 3, 0]);
    fixture.make(5);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fixture.posts(), [3, 5]);
    assert_eq!(counts(&fixture.metrics), [3, 0, 5, 0]);
}

/// Each span is counted once, whatever became of it; nothing waits but the end, and that not for long.
#[tokio::test(start_paused = true)]
async fn a_dead_collector_costs_spans_and_no_time() {
    let fixture = fixture(&[Err("connection refused".to_owned())]);
    fixture.make(10);
    sleep(Duration::from_secs(5)).await;
    let made = Instant::now();
    fixture.make(QUEUE_SPANS_MAX + 500);
    assert_eq!(Instant::now(), made, "whoever makes a span does not wait");
    let metrics = fixture.metrics.clone();
    fixture.traces.end().await;
    assert!(made.elapsed() <= FLUSH_MAX);
    let unsent = u64::try_from(QUEUE_SPANS_MAX + 10).unwrap();
    assert_eq!(counts(&metrics), [0, 500, 0, unsent]);
}

/// A collector that says nothing.
#[derive(Debug)]
struct Silent;

#[async_trait]
impl Collector for Silent {
    async fn post(&self, _export: Bytes) -> Result<CollectorReply, String> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_collector_does_not_hold_the_end() {
    let mut registry = new_registry();
    let metrics = TraceMetrics::new(&mut registry);
    let config = TelemetryConfig::default();
    let traces = Traces::start(&config, "i-1", Arc::new(Silent), metrics);
    let span = traces
        .spans()
        .begin(None, SpanKind::Internal, "s".to_owned(), Vec::new);
    drop(span);
    let began = Instant::now();
    traces.end().await;
    assert!(began.elapsed() <= FLUSH_MAX);
    tokio::task::yield_now().await;
    assert_eq!(counts(&Metrics::new(registry)), [0, 0, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_stays_away_is_told_of_now_and_then() {
    let lines: Arc<Mutex<Vec<u8>>> = Arc::default();
    let written = Arc::clone(&lines);
    #[derive(Clone)]
    struct To(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for To {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || To(Arc::clone(&written)))
        .finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let fixture = fixture(&[Err("connection refused".to_owned())]);
    fixture.make(1);
    sleep(Duration::from_secs(900)).await;
    let said = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    assert!(fixture.posts().len() > 20, "{:?}", fixture.posts());
    assert_eq!(said.matches("spans are not exported").count(), 2, "{said}");
}
