//! What is wrong with a document spends the document, and nothing else: no crash, no stuck partition.

use bytes::Bytes;
use kafka_llm_processor::sandbox::vllm::{Latency, VllmConfig};
use kafka_llm_processor::types::Record;

use crate::harness::{DEAD, INPUT, OUTPUT, World, eventually, json, plain};

#[tokio::test]
async fn records_that_are_no_documents_end_by_the_stated_rules() {
    let world = World::new(1).await;
    world.put(0, Some("k"), Some(&json(0, "A good document.")));
    world.put(0, Some("k"), None);
    world.put(0, Some("k"), Some(""));
    world.put(0, Some("k"), Some("  \n"));
    world.put(0, Some("k"), Some("{\"content\": \"cut off"));
    world.put(0, Some("k"), Some("{\"title\": \"no content\"}"));
    world.put(0, None, Some("Plain text is a document too."));
    let invalid = Record {
        value: Some(Bytes::from_static(&[0xff, 0xfe, b'x'])),
        ..Record::default()
    };
    world.broker.append(INPUT, 0, vec![invalid]).unwrap();
    world.put(
        0,
        Some("k"),
        Some(&format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000))),
    );
    world.put(0, Some("k"), Some(&json(9, "The last one.")));

    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    let (_, summary) = running.drain().await;

    let done: Vec<_> = world
        .results()
        .into_keys()
        .map(|(_, offset)| offset)
        .collect();
    assert_eq!(done, [0, 6, 8, 9]);
    assert_eq!(summary.totals.skipped, 1, "the tombstone");
    let reasons: Vec<_> = world
        .dead_letters()
        .into_iter()
        .map(|((_, offset), (letter, _))| (offset, letter.reason.as_str()))
        .collect();
    assert_eq!(
        reasons,
        [
            (2, "empty_document"),
            (3, "empty_document"),
            (4, "invalid_json"),
            (5, "missing_content"),
            (7, "invalid_utf8"),
        ]
    );
}

#[tokio::test]
async fn a_dead_letter_keeps_the_original_and_says_why() {
    let world = World::new(1).await;
    world.put(0, Some("the-key"), Some("{\"content\": 7}"));
    let running = world.start(&[]);
    eventually("it is committed", || world.is_all_committed()).await;
    running.drain().await;
    let (letter, record) = world.dead_letters().remove(&(0, 0)).unwrap();
    assert_eq!(record.key.as_deref(), Some(b"the-key".as_slice()));
    assert_eq!(
        record.value.as_deref(),
        Some(b"{\"content\": 7}".as_slice())
    );
    assert_eq!(record.timestamp_ms, 1_700_000_000_000);
    assert_eq!(letter.attempts, 0);
    assert!(
        letter.detail.contains("input.content_field"),
        "{}",
        letter.detail
    );
    assert_eq!(record.header("__connect.errors.topic").unwrap(), INPUT);
    assert_eq!(record.header("__connect.errors.offset").unwrap(), "0");
}

#[tokio::test]
async fn a_document_longer_than_the_context_is_given_up_and_the_rest_goes_on() {
    let config = VllmConfig {
        max_model_len: 3_000,
        latency: Latency::ZERO,
        ..VllmConfig::default()
    };
    let world = World::with_vllm(1, config).await;
    world.produce(0..3, plain);
    world.put(
        0,
        Some("long"),
        Some(&json(3, &"too many words ".repeat(5_000))),
    );
    world.produce(4..7, plain);
    let running = world.start(&["long_documents.policy=dead_letter"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 6);
    let letters = world.dead_letters();
    assert_eq!(
        letters[&(0, 3)].0.reason.as_str(),
        "context_length_exceeded"
    );
    // Its tokens were counted: no call was needed to find out.
    assert_eq!(letters[&(0, 3)].0.attempts, 0);
}

#[tokio::test]
async fn a_field_that_the_template_needs_and_the_document_lacks_is_named() {
    let world = World::new(1).await;
    world.put(
        0,
        None,
        Some("{\"content\": \"text\", \"company\": \"Acme\"}"),
    );
    world.put(0, None, Some("{\"content\": \"text\"}"));
    let running = world.start(&["prompt.user=About {{ company }}: {{ content }}"]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    assert_eq!(world.results().len(), 1);
    let letters = world.dead_letters();
    let (letter, _) = &letters[&(0, 1)];
    assert_eq!(letter.reason.as_str(), "prompt_failed");
    assert!(letter.detail.contains("company"), "{}", letter.detail);
}

#[tokio::test]
async fn a_result_that_the_topic_does_not_take_becomes_a_dead_letter() {
    let world = World::new(1).await;
    world
        .broker
        .create_topic(OUTPUT, 1, &[("max.message.bytes", "700")])
        .unwrap();
    world.produce(0..5, plain);
    // What does not compress does not fit.
    let noise: String = (0..4_000_u32)
        .map(|n| format!("{:x} ", n.wrapping_mul(2_654_435_761)))
        .collect();
    world.put(0, Some("large"), Some(&json(5, &noise)));
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    let board = running.board.clone();
    let (_, summary) = running.drain().await;
    let (results, letters) = (world.results(), world.dead_letters());
    assert_eq!(
        results.len() + letters.len(),
        6,
        "each document has one ending"
    );
    let (letter, record) = &letters[&(0, 5)];
    assert_eq!(letter.reason.as_str(), "result_too_large");
    // What is counted and shown is what was written.
    let count = |count: usize| u64::try_from(count).unwrap();
    let (written, given_up) = (count(results.len()), count(letters.len()));
    let totals = summary.totals;
    assert_eq!((totals.processed, totals.failed()), (written, given_up));
    assert_eq!(totals.dead_lettered["result_too_large"], given_up);
    let of_topic = totals.topics[INPUT];
    assert_eq!(
        (of_topic.processed, of_topic.dead_lettered),
        (written, given_up)
    );
    let tokens = results.values().flatten().map(|it| it.usage.prompt_tokens);
    assert_eq!(totals.prompt_tokens, tokens.sum::<u64>());
    let latest = board.endings().news(None).unwrap();
    assert_eq!(latest.results.len(), results.len());
    let shown = latest.failures.iter().find(|it| it.offset == 5).unwrap();
    assert_eq!((shown.status, shown.attempts), ("result_too_large", 1));
    assert_eq!(shown.detail.as_ref(), Some(&letter.detail));
    assert!(
        letter.detail.contains("max.message.bytes"),
        "{}",
        letter.detail
    );
    assert_eq!(
        record.value, None,
        "a pointer: the document is where it was"
    );
}

#[tokio::test]
async fn a_dead_letter_that_the_topic_does_not_take_becomes_a_pointer() {
    let world = World::new(1).await;
    world
        .broker
        .create_topic(DEAD, 1, &[("max.message.bytes", "1500")])
        .unwrap();
    let noise: String = (0..4_000_u32)
        .map(|n| format!("{:x} ", n.wrapping_mul(2_654_435_761)))
        .collect();
    world.put(0, Some("large"), Some(&format!("{{{noise}")));
    world.produce(1..3, plain);
    let running = world.start(&[]);
    eventually("everything is committed", || world.is_all_committed()).await;
    running.drain().await;
    let (letter, record) = world.dead_letters().remove(&(0, 0)).unwrap();
    assert_eq!(letter.reason.as_str(), "invalid_json");
    assert_eq!(record.value, None);
    assert_eq!(world.results().len(), 2);
}
