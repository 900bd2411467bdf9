//! One input partition: fetch, admit, complete, order, append, commit.
//!
//! The worker owns everything that belongs to the partition and nothing else touches it. Calls to the model run as tasks that hand
//! their outcome back; a flush runs beside them, and outcomes gather while it is on its way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::emit::OrderBuffer;
use super::intake::Intaken;
use super::outcome::{Count, Outcome, Work, process};
use super::pace::between_flushes;
use super::read_ahead::OpenToken;
use super::traced::{FlushSpans, Traced};
use super::{Services, reading_ahead, ready, writing};
use crate::llm::{Class, Slot};
use crate::offsets::{Committer, Flush, FlushError, Output, Tracker};
use crate::records::audit::AuditEntry;
use crate::spans::Trace;
use crate::telemetry::status::{Head, PartitionStatus, Stage};
use crate::types::{Offset, Record, SourcePosition, TopicPartition};

/// A commit is written this often even when nothing moves: an owner is live for three times as long after it.
const REFRESH: Duration = Duration::from_secs(15);
/// How often what the worker knows is published; also the pace of commits that only step over gaps.
const PUBLISH: Duration = Duration::from_secs(1);

/// Why a worker ended before it was drained.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    /// Nothing more can be made durable.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// A call's task panicked: an invariant is broken.
    #[error("a document's task ended without an outcome")]
    Task(#[from] JoinError),
}

/// The outcome of a task, on its way to its turn.
struct Finished {
    offset: Offset,
    outcome: Outcome,
    trace: Option<Box<Trace>>,
    open: OpenToken,
}

/// What was fetched and is not taken in yet.
struct Fetched {
    records: VecDeque<(Offset, Record, OpenToken)>,
    next_offset: Offset,
    at: Instant,
}

/// An outcome whose turn has come, waiting for the next flush.
struct Gathered {
    output: Output,
    count: Box<Count>,
    trace: Option<Box<Trace>>,
    audit: Option<Box<AuditEntry>>,
    open: OpenToken,
}

/// A worker's flush on its way: it comes back with the committer.
type FlushOnItsWay = BoxFuture<'static, (Committer, Flushed)>;

struct Flushed {
    /// What was written instead of outputs that were too large.
    result: Result<Vec<Output>, FlushError>,
    /// By the document that each is of.
    counts: Vec<(Offset, Count)>,
    /// Records of the audit trail.
    audited: usize,
    /// Dropped when the flush is through: only then do the documents cease to be open.
    open: Vec<OpenToken>,
    began: Instant,
}

/// What the flush on its way carries.
#[derive(Debug, Clone, Copy)]
struct Flushing {
    /// The oldest document whose outcome is in it.
    first: Option<Offset>,
    count: usize,
    began: Instant,
}

pub(super) struct Worker {
    partition: TopicPartition,
    /// Its place among those that share the bound on open documents.
    index: usize,
    services: Arc<Services>,
    owner_epoch: u64,
    intake: mpsc::Receiver<Intaken>,
    drain: CancellationToken,

    tracker: Tracker,
    /// The batch that is being taken in: all at once, or as far as the commit record has room.
    fetched: Option<Fetched>,
    queue: VecDeque<(Work, OpenToken)>,
    /// One for each document in the queue, so that the partition has its share also where many slots become free at once.
    admissions: FuturesUnordered<BoxFuture<'static, Slot>>,
    class: Class,
    calls: JoinSet<Finished>,
    order: OrderBuffer<(Outcome, Option<Box<Trace>>, OpenToken)>,
    gathered: Vec<Gathered>,

    /// Here, unless a flush has it.
    committer: Option<Committer>,
    flush: Option<FlushOnItsWay>,
    flushing: Option<Flushing>,
    committed: Offset,
    /// Bytes of the last commit record.
    commit_bytes: usize,
    flushed_at: Instant,

    high_watermark: Offset,
    /// When the batch that begins at an offset was fetched; batches that are finished are forgotten.
    fetches: BTreeMap<Offset, Instant>,
    /// Nothing more comes from the intake; what it has handed over is worked on.
    fetch_ended: bool,
    /// What was not sent to the model yet is given back.
    draining: bool,
    /// What was published last still holds: a thousand idle partitions need not say so each second.
    is_published: bool,
}

