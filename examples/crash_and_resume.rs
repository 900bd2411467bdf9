//! `kill -9` in the middle of the work, and a restart: `cargo run --example crash_and_resume`.
//!
//! A processor that is a process of its own works exactly once, is killed when a third of the documents have results, and is started again.
//! In the end each document has one result. Needs nothing but Rust: Kafka and vLLM are simulated in the process that does the killing. Ends
//! by itself, with an error when something is not as promised.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

#[allow(dead_code, reason = "the processor is a process of its own here")]
mod playground;

use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use playground::{INPUT, OUTPUT, Playground};
use tokio::time::{Instant, interval, timeout};

const DOCUMENTS: usize = 300;
/// Tells this program that it is the processor.
const IS_PROCESSOR: &str = "CRASH_AND_RESUME_PROCESSOR";

fn main() -> ExitCode {
    if std::env::var_os(IS_PROCESSOR).is_some() {
        return kafka_llm_processor::cli::main_as("run");
    }
    let told = tokio::runtime::Runtime::new()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(kill_and_restart()));
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn kill_and_restart() -> anyhow::Result<()> {
    let playground = Playground::start(1, Duration::from_millis(100)).await?;
    playground.send(
        (0..DOCUMENTS).map(|number| format!("Sable River {number} fell by {number} percent.")),
    )?;

    let mut processor = start(&playground)?;
    let done = until(&playground, DOCUMENTS / 3).await;
    // SIGKILL: it cannot say good-bye.
    processor.0.kill()?;
    processor.0.wait()?;
    println!("killed with {} of {DOCUMENTS} documents done", done?);

    let restarted = Instant::now();
    let before = playground.results()?.len();
    let mut processor = start(&playground)?;
    until(&playground, before + 1).await?;
    println!(
        "the first new result {} ms after the restart",
        restarted.elapsed().as_millis()
    );
    let done = until(&playground, DOCUMENTS).await;
    processor.0.kill()?;
    processor.0.wait()?;
    let done = done?;

    let twice = playground
        .results()?
        .values()
        .filter(|(_, times)| *times > 1)
        .count();
    println!("{done} documents have a result, {twice} of them more than one");
    println!(
        "the model was asked {} times, as it is no part of the transaction",
        playground
            .models
            .iter()
            .map(|model| model.calls())
            .sum::<u64>()
    );
    ensure!(
        done == DOCUMENTS && twice == 0,
        "each document has exactly one result"
    );
    playground.stop().await;
    Ok(())
}

/// The processor as a process, which ends with this one whatever happens.
struct Processor(Child);

impl Drop for Processor {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(playground: &Playground) -> anyhow::Result<Processor> {
    let model = playground.models.first().context("a server was started")?;
    let processor = Command::new(std::env::current_exe()?)
        .env(IS_PROCESSOR, "1")
        .env("KAFKA_BROKERS", playground.broker.bootstrap())
        .env("INPUT_TOPIC", INPUT)
        .env("OUTPUT_TOPIC", OUTPUT)
        .env("LLM_URL", model.url())
        .env("KLP_PROCESSING__GUARANTEE", "exactly_once")
        .env("KLP_ADMIN__LISTEN", "off")
        .env("KLP_LOG__FILE", "off")
        .env("KLP_LOG__LEVEL", "warn")
        .spawn()?;
    Ok(Processor(processor))
}

/// Waits until so many documents have a result; answers how many have.
async fn until(playground: &Playground, documents: usize) -> anyhow::Result<usize> {
    let waiting = async {
        let mut look = interval(Duration::from_millis(20));
        loop {
            look.tick().await;
            let done = playground.results()?.len();
            if done >= documents {
                return anyhow::Ok(done);
            }
        }
    };
    timeout(Duration::from_secs(60), waiting)
        .await
        .context("the documents took too long")?
}
