//! The page of `/status`, as far as it is shown. What an older or newer processor does not tell is left out.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Page {
    pub(super) alive: bool,
    pub(super) ready: bool,
    #[serde(default)]
    pub(super) waiting_for: Vec<String>,
    pub(super) version: String,
    pub(super) state: String,
    #[serde(default)]
    pub(super) uptime_seconds: u64,
    #[serde(default)]
    pub(super) info: BTreeMap<String, String>,
    pub(super) limiting: Option<Limiting>,
    #[serde(default)]
    pub(super) holds: Vec<Hold>,
    #[serde(default)]
    pub(super) stalled: Vec<Stall>,
    #[serde(default)]
    pub(super) model: Model,
    #[serde(default)]
    pub(super) read_ahead: ReadAhead,
    #[serde(default)]
    pub(super) partitions: Vec<Partition>,
    #[serde(default)]
    pub(super) totals: Totals,
    pub(super) drift: Option<Drift>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Drift {
    pub(super) state: String,
    pub(super) generation: String,
    pub(super) reference_documents: u64,
    pub(super) signals: Vec<DriftSignal>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DriftSignal {
    pub(super) name: String,
    pub(super) statistic: String,
    pub(super) value: Option<f64>,
    pub(super) threshold: f64,
    pub(super) state: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Limiting {
    pub(super) factor: String,
    pub(super) detail: String,
    pub(super) last_minute_percent: BTreeMap<String, u64>,
    pub(super) last_minute_documents: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Hold {
    pub(super) what: String,
    pub(super) reason: String,
    pub(super) since: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stall {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) stage: Option<String>,
    pub(super) since: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Model {
    pub(super) waiting_for_slot: u64,
    pub(super) waiting_for_budget: u64,
    pub(super) retrying: u64,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Endpoint {
    pub(super) url: String,
    pub(super) held: Option<String>,
    pub(super) limit: u64,
    pub(super) in_flight: u64,
    pub(super) queued_there: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReadAhead {
    pub(super) records: u64,
    pub(super) records_max: u64,
    pub(super) bytes: u64,
    pub(super) bytes_max: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    pub(super) offset: i64,
    pub(super) stage: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Partition {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) commit_offset: i64,
    pub(super) high_watermark: i64,
    pub(super) next_fetch_offset: i64,
    pub(super) open: u64,
    pub(super) in_flight: u64,
    pub(super) waiting_for_turn: u64,
    pub(super) unacknowledged: u64,
    pub(super) oldest_open_ms: Option<u64>,
    pub(super) head: Option<Head>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Totals {
    pub(super) processed: u64,
    pub(super) dead_lettered: BTreeMap<String, u64>,
}

impl Page {
    /// Whether the processor does what it is for.
    pub(super) fn works(&self) -> bool {
        self.alive && self.ready && self.state == "running" && self.stalled.is_empty()
    }
}

impl Partition {
    pub(super) fn lag(&self) -> i64 {
        (self.high_watermark - self.commit_offset).max(0)
    }

    pub(super) fn unfinished(&self) -> u64 {
        let unread = (self.high_watermark - self.next_fetch_offset).max(0);
        self.open + self.unacknowledged + unread.unsigned_abs()
    }
}
