//! What the broker counts of its clients.

use kafka_llm_processor::sandbox::broker::ApiKey;
use kafka_protocol::messages::MetadataRequest;
use tokio::time::timeout;

use crate::wire::{DEADLINE, Wire, batch, broker, produce};

#[tokio::test]
async fn requests_are_counted_by_api_with_their_bytes_and_connections_while_they_are_open() {
    let broker = broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let one = produce("t", 0, batch(&[(Some("k"), "v")], -1));
    wire.call(9, &one).await;
    let before = broker.traffic();
    assert_eq!(before.of(ApiKey::Produce).requests, 1);
    assert_eq!((before.connections_opened, before.connections), (1, 1));

    wire.call(9, &one).await;
    wire.call(9, &MetadataRequest::default()).await;
    let mut other = Wire::connect(&broker.bootstrap()).await;
    other.call(9, &MetadataRequest::default()).await;
    assert_eq!(broker.traffic().connections, 2);
    drop(wire);
    let until_one_is_left = async {
        while broker.traffic().connections != 1 {
            other.call(9, &MetadataRequest::default()).await;
        }
    };
    timeout(DEADLINE, until_one_is_left).await.unwrap();
    let since = broker.traffic().since(&before);
    let produced = since.of(ApiKey::Produce);
    assert_eq!(produced.requests, 1, "what came before is not in it");
    assert_eq!(
        produced.bytes_in,
        before.of(ApiKey::Produce).bytes_in,
        "the same request has the same bytes"
    );
    assert!(produced.bytes_in > 61, "a batch has a header of 61 bytes");
    assert!(since.of(ApiKey::Metadata).bytes_out > 0);
    assert_eq!(since.of(ApiKey::Fetch).requests, 0);
    assert_eq!(since.connections_opened, 1);
    drop(other);
}

#[tokio::test]
async fn the_bytes_of_a_log_are_those_of_its_batches() {
    let broker = broker().await;
    assert_eq!(broker.log_bytes("t"), Some(0));
    assert_eq!(broker.log_bytes("nowhere"), None);
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let records = batch(&[(Some("k"), "v"), (Some("l"), "w")], -1);
    let bytes = records.len();
    wire.call(9, &produce("t", 1, records.clone())).await;
    wire.call(9, &produce("t", 0, records)).await;
    assert_eq!(broker.log_bytes("t"), Some(2 * bytes));
}
