//! What the process is doing, in one place: the parts publish, the server, the metrics and the summary at exit read.
//!
//! A part calls once per thing that happened; the board counts it for `/status`, `/metrics` and the summary alike, so that the
//! three never disagree. The lock is held for a few instructions and never across an await.

mod drift;
mod parts;
mod totals;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;
use tokio::time::Instant;

use crate::clock;
use crate::telemetry::endings::Endings;
use crate::telemetry::histogram::DurationHistogram;
use crate::telemetry::history::History;
use crate::telemetry::limiting::{Factor, Limiting};
use crate::telemetry::status_metrics::BoardCollector;
use crate::telemetry::watchdog::Stall;
use crate::types::{DeadLetterReason, TopicPartition};

pub use drift::{DriftAlarm, DriftSignal, DriftState, DriftStatus};
pub use parts::{
    BudgetStatus, EndpointStatus, Head, ModelStatus, PartitionStatus, ReadAheadStatus, Stage,
};
pub use totals::{Latency, ResultCount, TopicTotals, Totals};

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Topics are verified, partitions taken, commits read.
    Starting,
    /// Documents flow.
    Running,
    /// Documents would flow, but something holds the work: see the holds.
    Holding,
    /// No new calls, as an operator wants it; those that run are finished.
    Paused,
    /// No new documents; those in flight are finished.
    Draining,
    /// Over.
    Stopped,
}

impl RunState {
    /// The name in `/status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Holding => "holding",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// Why the work, or a part of it, waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// Who waits for what: `kafka`, `llm`, `partition docs/3`.
    pub what: String,
    /// A sentence for the operator, with the setting's name.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// A picture of the board, as `/status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Version of the program.
    pub version: &'static str,
    /// Where the process is in its life.
    pub state: RunState,
    /// When it started.
    pub started_at: Timestamp,
    /// For how long it has run.
    pub uptime_seconds: u64,
    /// Counts the configurations that were in force since the start, with the one that is.
    pub config_generation: u64,
    /// Since when an operator has paused it, while that is so.
    pub paused_since: Option<Timestamp>,
    /// What was decided at start: driver, guarantee, model, …
    pub info: BTreeMap<&'static str, String>,
    /// What limits the work; nothing before it was looked at for the first time.
    pub limiting: Option<Limiting>,
    /// What holds the work, by name.
    pub holds: Vec<Hold>,
    /// Partitions that have work and make no progress.
    pub stalled: Vec<Stall>,
    /// The model's side.
    pub model: ModelStatus,
    /// What is read ahead.
    pub read_ahead: ReadAheadStatus,
    /// The partitions that we own, sorted.
    pub partitions: Vec<PartitionStatus>,
    /// Counts.
    pub totals: Totals,
    /// Latencies.
    pub latency: Latency,
    /// Whether answers are still like those before; null where that is not watched.
    pub drift: Option<DriftStatus>,
}

struct Board {
    state: RunState,
    started: Instant,
    started_at: Timestamp,
    running_since: Option<Instant>,
    paused_since: Option<Timestamp>,
    config_generation: u64,
    info: BTreeMap<&'static str, String>,
    holds: BTreeMap<String, Hold>,
    partitions: BTreeMap<TopicPartition, PartitionStatus>,
    model: ModelStatus,
    read_ahead: ReadAheadStatus,
    limiting: Option<Limiting>,
    /// For how long each was the limiting factor.
    limited: BTreeMap<Factor, Duration>,
    stalled: Vec<Stall>,
    totals: Totals,
    llm: DurationHistogram,
    total: DurationHistogram,
    drift: Option<DriftStatus>,
}

struct Shared {
    board: Mutex<Board>,
    document_seconds: Histogram,
    history: History,
    endings: Endings,
}

/// The board; cheap to clone.
#[derive(Clone)]
pub struct StatusBoard(Arc<Shared>);

impl fmt::Debug for StatusBoard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusBoard").finish_non_exhaustive()
    }
}

/// 10 ms to 40 min: long documents take minutes, and an outage counts in the total.
fn seconds_buckets() -> impl Iterator<Item = f64> {
    exponential_buckets(0.01, 2.0, 18)
}

