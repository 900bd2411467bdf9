//! What is done: which offsets are open, who owns a partition, and the one place where results and commits are ordered.
//!
//! # Invariants
//! 1. A commit record never claims an offset whose outcome is not durable, or is not made durable by the same transaction.
//! 2. The commit offset never decreases within an owner epoch and never passes an unfinished record.
//! 3. Results are acknowledged by all in-sync replicas before the commit record that claims them is sent.
//! 4. Whoever reads a higher owner epoch than its own for a partition stops working on it.
//! 5. The chain of the audit trail advances with a flush that is durable: the head in a commit record names a record that is durable too.
//!
//! Compaction keeps the last record of a key, whoever wrote it. A late write of a former owner claims only what is durable, so it costs
//! repeats, never a loss.

mod audit;
mod commit;
mod log;
mod mirror;
mod owner;
mod record;
mod recovery;
mod reset;
pub(crate) mod seen;
mod store;
mod tracker;

pub use audit::AuditWriter;
pub use commit::{Committer, Flush, FlushError, FlushObserver, Output, Shrink};
pub use mirror::mirror;
pub use owner::{Standing, newest, standing};
pub use record::{
    COMMIT_BYTES_MAX, CommitPosition, CommitRecord, Guarantee, LIVE_FOR, RecordError, commit_key,
};
pub use recovery::{DataLoss, Resume, StartAt, is_same_topic, recover};
pub use reset::{Reset, ResetError, WasReset, Writers, reset, reset_position};
pub use store::{ClaimError, CommitStore, Loaded, Owner, Verified, group_claim};
pub use tracker::Tracker;
