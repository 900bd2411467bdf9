//! Two model servers behind one processor, one of which dies at half of the work: `cargo run --example several_endpoints`.
//!
//! Its documents are asked of the other, at no cost to their attempts. Needs nothing but Rust: Kafka and both vLLMs are simulated in this
//! process. Ends by itself, with an error when something is not as promised.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

mod playground;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kafka_llm_processor::app::App;
use playground::{Playground, run_until};

const DOCUMENTS: u64 = 200;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let playground = Playground::start(2, Duration::from_millis(50)).await?;
    playground
        .send((0..DOCUMENTS).map(|number| format!("Order book {number} closed at {number}.25.")))?;
    let [dies, stays] = playground.models.as_slice() else {
        anyhow::bail!("two servers were started");
    };

    let settings = playground.settings();
    println!("llm.url = {}", settings.llm.url);
    let app = App::build(settings)?;
    let killing = async {
        let is_half = dies
            .wait_until(Duration::from_secs(30), |model| {
                model.calls() >= DOCUMENTS / 4
            })
            .await;
        let split = (dies.calls(), stays.calls());
        dies.stop_listener().await;
        is_half
            .then_some(split)
            .context("the first server was asked")
    };
    let (summary, split) = tokio::join!(run_until(app, DOCUMENTS), killing);
    let (summary, split) = (summary?, split?);
    println!(
        "{} and {} calls, then the first server died",
        split.0, split.1
    );
    println!(
        "{} and {} calls at the end\n\n{summary}",
        dies.calls(),
        stays.calls()
    );

    ensure!(
        split.0 > 0 && split.1 > 0,
        "both were asked while both lived"
    );
    ensure!(
        summary.totals.processed == DOCUMENTS,
        "every document has its answer"
    );
    ensure!(
        summary.totals.failed() == 0,
        "none was given up for a server that died"
    );
    ensure!(
        playground.results()?.values().all(|(_, times)| *times == 1),
        "each once"
    );
    playground.stop().await;
    Ok(())
}
