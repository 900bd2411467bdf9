//! What a load costs Kafka, counted at the broker, beside what `model.rs` computes from the code; `docs/scaling.md` is about both.
//!
//! Members of one group run in this process, on the sandbox's broker over TCP, with simulated model servers whose calls take 50 ms. Documents
//! of 1 KiB come by chance. Broker, members and servers share the machine, so rates and bytes are what is measured here, and no time is.
//!
//! Estimate before measuring: requests are counted, so what follows a clock (polls, looks, copies, heartbeats) is within one event of the
//! model. What follows documents is theirs within a tenth: flushes at least once, as each comes alone, and at twelve documents a second of a
//! partition three transactions for four documents. The polls of the own driver are hardest to tell, as two of them overlap: within a fourth.
//!
//! Computed and measured must agree within [`FACTOR`] wherever [`EVENTS_MIN`] events or more are expected. It takes two and a half minutes, and longer on a
//! busy machine;
//! `SCALING_POINTS=4` leaves the first four points of each guarantee.

#![cfg(feature = "sandbox")]
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a bench fails by panicking"
)]

mod model;
mod service;
mod tables;

use std::time::Duration;

use kafka_llm_processor::clock;
use kafka_llm_processor::sandbox::broker::{ApiKey, Traffic};
use kafka_llm_processor::sandbox::vllm::Vllm;
use kafka_llm_processor::types::{Offset, Record, TopicPartition};
use tokio::time::{Instant, sleep};

use model::{Load, REFRESH};
use service::{Arrivals, COMMITS, Group, Setup, Totals, broker, count, document, endpoints};

/// How far computed and measured may be apart, either way.
const FACTOR: f64 = 1.3;
/// The same for what hangs on how many ask the own client at the same time, and so on the machine: its connections, and the looks that are shared
/// when all partitions are taken over at once.
const FACTOR_TOGETHER: f64 = 2.0;
/// Below so many events chance decides.
const EVENTS_MIN: f64 = 20.0;
/// The looks at claims and the copies of the offsets come once in it, wherever it begins; it ends before the first refresh.
const WINDOW: Duration = Duration::from_secs(5);
/// In this one each partition has one refresh, and three looks.
const IDLE_WINDOW: Duration = Duration::from_secs(15);
const WARM_UP: Duration = Duration::from_secs(1);
/// Where taking over takes seconds a look that began meanwhile knows only some of the partitions: it must be over.
const WARM_UP_MANY: Duration = Duration::from_secs(6);
const MANY: i32 = 1_000;
/// Commit records that a partition had before it is taken over.
const COMMITS_BEFORE: usize = 500;

/// Partitions, instances, endpoints, documents a second.
const POINTS: [(i32, u32, u32, u32); 7] = [
    (1, 1, 1, 20),
    (16, 1, 1, 20),
    (16, 1, 1, 200),
    (16, 2, 4, 200),
    (128, 4, 4, 200),
    (1_000, 1, 1, 20),
    (1_000, 1, 4, 200),
];

/// What was counted in a window.
struct Measured {
    traffic: Traffic,
    totals: Totals,
    log_bytes: u64,
    seconds: f64,
    /// Seconds after the first document could come at which partitions have a refresh in the window, unless documents came before.
    refreshes: Vec<f64>,
}

/// What was counted until all partitions were taken over.
struct Begun {
    traffic: Traffic,
    seconds: f64,
}

/// A figure beside what it was computed to be.
pub(crate) struct Pair {
    pub(crate) what: &'static str,
    pub(crate) measured: f64,
    pub(crate) computed: f64,
    /// Events that the figure rests on.
    pub(crate) events: f64,
    /// How far the two may be apart.
    pub(crate) factor: f64,
}

impl Pair {
    fn agrees(&self) -> bool {
        let ratio = self.measured / self.computed;
        let is_nothing = self.measured == 0.0 && self.computed == 0.0;
        is_nothing || self.events < EVENTS_MIN || (1.0 / self.factor..=self.factor).contains(&ratio)
    }
}

