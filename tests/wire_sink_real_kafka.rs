//! The writer of the wire driver against the real Apache Kafka: one broker for most scenarios, three where a leader dies.
//!
//! `REAL_KAFKA_TOOLS` names the folder of `serve-secure.sh`, `cluster.sh` and `tool.sh`, as an absolute path;
//! without it, or without Java, the suite says so and passes, unless `REAL_KAFKA_REQUIRED=1`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "these are tests; clippy knows only functions marked as tests"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use kafka_llm_processor::kafka::wire::{Cluster, NewTopic, WireSink};
use kafka_llm_processor::kafka::{
    Batch, End, KafkaConfig, KafkaError, LogReader, PartitionSink, Sink, StepError,
};
use kafka_llm_processor::types::{Header, Offset, Record, TopicPartition};
use tokio::time::Instant;

use crate::support::eventually;
use crate::support::kafka::{Broker, tool, tools};
use crate::support::process::{self, Lines};

/// The plain listener.
const PORT: u16 = 22000;
/// Three brokers and their controllers.
const CLUSTER_PORT: u16 = 22100;
const CLUSTER_READY_WITHIN: Duration = Duration::from_secs(240);
/// How soon a dead broker is noticed; 9,000 unless told otherwise.
const SESSION_MS: u32 = 4_000;
/// The same with all that follows, on a busy machine.
const FAILOVER_WITHIN: Duration = Duration::from_secs(60);

fn config(brokers: &str) -> KafkaConfig {
    KafkaConfig {
        brokers: brokers.to_owned(),
        ..KafkaConfig::default()
    }
}

/// One that gives up soon: for brokers that do not answer.
fn hasty(brokers: &str) -> Cluster {
    Cluster::new(&KafkaConfig {
        request_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(1),
        ..config(brokers)
    })
}

/// Kept for ever: the broker's retention, which looks 30 s after its start, deletes what is older than a week by its own timestamp,
/// and these records are.
async fn create(cluster: &Cluster, name: &str, partitions: i32, configs: &[(&str, &str)]) {
    let configs = [configs, &[("retention.ms", "-1")]].concat();
    let topic = NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor: -1,
        configs: configs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    };
    cluster.create_topic(&topic).await.expect("created");
}

fn record(value: impl Into<String>) -> Record {
    Record {
        key: Some("key".into()),
        value: Some(value.into().into()),
        headers: Vec::new(),
        timestamp_ms: 1_767_323_045_000,
    }
}

fn batch(topic: &str, partition: i32, values: &[&str]) -> Batch {
    Batch {
        to: TopicPartition::new(topic, partition),
        records: values.iter().map(|value| record(*value)).collect(),
    }
}

/// Reads a partition from its start to its high watermark, as a recovery does.
async fn read_all(cluster: &Cluster, partition: &TopicPartition) -> Vec<Record> {
    let (mut next, end) = cluster.log_bounds(partition).await.expect("bounds");
    let mut records = Vec::new();
    while next < end {
        let fetched = cluster
            .read(partition, next, Duration::from_millis(500))
            .await
            .expect("a read");
        next = fetched.next_offset;
        records.extend(fetched.records.into_iter().map(|(_, record)| record));
    }
    records
}

async fn values(cluster: &Cluster, topic: &str, partition: i32) -> Vec<String> {
    let records = read_all(cluster, &TopicPartition::new(topic, partition)).await;
    let text = |record: Record| String::from_utf8_lossy(&record.value.expect("a value")).into();
    records.into_iter().map(text).collect()
}

async fn taken(sink: &WireSink, input: &str) -> Box<dyn PartitionSink> {
    let input = TopicPartition::new(input, 0);
    sink.take_over(&input).await.expect("taken over")
}

/// Appends one batch.
async fn append(writer: &mut dyn PartitionSink, batch: &Batch) -> Result<(), StepError> {
    let outcomes = writer.append(std::slice::from_ref(batch)).await;
    assert_eq!(outcomes.len(), 1);
    outcomes.into_iter().next().expect("an outcome")
}

