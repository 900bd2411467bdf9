//! The spans of a document that are not the model's: `process {topic}` while it is worked on, `send {topic}` while its outcome is appended,
//! and one `commit {topic}` for each flush, which links to the documents in it.

use tracing::field::Empty;

use super::Services;
use super::outcome::{Ending, Outcome, Work};
use crate::llm::GiveUp;
use crate::offsets::{FlushError, Output};
use crate::records::dead_letter::DeadLetter;
use crate::records::headers;
use crate::spans::{Attribute, Span, SpanKind, Trace};
use crate::types::{DeadLetterReason, Offset, SourcePosition, TopicPartition};

/// A document whose work is traced, or would be.
#[derive(Debug)]
pub(super) struct Traced {
    span: Option<Span>,
    trace: Trace,
}

impl Traced {
    /// Begins with the work: what waited in the queue before has no span.
    pub(super) fn begin(services: &Services, work: &Work) -> Self {
        let came_with = headers::trace(&work.record);
        let source = &work.position.topic_partition;
        let span = services.spans.is_on().then(|| {
            let name = format!("process {}", source.topic);
            let attributes = || {
                let mut attributes = messaging("process", "process", source);
                let body = work.record.value.as_ref().map_or(0, |value| value.len());
                attributes.extend([
                    Attribute::new("messaging.kafka.offset", work.position.offset.value()),
                    group(services),
                    Attribute::new("messaging.message.body.size", size(body)),
                ]);
                if work.record.value.is_none() {
                    attributes.push(Attribute::new("messaging.kafka.message.tombstone", true));
                }
                attributes
            };
            let kind = SpanKind::Consumer;
            services
                .spans
                .begin(came_with.as_ref(), kind, name, attributes)
        });
        let span = span.flatten();
        let trace = match &span {
            Some(span) => span.trace(),
            None => Trace::passed_on(came_with),
        };
        Self { span, trace }
    }

    /// What is below it.
    pub(super) const fn trace(&self) -> &Trace {
        &self.trace
    }

    /// [`document_span`], with the trace's id where there is one to look up.
    pub(super) fn log_span(&self, position: &SourcePosition) -> tracing::Span {
        let span = document_span(position);
        if let Some(trace_id) = self.trace.trace_id() {
            span.record("trace_id", trace_id);
        }
        span
    }

    /// The document has a name. To be called within the log's span.
    pub(super) fn name(&mut self, document_id: &str) {
        tracing::Span::current().record("document_id", document_id);
        if let Some(span) = &mut self.span {
            span.set("klp.document.id", document_id.to_owned());
        }
    }

    /// It is given up, for a reason that holds nothing of its text.
    pub(super) fn give_up(&mut self, reason: &GiveUp) {
        if let Some(span) = &mut self.span {
            span.fail(reason.reason.as_str(), reason.detail.clone());
        }
    }

    /// Ends with the outcome. What is left is for its turn: the outcome may wait for those of others.
    pub(super) fn end(self, outcome: &Outcome) -> Option<Box<Trace>> {
        let mut span = self.span?;
        let ending = match outcome {
            Outcome::Output { count, .. } => {
                span.set("klp.attempts", i64::from(count.attempts));
                match count.ending {
                    Ending::Result(_) => "result",
                    Ending::DeadLetter(_) => "dead_letter",
                }
            }
            Outcome::Skipped(_) => "skipped",
            Outcome::Abandoned => "abandoned",
        };
        span.set("klp.outcome", ending);
        Some(Box::new(self.trace))
    }
}

/// The span that the log's lines about a document are in; its `document_id` is told when it is known. Of a level that every filter lets
/// through, as its fields are those of warnings too.
#[must_use]
pub fn document_span(position: &SourcePosition) -> tracing::Span {
    // Not below the partition's span, which says nothing more.
    tracing::error_span!(
        parent: None,
        "document",
        topic = %position.topic_partition.topic,
        partition = position.topic_partition.partition,
        offset = position.offset.value(),
        document_id = Empty,
        trace_id = Empty,
    )
}

/// The spans of a flush.
#[derive(Debug, Default)]
pub(super) struct FlushSpans {
    /// By the document that each is of.
    sends: Vec<(Offset, Span)>,
    commit: Option<Span>,
}

impl FlushSpans {
    /// Begins one for each traced document that is in it, and one for the commit.
    pub(super) fn begin(
        services: &Services,
        source: &TopicPartition,
        outputs: &[Output],
        traces: &[Option<Box<Trace>>],
    ) -> Self {
        if !services.spans.is_on() {
            return Self::default();
        }
        let sends = outputs.iter().zip(traces).filter_map(|(output, trace)| {
            let name = || format!("send {}", output.to.topic);
            let attributes = || messaging("send", "send", &output.to);
            let span = trace
                .as_ref()?
                .child(SpanKind::Producer, name, attributes)?;
            Some((output.source, span))
        });
        let sends = sends.collect();
        let commit = services.spans.begin_linked(
            traces.iter().flatten().map(|trace| &**trace),
            SpanKind::Client,
            format!("commit {}", source.topic),
            || {
                let count = Attribute::new("messaging.batch.message_count", size(outputs.len()));
                let mut attributes = messaging("commit", "settle", source);
                attributes.extend([group(services), count]);
                attributes
            },
        );
        Self { sends, commit }
    }

    /// Ends them with what became of the flush.
    pub(super) fn end(self, result: &Result<Vec<Output>, FlushError>) {
        let error = match result {
            Ok(replaced) => return self.end_replaced(replaced),
            Err(error) => error,
        };
        let error_type = match error {
            FlushError::Fenced { .. } => "fenced",
            FlushError::Expired { .. } => "expired",
            FlushError::Record { .. } => "commit_record",
        };
        let sends = self.sends.into_iter().map(|(_, span)| span);
        for mut span in sends.chain(self.commit) {
            span.fail(error_type, error.to_string());
        }
    }

    /// A result that was too large was not sent where its span says.
    fn end_replaced(self, replaced: &[Output]) {
        for (source, mut span) in self.sends {
            let written = replaced.iter().rev().find(|output| output.source == source);
            let letter = written.and_then(|output| DeadLetter::read(&output.record));
            if let Some(letter) = letter.filter(|it| it.reason == DeadLetterReason::ResultTooLarge)
            {
                span.fail(letter.reason.as_str(), letter.detail);
            }
        }
    }
}

fn messaging(name: &'static str, kind: &'static str, at: &TopicPartition) -> Vec<Attribute> {
    vec![
        Attribute::new("messaging.system", "kafka"),
        Attribute::new("messaging.operation.name", name),
        Attribute::new("messaging.operation.type", kind),
        Attribute::new("messaging.destination.name", at.topic.to_string()),
        Attribute::new(
            "messaging.destination.partition.id",
            at.partition.to_string(),
        ),
    ]
}

fn group(services: &Services) -> Attribute {
    let group_id = services.destinations.group_id.clone();
    Attribute::new("messaging.consumer.group.name", group_id)
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
