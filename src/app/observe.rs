//! Looks once a second how things stand: what limits the work, and whether some partition makes no progress.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::drift;
use crate::clock;
use crate::drift::Monitor;
use crate::llm::{BreakerState, BudgetState, EndpointState, LlmState, VllmClient};
use crate::pipeline::OpenGauges;
use crate::telemetry::StatusBoard;
use crate::telemetry::limiting::{Limiting, Recent, Snapshot, judge};
use crate::telemetry::status::{BudgetStatus, EndpointStatus, ModelStatus};
use crate::telemetry::watchdog::{Bark, Watchdog};
use crate::types::SourcePosition;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is told in the log what limits the work.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What is looked at, and where it is shown.
pub(super) struct Observer {
    pub(super) client: Arc<VllmClient>,
    pub(super) open: OpenGauges,
    pub(super) drift: Option<Monitor>,
    pub(super) board: StatusBoard,
    /// How long a partition with work may stand still before that is told.
    pub(super) stall_after: Duration,
}

impl Observer {
    /// Looks until it is dropped.
    ///
    /// # Cancel safety
    /// Safe: it only looks and tells.
    pub(super) async fn run(self) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut recent = Recent::new();
        let mut watchdog = Watchdog::new(self.stall_after);
        let mut told = Instant::now();
        let mut looked = Instant::now();
        loop {
            looks.tick().await;
            let now = Instant::now();
            let limiting = self.look(&mut recent, &mut watchdog, now);
            if now.duration_since(told) >= TELL_EVERY {
                told = now;
                tell(&limiting);
            }
            self.board
                .set_limiting(limiting, now.duration_since(looked));
            looked = now;
        }
    }

    fn look(&self, recent: &mut Recent, watchdog: &mut Watchdog, now: Instant) -> Limiting {
        let model = model_status(self.client.state());
        self.board.set_load(model, self.open.level());
        if let Some(monitor) = &self.drift {
            self.board.set_drift(drift::status(monitor));
        }
        let status = self.board.snapshot();
        let wall = clock::now();
        let barks = watchdog.look(now, wall, &status, |partition, offset| {
            self.client.parts_answered(&SourcePosition {
                topic_partition: partition.clone(),
                offset,
            })
        });
        barks.iter().for_each(|bark| self.bark(bark));
        self.board.set_stalled(watchdog.stalled(&status.partitions));
        let totals = &status.totals;
        let ended = totals.processed + totals.failed();
        let limiting = recent.note(now, wall, judge(&Snapshot::from(&status)), ended);
        let history = self.board.history();
        history.note(now, wall, totals, limiting.factor);
        limiting
    }

    fn bark(&self, bark: &Bark) {
        match bark {
            Bark::Stalled(stall, stood_for) => tracing::warn!(
                topic = stall.topic,
                partition = stall.partition,
                offset = stall.offset.value(),
                stood_seconds = stood_for.as_secs(),
                "a partition has work and makes no progress for {:?} (pipeline.stall_after), and nothing is known to hold it: {}",
                self.stall_after,
                stall.told()
            ),
            Bark::GoesOn(partition, stood_for) => tracing::info!(
                topic = %partition.topic,
                partition = partition.partition,
                stood_seconds = stood_for.as_secs(),
                "the partition makes progress again"
            ),
        }
    }
}

fn tell(limiting: &Limiting) {
    tracing::info!(
        factor = limiting.factor.as_str(),
        documents = limiting.last_minute_documents,
        last_minute = limiting.shares(),
        "limited by {}: {}",
        limiting.factor,
        limiting.detail
    );
}

fn model_status(state: LlmState) -> ModelStatus {
    let for_slot = state.waiting.saturating_sub(state.waiting_for_budget);
    ModelStatus {
        held: state.held.map(|hold| hold.reason),
        over_budget: state.over_budget.map(|hold| hold.reason),
        limited_by: state.limited_by,
        waiting_for_slot: count(for_slot),
        waiting_for_budget: count(state.waiting_for_budget),
        retrying: count(state.retrying),
        throttled: count(state.throttled),
        endpoints: state.endpoints.into_iter().map(endpoint_status).collect(),
        budgets: state.budgets.into_iter().map(budget_status).collect(),
    }
}

fn budget_status(state: BudgetState) -> BudgetStatus {
    let BudgetState { key, left } = state;
    BudgetStatus { key, left }
}

fn endpoint_status(state: EndpointState) -> EndpointStatus {
    EndpointStatus {
        url: state.url,
        breaker: match state.breaker {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        },
        held: state.held.map(|hold| hold.reason),
        limit: count(state.limit),
        in_flight: count(state.running),
        queued_there: state.queued_there,
        outstanding_tokens: state.outstanding_tokens,
    }
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Mutex, PoisonError};

    use async_trait::async_trait;
    use tokio::time::sleep;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::llm::{Call, LlmConfig, LlmMetrics, Reply, Transport, TransportError};
    use crate::telemetry::registry::new_registry;
    use crate::telemetry::status::RunState;

    #[derive(Debug)]
    struct Silent;

    #[async_trait]
    impl Transport for Silent {
        async fn exchange(&self, _call: Call) -> Result<Reply, TransportError> {
            std::future::pending().await
        }
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            lines.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_limits_is_told_once_a_minute() {
        let mut registry = new_registry();
        let board = StatusBoard::new(&mut registry);
        let metrics = LlmMetrics::new(&mut registry);
        let config = LlmConfig::default();
        let stop = CancellationToken::new();
        let client = VllmClient::new(&config, Arc::new(Silent), metrics, &stop).unwrap();
        let lines = Lines::default();
        let written = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || written.clone())
            .finish();
        let _default = tracing::subscriber::set_default(subscriber);
        board.set_state(RunState::Running);
        let observer = Observer {
            client: Arc::new(client),
            open: OpenGauges::default(),
            drift: None,
            board: board.clone(),
            stall_after: Duration::from_secs(600),
        };
        let observing = tokio::spawn(observer.run());
        sleep(Duration::from_millis(185_500)).await;
        observing.abort();
        let lines = lines.0.lock().unwrap().clone();
        let said = String::from_utf8(lines).unwrap();
        let told: Vec<_> = said
            .lines()
            .filter(|line| line.contains("limited by"))
            .collect();
        assert_eq!(told.len(), 3, "{said}");
        assert!(
            told.iter().all(|line| line.contains("input_empty")
                && line.contains("last_minute=\"input_empty 100 %\"")),
            "{told:?}"
        );
        let limited: Duration = board.limited().values().sum();
        assert_eq!(limited, Duration::from_secs(185), "no second is left out");
    }
}