/// Tells of each pair that does not agree; answers how many there are.
fn told_apart(of: &str, pairs: &[Pair]) -> usize {
    let apart = pairs.iter().filter(|pair| !pair.agrees());
    apart
        .map(|pair| {
            let Pair {
                what,
                measured,
                computed,
                ..
            } = pair;
            eprintln!("{of}: {what} was computed as {computed:.1} and measured as {measured:.1}");
        })
        .count()
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let points = std::env::var("SCALING_POINTS").ok();
    let points = points.map_or(POINTS.len(), |text| text.parse().expect("SCALING_POINTS"));
    let mut running = Vec::new();
    let mut begun = Vec::new();
    for exactly_once in [false, true] {
        for (partitions, instances, endpoints, documents) in POINTS.into_iter().take(points) {
            let setup = Setup {
                instances,
                endpoints,
                ..Setup::new(partitions, exactly_once)
            };
            let (start, pairs) = settle(&setup, documents).await;
            begun.push((setup, start_pairs(&setup, &start, 0), start.seconds));
            running.push((setup, pairs, documents));
        }
    }
    let idle = [false, true].map(|exactly_once| Setup::new(128, exactly_once));
    let [least, exactly] = idle
        .each_ref()
        .map(|setup| measure(setup, 0.0, IDLE_WINDOW));
    let (least, exactly) = tokio::join!(least, exactly);
    for (setup, (_, measured)) in idle.into_iter().zip([least, exactly]) {
        running.push((setup, pairs(&setup, &measured, REFRESH), 0));
    }
    for commit_partitions in [16, 1] {
        let setup = Setup {
            commit_partitions,
            ..Setup::new(16, true)
        };
        let (start, log_bytes) = restart(&setup).await;
        begun.push((setup, start_pairs(&setup, &start, log_bytes), start.seconds));
    }
    tables::running(&running);
    tables::begun(&begun);
    tables::computed();
    println!("\nCalls in flight, 32 model servers, 16 partitions:\n");
    tables::heading(&[
        "read_ahead_records",
        "read_ahead_bytes",
        "mean / computed",
        "most / computed",
    ]);
    for (records, mebibytes) in [(1_024, 16), (1_024, 4)] {
        calls_in_flight(records, mebibytes).await;
    }
    let mut apart = 0;
    for (setup, pairs, _) in &running {
        apart += told_apart(&setup.name(), pairs);
    }
    for (setup, pairs, _) in &begun {
        apart += told_apart(&format!("the start of {}", setup.name()), pairs);
    }
    assert_eq!(apart, 0, "figures that are more than {FACTOR} apart");
}

/// Measures until computed and measured agree, three times at most: a machine that stood still is none of the model.
async fn settle(setup: &Setup, documents: u32) -> (Begun, Vec<Pair>) {
    let mut tries = 0;
    loop {
        tries += 1;
        let (start, measured) = measure(setup, f64::from(documents), WINDOW).await;
        let pairs = pairs(setup, &measured, f64::INFINITY);
        if tries == 3 || pairs.iter().all(Pair::agrees) {
            return (start, pairs);
        }
    }
}

fn warm_up(setup: &Setup) -> Duration {
    if setup.partitions >= MANY {
        WARM_UP_MANY
    } else {
        WARM_UP
    }
}

/// When the refreshes of the claims come, as far as they are in the window.
fn refreshes_within(
    claims: &[(TopicPartition, Offset, Record)],
    offered_from: i64,
    setup: &Setup,
    window: Duration,
) -> Vec<f64> {
    let begins = warm_up(setup).as_secs_f64();
    let after = claims.iter().map(|(_, _, claim)| {
        let since = i32::try_from(claim.timestamp_ms - offered_from).expect("a minute or so");
        f64::from(since) / 1e3 + REFRESH
    });
    after
        .filter(|at| (begins..begins + window.as_secs_f64()).contains(at))
        .collect()
}

/// Begins, lets documents come, and counts.
async fn measure(setup: &Setup, documents: f64, window: Duration) -> (Begun, Measured) {
    let began = Instant::now();
    let group = Group::start(setup).await;
    let start = Begun {
        traffic: group.broker.traffic(),
        seconds: began.elapsed().as_secs_f64(),
    };
    let claims = group.broker.records(COMMITS);
    let offered_from = clock::now().as_millisecond();
    let arrivals = Arrivals::start(&group, documents);
    sleep(warm_up(setup)).await;
    let (traffic, totals, log_bytes) = (
        group.broker.traffic(),
        group.totals(),
        group.commit_log_bytes(),
    );
    let from = Instant::now();
    sleep(window).await;
    let measured = Measured {
        traffic: group.broker.traffic().since(&traffic),
        totals: group.totals().since(&totals),
        log_bytes: group.commit_log_bytes() - log_bytes,
        seconds: from.elapsed().as_secs_f64(),
        refreshes: refreshes_within(&claims, offered_from, setup, window),
    };
    eprintln!(
        "{}: {:.0} documents a second",
        setup.name(),
        count(measured.totals.documents) / measured.seconds
    );
    arrivals.stop().await;
    group.stop().await;
    (start, measured)
}

