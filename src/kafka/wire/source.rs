//! The input side: streams of partitions, fetched for by one task per broker.
//!
//! # Invariants
//! 1. A stream's position moves only when records, or the end of a gap, are handed out.
//! 2. A stream is fetched for only while its user waits: that is the back pressure.
//! 3. What is wrong with one partition is told to its stream alone.
//! 4. The tasks end with the source and the last of its streams.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kafka_protocol::messages::fetch_response::PartitionData;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::cluster::{BACKOFF, Cluster, Failure, Route, Target, leaderless};
use super::connection::Deadline;
use super::fetcher::{Fetcher, Order};
use super::pool::lock;
use super::reader::{Aborted, Answer, Isolation, check_data, read_data};
use crate::kafka::{Fetched, KafkaError, LogReader as _, RecordStream, Source};
use crate::retry::Backoff;
use crate::types::{Offset, TopicPartition};

/// Orders on their way to a task; more wait with their streams.
const ORDERS_MAX: usize = 1_024;

/// Reads input partitions on our own connections.
#[derive(Debug)]
pub struct WireSource {
    shared: Arc<Shared>,
}

impl WireSource {
    /// A source that connects when it is first used.
    #[must_use]
    pub fn new(cluster: Cluster, isolation: Isolation) -> Self {
        Self {
            shared: Arc::new(Shared {
                cluster,
                isolation,
                brokers: Mutex::default(),
                lookups: tokio::sync::Mutex::default(),
            }),
        }
    }
}

#[async_trait]
impl Source for WireSource {
    async fn open(
        &self,
        partition: &TopicPartition,
        start: Offset,
    ) -> Result<Box<dyn RecordStream>, KafkaError> {
        let mut stream = WireStream {
            shared: Arc::clone(&self.shared),
            partition: partition.clone(),
            position: start,
            failed_at: None,
        };
        let mut tries = Tries::within(self.shared.cluster.config().request_timeout);
        loop {
            match stream.route(tries.deadline).await {
                Ok(_) => return Ok(Box::new(stream)),
                Err(failure) => stream.wait_after(failure, &mut tries).await?,
            }
        }
    }

    async fn bounds(&self, partition: &TopicPartition) -> Result<(Offset, Offset), KafkaError> {
        self.shared.cluster.log_bounds(partition).await
    }

    async fn topic_id(&self, topic: &str) -> Result<Option<Uuid>, KafkaError> {
        self.shared.cluster.topic_id(topic).await
    }
}

/// What the source and its streams have in common.
#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    isolation: Isolation,
    brokers: Mutex<HashMap<Arc<str>, BrokerTask>>,
    /// The last look for the leaders of each topic. Held while looking, on purpose: streams that lose their leader at the same time share
    /// one look.
    lookups: tokio::sync::Mutex<HashMap<Arc<str>, Lookup>>,
}

/// When a look for leaders began, and what was in the way.
type Lookup = (Instant, Result<(), KafkaError>);

#[derive(Debug)]
struct BrokerTask {
    orders: mpsc::Sender<Order>,
    _task: AbortOnDropHandle<()>,
}

impl Shared {
    /// The leader, looked for anew when the last one failed and nobody has looked since.
    async fn route(
        &self,
        partition: &TopicPartition,
        failed_at: Option<Instant>,
        deadline: Deadline,
    ) -> Result<Route, Failure> {
        let target = Target::Leader(partition);
        if failed_at.is_none()
            && let Some(route) = self.cluster.known_route(target)
        {
            return Ok(route);
        }
        let since = failed_at.unwrap_or_else(Instant::now);
        let mut lookups = timeout_at(deadline.at, self.lookups.lock())
            .await
            .map_err(|_elapsed| Failure::Passing(late(deadline)))?;
        match lookups.get(&partition.topic) {
            Some((began, Err(error))) if *began >= since => {
                return Err(Failure::routing(error.clone()));
            }
            Some((began, Ok(()))) if *began >= since => {}
            _ if failed_at.is_some() => self.cluster.forget(target),
            _ => {}
        }
        if let Some(route) = self.cluster.known_route(target) {
            return Ok(route);
        }
        // Of hundreds of partitions whose only broker is down one look tells all: each looking for itself would keep the others busy.
        let is_looked_for = lookups
            .get(&partition.topic)
            .is_some_and(|(began, _)| *began >= since || began.elapsed() < BACKOFF.0);
        if is_looked_for && self.cluster.is_leaderless(partition) {
            return Err(Failure::Passing(leaderless(partition)));
        }
        let began = Instant::now();
        let found = self.cluster.route(target, deadline).await;
        let found = found.and_then(|route| route.ok_or_else(|| late(deadline)));
        // What is wrong with this partition is no news for the others of its topic.
        let in_the_way = match &found {
            Err(
                error @ (KafkaError::Unreachable { .. }
                | KafkaError::Tls { .. }
                | KafkaError::Credentials { .. }
                | KafkaError::Timeout { .. }
                | KafkaError::Disconnected { .. }),
            ) => Err(error.clone()),
            _ => Ok(()),
        };
        lookups.insert(Arc::clone(&partition.topic), (began, in_the_way));
        found.map_err(Failure::routing)
    }

