//! What one broker is asked for: one Fetch at a time for all streams whose partitions it leads, in a task of its own.
//!
//! Streams send [`Order`]s; the task asks for all that wait in one request, a long poll. Kafka works on one request of a connection after
//! the other and none can be taken back, so an order that comes while the poll is on its way goes out in a second request beside it, a
//! short poll that ends no later than the long one. When both are over they are one again.
//!
//! # Invariants
//! 1. At most two requests are on their way; each has a deadline.
//! 2. Every order is answered, or its stream sees that the task is gone. An order whose stream no longer waits is in no further request.
//! 3. Who has waited longest is asked for first, and a broker fills its answer in the order of the request: nobody starves.
//!
//! Fetch sessions (KIP-227) are not used: two full requests a second for 1,000 idle partitions, and the wakes of their streams, take
//! 2.6 % of a core even in a build without optimisation (`a_thousand_idle_partitions_cost_little` prints it).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::api::check_code;
use super::cluster::{Cluster, topic_name};
use super::connection::Deadline;
use super::pool::Lane;
use super::reader::Isolation;
use crate::kafka::KafkaError;
use crate::types::{Offset, TopicPartition};

/// The longest poll, as `fetch.max.wait.ms` of Kafka's own consumer.
const POLL_WAIT: Duration = Duration::from_millis(500);

/// The longest poll of the second request: what comes while that is on its way waits for so long.
const SIDE_WAIT: Duration = Duration::from_millis(100);

/// Streams that were told that there is nothing ask again at once: the next poll waits until they have.
const GATHER: Duration = Duration::from_millis(5);

/// The most that one answer is asked to hold; a first batch that is larger comes whole all the same.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A task without orders ends after this time: its broker may have another address by now.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What a stream wants next.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) partition: TopicPartition,
    /// First offset, inclusive.
    pub(super) from: Offset,
    pub(super) leader_epoch: i32,
    pub(super) max_bytes: usize,
    /// When the stream is to be told that there is nothing.
    pub(super) until: Instant,
    pub(super) reply: oneshot::Sender<Result<PartitionData, KafkaError>>,
}

impl Order {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// The two requests that may be on their way at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Poll {
    Main,
    Side,
}

/// A request that is over.
struct Ended {
    poll: Poll,
    /// What it asked for.
    orders: Vec<Order>,
    answer: Result<FetchResponse, KafkaError>,
}

/// The task of one broker.
pub(super) struct Fetcher {
    cluster: Cluster,
    address: Arc<str>,
    isolation: Isolation,
    /// Not asked for at the moment, who has waited longest first.
    waiting: VecDeque<Order>,
    /// How many at the front of `waiting` were asked for before and came back without anything.
    asked_before: usize,
    polls: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// When the long poll will be over, if one is on its way.
    main_until: Option<Instant>,
    has_side: bool,
    /// The last long poll brought nothing: the next begins when the short one is over too, so that both become one.
    is_quiet: bool,
    /// Nothing is asked before.
    pause_until: Instant,
}

impl Fetcher {
    pub(super) fn new(cluster: Cluster, address: Arc<str>, isolation: Isolation) -> Self {
        Self {
            cluster,
            address,
            isolation,
            waiting: VecDeque::new(),
            asked_before: 0,
            polls: FuturesUnordered::new(),
            main_until: None,
            has_side: false,
            is_quiet: false,
            pause_until: Instant::now(),
        }
    }

