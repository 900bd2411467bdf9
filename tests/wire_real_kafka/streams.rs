//! The source and the scan on logs that foreign producers write, in transactions that commit, abort and are left to die.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kafka_llm_processor::kafka::wire::{Cluster, Isolation, OffsetAt, WireSource};
use kafka_llm_processor::kafka::{KafkaConfig, KafkaError, LogReader, LogScanner, Source};
use kafka_llm_processor::types::{Offset, TopicPartition};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::eventually;
use crate::support::kafka::{Broker, tool};
use crate::{PORT, config, topic};

const WAIT: Duration = Duration::from_millis(500);
const WITHIN: Duration = Duration::from_secs(90);
const BYTES: usize = 1 << 20;

/// Whether librdkafka's Python client is there to write transactions with; says so when not.
pub(crate) async fn has_confluent() -> bool {
    let found = Command::new("python3")
        .args(["-c", "import confluent_kafka"])
        .stderr(Stdio::null())
        .status()
        .await;
    let is_there = found.is_ok_and(|status| status.success());
    if !is_there {
        eprintln!("skipped in part: Python's confluent_kafka is not installed");
    }
    is_there
}

/// A process of producers that do what they are told; killed when dropped.
struct Puppet {
    child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Puppet {
    fn start(topic: &str, transaction_timeout_ms: u32) -> Self {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/wire_real_kafka/puppet.py"
        );
        let mut child = Command::new("python3")
            .args([script, &format!("127.0.0.1:{PORT}"), topic])
            .arg(transaction_timeout_ms.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python3 starts");
        let commands = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self {
            child,
            commands,
            answers,
        }
    }

    async fn tell(&mut self, command: &str) {
        let line = format!("{command}\n");
        self.commands
            .write_all(line.as_bytes())
            .await
            .expect("it listens");
        let answer = timeout(WITHIN, self.answers.next_line()).await;
        let answer = answer.expect("it answers in time").expect("it answers");
        assert_eq!(answer.as_deref(), Some("ok"), "{command}");
    }

    /// `kill -9`: its transactions stay open until the coordinator ends them.
    async fn die(mut self) {
        self.child.kill().await.expect("it dies");
    }
}

/// Offsets and values from a stream, up to the high watermark.
async fn read(
    cluster: &Cluster,
    partition: &TopicPartition,
    isolation: Isolation,
) -> Vec<(i64, String)> {
    let source = WireSource::new(cluster.clone(), isolation);
    let (mut next, end) = source.bounds(partition).await.expect("bounds");
    let mut stream = source.open(partition, next).await.expect("opened");
    let mut found = Vec::new();
    let deadline = Instant::now() + WITHIN;
    while next < end {
        assert!(Instant::now() < deadline, "{next} of {end}");
        let fetched = stream.next(BYTES, WAIT).await.expect("fetched");
        assert!(fetched.next_offset >= next, "it goes forward");
        next = fetched.next_offset;
        for (offset, record) in fetched.records {
            let value = record.value.unwrap_or_default();
            found.push((offset.value(), String::from_utf8_lossy(&value).into_owned()));
        }
    }
    found
}

/// The same, by Kafka's own consumer.
async fn read_by_console(tools: &Path, topic: &str, isolation: &str) -> Vec<(i64, String)> {
    let server = format!("127.0.0.1:{PORT}");
    #[rustfmt::skip]
    let arguments = [
        "kafka-console-consumer", "--bootstrap-server", &server, "--topic", topic, "--from-beginning", "--isolation-level", isolation,
        "--timeout-ms", "5000", "--formatter-property", "print.offset=true",
    ];
    let text = tool(tools, &arguments).await;
    let lines = text.lines().filter_map(|line| line.strip_prefix("Offset:"));
    lines
        .map(|line| {
            let (offset, value) = line.split_once('\t').expect("offset and value");
            (offset.parse().expect("an offset"), value.to_owned())
        })
        .collect()
}

/// Commits, aborts, an abort by the coordinator, a Java producer and plain records, all in one partition.
pub(crate) async fn a_stream_reads_what_kafkas_own_consumer_reads(cluster: &Cluster, tools: &Path) {
    let name = "mixed";
    cluster
        .create_topic(&topic(name, 1, &[]))
        .await
        .expect("created");
    let mut mortal = Puppet::start(name, 5_000);
    let mut puppet = Puppet::start(name, 60_000);
    for round in 0..4 {
        puppet.tell("begin good").await;
        puppet.tell("begin bad").await;
        for number in 0..3 {
            puppet.tell(&format!("send good k g{round}-{number}")).await;
            puppet.tell(&format!("send bad k b{round}-{number}")).await;
            puppet.tell(&format!("plain k p{round}-{number}")).await;
        }
        puppet.tell("abort bad").await;
        puppet.tell("commit good").await;
    }
    mortal.tell("begin dies").await;
    mortal.tell("send dies k d0").await;
    puppet.tell("begin good").await;
    puppet.tell("send good k last").await;
    puppet.tell("commit good").await;
    mortal.die().await;
    let bootstrap = format!("bootstrap.servers=127.0.0.1:{PORT}");
    #[rustfmt::skip]
    let arguments = [
        "kafka-producer-perf-test", "--topic", name, "--num-records", "60", "--record-size", "20", "--throughput", "200",
        "--transactional-id", "perf", "--transaction-duration-ms", "100", "--producer-props", &bootstrap, "acks=all",
    ];
    tool(tools, &arguments).await;

    let partition = TopicPartition::new(name, 0);
    eventually(
        "the coordinator ends what was left open",
        WITHIN,
        async || {
            let end = |isolation| cluster.list_offset(&partition, OffsetAt::Latest, isolation);
            let stable = end(Isolation::ReadCommitted).await.expect("listed");
            (stable == end(Isolation::ReadUncommitted).await.expect("listed")).then_some(())
        },
    )
    .await;
    for (isolation, level) in [
        (Isolation::ReadCommitted, "read_committed"),
        (Isolation::ReadUncommitted, "read_uncommitted"),
    ] {
        let ours = read(cluster, &partition, isolation).await;
        assert_eq!(ours, read_by_console(tools, name, level).await, "{level}");
        let count = |mark: &str| {
            ours.iter()
                .filter(|(_, value)| value.starts_with(mark))
                .count()
        };
        let is_committed = isolation == Isolation::ReadCommitted;
        assert_eq!(
            (count("g"), count("p"), count("last")),
            (12, 12, 1),
            "{level}"
        );
        let aborted = if is_committed { 0 } else { 13 };
        assert_eq!(
            count("b") + count("d"),
            aborted,
            "{level}: what was aborted"
        );
        assert_eq!(ours.len(), 12 + 12 + 1 + 60 + aborted, "{level}");
    }
}

pub(crate) async fn a_foreign_open_transaction_neither_hides_nor_blocks(cluster: &Cluster) {
    let name = "claims";
    cluster
        .create_topic(&topic(name, 1, &[]))
        .await
        .expect("created");
    let partition = TopicPartition::new(name, 0);
    let mut puppet = Puppet::start(name, 60_000);
    for command in [
        "begin ours",
        "send ours a 1",
        "commit ours", // offsets 0 and its marker
        "begin foreign",
        "send foreign b 2",
        "begin ours",
        "send ours a 3",
        "commit ours",
        "begin ours",
        "send ours a 4",
        "abort ours",
        "plain c 5",
    ] {
        puppet.tell(command).await;
    }
    let (_, end) = cluster.log_bounds(&partition).await.expect("bounds");
    let blocked = cluster
        .read(&partition, Offset::new(2), Duration::ZERO)
        .await;
    let blocked = blocked.expect("a read at read_committed");
    assert!(blocked.records.is_empty(), "that is what the scan is for");

    let mut scan = cluster.scan(&partition, Offset::ZERO);
    let mut values = Vec::new();
    let mut next = Offset::ZERO;
    while next < end {
        let fetched = scan.next(WAIT).await.expect("scanned");
        next = fetched.next_offset;
        values.extend(
            fetched
                .records
                .into_iter()
                .filter_map(|(_, record)| record.value),
        );
    }
    assert_eq!(values, ["1", "3", "5"]);
    assert_eq!(
        scan.resume_at(),
        Offset::new(2),
        "where the foreign one began"
    );
    puppet.tell("commit foreign").await;
    let fetched = scan.next(Duration::from_secs(5)).await.expect("scanned");
    assert_eq!(fetched.records.len(), 1);
    assert_eq!(fetched.records[0].0, Offset::new(2));
    assert_eq!(scan.resume_at(), end.next(), "beyond the last marker");
}

/// Compaction leaves gaps between batches, inside them, and whole batches without records.
pub(crate) async fn compaction_gaps_are_stepped_over(cluster: &Cluster, tools: &Path) {
    let name = "gaps";
    let configs = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0"),
        ("delete.retention.ms", "0"),
    ];
    cluster
        .create_topic(&topic(name, 1, &configs))
        .await
        .expect("created");
    let partition = TopicPartition::new(name, 0);
    let mut puppet = Puppet::start(name, 60_000);
    let mut round = 0;
    // Each append may close a segment; the cleaner comes every 15 s and takes the closed ones.
    let ours = eventually("the log is compacted", WITHIN, async || {
        for command in [
            "begin tx",
            "send tx a x",
            "commit tx",
            "begin tx",
            "send tx b y",
            "abort tx",
        ] {
            puppet.tell(command).await;
        }
        puppet.tell(&format!("plain k{} z{round}", round % 3)).await;
        round += 1;
        let ours = read(cluster, &partition, Isolation::ReadCommitted).await;
        let first = ours.first().map_or(0, |(offset, _)| *offset);
        (first > 0 && round > 10).then_some(())
    });
    ours.await;
    let values: BTreeMap<_, _> = read(cluster, &partition, Isolation::ReadCommitted)
        .await
        .into_iter()
        .collect();
    let theirs: BTreeMap<_, _> = read_by_console(tools, name, "read_committed")
        .await
        .into_iter()
        .collect();
    // The cleaner may have come between the two: what both saw is the same, and the end is never cleaned.
    assert!(values.iter().any(|entry| theirs.contains_key(entry.0)));
    for (offset, value) in &theirs {
        assert_eq!(values.get(offset), Some(value), "at {offset}");
    }
}