impl StatusBoard {
    /// An empty board in state [`RunState::Starting`]; its counts are registered as metrics.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let document_seconds = Histogram::new(seconds_buckets());
        registry.register_with_unit(
            "document_duration",
            "Duration from a document's fetch to its answer, retries and holds included",
            Unit::Seconds,
            document_seconds.clone(),
        );
        let board = Self(Arc::new(Shared {
            board: Mutex::new(Board {
                state: RunState::Starting,
                started: Instant::now(),
                started_at: clock::now(),
                running_since: None,
                paused_since: None,
                config_generation: 1,
                info: BTreeMap::new(),
                holds: BTreeMap::new(),
                partitions: BTreeMap::new(),
                model: ModelStatus::default(),
                read_ahead: ReadAheadStatus::default(),
                limiting: None,
                limited: BTreeMap::new(),
                stalled: Vec::new(),
                totals: Totals::default(),
                llm: DurationHistogram::default(),
                total: DurationHistogram::default(),
                drift: None,
            }),
            document_seconds,
            history: History::default(),
            endings: Endings::default(),
        }));
        registry.register_collector(Box::new(BoardCollector(board.clone())));
        board
    }

    /// The last hour.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.0.history
    }

    /// The latest documents that ended.
    #[must_use]
    pub fn endings(&self) -> &Endings {
        &self.0.endings
    }

    /// Notes a fact that was decided at start.
    pub fn set_info(&self, name: &'static str, value: impl Into<String>) {
        self.lock().info.insert(name, value.into());
    }

    /// Enters a state. [`RunState::Holding`] and [`RunState::Paused`] are never entered by hand: running with a hold is holding, and what is
    /// paused is neither.
    pub fn set_state(&self, state: RunState) {
        let mut board = self.lock();
        if state == RunState::Running && board.running_since.is_none() {
            board.running_since = Some(Instant::now());
        }
        board.state = state;
    }

    /// Another configuration is in force.
    pub fn count_config(&self) {
        self.lock().config_generation += 1;
    }

    /// The number of the configuration in force, from 1.
    #[must_use]
    pub fn config_generation(&self) -> u64 {
        self.lock().config_generation
    }

    /// Notes that an operator has paused the work, or has it go on; whether that is news. The time since when it is paused stays.
    pub fn set_paused(&self, paused: bool) -> bool {
        let mut board = self.lock();
        let is_news = board.paused_since.is_some() != paused;
        if is_news {
            board.paused_since = paused.then(clock::now);
        }
        is_news
    }

    /// Since when the work is paused, while it is.
    #[must_use]
    pub fn paused_since(&self) -> Option<Timestamp> {
        self.lock().paused_since
    }

    /// Sets a hold, or renews its reason; the time since when it holds stays. Whether the reason is a new one.
    pub fn set_hold(&self, what: impl Into<String>, reason: impl Into<String>) -> bool {
        let (what, reason) = (what.into(), reason.into());
        let mut board = self.lock();
        match board.holds.get_mut(&what) {
            Some(hold) if hold.reason == reason => false,
            Some(hold) => {
                hold.reason = reason;
                true
            }
            None => {
                let hold = Hold {
                    what: what.clone(),
                    reason,
                    since: clock::now(),
                };
                board.holds.insert(what, hold);
                true
            }
        }
    }

    /// Clears a hold; the hold that it was, if it was set.
    pub fn clear_hold(&self, what: &str) -> Option<Hold> {
        self.lock().holds.remove(what)
    }

    /// What holds the work, by name.
    #[must_use]
    pub fn holds(&self) -> Vec<Hold> {
        self.lock().holds.values().cloned().collect()
    }

    /// Publishes a partition.
    pub fn set_partition(&self, status: PartitionStatus) {
        self.lock().partitions.insert(status.name(), status);
    }

    /// Publishes the model's side, and what is read ahead.
    pub fn set_load(&self, model: ModelStatus, read_ahead: ReadAheadStatus) {
        let mut board = self.lock();
        board.model = model;
        board.read_ahead = read_ahead;
    }

    /// Publishes whether answers are still like those before.
    pub fn set_drift(&self, drift: DriftStatus) {
        self.lock().drift = Some(drift);
    }

    /// Publishes what limits the work, and did for so long.
    pub fn set_limiting(&self, limiting: Limiting, lasted: Duration) {
        let mut board = self.lock();
        *board.limited.entry(limiting.factor).or_default() += lasted;
        board.limiting = Some(limiting);
    }

    /// For how long each factor limited the work.
    #[must_use]
    pub fn limited(&self) -> BTreeMap<Factor, Duration> {
        self.lock().limited.clone()
    }

    /// Publishes the partitions that make no progress.
    pub fn set_stalled(&self, stalled: Vec<Stall>) {
        self.lock().stalled = stalled;
    }

    /// Forgets a partition that is ours no more.
    pub fn remove_partition(&self, partition: &TopicPartition) {
        self.lock().partitions.remove(partition);
    }

    /// Counts a result that was written.
    pub fn count_result(&self, result: ResultCount) {
        self.0.document_seconds.observe(result.total.as_secs_f64());
        let mut board = self.lock();
        board.llm.record(result.llm);
        board.total.record(result.total);
        let totals = &mut board.totals;
        totals.processed += 1;
        totals.truncated += u64::from(result.truncated);
        totals.prompt_tokens += result.prompt_tokens;
        totals.completion_tokens += result.completion_tokens;
    }

    /// Counts a document that was given up.
    pub fn count_dead_letter(&self, reason: DeadLetterReason) {
        *self
            .lock()
            .totals
            .dead_lettered
            .entry(reason.as_str())
            .or_default() += 1;
    }

    /// Counts a document that ended to its input topic: with a result, or given up.
    pub fn count_of_topic(&self, topic: &str, is_result: bool) {
        let mut board = self.lock();
        let topics = &mut board.totals.topics;
        if !topics.contains_key(topic) {
            topics.insert(topic.to_owned(), TopicTotals::default());
        }
        if let Some(totals) = topics.get_mut(topic) {
            totals.processed += u64::from(is_result);
            totals.dead_lettered += u64::from(!is_result);
        }
    }

    /// Counts a record that was passed over.
    pub fn count_skipped(&self) {
        self.lock().totals.skipped += 1;
    }

    /// Counts attempts after the first.
    pub fn count_retries(&self, retries: u64) {
        self.lock().totals.retries += retries;
    }

    /// Counts a flush that is durable, with the bytes of its commit record.
    pub fn count_flush(&self, commit_bytes: usize) {
        let mut board = self.lock();
        board.totals.flushes += 1;
        board.totals.commit_bytes += u64::try_from(commit_bytes).unwrap_or(u64::MAX);
    }

    /// A picture of the board.
    #[must_use]
    pub fn snapshot(&self) -> Status {
        let board = self.lock();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            state: board.shown_state(),
            started_at: board.started_at,
            uptime_seconds: board.started.elapsed().as_secs(),
            config_generation: board.config_generation,
            paused_since: board.paused_since,
            info: board.info.clone(),
            limiting: board.shown_limiting(),
            holds: board.holds.values().cloned().collect(),
            stalled: board.stalled.clone(),
            model: board.model.clone(),
            read_ahead: board.read_ahead,
            partitions: board.partitions.values().cloned().collect(),
            totals: board.totals.clone(),
            latency: board.latency(),
            drift: board.drift.clone(),
        }
    }

    /// What the run came to.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let board = self.lock();
        Summary {
            totals: board.totals.clone(),
            latency: board.latency(),
            elapsed: board.running_since.unwrap_or(board.started).elapsed(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    fn shown_state(&self) -> RunState {
        match self.state {
            RunState::Running if self.paused_since.is_some() => RunState::Paused,
            RunState::Running if !self.holds.is_empty() => RunState::Holding,
            state => state,
        }
    }

    /// What was found at the last look, which lies up to a second back, unless the work was paused or resumed since.
    fn shown_limiting(&self) -> Option<Limiting> {
        let limiting = self.limiting.clone()?;
        match (self.paused_since, self.shown_state()) {
            (Some(since), RunState::Paused) if limiting.factor != Factor::Paused => {
                Some(Limiting {
                    factor: Factor::Paused,
                    detail: "no new call is begun until `resume`".to_owned(),
                    blocker: None,
                    since,
                    ..limiting
                })
            }
            (None, _) if limiting.factor == Factor::Paused => None,
            _ => Some(limiting),
        }
    }

    fn latency(&self) -> Latency {
        Latency {
            llm: self.llm.quantiles(),
            total: self.total.quantiles(),
        }
    }
}

/// What a run came to; `Display` is the text that is printed at exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Counts.
    pub totals: Totals,
    /// Latencies.
    pub latency: Latency,
    /// From the first document that could flow to now.
    pub elapsed: Duration,
}

