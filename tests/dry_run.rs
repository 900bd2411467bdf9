//! `dry-run` against the sandbox's servers: what it tells, and that it leaves nothing behind.
#![cfg(feature = "sandbox")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use kafka_llm_processor::cli::dry_run::{self, DryRunArgs, DryRunError, From};
use kafka_llm_processor::cli::output::Terminal;
use kafka_llm_processor::clock;
use kafka_llm_processor::config::Settings;
use kafka_llm_processor::llm::{Concurrency, LongPolicy};
use kafka_llm_processor::offsets::{CommitRecord, Guarantee};
use kafka_llm_processor::pipeline::InputTopic;
use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, BrokerConfig};
use kafka_llm_processor::sandbox::vllm::{Latency, Vllm, VllmConfig};
use kafka_llm_processor::types::{Offset, Record, TopicPartition};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// What changes anything in a Kafka cluster, and what a writer or a member of a group begins with.
const CHANGES: [ApiKey; 17] = [
    ApiKey::Produce,
    ApiKey::OffsetCommit,
    ApiKey::FindCoordinator,
    ApiKey::JoinGroup,
    ApiKey::Heartbeat,
    ApiKey::SyncGroup,
    ApiKey::CreateTopics,
    ApiKey::DeleteTopics,
    ApiKey::DeleteRecords,
    ApiKey::InitProducerId,
    ApiKey::AddPartitionsToTxn,
    ApiKey::AddOffsetsToTxn,
    ApiKey::EndTxn,
    ApiKey::TxnOffsetCommit,
    ApiKey::CreatePartitions,
    ApiKey::AlterConfigs,
    ApiKey::IncrementalAlterConfigs,
];

const SECRET_WORDS: &str = "Confidential revenue of the third quarter";

struct Place {
    broker: Broker,
    vllm: Vllm,
    settings: Settings,
}

impl Place {
    /// An input topic of two partitions, without the topics that `run` would create.
    async fn new(vllm: VllmConfig) -> Self {
        let broker = Broker::start(BrokerConfig::default()).await.unwrap();
        broker.create_topic("docs", 2, &[]).unwrap();
        let vllm = Vllm::start(VllmConfig {
            latency: Latency::fixed(Duration::from_millis(20)),
            ..vllm
        })
        .await
        .unwrap();
        let mut settings = Settings::default();
        settings.kafka.brokers = broker.bootstrap();
        settings.input.topics = vec![InputTopic::named("docs")];
        settings.llm.url = vllm.url();
        Self {
            broker,
            vllm,
            settings,
        }
    }

    fn append(&self, partition: i32, values: Vec<Option<String>>) {
        let record = |value: Option<String>| Record {
            value: value.map(Into::into),
            timestamp_ms: 1_700_000_000_000,
            ..Record::default()
        };
        let records = values.into_iter().map(record).collect();
        self.broker.append("docs", partition, records).unwrap();
    }

    /// So many documents, the number of each in its text.
    fn documents(&self, partition: i32, count: usize) {
        let text = |number| Some(format!("{SECRET_WORDS}, report number {number}."));
        self.append(partition, (0..count).map(text).collect());
    }

    /// As a processor would have committed: up to `next_offset`, and `done` beyond it.
    fn commit(&self, partition: i32, next_offset: i64, done: &[(i64, i64)]) {
        let topic = self.settings.kafka.commit_topic();
        if self.broker.partitions(&topic).is_none() {
            let compact = [("cleanup.policy", "compact")];
            self.broker.create_topic(&topic, 2, &compact).unwrap();
        }
        let input = TopicPartition::new("docs", partition);
        let done = done
            .iter()
            .map(|(first, end)| (Offset::new(*first), Offset::new(*end)));
        let commit = CommitRecord {
            v: 1,
            topic_id: self.broker.topic_id("docs").unwrap(),
            owner: "somebody".to_owned(),
            owner_epoch: 1,
            guarantee: Guarantee::AtLeastOnce,
            next_offset: Offset::new(next_offset),
            done: done.collect(),
            audit: None,
            released: false,
            at: clock::now(),
        };
        let record = commit.into_record(&input).unwrap();
        self.broker.append(&topic, partition, vec![record]).unwrap();
    }

