use kafka_protocol::messages::{MetadataRequest, MetadataResponse};

use super::super::cluster::Cluster;
use super::super::fake::{Asked, FakeBroker, Reply};
use super::*;
use crate::kafka::SecurityProtocol;
#[test]
fn a_token_is_one_message_with_what_goes_beside_it() {
    let token = Secret::new("abc.def.ghi");
    let message = |settings| bearer_message(&token, settings);
    assert_eq!(
        message("").unwrap(),
        b"n,,\x01auth=Bearer abc.def.ghi\x01\x01"
    );
    assert_eq!(
        message("logicalCluster=lkc-1, identityPoolId=pool-2").unwrap(),
        b"n,,\x01auth=Bearer abc.def.ghi\x01logicalCluster=lkc-1\x01identityPoolId=pool-2\x01\x01"
    );
    assert!(message("auth=Bearer other").is_err());
}

#[test]
fn what_a_broker_says_is_cut_and_without_what_a_terminal_acts_on() {
    assert_eq!(words("no\x1b[31m entry\n"), "no[31m entry");
    assert_eq!(words(&"x".repeat(10_000)).len(), WORDS_MAX);
}

/// Wherever the secret came from, and also where the cut would go through it.
#[test]
fn what_repeats_a_secret_is_starred_before_it_is_cut() {
    let secret = Secret::new("hush-hush");
    let said = format!("{}hush-hush is wrong", "x".repeat(WORDS_MAX - 4));
    let error = refused(&KafkaConfig::default(), Some(&secret), &said);
    assert!(!error.to_string().contains("hush"), "{error}");
    assert!(error.to_string().contains("***"), "{error}");
}

/// What SCRAM says to this message of a broker; `*` stands for our nonce.
fn say_to(challenge: &str) -> Result<(Option<Vec<u8>>, bool), String> {
    let config = KafkaConfig {
        sasl_mechanism: SaslMechanism::ScramSha512,
        sasl_username: "u".to_owned(),
        ..KafkaConfig::default()
    };
    let mut session = start(&config, &Secret::new("p")).unwrap();
    let (first, _) = say(&mut session, None).unwrap();
    let first = String::from_utf8(first.unwrap()).unwrap();
    let (_, nonce) = first.rsplit_once("r=").unwrap();
    let challenge = challenge.replace('*', nonce);
    say(&mut session, Some(challenge.as_bytes()))
}

/// As many as a number holds would keep the thread busy for half an hour.
#[test]
fn a_broker_cannot_ask_for_any_number_of_iterations() {
    for (asked, is_taken) in [
        ("4096", true),
        ("16384", true),
        ("4294967295", false),
        ("4095", false),
        ("1", false),
        ("x", false),
    ] {
        let said = say_to(&format!("r=*x,s=c2FsdA==,i={asked}"));
        assert_eq!(said.is_ok(), is_taken, "{asked}: {said:?}");
        if let Err(said) = said {
            let told = format!("asks for {asked} iterations");
            assert!(said.contains(&told), "{said}");
        }
    }
}

/// The library panics at most of them.
#[test]
fn a_message_that_is_none_of_scrams_is_an_error() {
    for challenge in ["", ",", "r=*x,,", "r=*x,s", "r=*x,s=c2FsdA==,i", "no,no,no"] {
        let said = say_to(challenge).unwrap_err();
        assert!(said.contains("SCRAM"), "{challenge}: {said}");
    }
}

#[test]
fn a_mechanism_that_is_not_enabled_names_those_that_are() {
    let response = SaslHandshakeResponse::default()
        .with_error_code(33)
        .with_mechanisms(vec![StrBytes::from_static_str("SCRAM-SHA-512")]);
    let detail = check_handshake(&response).unwrap_err();
    assert!(detail.contains("SCRAM-SHA-512") && detail.contains("kafka.sasl_mechanism"));
}

#[test]
fn the_brokers_own_words_are_passed_on() {
    let response = SaslAuthenticateResponse::default().with_error_code(58);
    let plain = check_step(&response).unwrap_err();
    assert_eq!(plain, "SaslAuthenticationFailed");
    let worded = response.with_error_message(Some(StrBytes::from_static_str("who are you")));
    assert_eq!(check_step(&worded).unwrap_err(), "who are you");
}

#[test]
fn a_session_ends_before_the_broker_ends_it() {
    assert_eq!(expiry(0), None);
    assert_eq!(expiry(-1), None);
    let now = Instant::now();
    let ends = expiry(10_000).unwrap() - now;
    assert!(ends > Duration::from_secs(8) && ends < Duration::from_secs(9));
}

/// Answers as a broker that takes one token, whose sessions last so long, and says nothing of interest otherwise.
fn script(token: &'static str, lifetime_ms: i64) -> impl FnMut(Asked) -> Reply + Send {
    move |asked| match asked.key {
        17 => Reply::to::<SaslHandshakeRequest>(asked.version, &SaslHandshakeResponse::default()),
        36 => {
            let request: SaslAuthenticateRequest = asked.request();
            let sent = String::from_utf8(request.auth_bytes.to_vec()).unwrap();
            let response =
                SaslAuthenticateResponse::default().with_session_lifetime_ms(lifetime_ms);
            let response = if sent == "\x01" {
                response.with_error_code(58)
            } else if sent.contains(&format!("\x01auth=Bearer {token}\x01")) {
                response
            } else {
                response.with_auth_bytes(Bytes::from_static(b"{\"status\":\"invalid_token\"}"))
            };
            Reply::to::<SaslAuthenticateRequest>(asked.version, &response)
        }
        _ => Reply::to::<MetadataRequest>(asked.version, &MetadataResponse::default()),
    }
}