    /// Serves orders until all their senders are gone, or none came for a while.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            while let Ok(order) = orders.try_recv() {
                self.waiting.push_back(order);
            }
            self.ask();
            let is_idle = self.polls.is_empty() && self.waiting.is_empty();
            let is_paused = !self.waiting.is_empty() && Instant::now() < self.pause_until;
            let wake = if is_idle {
                Instant::now() + IDLE_MAX
            } else {
                self.pause_until
            };
            tokio::select! {
                biased;
                Some(ended) = self.polls.next() => self.settle(ended),
                order = orders.recv() => match order {
                    Some(order) => self.waiting.push_back(order),
                    None => return,
                },
                () = sleep_until(wake), if is_idle || is_paused => {
                    if is_idle {
                        return;
                    }
                }
            }
        }
    }

    /// Sends the requests that are to be sent.
    fn ask(&mut self) {
        let now = Instant::now();
        if now < self.pause_until {
            return;
        }
        if self.main_until.is_none() && !(self.has_side && self.is_quiet) {
            self.begin(Poll::Main, POLL_WAIT);
        }
        let Some(main_until) = self.main_until else {
            return;
        };
        let left = main_until.saturating_duration_since(now);
        let has_new = self.waiting.len() > self.asked_before;
        // Who was asked for just now can wait for the end of a poll that is about to end.
        if !self.has_side && (has_new || left > GATHER) {
            self.begin(Poll::Side, left.min(SIDE_WAIT));
        }
    }

    fn begin(&mut self, poll: Poll, wait: Duration) {
        self.waiting.retain(|order| !order.reply.is_closed());
        // One stream in a hurry would make the long poll of all others a short one.
        let is_hurried = |order: &Order| order.left() < SIDE_WAIT;
        let hurried_wait = poll == Poll::Main && !self.waiting.iter().all(is_hurried);
        let mut orders: Vec<Order> = Vec::with_capacity(self.waiting.len());
        let mut later = VecDeque::new();
        let mut partitions = HashSet::new();
        for order in self.waiting.drain(..) {
            let is_later = hurried_wait && is_hurried(&order);
            // A request names a partition once.
            if !is_later && partitions.insert(order.partition.clone()) {
                orders.push(order);
            } else {
                later.push_back(order);
            }
        }
        self.waiting = later;
        self.asked_before = 0;
        let Some(left) = orders.iter().map(Order::left).min() else {
            return;
        };
        let wait = wait.min(left);
        let deadline = Deadline::within(self.cluster.config().request_timeout.saturating_add(wait));
        match poll {
            Poll::Main => self.main_until = Some(Instant::now() + wait),
            Poll::Side => self.has_side = true,
        }
        let (cluster, address) = (self.cluster.clone(), Arc::clone(&self.address));
        let isolation = self.isolation;
        self.polls.push(Box::pin(async move {
            let build = |_version| request(&orders, isolation, wait);
            let answer = cluster.ask_at(&address, Lane::LongPoll, deadline, build);
            let answer = answer.await.and_then(|response| {
                check_code("Fetch", response.error_code, None).map(|()| response)
            });
            Ended {
                poll,
                orders,
                answer,
            }
        }));
    }

    /// Gives each stream its part of an answer. Who got nothing and has time left waits on, before all others.
    fn settle(&mut self, ended: Ended) {
        let Ended {
            poll,
            orders,
            answer,
        } = ended;
        match poll {
            Poll::Main => self.main_until = None,
            Poll::Side => self.has_side = false,
        }
        let mut answer = match answer {
            Ok(response) => Answer::new(response),
            Err(error) => {
                for order in orders {
                    reply(order, Err(error.clone()));
                }
                return;
            }
        };
        if poll == Poll::Main {
            self.is_quiet = answer.is_empty;
        }
        let pause = if answer.is_empty && poll == Poll::Main {
            GATHER
        } else {
            Duration::ZERO
        };
        let pause_until = Instant::now() + pause.max(answer.throttle);
        self.pause_until = self.pause_until.max(pause_until);
        let mut kept = Vec::new();
        for order in orders {
            let Some(data) = answer.take(&order.partition) else {
                let error = KafkaError::Protocol {
                    operation: "Fetch",
                    detail: format!("asked for {}, it is left out", order.partition),
                };
                reply(order, Err(error));
                continue;
            };
            if is_worth_telling(&data) || self.is_over(&order, &data, poll, answer.is_empty) {
                reply(order, Ok(data));
            } else {
                kept.push(order);
            }
        }
        answer.complain(&self.address);
        self.asked_before += kept.len();
        for order in kept.into_iter().rev() {
            self.waiting.push_front(order);
        }
    }

    /// Whether the stream is told that there is nothing. Polls round, the main one more so when it brought nothing to anybody: streams that
    /// began at different times would make each end early otherwise, again and again. Of two groups of streams half a poll or more apart, the
    /// second is less than that apart from the first: so all become one group, and idle partitions cost one request for each poll's whole
    /// time.
    fn is_over(&self, order: &Order, data: &PartitionData, poll: Poll, is_empty: bool) -> bool {
        let end = match self.isolation {
            Isolation::ReadUncommitted => data.high_watermark,
            Isolation::ReadCommitted => data.last_stable_offset,
        };
        let is_crowded_out = !is_empty && end > order.from.value();
        let rounded = match poll {
            Poll::Main if is_empty => POLL_WAIT / 2,
            // The next short poll would end with the first of them that is over.
            Poll::Main | Poll::Side => SIDE_WAIT,
        };
        !is_crowded_out && order.left() <= rounded
    }
}

