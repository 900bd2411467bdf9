//! Several input topics: each has its share of the model by weight, and a prompt of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_llm_processor::llm::PromptConfig;
use kafka_llm_processor::pipeline::{InputTopic, Weight};
use kafka_llm_processor::records::result::ResultRecord;
use kafka_llm_processor::sandbox::vllm::{Action, Fault, Latency, VllmConfig};
use kafka_llm_processor::types::Record;

use crate::harness::{INPUT, OUTPUT, Running, World, eventually, json, plain};

const NEWS: &str = "news";
/// In one partition, of weight 3.
const FILINGS: usize = 500;
/// In four partitions, of weight 1.
const REPORTS: usize = 400;
const ALL: u64 = 900;

const REFUSAL: &str =
    r#"{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}"#;

fn topic(name: &str, weight: i64, user: &str) -> InputTopic {
    InputTopic {
        weight: Weight::try_from(weight).unwrap(),
        prompt: PromptConfig {
            user: Some(user.to_owned()),
            ..PromptConfig::default()
        },
        ..InputTopic::named(name)
    }
}

fn results(world: &World) -> Vec<ResultRecord> {
    let records = world.records(OUTPUT).into_iter();
    records
        .map(|(_, _, record)| ResultRecord::parse(&record.value.unwrap()).unwrap())
        .collect()
}

fn is_filing(prompt: &str) -> bool {
    let is_filing = prompt.contains("Read the filing.");
    assert_ne!(is_filing, prompt.contains("Read the news."), "{prompt}");
    is_filing
}

/// While both have work the model is shared 3:1, whatever the partitions; once one has none the other has all of it.
#[tokio::test]
async fn topics_share_the_model_by_weight_and_have_prompts_of_their_own() {
    let config = VllmConfig {
        latency: Latency::fixed(Duration::from_millis(20)),
        requests_logged: 4 * (FILINGS + REPORTS),
        ..VllmConfig::default()
    };
    let world = World::with_vllm(1, config).await;
    world.broker.create_topic(NEWS, 4, &[]).unwrap();
    world.produce(0..FILINGS, plain);
    for number in 0..REPORTS {
        let record = Record {
            value: Some(json(number, &plain(number)).into()),
            ..Record::default()
        };
        let partition = i32::try_from(number % 4).unwrap();
        world.broker.append(NEWS, partition, vec![record]).unwrap();
    }
    let mut settings = world.settings(&["llm.concurrency=8"]);
    settings.prompt.system = Some("Be brief.".to_owned());
    settings.input.topics = vec![
        topic(INPUT, 3, "Read the filing.\n\nDocument:\n{{ content }}"),
        topic(NEWS, 1, "Read the news.\n\nDocument:\n{{ content }}"),
    ];
    let running = Running::start(settings, false);
    eventually("every document has its result", || {
        running.board.snapshot().totals.processed == ALL
    })
    .await;
    let totals = running.board.snapshot().totals;
    running.drain().await;

    let calls = world.vllm.requests();
    let filings: Vec<_> = calls.iter().map(|call| is_filing(&call.prompt)).collect();
    let roles = |call: &kafka_llm_processor::sandbox::vllm::SeenRequest| call.roles.clone();
    assert!(calls.iter().all(|call| roles(call) == ["system", "user"]));
    // From when both are at work, and before the last of the filings.
    let first = |wanted: bool| filings.iter().position(|is_filing| *is_filing == wanted);
    let begin = first(true).max(first(false)).unwrap() + 40;
    let window = &filings[begin..begin + 300];
    let share = window.iter().filter(|is_filing| **is_filing).count();
    assert!((203..=247).contains(&share), "{share} of 300, not 225");
    let last = filings.iter().rposition(|is_filing| *is_filing).unwrap();
    let rest = filings.len() - last - 1;
    assert!(rest > 50, "{rest} calls when the filings were through");

    let results = results(&world);
    let mut hashes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for result in &results {
        let hashes = hashes.entry(result.source.topic.as_str()).or_default();
        hashes.push(&result.prompt_hash);
        hashes.dedup();
    }
    assert_eq!(hashes[INPUT].len(), 1);
    assert_eq!(hashes[NEWS].len(), 1);
    assert_ne!(hashes[INPUT], hashes[NEWS]);
    let ended = |topic: &str| totals.topics[topic].processed;
    assert!(ended(INPUT) > 0 && ended(NEWS) > 0, "{totals:?}");
    assert_eq!(ended(INPUT) + ended(NEWS), totals.processed);
}

/// The server refuses the prompt of one topic and takes that of the other: the one waits whole, the other goes on, and once the server
/// takes both every document has its result.
#[tokio::test]
async fn a_prompt_that_is_refused_holds_its_topic_and_spends_none_of_its_documents() {
    let config = VllmConfig {
        latency: Latency::fixed(Duration::from_millis(20)),
        ..VllmConfig::default()
    };
    let world = World::with_vllm(1, config).await;
    world.broker.create_topic(NEWS, 1, &[]).unwrap();
    world.produce(0..50, plain);
    let news = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            let record = Record {
                value: Some(json(number, &plain(number)).into()),
                ..Record::default()
            };
            world.broker.append(NEWS, 0, vec![record]).unwrap();
        }
    };
    news(0..200);
    let refusal = Fault::new(Action::answer(400, REFUSAL));
    let refusal = refusal.on_prompt("Read the filing.").kept();
    world.vllm.faults().push(refusal);
    let mut settings = world.settings(&["llm.concurrency=4"]);
    settings.input.topics = vec![
        topic(INPUT, 3, "Read the filing.\n\nDocument:\n{{ content }}"),
        topic(NEWS, 1, "Read the news.\n\nDocument:\n{{ content }}"),
    ];
    let running = Running::start(settings, false);
    let ended = |topic: &str| {
        let totals = running.board.snapshot().totals;
        totals.topics.get(topic).map_or(0, |topic| topic.processed)
    };
    eventually("the news have their results", || ended(NEWS) == 200).await;
    let is_held = |board: &kafka_llm_processor::telemetry::StatusBoard| {
        let holds = board.holds();
        holds
            .iter()
            .any(|hold| hold.reason.contains("`docs` is refused"))
    };
    eventually("the filings are held", || is_held(&running.board)).await;
    news(200..400);
    eventually("the news go on", || ended(NEWS) == 400).await;
    assert_eq!(ended(INPUT), 0);
    world.vllm.faults().clear();
    eventually("the filings have their results", || ended(INPUT) == 50).await;
    assert!(!is_held(&running.board));
    running.drain().await;
    assert_eq!(world.dead_letters().len(), 0);
    assert_eq!(results(&world).len(), 450);
}
