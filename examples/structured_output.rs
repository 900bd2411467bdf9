//! Answers as JSON under a schema, instead of text: `cargo run --example structured_output`.
//!
//! vLLM is told the schema, so that it can produce nothing else, and the answer is checked against it once more before it is written.
//! Needs nothing but Rust: Kafka and vLLM are simulated in this process. Ends by itself, with an error when something is not as promised.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

mod playground;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kafka_llm_processor::app::App;
use kafka_llm_processor::records::result::ResultOutput;
use playground::{Playground, run_until};

const DOCUMENTS: u64 = 6;
/// What each answer has to be. The template may show it to the model too, as `{{ schema }}`.
const SCHEMA: &str = r#"{
  "type": "object",
  "properties": {
    "company": { "type": "string" },
    "sentiment": { "enum": ["positive", "neutral", "negative"] },
    "revenue_millions": { "type": "number" },
    "is_forecast": { "type": "boolean" }
  },
  "required": ["company", "sentiment", "revenue_millions", "is_forecast"],
  "additionalProperties": false
}"#;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let playground = Playground::start(1, Duration::from_millis(20)).await?;
    playground
        .send((0..DOCUMENTS).map(|number| {
            format!("Caldera Grid {number} expects a revenue of {number}0 million.")
        }))?;
    let schema_file =
        std::env::temp_dir().join(format!("structured-output-{}.json", std::process::id()));
    std::fs::write(&schema_file, SCHEMA)?;

    let mut settings = playground.settings();
    settings.llm.schema_file = Some(schema_file.clone());
    let app = App::build(settings)?;
    let ended = Box::pin(run_until(app, DOCUMENTS)).await;
    std::fs::remove_file(&schema_file)?;
    let summary = ended?;

    let results = playground.results()?;
    ensure!(
        u64::try_from(results.len())? == DOCUMENTS,
        "every document has its answer"
    );
    for (result, _) in results.values() {
        let ResultOutput::Data(data) = &result.output else {
            anyhow::bail!("{} has text where data was asked for", result.document_id);
        };
        let sentiment = data.get("sentiment").and_then(|field| field.as_str());
        let sentiment = sentiment.context("the schema requires it")?;
        ensure!(
            ["positive", "neutral", "negative"].contains(&sentiment),
            "one of the three"
        );
        ensure!(
            data.get("is_forecast")
                .is_some_and(|field| field.is_boolean())
        );
        println!("{}  {data}", result.document_id);
    }
    println!("\n{summary}");
    playground.stop().await;
    Ok(())
}