    async fn told(&self, args: &DryRunArgs) -> Result<String, DryRunError> {
        let mut out = Vec::new();
        let (terminal, shutdown) = (Terminal::plain(), CancellationToken::new());
        let ended = dry_run::run(args, &self.settings, &terminal, &mut out, &shutdown).await?;
        assert!(ended);
        Ok(String::from_utf8(out).unwrap())
    }

    async fn json(&self, args: DryRunArgs) -> Value {
        let told = self.told(&DryRunArgs { json: true, ..args }).await.unwrap();
        serde_json::from_str(&told).unwrap()
    }

    /// Everything that a processor could have left behind.
    fn traces(&self) -> String {
        let mut topics = self.broker.topics();
        topics.sort();
        let records = topics.iter().map(|topic| self.broker.records(topic));
        let records: Vec<_> = records.collect();
        let group = &self.settings.kafka.group_id;
        let committed: Vec<_> = (0..2)
            .map(|partition| self.broker.committed_offset(group, "docs", partition))
            .collect();
        format!(
            "{topics:?} {records:?} {committed:?} {:?} {:?}",
            self.broker.group(group),
            self.broker.open_transactions()
        )
    }
}

/// The promise: also while it asks the model, and with settings under which a processor takes transactional ids and joins its group.
#[tokio::test]
async fn nothing_is_written_created_or_committed() {
    let mut place = Place::new(VllmConfig::default()).await;
    place.settings.processing.guarantee = Guarantee::ExactlyOnce;
    place.settings.input.assignment = kafka_llm_processor::pipeline::Assignment::Group;
    place.documents(0, 20);
    place.append(1, vec![None, Some("{broken".to_owned())]);
    for has_commits in [false, true] {
        if has_commits {
            place.commit(0, 3, &[]);
        }
        let before = place.traces();
        for args in [
            DryRunArgs::default(),
            DryRunArgs {
                ask: 5,
                show_prompt: true,
                from: From::Commit,
                ..DryRunArgs::default()
            },
        ] {
            place.told(&args).await.unwrap();
        }
        assert_eq!(place.traces(), before);
    }
    let traffic = place.broker.traffic();
    for api in CHANGES {
        assert_eq!(traffic.of(api).requests, 0, "{api:?}");
    }
    assert!(traffic.of(ApiKey::Fetch).requests > 0);
}

