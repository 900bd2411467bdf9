//! A broker that says what a test tells it to: for answers that no real broker gives on demand.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, BrokerId, MetadataResponse, RequestHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::api::Call;
use super::cluster::topic_name;
use super::pool::lock;
use crate::kafka::KafkaConfig;

/// A request as it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) key: i16,
    pub(super) version: i16,
    /// Connections are counted from 0.
    pub(super) connection: usize,
    /// Requests with this key, on any connection, are counted from 0.
    pub(super) turn: usize,
    /// From the API key on; kept until the test's process ends, so that what was asked can be copied around.
    frame: &'static [u8],
}

impl Asked {
    /// The request itself.
    pub(super) fn request<R: Call + Decodable>(&self) -> R {
        let mut frame = Bytes::from_static(self.frame);
        RequestHeader::decode(&mut frame, R::header_version(self.version)).unwrap();
        R::decode(&mut frame, self.version).unwrap()
    }
}

/// Topic `orders` has so many partitions, all led by the broker at that port of this machine, which is the controller too.
pub(super) fn orders(port: u16, partitions: i32) -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(1))
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(i32::from(port));
    let partitions = (0..partitions).map(|index| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(1))
    });
    let topic = MetadataResponseTopic::default()
        .with_name(Some(topic_name("orders")))
        .with_partitions(partitions.collect());
    MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_controller_id(BrokerId(1))
        .with_topics(vec![topic])
}

/// What the broker does about it.
#[derive(Debug)]
pub(super) enum Reply {
    /// The right header, then these bytes.
    Answer {
        header_version: i16,
        body: Bytes,
    },
    /// These bytes and nothing else, then silence.
    Raw(Vec<u8>),
    /// These bytes, then the connection ends.
    Cut(Vec<u8>),
    HangUp,
    Silence,
}

impl Reply {
    pub(super) fn to<R: Call>(version: i16, response: &R::Response) -> Self {
        let mut body = BytesMut::new();
        response.encode(&mut body, version).unwrap();
        Self::Answer {
            header_version: R::Response::header_version(version),
            body: body.freeze(),
        }
    }
}

type Log = Arc<Mutex<Vec<Asked>>>;

type Script = Arc<Mutex<dyn FnMut(Asked) -> Reply + Send>>;

#[derive(Debug)]
pub(super) struct FakeBroker {
    pub(super) address: SocketAddr,
    asked: Log,
    task: JoinHandle<()>,
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeBroker {
    /// Answers ApiVersions by itself, offering the API keys 0 to 60 in all versions that Kafka had, and leaves the rest to the script.
    pub(super) async fn start(script: impl FnMut(Asked) -> Reply + Send + 'static) -> Self {
        let mut script = script;
        Self::start_raw(move |asked| {
            if asked.key == ApiVersionsRequest::KEY {
                offer(0..=60, 0, 20)
            } else {
                script(asked)
            }
        })
        .await
    }

    /// Leaves everything to the script.
    pub(super) async fn start_raw(script: impl FnMut(Asked) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Log::default();
        let script: Script = Arc::new(Mutex::new(script));
        let task = tokio::spawn(accept(listener, script, Arc::clone(&asked)));
        Self {
            address,
            asked,
            task,
        }
    }

    pub(super) fn config(&self) -> KafkaConfig {
        KafkaConfig {
            brokers: self.address.to_string(),
            request_timeout: std::time::Duration::from_secs(2),
            connect_timeout: std::time::Duration::from_secs(1),
            ..KafkaConfig::default()
        }
    }

    /// The requests with that key so far.
    pub(super) fn asked<R: Request>(&self) -> Vec<Asked> {
        let asked = lock(&self.asked);
        let with_key = asked.iter().filter(|asked| asked.key == R::KEY);
        with_key.copied().collect()
    }

    /// What these requests said.
    pub(super) fn requests<R: Call + Decodable>(&self) -> Vec<R> {
        let asked = self.asked::<R>();
        asked.iter().map(Asked::request).collect()
    }
}

/// An ApiVersions answer with one range for all keys.
pub(super) fn offer(keys: std::ops::RangeInclusive<i16>, min: i16, max: i16) -> Reply {
    let ranges = keys
        .map(|key| {
            ApiVersion::default()
                .with_api_key(key)
                .with_min_version(min)
                .with_max_version(max)
        })
        .collect();
    let response = ApiVersionsResponse::default().with_api_keys(ranges);
    Reply::to::<ApiVersionsRequest>(3, &response)
}

async fn accept(listener: TcpListener, script: Script, asked: Log) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let number = connections.len();
        connections.spawn(serve(
            stream,
            number,
            Arc::clone(&script),
            Arc::clone(&asked),
        ));
    }
}

/// Ends when either side hangs up.
async fn serve(
    mut stream: TcpStream,
    connection: usize,
    script: Script,
    log: Log,
) -> std::io::Result<()> {
    loop {
        let length = stream.read_i32().await?;
        let key = stream.read_i16().await?;
        let version = stream.read_i16().await?;
        let correlation_id = stream.read_i32().await?;
        let mut frame = BytesMut::new();
        frame.put_i16(key);
        frame.put_i16(version);
        frame.put_i32(correlation_id);
        frame.resize(usize::try_from(length).unwrap(), 0);
        stream.read_exact(&mut frame[8..]).await?;
        let asked = {
            let mut log = lock(&log);
            let turn = log.iter().filter(|asked| asked.key == key).count();
            let asked = Asked {
                key,
                version,
                connection,
                turn,
                frame: Vec::leak(frame.to_vec()),
            };
            log.push(asked);
            asked
        };
        let reply = (lock(&script))(asked);
        match reply {
            Reply::Answer {
                header_version,
                body,
            } => {
                let tags = if header_version > 0 { &[0_u8][..] } else { &[] };
                let length = 4 + tags.len() + body.len();
                // One write: the second of two would wait for the acknowledgement of the first.
                let mut frame = BytesMut::new();
                frame.put_i32(i32::try_from(length).unwrap());
                frame.put_i32(correlation_id);
                frame.put(tags);
                frame.put(body);
                stream.write_all(&frame).await?;
            }
            Reply::Raw(bytes) => {
                stream.write_all(&bytes).await?;
            }
            Reply::Cut(bytes) => return stream.write_all(&bytes).await,
            Reply::HangUp => return Ok(()),
            Reply::Silence => {}
        }
    }
}
