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
    use async_trait::async_trait;
    use prometheus_client::registry::Registry;
    use tokio::time::sleep;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::app::captured::Lines;
    use crate::llm::{Call, LlmConfig, LlmMetrics, Reply, Transport, TransportError};
    use crate::telemetry::registry::new_registry;
    use crate::telemetry::status::{Head, PartitionStatus, RunState, Stage};
    use crate::types::Offset;

    #[derive(Debug)]
    struct Silent;

    #[async_trait]
    impl Transport for Silent {
        async fn exchange(&self, _call: Call) -> Result<Reply, TransportError> {
            std::future::pending().await
        }
    }

    /// One that looks at this board.
    fn observer(board: &StatusBoard, registry: &mut Registry, stall_after: Duration) -> Observer {
        let metrics = LlmMetrics::new(registry);
        let stop = CancellationToken::new();
        let client = VllmClient::new(&LlmConfig::default(), Arc::new(Silent), metrics, &stop);
        Observer {
            client: Arc::new(client.unwrap()),
            open: OpenGauges::default(),
            drift: None,
            board: board.clone(),
            stall_after,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_limits_is_told_once_a_minute() {
        let mut registry = new_registry();
        let board = StatusBoard::new(&mut registry);
        let lines = Lines::default();
        let _capturing = lines.capture();
        board.set_state(RunState::Running);
        let observer = observer(&board, &mut registry, Duration::from_secs(600));
        let observing = tokio::spawn(observer.run());
        sleep(Duration::from_millis(185_500)).await;
        observing.abort();
        let said = lines.text();
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

    /// `docs/0`, whose oldest unfinished document waits for Kafka.
    fn partition(offset: i64) -> PartitionStatus {
        PartitionStatus {
            topic: "docs".to_owned(),
            partition: 0,
            owner_epoch: 1,
            next_fetch_offset: Offset::new(40),
            commit_offset: Offset::new(offset),
            high_watermark: Offset::new(40),
            open: 1,
            queued: 0,
            in_flight: 1,
            waiting_for_turn: 0,
            appending: 1,
            unacknowledged: 0,
            append_ms: None,
            head: Some(Head {
                offset: Offset::new(offset),
                stage: Stage::Appending,
            }),
            oldest_open_ms: Some(10),
            commit_bytes: 0,
            waits_for_room: false,
            read_ahead_waits: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_stands_still_is_told_once_by_offset_and_once_more_when_it_goes_on() {
        let mut registry = new_registry();
        let board = StatusBoard::new(&mut registry);
        let lines = Lines::default();
        let _capturing = lines.capture();
        board.set_state(RunState::Running);
        board.set_partition(partition(17));
        let observer = observer(&board, &mut registry, Duration::from_secs(90));
        let observing = tokio::spawn(observer.run());
        let about = |word: &str| {
            let said = lines.text();
            let told = said.lines().filter(|line| line.contains(word));
            told.map(str::to_owned).collect::<Vec<_>>()
        };
        let (stalled, goes_on) = ("makes no progress", "makes progress again");
        sleep(Duration::from_millis(89_500)).await;
        assert_eq!(about(stalled), Vec::<String>::new());
        sleep(Duration::from_secs(200)).await;
        let told = about(stalled);
        let [told] = &told[..] else {
            panic!("{told:?}");
        };
        for part in [
            " WARN ",
            "topic=\"docs\"",
            "partition=0",
            "offset=17",
            "stood_seconds=90",
            "for 90s (pipeline.stall_after)",
            "offset 17 waits for Kafka to acknowledge its result",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert_eq!(board.snapshot().stalled.len(), 1);
        assert_eq!(about(goes_on), Vec::<String>::new());

        board.set_partition(partition(18));
        sleep(Duration::from_secs(60)).await;
        observing.abort();
        let told = about(goes_on);
        let [told] = &told[..] else {
            panic!("{told:?}");
        };
        for part in [" INFO ", "topic=docs", "partition=0", "stood_seconds=290"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert_eq!(
            (about(stalled).len(), board.snapshot().stalled.len()),
            (1, 0)
        );
    }
}
