//! Storms: the processor's instances and the brokers of a real Apache Kafka are killed, stopped, continued and restarted at random while
//! documents flow. When the storm is over the instances finish, and the books are done from what Kafka's own tools read.
//!
//! `REAL_KAFKA_TOOLS` names the folder of `serve-secure.sh`, `cluster.sh` and `tool.sh`, as an absolute path. Without it, or without Java,
//! the storm says so and passes; with `REAL_KAFKA_REQUIRED=1` that is a failure. `KLP_TEST_BINARY` names another build of the processor
//! than the one beside the tests.
//!
//! Without more it is a short storm with a seed of its own. `STORM_SEED` names a seed, and with it comes the long storm that is the seed's;
//! `STORM_GUARANTEE`, `STORM_ASSIGNMENT`, `STORM_ORDER`, `STORM_BROKERS`, `STORM_INSTANCES`, `STORM_DOCUMENTS` and `STORM_SECONDS` change
//! one thing each. The first line of a storm is the command that repeats it: the same plan of events at the same moments. What the
//! programs make of it is theirs, so a repeated storm is alike and not the same. With `STORM_RESUME=1` a storm that has passed before is
//! left out.
//!
//! `target/storm/summary.jsonl` gets a line for each storm, `target/storm/seed-N` the logs of each process.
#![cfg(feature = "sandbox")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "these are tests; clippy knows only functions marked as tests"
)]

mod support;

#[path = "storm/books.rs"]
mod books;
#[path = "storm/brokers.rs"]
mod brokers;
#[path = "storm/documents.rs"]
mod documents;
#[path = "storm/foreign.rs"]
mod foreign;
#[path = "storm/instance.rs"]
mod instance;
#[path = "storm/journal.rs"]
mod journal;
#[path = "storm/plan.rs"]
mod plan;
#[path = "storm/run.rs"]
mod run;
#[path = "storm/scenario.rs"]
mod scenario;
#[path = "storm/summary.rs"]
mod summary;
#[path = "storm/watch.rs"]
mod watch;

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;

use crate::run::Run;
use crate::scenario::Scenario;
use crate::summary::Summary;
use crate::support::kafka::tools;

#[tokio::test(flavor = "multi_thread")]
async fn no_storm_loses_a_document() {
    let Some(tools) = tools() else {
        return;
    };
    let scenario = Scenario::from_environment();
    eprintln!("{}", scenario.command());
    if std::env::var_os("STORM_RESUME").is_some_and(|value| value == "1")
        && Summary::has_passed(&scenario)
    {
        eprintln!("it has passed before");
        return;
    }
    // What panics has told why; the summary is to have a line for it all the same.
    let run = AssertUnwindSafe(Run::through(scenario.clone(), tools)).catch_unwind();
    let summary = run.await;
    let summary = summary.unwrap_or_else(|_| Summary::broken(&scenario));
    summary.keep();
    assert!(summary.failures.is_empty(), "{:#?}", summary.failures);
}
