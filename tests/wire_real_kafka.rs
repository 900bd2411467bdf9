//! The wire connection against the real Apache Kafka: one broker, started once, all scenarios in turn; group membership beside it, on a
//! broker of its own.
//!
//! `REAL_KAFKA_TOOLS` names the folder of `serve-secure.sh` and `tool.sh`, as an absolute path;
//! without it, or without Java, the suite says so and passes, unless `REAL_KAFKA_REQUIRED=1`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "these are tests; clippy knows only functions marked as tests"
)]

#[path = "wire_real_kafka/streams.rs"]
mod streams;
mod support;

#[path = "wire_real_kafka/membership.rs"]
mod membership;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kafka_llm_processor::kafka::wire::{Cluster, Creation, Isolation, NewTopic, OffsetAt};
use kafka_llm_processor::kafka::{
    KafkaConfig, KafkaError, LogReader, SaslMechanism, SecurityProtocol,
};
use kafka_llm_processor::types::{Offset, Record, Secret, TopicPartition};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, UnknownTopicHandling};
use tokio::time::Instant;

use crate::support::kafka::{Broker, tool, tools};

/// The plain listener; SASL listens two above it.
const PORT: u16 = 23000;
const SASL_PORT: u16 = PORT + 2;
/// Nothing listens here.
const REFUSED_PORT: u16 = 23099;

fn config(port: u16) -> KafkaConfig {
    KafkaConfig {
        brokers: format!("127.0.0.1:{port}"),
        ..KafkaConfig::default()
    }
}

fn sasl(mechanism: SaslMechanism, password: &str) -> KafkaConfig {
    KafkaConfig {
        security_protocol: SecurityProtocol::SaslPlaintext,
        sasl_mechanism: mechanism,
        sasl_username: "alice".to_owned(),
        sasl_password: Some(Secret::new(password)),
        ..config(SASL_PORT)
    }
}

