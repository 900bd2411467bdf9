//! Members of one group on the real coordinator: whatever they go through, no partition is held by two that both believe in it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use kafka_llm_processor::kafka::wire::{
    Cluster, GroupMember, MembershipConfig, MembershipError, RefusedCommit,
};
use kafka_llm_processor::kafka::{Assigned, Membership as _};
use kafka_llm_processor::types::{Offset, TopicPartition};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{config, topic};
use crate::support::eventually;
use crate::support::kafka::{Broker, tool, tools};

/// The plain listener of this suite's own broker.
const PORT: u16 = 24000;
const PARTITIONS: i32 = 7;
/// The shortest that brokers take by default.
const SESSION: Duration = Duration::from_secs(6);
/// Two session timeouts and what a busy machine adds.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);

/// Which instance works on a partition, and how to ask whether it still believes in it.
type Holder = (u64, Arc<GroupMember>, u64);

/// What all instances work on; it sees what no instance can see.
#[derive(Default)]
struct Ledger {
    holders: Mutex<BTreeMap<TopicPartition, Vec<Holder>>>,
    changed: watch::Sender<()>,
}

impl Ledger {
    fn take(&self, partition: &TopicPartition, (id, member, session): Holder) {
        let mut holders = self.holders.lock().expect("the ledger");
        let holders = holders.entry(partition.clone()).or_default();
        for (other, their, their_session) in holders.iter() {
            let in_time = their.valid_until().is_some_and(|at| Instant::now() < at);
            let is_current = their.assigned().borrow().session == *their_session;
            assert!(
                *other == id || !(in_time && is_current),
                "{partition} is begun by instance {id} while instance {other} works on it"
            );
        }
        holders.push((id, member, session));
        self.changed.send_replace(());
    }

    fn release(&self, partition: &TopicPartition, id: u64) {
        let mut holders = self.holders.lock().expect("the ledger");
        if let Some(holders) = holders.get_mut(partition) {
            holders.retain(|(other, _, _)| *other != id);
        }
        self.changed.send_replace(());
    }

    fn release_all(&self, id: u64) {
        let mut holders = self.holders.lock().expect("the ledger");
        for holders in holders.values_mut() {
            holders.retain(|(other, _, _)| *other != id);
        }
        self.changed.send_replace(());
    }

    fn held_by(&self, id: u64) -> BTreeSet<TopicPartition> {
        let holders = self.holders.lock().expect("the ledger");
        let held = holders
            .iter()
            .filter(|(_, all)| all.iter().any(|found| found.0 == id));
        held.map(|(partition, _)| partition.clone()).collect()
    }

    /// Waits until these instances hold all partitions, evenly, and nobody holds one twice.
    async fn is_shared_by(&self, instances: &[&Instance], partitions: i32) {
        let mut changed = self.changed.subscribe();
        let settled = async {
            loop {
                let held: Vec<_> = instances.iter().map(|one| self.held_by(one.id)).collect();
                let sizes: Vec<_> = held.iter().map(BTreeSet::len).collect();
                let all: BTreeSet<_> = held.iter().flatten().collect();
                let expected = usize::try_from(partitions).expect("a count");
                let (most, fewest) = (sizes.iter().max(), sizes.iter().min());
                let is_even = most
                    .zip(fewest)
                    .is_some_and(|(most, fewest)| most - fewest <= 1);
                if all.len() == expected && sizes.iter().sum::<usize>() == expected && is_even {
                    return;
                }
                changed.changed().await.expect("the ledger lives on");
            }
        };
        let outcome = timeout(SETTLES_WITHIN, settled).await;
        let held: Vec<_> = instances.iter().map(|one| self.held_by(one.id)).collect();
        assert!(outcome.is_ok(), "not shared by all in time: {held:?}");
    }
}

/// A process that works on what its membership gives it.
struct Instance {
    id: u64,
    member: Arc<GroupMember>,
    stop: CancellationToken,
    /// While it is true the membership's task is not polled.
    frozen: watch::Sender<bool>,
    /// While it is true nothing that is to be given up gets finished.
    busy: watch::Sender<bool>,
    run: JoinHandle<Result<(), MembershipError>>,
    work: JoinSet<()>,
    ledger: Arc<Ledger>,
}

