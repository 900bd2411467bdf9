//! SASL: the right password works, a wrong one is told within seconds, and held.

use std::time::Duration;

use crate::harness::{Job, Kafka, PARTITIONS, SOON};
use crate::topic_log::Results;
use tokio::time::Instant;

const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
/// Documents for each mechanism.
const DOCUMENTS: usize = 40;
/// The promise to operators.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

const RIGHT: &str = "alice-secret";
const WRONG: &str = "wrong-secret";

async fn job(kafka: &Kafka, name: &str) -> Job {
    let mut job = Job::new(kafka, name).await;
    job.set("kafka.brokers", &kafka.sasl_address());
    job.set("kafka.security_protocol", "SASL_PLAINTEXT");
    job.set("kafka.sasl_username", "alice");
    job
}

fn password(password: &str) -> [(&'static str, &str); 1] {
    [("KLP_KAFKA__SASL_PASSWORD", password)]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_password_works_with_each_mechanism() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let job = job(&kafka, "sasl").await;
    kafka.create_topic(&job.name, PARTITIONS).await;
    let partitions: Vec<_> = (0..PARTITIONS).collect();
    let mut results = Results::new(&kafka, &job);
    for (round, mechanism) in MECHANISMS.into_iter().enumerate() {
        kafka
            .write_documents(&job.name, &partitions, round * DOCUMENTS, DOCUMENTS)
            .await;
        let mechanism = format!("--set=kafka.sasl_mechanism={mechanism}");
        let processor = job.start_with(&[&mechanism], &password(RIGHT));
        results.wait_for((round + 1) * DOCUMENTS).await;
        processor.drain(SOON).await;
    }
    results.gather().await;
    results.assert_complete(MECHANISMS.len() * DOCUMENTS / 4);
    assert_eq!(results.repeats(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_within_seconds_and_held() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let job = job(&kafka, "sasl-wrong").await;
    for mechanism in MECHANISMS {
        let set = format!("--set=kafka.sasl_mechanism={mechanism}");
        let words = ["kafka.sasl_password", mechanism];

        let began = Instant::now();
        let mut holding = job.start_with(&[&set], &password(WRONG));
        let told = holding
            .line(&["WARN", "waiting: ", words[0], words[1]], TOLD_WITHIN)
            .await;
        eprintln!("after {:.2?}: {told}", began.elapsed());

        let mut failing = job.start_with(&[&set, "run", "--fail-fast"], &password(WRONG));
        assert_eq!(failing.exit_code(SOON).await, Some(1), "--fail-fast");
        let said = failing.line(&["ERROR", words[0], words[1]], SOON).await;

        assert!(holding.is_running(), "without --fail-fast it waits");
        for line in [&told, &said] {
            assert!(!line.contains(WRONG), "no password in {line}");
        }
        holding.drain(SOON).await;
    }
}