/// Begins where partitions have commits already; answers the bytes of their log too.
async fn restart(setup: &Setup) -> (Begun, u64) {
    let servers = endpoints(1, service::CALL).await;
    let group = Group::start_on(broker(setup).await, servers.clone(), setup).await;
    let broker = group.stop().await;
    for (place, _, record) in broker.records_committed(COMMITS) {
        for _ in 0..COMMITS_BEFORE {
            broker
                .append(COMMITS, place.partition, vec![record.clone()])
                .expect("appended");
        }
    }
    let log_bytes = broker.log_bytes(COMMITS).expect("the commit topic");
    let (before, began) = (broker.traffic(), Instant::now());
    let group = Group::start_on(broker, servers, setup).await;
    let start = Begun {
        traffic: group.broker.traffic().since(&before),
        seconds: began.elapsed().as_secs_f64(),
    };
    group.stop().await;
    (start, u64::try_from(log_bytes).expect("a size"))
}

/// Calls that are under way where there are more documents, and room for more calls, than are read ahead.
async fn calls_in_flight(records: u32, mebibytes: u32) {
    const DOCUMENTS: u64 = 8_000;
    const BYTES: f64 = 4_096.0;
    const MEBIBYTE: f64 = 1_048_576.0;
    let setup = Setup {
        // With 64 calls at each to begin with.
        endpoints: 32,
        read_ahead_records: records,
        read_ahead_mebibytes: mebibytes,
        concurrency: "adaptive",
        ..Setup::new(16, false)
    };
    let broker = broker(&setup).await;
    for number in 0..DOCUMENTS {
        let partition = i32::try_from(number % 16).expect("a partition");
        let record = document(number, 4_096);
        broker
            .append(service::INPUT, partition, vec![record])
            .expect("appended");
    }
    let servers = endpoints(setup.endpoints, Duration::from_secs(1)).await;
    let group = Group::start_on(broker, servers, &setup).await;
    let (mut sum, mut looks, mut most) = (0.0, 0.0, 0.0_f64);
    loop {
        let ended = group.totals().documents;
        if ended > DOCUMENTS * 6 / 10 {
            break;
        }
        let running = group.servers.iter().map(Vllm::running).sum::<usize>();
        let running = count(u64::try_from(running).expect("a count"));
        if ended > 0 {
            sum += running;
            looks += 1.0;
        }
        most = most.max(running);
        sleep(Duration::from_millis(20)).await;
    }
    group.stop().await;
    // `pipeline::read_ahead`: a quarter of the bytes is for fetches on their way. One of each partition may pass both bounds.
    let bytes = f64::from(mebibytes) * MEBIBYTE;
    let fetch = (bytes / 4.0 / 16.0).clamp(16_384.0, MEBIBYTE) / BYTES;
    let bound = f64::from(records).min(0.75 * bytes / (BYTES + 1_024.0));
    println!(
        "| {records} | {mebibytes} MiB | {:.0} / {bound:.0} | {most:.0} / {:.0} |",
        sum / looks,
        bound + 16.0 * fetch
    );
    assert!(most <= bound + 16.0 * fetch, "{most} calls");
}

pub(crate) fn load_of(setup: &Setup, documents: f64, refresh: f64) -> Load {
    Load {
        partitions: f64::from(setup.partitions),
        commit_partitions: f64::from(setup.commit_partitions),
        instances: f64::from(setup.instances),
        brokers: 1.0,
        documents,
        document_bytes: 1_024.0,
        exactly_once: setup.exactly_once,
        is_wire: model::is_wire(setup.exactly_once, f64::from(setup.partitions)),
        is_group: setup.instances > 1,
        interval: if setup.exactly_once { 0.05 } else { 0.01 },
        flush: 0.002,
        round_trip: 0.000_5,
        refresh,
        early_refreshes: 0.0,
    }
}