impl Instance {
    fn start(ledger: &Arc<Ledger>, group: &str, instance_id: Option<&str>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let config_of_group = MembershipConfig {
            instance_id: instance_id.map(str::to_owned),
            session_timeout: SESSION,
            heartbeat_interval: Duration::from_millis(500),
            ..MembershipConfig::new(group)
        };
        // A cluster of its own, as a process has.
        let cluster = Cluster::new(&config(PORT));
        let topics = vec![(group.to_owned(), PARTITIONS)];
        let member = Arc::new(GroupMember::new(cluster, config_of_group, topics));
        let stop = CancellationToken::new();
        let (frozen, busy) = (watch::Sender::new(false), watch::Sender::new(false));
        let run = tokio::spawn(freezable(
            Arc::clone(&member).run(stop.clone()),
            frozen.subscribe(),
        ));
        let mut work = JoinSet::new();
        work.spawn(work_on(
            id,
            Arc::clone(&member),
            Arc::clone(ledger),
            busy.subscribe(),
        ));
        Self {
            id,
            member,
            stop,
            frozen,
            busy,
            run,
            work,
            ledger: Arc::clone(ledger),
        }
    }

    fn generation(&self) -> i32 {
        self.member.assigned().borrow().generation
    }

    fn held(&self) -> BTreeSet<TopicPartition> {
        self.ledger.held_by(self.id)
    }

    async fn sees(&self, what: impl FnMut(&Assigned) -> bool) -> Assigned {
        let mut assigned = self.member.assigned();
        let found = timeout(SETTLES_WITHIN, assigned.wait_for(what)).await;
        found
            .expect("it comes in time")
            .expect("the member lives")
            .clone()
    }

    /// Ends as a process does that is asked to: the work first, then the membership.
    async fn end(&mut self) {
        self.work.shutdown().await;
        self.ledger.release_all(self.id);
        assert!(self.member.set_held(BTreeSet::new()).is_empty());
        self.stop.cancel();
        let ended = timeout(SETTLES_WITHIN, &mut self.run).await;
        ended
            .expect("in time")
            .expect("no panic")
            .expect("in order");
    }

    /// Ends as `kill -9` does: nobody is told.
    async fn die(&mut self) {
        self.run.abort();
        self.work.shutdown().await;
        self.ledger.release_all(self.id);
    }

    /// A violated promise is found by the work itself: this hands it on.
    fn check(&mut self) {
        if let Some(ended) = self.work.try_join_next() {
            ended.expect("the work goes on without a double owner");
        }
    }
}

/// Polls the inner future only while nothing freezes it.
async fn freezable<T>(inner: impl Future<Output = T>, mut frozen: watch::Receiver<bool>) -> T {
    let mut inner = pin!(inner);
    loop {
        let thawed = frozen.wait_for(|frozen| !*frozen).await;
        drop(thawed.expect("the instance lives"));
        let mut freezes = frozen.clone();
        let mut freeze = pin!(freezes.wait_for(|frozen| *frozen));
        let outcome = poll_fn(|context| {
            if freeze.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            inner.as_mut().poll(context).map(Some)
        });
        if let Some(outcome) = outcome.await {
            return outcome;
        }
    }
}

