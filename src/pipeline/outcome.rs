//! From an input record to what ends it: a result, or a dead letter.

use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use super::config::Partitioner;
use super::sample;
use super::traced::Traced;
use super::{Asked, Services, Topics};
use crate::clock;
use crate::drift::Sample;
use crate::llm::{
    CompleteError, Completion, CompletionRequest, GiveUp, KafkaContext, LongSummary, Prompt, Slot,
    Usage,
};
use crate::offsets::Output;
use crate::records::audit::AuditEntry;
use crate::records::dead_letter::{self, DeadLetter, HeaderStyle};
use crate::records::document::{Document, Parsed, SkipReason, document_id};
use crate::records::headers;
use crate::records::partitioner::partition_for_key;
use crate::records::result::{
    ResultOutput, ResultRecord, ResultSource, ResultStatus, ResultTiming, ResultUsage,
    SCHEMA_VERSION,
};
use crate::spans::Trace;
use crate::telemetry::endings;
use crate::telemetry::status::ResultCount;
use crate::types::{DeadLetterReason, Offset, Record, SourcePosition, TopicPartition};

/// How a record ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// With a record to write: a result or a dead letter.
    Output {
        output: Output,
        count: Box<Count>,
        /// What the audit trail says of it, where one is kept.
        audit: Option<Box<AuditEntry>>,
    },
    /// With nothing: it is no document.
    Skipped(SkipReason),
    /// Not at all: the process is stopping, and it will be asked again.
    Abandoned,
}

impl Outcome {
    fn written(output: Output, count: Count, audit: Option<AuditEntry>) -> Self {
        let audit = audit.map(|mut entry| {
            entry.written(&output.to, &output.record);
            Box::new(entry)
        });
        Self::Output {
            output,
            count: Box::new(count),
            audit,
        }
    }
}

/// What an outcome adds to the counts once it is durable.
#[derive(Debug)]
pub(super) struct Count {
    pub(super) attempts: u32,
    pub(super) ending: Ending,
    /// What drift is looked for in; `None` where nobody looks, or nothing was asked.
    pub(super) sample: Option<Box<Sample>>,
    /// What the status page shows of it.
    pub(super) shown: endings::Ending,
}