#[tokio::test]
async fn the_writer_works_with_the_real_kafka() {
    let Some(tools) = tools() else {
        return;
    };
    let started = Instant::now();
    let broker = Broker::start(&tools, PORT).await;
    eprintln!("broker ready after {:?}", started.elapsed());
    let cluster = Cluster::new(&config(&broker.address()));

    macro_rules! scenarios {
        ($($name:ident($($argument:expr),*);)*) => {$(
            let started = Instant::now();
            $name($($argument),*).await;
            eprintln!("{} ({:?})", stringify!($name), started.elapsed());
        )*};
    }
    scenarios! {
        appended_records_are_read_back_as_they_were(&cluster);
        a_batch_that_is_too_large_is_refused_and_leaves_no_gap(&cluster);
        a_topic_that_does_not_exist_is_refused(&cluster);
        a_batch_repeated_after_a_lost_answer_is_written_once(&cluster, &broker);
        only_committed_transactions_are_visible(&cluster, &tools);
        a_successor_fences_the_owner_before(&cluster);
        an_append_lost_in_a_transaction_is_fenced_by_our_own_epoch(&cluster, &broker);
        transactions_follow_each_other_quickly(&cluster);
    }
}

async fn appended_records_are_read_back_as_they_were(cluster: &Cluster) {
    create(cluster, "plain", 3, &[]).await;
    let sink = WireSink::idempotent(cluster.clone());
    let mut writer = taken(&sink, "input").await;
    let null = Header {
        name: "name".to_owned(),
        value: None,
    };
    let odd = Record {
        headers: vec![Header::new("name", "one"), null, Header::new("name", "two")],
        key: None,
        timestamp_ms: 0,
        ..record("odd")
    };
    let mut expected = vec![Vec::new(); 3];
    for round in 0..20_i32 {
        let mut batches = Vec::new();
        for (partition, expected) in (0_i32..).zip(&mut expected) {
            let mut records = vec![record(format!("{round}-{partition}")); 1 + expected.len() % 3];
            records.push(odd.clone());
            expected.extend(records.clone());
            let to = TopicPartition::new("plain", partition);
            batches.push(Batch { to, records });
        }
        let outcomes = writer.append(&batches).await;
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }
    for (partition, expected) in (0_i32..).zip(expected) {
        let found = read_all(cluster, &TopicPartition::new("plain", partition)).await;
        assert_eq!(found, expected, "partition {partition}");
    }
}

async fn a_batch_that_is_too_large_is_refused_and_leaves_no_gap(cluster: &Cluster) {
    create(cluster, "small", 1, &[("max.message.bytes", "1000")]).await;
    let sink = WireSink::idempotent(cluster.clone());
    let mut writer = taken(&sink, "input").await;
    append(&mut *writer, &batch("small", 0, &["one"]))
        .await
        .expect("it fits");
    // Numbers that gzip cannot pack below a thousand bytes.
    let large: String = (0..2_000_u32)
        .map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761)))
        .collect();
    let error = append(&mut *writer, &batch("small", 0, &[&large]))
        .await
        .expect_err("large");
    assert!(
        matches!(&error, StepError::Refused(KafkaError::TooLarge { partition }) if &*partition.topic == "small"),
        "{error:?}"
    );
    append(&mut *writer, &batch("small", 0, &["two"]))
        .await
        .expect("it fits");
    assert_eq!(values(cluster, "small", 0).await, ["one", "two"]);
}