async fn work_on(
    id: u64,
    member: Arc<GroupMember>,
    ledger: Arc<Ledger>,
    mut busy: watch::Receiver<bool>,
) {
    let mut assigned = member.assigned();
    let mut held: BTreeSet<TopicPartition> = BTreeSet::new();
    let mut session = 0;
    loop {
        let now = assigned.borrow_and_update().clone();
        let is_busy = *busy.borrow_and_update();
        if now.session != session {
            session = now.session;
            for partition in std::mem::take(&mut held) {
                ledger.release(&partition, id);
            }
        }
        let finished =
            |partition: &&TopicPartition| !is_busy && !now.partitions.contains(*partition);
        let done: Vec<_> = held.iter().filter(finished).cloned().collect();
        for partition in done {
            ledger.release(&partition, id);
            held.remove(&partition);
        }
        let wanted: BTreeSet<_> = held.union(&now.partitions).cloned().collect();
        let refused = member.set_held(wanted.clone());
        for partition in wanted.difference(&held.clone()) {
            if !refused.contains(partition) {
                ledger.take(partition, (id, Arc::clone(&member), session));
                held.insert(partition.clone());
            }
        }
        let changed = tokio::select! {
            changed = assigned.changed() => changed,
            changed = busy.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn create(cluster: &Cluster, group: &str) {
    let created = cluster.create_topic(&topic(group, PARTITIONS, &[])).await;
    created.expect("created");
}

#[tokio::test]
async fn members_share_partitions_on_the_real_coordinator() {
    let Some(tools) = tools() else {
        return;
    };
    let _broker = Broker::start(&tools, PORT).await;
    let cluster = Cluster::new(&config(PORT));
    let started = Instant::now();
    tokio::join!(
        members_come_and_go(&cluster, &tools),
        one_that_dies_or_freezes_is_counted_out(&cluster),
        static_members_restart_without_a_rebalance(&cluster),
        another_topic_is_asked_for_and_the_old_one_let_go(&cluster),
    );
    eprintln!("all scenarios side by side: {:?}", started.elapsed());
}

async fn members_come_and_go(cluster: &Cluster, tools: &Path) {
    create(cluster, "come-and-go").await;
    let ledger = Arc::new(Ledger::default());
    let mut first = Instance::start(&ledger, "come-and-go", None);
    ledger.is_shared_by(&[&first], PARTITIONS).await;
    assert!(first.member.confirm().await.expect("asked"));

    // A document that takes long keeps its partition; the newcomer gets its part when it is done, and not before.
    first.busy.send_replace(true);
    let mut second = Instance::start(&ledger, "come-and-go", None);
    let waiting = second.sees(|assigned| assigned.generation >= 0).await;
    assert!(waiting.partitions.is_empty(), "all is still worked on");
    let wanted = first.sees(|assigned| assigned.partitions.len() == 4).await;
    assert_eq!(first.held().len(), 7, "it finishes what it has begun");
    assert_eq!(wanted.session, 0);
    assert!(first.member.confirm().await.expect("asked"));
    assert!(second.held().is_empty());
    first.busy.send_replace(false);
    ledger.is_shared_by(&[&first, &second], PARTITIONS).await;
    assert_eq!(first.held(), wanted.partitions, "it keeps the rest");

    let mut third = Instance::start(&ledger, "come-and-go", None);
    ledger
        .is_shared_by(&[&first, &second, &third], PARTITIONS)
        .await;

    let mine = first.held().into_iter().next().expect("a partition");
    let commit = [(mine, Offset::new(0))];
    eventually("a member commits", SETTLES_WITHIN, async || {
        let identity = first.member.identity().expect("a member");
        let committed = cluster.commit_group_offsets("come-and-go", Some(&identity), &commit);
        let refused = committed.await.expect("asked");
        let passes = |one: &RefusedCommit| one.is_between_generations();
        assert!(refused.iter().all(passes), "{refused:?}");
        refused.is_empty().then_some(())
    })
    .await;
    let committed = cluster.commit_group_offsets("come-and-go", None, &commit);
    let refused = committed.await.expect("asked");
    assert_eq!(refused.len(), 1, "a stranger commits nothing");

    let server = format!("127.0.0.1:{PORT}");
    #[rustfmt::skip]
    let arguments = [
        "kafka-consumer-groups", "--bootstrap-server", &server, "--describe", "--group", "come-and-go", "--members", "--verbose",
    ];
    let told = tool(tools, &arguments).await;
    for instance in [&first, &second, &third] {
        let name = instance.member.identity().expect("a member").member_id;
        let line = told.lines().find(|line| line.contains(&name));
        let line = line.unwrap_or_else(|| panic!("{name} is missing: {told}"));
        let held = instance.held();
        let indexes: Vec<_> = held
            .iter()
            .map(|found| found.partition.to_string())
            .collect();
        let shown = indexes.join(",");
        assert!(line.contains(&shown), "{shown} is not in: {line}");
    }

    // Growth is dealt by the leader, whichever that is.
    for instance in [&first, &second, &third] {
        let grown = vec![("come-and-go".to_owned(), PARTITIONS + 3)];
        instance.member.set_topics(grown);
    }
    ledger
        .is_shared_by(&[&first, &second, &third], PARTITIONS + 3)
        .await;

    let kept = [first.held(), third.held()];
    let left_at = Instant::now();
    second.check();
    second.end().await;
    ledger.is_shared_by(&[&first, &third], PARTITIONS + 3).await;
    assert!(
        left_at.elapsed() < SESSION,
        "nobody waits for one that left"
    );
    assert!(kept[0].is_subset(&first.held()) && kept[1].is_subset(&third.held()));
    for instance in [&mut first, &mut third] {
        instance.check();
        assert_eq!(instance.member.assigned().borrow().session, 0);
    }
    first.end().await;
    third.end().await;
}

async fn one_that_dies_or_freezes_is_counted_out(cluster: &Cluster) {
    create(cluster, "dies").await;
    let ledger = Arc::new(Ledger::default());
    let mut first = Instance::start(&ledger, "dies", None);
    let mut second = Instance::start(&ledger, "dies", None);
    let mut third = Instance::start(&ledger, "dies", None);
    ledger
        .is_shared_by(&[&first, &second, &third], PARTITIONS)
        .await;
    second.die().await;
    ledger.is_shared_by(&[&first, &third], PARTITIONS).await;

    let until = third.member.valid_until().expect("a member");
    third.frozen.send_replace(true);
    // It still works on its part, which the other gets only when its time is over; the ledger's check would tell.
    let before = first.held();
    assert_eq!(third.member.assigned().borrow().session, 0);
    let all = first.sees(|assigned| assigned.partitions.len() == 7).await;
    assert!(Instant::now() >= until, "not before its time");
    assert!(before.is_subset(&all.partitions));
    assert_eq!(third.member.assigned().borrow().session, 0, "it sleeps");
    assert!(!third.member.confirm().await.expect("asked"));
    third.frozen.send_replace(false);
    third.sees(|assigned| assigned.session == 1).await;
    ledger.is_shared_by(&[&first, &third], PARTITIONS).await;
    for instance in [&mut first, &mut third] {
        instance.check();
    }
    assert_eq!(first.member.assigned().borrow().session, 0);
    first.end().await;
    third.end().await;
}

/// The generation that both are in: what each has may be dealt a generation before the last one.
async fn settled(one: &Instance, two: &Instance) -> i32 {
    eventually("both are in one generation", SETTLES_WITHIN, async || {
        (one.generation() == two.generation()).then(|| one.generation())
    })
    .await
}

async fn static_members_restart_without_a_rebalance(cluster: &Cluster) {
    create(cluster, "static").await;
    let ledger = Arc::new(Ledger::default());
    let mut one = Instance::start(&ledger, "static", Some("one"));
    let mut two = Instance::start(&ledger, "static", Some("two"));
    ledger.is_shared_by(&[&one, &two], PARTITIONS).await;
    let generation = settled(&one, &two).await;

    // Whichever of them leads: both restart, in an orderly way and by force.
    for is_orderly in [true, false] {
        for (name, instance) in [("one", &mut one), ("two", &mut two)] {
            let held = instance.held();
            if is_orderly {
                instance.end().await;
            } else {
                instance.die().await;
            }
            *instance = Instance::start(&ledger, "static", Some(name));
            let back = instance.sees(|assigned| assigned.generation >= 0).await;
            assert_eq!(back.partitions, held, "{name} has its own back");
            assert_eq!(back.generation, generation, "{name}: no rebalance");
        }
        ledger.is_shared_by(&[&one, &two], PARTITIONS).await;
    }
    assert!(one.member.confirm().await.expect("asked"));
    assert_eq!(one.generation(), generation);

    // Two processes under one name: the later one has it.
    let usurped = Arc::clone(&two.member);
    two.work.shutdown().await;
    ledger.release_all(two.id);
    let mut later = Instance::start(&ledger, "static", Some("two"));
    let ended = timeout(SETTLES_WITHIN, &mut two.run).await;
    let error = ended
        .expect("in time")
        .expect("no panic")
        .expect_err("fenced");
    assert!(error.to_string().contains("`two`"), "{error}");
    assert!(usurped.identity().is_none());
    ledger.is_shared_by(&[&one, &later], PARTITIONS).await;
    one.check();
    one.end().await;
    later.end().await;
}

async fn another_topic_is_asked_for_and_the_old_one_let_go(cluster: &Cluster) {
    create(cluster, "changes").await;
    let ledger = Arc::new(Ledger::default());
    let mut first = Instance::start(&ledger, "changes", None);
    ledger.is_shared_by(&[&first], PARTITIONS).await;
    let generation = first.generation();
    first
        .member
        .set_topics(vec![("static".to_owned(), PARTITIONS)]);
    let changed = first
        .sees(|assigned| assigned.generation > generation)
        .await;
    assert!(
        changed
            .partitions
            .iter()
            .all(|found| &*found.topic == "static")
    );
    assert_eq!(changed.partitions.len(), 7);
    first.end().await;
}