impl Summary {
    /// Documents that ended per second, in tenths; 0 for a run without time.
    #[must_use]
    pub fn documents_per_second_tenths(&self) -> u64 {
        self.per_second_tenths(self.totals.processed + self.totals.failed())
    }

    /// Flushes per second, in tenths; 0 for a run without time.
    #[must_use]
    pub fn flushes_per_second_tenths(&self) -> u64 {
        self.per_second_tenths(self.totals.flushes)
    }

    fn per_second_tenths(&self, count: u64) -> u64 {
        let elapsed_ms = u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX);
        count
            .saturating_mul(10_000)
            .checked_div(elapsed_ms)
            .unwrap_or(0)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            totals,
            latency: Latency { llm, total },
            elapsed,
        } = self;
        let rate = self.documents_per_second_tenths();
        writeln!(
            f,
            "processed   {} documents in {:.1} s, {}.{} per second ({} truncated)",
            totals.processed,
            elapsed.as_secs_f64(),
            rate / 10,
            rate % 10,
            totals.truncated,
        )?;
        write!(f, "failed      {} dead letters", totals.failed())?;
        for (index, (reason, count)) in totals.dead_lettered.iter().enumerate() {
            write!(
                f,
                "{}{reason} {count}",
                if index == 0 { ": " } else { ", " }
            )?;
        }
        writeln!(
            f,
            "\nskipped     {} records without content",
            totals.skipped
        )?;
        writeln!(f, "retries     {}", totals.retries)?;
        writeln!(
            f,
            "tokens      {} prompt, {} completion",
            totals.prompt_tokens, totals.completion_tokens
        )?;
        let flush_rate = self.flushes_per_second_tenths();
        writeln!(
            f,
            "commits     {}, {}.{} per second, {} bytes per document",
            totals.flushes,
            flush_rate / 10,
            flush_rate % 10,
            totals.commit_bytes_per_document(),
        )?;
        write!(
            f,
            "latency     model p50 {} ms, p95 {} ms, max {} ms; document p50 {} ms, p95 {} ms, max {} ms",
            llm.p50_ms, llm.p95_ms, llm.max_ms, total.p50_ms, total.p95_ms, total.max_ms
        )
    }
}

#[cfg(test)]
mod tests;
