//! Stands between the program and an honest broker, and spoils answers as they are told to be.
//!
//! It listens on the broker's port of another loopback address, which the broker advertises: all that a client says goes through it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, BrokerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

const HOST: &str = "127.0.0.2";
/// Longer than a client waits for an answer.
const HELD: Duration = Duration::from_secs(30);

/// How an answer is spoilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Other bytes behind the correlation id, as many.
    Garbage,
    /// A frame that ends in its middle, with the connection.
    Cut,
    /// A whole frame with half of the answer.
    Half,
    /// Nothing at all in the frame.
    Empty,
    /// The answer to another request.
    OtherRequest,
    /// This length, and nothing more until the client leaves.
    Length(i32),
    /// The largest number of 32 bits, this many bytes behind the correlation id.
    LargeAt(usize),
    /// The largest count of records, in a batch whose checksum is right.
    RecordCount,
    /// The largest last offset, in a batch whose checksum is right.
    LastOffset,
}

/// By API, and by the topic that the answer names; an empty name is in every answer.
type Plan = Arc<Mutex<HashMap<About, VecDeque<Lie>>>>;
pub(crate) type About = (ApiKey, &'static str);

/// A broker, and what stands before it.
pub(crate) struct Proxy {
    pub(crate) broker: Broker,
    address: SocketAddr,
    plan: Plan,
    server: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let broker = Broker::start(BrokerConfig {
            advertised_host: Some(HOST.to_owned()),
            ..BrokerConfig::default()
        });
        let broker = broker.await.unwrap();
        let behind = broker.address();
        let listener = TcpListener::bind((HOST, behind.port())).await.unwrap();
        let address = listener.local_addr().unwrap();
        let plan = Plan::default();
        let lies = Arc::clone(&plan);
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client, behind, Arc::clone(&lies)));
            }
        });
        Self {
            broker,
            address,
            plan,
            server,
        }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Spoils the next answers about this, one after the other.
    pub(crate) fn lie(&self, about: About, lies: &[Lie]) {
        let mut plan = self.plan.lock().unwrap();
        plan.entry(about).or_default().extend(lies);
    }

    /// How many lies about this were not told yet.
    pub(crate) fn left(&self, about: About) -> usize {
        let plan = self.plan.lock().unwrap();
        plan.get(&about).map_or(0, VecDeque::len)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(mut client: TcpStream, behind: SocketAddr, plan: Plan) {
    let Ok(mut broker) = TcpStream::connect(behind).await else {
        return;
    };
    while let Some(request) = read_frame(&mut client).await {
        let api = i16::from_be_bytes([request[0], request[1]]);
        if write_frame(&mut broker, &request).await.is_none() {
            return;
        }
        let Some(mut answer) = read_frame(&mut broker).await else {
            return;
        };
        let lie = next_lie(&plan, api, &mut answer);
        let told = match lie {
            None => write_frame(&mut client, &answer).await,
            Some(lie) => tell(&mut client, lie, &answer).await,
        };
        if told.is_none() {
            return;
        }
    }
}

/// Takes the next lie about this answer, and spoils the answer with it.
fn next_lie(plan: &Plan, api: i16, answer: &mut Vec<u8>) -> Option<Lie> {
    let mut plan = plan.lock().unwrap();
    for ((of, topic), lies) in plan.iter_mut() {
        let topic = topic.as_bytes();
        let names = topic.is_empty() || answer.windows(topic.len()).any(|name| name == topic);
        let Some(lie) = lies.front().filter(|_| *of as i16 == api && names) else {
            continue;
        };
        // Where it has to be a batch that is spoilt, not before there is one.
        if spoil(answer, *lie) {
            return lies.pop_front();
        }
    }
    None
}

async fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = stream.read_i32().await.ok()?;
    let mut frame = vec![0; usize::try_from(length).ok()?];
    stream.read_exact(&mut frame).await.ok()?;
    Some(frame)
}

async fn write_frame(stream: &mut TcpStream, frame: &[u8]) -> Option<()> {
    let length = i32::try_from(frame.len()).ok()?;
    stream.write_i32(length).await.ok()?;
    stream.write_all(frame).await.ok()
}

/// Sends what was spoilt; `None` where the connection ends with that.
async fn tell(client: &mut TcpStream, lie: Lie, answer: &[u8]) -> Option<()> {
    match lie {
        Lie::Cut => {
            client.write_i32(answer.len() as i32).await.ok()?;
            client.write_all(&answer[..answer.len() / 2]).await.ok()?;
            client.shutdown().await.ok()?;
            None
        }
        Lie::Length(length) => {
            client.write_i32(length).await.ok()?;
            client.write_all(&[0xff; 4096]).await.ok()?;
            let mut nothing = [0];
            drop(tokio::time::timeout(HELD, client.read(&mut nothing)).await);
            None
        }
        _ => write_frame(client, answer).await,
    }
}

/// Changes an answer; `false` where there is nothing that could be changed so.
fn spoil(answer: &mut Vec<u8>, lie: Lie) -> bool {
    match lie {
        Lie::Cut | Lie::Length(_) => {}
        Lie::Garbage => answer[4..].fill(0xa5),
        Lie::Half => answer.truncate(4 + (answer.len() - 4) / 2),
        Lie::Empty => answer.clear(),
        Lie::OtherRequest => answer[0] ^= 0x40,
        Lie::LargeAt(at) => match answer.get_mut(4 + at..8 + at) {
            Some(number) => number.copy_from_slice(&i32::MAX.to_be_bytes()),
            None => return false,
        },
        Lie::RecordCount => return in_batch(answer, 57),
        Lie::LastOffset => return in_batch(answer, 23),
    }
    true
}

/// Writes the largest number of 32 bits into the first batch, and makes its checksum right.
fn in_batch(answer: &mut [u8], at: usize) -> bool {
    let found = (0..answer.len().saturating_sub(61)).find(|start| {
        let batch = &answer[*start..];
        let length = i32::from_be_bytes(batch[8..12].try_into().unwrap());
        let checksum = u32::from_be_bytes(batch[17..21].try_into().unwrap());
        let end = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .saturating_add(12);
        batch[16] == 2
            && end >= 61
            && end <= batch.len()
            && crc32c::crc32c(&batch[21..end]) == checksum
    });
    let Some(start) = found else {
        return false;
    };
    let batch = &mut answer[start..];
    let length = i32::from_be_bytes(batch[8..12].try_into().unwrap());
    let end = usize::try_from(length).unwrap() + 12;
    batch[at..at + 4].copy_from_slice(&i32::MAX.to_be_bytes());
    let checksum = crc32c::crc32c(&batch[21..end]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    true
}
