//! The cluster as this program knows it: who leads and coordinates what, a pool of connections per broker, and the one retry loop.
//!
//! # Invariants
//! 1. Every operation ends within `kafka.request_timeout` plus what it waits on purpose, retries included.
//! 2. What is known about leaders and coordinators is forgotten as soon as an answer contradicts it.
//!
//! All that is asked here may be asked twice, as the loop does when an answer was lost. Most of it only reads, or says the same again.
//! Of what writes, an append carries a producer id and a sequence number, by which the leader, also a new one, knows it again and does not
//! write it twice; what happens to a transaction carries its producer's epoch, and the coordinator takes a second time for done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::access::Access;
use super::api::{
    CONCURRENT_TRANSACTIONS, Call, check_code, only, server_error, waits_for_replicas,
};
use super::connection::{BrokerVersions, Deadline, join_address};
use super::known::Known;
use super::look::Looks;
use super::pool::{Lane, Lent, Pools, lock};
use crate::kafka::{KafkaConfig, KafkaError};
use crate::retry::Backoff;
use crate::types::{Offset, TopicPartition};

/// First and longest ceiling of the waits between tries: a leader moves within seconds.
pub(super) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(1));

/// The same while a coordinator still writes the markers of the transaction before, which takes milliseconds.
const BACKOFF_BUSY: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(100));

/// Whose coordinator `FindCoordinator` is to find.
const KEY_TYPE_GROUP: i8 = 0;
const KEY_TYPE_TRANSACTION: i8 = 1;

/// A Kafka cluster. Cheap to clone; clones share connections and what is known.
#[derive(Debug, Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    access: Access,
    known: Mutex<Known>,
    pools: Pools,
    looks: SharedLooks,
}

/// Looks that tasks share which ask for the same at the same time.
#[derive(Debug, Default)]
pub(super) struct SharedLooks {
    /// For leaders, by topic.
    leaders: Looks<Arc<str>, Result<Arc<MetadataResponse>, KafkaError>>,
    /// For ids of topics, by name.
    pub(super) topic_ids: Looks<Arc<str>, Result<Option<Uuid>, KafkaError>>,
    /// For the bounds of logs, by the address of the broker: one that hangs keeps nobody from asking the others.
    bounds: Mutex<HashMap<Arc<str>, Arc<BoundsLooks>>>,
}

pub(super) type BoundsLooks = Looks<TopicPartition, (Offset, Offset)>;

impl SharedLooks {
    pub(super) fn bounds_at(&self, address: &Arc<str>) -> Arc<BoundsLooks> {
        Arc::clone(lock(&self.bounds).entry(Arc::clone(address)).or_default())
    }
}

/// Who is asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    /// Any broker.
    Any,
    /// The controller: with ZooKeeper it alone creates topics.
    Controller,
    /// The leader of a partition.
    Leader(&'a TopicPartition),
    /// The coordinator of a group.
    Coordinator(&'a str),
    /// The coordinator of a transactional id.
    TransactionCoordinator(&'a str),
}

impl Target<'_> {
    /// Whose coordinator is meant; only meaningful for coordinators.
    pub(super) const fn key_type(self) -> i8 {
        match self {
            Self::TransactionCoordinator(_) => KEY_TYPE_TRANSACTION,
            Self::Any | Self::Controller | Self::Leader(_) | Self::Coordinator(_) => KEY_TYPE_GROUP,
        }
    }
}

/// What a failed attempt means for the next.
#[derive(Debug)]
pub(super) enum Failure {
    /// Trying again is useless, or not ours to decide.
    Final(KafkaError),
    /// Another way may lead there.
    Passing(KafkaError),
}

impl Failure {
    pub(super) fn asking(error: KafkaError) -> Self {
        if error.is_transient() || error.server_code() == Some(CONCURRENT_TRANSACTIONS) {
            Self::Passing(error)
        } else {
            Self::Final(error)
        }
    }

    /// When no broker at all answers, or is trusted, or trusts us, there is nothing to learn from trying at once again.
    pub(super) fn routing(error: KafkaError) -> Self {
        match error {
            KafkaError::Unreachable { .. }
            | KafkaError::Tls { .. }
            | KafkaError::Credentials { .. } => Self::Final(error),
            other => Self::asking(other),
        }
    }
}

/// The broker that answers for a target.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) address: Arc<str>,
    /// −1 when there is none.
    pub(super) leader_epoch: i32,
}

/// What a request builder may need to know about the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// The version that was agreed on.
    pub(super) version: i16,
    /// The leader epoch that we know, −1 when there is none: a broker that knows a newer one refuses.
    pub(super) leader_epoch: i32,
}

