//! `dead-letters list | show | replay` against the sandbox's servers, beside a processor that gives documents up.
#![cfg(feature = "sandbox")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser as _;
use jiff::Timestamp;
use kafka_llm_processor::app::App;
use kafka_llm_processor::cli::args::{Cli, Command};
use kafka_llm_processor::cli::dead_letters::{
    self, Completion, DeadLetterSettings, DeadLettersError,
};
use kafka_llm_processor::cli::output::Terminal;
use kafka_llm_processor::clock;
use kafka_llm_processor::config::{Override, Settings};
use kafka_llm_processor::records::dead_letter::{
    DeadLetter, HeaderStyle, ORIGINAL_TIMESTAMP, REPLAY_COUNT, replay_count,
};
use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, BrokerConfig, ErrorCode};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::{
    DeadLetterReason, Header, Offset, Record, SourcePosition, TopicPartition,
};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);
const LONG_AGO: i64 = 1_600_000_000_000;
const AT_LEAST_ONCE: &str = "processing.guarantee=at_least_once";
const EXACTLY_ONCE: &str = "processing.guarantee=exactly_once";

/// A broker with an input topic of three partitions.
struct World {
    broker: Broker,
    settings: Vec<String>,
}

impl World {
    async fn new(settings: &[&str]) -> Self {
        let broker = Broker::start(BrokerConfig::default()).await.unwrap();
        broker.create_topic("docs", 3, &[]).unwrap();
        let settings = settings.iter().map(|&setting| setting.to_owned());
        Self {
            broker,
            settings: settings.collect(),
        }
    }

    fn settings(&self, more: &[String]) -> Settings {
        let brokers = format!("kafka.brokers={}", self.broker.bootstrap());
        let fixed = [
            brokers.as_str(),
            "input.topics=docs",
            "output.topic=results",
            "dead_letters.topic=dead",
            "kafka.group_id=test",
            "kafka.request_timeout=2s",
            "admin.listen=off",
            "log.file=off",
            "input.fetch_wait=50ms",
        ];
        let all = fixed.into_iter().map(str::to_owned);
        let all = all.chain(self.settings.iter().cloned());
        let overrides: Vec<_> = all
            .chain(more.iter().cloned())
            .map(|set| {
                let (key, value) = set.split_once('=').unwrap();
                Override {
                    key: key.into(),
                    value: value.into(),
                    flag: "test".into(),
                }
            })
            .collect();
        Settings::load(None, [], &overrides).unwrap()
    }

    /// Runs the processor until what is in the input has its end.
    async fn process(&self, more: &[&str]) {
        let vllm = Vllm::start(VllmConfig {
            latency: Latency::ZERO,
            ..VllmConfig::default()
        });
        let vllm = vllm.await.unwrap();
        let mut settings: Vec<_> = more.iter().map(|&setting| setting.to_owned()).collect();
        settings.push(format!("llm.url={}", vllm.url()));
        let app = App::build(self.settings(&settings)).unwrap();
        let drain = CancellationToken::new();
        let running = tokio::spawn(app.run(drain.clone(), false));
        let deadline = Instant::now() + DEADLINE;
        while !self.is_all_committed() {
            assert!(
                Instant::now() < deadline,
                "the processor does not get through"
            );
            sleep(Duration::from_millis(20)).await;
        }
        drain.cancel();
        let (end, _) = running.await.unwrap();
        assert_eq!(end.exit_code(), 0, "{end:?}");
    }

    /// The commits say that every partition is through.
    fn is_all_committed(&self) -> bool {
        let mut next = BTreeMap::new();
        for (_, _, record) in self.broker.records_committed("test-commits") {
            let commit: Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
            let key = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
            next.insert(key, commit["next_offset"].as_i64());
        }
        (0..3).all(|partition| {
            let end = self.broker.high_watermark("docs", partition).unwrap();
            next.get(&format!("docs/{partition}")) == Some(&Some(end.value()))
        })
    }

    fn put(&self, partition: i32, key: &str, value: &str) -> Offset {
        let record = Record {
            key: Some(key.to_owned().into()),
            value: Some(value.to_owned().into()),
            headers: vec![Header::new("own", "1"), Header::new("own", "2")],
            timestamp_ms: LONG_AGO,
        };
        self.broker.append("docs", partition, vec![record]).unwrap()
    }

