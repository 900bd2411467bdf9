//! kcat, confluent-kafka and Kafka's own tools against the sandbox.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
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
    let present = run("python3", &["-c", "import confluent_kafka"], "").await;
    if !present.is_some_and(|run| run.success) {
        println!("skipped: Python's confluent_kafka is not installed");
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