impl Cluster {
    /// Describes a cluster; nothing is dialled before the first request.
    #[must_use]
    pub fn new(config: &KafkaConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                access: Access::new(config.clone()),
                known: Mutex::default(),
                pools: Pools::default(),
                looks: SharedLooks::default(),
            }),
        }
    }

    pub(super) fn config(&self) -> &KafkaConfig {
        &self.inner.access.config
    }

    /// The one loop that retries: finds the broker, asks, checks; on a passing failure forgets the way and starts over, until the
    /// deadline. When no broker at all can be reached it ends at once: whether to wait for a whole cluster is the caller's choice.
    ///
    /// # Cancel safety
    /// Safe: the connection in use is closed; the broker may still act on the request.
    pub(super) async fn ask<R: Call, T>(
        &self,
        target: Target<'_>,
        wait: Duration,
        build: impl Fn(Way) -> R,
        check: impl Fn(R::Response) -> Result<T, KafkaError>,
    ) -> Result<T, KafkaError> {
        let deadline = Deadline::within(
            self.inner
                .access
                .config
                .request_timeout
                .saturating_add(wait),
        );
        self.ask_until(deadline, target, wait, build, check).await
    }

    /// A deadline for what takes several requests.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::within(self.inner.access.config.request_timeout)
    }

    /// As [`ask`](Self::ask), with a deadline that more than one request may share.
    ///
    /// # Cancel safety
    /// As there.
    pub(super) async fn ask_until<R: Call, T>(
        &self,
        deadline: Deadline,
        target: Target<'_>,
        wait: Duration,
        build: impl Fn(Way) -> R,
        check: impl Fn(R::Response) -> Result<T, KafkaError>,
    ) -> Result<T, KafkaError> {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut backoff_busy = Backoff::new(BACKOFF_BUSY.0, BACKOFF_BUSY.1);
        loop {
            let answer = self.attempt(target, wait, deadline, &build).await;
            let error = match answer.and_then(|response| check(response).map_err(Failure::asking)) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error)) => error,
            };
            let delay = if error.server_code() == Some(CONCURRENT_TRANSACTIONS) {
                backoff_busy.next_delay()
            } else {
                self.forget(target);
                backoff.next_delay()
            };
            if Instant::now() + delay >= deadline.at {
                return Err(error);
            }
            tracing::debug!(%error, operation = R::OPERATION, "asking Kafka again");
            sleep(delay).await;
        }
    }

    async fn attempt<R: Call>(
        &self,
        target: Target<'_>,
        wait: Duration,
        deadline: Deadline,
        build: impl Fn(Way) -> R,
    ) -> Result<R::Response, Failure> {
        let Some(route) = self
            .route(target, deadline)
            .await
            .map_err(Failure::routing)?
        else {
            return self
                .ask_any(deadline, build)
                .await
                .map_err(Failure::routing);
        };
        let lane = if wait.is_zero() {
            Lane::Request
        } else {
            Lane::LongPoll
        };
        self.ask_at(&route.address, lane, deadline, |version| {
            build(Way {
                version,
                leader_epoch: route.leader_epoch,
            })
        })
        .await
        .map_err(Failure::asking)
    }

    /// Asks any broker that can be reached for the topics' metadata (`None`: of all topics), and learns from the answer.
    pub(super) async fn metadata(
        &self,
        topics: Option<&[&str]>,
        deadline: Deadline,
    ) -> Result<MetadataResponse, KafkaError> {
        let response = self.ask_any(deadline, |_| metadata_request(topics)).await?;
        self.known().learn(&response);
        Ok(response)
    }

    /// The versions that a broker speaks, any broker.
    pub(super) async fn versions(&self) -> Result<Arc<BrokerVersions>, KafkaError> {
        self.ask_any(self.deadline(), |_| metadata_request(Some(&[])))
            .await?;
        let candidates = self.known().candidates(&self.inner.access.config);
        let Some(address) = candidates.first() else {
            return Ok(Arc::default());
        };
        self.versions_at(address).await
    }

    /// The versions that this broker speaks.
    pub(super) async fn versions_at(
        &self,
        address: &Arc<str>,
    ) -> Result<Arc<BrokerVersions>, KafkaError> {
        let lent = self.lend(address, Lane::Request, self.deadline()).await?;
        let versions = Arc::clone(lent.versions());
        lent.give_back();
        Ok(versions)
    }

    /// Asks the first broker that answers: the last good one, then those known, then `kafka.brokers`. Each gets an even part of the
    /// time that is left, so that one that hangs leaves time for the next.
    async fn ask_any<R: Call>(
        &self,
        deadline: Deadline,
        build: impl Fn(Way) -> R,
    ) -> Result<R::Response, KafkaError> {
        let candidates = self.known().candidates(&self.inner.access.config);
        let mut left = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
        let mut details = Vec::new();
        for address in &candidates {
            let share = deadline.at.saturating_duration_since(Instant::now()) / left.max(1);
            left = left.saturating_sub(1);
            let way = |version| {
                build(Way {
                    version,
                    leader_epoch: -1,
                })
            };
            let share = deadline.at_most(share, "this broker's part of kafka.request_timeout");
            let asked = self.ask_at(address, Lane::Request, share, way);
            match asked.await {
                Ok(response) => {
                    self.known().set_last_good(Some(Arc::clone(address)));
                    return Ok(response);
                }
                Err(KafkaError::Unreachable { detail, .. }) => {
                    details.push(format!("{address}: {detail}"));
                }
                Err(error @ KafkaError::Disconnected { .. }) => details.push(error.to_string()),
                Err(error @ KafkaError::Timeout { .. }) if left > 0 => {
                    details.push(format!("{address}: {error}"));
                }
                // The certificate of one broker says nothing about the next.
                Err(error @ KafkaError::Tls { .. }) if left > 0 => details.push(error.to_string()),
                Err(error) => {
                    self.known().set_last_good(None);
                    return Err(error);
                }
            }
        }
        self.known().set_last_good(None);
        Err(KafkaError::Unreachable {
            brokers: self.inner.access.config.brokers.clone(),
            detail: if details.is_empty() {
                "the list is empty".to_owned()
            } else {
                details.join("; ")
            },
        })
    }

    /// Asks one broker. A connection that lay idle may be closed while the request is on its way: then the next one is taken, in the
    /// end a new one. Writes have a lane of their own, whatever `lane` says.
    pub(super) async fn ask_at<R: Call>(
        &self,
        address: &Arc<str>,
        lane: Lane,
        deadline: Deadline,
        build: impl Fn(i16) -> R,
    ) -> Result<R::Response, KafkaError> {
        let lane = if waits_for_replicas::<R>() {
            Lane::Write
        } else {
            lane
        };
        loop {
            let mut lent = self.lend(address, lane, deadline).await?;
            let was_idle = lent.was_idle();
            let version = lent.versions().choose::<R>()?;
            match lent.exchange(&build(version), version, deadline).await {
                Ok(response) => {
                    lent.give_back();
                    return Ok(response);
                }
                Err(KafkaError::Disconnected { .. }) if was_idle => {}
                Err(KafkaError::Disconnected { operation, detail }) => {
                    return Err(KafkaError::Disconnected {
                        operation,
                        detail: format!(
                            "{detail} (on a new connection: does kafka.security_protocol fit this listener?)"
                        ),
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whom to ask, as far as it is known; no broker is asked about it.
    pub(super) fn known_route(&self, target: Target<'_>) -> Option<Route> {
        self.known().route(target)
    }

    /// Finds out whom to ask; `None` stands for any broker.
    pub(super) async fn route(
        &self,
        target: Target<'_>,
        deadline: Deadline,
    ) -> Result<Option<Route>, KafkaError> {
        let route = self.known().route(target);
        if route.is_some() {
            return Ok(route);
        }
        match target {
            Target::Any => Ok(None),
            Target::Controller => {
                self.metadata(Some(&[]), deadline).await?;
                let route = self.known().route(target);
                route
                    .map(Some)
                    .ok_or_else(|| server_error("Metadata", ResponseError::NotController, 41, None))
            }
            Target::Leader(partition) => {
                let response = self.leaders_of(&partition.topic, deadline).await?;
                check_partition(&response, partition)?;
                let route = self.known().route(target);
                route.map(Some).ok_or_else(|| leaderless(partition))
            }
            Target::Coordinator(key) | Target::TransactionCoordinator(key) => {
                let key_type = target.key_type();
                let answer = self
                    .ask_any(deadline, |way| {
                        find_coordinator_request(key_type, key, way.version)
                    })
                    .await?;
                let address = check_coordinator(key, answer)?;
                self.known().learn_coordinator(target, &address);
                Ok(Some(Route {
                    address,
                    leader_epoch: -1,
                }))
            }
        }
    }

    /// Metadata with a topic in it, of which all partitions that have no leader now learn theirs. Topics that are asked for at the same time
    /// share a request: each has an error of its own in the answer.
    async fn leaders_of(
        &self,
        topic: &Arc<str>,
        deadline: Deadline,
    ) -> Result<Arc<MetadataResponse>, KafkaError> {
        let look = async |topics: Vec<Arc<str>>| {
            let names: Vec<_> = topics.iter().map(|topic| &**topic).collect();
            // Not what is left to whoever asks first: the others may have more.
            let response = self.metadata(Some(&names), self.deadline()).await;
            let response = response.map(Arc::new);
            let told = |topic| (topic, response.clone());
            topics.into_iter().map(told).collect()
        };
        let late = || KafkaError::Timeout {
            operation: "Metadata",
            after: deadline.after,
        };
        let asked = self.inner.looks.leaders.ask(Arc::clone(topic), look);
        let found = timeout_at(deadline.at, asked).await;
        found.ok().flatten().unwrap_or_else(|| Err(late()))
    }

    pub(super) fn looks(&self) -> &SharedLooks {
        &self.inner.looks
    }

    pub(super) fn forget(&self, target: Target<'_>) {
        self.known().forget(target);
    }

    /// Whether brokers say of the partition that nobody leads it.
    pub(super) fn is_leaderless(&self, partition: &TopicPartition) -> bool {
        self.known().is_leaderless(partition)
    }

    async fn lend(
        &self,
        address: &Arc<str>,
        lane: Lane,
        deadline: Deadline,
    ) -> Result<Lent, KafkaError> {
        let inner = &self.inner;
        inner
            .pools
            .lend(address, lane, &inner.access, deadline)
            .await
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.inner.known)
    }
}

pub(super) fn metadata_request(topics: Option<&[&str]>) -> MetadataRequest {
    let topics = topics.map(|names| {
        names
            .iter()
            .map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name))))
            .collect()
    });
    MetadataRequest::default()
        .with_topics(topics)
        .with_allow_auto_topic_creation(false)
}

