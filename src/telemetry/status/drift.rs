//! Whether answers are still like those before, as `/status` shows it.

use jiff::Timestamp;
use serde::Serialize;

/// What is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DriftState {
    /// The reference is not complete.
    Collecting,
    /// Windows are compared with it.
    Watching,
    /// Some signal has left it.
    Shifted,
}

/// How it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DriftStatus {
    /// Of all input topics, the worst.
    pub state: DriftState,
    /// Who answers: model, server, template, schema, settings. Of several input topics that of the busiest; so are the two numbers.
    pub generation: String,
    /// Documents of the reference so far.
    pub reference_documents: u32,
    /// Documents of a window.
    pub window_documents: u32,
    /// What is watched.
    pub signals: Vec<DriftSignal>,
    /// The last alarms, newest first.
    pub alarms: Vec<DriftAlarm>,
}

/// A statistic of a signal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DriftSignal {
    /// Its name; with several input topics, that of the topic behind it.
    pub name: String,
    /// `psi` or `ks`.
    pub statistic: &'static str,
    /// Of the last window; null before there was one.
    pub value: Option<f64>,
    /// A window above it stands out.
    pub threshold: f64,
    /// `ok` or `shifted`.
    pub state: &'static str,
}

/// An alarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriftAlarm {
    /// When.
    pub at: Timestamp,
    /// Of which signal.
    pub signal: String,
    /// What was found.
    pub detail: String,
}
