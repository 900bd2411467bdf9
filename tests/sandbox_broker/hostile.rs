//! Bytes that are no request: the connection ends, the broker lives.

use bytes::{BufMut, BytesMut};
use kafka_llm_processor::sandbox::broker::Broker;
use kafka_protocol::messages::{ApiVersionsRequest, MetadataRequest};
use kafka_protocol::protocol::{Encodable, StrBytes};
use tokio::io::AsyncWriteExt;

use crate::wire::{Wire, broker, fetch};

async fn assert_alive(broker: &Broker) {
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let answer = wire
        .call(12, &MetadataRequest::default().with_topics(None))
        .await;
    assert_eq!(answer.topics.len(), 1);
}

/// Sends bytes as they are and expects the broker to close without an answer.
async fn assert_closed(broker: &Broker, bytes: &[u8]) {
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.stream.write_all(bytes).await.unwrap();
    assert!(
        wire.receive_frame().await.is_none(),
        "no answer to {bytes:?}"
    );
    assert_alive(broker).await;
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::from(u32::try_from(body.len()).unwrap().to_be_bytes());
    out.extend_from_slice(body);
    out
}

#[tokio::test]
async fn lengths_outside_the_bounds_end_the_connection() {
    let broker = broker().await;
    assert_closed(&broker, &(-1_i32).to_be_bytes()).await;
    assert_closed(&broker, &i32::MIN.to_be_bytes()).await;
    assert_closed(&broker, &i32::MAX.to_be_bytes()).await;
    assert_closed(&broker, &(100 * 1024 * 1024 + 1_i32).to_be_bytes()).await;
    assert_closed(&broker, b"GET / HTTP/1.1\r\n\r\n").await;
    broker.shutdown().await;
}

#[tokio::test]
async fn frames_that_are_no_request_end_the_connection() {
    let broker = broker().await;
    assert_closed(&broker, &frame(b"")).await;
    assert_closed(&broker, &frame(b"x")).await;
    assert_closed(&broker, &frame(&[0xff; 64])).await;
    // Fetch with a version that is not served, and an API that is not.
    assert_closed(&broker, &frame(&[0, 1, 0, 99, 0, 0, 0, 1, 0xff, 0xff])).await;
    assert_closed(&broker, &frame(&[0, 11, 0, 0, 0, 0, 0, 1, 0xff, 0xff])).await;
    // Metadata without a body.
    assert_closed(&broker, &frame(&[0, 3, 0, 12, 0, 0, 0, 1, 0xff, 0xff, 0])).await;
    broker.shutdown().await;
}

/// Each shorter form of a good request ends the connection or is answered; the broker lives through all of them.
#[tokio::test]
async fn every_cut_of_a_request_is_survived() {
    let broker = broker().await;
    let mut body = BytesMut::new();
    // Header of version 2: key 1, version 12, correlation id, null client id, no tags.
    body.put_slice(&[0, 1, 0, 12, 0, 0, 0, 7, 0xff, 0xff, 0]);
    fetch("t", 0, 0).encode(&mut body, 12).unwrap();
    for cut in 0..body.len() {
        assert_closed(&broker, &frame(&body[..cut])).await;
    }
    broker.shutdown().await;
}

/// A frame that ends in the middle: the client is gone, nothing was done.
#[tokio::test]
async fn a_frame_that_never_ends_is_dropped_with_its_connection() {
    let broker = broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    wire.stream.write_all(&[0, 0, 0, 99, 0, 3]).await.unwrap();
    wire.stream.shutdown().await.unwrap();
    assert!(wire.receive_frame().await.is_none());
    assert_alive(&broker).await;
    broker.shutdown().await;
}

/// A list whose length says two thousand million: refused before anything is allocated for it.
#[tokio::test]
async fn a_list_longer_than_its_request_ends_the_connection() {
    let broker = broker().await;
    let flexible = [
        0, 3, 0, 12, 0, 0, 0, 1, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 7,
    ];
    assert_closed(&broker, &frame(&flexible)).await;
    let plain = [0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff];
    assert_closed(&broker, &frame(&plain)).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn an_unknown_version_of_api_versions_is_answered_in_version_0() {
    let broker = broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let named = StrBytes::from_static_str("wire");
    let request = ApiVersionsRequest::default()
        .with_client_software_name(named.clone())
        .with_client_software_version(named);
    let mut body = BytesMut::from(&[0, 18, 0, 99, 0, 0, 0, 7, 0xff, 0xff, 0][..]);
    request.encode(&mut body, 3).unwrap();
    wire.send_frame(&body).await;
    let answer = wire.receive_frame().await.unwrap();
    // Correlation id 7, error 35, one API: key 18, versions 0 to 3.
    assert_eq!(
        answer[..],
        [0, 0, 0, 7, 0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 3]
    );
    let answer = wire.call(3, &request).await;
    assert_eq!(answer.error_code, 0, "the connection goes on");
    broker.shutdown().await;
}