/// What brokers say of a partition without a leader.
pub(super) fn leaderless(partition: &TopicPartition) -> KafkaError {
    let operation = format!("Metadata of {partition}");
    server_error(operation, ResponseError::LeaderNotAvailable, 5, None)
}

/// A topic's name for a request.
pub(super) fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// Tells a partition that does not exist from one without a leader. The answer may be about other topics too.
fn check_partition(
    response: &MetadataResponse,
    partition: &TopicPartition,
) -> Result<(), KafkaError> {
    let name = &*partition.topic;
    let named = response.topics.iter().filter(|topic| {
        let found = topic.name.as_ref();
        found.is_some_and(|found| found.as_str() == name)
    });
    let topic = only("Metadata", name, named.collect(), |_| true)?;
    check_topic(name, topic.error_code)?;
    let found = topic
        .partitions
        .iter()
        .find(|found| found.partition_index == partition.partition);
    match found {
        None => Err(KafkaError::UnknownPartition {
            partition: partition.clone(),
        }),
        // ReplicaNotAvailable (9) speaks of a follower; the leader serves all the same.
        Some(found) if found.error_code == 9 => Ok(()),
        Some(found) => check_code(format!("Metadata of {partition}"), found.error_code, None),
    }
}

/// A topic's error code in `Metadata`; that it does not exist is an error of its own.
pub(super) fn check_topic(name: &str, code: i16) -> Result<(), KafkaError> {
    match ResponseError::try_from_code(code) {
        Some(ResponseError::UnknownTopicOrPartition) => Err(KafkaError::UnknownTopic {
            topic: name.to_owned(),
        }),
        _ => check_code(format!("Metadata of {name}"), code, None),
    }
}

fn find_coordinator_request(key_type: i8, key: &str, version: i16) -> FindCoordinatorRequest {
    let key = StrBytes::from_string(key.to_owned());
    let request = FindCoordinatorRequest::default().with_key_type(key_type);
    if version >= 4 {
        request.with_coordinator_keys(vec![key])
    } else {
        request.with_key(key)
    }
}

fn check_coordinator(key: &str, response: FindCoordinatorResponse) -> Result<Arc<str>, KafkaError> {
    let operation = || format!("FindCoordinator of {key}");
    check_code(
        operation(),
        response.error_code,
        response.error_message.as_ref(),
    )?;
    // Up to version 3 the one coordinator stands in the answer itself.
    if response.coordinators.is_empty() && !response.host.is_empty() {
        return Ok(join_address(&response.host, response.port));
    }
    let found = only("FindCoordinator", key, response.coordinators, |found| {
        found.key.as_str() == key
    })?;
    check_code(operation(), found.error_code, found.error_message.as_ref())?;
    Ok(join_address(&found.host, found.port))
}

#[cfg(test)]
mod tests;
