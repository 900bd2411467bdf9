//! kcat, confluent-kafka and Kafka's own tools against the sandbox.

use std::path::PathBuf;
use std::process::Stdio;

use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig, GroupState, GroupView};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::{Duration, timeout};

use crate::wire::{broker, secure_broker};

/// A Java tool takes seconds on an idle machine.
const TOOL_MAX: Duration = Duration::from_secs(90);

struct Run {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Run {
    /// Standard output of a run that succeeded.
    fn output(self) -> String {
        assert!(self.success, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs a tool with this input; `None`, with the reason printed, when it is not installed.
async fn run(program: &str, args: &[&str], input: &str) -> Option<Run> {
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

/// Topics, acks, headers, commits, groups, configurations, deletion and SASL: `confluent.py` asserts each.
#[tokio::test(flavor = "multi_thread")]
async fn confluent_kafka_does_its_daily_work() {
    let broker = broker().await;
    let secure = secure_broker().await;
    if !confluent_is_present().await {
        return;
    }
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

async fn confluent_is_present() -> bool {
    let present = run("python3", &["-c", "import confluent_kafka"], "").await;
    let is_present = present.is_some_and(|run| run.success);
    if !is_present {
        println!("skipped: Python's confluent_kafka is not installed");
    }
    is_present
}

/// Members come, leave, die and come back, with the eager and the incremental protocol: `confluent_groups.py` asserts each.
#[tokio::test(flavor = "multi_thread")]
async fn confluent_kafka_shares_the_work_in_groups() {
    if !confluent_is_present().await {
        return;
    }
    let broker = short_sessions().await;
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/sandbox_broker/confluent_groups.py"
    );
    let args = [script, &broker.bootstrap(), "work"];
    assert_eq!(
        run("python3", &args, "").await.unwrap().output().trim(),
        "done"
    );
    broker.shutdown().await;
}

/// A broker that takes sessions of a second, with a topic `work` of four partitions.
async fn short_sessions() -> Broker {
    let config = BrokerConfig {
        group_session_timeout_min: Duration::from_secs(1),
        ..BrokerConfig::default()
    };
    let broker = Broker::start(config).await.unwrap();
    broker.create_topic("work", 4, &[]).unwrap();
    broker
}

/// Where `tool.sh` of the Java tools lies; `None`, with the reason printed, when it is not there.
fn java_tools() -> Option<String> {
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

/// A console consumer as a member of the group `j`, with a short session.
fn console_consumer(tool: &str, server: &str) -> Child {
    let args = [
        "kafka-console-consumer",
        "--bootstrap-server",
        server,
        "--topic",
        "work",
        "--group",
        "j",
        "--command-property",
        "session.timeout.ms=3000",
        "--command-property",
        "heartbeat.interval.ms=500",
    ];
    Command::new(tool)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn java_consumers_share_the_work_in_a_group() {
    let Some(tool) = java_tools() else { return };
    let broker = short_sessions().await;
    let server = broker.bootstrap();
    let shared_by = async |members: usize| {
        let is_shared = |view: &GroupView| {
            let mut partitions = view.members.iter().map(|member| member.partitions.len());
            view.state == GroupState::Stable
                && view.members.len() == members
                && partitions.all(|assigned| assigned == 4 / members)
        };
        let wait = timeout(TOOL_MAX, broker.wait_for_group("j", is_shared));
        wait.await.expect("the group is shared in time")
    };
    let mut dies = console_consumer(&tool, &server);
    let leaves = console_consumer(&tool, &server);
    let view = shared_by(2).await;
    let groups = ["kafka-consumer-groups", "--bootstrap-server", &server];
    let describe = async |what: &[&str]| {
        let args = [&groups[..], &["--describe", "--group", "j"], what].concat();
        run(&tool, &args, "").await.unwrap().output()
    };
    let members = describe(&["--members", "--verbose"]).await;
    for member in &view.members {
        let line = members
            .lines()
            .find(|line| line.contains(&member.member_id));
        let line = line.unwrap_or_else(|| panic!("{members}"));
        let [one, two] = [0, 1].map(|index| member.partitions[index].partition);
        let told = format!(" work:{one},{two} ");
        assert!(line.contains(&told), "{told}: {members}");
    }
    let state = describe(&["--state"]).await;
    assert!(state.contains("Stable"), "{state}");
    let lags = describe(&[]).await;
    let owned = lags
        .lines()
        .filter(|line| line.contains("console-consumer-"));
    assert_eq!(owned.count(), 4, "{lags}");
    dies.kill().await.unwrap();
    shared_by(1).await;
    let pid = leaves.id().unwrap().to_string();
    run("kill", &["-TERM", &pid], "").await.unwrap().output();
    let is_empty = |view: &GroupView| view.state == GroupState::Empty;
    let wait = timeout(TOOL_MAX, broker.wait_for_group("j", is_empty));
    wait.await.expect("a consumer that ends leaves");
    broker.shutdown().await;
}
