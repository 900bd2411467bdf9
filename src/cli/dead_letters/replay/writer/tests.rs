use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::*;

/// Keeps what it is given; refuses batches of more than so many records, and fails the first appends with these errors.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    records_max: usize,
    errors: Vec<StepError>,
    sent: Vec<Batch>,
    kept: Vec<(i32, Record)>,
}

#[async_trait]
impl PartitionSink for Log {
    fn is_transactional(&self) -> bool {
        false
    }
    async fn begin(&mut self) -> Result<(), StepError> {
        Ok(())
    }
    async fn append(&mut self, batches: &[Batch]) -> Vec<Result<(), StepError>> {
        let mut state = self.0.lock().unwrap();
        let mut answer = |batch: &Batch| {
            state.sent.push(batch.clone());
            if let Some(error) = state.errors.pop() {
                return Err(error);
            }
            let huge = |record: &Record| record.size() > 100;
            if batch.records.len() > state.records_max || batch.records.iter().any(huge) {
                let partition = batch.to.clone();
                return Err(StepError::Refused(KafkaError::TooLarge { partition }));
            }
            let records = batch.records.iter().cloned();
            let records: Vec<_> = records.map(|record| (batch.to.partition, record)).collect();
            state.kept.extend(records);
            Ok(())
        };
        batches.iter().map(&mut answer).collect()
    }
    async fn end(&mut self, _: End) -> Result<(), StepError> {
        Ok(())
    }
}

/// Number, partition and size of each document.
fn documents(all: &[(i64, i32, usize)]) -> Vec<(Offset, TopicPartition, Record)> {
    let document = |(number, partition, size): &(i64, i32, usize)| {
        let record = Record {
            value: Some(vec![0; *size].into()),
            timestamp_ms: *number,
            ..Record::default()
        };
        (
            Offset::new(*number),
            TopicPartition::new("docs", *partition),
            record,
        )
    };
    all.iter().map(document).collect()
}

async fn delivered(
    log: &Log,
    documents: &[(Offset, TopicPartition, Record)],
) -> Result<Vec<Offset>, Undelivered> {
    let items = documents.iter().map(|(offset, to, record)| Item {
        offset: *offset,
        to,
        record,
    });
    deliver(&mut log.clone(), items, &mut Patience::new()).await
}

fn kept(log: &Log, partition: i32) -> Vec<i64> {
    let state = log.0.lock().unwrap();
    let of_partition = state.kept.iter().filter(|(kept, _)| *kept == partition);
    of_partition
        .map(|(_, record)| record.timestamp_ms)
        .collect()
}

#[tokio::test]
async fn what_is_too_large_together_goes_alone_and_what_is_too_large_alone_is_told() {
    let log = Log::default();
    log.0.lock().unwrap().records_max = 2;
    let all = [
        (0, 0, 1),
        (1, 1, 1),
        (2, 0, 1),
        (3, 0, 200),
        (4, 0, 1),
        (5, 0, 1),
    ];
    let refused = delivered(&log, &documents(&all)).await.ok().unwrap();
    assert_eq!(refused, [Offset::new(3)]);
    assert_eq!(kept(&log, 0), [0, 2, 4, 5], "in their order, each once");
    assert_eq!(kept(&log, 1), [1]);
}

#[tokio::test(start_paused = true)]
async fn what_fails_in_passing_is_sent_again_as_the_same_batch() {
    let timeout = || {
        StepError::OutcomeUnknown(KafkaError::Timeout {
            operation: "append",
            after: Duration::from_secs(1),
        })
    };
    let log = Log::default();
    log.0.lock().unwrap().records_max = 10;
    log.0.lock().unwrap().errors = vec![timeout(), timeout()];
    let all = documents(&[(0, 0, 1), (1, 0, 1)]);
    assert!(
        delivered(&log, &all)
            .await
            .is_ok_and(|refused| refused.is_empty())
    );
    let sent = log.0.lock().unwrap().sent.clone();
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|batch| batch.records == sent[0].records));

    log.0.lock().unwrap().errors = (0..10_000).map(|_| timeout()).collect();
    let began = Instant::now();
    assert!(delivered(&log, &all).await.is_err());
    assert!(began.elapsed() <= WRITE_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_ends_at_once() {
    let log = Log::default();
    log.0.lock().unwrap().errors = vec![StepError::Fenced];
    let began = Instant::now();
    log.0.lock().unwrap().records_max = 1;
    // The first of the two partitions is asked first, and fails.
    let failed = delivered(&log, &documents(&[(0, 0, 1), (1, 1, 1)]))
        .await
        .err()
        .unwrap();
    assert!(matches!(failed.error, StepError::Fenced));
    assert_eq!(failed.open, [Offset::new(0)], "the other was acknowledged");
    assert_eq!(began.elapsed(), Duration::ZERO);
}
