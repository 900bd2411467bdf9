//! kcat, confluent-kafka and Kafka's own tools against the sandbox.

use std::path::PathBuf;
use std::process::Stdio;

use kafka_llm_processor::sandbox::broker::Broker;
use kafka_llm_processor::types::Record;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::{AddPartitionsToTxnRequest, InitProducerIdRequest, TransactionalId};
use kafka_protocol::protocol::StrBytes;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{Duration, timeout};

use crate::wire::{Wire, batch, broker, name, patch, produce, secure_broker};

/// A Java tool takes seconds on an idle machine.
pub(crate) const TOOL_MAX: Duration = Duration::from_secs(90);

struct Run {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Run {
    /// Standard output of a run that succeeded.
    pub(crate) fn output(self) -> String {
        assert!(self.success, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs a tool with this input; `None`, with the reason printed, when it is not installed.
pub(crate) async fn run(program: &str, args: &[&str], input: &str) -> Option<Run> {
    let spawned = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            println!("skipped: {program} cannot be run: {error}");
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = timeout(TOOL_MAX, child.wait_with_output()).await;
    let output = output.expect("the tool ends in time").unwrap();
    Some(Run {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn kcat_reads_what_it_wrote() {
    let broker = broker().await;
    let server = broker.bootstrap();
    let Some(listed) = run("kcat", &["-b", &server, "-L"], "").await else {
        return;
    };
    assert!(listed.output().contains("topic \"t\" with 2 partitions"));
    for (codec, input) in [
        ("none", "a:1\nb:2\n"),
        ("gzip", "c:3\n"),
        ("snappy", "d:4\n"),
        ("lz4", "e:5\n"),
        ("zstd", "f:6\n"),
    ] {
        let args = [
            "-P", "-b", &server, "-t", "t", "-p", "1", "-K:", "-z", codec,
        ];
        run("kcat", &args, input).await.unwrap().output();
    }
    let args = [
        "-C",
        "-b",
        &server,
        "-t",
        "t",
        "-p",
        "1",
        "-e",
        "-q",
        "-f",
        "%o %k %s\n",
    ];
    let read = run("kcat", &args, "").await.unwrap().output();
    assert_eq!(read, "0 a 1\n1 b 2\n2 c 3\n3 d 4\n4 e 5\n5 f 6\n");
    let args = ["-Q", "-b", &server, "-t", "t:1:-1"];
    let latest = run("kcat", &args, "").await.unwrap().output();
    assert_eq!(latest.trim(), "t [1] offset 6");
    let compact = [("cleanup.policy", "compact")];
    broker.create_topic("compacted", 1, &compact).unwrap();
    let args = ["-P", "-b", &server, "-t", "compacted"];
    let keyless = run("kcat", &args, "no key\n").await.unwrap();
    assert!(
        keyless.stderr.contains("failed to validate record"),
        "{}",
        keyless.stderr
    );
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kcat_authenticates_with_the_right_password_only() {
    let broker = secure_broker().await;
    let server = broker.bootstrap();
    let common = [
        "-L",
        "-m",
        "3",
        "-b",
        &server,
        "-X",
        "security.protocol=SASL_PLAINTEXT",
        "-X",
        "sasl.mechanisms=PLAIN",
        "-X",
        "sasl.username=alice",
        "-X",
    ];
    let args = [&common[..], &["sasl.password=secret"]].concat();
    let Some(right) = run("kcat", &args, "").await else {
        return;
    };
    assert!(right.output().contains("1 brokers"));
    let args = [&common[..], &["sasl.password=wrong"]].concat();
    let wrong = run("kcat", &args, "").await.unwrap();
    assert!(
        !wrong.success && wrong.stderr.contains("Authentication failed"),
        "{}",
        wrong.stderr
    );
    let none = run("kcat", &["-L", "-m", "3", "-b", &server], "")
        .await
        .unwrap();
    assert!(!none.success, "a client without credentials gets nothing");
    broker.shutdown().await;
}

/// Whether Python's confluent_kafka can be run; prints the reason when it cannot.
pub(crate) async fn has_confluent_kafka() -> bool {
    let present = run("python3", &["-c", "import confluent_kafka"], "").await;
    let is_there = present.is_some_and(|run| run.success);
    if !is_there {
        println!("skipped: Python's confluent_kafka is not installed");
    }
    is_there
}

/// Topics, acks, headers, commits, groups, configurations, deletion and SASL: `confluent.py` asserts each.
#[tokio::test(flavor = "multi_thread")]
async fn confluent_kafka_does_its_daily_work() {
    if !has_confluent_kafka().await {
        return;
    }
    let broker = broker().await;
    let secure = secure_broker().await;
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/sandbox_broker/confluent.py"
    );
    let args = [script, &broker.bootstrap(), &secure.bootstrap()];
    assert_eq!(
        run("python3", &args, "").await.unwrap().output().trim(),
        "done"
    );
    broker.shutdown().await;
    secure.shutdown().await;
}

/// Commit, abort, offsets, fencing and every codec: `confluent_transactions.py` asserts each as its consumers see it.
#[tokio::test(flavor = "multi_thread")]
async fn confluent_kafka_commits_aborts_and_is_fenced() {
    if !has_confluent_kafka().await {
        return;
    }
    let broker = broker().await;
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/sandbox_broker/confluent_transactions.py"
    );
    let args = [script, &broker.bootstrap()];
    assert_eq!(
        run("python3", &args, "").await.unwrap().output().trim(),
        "done"
    );
    let committed = broker.records_committed("t");
    assert_eq!(committed.len(), 13, "every codec is read here too");
    assert_eq!(broker.records("t").len(), 20);
    assert!(broker.open_transactions().is_empty());
    broker.shutdown().await;
}

/// Where `tool.sh` of the Java tools lies; `None`, with the reason printed, when it is not there.
pub(crate) fn java_tools() -> Option<String> {
    let tool =
        std::env::var_os("REAL_KAFKA_TOOLS").map(|folder| PathBuf::from(folder).join("tool.sh"));
    let Some(tool) = tool.filter(|tool| tool.exists()) else {
        println!("skipped: REAL_KAFKA_TOOLS names no folder with tool.sh");
        return None;
    };
    tool.into_os_string().into_string().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_java_tools_do_their_daily_work() {
    let Some(tool) = java_tools() else { return };
    let broker = broker().await;
    let server = broker.bootstrap();
    let java = async |args: &[&str], input: &str| {
        let (name, rest) = args.split_first().unwrap();
        let args = [&[*name, "--bootstrap-server", &server], rest].concat();
        run(&tool, &args, input)
            .await
            .expect("bash is there")
            .output()
    };
    let config = ["--config", "cleanup.policy=compact"];
    let create = [
        "kafka-topics",
        "--create",
        "--topic",
        "j",
        "--partitions",
        "1",
    ];
    java(&[&create[..], &config].concat(), "").await;
    let described = java(&["kafka-topics", "--describe", "--topic", "j"], "").await;
    assert!(described.contains("cleanup.policy=compact"), "{described}");
    let input = [
        "--topic",
        "j",
        "--command-property",
        "enable.idempotence=false",
    ];
    let keyed = [
        "--reader-property",
        "parse.key=true",
        "--reader-property",
        "key.separator=:",
    ];
    java(
        &[&["kafka-console-producer"], &input[..], &keyed].concat(),
        "a:1\nb:2\n",
    )
    .await;
    assert_eq!(broker.records("j").len(), 2);
    let read = [
        "kafka-console-consumer",
        "--topic",
        "j",
        "--partition",
        "0",
        "--offset",
        "earliest",
    ];
    let read = java(&[&read[..], &["--max-messages", "2"]].concat(), "").await;
    assert_eq!(read.lines().collect::<Vec<_>>(), ["1", "2"]);
    let entity = ["--entity-type", "topics", "--entity-name", "j"];
    let alter = [
        "kafka-configs",
        "--alter",
        "--add-config",
        "max.message.bytes=2000",
    ];
    java(&[&alter[..], &entity].concat(), "").await;
    assert_eq!(
        broker.topic_config("j", "max.message.bytes").unwrap(),
        "2000"
    );
    let configs = java(
        &[&["kafka-configs", "--describe"], &entity[..]].concat(),
        "",
    )
    .await;
    assert!(
        configs.contains("DYNAMIC_TOPIC_CONFIG:max.message.bytes=2000"),
        "{configs}"
    );
    broker.shutdown().await;
}

/// A committed offset shows as the lag of a group without members.
#[tokio::test(flavor = "multi_thread")]
async fn the_java_tools_show_the_lag_of_a_group() {
    let Some(tool) = java_tools() else { return };
    let broker = broker().await;
    let server = broker.bootstrap();
    let kcat = ["-P", "-b", &server, "-t", "t", "-p", "0"];
    if run("kcat", &kcat, "1\n2\n3\n").await.is_none() {
        return;
    }
    let groups = ["kafka-consumer-groups", "--bootstrap-server", &server];
    let reset = [
        "--group",
        "g",
        "--reset-offsets",
        "--to-offset",
        "2",
        "--execute",
        "--topic",
        "t:0",
    ];
    let reset = run(&tool, &[&groups[..], &reset].concat(), "")
        .await
        .unwrap();
    reset.output();
    assert_eq!(broker.committed_offset("g", "t", 0), Some(2));
    let describe = [&groups[..], &["--describe", "--group", "g"]].concat();
    let described = run(&tool, &describe, "").await.unwrap().output();
    let line = described
        .lines()
        .find(|line| line.starts_with("g "))
        .unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[..6], ["g", "t", "0", "2", "3", "1"], "{described}");
    broker.shutdown().await;
}

/// A Java producer writes transactions, a Java consumer reads what is committed, and the tools see a transaction that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn the_java_tools_write_and_read_transactions() {
    let Some(tool) = java_tools() else { return };
    let broker = broker().await;
    let server = broker.bootstrap();
    let written = [
        "kafka-producer-perf-test",
        "--topic",
        "t",
        "--num-records",
        "50",
        "--record-size",
        "20",
        "--throughput",
        "-1",
        "--transactional-id",
        "java",
        "--transaction-duration-ms",
        "1",
        "--bootstrap-server",
        &server,
    ];
    run(&tool, &written, "").await.unwrap().output();
    assert_eq!(broker.records_committed("t").len(), 50);
    let ends = |broker: &Broker| {
        let end = |partition| broker.high_watermark("t", partition).unwrap().value();
        end(0) + end(1)
    };
    assert!(ends(&broker) > 50, "its markers have offsets");
    // Somebody's transaction hangs behind them: what follows it is not committed.
    let mut wire = Wire::connect(&server).await;
    let hanging = hang(&mut wire, "hanging").await;
    broker.append("t", 0, vec![Record::default()]).unwrap();
    let mut read = Vec::new();
    for partition in ["0", "1"] {
        let args = [
            "kafka-console-consumer",
            "--bootstrap-server",
            &server,
            "--topic",
            "t",
            "--partition",
            partition,
            "--offset",
            "earliest",
            "--isolation-level",
            "read_committed",
            "--timeout-ms",
            "3000",
        ];
        let lines = run(&tool, &args, "").await.unwrap().output();
        read.extend(lines.lines().map(str::to_owned));
    }
    assert_eq!(read.len(), 50);
    let transactions = ["kafka-transactions", "--bootstrap-server", &server];
    let listed = run(&tool, &[&transactions[..], &["list"]].concat(), "").await;
    let listed = listed.unwrap().output();
    let line = |id: &str| {
        let line = listed.lines().find(|line| line.starts_with(id)).unwrap();
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(line("hanging").last().unwrap(), "Ongoing", "{listed}");
    assert_eq!(line("java").last().unwrap(), "CompleteCommit", "{listed}");
    let describe = ["describe-producers", "--topic", "t", "--partition", "0"];
    let described = run(&tool, &[&transactions[..], &describe].concat(), "").await;
    let described = described.unwrap().output();
    let line = described
        .lines()
        .find(|line| line.starts_with(&hanging.to_string()));
    assert!(line.is_some(), "{described}");
    broker.shutdown().await;
}

/// Leaves a transaction with one record in partition 0 of `t` open; answers the producer id.
async fn hang(wire: &mut Wire, id: &'static str) -> i64 {
    let id = TransactionalId(StrBytes::from_static_str(id));
    let init = InitProducerIdRequest::default()
        .with_transactional_id(Some(id.clone()))
        .with_transaction_timeout_ms(900_000);
    let producer = wire.call(4, &init).await;
    let topic = AddPartitionsToTxnTopic::default()
        .with_name(name("t"))
        .with_partitions(vec![0]);
    let add = AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(id.clone())
        .with_v3_and_below_producer_id(producer.producer_id)
        .with_v3_and_below_producer_epoch(producer.producer_epoch)
        .with_v3_and_below_topics(vec![topic]);
    wire.call(3, &add).await;
    let mut records = batch(&[(None, "hangs")], -1);
    records = patch(records, 21, &16_i16.to_be_bytes());
    records = patch(records, 43, &producer.producer_id.0.to_be_bytes());
    records = patch(records, 51, &[0; 6]);
    let produced = produce("t", 0, records).with_transactional_id(Some(id));
    let answer = wire.call(9, &produced).await;
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
    producer.producer_id.0
}
