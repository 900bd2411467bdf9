//! What is told of the process: to `/status` in full, to the page as far as one can read it.

use std::cmp::Reverse;

use jiff::Timestamp;
use serde::Serialize;

use crate::clock;
use crate::telemetry::endings::Latest;
use crate::telemetry::history::News;
use crate::telemetry::status::Status;
use crate::telemetry::{Health, StatusBoard};

/// Partitions that the page shows; with more it shows those that are furthest behind.
const PARTITIONS_MAX: usize = 100;
/// Holds that the page shows, and as many stalls.
const HOLDS_MAX: usize = 20;

/// The status with what the probes say.
#[derive(Debug, Serialize)]
pub struct StatusPage {
    alive: bool,
    ready: bool,
    waiting_for: Vec<&'static str>,
    #[serde(flatten)]
    status: Status,
}

impl StatusPage {
    pub(in crate::telemetry) fn new(health: &Health, board: &StatusBoard) -> Self {
        let status = board.snapshot();
        let waiting_for = health.waiting_for();
        Self {
            alive: health.is_alive(),
            ready: waiting_for.is_empty()
                && status.holds.is_empty()
                && status.paused_since.is_none(),
            waiting_for,
            status,
        }
    }
}

/// Sums over all partitions, those that are left out too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
struct Sums {
    partitions: usize,
    holds: usize,
    stalled: usize,
    lag: u64,
    unfinished: u64,
    oldest_ms: Option<u64>,
}

/// One event.
#[derive(Debug, Serialize)]
pub(super) struct View {
    /// The server's clock: the reader's may be wrong.
    at: Timestamp,
    status: StatusPage,
    sums: Sums,
    history: News,
    /// Only where there is news.
    #[serde(skip_serializing_if = "Option::is_none")]
    latest: Option<Latest>,
}

/// What a listener has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    samples: u64,
    endings: Option<u64>,
}

impl View {
    /// What one is to see who has seen so much; the other half is what he has seen then.
    pub(super) fn new(health: &Health, board: &StatusBoard, seen: Seen) -> (Self, Seen) {
        let mut page = StatusPage::new(health, board);
        let history = board.history().news(seen.samples);
        let latest = board.endings().news(seen.endings);
        let seen = Seen {
            samples: history.seen,
            endings: latest.as_ref().map(|latest| latest.seen).or(seen.endings),
        };
        let sums = Sums::of(&page.status);
        bound(&mut page.status);
        let view = Self {
            at: clock::now(),
            status: page,
            sums,
            history,
            latest,
        };
        (view, seen)
    }
}

impl Sums {
    fn of(status: &Status) -> Self {
        let partitions = &status.partitions;
        Self {
            partitions: partitions.len(),
            holds: status.holds.len(),
            stalled: status.stalled.len(),
            lag: partitions.iter().map(|partition| partition.lag()).sum(),
            unfinished: partitions.iter().map(|each| each.unfinished()).sum(),
            oldest_ms: partitions
                .iter()
                .filter_map(|each| each.oldest_open_ms)
                .max(),
        }
    }
}

fn bound(status: &mut Status) {
    if status.partitions.len() > PARTITIONS_MAX {
        let partitions = &mut status.partitions;
        partitions.sort_by_key(|each| Reverse((each.oldest_open_ms, each.lag())));
        partitions.truncate(PARTITIONS_MAX);
        partitions.sort_by(|one, other| {
            let name = |each: &crate::telemetry::status::PartitionStatus| each.name();
            name(one).cmp(&name(other))
        });
    }
    status.holds.truncate(HOLDS_MAX);
    status.stalled.truncate(HOLDS_MAX);
}