    /// Where the broker's task takes orders; starts it when there is none.
    fn orders(&self, address: &Arc<str>) -> mpsc::Sender<Order> {
        let mut brokers = lock(&self.brokers);
        brokers.retain(|_, task| !task.orders.is_closed());
        let task = brokers.entry(Arc::clone(address)).or_insert_with(|| {
            let (orders, taken) = mpsc::channel(ORDERS_MAX);
            let fetcher = Fetcher::new(self.cluster.clone(), Arc::clone(address), self.isolation);
            BrokerTask {
                orders,
                _task: AbortOnDropHandle::new(tokio::spawn(fetcher.run(taken))),
            }
        });
        task.orders.clone()
    }
}

fn late(deadline: Deadline) -> KafkaError {
    KafkaError::Timeout {
        operation: "Fetch",
        after: deadline.after,
    }
}

/// The tries of one call.
#[derive(Debug)]
struct Tries {
    deadline: Deadline,
    backoff: Backoff,
}

impl Tries {
    fn within(after: Duration) -> Self {
        Self {
            deadline: Deadline::within(after),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
        }
    }
}

struct WireStream {
    shared: Arc<Shared>,
    partition: TopicPartition,
    position: Offset,
    /// When the way to the leader failed last, if it was not found again since.
    failed_at: Option<Instant>,
}

#[async_trait]
impl RecordStream for WireStream {
    async fn next(&mut self, max_bytes: usize, wait: Duration) -> Result<Fetched, KafkaError> {
        let timeout = self.shared.cluster.config().request_timeout;
        let until = Deadline::within(wait).at;
        let mut tries = Tries::within(timeout.saturating_add(wait));
        let mut is_again = false;
        loop {
            match self.ask(max_bytes, until, tries.deadline).await {
                Ok(Answer::Data(data)) => {
                    let is_bare = data
                        .records
                        .as_ref()
                        .is_none_or(|records| records.is_empty());
                    let from = self.position;
                    let fetched = self.hand_out(*data)?;
                    // All of it claims to lie beyond the log. A broker that says so again and again is not asked as fast as it answers.
                    if !is_bare && fetched.next_offset == from {
                        sleep(BACKOFF.0).await;
                    }
                    return Ok(fetched);
                }
                Ok(Answer::OutOfRange) => {
                    let cluster = &self.shared.cluster;
                    let meant = cluster.out_of_range(&self.partition, self.position, is_again);
                    timeout_at(tries.deadline.at, meant)
                        .await
                        .map_err(|_elapsed| late(tries.deadline))??;
                    is_again = true;
                }
                Err(failure) => self.wait_after(failure, &mut tries).await?,
            }
        }
    }
}

impl WireStream {
    async fn route(&mut self, deadline: Deadline) -> Result<Route, Failure> {
        let route = self
            .shared
            .route(&self.partition, self.failed_at, deadline)
            .await?;
        self.failed_at = None;
        Ok(route)
    }

    /// Sends an order to the leader's task and waits for what becomes of it.
    async fn ask(
        &mut self,
        max_bytes: usize,
        until: Instant,
        deadline: Deadline,
    ) -> Result<Answer, Failure> {
        let route = self.route(deadline).await?;
        let (reply, answer) = oneshot::channel();
        let order = Order {
            partition: self.partition.clone(),
            from: self.position,
            leader_epoch: route.leader_epoch,
            max_bytes,
            until,
            reply,
        };
        let orders = self.shared.orders(&route.address);
        let answered = async {
            // A task that has just ended takes no orders; the next try starts another.
            let gone = || KafkaError::Disconnected {
                operation: "Fetch",
                detail: format!("{}: its task has ended", route.address),
            };
            orders.send(order).await.map_err(|_closed| gone())?;
            answer.await.map_err(|_closed| gone())?
        };
        let data = timeout_at(deadline.at, answered)
            .await
            .map_err(|_elapsed| Failure::Passing(late(deadline)))?
            .map_err(Failure::asking)?;
        check_data(&self.partition, data).map_err(Failure::asking)
    }

    fn hand_out(&mut self, data: PartitionData) -> Result<Fetched, KafkaError> {
        let mut aborted = Aborted::new(self.shared.isolation, &data);
        let mut fetched = read_data(&self.partition, self.position, data, &mut aborted)?;
        for (_, record) in &mut fetched.records {
            *record = record.detached();
        }
        self.position = fetched.next_offset;
        Ok(fetched)
    }

    /// Waits before the next try; gives the error back when there is no use in one, or no time left.
    async fn wait_after(&mut self, failure: Failure, tries: &mut Tries) -> Result<(), KafkaError> {
        self.failed_at = Some(Instant::now());
        let error = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing(error) => error,
        };
        let delay = tries.backoff.next_delay();
        if Instant::now() + delay >= tries.deadline.at {
            return Err(error);
        }
        tracing::debug!(partition = %self.partition, %error, "fetching again");
        sleep(delay).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
