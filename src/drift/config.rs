//! Settings of `[drift]`.

use serde::{Deserialize, Serialize};

/// Fewest and most windows that a reference may be cut into: fewer know too little of how windows differ, more take memory and say no more.
const BLOCKS: std::ops::RangeInclusive<u32> = 10..=200;
/// Shortest and longest window.
const WINDOW_DOCUMENTS: std::ops::RangeInclusive<u32> = 20..=10_000;

/// How answers are watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DriftConfig {
    /// Whether they are.
    pub enabled: bool,
    /// Documents of a generation that are the reference for what follows.
    pub reference_documents: u32,
    /// Documents that are compared with it at a time.
    pub window_documents: u32,
    /// False alarms that may be expected in [`PER_DOCUMENTS`](super::sequential::PER_DOCUMENTS) documents.
    pub sensitivity: f64,
}

impl Default for DriftConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            reference_documents: 4_000,
            window_documents: 100,
            sensitivity: 0.01,
        }
    }
}

impl DriftConfig {
    /// Windows that the reference is cut into.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.reference_documents
            .checked_div(self.window_documents)
            .unwrap_or(0)
    }

    /// What is wrong, one sentence each.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !WINDOW_DOCUMENTS.contains(&self.window_documents) {
            problems.push(format!(
                "drift.window_documents = {}: must lie between {} and {}",
                self.window_documents,
                WINDOW_DOCUMENTS.start(),
                WINDOW_DOCUMENTS.end()
            ));
        } else if !BLOCKS.contains(&self.blocks()) {
            problems.push(format!(
                "drift.reference_documents = {}: must be {} to {} times drift.window_documents ({})",
                self.reference_documents,
                BLOCKS.start(),
                BLOCKS.end(),
                self.window_documents
            ));
        }
        if !(self.sensitivity > 0.0 && self.sensitivity <= 10.0) {
            problems.push(format!(
                "drift.sensitivity = {}: must be above 0 and at most 10 false alarms in 100,000 documents",
                self.sensitivity
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_watched_with_is_refused_by_its_key() {
        assert_eq!(DriftConfig::default().validate(), Vec::<String>::new());
        let problem = |change: &dyn Fn(&mut DriftConfig)| {
            let mut config = DriftConfig::default();
            change(&mut config);
            config.validate().join("\n")
        };
        for (found, key) in [
            (problem(&|c| c.window_documents = 0), "window_documents"),
            (
                problem(&|c| c.window_documents = 20_000),
                "window_documents",
            ),
            (
                problem(&|c| c.reference_documents = 999),
                "reference_documents",
            ),
            (
                problem(&|c| c.reference_documents = 100_000),
                "reference_documents",
            ),
            (problem(&|c| c.sensitivity = 0.0), "sensitivity"),
            (problem(&|c| c.sensitivity = f64::NAN), "sensitivity"),
        ] {
            assert!(found.starts_with(&format!("drift.{key} = ")), "{found}");
        }
    }
}
