use futures::poll;
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::*;

#[tokio::test]
async fn a_writer_that_has_ended_is_replaced() {
    let sink = RskafkaSink::new(KafkaConfig::default());
    let to = TopicPartition::new("output", 0);
    let (first, _) = sink.shared.writer(&to);
    let (again, _) = sink.shared.writer(&to);
    assert!(again.same_channel(&first));
    if let Some(writer) = sink.shared.writers.lock().unwrap().get_mut(&to) {
        writer._task.abort();
    }
    first.closed().await;
    let (next, _) = sink.shared.writer(&to);
    assert!(!next.is_closed());
}

/// As while a broker hangs that leads many output partitions.
#[test]
fn appends_without_an_answer_leave_threads_for_others() {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(PACKERS_MAX + 1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (let_go, held) = tokio::sync::watch::channel(false);
        let packers = Arc::new(Semaphore::new(PACKERS_MAX));
        let work = || {
            let mut held = held.clone();
            async move {
                drop(held.wait_for(|is_over| *is_over).await);
                Ok(())
            }
        };
        let mut hung = Box::pin(join_all(
            (0..2 * PACKERS_MAX).map(|_| aside(&packers, work())),
        ));
        assert!(poll!(&mut hung).is_pending());
        let other = timeout(Duration::from_secs(10), spawn_blocking(|| 7)).await;
        assert_eq!(other.unwrap().unwrap(), 7);
        let_go.send(true).unwrap();
        assert!(hung.await.iter().all(Result::is_ok));
    });
}
