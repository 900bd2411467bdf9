//! The service as a part of a program of yours, with a prompt and a sink of your own: `cargo run --example embed_in_your_service`.
//!
//! Answers go into a store of this program (here a map, there perhaps a table of a database) before they go to Kafka. The store has each
//! document's answer at least once, whatever happens, and as it is kept under the document's place, a repeat changes nothing.
//! Needs nothing but Rust: Kafka and vLLM are simulated in this process. Ends by itself, with an error when something is not as promised.

#![allow(clippy::print_stdout, reason = "an example shows what happens")]

mod playground;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use async_trait::async_trait;
use kafka_llm_processor::app::App;
use kafka_llm_processor::kafka::{Batch, End, PartitionSink, Sink, StepError};
use kafka_llm_processor::records::result::{ResultOutput, ResultRecord};
use kafka_llm_processor::types::TopicPartition;

use playground::{OUTPUT, Playground, run_until};

const DOCUMENTS: u64 = 12;
const PROMPT: &str = "Name the company and its figure, in five words at most.\n\n<document>\n{{ content }}\n</document>";

/// Where this program keeps answers: by partition and offset of the document.
type Store = Arc<Mutex<HashMap<(i32, i64), String>>>;

/// Stands around the driver's sink.
#[derive(Debug)]
struct StoringSink {
    inner: Arc<dyn Sink>,
    store: Store,
}

#[async_trait]
impl Sink for StoringSink {
    async fn take_over(&self, input: &TopicPartition) -> Result<Box<dyn PartitionSink>, StepError> {
        Ok(Box::new(StoringWriter {
            inner: self.inner.take_over(input).await?,
            store: Arc::clone(&self.store),
        }))
    }
}

/// Stands around the writer of one input partition.
struct StoringWriter {
    inner: Box<dyn PartitionSink>,
    store: Store,
}

impl StoringWriter {
    /// A database would be asked here, and waited for. Dead letters and commit records pass by.
    fn keep(&self, batch: &Batch) {
        if &*batch.to.topic != OUTPUT {
            return;
        }
        for value in batch
            .records
            .iter()
            .filter_map(|record| record.value.as_ref())
        {
            let Ok(result) = ResultRecord::parse(value) else {
                continue;
            };
            let place = (result.source.partition, result.source.offset.value());
            if let ResultOutput::Text(text) = result.output {
                let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
                store.insert(place, text);
            }
        }
    }
}

#[async_trait]
impl PartitionSink for StoringWriter {
    fn is_transactional(&self) -> bool {
        self.inner.is_transactional()
    }

    async fn begin(&mut self) -> Result<(), StepError> {
        self.inner.begin().await
    }

    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        batches.iter().for_each(|batch| self.keep(batch));
        self.inner.append(batches).await
    }

    async fn end(&mut self, end: End) -> Result<(), StepError> {
        self.inner.end(end).await
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let playground = Playground::start(1, Duration::from_millis(20)).await?;
    playground.send(
        (0..DOCUMENTS)
            .map(|number| format!("Harrow Vale {number} earned {number}.5 million in June.")),
    )?;

    let mut settings = playground.settings();
    settings.prompt.user = Some(PROMPT.to_owned());
    let store = Store::default();
    let kept = Arc::clone(&store);
    let app = App::build(settings)?.with_sink(move |inner| {
        Arc::new(StoringSink {
            inner,
            store: Arc::clone(&kept),
        })
    });
    let summary = run_until(app, DOCUMENTS).await?;

    let asked = playground.models.first().map(|model| model.requests());
    let asked = asked.unwrap_or_default();
    ensure!(
        asked
            .iter()
            .any(|request| request.prompt.contains("in five words at most")),
        "the model was asked with our prompt"
    );
    let answers = store.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(
        u64::try_from(answers.len())? == DOCUMENTS,
        "the store has every answer"
    );
    ensure!(
        playground.results()?.len() == answers.len(),
        "Kafka has them too"
    );
    for ((partition, offset), answer) in &answers {
        println!("{partition}/{offset}  {answer}");
    }
    println!("\n{summary}");
    playground.stop().await;
    Ok(())
}
