//! Why it is slow: which one factor keeps the work from going faster now.
//!
//! Documents wait somewhere, and where they wait tells what limits them. Once a second [`judge`] looks where, and [`Recent`] makes of the
//! last seconds what is shown. The rule goes from the model back to the input, as a slot at the model is what all the rest is there to fill:
//!
//! 1. *Every slot is taken and somebody waits for one*: the model server, unless calls are held (the breaker), or a budget is waited for.
//! 2. *A slot is free*: then too few documents come to the model. Where room for reading ahead is used up, whatever holds most of that room
//!    limits: answers that wait for an earlier document (order), outcomes that Kafka has not acknowledged (appends), or calls, which means
//!    that the bound itself is too low. The commit record can stop reading ahead too.
//! 3. *There is room, and there are unread records*: reading, unless an append hangs.
//! 4. *There is nothing to read*: the input is empty.

mod recent;

use std::fmt;

use serde::Serialize;

use super::status::{
    EndpointStatus, Hold, ModelStatus, PartitionStatus, ReadAheadStatus, RunState, Status,
};
use crate::types::{Offset, TopicPartition};

pub use recent::{Limiting, Recent};

/// An append that is not acknowledged for so long hangs, whatever else there is to do.
const APPEND_HANGS_MS: u64 = 1_000;

/// What can limit the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Factor {
    /// It has not begun: topics are verified, partitions are taken over.
    Starting,
    /// It ends: nothing new is begun.
    Draining,
    /// It was told to pause.
    Paused,
    /// The model server: its slots are taken, or it refuses what is more.
    ModelServer,
    /// `llm.requests_per_minute`, `llm.tokens_per_minute` or `llm.tokens_per_day`.
    Budget,
    /// Calls are held, as the model server cannot be used.
    Breaker,
    /// Answered documents wait for an earlier one.
    Order,
    /// The commit record could outgrow its bound.
    CommitRecord,
    /// Outcomes wait for Kafka to acknowledge them.
    Appends,
    /// The bound on what is read ahead is lower than what the model could take.
    ReadAhead,
    /// Records are there and are read too slowly.
    Reading,
    /// There is nothing to read.
    InputEmpty,
}

impl Factor {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Starting,
        Self::Draining,
        Self::Paused,
        Self::ModelServer,
        Self::Budget,
        Self::Breaker,
        Self::Order,
        Self::CommitRecord,
        Self::Appends,
        Self::ReadAhead,
        Self::Reading,
        Self::InputEmpty,
    ];

    /// The name in `/status`, metrics and log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Paused => "paused",
            Self::ModelServer => "model_server",
            Self::Budget => "budget",
            Self::Breaker => "breaker",
            Self::Order => "order",
            Self::CommitRecord => "commit_record",
            Self::Appends => "appends",
            Self::ReadAhead => "read_ahead",
            Self::Reading => "reading",
            Self::InputEmpty => "input_empty",
        }
    }

    /// Whether one look is enough: it is a state, and no matter of proportions.
    const fn is_certain(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Draining | Self::Paused | Self::Breaker
        )
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The record that others wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: Offset,
}

/// What one look came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The factor.
    pub factor: Factor,
    /// One sentence with the numbers.
    pub detail: String,
    /// The record that blocks, where one does.
    pub blocker: Option<Blocker>,
}

/// Where everything is at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// Where the process is in its life.
    pub state: RunState,
    /// What holds the work.
    pub holds: &'a [Hold],
    /// The model's side.
    pub model: &'a ModelStatus,
    /// What is read ahead.
    pub read_ahead: ReadAheadStatus,
    /// The partitions that are ours.
    pub partitions: &'a [PartitionStatus],
}

impl<'a> From<&'a Status> for Snapshot<'a> {
    fn from(status: &'a Status) -> Self {
        Self {
            state: status.state,
            holds: &status.holds,
            model: &status.model,
            read_ahead: status.read_ahead,
            partitions: &status.partitions,
        }
    }
}

/// Documents by where they are, over all partitions.
#[derive(Debug, Clone, Copy, Default)]
struct Waits {
    open: u64,
    queued: u64,
    with_model: u64,
    for_turn: u64,
    appending: u64,
    unread: u64,
}

/// The slots of the servers that can be used.
#[derive(Debug, Clone, Copy, Default)]
struct Slots {
    limit: u64,
    in_flight: u64,
    queued_there: Option<u64>,
}

/// Which factor limits the work.
#[must_use]
pub fn judge(snapshot: &Snapshot<'_>) -> Verdict {
    snapshot
        .life()
        .or_else(|| snapshot.at_the_model())
        .or_else(|| snapshot.behind_the_model())
        .unwrap_or_else(|| snapshot.before_the_model())
}

