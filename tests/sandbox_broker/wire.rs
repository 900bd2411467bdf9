//! A bare client on the codecs: one request, one response, on one connection.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_llm_processor::sandbox::broker::{Broker, BrokerConfig, SaslUsers};
use kafka_llm_processor::types::Secret;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    BrokerId, FetchRequest, ProduceRequest, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use kafka_protocol::records::{
    Compression, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, Record, RecordBatchEncoder,
    RecordEncodeOptions, TimestampType,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for anything in these tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A broker with a topic `t` of two partitions.
pub(crate) async fn broker() -> Broker {
    let broker = Broker::start(BrokerConfig::default()).await.unwrap();
    broker.create_topic("t", 2, &[]).unwrap();
    broker
}

/// A broker that wants the user `alice` with the password `secret`.
pub(crate) async fn secure_broker() -> Broker {
    let users = SaslUsers::from([("alice".to_owned(), Secret::new("secret"))]);
    let config = BrokerConfig {
        sasl: Some(users),
        ..BrokerConfig::default()
    };
    Broker::start(config).await.unwrap()
}

pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
}

impl Wire {
    pub(crate) async fn connect(address: &str) -> Self {
        let connect = timeout(DEADLINE, TcpStream::connect(address));
        let stream = connect.await.unwrap().unwrap();
        Self { stream }
    }

    pub(crate) async fn send<R: Request>(&mut self, version: i16, request: &R) {
        let mut body = BytesMut::new();
        RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(7)
            .with_client_id(Some(StrBytes::from_static_str("wire")))
            .encode(&mut body, R::header_version(version))
            .unwrap();
        request.encode(&mut body, version).unwrap();
        self.send_frame(&body).await;
    }

    pub(crate) async fn send_frame(&mut self, body: &[u8]) {
        let mut frame = BytesMut::new();
        frame.put_i32(i32::try_from(body.len()).unwrap());
        frame.put_slice(body);
        self.stream.write_all(&frame).await.unwrap();
    }

    /// The next frame; `None` when the broker closed the connection.
    pub(crate) async fn receive_frame(&mut self) -> Option<Bytes> {
        let read = async {
            let length = self.stream.read_i32().await.ok()?;
            let mut frame = vec![0; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut frame).await.ok()?;
            Some(Bytes::from(frame))
        };
        timeout(DEADLINE, read)
            .await
            .expect("an answer or an end in time")
    }

    /// The response; `None` when the broker closed the connection.
    pub(crate) async fn try_call<R: Request>(
        &mut self,
        version: i16,
        request: &R,
    ) -> Option<R::Response> {
        self.send(version, request).await;
        self.try_receive::<R>(version).await
    }

    /// The response to an earlier request; `None` when the broker closed the connection.
    pub(crate) async fn try_receive<R: Request>(&mut self, version: i16) -> Option<R::Response> {
        let mut frame = self.receive_frame().await?;
        let header_version = R::Response::header_version(version);
        let header = ResponseHeader::decode(&mut frame, header_version).unwrap();
        assert_eq!(header.correlation_id, 7);
        let response = R::Response::decode(&mut frame, version).unwrap();
        assert!(frame.is_empty(), "every byte of the response is read");
        Some(response)
    }

    pub(crate) async fn receive<R: Request>(&mut self, version: i16) -> R::Response {
        let response = self.try_receive::<R>(version).await;
        response.expect("the broker answers")
    }

    pub(crate) async fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let response = self.try_call(version, request).await;
        response.expect("the broker answers")
    }
}

pub(crate) fn name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// Records with these keys and values as one batch of an ordinary producer.
pub(crate) fn batch(records: &[(Option<&str>, &str)], timestamp: i64) -> BytesMut {
    let records: Vec<_> = (0..)
        .zip(records)
        .map(|(index, (key, value))| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            timestamp_type: TimestampType::Creation,
            offset: index,
            sequence: i32::try_from(index).unwrap() - 1,
            timestamp,
            key: key.map(|key| Bytes::from(key.to_owned())),
            value: Some(Bytes::from((*value).to_owned())),
            headers: Default::default(),
        })
        .collect();
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    RecordBatchEncoder::encode(&mut out, &records, &options).unwrap();
    out
}

/// Puts a field's bytes into a batch and makes the checksum right again.
pub(crate) fn patch(mut batch: BytesMut, at: usize, bytes: &[u8]) -> BytesMut {
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

pub(crate) fn produce(topic: &str, partition: i32, records: impl Into<Bytes>) -> ProduceRequest {
    let data = PartitionProduceData::default()
        .with_index(partition)
        .with_records(Some(records.into()));
    let topic = TopicProduceData::default()
        .with_name(name(topic))
        .with_partition_data(vec![data]);
    ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(5_000)
        .with_topic_data(vec![topic])
}

pub(crate) fn fetch(topic: &str, partition: i32, offset: i64) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(partition)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(1_000_000);
    let topic = FetchTopic::default()
        .with_topic(name(topic))
        .with_partitions(vec![partition]);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_session_epoch(-1)
        .with_max_wait_ms(0)
        .with_min_bytes(1)
        .with_max_bytes(1_000_000)
        .with_topics(vec![topic])
}