/// One connection and one request at a time for all of them; what it costs is the processor time of this process.
pub(crate) async fn a_thousand_idle_partitions_cost_little(cluster: &Cluster) {
    const MEASURED: Duration = Duration::from_secs(10);
    let name = "idle";
    cluster
        .create_topic(&topic(name, 1_000, &[]))
        .await
        .expect("created");
    let source = Arc::new(WireSource::new(cluster.clone(), Isolation::ReadCommitted));
    let mut streams = JoinSet::new();
    let led = Arc::new(AtomicUsize::new(0));
    for index in 0..1_000 {
        let (source, led) = (Arc::clone(&source), Arc::clone(&led));
        streams.spawn(async move {
            let partition = TopicPartition::new(name, index);
            let mut stream = source.open(&partition, Offset::ZERO).await.expect("opened");
            // A busy broker takes long to lead a thousand new partitions.
            while stream.next(BYTES, WAIT).await.is_err() {}
            led.fetch_add(1, Ordering::Relaxed);
            loop {
                let fetched = stream.next(BYTES, WAIT).await.expect("fetched");
                if !fetched.records.is_empty() {
                    return index;
                }
            }
        });
    }
    eventually("all partitions are led", WITHIN, async || {
        (led.load(Ordering::Relaxed) == 1_000).then_some(())
    })
    .await;
    let before = processor_ms();
    tokio::time::sleep(MEASURED).await;
    let used = processor_ms() - before;
    eprintln!("1,000 idle partitions: {used} ms of processor time in {MEASURED:?}");
    assert!(u128::from(used) < MEASURED.as_millis() / 5, "{used} ms");
    assert_eq!(streams.len(), 1_000, "all still wait");
    let mut puppet = Puppet::start(name, 60_000);
    puppet.tell("plain k v").await;
    let told = Instant::now();
    let found = streams.join_next().await.expect("one").expect("it reads");
    eprintln!("found in {:?}", told.elapsed());
    assert_eq!(found, 0, "the partition that was written to");
    assert!(told.elapsed() < Duration::from_secs(1));
}