impl Count {
    /// The same where `output` was written instead of what was meant to be: what is counted is what lies in Kafka.
    pub(super) fn replaced_by(self, services: &Services, output: &Output) -> Self {
        let is_result = matches!(self.ending, Ending::Result(_));
        let Some(letter) = DeadLetter::read(&output.record).filter(|_| is_result) else {
            return self;
        };
        Self {
            ending: Ending::DeadLetter(letter.reason),
            sample: sample::dead_letter(services.drift.as_ref(), letter.reason, letter.at),
            shown: self.shown.given_up(letter.reason, &letter.detail),
            ..self
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    Result(ResultCount),
    DeadLetter(DeadLetterReason),
}

/// The topics that outcomes go to, and how their partitions are chosen.
#[derive(Debug)]
pub struct Destinations {
    /// Topic of the results.
    pub output: Arc<str>,
    /// How many partitions it has; at least 1.
    pub output_partitions: i32,
    /// How a result's partition is chosen.
    pub partitioner: Partitioner,
    /// Topic of the dead letters.
    pub dead_letters: Arc<str>,
    /// How many partitions it has; at least 1.
    pub dead_letter_partitions: i32,
    /// Names us in dead letters.
    pub group_id: String,
    /// Whose reason headers dead letters have beside our own.
    pub header_style: HeaderStyle,
}

impl Destinations {
    fn result(&self, source: &TopicPartition, record: Record, offset: Offset) -> Output {
        let partition = match (&record.key, self.partitioner) {
            (Some(key), Partitioner::Key) => partition_for_key(key, self.output_partitions),
            _ => source.partition.rem_euclid(self.output_partitions.max(1)),
        };
        Output {
            source: offset,
            to: TopicPartition {
                topic: Arc::clone(&self.output),
                partition,
            },
            record,
        }
    }

    fn dead_letter(&self, source: &TopicPartition, record: Record, offset: Offset) -> Output {
        let partition = source
            .partition
            .rem_euclid(self.dead_letter_partitions.max(1));
        Output {
            source: offset,
            to: TopicPartition {
                topic: Arc::clone(&self.dead_letters),
                partition,
            },
            record,
        }
    }

    /// A smaller record for one that its topic does not accept: a result becomes a dead letter, a dead letter a pointer to the input record.
    /// A pointer cannot be made smaller.
    #[must_use]
    pub fn shrink(&self, source: &TopicPartition, output: Output) -> Option<Output> {
        let offset = output.source;
        let record = &output.record;
        if output.to.topic == self.dead_letters {
            if headers::text(record, dead_letter::POINTER).is_some() {
                return None;
            }
            let letter = DeadLetter::read(record)?;
            let pointer = letter.pointer(record, &self.group_id, self.header_style);
            return Some(self.dead_letter(source, pointer, offset));
        }
        let letter = DeadLetter {
            reason: DeadLetterReason::ResultTooLarge,
            detail: format!(
                "the result has {} bytes and topic `{}` does not accept it: raise its max.message.bytes or lower llm.max_tokens, then send the document again",
                record.size(),
                output.to.topic
            ),
            http_status: None,
            attempts: 0,
            request_id: None,
            answer: None,
            at: clock::now(),
            source: SourcePosition {
                topic_partition: source.clone(),
                offset,
            },
        };
        let pointer = letter.pointer(record, &self.group_id, self.header_style);
        Some(self.dead_letter(source, pointer, offset))
    }
}

/// One record on its way.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) position: SourcePosition,
    pub(super) record: Record,
    pub(super) fetched_at: Instant,
}

/// Takes a record to its end: parse, render, complete, and build what is written.
pub(super) async fn process(
    services: &Services,
    work: &Work,
    slot: Slot,
    traced: &mut Traced,
) -> Outcome {
    let config = &services.input;
    let document = match Document::parse(
        &work.record,
        &work.position,
        config.format,
        &config.content_field,
    ) {
        Parsed::Document(document) => document,
        Parsed::Skip(reason) => return Outcome::Skipped(reason),
        Parsed::Bad(reason, detail) => {
            let name = document_id(&work.record, &work.position);
            traced.name(&name);
            return give_up(services, work, traced, &name, bad(reason, detail), None);
        }
    };
    traced.name(&document.id);
    let asked = services.asking.now();
    let mut request = request(&asked.topics, *document, &work.position, &work.record);
    request.trace = traced.trace().clone();
    let prompt = Arc::clone(&request.prompt);
    let document_id = request.document_id.clone();
    let sent_at = Instant::now();
    match services.complete.complete(request, slot).await {
        Ok(completion) => {
            let answered = Answered {
                document_id,
                sent_at,
                prompt_hash: prompt.template_hash().to_owned(),
                generation: asked.generation.clone(),
                completion,
            };
            answered.into_outcome(services, work, traced.trace())
        }
        Err(CompleteError::DeadLetter(reason)) => give_up(
            services,
            work,
            traced,
            &document_id,
            reason,
            Some((&asked, &prompt)),
        ),
        Err(CompleteError::Abandoned) => Outcome::Abandoned,
    }
}

/// What the model is asked about a document that `record` was read as.
#[must_use]
pub fn request(
    topics: &Topics,
    document: Document,
    position: &SourcePosition,
    record: &Record,
) -> CompletionRequest {
    let context = prompt_context(&document, position);
    let source = &position.topic_partition;
    let prompt = topics.prompt(&source.topic);
    CompletionRequest {
        document_id: document.id,
        position: position.clone(),
        class: topics.class(source),
        prompt: Arc::clone(prompt),
        scope: prompt.scope(&context),
        content: document.text,
        trace: Trace::passed_on(headers::trace(record)),
    }
}

fn bad(reason: DeadLetterReason, detail: String) -> GiveUp {
    GiveUp {
        reason,
        detail,
        attempts: 0,
        http_status: None,
        request_id: None,
        answer: None,
    }
}

/// What a template can use.
fn prompt_context(document: &Document, position: &SourcePosition) -> Value {
    let headers = document.headers.iter();
    let kafka = KafkaContext {
        key: document.key.clone(),
        headers: headers
            .map(|(name, value)| (name.clone(), value.as_str().into()))
            .collect(),
        topic: position.topic_partition.topic.to_string(),
        partition: position.topic_partition.partition,
        offset: position.offset.value(),
        timestamp: document.timestamp.map(|at| at.to_string()),
    };
    Prompt::context(document.fields.clone(), &document.id, kafka)
}

/// The document goes to the dead letters; `name` is its id, `asked` is what it was asked with, when it was read as a document.
fn give_up(
    services: &Services,
    work: &Work,
    traced: &mut Traced,
    name: &str,
    reason: GiveUp,
    asked: Option<(&Asked, &Prompt)>,
) -> Outcome {
    traced.give_up(&reason);
    let GiveUp {
        reason,
        detail,
        attempts,
        http_status,
        request_id,
        answer,
    } = reason;
    let at = clock::now();
    tracing::warn!(
        %reason,
        detail,
        attempts,
        request_id,
        "document goes to the dead letters"
    );
    let source = work.position.clone();
    let took = work.fetched_at.elapsed();
    let mut shown = endings::Ending::dead_letter(name, &source, took, reason, &detail);
    if let Some(answer) = answer.as_ref().filter(|_| services.shows_payloads()) {
        shown = shown.with_answer(answer);
    }
    let letter = DeadLetter {
        reason,
        detail,
        http_status,
        attempts,
        request_id,
        answer,
        at,
        source,
    };
    let keeper = services.audit.as_ref();
    let audit = keeper.map(|audit| audit.given_up(services, work, &letter, name, asked));
    let destinations = &services.destinations;
    let (group_id, style) = (&destinations.group_id, destinations.header_style);
    let mut record = letter.record(&work.record, group_id, style);
    let trace = traced.trace();
    if let Some(trace) = trace.headers().filter(|_| trace.is_ours()) {
        headers::set_trace(&mut record.headers, trace);
    }
    let output =
        destinations.dead_letter(&work.position.topic_partition, record, work.position.offset);
    let count = Count {
        attempts,
        ending: Ending::DeadLetter(reason),
        shown,
        sample: sample::dead_letter(services.drift.as_ref(), reason, at),
    };
    Outcome::written(output, count, audit)
}

/// An answer with what is needed to write it down.
struct Answered {
    document_id: String,
    sent_at: Instant,
    prompt_hash: String,
    generation: String,
    completion: Completion,
}

impl Answered {
    fn into_outcome(self, services: &Services, work: &Work, trace: &Trace) -> Outcome {
        let completion = self.completion;
        let output_cut = completion.finish_reason == "length";
        let document_cut = matches!(completion.long, Some(LongSummary::Truncate { .. }));
        let cut = output_cut || document_cut;
        let status = match cut {
            true => ResultStatus::Truncated,
            false => ResultStatus::Ok,
        };
        let took = work.fetched_at.elapsed();
        let timing = ResultTiming {
            queued_ms: millis(self.sent_at.saturating_duration_since(work.fetched_at)),
            llm_ms: millis(completion.llm_time),
            total_ms: millis(took),
        };
        let usage = usage(completion.usage);
        let attempts = completion.attempts;
        let completed_at = clock::now();
        let asked = sample::Asked {
            settings: &self.generation,
            template: &self.prompt_hash,
            schema: services.schema_hash.as_deref(),
        };
        let sample = sample::answer(services.drift.as_ref(), asked, &completion, completed_at);
        let mut shown = endings::Ending::result(&self.document_id, &work.position, took);
        if services.shows_payloads() {
            let data = completion.data.as_ref().map(Value::to_string);
            shown = shown.with_answer(data.as_deref().unwrap_or(&completion.text));
        }
        let count = ResultCount {
            truncated: cut,
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            llm: completion.llm_time,
            total: took,
        };
        let endpoint = completion.endpoint;
        let result = ResultRecord {
            schema: SCHEMA_VERSION,
            document_id: self.document_id,
            status,
            output: match completion.data {
                Some(data) => ResultOutput::Data(data),
                None => ResultOutput::Text(completion.text),
            },
            finish_reason: completion.finish_reason,
            model: completion.model,
            system_fingerprint: completion.system_fingerprint,
            generation: self.generation,
            prompt_hash: self.prompt_hash,
            schema_hash: services.schema_hash.clone(),
            usage,
            timing,
            attempts,
            truncated: what_was_cut(document_cut, output_cut).map(str::to_owned),
            long_document: completion
                .long
                .and_then(|summary| serde_json::to_value(summary).ok()),
            cached: completion.cached,
            source: ResultSource::new(&work.position, work.record.timestamp_ms),
            request_id: completion.request_id,
            completed_at,
        };
        let keeper = services.audit.as_ref();
        let audit = keeper.map(|audit| audit.answered(work, &result, &endpoint));
        let record = result.into_record(work.record.key.clone(), trace.headers());
        let output = services.destinations.result(
            &work.position.topic_partition,
            record,
            work.position.offset,
        );
        let count = Count {
            attempts,
            ending: Ending::Result(count),
            shown,
            sample,
        };
        Outcome::written(output, count, audit)
    }
}

const fn usage(of: Usage) -> ResultUsage {
    ResultUsage {
        prompt_tokens: of.prompt_tokens,
        completion_tokens: of.completion_tokens,
        total_tokens: of.total_tokens,
        calls: of.calls,
    }
}

const fn what_was_cut(document: bool, output: bool) -> Option<&'static str> {
    match (document, output) {
        (true, true) => Some("document, output"),
        (true, false) => Some("document"),
        (false, true) => Some("output"),
        (false, false) => None,
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