fn topic(name: &str, partitions: i32, configs: &[(&str, &str)]) -> NewTopic {
    NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor: -1,
        configs: configs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

/// Reads a partition from its start to its high watermark, as a recovery does.
async fn read_all(cluster: &Cluster, partition: &TopicPartition) -> Vec<(Offset, Record)> {
    let (mut next, end) = cluster.log_bounds(partition).await.expect("bounds");
    let mut records = Vec::new();
    while next < end {
        let fetched = cluster
            .read(partition, next, Duration::from_millis(500))
            .await
            .expect("a read");
        assert!(fetched.next_offset >= next, "reading goes forward");
        next = fetched.next_offset;
        records.extend(fetched.records);
    }
    records
}

#[tokio::test]
async fn the_wire_connection_works_with_the_real_kafka() {
    let Some(tools) = tools() else {
        return;
    };
    let started = Instant::now();
    let broker = Broker::start(&tools, PORT).await;
    eprintln!("broker ready after {:?}", started.elapsed());
    let cluster = Cluster::new(&config(PORT));

    macro_rules! scenarios {
        ($($name:ident($($argument:expr),*);)*) => {$(
            let started = Instant::now();
            $name($($argument),*).await;
            eprintln!("{} ({:?})", stringify!($name), started.elapsed());
        )*};
    }
    scenarios! {
        a_refused_port_is_unreachable_at_once();
        a_compacted_topic_is_created_and_its_configuration_read_back(&cluster);
        the_cluster_describes_itself(&cluster);
        records_of_rskafka_are_read_back(&cluster);
        an_offset_outside_the_log_names_the_log(&cluster);
        transaction_markers_are_stepped_over(&cluster, &tools);
        aborted_records_are_left_out(&cluster, &tools);
        streams_and_scans(&cluster, &tools, &broker);
        committed_offsets_are_seen_by_kafkas_own_tool(&cluster, &tools);
        sasl_takes_the_right_password_and_no_other();
        a_sasl_listener_without_sasl_is_told_apart();
        a_long_poll_delays_no_other_request(&cluster);
        a_stopped_broker_is_a_timeout_and_survived(&cluster, &broker);
        a_killed_broker_is_unreachable_at_once(&cluster, &broker);
    }
}

async fn streams_and_scans(cluster: &Cluster, tools: &Path, broker: &Broker) {
    if streams::has_confluent().await {
        streams::a_foreign_open_transaction_neither_hides_nor_blocks(cluster).await;
        streams::a_stream_reads_what_kafkas_own_consumer_reads(cluster, tools).await;
        streams::compaction_gaps_are_stepped_over(cluster, tools).await;
        streams::a_thousand_idle_partitions_cost_little(cluster).await;
    }
    streams::a_stopped_broker_is_noticed_by_a_stream(cluster, broker).await;
}

async fn a_refused_port_is_unreachable_at_once() {
    let started = Instant::now();
    let error = Cluster::new(&config(REFUSED_PORT))
        .list_topics()
        .await
        .expect_err("nothing listens there");
    assert!(matches!(error, KafkaError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("kafka.brokers"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(1), "at once");
}

async fn a_compacted_topic_is_created_and_its_configuration_read_back(cluster: &Cluster) {
    let compacted = topic(
        "commits",
        3,
        &[("cleanup.policy", "compact"), ("segment.bytes", "16777216")],
    );
    let created = cluster.create_topic(&compacted).await.expect("created");
    assert_eq!(created, Creation::Created);
    let again = cluster.create_topic(&compacted).await.expect("there");
    assert_eq!(again, Creation::AlreadyExists);

    let described = cluster.describe_topics(&["commits", "absent"]).await;
    let described = described.expect("described");
    assert_eq!(described["absent"], None);
    let commits = described["commits"].as_ref().expect("it exists");
    assert_eq!((commits.partitions, commits.replication_factor), (3, 1));
    assert_eq!(commits.leaders_missing, 0);
    assert!(!commits.id.is_nil(), "topic ids are told");
    let names = cluster.list_topics().await.expect("listed");
    assert!(names.contains(&"commits".to_owned()), "{names:?}");

    let keys = ["cleanup.policy", "segment.bytes", "retention.ms"];
    let configs = cluster.topic_configs("commits", &keys).await.expect("read");
    let policy = &configs["cleanup.policy"];
    assert_eq!(policy.value.as_deref(), Some("compact"));
    assert!(!policy.is_default, "it was set on the topic");
    assert!(configs["retention.ms"].is_default);

    let plain = topic("plain", 1, &[]);
    cluster.create_topic(&plain).await.expect("created");
    let configs = cluster.topic_configs("plain", &keys).await.expect("read");
    assert_eq!(configs["cleanup.policy"].value.as_deref(), Some("delete"));
    assert!(configs["cleanup.policy"].is_default);

    let error = cluster
        .topic_configs("absent", &keys)
        .await
        .expect_err("no");
    assert!(
        matches!(error, KafkaError::UnknownTopic { .. }),
        "{error:?}"
    );
    let wrong = topic("wrong", 1, &[("cleanup.policy", "shred")]);
    let error = cluster.create_topic(&wrong).await.expect_err("no policy");
    assert!(
        matches!(&error, KafkaError::Server { code: 40, detail: Some(text), .. } if text.contains("shred")),
        "{error}"
    );
}

async fn the_cluster_describes_itself(cluster: &Cluster) {
    let described = cluster.cluster_description().await.expect("described");
    assert_eq!(described.brokers.len(), 1);
    assert_eq!(described.brokers[0].port, i32::from(PORT));
    assert_eq!(described.controller_id, Some(1));
    assert!(described.cluster_id.is_some());
    assert!(described.metadata_version.is_some());
    assert!(described.api_versions.contains_key(&1), "Fetch is offered");
}

async fn records_of_rskafka_are_read_back(cluster: &Cluster) {
    // The broker's retention deletes what is older than a week by its own timestamp, and these records are.
    let rskafka = topic("rskafka", 1, &[("retention.ms", "-1")]);
    cluster.create_topic(&rskafka).await.expect("created");
    let client = ClientBuilder::new(vec![format!("127.0.0.1:{PORT}")])
        .build()
        .await
        .expect("connected");
    let writer = client
        .partition_client("rskafka", 0, UnknownTopicHandling::Error)
        .await
        .expect("a writer");
    let time = "2026-01-02T03:04:05Z".parse().expect("a time");
    for batch in 0..2 {
        let records = (0..50)
            .map(|number| rskafka::record::Record {
                key: Some(format!("key-{number}").into_bytes()),
                value: (number != 7).then(|| format!("value-{batch}-{number}").into_bytes()),
                headers: BTreeMap::from([("name".to_owned(), b"text".to_vec())]),
                timestamp: time,
            })
            .collect();
        let written = writer.produce(records, Compression::NoCompression);
        written.await.expect("written");
    }

    let partition = TopicPartition::new("rskafka", 0);
    let records = read_all(cluster, &partition).await;
    assert_eq!(records.len(), 100);
    for (index, (offset, record)) in records.iter().enumerate() {
        let (batch, number) = (index / 50, index % 50);
        assert_eq!(offset.value(), i64::try_from(index).expect("an offset"));
        let value = (number != 7).then(|| format!("value-{batch}-{number}").into_bytes());
        assert_eq!(record.value.as_deref(), value.as_deref());
        let key = format!("key-{number}");
        assert_eq!(record.key.as_deref(), Some(key.as_bytes()));
        assert_eq!(record.header("name").map(AsRef::as_ref), Some(&b"text"[..]));
        assert_eq!(record.timestamp_ms, 1_767_323_045_000);
    }

    let middle = cluster.read(&partition, Offset::new(20), Duration::ZERO);
    let middle = middle.await.expect("a read in the middle of a batch");
    assert_eq!(middle.records[0].0, Offset::new(20), "nothing before it");
    assert_eq!(middle.high_watermark, Offset::new(100));
    let at = |at| cluster.list_offset(&partition, at, Isolation::ReadUncommitted);
    let found = at(OffsetAt::Timestamp(1_767_323_045_000)).await;
    assert_eq!(found.expect("found"), Some(Offset::ZERO));
    let later = at(OffsetAt::Timestamp(1_767_323_045_001)).await;
    assert_eq!(later.expect("asked"), None);
}

async fn an_offset_outside_the_log_names_the_log(cluster: &Cluster) {
    let partition = TopicPartition::new("rskafka", 0);
    let beyond = cluster.read(&partition, Offset::new(101), Duration::ZERO);
    let error = beyond.await.expect_err("beyond the end");
    assert!(
        matches!(
            &error,
            KafkaError::OffsetOutOfRange { log_start, high_watermark, .. }
                if *log_start == Offset::ZERO && *high_watermark == Offset::new(100)
        ),
        "{error:?}"
    );
    let absent = TopicPartition::new("rskafka", 9);
    let error = cluster.log_bounds(&absent).await.expect_err("absent");
    assert!(
        matches!(error, KafkaError::UnknownPartition { .. }),
        "{error:?}"
    );
    let absent = TopicPartition::new("absent", 0);
    let error = cluster.log_bounds(&absent).await.expect_err("absent");
    assert!(
        matches!(error, KafkaError::UnknownTopic { .. }),
        "{error:?}"
    );
}

/// The Java producer writes transactions; each leaves a marker, which rskafka cannot read.
async fn transaction_markers_are_stepped_over(cluster: &Cluster, tools: &Path) {
    let name = topic("transactions", 1, &[]);
    cluster.create_topic(&name).await.expect("created");
    let bootstrap = format!("bootstrap.servers=127.0.0.1:{PORT}");
    #[rustfmt::skip]
    let arguments = [
        "kafka-producer-perf-test", "--topic", "transactions", "--num-records", "200", "--record-size", "100",
        "--throughput", "400", "--transactional-id", "writer", "--transaction-duration-ms", "100",
        "--producer-props", &bootstrap, "acks=all", "compression.type=gzip",
    ];
    tool(tools, &arguments).await;
    let partition = TopicPartition::new("transactions", 0);
    let (_, end) = cluster.log_bounds(&partition).await.expect("bounds");
    let records = read_all(cluster, &partition).await;
    assert_eq!(records.len(), 200);
    assert!(end > Offset::new(201), "several markers: {end}");
    let last = Offset::new(end.value() - 1);
    let trailing = cluster.read(&partition, last, Duration::ZERO).await;
    let trailing = trailing.expect("a read at the last marker");
    assert!(trailing.records.is_empty());
    assert_eq!(trailing.next_offset, end);
}

/// A producer dies in the middle of a transaction; its successor's start aborts it.
async fn aborted_records_are_left_out(cluster: &Cluster, tools: &Path) {
    let name = topic("aborted", 1, &[]);
    cluster.create_topic(&name).await.expect("created");
    let partition = TopicPartition::new("aborted", 0);
    let bootstrap = format!("bootstrap.servers=127.0.0.1:{PORT}");
    let producer = |records, throughput| {
        #[rustfmt::skip]
        let arguments = [
            "kafka-producer-perf-test", "--topic", "aborted", "--num-records", records, "--record-size", "100",
            "--throughput", throughput, "--transactional-id", "mortal", "--transaction-duration-ms", "60000",
            "--producer-props", &bootstrap, "acks=all",
        ];
        arguments.map(str::to_owned)
    };
    let mut mortal = tokio::process::Command::new(tools.join("tool.sh"))
        .args(producer("100000", "100"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("the tool starts");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let wait = Duration::from_millis(500);
        let fetched = cluster.fetch(
            &partition,
            Offset::ZERO,
            Isolation::ReadUncommitted,
            1 << 20,
            wait,
        );
        if !fetched.await.expect("fetched").records.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "the producer writes");
    }
    mortal.kill().await.expect("it dies");
    let held = cluster.read(&partition, Offset::ZERO, Duration::ZERO).await;
    let held = held.expect("a read of an open transaction");
    assert!(held.records.is_empty(), "an open transaction is not read");
    assert_eq!(held.next_offset, Offset::ZERO);
    assert!(held.high_watermark > Offset::ZERO);

    let arguments = producer("50", "-1");
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    tool(tools, &arguments).await;
    let (_, end) = cluster.log_bounds(&partition).await.expect("bounds");
    let records = read_all(cluster, &partition).await;
    assert_eq!(records.len(), 50, "of {end} offsets");
    assert!(records[0].0 >= held.high_watermark, "the successor's only");
}

async fn committed_offsets_are_seen_by_kafkas_own_tool(cluster: &Cluster, tools: &Path) {
    let offsets = [
        (TopicPartition::new("rskafka", 0), Offset::new(42)),
        (TopicPartition::new("commits", 2), Offset::new(0)),
        (TopicPartition::new("absent", 0), Offset::new(1)),
    ];
    let refused = cluster.commit_group_offsets("mirror", None, &offsets).await;
    let refused = refused.expect("committed");
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(&*refused[0].partition.topic, "absent");
    let found = cluster.fetch_group_offsets("mirror").await.expect("read");
    let expected: BTreeMap<_, _> = offsets[..2].iter().cloned().collect();
    assert_eq!(found, expected);
    let nobody = cluster.fetch_group_offsets("nobody").await.expect("read");
    assert!(nobody.is_empty());

    let server = format!("127.0.0.1:{PORT}");
    #[rustfmt::skip]
    let arguments = ["kafka-consumer-groups", "--bootstrap-server", &server, "--describe", "--group", "mirror"];
    let table = tool(tools, &arguments).await;
    let line = table.lines().find(|line| line.contains("rskafka"));
    let line = line.expect("the topic is listed");
    let columns: Vec<_> = line.split_whitespace().collect();
    let expected = ["mirror", "rskafka", "0", "42", "100", "58"];
    assert_eq!(columns[..6], expected, "{table}");
}

async fn sasl_takes_the_right_password_and_no_other() {
    for mechanism in [
        SaslMechanism::Plain,
        SaslMechanism::ScramSha256,
        SaslMechanism::ScramSha512,
    ] {
        let cluster = Cluster::new(&sasl(mechanism, "alice-secret"));
        let topics = cluster.list_topics().await.expect("the right password");
        assert!(topics.contains(&"commits".to_owned()));

        let started = Instant::now();
        let cluster = Cluster::new(&sasl(mechanism, "wrong-secret"));
        let error = cluster.list_topics().await.expect_err("a wrong password");
        assert!(
            matches!(error, KafkaError::Authentication { .. }),
            "{error:?}"
        );
        let text = format!("{error} {error:?}");
        assert!(text.contains("kafka.sasl_password"), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert!(started.elapsed() < config(PORT).connect_timeout);
    }
}

async fn a_sasl_listener_without_sasl_is_told_apart() {
    let started = Instant::now();
    let error = Cluster::new(&config(SASL_PORT)).list_topics().await;
    let error = error.expect_err("the broker hangs up");
    let names_setting = error.to_string().contains("kafka.security_protocol");
    assert!(names_setting, "{error}");
    assert!(started.elapsed() < Duration::from_secs(4));
    let plain = KafkaConfig {
        brokers: config(PORT).brokers,
        ..sasl(SaslMechanism::Plain, "alice-secret")
    };
    let error = Cluster::new(&plain).list_topics().await;
    let error = error.expect_err("the listener takes no SASL");
    let names_setting = error.to_string().contains("kafka.security_protocol");
    assert!(names_setting, "{error}");
}

async fn a_long_poll_delays_no_other_request(cluster: &Cluster) {
    let partition = TopicPartition::new("plain", 0);
    let wait = Duration::from_secs(2);
    let started = Instant::now();
    let poll = cluster.read(&partition, Offset::ZERO, wait);
    let others = async {
        for _ in 0..10 {
            let described = cluster.describe_topics(&["plain"]).await;
            described.expect("described");
        }
        started.elapsed()
    };
    let (fetched, others) = tokio::join!(poll, others);
    assert!(fetched.expect("polled").records.is_empty());
    assert!(started.elapsed() >= wait, "the poll waits");
    assert!(others < wait / 2, "the others took {others:?}");
}

async fn a_stopped_broker_is_a_timeout_and_survived(cluster: &Cluster, broker: &Broker) {
    let hasty = Cluster::new(&KafkaConfig {
        request_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(1),
        ..config(PORT)
    });
    let partition = TopicPartition::new("rskafka", 0);
    hasty.log_bounds(&partition).await.expect("a connection");
    broker.signal("-STOP");
    let started = Instant::now();
    let first = hasty.log_bounds(&partition).await;
    let after_first = started.elapsed();
    let second = hasty.log_bounds(&partition).await;
    let after_second = started.elapsed();
    broker.signal("-CONT");
    // The leader that hangs is forgotten, and looked for on a new connection: whichever deadline that meets first.
    let is_told = |error: &KafkaError| {
        matches!(
            error,
            KafkaError::Timeout { .. } | KafkaError::Unreachable { .. }
        )
    };
    let first = first.expect_err("on the connection that was open");
    assert!(is_told(&first), "{first:?}");
    assert!(after_first < Duration::from_millis(2500), "{after_first:?}");
    let second = second.expect_err("on a new connection");
    assert!(is_told(&second), "{second:?}");
    assert!(after_second < Duration::from_secs(5), "{after_second:?}");
    let bounds = hasty.log_bounds(&partition).await;
    bounds.expect("the broker is back");
    cluster.list_topics().await.expect("the others go on");
}

/// The idle connections of the pool died with the broker: they are noticed, not waited for.
async fn a_killed_broker_is_unreachable_at_once(cluster: &Cluster, broker: &Broker) {
    cluster.list_topics().await.expect("a connection");
    broker.signal("-KILL");
    let started = Instant::now();
    let error = loop {
        match cluster.list_topics().await {
            Ok(_) => assert!(started.elapsed() < Duration::from_secs(5), "it dies"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, KafkaError::Unreachable { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "at once");
}
