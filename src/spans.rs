//! Spans of a document's way, made with OpenTelemetry's API where the work is done. Where tracing is off none is made: what would be a span
//! is `None`.
//!
//! Names and attributes are those of the semantic conventions 1.41 for messaging and GenAI, beside some of ours (`klp.…`). Prompts, answers
//! and secrets are never among them.

use std::borrow::Cow;
use std::str::FromStr as _;

use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags,
    TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};

pub use opentelemetry::KeyValue as Attribute;
pub use opentelemetry::trace::SpanKind;

/// The longest `traceparent` that is taken: today's has 55 characters, later versions may append.
const TRACEPARENT_BYTES_MAX: usize = 128;
/// The longest `tracestate` that is taken: W3C asks to pass on at least so much.
const TRACESTATE_BYTES_MAX: usize = 512;

/// W3C trace context as it stands in headers, of records and of requests alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceHeaders {
    /// `traceparent`.
    pub traceparent: String,
    /// `tracestate`, when there is one.
    pub tracestate: Option<String>,
}

impl TraceHeaders {
    /// What came with a record; `None` for a `traceparent` that is none. A `tracestate` that is none is left out.
    #[must_use]
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        ids(traceparent)?;
        Some(Self {
            traceparent: traceparent.to_owned(),
            tracestate: tracestate
                .filter(|state| is_tracestate(state))
                .map(str::to_owned),
        })
    }

    fn context(&self) -> Option<SpanContext> {
        let (trace_id, span_id, flags) = ids(&self.traceparent)?;
        let state = self.tracestate.as_deref();
        let state = state.and_then(|state| TraceState::from_str(state).ok());
        Some(SpanContext::new(
            trace_id,
            span_id,
            flags,
            true,
            state.unwrap_or_default(),
        ))
    }

    fn of(context: &SpanContext) -> Self {
        let state = context.trace_state().header();
        Self {
            traceparent: format!(
                "00-{}-{}-{:02x}",
                context.trace_id(),
                context.span_id(),
                context.trace_flags() & TraceFlags::SAMPLED
            ),
            tracestate: Some(state).filter(|state| !state.is_empty()),
        }
    }
}

/// `version-trace-id-parent-id-flags`, each of its length and in lower case; of version 00 nothing more.
fn ids(traceparent: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let is_legal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    if traceparent.len() > TRACEPARENT_BYTES_MAX || !traceparent.bytes().all(is_legal) {
        return None;
    }
    let mut parts = traceparent.split('-');
    let mut part = |length| parts.next().filter(|part: &&str| part.len() == length);
    let (version, trace_id, span_id, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let trace_id = TraceId::from_hex(trace_id).ok()?;
    let span_id = SpanId::from_hex(span_id).ok()?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let is_valid = trace_id != TraceId::INVALID && span_id != SpanId::INVALID;
    is_valid.then(|| {
        (
            trace_id,
            span_id,
            TraceFlags::new(flags) & TraceFlags::SAMPLED,
        )
    })
}

fn is_tracestate(text: &str) -> bool {
    (1..=TRACESTATE_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Makes spans, or none where tracing is off. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Spans(Option<SdkTracer>);

impl Spans {
    /// Makes spans with that tracer.
    #[must_use]
    pub const fn new(tracer: SdkTracer) -> Self {
        Self(Some(tracer))
    }

    /// Whether spans are made.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A span below what came with a record, or at the root of a trace of its own. `attributes` are asked for when it is sampled.
    #[must_use]
    pub fn begin(
        &self,
        parent: Option<&TraceHeaders>,
        kind: SpanKind,
        name: String,
        attributes: impl FnOnce() -> Vec<Attribute>,
    ) -> Option<Span> {
        let parent = parent.and_then(TraceHeaders::context);
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        Some(Span::start(self.0.as_ref()?, builder, parent, attributes))
    }

    /// The root of a trace of its own that concerns all of `links`; `None` when none of them is sampled.
    #[must_use]
    pub fn begin_linked<'a>(
        &self,
        links: impl Iterator<Item = &'a Trace>,
        kind: SpanKind,
        name: String,
        attributes: impl FnOnce() -> Vec<Attribute>,
    ) -> Option<Span> {
        let tracer = self.0.as_ref()?;
        let sampled = links.filter_map(Trace::sampled);
        let links: Vec<_> = sampled
            .map(|(_, context)| Link::with_context(context.clone()))
            .collect();
        if links.is_empty() {
            return None;
        }
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_links(links);
        Some(Span::start(tracer, builder, None, attributes))
    }
}

/// A span that is open; dropping it ends it.
#[derive(Debug)]
pub struct Span {
    span: SdkSpan,
    tracer: SdkTracer,
}

impl Span {
    fn start(
        tracer: &SdkTracer,
        builder: SpanBuilder,
        parent: Option<SpanContext>,
        attributes: impl FnOnce() -> Vec<Attribute>,
    ) -> Self {
        let mut context = Context::new();
        if let Some(parent) = parent {
            context = context.with_remote_span_context(parent);
        }
        let mut span = tracer.build_with_context(builder, &context);
        if span.is_recording() {
            span.set_attributes(attributes());
        }
        Self {
            span,
            tracer: tracer.clone(),
        }
    }

    /// Adds what became known.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.span.set_attribute(Attribute::new(key, value));
    }

    /// It ended badly: `error_type` of a closed set, and a sentence without document text.
    pub fn fail(&mut self, error_type: &'static str, detail: impl Into<Cow<'static, str>>) {
        self.set("error.type", error_type);
        self.span.set_status(Status::error(detail));
    }

    /// What is below it.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let context = self.span.span_context().clone();
        Trace {
            headers: Some(TraceHeaders::of(&context)),
            place: Some(Place {
                tracer: self.tracer.clone(),
                context,
            }),
        }
    }
}