fn with_token_in(broker: &FakeBroker, path: &std::path::Path) -> KafkaConfig {
    KafkaConfig {
        security_protocol: SecurityProtocol::SaslPlaintext,
        sasl_mechanism: SaslMechanism::Oauthbearer,
        sasl_oauthbearer_token_file: Some(path.to_owned()),
        ..broker.config()
    }
}

async fn ask(cluster: &Cluster) -> Result<(), KafkaError> {
    cluster
        .metadata(Some(&[]), cluster.deadline())
        .await
        .map(drop)
}

#[tokio::test]
async fn a_token_that_is_renewed_in_its_file_is_shown_anew() {
    let broker = FakeBroker::start(script("second", 0)).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "first\n").unwrap();
    let cluster = Cluster::new(&with_token_in(&broker, &path));
    let error = ask(&cluster).await.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, KafkaError::Authentication { .. }),
        "{error:?}"
    );
    assert!(text.contains("kafka.sasl_oauthbearer_token_file"), "{text}");
    assert!(!text.contains("first"), "{text}");
    std::fs::write(&path, "second\n").unwrap();
    ask(&cluster).await.unwrap();
}

/// KIP-368: the connection stays, with its place in the broker.
#[tokio::test]
async fn a_session_that_ends_is_renewed_on_its_connection() {
    for (lifetime_ms, times) in [(0, 1), (1, 3)] {
        let broker = FakeBroker::start(script("good", lifetime_ms)).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "good").unwrap();
        let cluster = Cluster::new(&with_token_in(&broker, &path));
        for _ in 0..3 {
            ask(&cluster).await.unwrap();
        }
        let shown = broker.asked::<SaslAuthenticateRequest>();
        assert_eq!(shown.len(), times, "lifetime {lifetime_ms} ms");
        assert_eq!(broker.asked::<SaslHandshakeRequest>().len(), times);
        assert!(shown.iter().all(|asked| asked.connection == 0), "{shown:?}");
    }
}

#[tokio::test]
async fn a_token_that_has_expired_is_told_with_its_age() {
    let broker = FakeBroker::start(script("good", 0)).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    // {"exp":1000000000}
    std::fs::write(&path, "e30.eyJleHAiOjEwMDAwMDAwMDB9.sig").unwrap();
    let cluster = Cluster::new(&with_token_in(&broker, &path));
    let text = ask(&cluster).await.unwrap_err().to_string();
    assert!(
        text.contains("it expired") && text.contains("years"),
        "{text}"
    );
    assert!(!text.contains("eyJleHAi"), "{text}");
}

#[tokio::test]
async fn a_password_file_is_read_for_each_connection() {
    let broker = FakeBroker::start(|asked| match asked.key {
        17 => Reply::to::<SaslHandshakeRequest>(asked.version, &SaslHandshakeResponse::default()),
        36 => {
            let request: SaslAuthenticateRequest = asked.request();
            let code = if request.auth_bytes.ends_with(b"\0alice\0new") {
                0
            } else {
                58
            };
            let response = SaslAuthenticateResponse::default().with_error_code(code);
            Reply::to::<SaslAuthenticateRequest>(asked.version, &response)
        }
        _ => Reply::to::<MetadataRequest>(asked.version, &MetadataResponse::default()),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    std::fs::write(&path, "old\n").unwrap();
    let cluster = Cluster::new(&KafkaConfig {
        security_protocol: SecurityProtocol::SaslPlaintext,
        sasl_username: "alice".to_owned(),
        sasl_password_file: Some(path.clone()),
        ..broker.config()
    });
    let text = ask(&cluster).await.unwrap_err().to_string();
    assert!(text.contains("kafka.sasl_password_file"), "{text}");
    assert!(text.contains("alice") && !text.contains("old"), "{text}");
    std::fs::write(&path, "new\n").unwrap();
    ask(&cluster).await.unwrap();
}

#[tokio::test]
async fn a_token_that_nobody_gives_is_told_in_time() {
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let broker = FakeBroker::start(script("good", 0)).await;
    let config = KafkaConfig {
        security_protocol: SecurityProtocol::SaslPlaintext,
        sasl_mechanism: SaslMechanism::Oauthbearer,
        sasl_oauthbearer_token_endpoint_url: format!(
            "http://{}/token",
            silent.local_addr().unwrap()
        ),
        sasl_oauthbearer_client_credentials_client_id: "me".to_owned(),
        sasl_oauthbearer_client_credentials_client_secret: Some(Secret::new("hush")),
        connect_timeout: Duration::from_millis(200),
        ..broker.config()
    };
    let cluster = Cluster::new(&config);
    let error = ask(&cluster).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("kafka.sasl_oauthbearer_token_endpoint_url"),
        "{text}"
    );
    assert!(error.is_transient(), "{text}");
}

#[tokio::test]
async fn a_broker_that_hangs_up_on_a_token_leads_to_its_setting() {
    let broker = FakeBroker::start(|asked| match asked.key {
        36 => Reply::HangUp,
        _ => Reply::to::<SaslHandshakeRequest>(asked.version, &SaslHandshakeResponse::default()),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "rubbish").unwrap();
    let cluster = Cluster::new(&with_token_in(&broker, &path));
    let text = ask(&cluster).await.unwrap_err().to_string();
    assert!(text.contains("kafka.sasl_oauthbearer_token_file"), "{text}");
    assert!(!text.contains("rubbish"), "{text}");
}