/// A stream that no longer waits misses nothing: its position moves only when it is handed something.
fn reply(order: Order, answer: Result<PartitionData, KafkaError>) {
    if order.reply.send(answer).is_err() {
        tracing::trace!(partition = %order.partition, "nobody waits for this part of an answer");
    }
}

fn is_worth_telling(data: &PartitionData) -> bool {
    data.error_code != 0 || has_records(data)
}

fn has_records(data: &PartitionData) -> bool {
    data.records
        .as_ref()
        .is_some_and(|records| !records.is_empty())
}

/// An answer, its parts found by name: brokers list them in any order.
struct Answer {
    by_partition: HashMap<TopicPartition, PartitionData>,
    /// Whether no partition brought anything.
    is_empty: bool,
    throttle: Duration,
}

impl Answer {
    fn new(response: FetchResponse) -> Self {
        let mut by_partition = HashMap::new();
        let mut is_empty = true;
        for topic in response.responses {
            let name: Arc<str> = topic.topic.as_str().into();
            for data in topic.partitions {
                is_empty &= !has_records(&data);
                let key = TopicPartition::new(Arc::clone(&name), data.partition_index);
                by_partition.insert(key, data);
            }
        }
        Self {
            by_partition,
            is_empty,
            throttle: Duration::from_millis(u64::try_from(response.throttle_time_ms).unwrap_or(0)),
        }
    }

    fn take(&mut self, partition: &TopicPartition) -> Option<PartitionData> {
        self.by_partition.remove(partition)
    }

    fn complain(&self, address: &str) {
        if let Some(partition) = self.by_partition.keys().next() {
            tracing::warn!(%partition, address, "the broker answered for a partition that was not asked for");
        }
    }
}

/// Topics and partitions in the order of their orders.
fn request(orders: &[Order], isolation: Isolation, wait: Duration) -> FetchRequest {
    let mut topics: Vec<FetchTopic> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut bytes = 0_usize;
    for order in orders {
        bytes = bytes.saturating_add(order.max_bytes);
        let place = *places.entry(&order.partition.topic).or_insert_with(|| {
            topics.push(FetchTopic::default().with_topic(topic_name(&order.partition.topic)));
            topics.len() - 1
        });
        if let Some(topic) = topics.get_mut(place) {
            topic.partitions.push(
                FetchPartition::default()
                    .with_partition(order.partition.partition)
                    .with_current_leader_epoch(order.leader_epoch)
                    .with_fetch_offset(order.from.value())
                    .with_partition_max_bytes(i32::try_from(order.max_bytes).unwrap_or(i32::MAX)),
            );
        }
    }
    let bytes = i32::try_from(bytes.min(ANSWER_BYTES_MAX)).unwrap_or(i32::MAX);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(1)
        .with_max_bytes(bytes)
        .with_isolation_level(isolation.level())
        // No fetch session: each request names its partitions.
        .with_session_epoch(-1)
        .with_topics(topics)
}