impl<'a> Snapshot<'a> {
    /// It has not begun, or ends, or has nothing to do with.
    fn life(&self) -> Option<Verdict> {
        let waits = self.waits();
        match self.state {
            RunState::Starting => {
                let held = self.holds.first().map_or_else(
                    || "topics are verified and partitions taken over".to_owned(),
                    |hold| hold.reason.clone(),
                );
                Some(verdict(Factor::Starting, held))
            }
            RunState::Draining | RunState::Stopped => Some(verdict(
                Factor::Draining,
                format!(
                    "nothing new is begun; {} documents are with the model, {} wait for Kafka",
                    waits.with_model, waits.appending
                ),
            )),
            RunState::Paused => Some(verdict(
                Factor::Paused,
                format!(
                    "no new call is begun until `resume`; {} documents are with the model, {} wait for Kafka",
                    waits.with_model, waits.appending
                ),
            )),
            RunState::Running | RunState::Holding if self.partitions.is_empty() => Some(verdict(
                Factor::InputEmpty,
                "no partition is this instance's now".to_owned(),
            )),
            RunState::Running | RunState::Holding => None,
        }
    }

    /// Documents wait at the model's door.
    fn at_the_model(&self) -> Option<Verdict> {
        let Self { model, .. } = self;
        let (waits, slots) = (self.waits(), self.slots());
        let held = model.held.as_deref();
        if slots.limit == 0 && waits.open > 0 && !model.endpoints.is_empty() {
            return Some(self.held(held.unwrap_or("no model server can be used")));
        }
        if model.waiting_for_budget > 0 {
            let why = model.over_budget.clone().unwrap_or_else(|| {
                format!("{} documents wait for a budget", model.waiting_for_budget)
            });
            return Some(verdict(Factor::Budget, why));
        }
        let is_full = slots.limit > 0 && slots.in_flight * 10 >= slots.limit * 9;
        if is_full && model.waiting_for_slot > 0 {
            return Some(verdict(Factor::ModelServer, self.full(slots)));
        }
        if let Some(reason) = held.filter(|_| waits.open > 0) {
            return Some(self.held(reason));
        }
        if model.retrying > slots.in_flight && model.retrying >= waits.for_turn {
            let detail = format!(
                "{} documents wait before their next attempt, {} of them as the server has too much to do",
                model.retrying, model.throttled
            );
            return Some(verdict(Factor::ModelServer, detail));
        }
        None
    }

    /// A slot is free, and what is answered keeps others from coming.
    fn behind_the_model(&self) -> Option<Verdict> {
        if let Some((partition, reason)) = self
            .partitions
            .iter()
            .find_map(|partition| Some((partition, partition.read_ahead_waits.as_ref()?)))
        {
            return Some(Verdict {
                factor: Factor::CommitRecord,
                detail: reason.clone(),
                blocker: blocker(partition),
            });
        }
        let waits = self.waits();
        if self.partitions.iter().any(|each| each.waits_for_room) {
            let busy = waits.queued + waits.with_model;
            return Some(
                if waits.for_turn > 0 && waits.for_turn >= busy.max(waits.appending) {
                    self.order(waits)
                } else if waits.appending > 0 && waits.appending >= busy {
                    self.appends(waits)
                } else {
                    verdict(Factor::ReadAhead, self.bound())
                },
            );
        }
        let hangs = |each: &PartitionStatus| {
            each.appending > 0 && each.append_ms.is_some_and(|ms| ms >= APPEND_HANGS_MS)
        };
        let hanging = self.partitions.iter().filter(|each| hangs(each));
        let hanging: u64 = hanging.map(|each| each.appending).sum();
        (hanging > 0 && hanging >= waits.for_turn).then(|| self.appends(waits))
    }

    /// A slot is free, there is room, and the documents are not there.
    fn before_the_model(&self) -> Verdict {
        let waits = self.waits();
        if waits.unread > 0 {
            return verdict(Factor::Reading, self.reading(waits));
        }
        if waits.for_turn > waits.queued + waits.with_model {
            return self.order(waits);
        }
        if self.model.waiting_for_slot > 0 {
            return verdict(Factor::ModelServer, self.full(self.slots()));
        }
        verdict(
            Factor::InputEmpty,
            format!(
                "nothing is unread; {} documents are with the model, {} wait for Kafka",
                waits.with_model, waits.appending
            ),
        )
    }

    fn waits(&self) -> Waits {
        let mut waits = Waits::default();
        for partition in self.partitions {
            waits.open += partition.open;
            waits.queued += partition.queued;
            waits.with_model += partition.in_flight;
            waits.for_turn += partition.waiting_for_turn;
            waits.appending += partition.appending;
            waits.unread += partition.unread();
        }
        waits
    }

