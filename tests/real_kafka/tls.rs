//! TLS: each protocol and mechanism carries documents all the way, each mistake is told within seconds, and held.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kafka_llm_processor::clock;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{Job, Kafka, PARTITIONS, SOON};
use crate::support::kafka::Secured;
use crate::support::processor::Processor;
use crate::topic_log::Results;

/// Documents for each way in.
const DOCUMENTS: usize = 40;
/// The promise to operators.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// Longer than the sessions of the broker's OAUTHBEARER, which last 2 s.
const SEVERAL_SESSIONS: Duration = Duration::from_secs(5);

const PASSWORD: &str = "alice-secret";
const WRONG: &str = "wrong-secret";

async fn job(kafka: &Kafka, name: &str) -> Job {
    let mut job = Job::new(kafka, name).await;
    job.set("kafka.security_protocol", "SSL");
    job.set(
        "kafka.ssl_truststore_location",
        &kafka.certificate("ca.pem"),
    );
    job.set("log.level", "debug");
    job
}

/// A file with a token that nobody has signed, which ends so many seconds from now.
fn token(life: i64) -> (tempfile::TempDir, PathBuf) {
    let part = |json: String| URL_SAFE_NO_PAD.encode(json);
    let now = clock::now().as_second();
    let claims = part(format!(
        "{{\"sub\":\"alice\",\"iat\":{},\"exp\":{}}}",
        now - 7200,
        now + life
    ));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    let token = format!("{}.{claims}.\n", part("{\"alg\":\"none\"}".to_owned()));
    std::fs::write(&path, token).expect("it is written");
    (folder, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_go_all_the_way_over_tls() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let job = job(&kafka, "tls").await;
    kafka.create_topic(&job.name, PARTITIONS).await;
    let partitions: Vec<_> = (0..PARTITIONS).collect();
    let (_folder, token) = token(3600);
    let token = format!("kafka.sasl_oauthbearer_token_file={}", token.display());
    let keystore = format!(
        "kafka.ssl_keystore_location={}",
        kafka.certificate("client.pem")
    );
    let sasl = |mechanism: &str| {
        vec![
            "kafka.security_protocol=SASL_SSL".to_owned(),
            format!("kafka.sasl_mechanism={mechanism}"),
            "kafka.sasl_username=alice".to_owned(),
        ]
    };
    let ways = [
        (Secured::Ssl, vec![]),
        (Secured::Mutual, vec![keystore]),
        (Secured::SaslSsl, sasl("PLAIN")),
        (Secured::SaslSsl, sasl("SCRAM-SHA-256")),
        (Secured::SaslSsl, sasl("SCRAM-SHA-512")),
        (
            Secured::SaslSsl,
            [sasl("OAUTHBEARER"), vec![token]].concat(),
        ),
    ];
    let mut results = Results::new(&kafka, &job);
    for (round, (listener, settings)) in ways.iter().enumerate() {
        let brokers = format!("kafka.brokers={}", kafka.tls_address(*listener));
        let settings = [&[brokers], &settings[..]].concat();
        let settings: Vec<_> = settings.iter().map(|set| format!("--set={set}")).collect();
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        let variables = [("KLP_KAFKA__SASL_PASSWORD", PASSWORD)];
        let processor = job.start_with(&settings, &variables);
        kafka
            .write_documents(&job.name, &partitions, round * DOCUMENTS, DOCUMENTS)
            .await;
        results.wait_for((round + 1) * DOCUMENTS).await;
        let is_last = round + 1 == ways.len();
        if is_last {
            sessions_are_renewed(&processor).await;
            commands_agree(&job, &settings, &variables).await;
        }
        processor.drain(SOON).await;
    }
    results.gather().await;
    results.assert_complete(ways.len() * DOCUMENTS / 4);
    assert_eq!(results.repeats(), 0);
}

/// The broker closes connections that are used beyond their session: none is.
async fn sessions_are_renewed(processor: &Processor) {
    tokio::time::sleep(SEVERAL_SESSIONS).await;
    let renewed = processor.lines().find(&["authenticated again"]);
    assert!(renewed.is_some(), "a session ended meanwhile");
    for trouble in ["WARN", "not authenticated again"] {
        let line = processor.lines().find(&[trouble]);
        assert_eq!(line, None, "{trouble}");
    }
}

/// What a person uses beside `run` goes the same way.
async fn commands_agree(job: &Job, settings: &[&str], variables: &[(&str, &str)]) {
    for command in [&["check"][..], &["results", "--count", "3"]] {
        let arguments = [settings, command].concat();
        let mut ran = job.start_with(&arguments, variables);
        assert_eq!(ran.exit_code(SOON).await, Some(0), "{command:?}");
    }
}

/// `check` and `run --fail-fast` end with 1, `run` holds; each says so in time.
async fn is_told(job: &Job, settings: &[String], words: &[&str]) {
    let settings: Vec<_> = settings.iter().map(|set| format!("--set={set}")).collect();
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let variables = [("KLP_KAFKA__SASL_PASSWORD", WRONG)];
    let start = |command: &[&str]| job.start_with(&[&settings[..], command].concat(), &variables);
    let began = Instant::now();
    let mut holding = start(&["run"]);
    let waiting: Vec<_> = ["WARN", "waiting: "].iter().chain(words).copied().collect();
    let told = holding.line(&waiting, TOLD_WITHIN).await;
    eprintln!("after {:.2?}: {told}", began.elapsed());
    assert!(holding.is_running(), "without --fail-fast it waits");
    let mut failing = [start(&["run", "--fail-fast"]), start(&["check", "--json"])];
    for failing in &mut failing {
        assert_eq!(failing.exit_code(SOON).await, Some(1));
        failing.line(words, SOON).await;
        let leaked = failing.lines().find(&[WRONG]);
        assert_eq!(leaked, None, "no password");
    }
    assert_eq!(holding.lines().find(&[WRONG]), None, "no password");
    holding.drain(SOON).await;
}

/// Somebody whose address stands in no certificate, and who passes everything on.
async fn forwarder(to: String) -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.2", 0)).await.expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let to = to.clone();
            tokio::spawn(async move {
                let mut broker = TcpStream::connect(to).await?;
                copy_bidirectional(&mut stream, &mut broker).await
            });
        }
    });
    (address, AbortOnDropHandle::new(task))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_is_told_within_seconds_and_held() {
    let Some(kafka) = Kafka::turn().await else {
        return;
    };
    let job = job(&kafka, "tls-wrong").await;
    let at = |listener| format!("kafka.brokers={}", kafka.tls_address(listener));
    let trusts = |name: &str| format!("kafka.ssl_truststore_location={}", kafka.certificate(name));
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/ca.pem");
    let (elsewhere, _forwarder) = forwarder(kafka.tls_address(Secured::Ssl)).await;
    let mut cases = vec![
        (
            vec![at(Secured::Ssl), trusts("wrong-ca.pem")],
            vec![
                "no authority that is trusted",
                "kafka.ssl_truststore_location",
            ],
        ),
        (
            vec![
                at(Secured::Expired),
                format!("kafka.ssl_truststore_location={ours}"),
            ],
            vec!["has expired"],
        ),
        (
            vec![format!("kafka.brokers={elsewhere}")],
            vec!["another host", "127.0.0.2", "kafka.brokers"],
        ),
        (
            vec![at(Secured::Mutual)],
            vec!["client certificate", "kafka.ssl_keystore_location"],
        ),
        (
            vec![format!("kafka.brokers={}", kafka.address())],
            vec!["in the handshake", "kafka.security_protocol"],
        ),
    ];
    let sasl = |mechanism: &str, more: String| {
        vec![
            at(Secured::SaslSsl),
            "kafka.security_protocol=SASL_SSL".to_owned(),
            format!("kafka.sasl_mechanism={mechanism}"),
            "kafka.sasl_username=alice".to_owned(),
            more,
        ]
    };
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let settings = sasl(mechanism, String::from("log.level=info"));
        cases.push((settings, vec!["kafka.sasl_password", mechanism]));
    }
    // One that has ended, and one that the broker closes over without a word.
    let tokens = [token(-3600), token(3600)];
    std::fs::write(&tokens[1].1, "e30.e30.").expect("it is written");
    for ((_, path), says) in tokens.iter().zip(["it expired 1h", "OAUTHBEARER"]) {
        let file = format!("kafka.sasl_oauthbearer_token_file={}", path.display());
        let words = vec![says, "kafka.sasl_oauthbearer_token_file"];
        cases.push((sasl("OAUTHBEARER", file), words));
    }
    for (settings, words) in cases {
        is_told(&job, &settings, &words).await;
    }
    // Without TLS where there is some.
    let mut plain = Job::new(&kafka, "tls-plain").await;
    plain.set("kafka.brokers", &kafka.tls_address(Secured::Ssl));
    is_told(&plain, &[], &["TLS", "kafka.security_protocol"]).await;
}