/// Where the work on a document stands in a trace: below a span of ours, or where tracing is off below what came with its record.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    headers: Option<TraceHeaders>,
    place: Option<Place>,
}

#[derive(Debug, Clone)]
struct Place {
    tracer: SdkTracer,
    context: SpanContext,
}

impl Trace {
    /// What came with a record, to be passed on as it is.
    #[must_use]
    pub const fn passed_on(headers: Option<TraceHeaders>) -> Self {
        Self {
            headers,
            place: None,
        }
    }

    /// What stands in the headers of what follows.
    #[must_use]
    pub const fn headers(&self) -> Option<&TraceHeaders> {
        self.headers.as_ref()
    }

    /// Whether it stands below a span of ours, sampled or not.
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        self.place.is_some()
    }

    /// The trace's id, where it is sampled: what is not cannot be looked up.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        let (_, context) = self.sampled()?;
        Some(context.trace_id().to_string())
    }

    fn sampled(&self) -> Option<(&SdkTracer, &SpanContext)> {
        let Place { tracer, context } = self.place.as_ref()?;
        context.is_sampled().then_some((tracer, context))
    }

    /// A span below it; `None` where none is made or sampled, and what is below that is below this.
    #[must_use]
    pub fn child(
        &self,
        kind: SpanKind,
        name: impl FnOnce() -> String,
        attributes: impl FnOnce() -> Vec<Attribute>,
    ) -> Option<Span> {
        let (tracer, context) = self.sampled()?;
        let builder = SpanBuilder::from_name(name()).with_kind(kind);
        Some(Span::start(
            tracer,
            builder,
            Some(context.clone()),
            attributes,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_context_is_read_and_written_alike() {
        let headers = TraceHeaders::parse(GOOD, Some("vendor=1,other=2")).unwrap();
        let context = headers.context().unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(TraceHeaders::of(&context), headers);
        let not_sampled = GOOD.replace("-01", "-00");
        let context = TraceHeaders::parse(&not_sampled, None).unwrap().context();
        assert!(!context.unwrap().is_sampled());
    }

    #[test]
    fn what_is_no_trace_context_is_none() {
        for bad in [
            "",
            "00-short",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-Evil: 1",
        ] {
            assert_eq!(TraceHeaders::parse(bad, None), None, "{bad}");
        }
        // A later version may append.
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-0f";
        assert!(TraceHeaders::parse(later, None).is_some());
        for state in ["", "a=b\r\nX-Evil: 1", &"a".repeat(513)] {
            let headers = TraceHeaders::parse(GOOD, Some(state)).unwrap();
            assert_eq!(headers.tracestate, None, "{state}");
        }
    }

    #[test]
    fn nothing_is_made_where_tracing_is_off() {
        let spans = Spans::default();
        let made = spans.begin(None, SpanKind::Consumer, "process docs".to_owned(), || {
            unreachable!("nobody asks for attributes")
        });
        assert!(made.is_none() && !spans.is_on());
        let trace = Trace::passed_on(TraceHeaders::parse(GOOD, None));
        let child = trace.child(SpanKind::Client, || unreachable!(), Vec::new);
        assert!(child.is_none() && !trace.is_ours());
        assert_eq!(trace.headers().unwrap().traceparent, GOOD);
    }
}