    /// Puts dead letters of so many documents into each of two partitions of their topic.
    fn give_up(&self, count: i64, style: HeaderStyle) {
        self.broker.create_topic("dead", 2, &[]).unwrap();
        for partition in 0..2 {
            let letters: Vec<_> = (0..count)
                .map(|number| {
                    letter(partition, number).record(&document(partition, number), "test", style)
                })
                .collect();
            for letters in letters.chunks(400) {
                self.broker
                    .append("dead", partition, letters.to_vec())
                    .unwrap();
            }
        }
    }

    async fn command(&self, arguments: &[&str]) -> (Result<Completion, DeadLettersError>, String) {
        self.command_until(arguments, &CancellationToken::new())
            .await
    }

    async fn command_until(
        &self,
        arguments: &[&str],
        shutdown: &CancellationToken,
    ) -> (Result<Completion, DeadLettersError>, String) {
        let words = ["klp", "dead-letters"];
        let arguments = words.iter().chain(arguments).copied();
        let Some(Command::DeadLetters(args)) = Cli::try_parse_from(arguments).unwrap().command
        else {
            panic!("another command");
        };
        let settings = self.settings(&[]);
        let given_up = DeadLetterSettings {
            kafka: &settings.kafka,
            topic: &settings.dead_letters.topic,
            guarantee: settings.processing.guarantee,
        };
        let (terminal, mut out) = (Terminal::plain(), Vec::new());
        let done = dead_letters::run(&args, given_up, &terminal, &mut out, shutdown).await;
        (done, String::from_utf8(out).unwrap())
    }

    async fn done(&self, arguments: &[&str]) -> String {
        let (done, out) = self.command(arguments).await;
        assert_eq!(done.unwrap(), Completion::Done, "{arguments:?}: {out}");
        out
    }

    async fn report(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<_> = arguments.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.done(&arguments).await).unwrap()
    }

    /// The documents in the input that a reader sees who keeps to what is committed, by key.
    fn documents(&self) -> BTreeMap<String, usize> {
        let mut documents = BTreeMap::new();
        for (_, _, record) in self.broker.records_committed("docs") {
            let key = String::from_utf8(record.key.unwrap().to_vec()).unwrap();
            *documents.entry(key).or_default() += 1;
        }
        documents
    }
}

fn document(partition: i32, number: i64) -> Record {
    Record {
        key: Some(format!("{partition}-{number}").into()),
        value: Some(Bytes::from_static(b"{broken")),
        headers: Vec::new(),
        timestamp_ms: LONG_AGO,
    }
}

fn letter(partition: i32, number: i64) -> DeadLetter {
    let reason = if number % 2 == 0 {
        DeadLetterReason::AttemptsExhausted
    } else {
        DeadLetterReason::InvalidJson
    };
    DeadLetter {
        reason,
        detail: "why".to_owned(),
        http_status: None,
        attempts: 0,
        request_id: None,
        answer: None,
        at: Timestamp::from_second(1_700_000_000 + number).unwrap(),
        source: SourcePosition {
            topic_partition: TopicPartition::new("docs", partition),
            offset: Offset::new(number),
        },
    }
}

