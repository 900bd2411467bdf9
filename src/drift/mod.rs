//! Whether the answers are still like those before: lengths, times, refusals, failures, enumerated fields, watched per generation of model,
//! server, template, schema and settings. `docs/drift.md` has the formulas and what was measured; begin with `sequential.rs` and `line.rs`.

mod comparison;
mod config;
mod fields;
mod line;
mod metrics;
mod monitor;
mod reference;
mod sample;
mod sequential;
mod statistic;
mod window;

pub use comparison::{Comparison, Finding, p_value, told};
pub use config::DriftConfig;
pub use fields::{Field, Fields};
pub use line::{Event, Line, Standing};
pub use monitor::{Alarm, Monitor, TopicStanding, measured, what_to_do};
pub use reference::{Reference, Statistic, Test};
pub use sample::{Answer, Ending, FinishReason, Generation, Sample, content, is_refusal};
pub use sequential::{PER_DOCUMENTS, Rule, Run, Turn};
pub use statistic::{ks_distance, ks_p_value, psi};
pub use window::{Counts, Kind, Signal, Window, signals};
