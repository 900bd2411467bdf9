use std::path::Path;

use super::*;

fn folder_with(name: &str, content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

async fn of_file(path: &Path) -> Result<Secret, KafkaError> {
    secret(("kafka.x", None), ("kafka.x_file", Some(path))).await
}

#[tokio::test]
async fn a_secret_of_a_file_ends_before_its_line_does() {
    let (_folder, path) = folder_with("password", b" with blanks \r\n");
    assert_eq!(of_file(&path).await.unwrap().expose(), " with blanks ");
}

#[tokio::test]
async fn a_file_that_is_no_secret_names_its_setting_and_shows_nothing() {
    let huge = vec![b'x'; 600 * 1024];
    for (content, says) in [
        (&b"\n"[..], "is empty"),
        (&b"hush\xff"[..], "is not UTF-8"),
        (&huge[..], "larger than"),
    ] {
        let (_folder, path) = folder_with("password", content);
        let text = of_file(&path).await.unwrap_err().to_string();
        assert!(
            text.contains("kafka.x_file") && text.contains(says),
            "{text}"
        );
        assert!(!text.contains("hush") && text.len() < 300, "{text}");
    }
    let text = of_file(Path::new("/nonexistent/password")).await;
    let text = text.unwrap_err().to_string();
    assert!(text.contains("kafka.x_file"), "{text}");
    let absent = secret(("kafka.x", None), ("kafka.x_file", None)).await;
    assert_eq!(absent.unwrap_err().to_string(), "kafka.x is not set");
}

#[test]
fn extensions_are_pairs_of_a_name_and_a_value() {
    assert_eq!(extensions(""), Ok(vec![]));
    assert_eq!(
        extensions("logicalCluster=lkc-1, identityPoolId=pool=2"),
        Ok(vec![
            ("logicalCluster", "lkc-1"),
            ("identityPoolId", "pool=2")
        ])
    );
    for wrong in ["name", "=value", "auth=x", "a-b=x", "name=\u{1}", "name=é"] {
        assert!(extensions(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn rskafka_serves_what_is_neither_encrypted_nor_shown_a_token() {
    use SaslMechanism as Mechanism;
    use SecurityProtocol as Protocol;
    for (protocol, mechanism, needs_wire) in [
        (Protocol::Plaintext, Mechanism::Plain, false),
        (Protocol::Plaintext, Mechanism::Oauthbearer, false),
        (Protocol::SaslPlaintext, Mechanism::Plain, false),
        (Protocol::SaslPlaintext, Mechanism::ScramSha256, false),
        (Protocol::SaslPlaintext, Mechanism::ScramSha512, false),
        (Protocol::SaslPlaintext, Mechanism::Oauthbearer, true),
        (Protocol::Ssl, Mechanism::Plain, true),
        (Protocol::SaslSsl, Mechanism::ScramSha512, true),
    ] {
        let config = KafkaConfig {
            security_protocol: protocol,
            sasl_mechanism: mechanism,
            ..KafkaConfig::default()
        };
        let found = config.needs_wire();
        assert_eq!(found.is_some(), needs_wire, "{protocol:?} {mechanism:?}");
    }
}