impl Worker {
    /// A worker that goes on from what `committer` has claimed.
    pub(super) fn new(
        services: Arc<Services>,
        committer: Committer,
        intake: mpsc::Receiver<Intaken>,
        drain: CancellationToken,
        index: usize,
    ) -> Self {
        let position = committer.committed().cloned().unwrap_or_default();
        Self {
            partition: committer.partition.clone(),
            index,
            owner_epoch: committer.owner().epoch,
            intake,
            drain,
            committed: position.next_offset,
            commit_bytes: committer.commit_bytes(),
            tracker: Tracker::new(position),
            fetched: None,
            queue: VecDeque::new(),
            admissions: FuturesUnordered::new(),
            class: services.asking.now().topics.class(&committer.partition),
            calls: JoinSet::new(),
            order: OrderBuffer::new(services.order),
            gathered: Vec::new(),
            committer: Some(committer),
            flush: None,
            flushing: None,
            flushed_at: Instant::now(),
            high_watermark: Offset::ZERO,
            fetches: BTreeMap::new(),
            fetch_ended: false,
            draining: false,
            is_published: false,
            services,
        }
    }

    /// Works until it is drained, or until the intake has ended and everything that it handed over is through.
    ///
    /// # Errors
    /// As [`WorkerError`] says.
    ///
    /// # Cancel safety
    /// Not safe: drop it only when the process ends. What was not committed is done again.
    pub(super) async fn run(mut self) -> Result<(), WorkerError> {
        let mut publish = interval(PUBLISH);
        publish.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.emit();
            self.begin_flush_when_due();
            self.take_in();
            if self.is_drained() {
                self.publish();
                self.services.holds.forget(&reading_ahead(&self.partition));
                return Ok(());
            }
            self.ask_for_slots();
            let flush_at = self.flush_due_at();
            // Completions before intake: what is done makes room for what is new.
            tokio::select! {
                biased;
                (committer, flushed) = ready(&mut self.flush) => self.end_flush(committer, flushed)?,
                Some(finished) = self.calls.join_next(), if !self.calls.is_empty() => {
                    self.finish(finished?);
                    while let Some(finished) = self.calls.try_join_next() {
                        self.finish(finished?);
                    }
                }
                () = self.drain.cancelled(), if !self.draining => self.give_back(),
                Some(slot) = self.admissions.next(), if !self.admissions.is_empty() => {
                    self.send(slot);
                    while let Some(Some(slot)) = self.admissions.next().now_or_never() {
                        self.send(slot);
                    }
                }
                intaken = self.intake.recv(), if !self.fetch_ended && self.fetched.is_none() => match intaken {
                    Some(intaken) => self.receive(intaken),
                    None => self.fetch_ended = true,
                },
                () = sleep_until(flush_at.unwrap_or_else(Instant::now)), if flush_at.is_some() => {}
                _ = publish.tick(), if !self.is_published => {
                    let waits_for_room = self.publish();
                    // The age of what is open grows by itself, and room is made by others.
                    self.is_published = self.tracker.open() == 0
                        && self.fetched.is_none()
                        && self.flush.is_none()
                        && !waits_for_room;
                }
            }
        }
    }

    fn receive(&mut self, intaken: Intaken) {
        let is_news = !intaken.records.is_empty()
            || intaken.high_watermark != self.high_watermark
            || intaken.next_offset != self.tracker.read_end();
        self.is_published &= !is_news;
        self.high_watermark = intaken.high_watermark;
        let at = Instant::now();
        if let Some((first, ..)) = intaken.records.first() {
            self.fetches.insert(*first, at);
        }
        self.fetched = Some(Fetched {
            records: intaken.records.into(),
            next_offset: intaken.next_offset,
            at,
        });
    }

    /// Fetched records are tracked and queued, as far as the commit record has room for what they could make of it; what is no document
    /// ends here.
    fn take_in(&mut self) {
        while let Some(fetched) = &mut self.fetched {
            let Some((offset, ..)) = fetched.records.front() else {
                self.tracker.advance_to(fetched.next_offset);
                self.fetched = None;
                return;
            };
            let has_room =
                self.tracker.commit_bytes_after(*offset) <= self.services.commit_bytes_max;
            // One alone is always taken in: it adds no range to what was inherited, so that work goes on whatever that was.
            if !has_room && self.tracker.open() > 0 {
                return;
            }
            let fetched_at = fetched.at;
            if let Some((offset, record, open)) = fetched.records.pop_front() {
                self.enqueue(offset, record, open, fetched_at);
            }
        }
    }

    fn enqueue(&mut self, offset: Offset, record: Record, open: OpenToken, fetched_at: Instant) {
        if !self.tracker.receive(offset) {
            return;
        }
        self.order.enter(
            offset,
            record.key.clone().filter(|key: &Bytes| !key.is_empty()),
        );
        let position = SourcePosition {
            topic_partition: self.partition.clone(),
            offset,
        };
        let work = Work {
            position,
            record,
            fetched_at,
        };
        self.queue.push_back((work, open));
    }

    fn ask_for_slots(&mut self) {
        while self.admissions.len() < self.queue.len() {
            let (complete, class) = (Arc::clone(&self.services.complete), self.class);
            let admission = async move { complete.admit(class).await };
            self.admissions.push(Box::pin(admission));
        }
    }

    /// A slot is free: the oldest document in the queue goes to the model.
    fn send(&mut self, slot: Slot) {
        let Some((work, open)) = self.queue.pop_front() else {
            return;
        };
        let services = Arc::clone(&self.services);
        let mut traced = Traced::begin(&services, &work);
        let span = traced.log_span(&work.position);
        let task = async move {
            let outcome = process(&services, &work, slot, &mut traced).await;
            Finished {
                offset: work.position.offset,
                trace: traced.end(&outcome),
                outcome,
                open,
            }
        };
        self.calls.spawn(task.instrument(span));
    }

    fn finish(&mut self, finished: Finished) {
        let Finished {
            offset,
            outcome,
            trace,
            open,
        } = finished;
        // An abandoned document stays open: the commit offset does not pass it, and it is asked again after the restart.
        if !matches!(outcome, Outcome::Abandoned) {
            self.order.finish(offset, (outcome, trace, open));
        }
    }

    /// Outcomes whose turn it is gather for the next flush.
    fn emit(&mut self) {
        while let Some((offset, (outcome, trace, open))) = self.order.take_ready() {
            match outcome {
                Outcome::Output {
                    output,
                    count,
                    audit,
                } => {
                    self.gathered.push(Gathered {
                        output,
                        count,
                        trace,
                        audit,
                        open,
                    });
                }
                Outcome::Skipped(reason) => {
                    let TopicPartition { topic, partition } = &self.partition;
                    tracing::debug!(%topic, partition, %offset, reason = reason.as_str(), "record skipped");
                    self.services.board.count_skipped();
                    self.tracker.finish(offset);
                }
                Outcome::Abandoned => {}
            }
        }
    }

    /// When the next flush may begin; `None` while there is nothing to flush or one is on its way.
    fn flush_due_at(&self) -> Option<Instant> {
        if self.flush.is_some() {
            return None;
        }
        let moved = self.tracker.commit_offset() > self.committed;
        // Nobody else's outcome is to come: to wait would gather nothing.
        let idle = self.calls.is_empty() && self.queue.is_empty() && self.fetched.is_none();
        let pace = if !self.gathered.is_empty() {
            if self.draining || idle {
                Duration::ZERO
            } else {
                between_flushes(self.services.commit_interval, self.commit_bytes)
            }
        } else if moved {
            if self.draining || (self.fetch_ended && idle) {
                Duration::ZERO
            } else {
                PUBLISH
            }
        } else if self.fetch_ended && idle {
            return None;
        } else {
            REFRESH
        };
        Some(self.flushed_at + pace)
    }

    fn begin_flush_when_due(&mut self) {
        if self.flush_due_at().is_none_or(|due| due > Instant::now()) {
            return;
        }
        let Some(mut committer) = self.committer.take() else {
            return;
        };
        let count = self.gathered.len();
        let mut outputs = Vec::with_capacity(count);
        let mut counts = Vec::with_capacity(count);
        let mut traces = Vec::with_capacity(count);
        let mut open = Vec::with_capacity(count);
        let mut audit = Vec::new();
        for gathered in self.gathered.drain(..) {
            self.tracker.finish(gathered.output.source);
            counts.push((gathered.output.source, *gathered.count));
            outputs.push(gathered.output);
            traces.push(gathered.trace);
            audit.extend(gathered.audit.map(|entry| *entry));
            open.push(gathered.open);
        }
        let position = self.tracker.position();
        let began = Instant::now();
        self.flushing = Some(Flushing {
            first: outputs.iter().map(|output| output.source).min(),
            count,
            began,
        });
        let spans = FlushSpans::begin(&self.services, &self.partition, &outputs, &traces);
        let services = Arc::clone(&self.services);
        let what = writing(&self.partition);
        self.flush = Some(Box::pin(async move {
            let audited = audit.len();
            let flush = committer.flush(Flush {
                outputs,
                audit,
                position,
            });
            let (result, told) = services
                .patiently(&what, "append", Duration::ZERO, flush)
                .await;
            if told {
                services.holds.release(&what);
            }
            spans.end(&result);
            (
                committer,
                Flushed {
                    result,
                    counts,
                    audited,
                    open,
                    began,
                },
            )
        }));
    }

    fn end_flush(&mut self, committer: Committer, flushed: Flushed) -> Result<(), WorkerError> {
        let replaced = flushed.result?;
        self.flushing = None;
        self.is_published = false;
        self.services
            .metrics
            .flushed(flushed.counts.len(), flushed.began.elapsed());
        self.services.metrics.audited(flushed.audited);
        for (source, count) in flushed.counts {
            let written = replaced.iter().rev().find(|output| output.source == source);
            let count = match written {
                Some(output) => count.replaced_by(&self.services, output),
                None => count,
            };
            self.services.count(&self.partition.topic, count);
        }
        drop(flushed.open);
        if let Some(committed) = committer.committed() {
            self.committed = committed.next_offset;
        }
        self.commit_bytes = committer.commit_bytes();
        self.services.board.count_flush(self.commit_bytes);
        self.services
            .commit_offsets
            .set(&self.partition, self.committed);
        if let Some((batch, _)) = self
            .fetches
            .range(..=self.tracker.commit_offset())
            .next_back()
        {
            let batch = *batch;
            self.fetches = self.fetches.split_off(&batch);
        }
        self.committer = Some(committer);
        self.flushed_at = Instant::now();
        Ok(())
    }

    /// What was not sent yet is given back: it is read again after the restart.
    fn give_back(&mut self) {
        self.draining = true;
        self.fetch_ended = true;
        self.intake.close();
        self.fetched = None;
        self.queue.clear();
        self.admissions.clear();
    }

    fn is_drained(&self) -> bool {
        self.fetch_ended
            && self.calls.is_empty()
            && self.queue.is_empty()
            && self.fetched.is_none()
            && self.flush.is_none()
            && self.flush_due_at().is_none()
    }

    /// Why nothing more is taken in, while the commit record keeps it from that.
    fn read_ahead_waits(&self) -> Option<String> {
        let fetched = self.fetched.as_ref()?;
        let oldest = self.tracker.oldest_open()?;
        let (next, ..) = fetched.records.front()?;
        Some(format!(
            "the commit record could come to {} of {} bytes (processing.commit_record_bytes_max), as it names each gap between finished documents: read-ahead waits for offset {oldest}, and reads on at {next}",
            self.tracker.commit_bytes_after(*next),
            self.services.commit_bytes_max
        ))
    }

    /// Shows how the partition stands; answers whether it waits for room to read ahead.
    fn publish(&self) -> bool {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let read_ahead_waits = self.read_ahead_waits();
        let what = reading_ahead(&self.partition);
        match &read_ahead_waits {
            Some(reason) => self.services.holds.hold(&what, reason),
            None => self.services.holds.release(&what),
        }
        let waits_for_room = self.services.read_ahead.is_waited_for(self.index);
        let unacknowledged = self.flushing.map_or(0, |flushing| flushing.count);
        let head = self.head();
        self.services.board.set_partition(PartitionStatus {
            topic: self.partition.topic.to_string(),
            partition: self.partition.partition,
            owner_epoch: self.owner_epoch,
            next_fetch_offset: self.tracker.read_end(),
            commit_offset: self.committed,
            high_watermark: self.high_watermark,
            open: count(self.tracker.open()),
            queued: count(self.queue.len()),
            in_flight: count(self.calls.len()),
            waiting_for_turn: count(self.order.waiting()),
            appending: count(self.gathered.len() + unacknowledged),
            unacknowledged: count(unacknowledged),
            append_ms: self
                .flushing
                .and_then(|flushing| milliseconds(flushing.began)),
            head,
            oldest_open_ms: head.and_then(|head| self.age_ms(head.offset)),
            commit_bytes: count(self.commit_bytes),
            waits_for_room,
            read_ahead_waits,
        });
        waits_for_room
    }

    /// The oldest document without a durable outcome.
    fn head(&self) -> Option<Head> {
        let flushing = self.flushing.and_then(|flushing| flushing.first);
        let open = self.tracker.oldest_open();
        let offset = flushing.into_iter().chain(open).min()?;
        let next = self.queue.front().map(|(work, _)| work.position.offset);
        let mut gathered = self.gathered.iter();
        let stage = if next == Some(offset) {
            Stage::Queued
        } else if flushing == Some(offset) || gathered.any(|each| each.output.source == offset) {
            Stage::Appending
        } else {
            Stage::WithModel
        };
        Some(Head { offset, stage })
    }

    /// Age of an unfinished document, from the moment it was fetched.
    fn age_ms(&self, offset: Offset) -> Option<u64> {
        // Fetch times are kept per batch: the newest one that begins at or before the offset is its own.
        let (_, fetched_at) = self.fetches.range(..=offset).next_back()?;
        milliseconds(*fetched_at)
    }
}

fn milliseconds(since: Instant) -> Option<u64> {
    u64::try_from(since.elapsed().as_millis()).ok()
}
