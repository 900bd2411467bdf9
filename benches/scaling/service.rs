//! A sandbox, a group of processors on it in this process, and documents that come by chance.

use std::time::Duration;

use bytes::Bytes;
use kafka_llm_processor::app::{App, RunEnd};
use kafka_llm_processor::config::{Override, Settings};
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::telemetry::StatusBoard;
use kafka_llm_processor::telemetry::status::{RunState, Summary};
use kafka_llm_processor::types::Record;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

pub(crate) const INPUT: &str = "docs";
const OUTPUT: &str = "results";
const DEAD: &str = "dead";
pub(crate) const COMMITS: &str = "scaling-commits";
/// A call to the model.
pub(crate) const CALL: Duration = Duration::from_millis(50);
/// `kafka::topics`: a commit topic that the processor creates has no more.
pub(crate) const COMMIT_PARTITIONS_MAX: i32 = 32;
const WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);

/// What runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) partitions: i32,
    pub(crate) commit_partitions: i32,
    pub(crate) instances: u32,
    pub(crate) endpoints: u32,
    pub(crate) exactly_once: bool,
    pub(crate) read_ahead_records: u32,
    pub(crate) read_ahead_mebibytes: u32,
    /// `llm.concurrency`.
    pub(crate) concurrency: &'static str,
}

impl Setup {
    /// One instance with one model server.
    pub(crate) const fn new(partitions: i32, exactly_once: bool) -> Self {
        Self {
            partitions,
            commit_partitions: if partitions < COMMIT_PARTITIONS_MAX {
                partitions
            } else {
                COMMIT_PARTITIONS_MAX
            },
            instances: 1,
            endpoints: 1,
            exactly_once,
            read_ahead_records: 1_024,
            read_ahead_mebibytes: 16,
            concurrency: "64",
        }
    }

    pub(crate) const fn guarantee(&self) -> &'static str {
        if self.exactly_once {
            "exactly once"
        } else {
            "at least once"
        }
    }

    pub(crate) fn name(&self) -> String {
        let Self {
            partitions,
            commit_partitions,
            instances,
            endpoints,
            ..
        } = self;
        format!(
            "{partitions} partitions ({commit_partitions} for commits), {instances} instances, {endpoints} endpoints, {}",
            self.guarantee()
        )
    }
}

/// A count as what one calculates with.
pub(crate) fn count(count: u64) -> f64 {
    f64::from(u32::try_from(count).expect("a count"))
}

/// A sandbox broker with its topics.
pub(crate) async fn broker(setup: &Setup) -> Broker {
    let config = BrokerConfig {
        connections_max: 9_000,
        // All members are there before partitions are dealt.
        group_initial_rebalance_delay: Duration::from_millis(500),
        ..BrokerConfig::default()
    };
    let broker = Broker::start(config).await.expect("a broker");
    for (topic, partitions, configs) in [
        (INPUT, setup.partitions, &[][..]),
        (OUTPUT, setup.partitions, &[]),
        (DEAD, 1, &[]),
        (
            COMMITS,
            setup.commit_partitions,
            &[("cleanup.policy", "compact"), ("segment.bytes", "1048576")],
        ),
    ] {
        broker
            .create_topic(topic, partitions, configs)
            .expect("created");
    }
    broker
}

/// Simulated model servers.
pub(crate) async fn endpoints(count: u32, call: Duration) -> Vec<Vllm> {
    let mut servers = Vec::new();
    for _ in 0..count {
        let server = Vllm::start(VllmConfig {
            latency: Latency::fixed(call),
            max_num_seqs: 4_096,
            requests_logged: 1,
            ..VllmConfig::default()
        });
        servers.push(server.await.expect("a model server"));
    }
    servers
}

/// What the members have done so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) documents: u64,
    pub(crate) flushes: u64,
    pub(crate) commit_bytes: u64,
}

impl Totals {
    pub(crate) fn since(self, earlier: &Self) -> Self {
        Self {
            documents: self.documents - earlier.documents,
            flushes: self.flushes - earlier.flushes,
            commit_bytes: self.commit_bytes - earlier.commit_bytes,
        }
    }
}

struct Member {
    board: StatusBoard,
    task: JoinHandle<(RunEnd, Summary)>,
}

/// Processors that share the partitions.
pub(crate) struct Group {
    pub(crate) broker: Broker,
    pub(crate) servers: Vec<Vllm>,
    members: Vec<Member>,
    drain: CancellationToken,
    pub(crate) partitions: i32,
}

impl Group {
    pub(crate) async fn start(setup: &Setup) -> Self {
        let servers = endpoints(setup.endpoints, CALL).await;
        Self::start_on(broker(setup).await, servers, setup).await
    }

