//! A listener that asks for authentication, byte by byte.

use kafka_protocol::messages::{
    ApiVersionsRequest, MetadataRequest, SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::StrBytes;
use tokio::io::AsyncWriteExt;

use crate::wire::{Wire, secure_broker};

fn handshake(mechanism: &'static str) -> SaslHandshakeRequest {
    SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism))
}

fn token(token: &'static str) -> SaslAuthenticateRequest {
    SaslAuthenticateRequest::default().with_auth_bytes(token.into())
}

fn anything() -> MetadataRequest {
    MetadataRequest::default().with_topics(None)
}

#[tokio::test]
async fn the_right_password_opens_and_may_not_be_given_twice() {
    let broker = secure_broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    assert_eq!(
        wire.call(0, &ApiVersionsRequest::default())
            .await
            .error_code,
        0
    );
    assert_eq!(wire.call(1, &handshake("PLAIN")).await.error_code, 0);
    assert_eq!(wire.call(2, &token("\0alice\0secret")).await.error_code, 0);
    wire.call(12, &anything()).await;
    assert_eq!(wire.call(1, &handshake("PLAIN")).await.error_code, 34);
    assert_eq!(wire.call(2, &token("\0alice\0secret")).await.error_code, 34);
    broker.shutdown().await;
}

/// After a handshake of version 0 the token is a frame without header, and so is the empty answer.
#[tokio::test]
async fn a_bare_token_opens_too() {
    let broker = secure_broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    assert_eq!(wire.call(0, &handshake("PLAIN")).await.error_code, 0);
    wire.send_frame(b"\0alice\0secret").await;
    assert_eq!(wire.receive_frame().await.unwrap(), "");
    wire.call(12, &anything()).await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.call(0, &handshake("PLAIN")).await;
    wire.send_frame(b"\0alice\0wrong").await;
    assert!(wire.receive_frame().await.is_none());
    broker.shutdown().await;
}

/// RFC 7628: what is wrong comes first, the code after one byte more.
#[tokio::test]
async fn a_token_opens_and_a_wrong_one_is_refused_in_two_steps() {
    let broker = secure_broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    assert_eq!(wire.call(1, &handshake("OAUTHBEARER")).await.error_code, 0);
    let right = token("n,,\u{1}auth=Bearer secret\u{1}traceId=7\u{1}\u{1}");
    let opened = wire.call(2, &right).await;
    assert_eq!((opened.error_code, opened.auth_bytes.len()), (0, 0));
    wire.call(12, &anything()).await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.call(1, &handshake("OAUTHBEARER")).await;
    let wrong = token("n,,\u{1}auth=Bearer wrong\u{1}\u{1}");
    let refused = wire.call(2, &wrong).await;
    assert_eq!(refused.error_code, 0);
    assert!(
        refused
            .auth_bytes
            .starts_with(b"{\"status\":\"invalid_token\"")
    );
    assert_eq!(wire.call(2, &token("\u{1}")).await.error_code, 58);
    assert!(wire.receive_frame().await.is_none());
    broker.shutdown().await;
}

#[tokio::test]
async fn wrong_credentials_are_answered_with_58_and_the_connection_ends() {
    let broker = secure_broker().await;
    for (mechanism, wrong) in [
        ("PLAIN", "\0alice\0wrong"),
        ("PLAIN", "\0bob\0secret"),
        ("PLAIN", "bob\0alice\0secret"),
        ("PLAIN", "alice"),
        ("PLAIN", ""),
        ("SCRAM-SHA-256", "n,,n=bob,r=nonce"),
        ("SCRAM-SHA-256", "p=tls-unique,,n=alice,r=nonce"),
        ("SCRAM-SHA-512", "nonsense"),
        ("OAUTHBEARER", "n,,\u{1}auth=Bearer secret"),
        ("OAUTHBEARER", "n,,\u{1}user=alice\u{1}\u{1}"),
    ] {
        let mut wire = Wire::connect(&broker.bootstrap()).await;
        assert_eq!(wire.call(1, &handshake(mechanism)).await.error_code, 0);
        assert_eq!(wire.call(2, &token(wrong)).await.error_code, 58, "{wrong}");
        assert!(wire.receive_frame().await.is_none(), "{wrong}");
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn nothing_is_served_before_authentication() {
    let broker = secure_broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    assert!(wire.try_call(12, &anything()).await.is_none());
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    assert!(
        wire.try_call(2, &token("\0alice\0secret")).await.is_none(),
        "no handshake"
    );
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.call(1, &handshake("PLAIN")).await;
    assert!(wire.try_call(12, &anything()).await.is_none(), "no token");
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let unknown = wire.call(1, &handshake("GSSAPI")).await;
    assert_eq!((unknown.error_code, unknown.mechanisms.len()), (33, 4));
    assert!(wire.receive_frame().await.is_none());
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.stream
        .write_all(&600_000_i32.to_be_bytes())
        .await
        .unwrap();
    assert!(
        wire.receive_frame().await.is_none(),
        "large frames are for those who are known"
    );
    broker.shutdown().await;
}