/// User and system time of this process.
fn processor_ms() -> u64 {
    const MS_PER_TICK: u64 = 10;
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields = stat.rsplit(") ").next().expect("behind the name");
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks = ticks.map(|ticks| ticks.parse::<u64>().expect("ticks"));
    ticks.sum::<u64>() * MS_PER_TICK
}

/// The poll on its way when the broker stops is given up in time, and a new connection is dialled when it is back.
pub(crate) async fn a_stopped_broker_is_noticed_by_a_stream(cluster: &Cluster, broker: &Broker) {
    let name = "stopped";
    cluster
        .create_topic(&topic(name, 1, &[]))
        .await
        .expect("created");
    let hasty = Cluster::new(&KafkaConfig {
        request_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(1),
        ..config(PORT)
    });
    let source = WireSource::new(hasty, Isolation::ReadCommitted);
    let partition = TopicPartition::new(name, 0);
    let mut stream = source.open(&partition, Offset::ZERO).await.expect("opened");
    let fetched = stream.next(BYTES, WAIT).await.expect("fetched");
    assert!(fetched.records.is_empty());
    let paused = broker.pause().await;
    let started = Instant::now();
    let error = stream.next(BYTES, WAIT).await.expect_err("nobody answers");
    assert!(matches!(error, KafkaError::Timeout { .. }), "{error:?}");
    assert!(
        started.elapsed() < Duration::from_millis(3_500),
        "{:?}",
        started.elapsed()
    );
    drop(paused);
    eventually("the stream goes on", WITHIN, async || {
        stream.next(BYTES, WAIT).await.ok()
    })
    .await;
}