/// The load as it came: of as many documents, and with the refreshes that came early.
fn load_measured(setup: &Setup, measured: &Measured, refresh: f64) -> Load {
    let documents = count(measured.totals.documents) / measured.seconds;
    // Where all refreshes are in the window the model has them itself.
    let early_refreshes = if refresh.is_finite() {
        0.0
    } else {
        let by_partition = documents / f64::from(setup.partitions);
        let none_before = measured
            .refreshes
            .iter()
            .map(|at| (-by_partition * at).exp());
        none_before.sum::<f64>() / measured.seconds
    };
    Load {
        early_refreshes,
        ..load_of(setup, documents, refresh)
    }
}

fn pairs(setup: &Setup, measured: &Measured, refresh: f64) -> Vec<Pair> {
    let seconds = measured.seconds;
    let load = load_measured(setup, measured, refresh);
    let cost = load.cost();
    let requests = |api| count(measured.traffic.of(api).requests) / seconds;
    let bytes = |api| {
        let traffic = measured.traffic.of(api);
        count(traffic.bytes_in + traffic.bytes_out) / seconds
    };
    let pair = |what, measured, computed: f64| Pair {
        what,
        measured,
        computed,
        events: computed * seconds,
        factor: FACTOR,
    };
    vec![
        pair(
            "flushes",
            count(measured.totals.flushes) / seconds,
            cost.flushes,
        ),
        pair("transactions", requests(ApiKey::EndTxn), cost.transactions),
        pair("Produce", requests(ApiKey::Produce), cost.produces),
        pair("Fetch", requests(ApiKey::Fetch), cost.fetches),
        pair("bytes of Fetch", bytes(ApiKey::Fetch), cost.fetch_bytes),
        pair(
            "ListOffsets",
            requests(ApiKey::ListOffsets),
            cost.list_offsets,
        ),
        pair("Metadata", requests(ApiKey::Metadata), cost.metadata),
        pair(
            "copies and heartbeats",
            requests(ApiKey::OffsetCommit) + requests(ApiKey::Heartbeat),
            cost.mirrors + cost.heartbeats,
        ),
        Pair {
            events: cost.flushes * seconds,
            ..pair(
                "bytes of commits",
                count(measured.log_bytes) / seconds,
                cost.commit_bytes,
            )
        },
        Pair {
            events: load.partitions,
            factor: factor_together(&load),
            ..pair(
                "connections",
                count(measured.traffic.connections),
                load.connections(),
            )
        },
    ]
}

fn factor_together(load: &Load) -> f64 {
    if load.is_wire {
        FACTOR_TOGETHER
    } else {
        FACTOR
    }
}

fn start_pairs(setup: &Setup, start: &Begun, log_bytes: u64) -> Vec<Pair> {
    let load = load_of(setup, 0.0, f64::INFINITY);
    let cost = load.take_over(count(log_bytes));
    let of = |api| start.traffic.of(api);
    let pair = |what, measured: u64, computed| Pair {
        what,
        measured: count(measured),
        computed,
        events: load.partitions,
        factor: FACTOR,
    };
    let mut pairs = vec![
        pair(
            "ListOffsets",
            of(ApiKey::ListOffsets).requests,
            cost.list_offsets,
        ),
        Pair {
            factor: factor_together(&load),
            ..pair("Metadata", of(ApiKey::Metadata).requests, cost.metadata)
        },
        Pair {
            factor: factor_together(&load),
            ..pair(
                "bytes of Metadata",
                of(ApiKey::Metadata).bytes_out,
                cost.metadata_bytes,
            )
        },
        pair(
            "InitProducerId",
            of(ApiKey::InitProducerId).requests,
            cost.fences,
        ),
        Pair {
            factor: factor_together(&load),
            ..pair(
                "connections opened",
                start.traffic.connections_opened,
                cost.connections,
            )
        },
    ];
    let read = pair(
        "bytes of Fetch",
        of(ApiKey::Fetch).bytes_out,
        cost.read_bytes,
    );
    pairs.push(Pair {
        // Without commits before there is nothing to read but what is written meanwhile.
        events: if log_bytes == 0 { 0.0 } else { read.events },
        ..read
    });
    pairs
}