/// Unfinished records times the mean, with records of every kind, and finished ones beyond the commit.
#[tokio::test]
async fn the_backlog_is_watermarks_minus_commits_times_the_mean() {
    let place = Place::new(VllmConfig::default()).await;
    place.documents(0, 16);
    let mut others = vec![None, None, Some("{broken".to_owned()), Some(" ".to_owned())];
    others.extend((0..12).map(|number| Some(format!("Short report {number}."))));
    place.append(1, others);
    place.commit(0, 4, &[(6, 9)]);
    let told = place.json(DryRunArgs::default()).await;
    let sample = &told["sample"];
    assert_eq!(sample["records"], 32);
    assert_eq!(sample["documents"], 28);
    assert_eq!(sample["skipped"], 2);
    assert_eq!(sample["dead_letters"]["invalid_json"], 1);
    assert_eq!(sample["dead_letters"]["empty_document"], 1);
    assert_eq!(sample["counted_by_the_server"], 28);
    assert_eq!(told["context_tokens"], 32_768);
    let backlog = &told["backlog"];
    assert_eq!(backlog["partitions"][0]["commit_offset"], 4);
    assert_eq!(backlog["partitions"][0]["unfinished"], 16 - 4 - 3);
    assert_eq!(backlog["partitions"][1]["unfinished"], 16);
    assert_eq!(backlog["unfinished"], 25);
    let estimate = &told["estimate"];
    let mean_of = |sum: u64| (25 * sum).div_ceil(32);
    assert_eq!(estimate["documents"], mean_of(28));
    let tokens = sample["load"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(estimate["prompt_tokens"], mean_of(tokens));
    assert_eq!(estimate["completion_tokens"], mean_of(28 * 1_024));
    assert!(estimate["seconds"].is_null() && estimate["cost"].is_null());
    assert_eq!(place.vllm.calls(), 0, "nothing was asked");
}

/// What the server counts is what it counts in its answers too.
#[tokio::test]
async fn tokens_are_the_servers_count_or_an_estimate_and_it_is_told_which() {
    let counting = Place::new(VllmConfig::default()).await;
    let silent = VllmConfig {
        serves_tokenize: false,
        ..VllmConfig::default()
    };
    let silent = Place::new(silent).await;
    for (place, offline, words) in [
        (&counting, false, "by the server's /tokenize"),
        (
            &silent,
            false,
            "by an estimate: the server has no /tokenize",
        ),
        (&counting, true, "by an estimate (--offline)"),
    ] {
        if place.broker.high_watermark("docs", 0) == Some(Offset::ZERO) {
            place.documents(0, 10);
        }
        let args = DryRunArgs {
            offline,
            ..DryRunArgs::default()
        };
        let told = place.told(&args).await.unwrap();
        assert!(told.contains(words), "{told}");
        assert!(told.contains("prompts        min "), "{told}");
        assert_eq!(place.vllm.calls(), 0);
    }
    let asked = counting.json(DryRunArgs {
        ask: 10,
        ..DryRunArgs::default()
    });
    let asked = asked.await;
    assert_eq!(asked["asked"]["answered"], 10);
    assert_eq!(asked["asked"]["calls"], 10);
}

/// Offline the model server need not even exist.
#[tokio::test]
async fn offline_the_model_server_is_not_needed() {
    let mut place = Place::new(VllmConfig::default()).await;
    place.documents(0, 3);
    place.vllm.stop_listener().await;
    let error = place.told(&DryRunArgs::default()).await.unwrap_err();
    assert!(error.to_string().contains("LLM_URL"), "{error}");
    place.settings.long_documents.context_tokens = Some(64);
    let offline = DryRunArgs {
        offline: true,
        ..DryRunArgs::default()
    };
    let told = place.json(offline).await;
    assert_eq!(told["sample"]["estimated"], 3);
    assert_eq!(told["sample"]["longer_than_the_context"], 3);
}

#[tokio::test]
async fn a_prompt_is_shown_only_when_it_is_asked_for_and_is_the_one_that_is_sent() {
    let place = Place::new(VllmConfig::default()).await;
    place.documents(1, 4);
    for json in [false, true] {
        let args = DryRunArgs {
            json,
            ..DryRunArgs::default()
        };
        let told = place.told(&args).await.unwrap();
        assert!(!told.contains("Confidential"), "{told}");
    }
    let shown = DryRunArgs {
        show_prompt: true,
        ask: 1,
        ..DryRunArgs::default()
    };
    let told = place.told(&shown).await.unwrap();
    assert!(told.contains("prompt of docs/1@0"), "{told}");
    assert!(
        told.contains(&format!("  {SECRET_WORDS}, report number 0.")),
        "{told}"
    );
    let told = place.json(shown).await;
    let messages = told["prompt"]["messages"].as_array().unwrap();
    let sent = place.vllm.requests();
    let sent = sent
        .iter()
        .filter(|request| request.prompt.contains("report"));
    let sent: Vec<_> = sent.map(|request| request.prompt.as_str()).collect();
    let [message] = &messages[..] else {
        panic!("{messages:?}")
    };
    assert!(!sent.is_empty());
    for sent in sent {
        assert!(message["content"].as_str().unwrap().starts_with(sent));
    }
}

/// What is longer than the context: how it would be read, and a bound on its calls that the answer keeps.
#[tokio::test]
async fn long_documents_are_told_with_what_becomes_of_them() {
    let small = VllmConfig {
        max_model_len: 2_048,
        ..VllmConfig::default()
    };
    let mut place = Place::new(small).await;
    place.settings.llm.max_tokens = 256;
    place.documents(0, 3);
    let long = format!("{SECRET_WORDS}. ").repeat(900);
    place.append(0, vec![Some(long)]);
    let ask = DryRunArgs {
        ask: 4,
        ..DryRunArgs::default()
    };
    let told = place.json(ask.clone()).await;
    let sample = &told["sample"];
    assert_eq!(sample["longer_than_the_context"], 1);
    assert_eq!(
        (&sample["whole"], &sample["map_reduce"]),
        (&3.into(), &1.into())
    );
    let (asked, load) = (&told["asked"], &sample["load"]);
    assert_eq!(asked["answered"], 4);
    let number = |value: &Value| value.as_u64().unwrap();
    assert!(number(&asked["calls"]) > 4, "{asked}");
    assert!(
        number(&asked["calls"]) <= number(&load["calls"]),
        "{told:#}"
    );
    assert!(number(&asked["completion_tokens"]) <= number(&load["completion_tokens"]));

    place.settings.long_documents.policy = LongPolicy::Truncate;
    let told = place.json(ask.clone()).await;
    assert_eq!(told["sample"]["truncate"], 1);
    assert_eq!(told["asked"]["calls"], 4);

    place.settings.long_documents.policy = LongPolicy::DeadLetter;
    let told = place.told(&ask).await.unwrap();
    assert!(
        told.contains("3 documents, 1 for the dead letters (context_length_exceeded 1)"),
        "{told}"
    );
    assert!(told.contains("1 of 4 are longer"), "{told}");
    assert!(
        told.contains("long_documents.policy = dead_letter"),
        "{told}"
    );
}

/// Twenty calls of 20 ms, four at a time, take a tenth of a second.
#[tokio::test]
async fn asking_measures_time_and_answers_and_prices_them() {
    let mut place = Place::new(VllmConfig::default()).await;
    place.settings.llm.concurrency = Concurrency::Fixed(4);
    place.settings.llm.price_per_million_prompt_tokens = Some(2.0);
    place.settings.llm.price_per_million_completion_tokens = Some(6.0);
    place.documents(0, 60);
    let args = DryRunArgs {
        ask: 20,
        ..DryRunArgs::default()
    };
    let told = place.json(args.clone()).await;
    let (asked, estimate) = (&told["asked"], &told["estimate"]);
    assert_eq!(
        (&asked["answered"], &asked["at_a_time"]),
        (&20.into(), &4.into())
    );
    let seconds = asked["seconds"].as_f64().unwrap();
    assert!(seconds >= 0.1, "{seconds}");
    let expected = seconds / 20.0 * 60.0;
    assert!((estimate["seconds"].as_f64().unwrap() - expected).abs() < 1e-6);
    let amount = |value: &Value| value.as_f64().unwrap();
    assert!(amount(&estimate["completion_tokens"]) < 60.0 * 1_024.0);
    let cost =
        amount(&estimate["prompt_tokens"]) * 2e-6 + amount(&estimate["completion_tokens"]) * 6e-6;
    assert!((amount(&estimate["cost"]) - cost).abs() < 1e-9);
    let told = place.told(&args).await.unwrap();
    for expected in [
        "20 answered in",
        "up to 4 at a time",
        "÷ 1,000,000 = ",
        "nothing was committed",
    ] {
        assert!(told.contains(expected), "no {expected} in:\n{told}");
    }
}

/// The count is spread over the partitions, and what one lacks comes from others.
#[tokio::test]
async fn records_are_read_from_every_partition_and_from_where_it_is_told() {
    let place = Place::new(VllmConfig::default()).await;
    place.documents(0, 50);
    place.append(
        1,
        (0..4)
            .map(|number| Some(format!("Of the other {number}.")))
            .collect(),
    );
    place.commit(0, 48, &[]);
    place.commit(1, 4, &[]);
    for (count, from, expected) in [
        (20, From::Earliest, 20),
        (1_000, From::Earliest, 54),
        (1_000, From::Commit, 2),
        (1_000, From::Offset(Offset::new(2)), 50),
        (1_000, From::Offset(Offset::new(99)), 0),
    ] {
        let args = DryRunArgs {
            count,
            from,
            ..DryRunArgs::default()
        };
        let told = place.json(args).await;
        assert_eq!(told["sample"]["records"], expected, "{from:?}");
    }
    let args = DryRunArgs {
        count: 6,
        ..DryRunArgs::default()
    };
    let told = place.told(&args).await.unwrap();
    assert!(told.contains("read 6 of 6 records of the input"), "{told}");
}

#[tokio::test]
async fn what_cannot_be_used_is_named() {
    let mut place = Place::new(VllmConfig::default()).await;
    place.settings.input.topics = vec![InputTopic::named("nothing")];
    let error = place.told(&DryRunArgs::default()).await.unwrap_err();
    assert!(
        error.to_string().contains("`nothing` (INPUT_TOPIC)"),
        "{error}"
    );
    assert!(!error.is_usage());
    place.settings.prompt.user = Some("{{ broken".to_owned());
    let error = place.told(&DryRunArgs::default()).await.unwrap_err();
    assert!(error.to_string().contains("prompt.user"), "{error}");
    assert!(error.is_usage());
}
