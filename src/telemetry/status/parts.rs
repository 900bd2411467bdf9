//! What the parts publish of themselves: a partition, the model's side, the bound on what is read ahead.

use serde::Serialize;

use crate::types::{Offset, TopicPartition};

/// Where a document is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It waits for its first slot at a model server.
    Queued,
    /// It has had its first slot: it is asked about, or waits for a budget or for its next attempt.
    WithModel,
    /// It is answered, and Kafka has not acknowledged that.
    Appending,
}

impl Stage {
    /// As one reads it in a sentence about a document.
    #[must_use]
    pub const fn told(self) -> &'static str {
        match self {
            Self::Queued => "waits for a slot",
            Self::WithModel => "is with the model",
            Self::Appending => "waits for Kafka to acknowledge its result",
        }
    }
}

/// The oldest unfinished document of a partition: what the commit offset cannot pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Which it is.
    pub offset: Offset,
    /// Where it is.
    pub stage: Stage,
}

/// One partition, as its worker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    /// Input topic.
    pub topic: String,
    /// Input partition.
    pub partition: i32,
    /// Epoch of our ownership.
    pub owner_epoch: u64,
    /// Where the next fetch begins.
    pub next_fetch_offset: Offset,
    /// Where a restart would begin, exclusive of what is done beyond it.
    pub commit_offset: Offset,
    /// End of the input, exclusive.
    pub high_watermark: Offset,
    /// Documents that were fetched and whose outcome is not on its way to Kafka yet.
    pub open: u64,
    /// Of these, those that wait for their first slot.
    pub queued: u64,
    /// Of these, those that are with the model.
    pub in_flight: u64,
    /// Of these, those that are answered and wait for an earlier one.
    pub waiting_for_turn: u64,
    /// Documents whose outcome waits for the next append, or for Kafka to acknowledge the one on its way.
    pub appending: u64,
    /// Of these, those of the append on its way: they are not open any more.
    pub unacknowledged: u64,
    /// For how long the append on its way was not acknowledged.
    pub append_ms: Option<u64>,
    /// The oldest unfinished document.
    pub head: Option<Head>,
    /// Its age, from the moment it was fetched.
    pub oldest_open_ms: Option<u64>,
    /// Bytes of the last commit record, uncompressed.
    pub commit_bytes: u64,
    /// Whether the bound on what is read ahead keeps it from fetching.
    pub waits_for_room: bool,
    /// Why nothing more is read ahead, while the commit record keeps the partition from it.
    pub read_ahead_waits: Option<String>,
}

impl PartitionStatus {
    /// Records from the commit to the end of the input.
    #[must_use]
    pub const fn lag(&self) -> u64 {
        self.commit_offset.distance_to(self.high_watermark)
    }

    /// Records that were not fetched yet.
    #[must_use]
    pub const fn unread(&self) -> u64 {
        self.next_fetch_offset.distance_to(self.high_watermark)
    }

    /// Records without a durable outcome: less than the lag while documents behind the commit offset are finished. What a former owner
    /// finished beyond the end of reading counts until it is read.
    #[must_use]
    pub const fn unfinished(&self) -> u64 {
        self.open + self.unacknowledged + self.unread()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> TopicPartition {
        TopicPartition::new(self.topic.as_str(), self.partition)
    }
}

/// The model's side.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ModelStatus {
    /// Why the work as a whole stands still.
    pub held: Option<String>,
    /// What documents wait for while a budget is used up.
    pub over_budget: Option<String>,
    /// The setting that keeps the limits from growing, where one does.
    pub limited_by: Option<&'static str>,
    /// Documents that wait for a slot.
    pub waiting_for_slot: u64,
    /// Documents that wait for a budget.
    pub waiting_for_budget: u64,
    /// Documents that wait before their next attempt.
    pub retrying: u64,
    /// Those of them that the server had no room for.
    pub throttled: u64,
    /// The servers, in the order of `llm.url`.
    pub endpoints: Vec<EndpointStatus>,
    /// The budgets that are set.
    pub budgets: Vec<BudgetStatus>,
}

/// What a budget allows at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BudgetStatus {
    /// Its configuration key.
    pub key: &'static str,
    /// Requests or tokens, below zero while a balance is paid back.
    pub left: i64,
}

/// One model server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct EndpointStatus {
    /// Base URL.
    pub url: String,
    /// `closed` while calls flow, `open` while it is held, `half_open` while it is probed.
    pub breaker: &'static str,
    /// Why it is held.
    pub held: Option<String>,
    /// Calls that may run at once.
    pub limit: u64,
    /// Calls that run, or have their slot.
    pub in_flight: u64,
    /// Requests that wait in the server, as it told last.
    pub queued_there: Option<u64>,
    /// Prompt and expected answer tokens of what runs.
    pub outstanding_tokens: u64,
}

/// What is read ahead, against its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ReadAheadStatus {
    /// Documents that are fetched and not committed.
    pub records: u64,
    /// `pipeline.read_ahead_records`.
    pub records_max: u64,
    /// Their bytes, with what each costs beside its own.
    pub bytes: u64,
    /// `pipeline.read_ahead_bytes`.
    pub bytes_max: u64,
}
