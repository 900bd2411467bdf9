//! What becomes visible while the storm lasts: when, and for which input partition. The books do not rely on it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kafka_llm_processor::kafka::wire::{Cluster, Isolation};
use kafka_llm_processor::kafka::{Fetched, KafkaConfig};
use kafka_llm_processor::records::headers;
use kafka_llm_processor::types::{Offset, TopicPartition};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::books::Place;
use crate::scenario::{PARTITIONS, Scenario};

/// How long a look waits for more.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_BYTES: usize = 1024 * 1024;
/// After a look that failed: the broker is away, or the topic is not there yet.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Seen {
    /// In the order of time: when something became visible, and of which input partition.
    results: Vec<(Instant, i32)>,
    finished: BTreeSet<Place>,
}

/// Reads results and dead letters with `read_committed` until it is dropped.
pub(crate) struct Watch {
    seen: Arc<Mutex<Seen>>,
    _readers: JoinSet<()>,
}

impl Watch {
    pub(crate) fn new(brokers: &str, scenario: &Scenario) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let mut readers = JoinSet::new();
        for topic in [scenario.results(), scenario.dead_letters()] {
            for partition in 0..PARTITIONS {
                // A connection for each: a look that waits would hold up the others.
                let cluster = Cluster::new(&KafkaConfig {
                    brokers: brokers.to_owned(),
                    ..KafkaConfig::default()
                });
                let place = TopicPartition::new(topic.as_str(), partition);
                readers.spawn(read(cluster, place, Arc::clone(&seen)));
            }
        }
        Self {
            seen,
            _readers: readers,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Documents that have a result or a dead letter.
    pub(crate) fn finished(&self) -> usize {
        self.seen().finished.len()
    }

    /// From each moment to the next visible result, and to one of every input partition; a moment after which there is none is left out.
    /// The next disturbance may come in between: it counts.
    pub(crate) fn recoveries(&self, moments: &[Instant]) -> Recoveries {
        let seen = self.seen();
        let mut recoveries = Recoveries::default();
        for moment in moments {
            let mut missing: BTreeSet<_> = (0..PARTITIONS).collect();
            let mut after = seen.results.iter().filter(|(at, _)| at > moment).peekable();
            if let Some((at, _)) = after.peek() {
                recoveries.first.push(*at - *moment);
            }
            for (at, partition) in after {
                if missing.remove(partition) && missing.is_empty() {
                    recoveries.every.push(*at - *moment);
                }
            }
        }
        recoveries
    }
}

/// How long it took after each restart.
#[derive(Debug, Default)]
pub(crate) struct Recoveries {
    /// To the next visible result.
    pub(crate) first: Vec<Duration>,
    /// To a result of every input partition.
    pub(crate) every: Vec<Duration>,
}

async fn read(cluster: Cluster, partition: TopicPartition, seen: Arc<Mutex<Seen>>) {
    let mut next = Offset::ZERO;
    loop {
        let fetched = cluster
            .fetch(&partition, next, Isolation::ReadCommitted, LOOK_BYTES, LOOK)
            .await;
        match fetched {
            Ok(fetched) => {
                next = fetched.next_offset;
                note(&fetched, &seen);
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

fn note(fetched: &Fetched, seen: &Mutex<Seen>) {
    let now = Instant::now();
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    for (_, record) in &fetched.records {
        // What names no source is found by the books.
        if let Some(source) = headers::source(record) {
            let partition = source.topic_partition.partition;
            seen.results.push((now, partition));
            seen.finished.insert((partition, source.offset.value()));
        }
    }
}
