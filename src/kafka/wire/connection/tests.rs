use kafka_protocol::messages::{FetchRequest, MetadataRequest, MetadataResponse};
use tokio::net::TcpListener;

use super::super::fake::{FakeBroker, Reply};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

async fn open(broker: &FakeBroker) -> Result<Connection, KafkaError> {
    let address = broker.address.to_string().into();
    Connection::open(
        &address,
        &Access::new(broker.config()),
        Deadline::within(SECOND),
    )
    .await
}

async fn metadata(connection: &mut Connection) -> Result<MetadataResponse, KafkaError> {
    let request = MetadataRequest::default();
    let deadline = Deadline::within(Duration::from_millis(200));
    connection.exchange(&request, 12, deadline).await
}

fn empty_metadata() -> Reply {
    Reply::to::<MetadataRequest>(12, &MetadataResponse::default())
}

fn detail_of(error: &KafkaError) -> &str {
    match error {
        KafkaError::Protocol { detail, .. } => detail,
        other => panic!("not a protocol error: {other:?}"),
    }
}

#[test]
fn addresses_are_split_at_the_last_colon_and_literals_unbracketed() {
    assert_eq!(split_address("kafka:9092").unwrap(), ("kafka", 9092));
    assert_eq!(split_address("[::1]:9092").unwrap(), ("::1", 9092));
    for wrong in ["kafka", "kafka:", ":9092", "kafka:99999", "::1:9092", ""] {
        let error = split_address(wrong).unwrap_err().to_string();
        assert!(error.contains("kafka.brokers"), "{wrong}: {error}");
    }
    for (host, joined) in [("kafka", "kafka:9092"), ("::1", "[::1]:9092")] {
        assert_eq!(&*join_address(host, 9092), joined);
        assert_eq!(split_address(joined).unwrap(), (host, 9092));
    }
}

#[test]
fn the_highest_common_version_is_chosen() {
    let versions = |min, max| BrokerVersions {
        ranges: BTreeMap::from([(FetchRequest::KEY, (min, max))]),
        metadata_version: None,
    };
    let ours = FetchRequest::OURS;
    let chosen = |min, max| versions(min, max).choose::<FetchRequest>();
    assert_eq!(chosen(0, 100).unwrap(), ours.max);
    assert_eq!(chosen(0, ours.max - 1).unwrap(), ours.max - 1);
    assert_eq!(chosen(ours.max, 100).unwrap(), ours.max);
    for (min, max) in [(ours.max + 1, 100), (0, ours.min - 1)] {
        let error = chosen(min, max).unwrap_err();
        let detail = detail_of(&error);
        assert!(detail.contains(&format!("{min} to {max}")), "{detail}");
        let ours = format!("{} to {}", ours.min, ours.max);
        assert!(detail.contains(&ours), "{detail}");
    }
    let error = BrokerVersions::default().choose::<FetchRequest>();
    assert!(detail_of(&error.unwrap_err()).contains("the broker none"));
}

#[tokio::test]
async fn an_exchange_leaves_the_connection_reusable() {
    let broker = FakeBroker::start(|_| empty_metadata()).await;
    let mut connection = open(&broker).await.unwrap();
    for _ in 0..3 {
        metadata(&mut connection).await.unwrap();
        assert!(connection.is_reusable());
    }
}

#[tokio::test]
async fn impossible_lengths_are_refused_before_anything_is_allocated() {
    let tls_alert = vec![21, 3, 3, 0, 2, 2, 70];
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let too_long = i32::try_from(FRAME_BYTES_MAX + 1).unwrap();
    for (bytes, says) in [
        (vec![0xff; 4], "announces an answer of -1 bytes"),
        (too_long.to_be_bytes().to_vec(), "is the most that Kafka"),
        (http, "Is this a Kafka port?"),
        (tls_alert, "kafka.security_protocol"),
    ] {
        let raw = bytes.clone();
        let broker = FakeBroker::start_raw(move |_| Reply::Raw(raw.clone())).await;
        let error = open(&broker).await.unwrap_err();
        let detail = detail_of(&error);
        assert!(detail.contains(says), "{bytes:?}: {detail}");
    }
}

#[tokio::test]
async fn the_answer_to_another_request_is_refused() {
    let broker = FakeBroker::start(|_| {
        // Correlation id 119, no tags.
        Reply::Raw(vec![0, 0, 0, 5, 0, 0, 0, 119, 0])
    })
    .await;
    let mut connection = open(&broker).await.unwrap();
    let error = metadata(&mut connection).await.unwrap_err();
    assert!(detail_of(&error).contains("it answers request"), "{error}");
    assert!(!connection.is_reusable());
}

