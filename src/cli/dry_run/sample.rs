//! The records that are read, and what would become of each.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};

use super::backlog::Cursor;
use crate::config::Settings;
use crate::kafka::KafkaError;
use crate::kafka::wire::{Cluster, Isolation};
use crate::llm::{
    CompleteError, CompletionRequest, Forecast, Forecaster, Load, Message, Plan, Treatment,
};
use crate::pipeline::{self, InputConfig, IsolationLevel, Topics};
use crate::records::document::{Document, Parsed};
use crate::types::{DeadLetterReason, Record, SourcePosition};

/// What one fetch asks for; a larger batch comes whole.
const FETCH_BYTES: usize = 1024 * 1024;
/// How long a partition is waited for that has nothing to show, such as one behind an open transaction.
const FETCH_WAIT: Duration = Duration::from_millis(500);
/// Prompts that are counted side by side.
const COUNTS_MAX: usize = 8;

/// Reads so many records, from each partition about as many.
#[derive(Debug)]
pub(super) struct Sampler<'a> {
    cluster: &'a Cluster,
    isolation: Isolation,
    cursors: Vec<Cursor>,
    /// Whose turn it is.
    turn: usize,
    left: u64,
}

impl<'a> Sampler<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        settings: &Settings,
        cursors: Vec<Cursor>,
        count: u64,
    ) -> Self {
        Self {
            cluster,
            isolation: match settings.isolation_level() {
                IsolationLevel::ReadUncommitted => Isolation::ReadUncommitted,
                IsolationLevel::ReadCommitted => Isolation::ReadCommitted,
            },
            cursors,
            turn: 0,
            left: count,
        }
    }

    /// The next ones, of one partition; `None` when there are enough, or no more.
    pub(super) async fn next(
        &mut self,
    ) -> Result<Option<Vec<(SourcePosition, Record)>>, KafkaError> {
        loop {
            self.cursors.retain(|cursor| cursor.next < cursor.end);
            let open = u64::try_from(self.cursors.len()).unwrap_or(u64::MAX);
            if self.left == 0 || open == 0 {
                return Ok(None);
            }
            self.turn = (self.turn + 1) % self.cursors.len();
            let share = self.left.div_ceil(open);
            let Some(cursor) = self.cursors.get_mut(self.turn) else {
                return Ok(None);
            };
            let Cursor {
                partition,
                next,
                end,
            } = cursor;
            let fetched = self
                .cluster
                .fetch(partition, *next, self.isolation, FETCH_BYTES, FETCH_WAIT)
                .await?;
            let mut records = Vec::new();
            for (offset, record) in fetched.records {
                if offset >= *end || share <= u64::try_from(records.len()).unwrap_or(u64::MAX) {
                    break;
                }
                *next = offset.next();
                let position = SourcePosition {
                    topic_partition: partition.clone(),
                    offset,
                };
                records.push((position, record));
            }
            if !records.is_empty() {
                let read = u64::try_from(records.len()).unwrap_or(u64::MAX);
                self.left = self.left.saturating_sub(read);
                return Ok(Some(records));
            }
            // Nothing but markers and gaps; or what an open transaction holds back, which is not waited for.
            *next = if fetched.next_offset > *next {
                fetched.next_offset
            } else {
                *end
            };
        }
    }
}

/// One prompt, to be shown.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) document_id: String,
    pub(super) position: SourcePosition,
    pub(super) messages: Vec<Message>,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Sample {
    pub(super) records: u64,
    /// Tombstones.
    pub(super) skipped: u64,
    /// What would be given up, by reason.
    pub(super) dead_letters: BTreeMap<&'static str, u64>,
    /// What would be answered.
    pub(super) documents: u64,
    /// Of these, by how they would be read.
    pub(super) whole: u64,
    pub(super) map_reduce: u64,
    pub(super) truncate: u64,
    /// Documents that are longer than the context, given up or not.
    pub(super) long: u64,
    /// Prompts that the server has counted, and others.
    pub(super) counted: u64,
    pub(super) estimated: u64,
    /// Tokens of each prompt that could be rendered.
    pub(super) prompt_tokens: Vec<u64>,
    /// What those that would be answered take.
    pub(super) load: Load,
    pub(super) shown: Option<Shown>,
    /// Documents to ask the model about.
    pub(super) kept: Vec<CompletionRequest>,
    /// How many more of them to keep.
    pub(super) keep: u64,
    /// Whether a prompt is to be shown.
    pub(super) show: bool,
}

