//! What `check` finds.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use kafka_llm_processor::cli::check;
use kafka_llm_processor::clock;
use kafka_llm_processor::offsets::Guarantee;
use kafka_llm_processor::sandbox::broker::{ApiKey, BrokerConfig, ErrorCode, ToldRights};
use kafka_llm_processor::types::Secret;

use crate::servers::{World, crosses};

#[tokio::test]
async fn check_passes_when_all_is_there_and_a_processor_runs() {
    let world = World::new().await;
    world.commit(clock::now());
    // Markers of transactions may follow the newest commit.
    for _ in 0..3 {
        let topic = world.kafka.commit_topic();
        world.broker.append_marker(&topic, 1, true).unwrap();
    }
    let report = world.check().await;
    assert!(report.passed, "{report:#?}");
}

#[tokio::test]
async fn check_tells_a_processor_that_is_gone() {
    let world = World::new().await;
    let report = world.check().await;
    assert_eq!(
        crosses(&report).into_keys().collect::<Vec<_>>(),
        ["processor"]
    );
    world.commit(clock::now() - SignedDuration::from_mins(5));
    let report = world.check().await;
    assert!(crosses(&report)["processor"].detail.contains("5m"));
}

#[tokio::test]
async fn check_tells_a_wrong_key_and_an_unknown_model() {
    let mut world = World::new().await;
    world.commit(clock::now());
    world.llm.api_key = Some(Secret::new("wrong"));
    let report = world.check().await;
    let found = crosses(&report);
    assert_eq!(found.len(), 1, "{found:#?}");
    let item = found["model and key"];
    assert!(item.detail.contains("llm.api_key"), "{item:?}");
    assert!(!format!("{report:?}").contains("wrong"), "no key is shown");

    world.llm.api_key = Some(Secret::new("right"));
    world.llm.model = "another/model".to_owned();
    let report = world.check().await;
    let item = crosses(&report)["model and key"];
    assert!(
        item.detail.contains("another/model") && item.detail.contains("mistralai"),
        "{item:?}"
    );
}

#[tokio::test]
async fn check_tells_missing_topics_and_a_commit_topic_that_deletes() {
    let world = World::new().await;
    world.commit(clock::now());
    world.broker.delete_topic("docs").unwrap();
    let topic = world.kafka.commit_topic();
    world
        .broker
        .set_topic_config(&topic, "cleanup.policy", "delete")
        .unwrap();
    let report = world.check().await;
    let found = crosses(&report);
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        ["commit topic", "input topic"]
    );
    assert!(found["commit topic"].detail.contains("cleanup.policy"));
}

/// Read is bit 3, Write 4, Describe 8.
#[tokio::test]
async fn check_tells_what_the_broker_does_not_allow() {
    let world = World::with(BrokerConfig {
        rights: ToldRights {
            topics: BTreeMap::from([
                ("docs".to_owned(), 1 << 8),
                ("dead".to_owned(), i32::MIN),
                (
                    "kafka-llm-processor-commits".to_owned(),
                    (1 << 3) | (1 << 8),
                ),
            ]),
            groups: Some(1 << 8),
        },
        ..BrokerConfig::default()
    })
    .await;
    world.commit(clock::now());
    let faults = world.broker.faults();
    let refusal = ErrorCode::TransactionalIdAuthorizationFailed;
    let _refused = faults.on(ApiKey::InitProducerId).keep().answer(refusal);
    let mut settings = world.settings();
    settings.processing.guarantee = Guarantee::ExactlyOnce;
    let report = check::report(&settings).await;
    let crosses = report.items.iter().filter(|item| !item.passed);
    let details: Vec<_> = crosses.map(|item| item.detail.as_str()).collect();
    assert_eq!(
        details,
        [
            "Read is not allowed on topic `docs`",
            "Write, DescribeConfigs is not allowed on topic `kafka-llm-processor-commits`",
            "Read is not allowed on group `kafka-llm-processor`",
            "Write is not allowed on transactional ids `kafka-llm-processor/…`",
        ]
    );
    let told = report.items.iter().map(|item| item.detail.as_str());
    let told: Vec<_> = told.collect();
    assert!(
        told.contains(&"not told: Write on topic `dead`"),
        "{told:?}"
    );
}

/// Asking whether a transactional id may be used, or a topic be created, leaves nothing behind.
#[tokio::test]
async fn check_changes_nothing() {
    let world = World::new().await;
    world.commit(clock::now());
    world.broker.delete_topic("results").unwrap();
    let mut settings = world.settings();
    settings.processing.guarantee = Guarantee::ExactlyOnce;
    let report = check::report(&settings).await;
    let allowed = report.items.iter().find(|item| item.name == "rights");
    let allowed = &allowed.unwrap().detail;
    assert!(allowed.contains("Create on topic `results`"), "{allowed}");
    assert!(allowed.contains("Write on transactional ids"), "{allowed}");
    assert_eq!(
        crosses(&report).into_keys().collect::<Vec<_>>(),
        ["output topic"]
    );
    assert!(world.broker.log_bytes("results").is_none());
    let id = "kafka-llm-processor/(check)/0";
    assert!(
        !world.broker.expire_transactional_id(id),
        "nobody was given it"
    );
}

/// Of the brokers' answers one stays out: what the others say is told all the same.
#[tokio::test]
async fn a_check_without_an_answer_hides_no_other() {
    let world = World::new().await;
    world.commit(clock::now());
    let faults = world.broker.faults();
    let _configs = faults.on(ApiKey::DescribeConfigs).keep().silent();
    let _groups = faults.on(ApiKey::DescribeGroups).keep().silent();
    let report = check::report(&world.settings()).await;
    assert!(report.passed, "{report:#?}");
    let told: String = report
        .items
        .iter()
        .map(|item| item.detail.clone())
        .collect();
    assert!(told.contains("not told: Read on group"), "{told}");
    assert!(told.contains("its configuration is not told"), "{told}");
    assert!(told.contains("allowed: Read on topic `docs`"), "{told}");
}

#[tokio::test]
async fn check_tells_both_outages_at_once() {
    let world = World::new().await;
    world.vllm.stop_listener().await;
    world.broker.stop_listener().await;
    let report = world.check().await;
    let found = crosses(&report);
    for name in ["model server", "model and key", "kafka"] {
        assert!(found.contains_key(name), "{found:#?}");
    }
}
