//! The handle: starting, stopping, and looking into the logs without a client.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::batch::Batch;
use super::config::BrokerConfig;
use super::faults::Faults;
use super::groups::GroupView;
use super::listener::Listener;
use super::log::PartitionLog;
use super::shared::Shared;
use super::state::{NewTopic, Partition, Refusal};
use super::traffic::Traffic;
use super::transactions;
use crate::types::{Offset, Record, TopicPartition};

#[path = "handle/transactions.rs"]
mod of_transactions;

/// A running broker. Clones are the same broker; its tasks end when [`shutdown`](Self::shutdown) is called or the last clone is
/// dropped.
#[derive(Debug, Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    /// Serialises stops and starts; `None` while stopped.
    listener: Mutex<Option<Listener>>,
    /// What runs whether it listens or not.
    timers: TaskTracker,
    stop: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Broker {
    /// Starts a broker and its listener.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(config: BrokerConfig) -> io::Result<Self> {
        let socket = Listener::bind(config.listen).await?;
        let shared = Arc::new(Shared::new(config, socket.local_addr()?));
        let stop = CancellationToken::new();
        let listener = Listener::start(socket, Arc::clone(&shared), &stop);
        let timers = TaskTracker::new();
        timers.spawn(transactions::run_timers(Arc::clone(&shared), stop.clone()));
        timers.close();
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                listener: Mutex::new(Some(listener)),
                timers,
                stop,
            }),
        })
    }

    /// Where it listens, also while it is stopped.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.shared.address
    }

    /// `host:port` for a client's bootstrap servers.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        let (host, port) = self.inner.shared.advertised();
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    /// The hooks for faults.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.inner.shared.faults
    }

    /// What clients have asked for since the start.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.inner.shared.traffic.picture()
    }

    /// Bytes in the logs of a topic, as they were appended: packed, with markers. `None` when there is no such topic.
    #[must_use]
    pub fn log_bytes(&self, topic: &str) -> Option<usize> {
        let state = self.inner.shared.state();
        let partitions = state.topics.get(topic)?.partitions.iter();
        Some(partitions.map(|partition| partition.log.bytes()).sum())
    }

    /// Closes the port and all connections; topics, records and commits stay. Does nothing when stopped already.
    ///
    /// # Cancel safety
    /// Safe: the connections are cut in any case.
    pub async fn stop_listener(&self) {
        let listener = self.inner.listener.lock().await.take();
        if let Some(listener) = listener {
            listener.stop().await;
        }
    }

    /// Listens again on the same port. Does nothing when listening already.
    ///
    /// # Errors
    /// When the port was taken by somebody else meanwhile.
    ///
    /// # Cancel safety
    /// Safe: it listens or it does not.
    pub async fn start_listener(&self) -> io::Result<()> {
        let mut listener = self.inner.listener.lock().await;
        if listener.is_none() {
            let shared = Arc::clone(&self.inner.shared);
            let socket = Listener::bind(shared.address).await?;
            *listener = Some(Listener::start(socket, shared, &self.inner.stop));
        }
        Ok(())
    }

    /// Ends the broker; returns when its last task has ended.
    ///
    /// # Cancel safety
    /// Safe: the tasks end in any case.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.shared.faults.clear();
        self.stop_listener().await;
        self.inner.timers.wait().await;
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// What Kafka would refuse.
    pub fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Result<(), Refusal> {
        let configs = configs.iter().map(|(name, value)| (*name, Some(*value)));
        let topic = NewTopic {
            name,
            partitions: usize::try_from(partitions).unwrap_or(0),
            configs: configs.collect(),
        };
        let shared = &self.inner.shared;
        shared.change(|state| state.create_topic(&topic)).map(drop)
    }

    /// Deletes a topic with its records and commits.
    ///
    /// # Errors
    /// When there is no such topic.
    pub fn delete_topic(&self, name: &str) -> Result<(), Refusal> {
        let shared = &self.inner.shared;
        shared.change(|state| state.delete_topic(name)).map(drop)
    }

    /// Names of all topics.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        self.inner.shared.state().topics.keys().cloned().collect()
    }

    /// How many partitions a topic has.
    #[must_use]
    pub fn partitions(&self, topic: &str) -> Option<usize> {
        let state = self.inner.shared.state();
        state.topics.get(topic).map(|topic| topic.partitions.len())
    }

    /// The id of a topic; another one after it was deleted and created again.
    #[must_use]
    pub fn topic_id(&self, topic: &str) -> Option<Uuid> {
        let state = self.inner.shared.state();
        state.topics.get(topic).map(|topic| topic.id)
    }

    /// The value of a topic's configuration, set or default.
    #[must_use]
    pub fn topic_config(&self, topic: &str, name: &str) -> Option<String> {
        let state = self.inner.shared.state();
        let (value, _) = state.topics.get(topic)?.config.lookup(name)?;
        Some(value.to_owned())
    }

    /// Sets a topic's configuration, as an operator would on a running broker.
    ///
    /// # Errors
    /// When there is no such topic or configuration, or the value is not one of it.
    pub fn set_topic_config(&self, topic: &str, name: &str, value: &str) -> Result<(), Refusal> {
        self.inner.shared.change(|state| {
            let topic = state
                .topics
                .get_mut(topic)
                .ok_or_else(Refusal::unknown_partition)?;
            topic
                .config
                .set(name, Some(value))
                .map_err(|message| Refusal::new(ResponseError::InvalidConfig, message))
        })
    }

    /// Appends records as one batch without a client and without a producer's checks; answers the first offset.
    ///
    /// # Errors
    /// When there is no such partition or no room, or there are no records.
    pub fn append(
        &self,
        topic: &str,
        partition: i32,
        records: Vec<Record>,
    ) -> Result<Offset, Refusal> {
        if records.is_empty() {
            let message = "an append needs a record";
            return Err(Refusal::new(ResponseError::InvalidRecord, message));
        }
        self.append_batch(topic, partition, Batch::of_records(&records))
    }

    /// Appends the marker that ends a transaction of producer 1, as a coordinator would; answers its offset. A marker is not a record:
    /// consumers never see it, yet it takes an offset. Producer 1 is no client's: only [`append_raw`](Self::append_raw) writes its
    /// transactions.
    ///
    /// # Errors
    /// When there is no such partition or no room.
    pub fn append_marker(
        &self,
        topic: &str,
        partition: i32,
        commit: bool,
    ) -> Result<Offset, Refusal> {
        let marker = Batch::marker(commit, 1, 0, super::clock::now_ms());
        self.append_batch(topic, partition, marker)
    }

    /// Appends one batch as it is, such as one in a codec that the client under test cannot read; answers its first offset.
    ///
    /// # Errors
    /// When the bytes are not one batch of magic 2, or there is no such partition or no room.
    pub fn append_raw(
        &self,
        topic: &str,
        partition: i32,
        mut batch: Bytes,
    ) -> Result<Offset, Refusal> {
        let batch = Batch::split_from(&mut batch)
            .map_err(|error| Refusal::new(ResponseError::CorruptMessage, error.to_string()))?;
        self.append_batch(topic, partition, batch)
    }

    fn append_batch(&self, topic: &str, partition: i32, batch: Batch) -> Result<Offset, Refusal> {
        let shared = &self.inner.shared;
        let (base, _) = shared.change(|state| state.append(topic, partition, batch))?;
        Ok(Offset::new(base))
    }

    /// All records of a topic, by partition and offset, those of open and aborted transactions too; without markers, and without batches
    /// in an unknown codec.
    #[must_use]
    pub fn records(&self, topic: &str) -> Vec<(TopicPartition, Offset, Record)> {
        self.collect_records(topic, PartitionLog::records)
    }

    fn collect_records(
        &self,
        topic: &str,
        read: impl Fn(&PartitionLog) -> Vec<(Offset, Record)>,
    ) -> Vec<(TopicPartition, Offset, Record)> {
        let state = self.inner.shared.state();
        let Some(found) = state.topics.get(topic) else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for (index, partition) in (0..).zip(&found.partitions) {
            let place = TopicPartition::new(topic, index);
            let records = read(&partition.log).into_iter();
            all.extend(records.map(|(offset, record)| (place.clone(), offset, record)));
        }
        all
    }

    fn look<T>(
        &self,
        topic: &str,
        partition: i32,
        look: impl FnOnce(&Partition) -> T,
    ) -> Option<T> {
        let state = self.inner.shared.state();
        state.partition(topic, partition).map(look)
    }

    fn touch<T>(
        &self,
        topic: &str,
        partition: i32,
        touch: impl FnOnce(&mut Partition) -> T,
    ) -> Result<T, Refusal> {
        self.inner.shared.change(|state| {
            let partition = state.partition_mut(topic, partition);
            partition.map(touch).ok_or_else(Refusal::unknown_partition)
        })
    }

    /// The high watermark (exclusive).
    #[must_use]
    pub fn high_watermark(&self, topic: &str, partition: i32) -> Option<Offset> {
        self.look(topic, partition, |partition| {
            Offset::new(partition.log.end())
        })
    }

    /// The log start offset.
    #[must_use]
    pub fn log_start(&self, topic: &str, partition: i32) -> Option<Offset> {
        self.look(topic, partition, |partition| {
            Offset::new(partition.log.start())
        })
    }

    /// The leader epoch.
    #[must_use]
    pub fn leader_epoch(&self, topic: &str, partition: i32) -> Option<i32> {
        self.look(topic, partition, |partition| partition.leader_epoch)
    }

    /// The offset that a group has committed: the next one to read.
    #[must_use]
    pub fn committed_offset(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        let state = self.inner.shared.state();
        let committed = state.groups.find(group)?.committed(topic, partition)?;
        Some(committed.offset)
    }

    /// A consumer group as it is now; `None` when there is none.
    #[must_use]
    pub fn group(&self, group: &str) -> Option<GroupView> {
        let state = self.inner.shared.state();
        Some(state.groups.find(group)?.membership.view())
    }

    /// Waits until a group is as `wanted`, and answers it; the deadline is the caller's.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn wait_for_group(
        &self,
        group: &str,
        wanted: impl Fn(&GroupView) -> bool,
    ) -> GroupView {
        let mut changes = self.inner.shared.group_changes();
        loop {
            if let Some(view) = self.group(group).filter(|view| wanted(view)) {
                return view;
            }
            // The sender lives in the broker that `self` holds, so the wait cannot fail.
            if changes.changed().await.is_err() {
                tracing::debug!("a broker ended while one of its groups was waited for");
            }
        }
    }

    /// Raises the leader epoch, as an election does; answers the new one. Clients that believe in the old one are fenced.
    ///
    /// # Errors
    /// When there is no such partition.
    pub fn bump_leader_epoch(&self, topic: &str, partition: i32) -> Result<i32, Refusal> {
        self.touch(topic, partition, |partition| {
            partition.leader_epoch += 1;
            partition.leader_epoch
        })
    }

    /// Raises the leader epoch as [`bump_leader_epoch`](Self::bump_leader_epoch) does; moreover a client gets
    /// `NOT_LEADER_OR_FOLLOWER` for the partition until it has asked for the topic's metadata. Clients are told apart by their client
    /// id.
    ///
    /// # Errors
    /// When there is no such partition.
    pub fn move_leader(&self, topic: &str, partition: i32) -> Result<i32, Refusal> {
        self.touch(topic, partition, |partition| {
            partition.election.begin();
            partition.leader_epoch += 1;
            partition.leader_epoch
        })
    }

    /// Moves the log start offset up to `before`, as retention does, whatever the topic's policy.
    ///
    /// # Errors
    /// When there is no such partition.
    pub fn delete_records(
        &self,
        topic: &str,
        partition: i32,
        before: Offset,
    ) -> Result<(), Refusal> {
        self.touch(topic, partition, |partition| {
            partition.log.delete_before(before.value());
        })
    }

    /// Removes the records in a range (end exclusive) and leaves their offsets unused, as compaction does.
    ///
    /// # Errors
    /// When there is no such partition.
    pub fn punch_gap(
        &self,
        topic: &str,
        partition: i32,
        offsets: Range<i64>,
    ) -> Result<(), Refusal> {
        self.touch(topic, partition, |partition| {
            partition.log.punch_gap(&offsets)
        })
    }

    /// Compacts a partition: of each key the last record stays; the last batch is not touched.
    ///
    /// # Errors
    /// When there is no such partition.
    pub fn compact(&self, topic: &str, partition: i32) -> Result<(), Refusal> {
        self.touch(topic, partition, |partition| partition.log.compact())
    }
}