/// What a record turned out to be.
enum Found {
    Skipped,
    Bad(DeadLetterReason),
    Document(Box<CompletionRequest>, Result<Forecast, CompleteError>),
}

impl Sample {
    /// Keeps the first `keep` documents to ask about, and the first prompt when it is to be shown.
    pub(super) fn new(keep: u64, show: bool) -> Self {
        Self {
            keep,
            show,
            ..Self::default()
        }
    }

    /// Takes records in.
    pub(super) async fn take(
        &mut self,
        records: Vec<(SourcePosition, Record)>,
        input: &InputConfig,
        topics: &Topics,
        forecaster: &Forecaster,
    ) {
        let found = records
            .into_iter()
            .map(|(position, record)| find(position, record, input, topics, forecaster));
        let mut found = stream::iter(found).buffered(COUNTS_MAX);
        while let Some(found) = found.next().await {
            self.note(found);
        }
    }

    fn note(&mut self, found: Found) {
        self.records += 1;
        match found {
            Found::Skipped => self.skipped += 1,
            Found::Bad(reason) => self.give_up(reason),
            Found::Document(_, Err(error)) => self.fail(&error),
            Found::Document(request, Ok(forecast)) => self.document(*request, forecast),
        }
    }

    fn document(&mut self, request: CompletionRequest, forecast: Forecast) {
        self.prompt_tokens.push(forecast.prompt_tokens);
        self.long += u64::from(forecast.is_long);
        if forecast.counted {
            self.counted += 1;
        } else {
            self.estimated += 1;
        }
        if self.show && self.shown.is_none() {
            self.shown = Some(Shown {
                document_id: request.document_id.clone(),
                position: request.position.clone(),
                messages: forecast.messages,
            });
        }
        let Plan { treatment, load } = match forecast.plan {
            Ok(plan) => plan,
            Err(error) => return self.fail(&error),
        };
        match treatment {
            Treatment::Whole => self.whole += 1,
            Treatment::MapReduce => self.map_reduce += 1,
            Treatment::Truncate => self.truncate += 1,
        }
        self.documents += 1;
        self.load.merge(load);
        if self.keep > 0 {
            self.keep -= 1;
            self.kept.push(request);
        }
    }

    fn fail(&mut self, error: &CompleteError) {
        // A forecast waits for nothing, so it is never abandoned.
        if let CompleteError::DeadLetter(given_up) = error {
            self.give_up(given_up.reason);
        }
    }

    fn give_up(&mut self, reason: DeadLetterReason) {
        *self.dead_letters.entry(reason.as_str()).or_default() += 1;
    }

    /// Documents that would be given up.
    pub(super) fn given_up(&self) -> u64 {
        self.dead_letters.values().sum()
    }
}

async fn find(
    position: SourcePosition,
    record: Record,
    input: &InputConfig,
    topics: &Topics,
    forecaster: &Forecaster,
) -> Found {
    match Document::parse(&record, &position, input.format, &input.content_field) {
        Parsed::Skip(_tombstone) => Found::Skipped,
        Parsed::Bad(reason, _where) => Found::Bad(reason),
        Parsed::Document(document) => {
            let request = pipeline::request(topics, *document, &position, &record);
            let forecast = forecaster.forecast(&request).await;
            Found::Document(Box::new(request), forecast)
        }
    }
}
