//! What operators see: logs, metrics, health and status. The parts tell; nothing here asks them or knows them.

pub mod endings;
pub mod health;
pub mod histogram;
pub mod history;
pub mod holds;
pub mod limiting;
pub mod logging;
pub mod page;
mod pause;
pub mod registry;
pub mod server;
pub mod status;
mod status_metrics;
pub mod traces;
pub mod watchdog;

pub use health::{Health, Latch};
pub use logging::{LogConfig, LogGuard};
pub use pause::{PauseSwitch, Turned};
pub use registry::Metrics;
pub use server::{AdminConfig, AdminServer};
pub use status::StatusBoard;
pub use traces::TelemetryConfig;