    /// Starts the members and waits until they have taken every partition over.
    pub(crate) async fn start_on(broker: Broker, servers: Vec<Vllm>, setup: &Setup) -> Self {
        let drain = CancellationToken::new();
        let members = (0..setup.instances).map(|_| {
            let app = App::build(settings(&broker, &servers, setup)).expect("built");
            let board = app.board();
            let task = tokio::spawn(app.run(drain.clone(), false));
            Member { board, task }
        });
        let group = Self {
            members: members.collect(),
            broker,
            servers,
            drain,
            partitions: setup.partitions,
        };
        let deadline = Instant::now() + WITHIN;
        while !group.is_settled() {
            assert!(
                Instant::now() < deadline,
                "not all partitions were taken over"
            );
            sleep(LOOK).await;
        }
        group
    }

    fn is_settled(&self) -> bool {
        let wanted = usize::try_from(self.partitions).expect("a count");
        let mut taken = 0;
        for member in &self.members {
            let status = member.board.snapshot();
            if status.state != RunState::Running {
                return false;
            }
            taken += status.partitions.len();
        }
        taken == wanted
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut all = Totals::default();
        for member in &self.members {
            let totals = member.board.summary().totals;
            all.documents += totals.processed;
            all.flushes += totals.flushes;
            all.commit_bytes += totals.commit_bytes;
        }
        all
    }

    pub(crate) fn commit_log_bytes(&self) -> u64 {
        let bytes = self.broker.log_bytes(COMMITS).expect("the commit topic");
        u64::try_from(bytes).expect("a size")
    }

    /// Drains all members.
    pub(crate) async fn stop(self) -> Broker {
        self.drain.cancel();
        for member in self.members {
            let (end, _) = member.task.await.expect("it does not panic");
            assert!(matches!(end, RunEnd::Drained), "{end:?}");
        }
        self.broker
    }
}

fn settings(broker: &Broker, servers: &[Vllm], setup: &Setup) -> Settings {
    let urls: Vec<_> = servers.iter().map(Vllm::url).collect();
    let guarantee = setup.guarantee().replace(' ', "_");
    let assignment = if setup.instances > 1 { "group" } else { "all" };
    let own = [
        format!("kafka.brokers={}", broker.bootstrap()),
        format!("llm.url={}", urls.join(",")),
        format!("processing.guarantee={guarantee}"),
        format!("input.assignment={assignment}"),
        format!("pipeline.read_ahead_records={}", setup.read_ahead_records),
        format!(
            "pipeline.read_ahead_bytes={}",
            u64::from(setup.read_ahead_mebibytes) << 20
        ),
        format!("llm.concurrency={}", setup.concurrency),
    ];
    let fixed = [
        "kafka.group_id=scaling",
        "kafka.commit_topic=scaling-commits",
        "input.topics=docs",
        "output.topic=results",
        "dead_letters.topic=dead",
        "admin.listen=off",
        "log.file=off",
    ];
    let all = own.iter().map(String::as_str).chain(fixed);
    let overrides: Vec<_> = all
        .map(|set| {
            let (key, value) = set.split_once('=').expect("key=value");
            Override {
                key: key.into(),
                value: value.into(),
                flag: "bench".into(),
            }
        })
        .collect();
    Settings::load(None, [], &overrides).expect("settings")
}

/// Documents that come one by one, by chance, to partitions by chance.
pub(crate) struct Arrivals {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Arrivals {
    pub(crate) fn start(group: &Group, per_second: f64) -> Self {
        let stop = CancellationToken::new();
        let offered = offer(
            group.broker.clone(),
            group.partitions,
            per_second,
            stop.clone(),
        );
        Self {
            task: tokio::spawn(offered),
            stop,
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("it does not panic");
    }
}

async fn offer(broker: Broker, partitions: i32, per_second: f64, stop: CancellationToken) {
    if per_second <= 0.0 {
        return;
    }
    let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
    let mut due = Instant::now();
    for number in 0_u64.. {
        due += Duration::from_secs_f64(-(1.0 - chance.next()).ln() / per_second);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(due) => {}
        }
        let partition = (chance.next() * f64::from(partitions)).floor();
        let partition = (0..partitions)
            .rev()
            .find(|at| f64::from(*at) <= partition)
            .unwrap_or(0);
        broker
            .append(INPUT, partition, vec![document(number, 1_024)])
            .expect("appended");
    }
}

/// A document of so many bytes.
pub(crate) fn document(number: u64, bytes: usize) -> Record {
    let head = format!(r#"{{"id":"document-{number}","content":"Report {number}. "#);
    let sentence = "Revenue rose 12 % to 4.3 billion in the third quarter, and margins held. ";
    let text = bytes.saturating_sub(head.len() + 2);
    let text: String = sentence.chars().cycle().take(text).collect();
    Record {
        key: Some(Bytes::from(format!("customer-{number}"))),
        value: Some(Bytes::from(format!("{head}{text}\"}}"))),
        headers: Vec::new(),
        timestamp_ms: 1_700_000_000_000,
    }
}

/// Numbers from 0 to 1 (exclusive), the same in every run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let high = u32::try_from(self.0 >> 32).expect("32 bits");
        f64::from(high) / (f64::from(u32::MAX) + 1.0)
    }
}