    fn slots(&self) -> Slots {
        let usable = self.model.endpoints.iter();
        let usable = usable.filter(|endpoint| endpoint.held.is_none());
        usable.fold(Slots::default(), Slots::with)
    }

    fn held(&self, reason: &str) -> Verdict {
        let detail = format!("{} documents wait: {reason}", self.waits().open);
        verdict(Factor::Breaker, detail)
    }

    fn full(&self, slots: Slots) -> String {
        let Self { model, .. } = self;
        let mut text = format!(
            "{} of {} calls run and {} documents wait for a slot",
            slots.in_flight, slots.limit, model.waiting_for_slot
        );
        if let Some(queued) = slots.queued_there {
            text += &format!("; {queued} requests wait in the server");
        }
        let held = model.endpoints.iter().filter(|each| each.held.is_some());
        match held.count() {
            0 => {}
            held => text += &format!("; {held} of {} servers are held", model.endpoints.len()),
        }
        if let Some(setting) = model.limited_by {
            text += &format!("; {setting} allows no more calls");
        }
        text
    }

    fn order(&self, waits: Waits) -> Verdict {
        let worst = self
            .partitions
            .iter()
            .max_by_key(|each| each.waiting_for_turn);
        let mut detail = format!(
            "{} answered documents wait for an earlier one",
            waits.for_turn
        );
        if let Some((worst, head)) = worst.and_then(|worst| Some((worst, worst.head?))) {
            let seconds = worst.oldest_open_ms.unwrap_or(0) / 1_000;
            detail += &format!(
                " (pipeline.order), {} of them for {}@{}, which {} and was fetched {seconds} s ago",
                worst.waiting_for_turn,
                worst.name(),
                head.offset,
                head.stage.told()
            );
        }
        Verdict {
            factor: Factor::Order,
            detail,
            blocker: worst.and_then(blocker),
        }
    }

    fn appends(&self, waits: Waits) -> Verdict {
        let partitions = self.partitions.iter().filter(|each| each.appending > 0);
        let slowest = partitions.max_by_key(|each| (each.append_ms, each.appending));
        let mut detail = format!("{} outcomes wait for Kafka", waits.appending);
        if let Some(slowest) = slowest {
            let name = slowest.name();
            if let Some(ms) = slowest.append_ms {
                detail += &format!("; an append of {name} is on its way for {ms} ms");
            }
            detail += &self.told_of(&name);
        }
        Verdict {
            factor: Factor::Appends,
            detail,
            blocker: slowest.and_then(blocker),
        }
    }

    fn bound(&self) -> String {
        let ReadAheadStatus {
            records,
            records_max,
            bytes,
            bytes_max,
        } = self.read_ahead;
        let Slots {
            limit, in_flight, ..
        } = self.slots();
        format!(
            "{records} of {records_max} records (pipeline.read_ahead_records) and {bytes} of {bytes_max} bytes (pipeline.read_ahead_bytes) are read ahead, and only {in_flight} of {limit} calls run"
        )
    }

    fn reading(&self, waits: Waits) -> String {
        let mut text = format!(
            "{} records are unread, there is room for more, and Kafka has not given them yet",
            waits.unread
        );
        let partitions = self.partitions.iter();
        if let Some(most) = partitions.max_by_key(|each| each.unread()) {
            let name = most.name();
            text += &format!("; {} of them in {name}", most.unread());
            text += &self.told_of(&name);
        }
        text
    }

    /// What is told of a partition, behind a colon.
    fn told_of(&self, partition: &TopicPartition) -> String {
        let name = partition.to_string();
        let mut holds = self.holds.iter();
        let hold = holds.find(|hold| is_about(hold, &name));
        hold.map_or_else(String::new, |hold| format!(": {}", hold.reason))
    }
}

impl Slots {
    fn with(self, endpoint: &EndpointStatus) -> Self {
        let queued_there = match (self.queued_there, endpoint.queued_there) {
            (Some(one), Some(other)) => Some(one + other),
            (one, other) => one.or(other),
        };
        Self {
            limit: self.limit + endpoint.limit,
            in_flight: self.in_flight + endpoint.in_flight,
            queued_there,
        }
    }
}

/// Whether a hold is told of that partition, whose name ends the hold's.
pub(super) fn is_about(hold: &Hold, partition: &str) -> bool {
    let before = hold.what.strip_suffix(partition);
    before.is_some_and(|before| before.ends_with(' '))
}

const fn verdict(factor: Factor, detail: String) -> Verdict {
    Verdict {
        factor,
        detail,
        blocker: None,
    }
}

fn blocker(partition: &PartitionStatus) -> Option<Blocker> {
    Some(Blocker {
        topic: partition.topic.clone(),
        partition: partition.partition,
        offset: partition.head?.offset,
    })
}

#[cfg(test)]
mod tests;