async fn a_topic_that_does_not_exist_is_refused(cluster: &Cluster) {
    let sink = WireSink::idempotent(cluster.clone());
    let mut writer = taken(&sink, "input").await;
    let started = Instant::now();
    let error = append(&mut *writer, &batch("absent", 0, &["one"]))
        .await
        .expect_err("absent");
    let refused = matches!(&error, StepError::Refused(KafkaError::UnknownTopic { topic }) if topic == "absent");
    assert!(refused, "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "at once");
}

/// The request reaches a broker that is stopped, so its answer comes too late; the broker acts on it when it goes on.
async fn a_batch_repeated_after_a_lost_answer_is_written_once(cluster: &Cluster, broker: &Broker) {
    create(cluster, "repeated", 1, &[]).await;
    let sink = WireSink::idempotent(hasty(&broker.address()));
    let mut writer = taken(&sink, "input").await;
    append(&mut *writer, &batch("repeated", 0, &["one"]))
        .await
        .expect("appended");
    let lost = batch("repeated", 0, &["two", "three"]);
    let paused = broker.pause().await;
    let started = Instant::now();
    let error = append(&mut *writer, &lost).await.expect_err("no answer");
    assert!(matches!(error, StepError::OutcomeUnknown(_)), "{error:?}");
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    drop(paused);
    let partition = TopicPartition::new("repeated", 0);
    eventually(
        "the broker acts on what it holds",
        FAILOVER_WITHIN,
        async || {
            let (_, end) = cluster.log_bounds(&partition).await.ok()?;
            (end == Offset::new(3)).then_some(())
        },
    )
    .await;
    append(&mut *writer, &lost).await.expect("again");
    append(&mut *writer, &batch("repeated", 0, &["four"]))
        .await
        .expect("appended");
    assert_eq!(
        values(cluster, "repeated", 0).await,
        ["one", "two", "three", "four"]
    );
}

async fn only_committed_transactions_are_visible(cluster: &Cluster, tools: &Path) {
    create(cluster, "output", 2, &[]).await;
    let sink = WireSink::transactional(cluster.clone(), "group");
    let mut writer = taken(&sink, "visible").await;
    assert!(writer.is_transactional());
    for (number, end) in [End::Commit, End::Abort, End::Commit]
        .into_iter()
        .enumerate()
    {
        writer.begin().await.expect("begun");
        let value = format!("{end:?}-{number}");
        for _ in 0..2 {
            let batches = [0, 1].map(|partition| batch("output", partition, &[&value]));
            let outcomes = writer.append(&batches).await;
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        }
        writer.end(end).await.expect("ended");
    }
    writer
        .end(End::Abort)
        .await
        .expect("there is none to abort");
    writer.begin().await.expect("begun");
    writer.end(End::Commit).await.expect("an empty one");
    let expected = ["Commit-0", "Commit-0", "Commit-2", "Commit-2"];
    for partition in [0, 1] {
        assert_eq!(values(cluster, "output", partition).await, expected);
    }
    let server = format!("127.0.0.1:{PORT}");
    #[rustfmt::skip]
    let arguments = [
        "kafka-console-consumer", "--bootstrap-server", &server, "--topic", "output", "--partition", "1", "--offset", "earliest",
        "--isolation-level", "read_committed", "--max-messages", "4", "--timeout-ms", "20000",
    ];
    let printed = tool(tools, &arguments).await;
    let printed: Vec<_> = printed.lines().filter(|line| line.contains('-')).collect();
    assert_eq!(printed, expected);
}

async fn a_successor_fences_the_owner_before(cluster: &Cluster) {
    create(cluster, "fenced", 1, &[]).await;
    let sink = WireSink::transactional(cluster.clone(), "group");
    let mut former = taken(&sink, "owned").await;
    former.begin().await.expect("begun");
    append(&mut *former, &batch("fenced", 0, &["former"]))
        .await
        .expect("appended");
    let mut owner = taken(&sink, "owned").await;
    let error = append(&mut *former, &batch("fenced", 0, &["zombie"]))
        .await
        .expect_err("no");
    assert!(matches!(error, StepError::Fenced), "{error:?}");
    for end in [End::Commit, End::Abort] {
        let error = former.end(end).await.expect_err("fenced");
        assert!(matches!(error, StepError::Fenced), "{error:?}");
    }
    owner.begin().await.expect("begun");
    append(&mut *owner, &batch("fenced", 0, &["owner"]))
        .await
        .expect("appended");
    owner.end(End::Commit).await.expect("committed");
    assert_eq!(values(cluster, "fenced", 0).await, ["owner"]);
}

async fn an_append_lost_in_a_transaction_is_fenced_by_our_own_epoch(
    cluster: &Cluster,
    broker: &Broker,
) {
    create(cluster, "lost", 1, &[]).await;
    let sink = WireSink::transactional(hasty(&broker.address()), "group");
    let mut writer = taken(&sink, "losing").await;
    writer.begin().await.expect("begun");
    append(&mut *writer, &batch("lost", 0, &["one"]))
        .await
        .expect("appended");
    let paused = broker.pause().await;
    let error = append(&mut *writer, &batch("lost", 0, &["two"]))
        .await
        .expect_err("no answer");
    assert!(matches!(error, StepError::OutcomeUnknown(_)), "{error:?}");
    drop(paused);
    eventually(
        "the abort goes through",
        FAILOVER_WITHIN,
        async || match writer.end(End::Abort).await {
            Ok(()) => Some(()),
            Err(StepError::OutcomeUnknown(_)) => None,
            Err(error) => panic!("{error:?}"),
        },
    )
    .await;
    for value in ["three", "four"] {
        writer.begin().await.expect("the partition is still ours");
        append(&mut *writer, &batch("lost", 0, &[value]))
            .await
            .expect("appended");
        writer.end(End::Commit).await.expect("committed");
    }
    assert_eq!(values(cluster, "lost", 0).await, ["three", "four"]);
}

async fn transactions_follow_each_other_quickly(cluster: &Cluster) {
    create(cluster, "quick", 2, &[]).await;
    let sink = WireSink::transactional(cluster.clone(), "group");
    let mut writer = taken(&sink, "quick").await;
    let mut took = Vec::new();
    for number in 0..100 {
        let started = Instant::now();
        writer.begin().await.expect("begun");
        let value = number.to_string();
        let batches = [0, 1].map(|partition| batch("quick", partition, &[&value]));
        let outcomes = writer.append(&batches).await;
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        writer.end(End::Commit).await.expect("committed");
        took.push(started.elapsed());
    }
    took.sort_unstable();
    eprintln!(
        "a transaction took {:?} (median), {:?} (95 of 100)",
        took[50], took[95]
    );
    let expected: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(values(cluster, "quick", 1).await, expected);
}

/// Three brokers, killed with all their processes when dropped.
struct Three {
    script: Child,
    data: PathBuf,
    addresses: String,
}

impl Three {
    async fn start(tools: &Path) -> Self {
        let data = Path::new(env!("CARGO_TARGET_TMPDIR")).join("real-kafka-three");
        if data.exists() {
            fs::remove_dir_all(&data).expect("an earlier run's data is removed");
        }
        fs::create_dir_all(&data).expect("a folder for the data");
        let log = fs::File::create(data.join("cluster.log")).expect("a file for the log");
        let mut command = process::mortal(tools.join("cluster.sh"));
        command
            .arg(CLUSTER_PORT.to_string())
            .arg(format!("broker.session.timeout.ms={SESSION_MS}"))
            .env("KAFKA_DATA", &data)
            .env("KAFKA_HEAP", "256m")
            // Six Java programs start, one after the other and three at a time: the second compiler would take most of that time.
            .env("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
            .stdout(Stdio::piped())
            .stderr(log);
        let mut script = process::spawn(command);
        let lines = Lines::new();
        lines.gather(script.stdout.take().expect("its output is piped"));
        eventually("the brokers are ready", CLUSTER_READY_WITHIN, async || {
            let ended = script.try_wait().expect("it can be asked for");
            assert!(ended.is_none(), "the script ended: {ended:?}");
            lines.find(&["ready"])
        })
        .await;
        let address = |number| format!("127.0.0.1:{}", CLUSTER_PORT + number);
        let addresses = [0, 1, 2].map(address).join(",");
        Self {
            script,
            data,
            addresses,
        }
    }

    fn kill(&self, broker: i32) {
        let pid = fs::read_to_string(self.data.join(format!("broker-{broker}.pid")));
        let pid = pid.expect("it has a pid");
        assert!(process::signal("-KILL", pid.trim()), "kill -9 {pid}");
    }
}

impl Drop for Three {
    fn drop(&mut self) {
        // It kills its brokers at its end.
        process::signal("-TERM", &self.script.id().to_string());
        if let Err(error) = self.script.wait() {
            eprintln!("the cluster's script could not be waited for: {error}");
        }
    }
}

/// For each partition an idempotent and a transactional writer, which append as fast as they can while a broker dies. The leaders of three
/// partitions are three brokers, so one partition loses its leader, where a plain append would be doubled; transactions may lose their
/// coordinator too.
#[tokio::test]
async fn the_death_of_a_leader_neither_loses_nor_doubles() {
    let Some(tools) = tools() else {
        return;
    };
    let started = Instant::now();
    let three = Three::start(&tools).await;
    eprintln!("brokers ready after {:?}", started.elapsed());
    let cluster = Cluster::new(&config(&three.addresses));
    create(&cluster, "output", 3, &[]).await;
    let sinks = [
        WireSink::idempotent(cluster.clone()),
        WireSink::transactional(cluster.clone(), "group"),
    ];
    let mut writers = Vec::new();
    for partition in 0..3 {
        for (sink, kind) in sinks.iter().zip(["idempotent", "transactional"]) {
            let input = TopicPartition::new(kind, partition);
            writers.push(Scribe {
                cluster: &cluster,
                writer: taken_at_last(sink, &input).await,
                sink,
                input,
            });
        }
    }
    let (before, is_killed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let writing = writers
        .into_iter()
        .map(|writer| writer.write_over_a_death(&before, &is_killed));
    let reaper = async {
        eventually("the writers are at work", FAILOVER_WITHIN, async || {
            (before.load(Relaxed) > 60).then_some(())
        })
        .await;
        three.kill(1);
        is_killed.store(true, Relaxed);
    };
    let (written, ()) = tokio::join!(futures::future::join_all(writing), reaper);
    for partition in 0..3 {
        let of_it = written.iter().filter(|(to, _)| *to == partition);
        let mut expected: Vec<_> = of_it.flat_map(|(_, values)| values.clone()).collect();
        let mut found = values(&cluster, "output", partition).await;
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "partition {partition}");
    }
    eprintln!("over after {:?}", started.elapsed());
}

/// The coordinator's own log is made when it is first asked, and it moves when its broker dies: both take a while.
async fn taken_at_last(sink: &WireSink, input: &TopicPartition) -> Box<dyn PartitionSink> {
    eventually("the partition is ours", FAILOVER_WITHIN, async || {
        sink.take_over(input).await.ok()
    })
    .await
}

/// Writes to the partition of the same number as its input.
struct Scribe<'a> {
    cluster: &'a Cluster,
    sink: &'a WireSink,
    input: TopicPartition,
    writer: Box<dyn PartitionSink>,
}

impl Scribe<'_> {
    /// Writes numbered records until some were written after the death; gives back the partition and what was acknowledged or committed.
    async fn write_over_a_death(
        mut self,
        before: &AtomicUsize,
        is_killed: &AtomicBool,
    ) -> (i32, Vec<String>) {
        let (mut written, mut after) = (Vec::new(), 0);
        let mut longest = Duration::ZERO;
        while after < 10 {
            let value = format!("{}-{}", self.input, written.len());
            after += usize::from(is_killed.load(Relaxed));
            let started = Instant::now();
            self.write(&value).await;
            longest = longest.max(started.elapsed());
            written.push(value);
            before.fetch_add(1, Relaxed);
        }
        eprintln!(
            "{}: {} records, the slowest took {longest:?}",
            self.input,
            written.len()
        );
        (self.input.partition, written)
    }

    /// As the commit protocol does: who has lost the transactional id, as by a transaction that took too long, takes it again, and the log
    /// tells what became of the last transaction.
    async fn write(&mut self, value: &str) {
        let to = self.input.partition;
        let batch = batch("output", to, &[value]);
        let started = Instant::now();
        while let Err(error) = write(&mut *self.writer, &batch).await {
            eprintln!("{}: {error:?}", self.input);
            assert!(started.elapsed() < FAILOVER_WITHIN, "{error:?}");
            if matches!(error, StepError::Fenced | StepError::Expired(_)) {
                self.writer = taken_at_last(self.sink, &self.input).await;
                let found = values(self.cluster, "output", to).await;
                if found.iter().any(|found| found == value) {
                    return;
                }
            }
        }
    }
}

/// Tries to write a batch; an end without a certain outcome is repeated, a failed transaction aborted.
async fn write(writer: &mut dyn PartitionSink, batch: &Batch) -> Result<(), StepError> {
    writer.begin().await?;
    let appended = append(writer, batch).await;
    let end = match &appended {
        Ok(()) => End::Commit,
        Err(_) => End::Abort,
    };
    while let Err(error) = writer.end(end).await {
        if !matches!(error, StepError::OutcomeUnknown(_)) {
            return Err(error);
        }
    }
    appended
}
