use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::*;
use crate::kafka::End;

/// Answers the first appends with these errors, then accepts.
#[derive(Debug, Clone, Default)]
struct Topic(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    errors: Vec<StepError>,
    batches: Vec<Batch>,
    appended_at: Vec<Instant>,
}

#[async_trait]
impl Sink for Topic {
    async fn take_over(&self, _: &TopicPartition) -> Result<Box<dyn PartitionSink>, StepError> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl PartitionSink for Topic {
    fn is_transactional(&self) -> bool {
        false
    }
    async fn begin(&mut self) -> Result<(), StepError> {
        Ok(())
    }
    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        let mut state = self.0.lock().unwrap();
        state.appended_at.push(Instant::now());
        batches
            .iter()
            .map(|batch| match state.errors.pop() {
                Some(error) => Err(error),
                None => {
                    state.batches.push(batch.clone());
                    Ok(())
                }
            })
            .collect()
    }
    async fn end(&mut self, _: End) -> Result<(), StepError> {
        Ok(())
    }
}

fn documents(count: usize) -> Vec<InputDocument> {
    (0..count)
        .map(|index| InputDocument {
            id: format!("d{index}"),
            value: format!("text {index}").into(),
        })
        .collect()
}

async fn sent(
    topic: &Topic,
    documents: &[InputDocument],
    rate: Option<f64>,
    shutdown: &CancellationToken,
) -> (Result<(), ProduceError>, u64, String) {
    let mut out = Vec::new();
    let total = documents.len() as u64;
    let mut plan = Plan {
        documents,
        topic: "docs",
        partitions: 3,
        next: 0,
        total,
    };
    let task = Task {
        done: "sent",
        unit: "documents",
        place: "to docs",
        total,
    };
    let mut progress = Progress::new(&Terminal::plain(), &mut out, task);
    let outcome = send(topic, &mut plan, rate, &mut progress, shutdown).await;
    progress.finish().unwrap();
    (outcome, plan.next, String::from_utf8(out).unwrap())
}

fn timeout() -> StepError {
    StepError::OutcomeUnknown(KafkaError::Timeout {
        operation: "append",
        after: Duration::from_secs(1),
    })
}

#[tokio::test(start_paused = true)]
async fn every_document_is_sent_once_to_the_partition_of_its_key() {
    let topic = Topic::default();
    let documents = documents(250);
    let (outcome, count, out) = sent(&topic, &documents, None, &CancellationToken::new()).await;
    assert!(outcome.is_ok());
    assert_eq!(count, 250);
    let mut keys = Vec::new();
    for batch in &topic.0.lock().unwrap().batches {
        assert!(batch.records.len() <= CHUNK_DOCUMENTS_MAX);
        for record in &batch.records {
            let key = record.key.clone().unwrap();
            assert_eq!(batch.to.partition, partition_for_key(&key, 3));
            keys.push(key);
        }
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 250);
    assert!(
        out.ends_with("sent 250 of 250 documents to docs\n"),
        "{out}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_fails_in_passing_is_sent_again() {
    let topic = Topic::default();
    topic.0.lock().unwrap().errors = vec![timeout(), timeout()];
    let (outcome, count, _) = sent(&topic, &documents(20), None, &CancellationToken::new()).await;
    assert!(outcome.is_ok());
    assert_eq!(count, 20);
    let state = topic.0.lock().unwrap();
    let records: usize = state.batches.iter().map(|batch| batch.records.len()).sum();
    assert_eq!(records, 20);
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_with_an_error_at_the_deadline() {
    let topic = Topic::default();
    topic.0.lock().unwrap().errors = (0..10_000).map(|_| timeout()).collect();
    let started = Instant::now();
    let (outcome, count, _) = sent(&topic, &documents(20), None, &CancellationToken::new()).await;
    assert_eq!(count, 0);
    assert!(matches!(
        outcome,
        Err(ProduceError::NotAcknowledged { sent: 0, .. })
    ));
    assert!(started.elapsed() <= SEND_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_does_not_pass_ends_at_once() {
    let topic = Topic::default();
    let partition = TopicPartition::new("docs", 0);
    topic.0.lock().unwrap().errors = vec![StepError::Refused(KafkaError::TooLarge { partition })];
    let started = Instant::now();
    let (outcome, _, _) = sent(&topic, &documents(1), None, &CancellationToken::new()).await;
    assert!(outcome.is_err());
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_rate_spaces_the_documents() {
    for (rate, seconds) in [(2.0, 9.5), (1000.0, 0.0)] {
        let topic = Topic::default();
        let started = Instant::now();
        let (_, count, _) = sent(
            &topic,
            &documents(20),
            Some(rate),
            &CancellationToken::new(),
        )
        .await;
        assert_eq!(count, 20);
        assert_eq!(started.elapsed().as_secs_f64(), seconds, "{rate}");
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_ends_between_documents() {
    let topic = Topic::default();
    let shutdown = CancellationToken::new();
    let stop = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        shutdown.cancel();
    };
    let documents = documents(100);
    let ((outcome, count, _), ()) =
        tokio::join!(sent(&topic, &documents, Some(1.0), &shutdown), stop);
    assert!(outcome.is_ok());
    assert!((5..=6).contains(&count), "{count}");
}

#[tokio::test(start_paused = true)]
async fn a_chunk_is_bounded_in_bytes() {
    let large: Vec<InputDocument> = (0..4)
        .map(|index| InputDocument {
            id: format!("d{index}"),
            value: vec![b'x'; CHUNK_BYTES_MAX / 2].into(),
        })
        .collect();
    let topic = Topic::default();
    let (_, count, _) = sent(&topic, &large, None, &CancellationToken::new()).await;
    assert_eq!(count, 4);
    assert_eq!(topic.0.lock().unwrap().appended_at.len(), 4);
}

#[test]
fn a_rate_is_a_positive_number() {
    assert_eq!(rate("2.5"), Ok(2.5));
    for text in ["0", "-1", "NaN", "inf", "fast"] {
        assert!(rate(text).is_err(), "{text}");
    }
}
