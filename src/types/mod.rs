//! Words that every part shares: where a record lies, what a record is, why a document was given up.
//!
//! Nothing here does I/O or knows a vendor.

mod chain;
pub mod duration;
mod position;
mod reason;
mod record;
mod secret;

pub use chain::error_chain;
pub use position::{Offset, SourcePosition, TopicPartition};
pub use reason::DeadLetterReason;
pub use record::{Header, Record};
pub use secret::Secret;