fn lines(out: &str) -> Vec<Value> {
    let lines = out.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The whole way, with both drivers and in every style: given up, listed, shown, tried dry, replayed, given up again, and in the end parked.
#[tokio::test]
#[allow(
    clippy::too_many_lines,
    reason = "one story, from the first run to the last"
)]
async fn what_was_given_up_goes_round_until_it_is_parked() {
    for (style, flavour) in [
        ("connect", "kafka.driver=rskafka"),
        ("spring", "kafka.driver=wire"),
        ("share", EXACTLY_ONCE),
    ] {
        let (name, offset): (_, &[u8]) = match style {
            "connect" => ("__connect.errors.offset", b"1"),
            "spring" => ("kafka_dlt-original-offset", &[0, 0, 0, 0, 0, 0, 0, 1]),
            _ => ("__dlq.errors.offset", b"1"),
        };
        let style = format!("dead_letters.header_style={style}");
        let world = World::new(&[&style, flavour]).await;
        world.put(0, "a", r#"{"content": "A good document."}"#);
        world.put(0, "b", "{broken");
        world.put(1, "c", r#"{"id": "named", "title": "no content"}"#);
        world.put(2, "d", "{broken too");
        world.process(&[]).await;

        let letters = world.broker.records_committed("dead");
        let header = letters[0].2.header(name).unwrap();
        assert_eq!(header, offset, "{style}");

        let out = world.done(&["list"]).await;
        assert!(out.contains("3 dead letters"), "{out}");
        assert!(
            out.contains("missing_content") && out.contains("named"),
            "{out}"
        );
        let all = lines(&world.done(&["list", "--json"]).await);
        assert_eq!(all.len(), 3);
        for (filter, count) in [
            (&["--reason", "invalid_json"][..], 2),
            (&["--reason", "invalid_json", "--key", "d"], 1),
            (&["--partition", "1"], 1),
            (&["--topic", "docs", "--since", "1h"], 3),
            (&["--until", "1h"], 0),
            (&["--topic", "news"], 0),
            (&["--count", "2"], 2),
        ] {
            let arguments: Vec<_> = ["list", "--json"].iter().chain(filter).copied().collect();
            assert_eq!(
                lines(&world.done(&arguments).await).len(),
                count,
                "{filter:?}"
            );
        }
        let place = &all[1]["position"];
        let place = format!("{}:{}", place["partition"], place["offset"]);
        for target in [place.as_str(), "named"] {
            let out = world.done(&["show", target]).await;
            for part in [
                "missing_content",
                "no content",
                "klp.error.reason",
                "docs/1@0",
            ] {
                assert!(out.contains(part), "no {part} in {out}");
            }
        }
        let error = world.command(&["show", "0:99"]).await.0.unwrap_err();
        assert!(error.to_string().contains("0:99"), "{error}");

        let before = world.documents();
        let out = world.done(&["replay", "--dry-run"]).await;
        assert!(out.contains("would replay 3 documents to docs"), "{out}");
        assert!(out.contains("invalid_json            2 ████"), "{out}");
        assert_eq!(world.documents(), before, "nothing was written");

        let began = clock::now().as_millisecond();
        let report = world.report(&["replay", "--max-replays", "2"]).await;
        assert_eq!(report["replayed"], 3, "{report}");
        let sent = world.broker.records_committed("docs");
        for (key, partition) in [("b", 0), ("c", 1), ("d", 2)] {
            let of_key = sent
                .iter()
                .filter(|(_, _, record)| record.key.as_deref() == Some(key.as_bytes()));
            let of_key: Vec<_> = of_key.collect();
            let [(_, _, first), (place, _, again)] = of_key[..] else {
                panic!("{key}: {of_key:?}");
            };
            assert_eq!(place.partition, partition, "where it came from");
            assert_eq!(again.value, first.value);
            assert!(again.timestamp_ms >= began, "retention begins anew");
            let own = again.headers.iter().filter(|header| header.name == "own");
            // rskafka hands of two headers with one name the last one on when it gives a document up.
            let expected = if flavour == "kafka.driver=rskafka" {
                1
            } else {
                2
            };
            assert_eq!(own.count(), expected, "{again:?}");
            let others = again.headers.iter().filter(|header| header.name != "own");
            let others: Vec<_> = others.map(|header| header.name.as_str()).collect();
            assert_eq!(others, [REPLAY_COUNT, ORIGINAL_TIMESTAMP]);
            assert_eq!(
                again.header(ORIGINAL_TIMESTAMP).unwrap(),
                &LONG_AGO.to_string()
            );
        }
        assert_eq!(world.report(&["replay"]).await["replayed"], 0, "each once");

        world.process(&[]).await;
        assert_eq!(
            lines(&world.done(&["list", "--json", "--waiting"]).await).len(),
            3
        );
        let report = world.report(&["replay", "--max-replays", "2"]).await;
        assert_eq!(
            (&report["replayed"], &report["replayed_before"]),
            (&3.into(), &3.into())
        );
        world.process(&[]).await;
        let letters = world.broker.records_committed("dead");
        let counts = letters.iter().map(|(_, _, record)| replay_count(record));
        let mut counts: Vec<_> = counts.collect();
        counts.sort_unstable();
        assert_eq!(counts, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
        let report = world.report(&["replay", "--max-replays", "2"]).await;
        assert_eq!(
            (&report["replayed"], &report["parked"]),
            (&0.into(), &3.into())
        );
        let report = world
            .report(&["replay", "--max-replays", "3", "--dry-run"])
            .await;
        assert_eq!(report["replayed"], 3, "parked ones are where they were");
    }
}

#[tokio::test]
async fn what_a_setting_has_spoilt_is_processed_after_a_replay() {
    let world = World::new(&[]).await;
    for number in 0..6 {
        let value = format!(r#"{{"id": "d{number}", "body": "Revenue rose."}}"#);
        world.put(number % 3, &format!("k{number}"), &value);
    }
    world.process(&[]).await;
    assert_eq!(world.broker.records("results").len(), 0);
    assert_eq!(world.report(&["replay"]).await["replayed"], 6);
    world.process(&["input.content_field=body"]).await;
    assert_eq!(world.broker.records("results").len(), 6);
    assert_eq!(world.broker.records("dead").len(), 6);
}

#[tokio::test]
async fn a_replay_that_broke_goes_on_where_it_was() {
    for (guarantee, style) in [
        (AT_LEAST_ONCE, HeaderStyle::Spring),
        (EXACTLY_ONCE, HeaderStyle::Share),
    ] {
        let world = World::new(&[guarantee]).await;
        world.give_up(1_200, style);
        let faults = world.broker.faults();
        let refusal = faults.on(ApiKey::Produce).topic("docs").after(3).keep();
        let refusal = refusal.answer(ErrorCode::TopicAuthorizationFailed);
        let (done, _) = world.command(&["replay"]).await;
        let message = done.unwrap_err().to_string();
        assert!(message.contains("Run the command again"), "{message}");
        let sent = world.documents().len();
        assert!((1..2_400).contains(&sent), "{sent}");
        refusal.remove();
        let report = world.report(&["replay"]).await;
        assert_eq!(report["replayed_before"], sent);
        assert_eq!(report["replayed"], 2_400 - sent);
        let documents = world.documents();
        assert_eq!(documents.len(), 2_400);
        assert!(documents.values().all(|times| *times == 1), "{guarantee}");
    }
}

/// What was sent and not marked yet when a run dies: nothing under exactly once, one chunk at least once.
#[tokio::test]
async fn a_replay_that_died_before_its_marks_doubles_at_most_a_chunk() {
    for (guarantee, doubled_max) in [(AT_LEAST_ONCE, 500), (EXACTLY_ONCE, 0)] {
        let world = World::new(&[guarantee]).await;
        world.give_up(1_200, HeaderStyle::Connect);
        let faults = world.broker.faults();
        let death = faults
            .on(ApiKey::Produce)
            .topic("dead-replays")
            .after(1)
            .keep();
        let death = death.answer(ErrorCode::TopicAuthorizationFailed);
        assert!(world.command(&["replay"]).await.0.is_err());
        death.remove();
        world.done(&["replay"]).await;
        let documents = world.documents();
        assert_eq!(documents.len(), 2_400, "nothing is left out");
        let doubled: usize = documents.values().map(|times| times - 1).sum();
        assert!(doubled <= doubled_max, "{guarantee}: {doubled}");
    }
}

#[tokio::test]
async fn lost_answers_double_nothing() {
    for guarantee in [AT_LEAST_ONCE, EXACTLY_ONCE] {
        let world = World::new(&[guarantee]).await;
        world.give_up(600, HeaderStyle::Connect);
        for api in [ApiKey::Produce, ApiKey::EndTxn] {
            world.broker.faults().on(api).times(2).hang_up_after();
            world
                .broker
                .faults()
                .on(api)
                .after(2)
                .times(1)
                .hang_up_before();
        }
        assert_eq!(world.report(&["replay"]).await["replayed"], 1_200);
        let documents = world.documents();
        assert_eq!(documents.len(), 1_200);
        assert!(documents.values().all(|times| *times == 1), "{guarantee}");
    }
}

#[tokio::test]
async fn a_replay_that_is_told_to_stop_finishes_what_is_on_its_way() {
    let world = World::new(&[]).await;
    world.give_up(1_200, HeaderStyle::Connect);
    let held = world
        .broker
        .faults()
        .on(ApiKey::Produce)
        .topic("docs")
        .times(1)
        .hold();
    let shutdown = CancellationToken::new();
    let stop = async {
        held.wait_for_hits(1).await;
        shutdown.cancel();
        held.release();
    };
    let ((done, out), ()) = tokio::join!(world.command_until(&["replay"], &shutdown), stop);
    assert_eq!(done.unwrap(), Completion::Stopped, "{out}");
    let sent = world.documents().len();
    assert!((1..2_400).contains(&sent), "{sent}");
    assert!(
        out.contains(&format!("replayed {sent} documents to docs")),
        "{out}"
    );
    assert_eq!(world.report(&["replay"]).await["replayed"], 2_400 - sent);
    assert!(world.documents().values().all(|times| *times == 1));
}

#[tokio::test]
async fn filters_and_counts_take_parts_and_later_runs_the_rest() {
    let world = World::new(&[]).await;
    world.give_up(50, HeaderStyle::Share);
    let report = world
        .report(&["replay", "--reason", "invalid_json", "--count", "20"])
        .await;
    assert_eq!(report["replayed_by_reason"]["invalid_json"], 20);
    let report = world
        .report(&["replay", "--reason", "invalid_json", "--partition", "1"])
        .await;
    assert_eq!(report["replayed"], 25);
    let report = world
        .report(&["replay", "--key", "0-0", "--to", "docs"])
        .await;
    assert_eq!(
        (&report["replayed"], &report["not_meant"]),
        (&1.into(), &99.into())
    );
    let report = world.report(&["replay"]).await;
    assert_eq!(
        (&report["replayed"], &report["replayed_before"]),
        (&54.into(), &46.into())
    );
    assert_eq!(world.documents().len(), 100);
    assert!(world.documents().values().all(|times| *times == 1));
    let marks = world.broker.topic_config("dead-replays", "cleanup.policy");
    assert_eq!(marks.as_deref(), Some("compact"));
}

#[tokio::test]
async fn a_pointer_is_replayed_from_its_input_topic_while_the_document_is_there() {
    let world = World::new(&[]).await;
    world
        .broker
        .create_topic("dead", 1, &[("max.message.bytes", "1800")])
        .unwrap();
    let noise: String = (0..4_000_u32)
        .map(|n| format!("{:x} ", n.wrapping_mul(2_654_435_761)))
        .collect();
    world.put(0, "large", &format!("{{{noise}"));
    world.put(1, "larger", &format!("{{{{{noise}"));
    world.process(&[]).await;
    let letters = world.broker.records("dead");
    assert!(letters.iter().all(|(_, _, record)| record.value.is_none()));
    world
        .broker
        .delete_records("docs", 1, Offset::new(1))
        .unwrap();
    let (done, out) = world.command(&["replay"]).await;
    assert_eq!(done.unwrap(), Completion::Incomplete);
    assert!(out.contains("replayed 1 document to docs"), "{out}");
    assert!(out.contains("left 1: the document was left out"), "{out}");
    let documents = world.broker.records("docs");
    let [(_, _, first), (_, _, again)] = &documents[..] else {
        panic!("{documents:?}");
    };
    assert_eq!((&again.key, &again.value), (&first.key, &first.value));
    assert_eq!(replay_count(again), 1);
}

#[tokio::test]
async fn what_cannot_be_meant_is_told() {
    let world = World::new(&[]).await;
    for arguments in [&["list"][..], &["show", "0:0"], &["replay"]] {
        let error = world.command(arguments).await.0.unwrap_err();
        assert!(error.to_string().contains("dead_letters.topic"), "{error}");
    }
    world.give_up(2, HeaderStyle::Connect);
    world
        .broker
        .append("dead", 0, vec![document(0, 7)])
        .unwrap();
    assert!(
        world
            .done(&["list"])
            .await
            .contains("4 dead letters; 1 records are not of this program")
    );
    for (arguments, part) in [
        (&["list", "--partition", "2"][..], "no partition 2"),
        (&["show", "2:0"], "no partition 2"),
        (&["show", "nobody"], "`nobody`"),
        (&["replay", "--to", "nowhere"], "--to nowhere"),
        (&["replay", "--to", "dead"], "--to dead"),
    ] {
        let error = world.command(arguments).await.0.unwrap_err();
        assert!(error.to_string().contains(part), "{arguments:?}: {error}");
    }
    world.broker.create_topic("dead-replays", 1, &[]).unwrap();
    let error = world.command(&["replay"]).await.0.unwrap_err();
    assert!(error.to_string().contains("cleanup.policy"), "{error}");
    world.broker.delete_topic("dead-replays").unwrap();
    world.broker.delete_topic("docs").unwrap();
    let (done, out) = world.command(&["replay"]).await;
    assert_eq!(done.unwrap(), Completion::Incomplete);
    assert!(
        out.contains("left 4: the input topic does not exist"),
        "{out}"
    );
}