#[tokio::test]
async fn bytes_left_over_are_refused() {
    let broker = FakeBroker::start(|_| {
        let Reply::Answer {
            header_version,
            body,
        } = empty_metadata()
        else {
            unreachable!("it is an answer");
        };
        let body = [&body[..], &[0]].concat().into();
        Reply::Answer {
            header_version,
            body,
        }
    })
    .await;
    let mut connection = open(&broker).await.unwrap();
    let error = metadata(&mut connection).await.unwrap_err();
    assert!(detail_of(&error).contains("1 bytes are left over"));
    assert!(!connection.is_reusable());
}

#[tokio::test]
async fn an_answer_cut_off_is_a_lost_connection() {
    for bytes in [vec![], vec![0, 0], vec![0, 0, 0, 9], vec![0, 0, 0, 9, 0, 0]] {
        let broker = FakeBroker::start(move |_| Reply::Cut(bytes.clone())).await;
        let mut connection = open(&broker).await.unwrap();
        let error = metadata(&mut connection).await.unwrap_err();
        assert!(
            matches!(error, KafkaError::Disconnected { .. }),
            "{error:?}"
        );
        assert!(!connection.is_reusable());
    }
}

#[tokio::test]
async fn a_silent_answer_times_out_and_spoils_the_connection() {
    let broker = FakeBroker::start(|_| Reply::Silence).await;
    let mut connection = open(&broker).await.unwrap();
    let error = metadata(&mut connection).await.unwrap_err();
    assert!(matches!(error, KafkaError::Timeout { .. }), "{error:?}");
    assert!(!connection.is_reusable());
}

#[tokio::test]
async fn a_broker_that_accepts_and_is_silent_is_unreachable_in_time() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address: Arc<str> = listener.local_addr().unwrap().to_string().into();
    let config = KafkaConfig {
        connect_timeout: Duration::from_millis(100),
        ..KafkaConfig::default()
    };
    let started = Instant::now();
    let error = Connection::open(
        &address,
        &Access::new(config),
        Deadline::within(10 * SECOND),
    )
    .await;
    let error = error.unwrap_err();
    assert!(matches!(error, KafkaError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("kafka.connect_timeout"));
    assert!(started.elapsed() < 5 * SECOND);
}

#[tokio::test]
async fn a_broker_too_old_for_our_first_request_is_named_so() {
    // Version 0 of the answer: the code, then an empty list.
    let broker = FakeBroker::start_raw(|_| Reply::Answer {
        header_version: 0,
        body: Bytes::from_static(&[0, 35, 0, 0, 0, 0]),
    })
    .await;
    let error = open(&broker).await.unwrap_err();
    assert!(detail_of(&error).contains("Kafka 2.4 or newer"), "{error}");
}

#[tokio::test]
async fn what_the_broker_sends_unasked_spoils_the_connection() {
    let broker = FakeBroker::start(|asked| {
        let Reply::Answer { body, .. } = empty_metadata() else {
            unreachable!("it is an answer");
        };
        let mut frame = BytesMut::new();
        frame.put_i32(i32::try_from(body.len()).unwrap() + 5);
        // ApiVersions took correlation id 1.
        frame.put_i32(i32::try_from(asked.turn).unwrap() + 2);
        frame.put_u8(0);
        frame.put(body);
        frame.put_u8(0);
        Reply::Raw(frame.to_vec())
    })
    .await;
    let mut connection = open(&broker).await.unwrap();
    metadata(&mut connection).await.unwrap();
    let Stream::Plain(stream) = &connection.stream else {
        unreachable!("no TLS was asked for");
    };
    stream.readable().await.unwrap();
    assert!(!connection.is_reusable());
}

#[tokio::test]
async fn each_address_of_a_name_is_tried() {
    // Where the name stands for ::1 too, that one refuses.
    let broker = FakeBroker::start(|_| empty_metadata()).await;
    let address = format!("localhost:{}", broker.address.port()).into();
    let opened = Connection::open(
        &address,
        &Access::new(broker.config()),
        Deadline::within(SECOND),
    )
    .await;
    metadata(&mut opened.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_refused_port_and_an_unknown_name_say_so() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let refusing = listener.local_addr().unwrap().to_string();
    drop(listener);
    for (address, says) in [
        (refusing.as_str(), "refused"),
        ("no-such-host.invalid:9092", "lookup"),
        ("no-port", "the port is missing"),
    ] {
        let config = KafkaConfig::default();
        let error = Connection::open(
            &address.into(),
            &Access::new(config),
            Deadline::within(SECOND),
        )
        .await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains(says) && text.contains(address), "{text}");
        assert!(text.contains("kafka.brokers"), "{text}");
    }
}
